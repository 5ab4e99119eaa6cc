"""Colours carried over a surface: exactly on a cube, around an occluder, across the two sides of a wall."""

import numpy as np
import pytest

from geometry.nearest import NORMAL_WEIGHT, Surface, VisibleColors
from training.conditions.images import HINT
from training.conditions.view_hint import REACH, view_hint
from training.diffusion.encoders import DctCodec
from training.diffusion.latents import Extensions, surface_points, uv_to_model
from training.diffusion.sampler import TexturingInput, encode_condition

torch = pytest.importorskip("torch")
SIDE = 16
"""Points a side of a face."""
FACES = {"x+": (0, 1), "x-": (0, -1), "y+": (1, 1), "y-": (1, -1), "z+": (2, 1), "z-": (2, -1)}
STEP = 2 / SIDE


def face(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres of a grid of cells on one face of the cube [-1, 1]^3, and their normals: [SIDE, SIDE, 3]."""
    axis, sign = FACES[name]
    places = -1 + STEP * (np.arange(SIDE) + 0.5)
    points = np.zeros((SIDE, SIDE, 3), np.float32)
    points[..., axis] = sign
    points[..., (axis + 1) % 3], points[..., (axis + 2) % 3] = places[:, None], places[None]
    normals = np.zeros_like(points)
    normals[..., axis] = sign
    return points, normals


def surface(*names: str) -> Surface:
    """The faces as images of a stack."""
    parts = [face(name) for name in names]
    return Surface(position=np.stack([p for p, _ in parts]), normal=np.stack([n for _, n in parts]))


def painted(points: np.ndarray) -> np.ndarray:
    """A colour that tells where a point is."""
    return ((points + 1) * 127.5).astype(np.uint8)


def test_faces_that_are_seen_keep_their_colours_and_hidden_ones_take_the_nearest_edge():
    seen = surface("y-", "x+")
    colors = VisibleColors(seen, painted(seen.position))
    rgb, distance = colors.nearest(surface(*FACES))
    by_name = dict(zip(FACES, zip(rgb, distance, strict=True), strict=True))
    for name in ("y-", "x+"):
        assert np.array_equal(by_name[name][0], painted(face(name)[0])) and not by_name[name][1].any()
    # the back: each row of cells takes the edge of x+ at its own height, as far away as the row is deep
    back, far = by_name["y+"]
    points, _ = face("y+")
    depth = 1 - points[..., 0]  # from the edge that it shares with x+, in the plane of the back
    turned = NORMAL_WEIGHT * np.sqrt(2)
    np.testing.assert_allclose(far, np.sqrt((depth**2 + (STEP / 2) ** 2) + turned**2), rtol=1e-5)
    edge = np.stack([np.ones_like(depth), np.full_like(depth, 1 - STEP / 2), points[..., 2]], axis=-1)
    assert np.array_equal(back, painted(edge))


def test_what_an_occluder_hides_takes_the_rim_of_its_shadow_not_the_occluder():
    """A wall at y = 0, and before it, at y = -1, a board of a quarter of its side, seen straight from the front."""
    count = 32
    places = np.linspace(-1, 1, count)
    wall = np.stack([*np.meshgrid(places, places, indexing="ij")], axis=-1)
    wall = np.stack([wall[..., 0], np.zeros((count, count)), wall[..., 1]], axis=-1).astype(np.float32)
    hidden = (np.abs(wall[..., 0]) < 0.25) & (np.abs(wall[..., 2]) < 0.25)
    view = wall.copy()
    view[hidden, 1] = -1.0
    toward = np.broadcast_to(np.array([0, -1, 0], np.float32), wall.shape)
    red, blue = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)
    image = np.where(hidden[..., None], red, blue)
    colors = VisibleColors(Surface(position=view, normal=toward), image)
    rgb, distance = colors.nearest(Surface(position=wall, normal=toward))
    assert (rgb == blue).all(), "no texel of the wall is red"
    assert not distance[~hidden].any()
    assert distance[hidden].min() >= np.diff(places)[0] * 0.999
    middle = np.abs(wall[..., [0, 2]]).max(axis=-1) < 0.05
    assert distance[middle].min() > 0.2, "the middle of the shadow is as far as its rim"


def test_two_sides_of_a_thin_wall_do_not_take_each_others_colours():
    points, normals = face("y-")
    front = Surface(position=points, normal=normals)
    back = Surface(position=points + np.float32([0, 0.01, 0]), normal=-normals)
    colors = VisibleColors(front, np.full((SIDE, SIDE, 3), 9, np.uint8))
    _, near = colors.nearest(front)
    _, far = colors.nearest(back)
    assert not near.any() and far.min() > 2 * NORMAL_WEIGHT * 0.99


def test_nothing_to_see_is_said_and_background_gets_no_colour():
    points, normals = face("y-")
    empty = Surface(position=np.zeros_like(points), normal=np.zeros_like(normals))
    with pytest.raises(ValueError, match="no surface"):
        VisibleColors(empty, painted(points))
    rgb, distance = VisibleColors(Surface(position=points, normal=normals), painted(points)).nearest(empty)
    assert not rgb.any() and np.isinf(distance).all()


@pytest.mark.parametrize("given", [(), (0,), (1,), (0, 1)])
def test_a_hint_has_the_true_colours_where_a_given_view_shows_the_point(given):
    names = ("y-", "x+", "y+", "x-")
    views = surface(*names)
    rgb = painted(views.position).astype(np.float32) / 255
    uv = Surface(position=np.concatenate(views.position), normal=np.concatenate(views.normal))
    of_views, of_map = view_hint(rgb, views, given, uv)
    assert of_views.shape == (4, SIDE, SIDE, 4) and of_map.shape == (4 * SIDE, SIDE, 4)
    assert np.array_equal(of_map, np.concatenate(of_views)), "a point has one hint, wherever it is seen"
    for number in range(4):
        if number in given:
            assert np.array_equal(of_views[number, ..., :3], rgb[number]) and (of_views[number, ..., 3] == 1).all()
        elif given:
            turned = NORMAL_WEIGHT * np.sqrt(2)
            assert of_views[number, ..., 3].max() < np.exp(-turned / REACH), "what is hidden is not close"
        else:
            assert not of_views[number].any()


def test_large_images_are_thinned_out_and_the_hint_has_their_size():
    names, size = ("y-", "x+"), 256
    fine = [np.kron(part, np.ones((1, SIDE, SIDE, 1), np.float32)) for part in
            (surface(*names).position, surface(*names).normal)]  # fmt: skip
    views = Surface(position=fine[0], normal=fine[1])
    rgb = painted(fine[0]).astype(np.float32) / 255
    of_views, none = view_hint(rgb, views, (0,), None)
    assert none is None and of_views.shape == (2, size, size, 4)
    assert np.abs(of_views[0, SIDE // 2 :: SIDE, SIDE // 2 :: SIDE, :3] - rgb[0, ::SIDE, ::SIDE]).max() < 0.01


def test_hint_latents_are_zero_without_a_given_view():
    codec = DctCodec()
    hints = torch.rand(2, 3, 16, 16, 4)
    hints[1] = 0
    latents = HINT.encode(hints, codec)
    assert latents.shape == (2, 17, 3, 2, 2)
    assert torch.equal(latents[0, :16], codec.encode(hints[:1, ..., :3])[0])
    torch.testing.assert_close(latents[0, 16], hints[0, ..., 3].unflatten(2, (2, 8)).unflatten(1, (2, 8)).mean((2, 4)))
    assert not latents[1].any()


def test_points_of_a_latent_pixel_are_the_mean_of_what_is_covered():
    position = torch.rand(1, 1, 16, 8, 3) * 2 - 1
    normal = torch.zeros(1, 1, 16, 8, 3)
    normal[0, 0, :4, :, 2] = 1.0  # the upper half of the first cell
    points = surface_points(position, normal, 8)
    assert points.shape == (1, 4, 1, 2, 1)
    torch.testing.assert_close(points[0, :3, 0, 0, 0], position[0, 0, :4].mean((0, 1)))
    assert points[0, 3, 0, 0, 0] == 0.5 and not points[0, :, 0, 1].any()


@pytest.mark.parametrize("size", [256, 384, 512])
def test_a_large_hint_lies_where_its_image_does(size):
    """A colour that grows evenly over a plane comes back to within what thinning out costs, without a shift."""
    place = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(place, place)
    plane = np.stack([x, np.zeros_like(x), -y], axis=-1)
    toward = np.broadcast_to(np.array([0, -1, 0], np.float32), plane.shape)
    views = Surface(position=plane[None], normal=toward[None])
    rgb = ((plane + 1) / 2)[None]
    of_views, of_map = view_hint(rgb, views, (0,), Surface(position=plane, normal=toward))
    inner = slice(size // 8, -size // 8)
    for hint in (of_views[0], of_map):
        shift = (hint[..., :3] - rgb[0])[inner, inner].mean(axis=(0, 1)) * size
        assert np.abs(shift).max() <= 0.51, "pixels"


def test_sampling_and_training_have_the_same_hint_of_a_map():
    """The model's maps lie upside down; hints are made before they are turned."""
    rng, size = np.random.default_rng(0), 272
    place = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(place, place)
    maps = np.stack([x, 0.2 * np.sin(5 * x * y), y], axis=-1).astype(np.float32)
    normal = np.broadcast_to(np.array([0, -1, 0], np.float32), maps.shape)
    image = (256 * rng.random((size, size, 3))).astype(np.uint8)
    views, uv = Surface(position=maps[None], normal=normal[None]), Surface(position=maps, normal=normal)
    _, trained = view_hint(image[None].astype(np.float32) / 255, views, (0,), uv)
    one, text = TexturingInput(views=views, uv=uv, images={0: image}), torch.zeros(1, 1, 8)
    codec = DctCodec()
    sampled = encode_condition(codec, [one], text, text, Extensions(images=("hint",))).branches[1][:, 32:]
    assert torch.equal(sampled, HINT.encode(uv_to_model(trained)[None], codec))
