"""Texture look-up against a small reference, alpha, sRGB and gutter filling."""

from dataclasses import replace

import numpy as np
import pytest

from geometry.gutter import dilate
from geometry.raster import Fragments
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import (
    encode_srgb8,
    linear_to_srgb,
    pack_surface,
    sample_image,
    srgb_to_linear,
    surface_color,
    visible_surface,
)
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh, Wrap

RNG = np.random.default_rng(0)
RASTERIZER = CpuRasterizer()


def quad(uv: np.ndarray, material: Material, textures: tuple[Texture, ...] = (), depths: tuple[float, ...] = (0.0,)):
    """Stacked squares over the whole image, one per depth; uv [4, 2] of the corners -x-y, +x-y, +x+y, -x+y (clip)."""
    layers = len(depths)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    points = np.concatenate([np.insert(corners, 2, depth, axis=1) for depth in depths])
    return TexturedMesh(
        vertices=points,
        normals=np.tile(np.array([0, 0, 1], np.float32), (len(points), 1)),
        uv=np.tile(uv.astype(np.float32), (layers, 1)),
        colors=np.ones((len(points), 4), np.float32),
        faces=np.concatenate([faces + 4 * layer for layer in range(layers)]).astype(np.int32),
        face_material=np.zeros(2 * layers, np.int32),
        face_has_uv=np.ones(2 * layers, bool),
        materials=(material,),
        textures=textures,
    )


def clip_of(mesh: TexturedMesh) -> np.ndarray:
    return np.insert(mesh.vertices, 3, 1.0, axis=1)[None].astype(np.float32)


def drawn(mesh: TexturedMesh, size: int) -> tuple[Fragments, np.ndarray]:
    fragments, color = visible_surface(pack_surface(mesh), clip_of(mesh), size, size, RASTERIZER)
    return fragments, color[0]


UPRIGHT = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
"""The whole texture, row 0 of the image at the top (clip y = -1)."""


def reference_texel(image: np.ndarray, row: int, column: int, wrap_u: Wrap, wrap_v: Wrap) -> np.ndarray:
    def wrapped(index: int, size: int, wrap: Wrap) -> int:
        if wrap is Wrap.CLAMP:
            return int(np.clip(index, 0, size - 1))
        if wrap is Wrap.REPEAT:
            return index % size
        return int(np.concatenate([np.arange(size), np.arange(size)[::-1]])[index % (2 * size)])

    texel = image[wrapped(row, image.shape[0], wrap_v), wrapped(column, image.shape[1], wrap_u)] / 255.0
    return np.append(srgb_to_linear(texel[:3]), texel[3])


def reference_look_up(texture: Texture, u: float, v: float) -> np.ndarray:
    height, width = texture.image.shape[:2]
    x, y = u * width, (1.0 - v) * height
    if texture.nearest:
        return reference_texel(texture.image, int(np.floor(y)), int(np.floor(x)), texture.wrap_u, texture.wrap_v)
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    fx, fy = x - 0.5 - left, y - 0.5 - top
    value = np.zeros(4)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            value += wx * wy * reference_texel(texture.image, top + dy, left + dx, texture.wrap_u, texture.wrap_v)
    return value


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("wrap_u", list(Wrap))
@pytest.mark.parametrize("wrap_v", list(Wrap))
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (2, 8)])
def test_look_up_equals_the_reference(nearest, wrap_u, wrap_v, shape):
    image = RNG.integers(0, 256, (*shape, 4), dtype=np.uint8)
    texture = Texture(image=image, wrap_u=wrap_u, wrap_v=wrap_v, nearest=nearest)
    span = np.array([[-2.37, 3.71], [4.13, 3.71], [4.13, -3.19], [-2.37, -3.19]])
    size = 64  # pixels smaller than texels: magnification
    _, color = drawn(quad(span, Material(texture=0), (texture,)), size)
    steps = (np.arange(size) + 0.5) / size
    for row, column in RNG.integers(0, size, (60, 2)):
        u, v = -2.37 + steps[column] * 6.5, 3.71 - steps[row] * 6.9
        np.testing.assert_allclose(color[row, column, :3], reference_look_up(texture, u, v)[:3], atol=2e-4)


def test_row_zero_is_at_the_top():
    image = np.zeros((4, 4, 4), np.uint8)
    image[0, :2, 0] = 255  # red, top left
    image[3, 2:, 2] = 255  # blue, bottom right
    _, color = drawn(quad(UPRIGHT, Material(texture=0), (Texture(image=image, nearest=True),)), 4)
    np.testing.assert_array_equal(encode_srgb8(color[..., :3]), image[..., :3])


def test_factor_texture_and_vertex_colours_multiply_in_linear_light():
    image = np.full((2, 2, 4), (188, 100, 255, 255), np.uint8)
    mesh = quad(UPRIGHT, Material(base_color=(0.5, 0.25, 1.0, 1.0), texture=0), (Texture(image=image),))
    tint = np.linspace(0.2, 0.8, 4, dtype=np.float32)
    mesh = replace(mesh, colors=np.stack([tint, tint, np.ones(4), np.ones(4)], 1).astype(np.float32))
    fragments, color = drawn(mesh, 8)
    expected_tint = RASTERIZER.interpolate(fragments, mesh.faces, mesh.colors)[0, ..., :3]
    texel = srgb_to_linear(np.array([188, 100, 255]) / 255.0)
    np.testing.assert_allclose(color[..., :3], expected_tint * texel * (0.5, 0.25, 1.0), rtol=1e-5)


def test_faces_without_coordinates_ignore_the_texture():
    image = np.zeros((2, 2, 4), np.uint8)
    mesh = quad(UPRIGHT, Material(base_color=(0.1, 0.2, 0.3, 1.0), texture=0), (Texture(image=image),))
    _, color = drawn(replace(mesh, face_has_uv=np.array([False, False])), 4)
    np.testing.assert_allclose(color[..., :3], np.broadcast_to(np.float32([0.1, 0.2, 0.3]), (4, 4, 3)))


@pytest.mark.parametrize("coordinate", [1e20, -1e20, np.nan, np.inf])
@pytest.mark.parametrize("wrap", list(Wrap))
def test_absurd_coordinates_stay_inside_the_image(coordinate, wrap):
    image = np.full((3, 3, 4), 255, np.uint8)
    texture = Texture(image=image, wrap_u=wrap, wrap_v=wrap)
    _, color = drawn(quad(np.full((4, 2), coordinate), Material(texture=0), (texture,)), 4)
    np.testing.assert_allclose(color[..., :3], 1.0, rtol=1e-6)


def test_several_textures_are_kept_apart():
    images = [np.full((size, size, 4), 40 * size, np.uint8) for size in (1, 2, 3)]
    textures = tuple(Texture(image=image) for image in images)
    mesh = quad(UPRIGHT, Material(texture=0), textures)
    mesh = replace(
        mesh, materials=tuple(Material(texture=i) for i in (2, 0, 1)), face_material=np.array([0, 2], np.int32)
    )
    fragments, color = drawn(mesh, 16)
    levels = encode_srgb8(color[..., :3])[..., 0]
    assert (levels[fragments.face[0] == 0] == 120).all()
    assert (levels[fragments.face[0] == 1] == 80).all()


def hole_texture() -> Texture:
    """Alpha 0 in the left half, 200 in the right."""
    image = np.full((1, 2, 4), 255, np.uint8)
    image[0, :, 3] = 0, 200
    return Texture(image=image, nearest=True)


@pytest.mark.parametrize(
    ("mode", "cutoff", "right_is_there"),
    [
        (AlphaMode.MASK, 0.5, True),
        (AlphaMode.MASK, 0.9, False),
        (AlphaMode.BLEND, 0.9, True),
    ],
)
def test_what_is_cut_out_shows_what_lies_behind(mode, cutoff, right_is_there):
    front = Material(base_color=(1.0, 0.0, 0.0, 1.0), texture=0, alpha_mode=mode, alpha_cutoff=cutoff)
    mesh = quad(UPRIGHT, front, (hole_texture(),), depths=(-0.5, 0.5))
    mesh = replace(
        mesh, materials=(front, Material(base_color=(0.0, 1.0, 0.0, 1.0))), face_material=np.int32([0, 0, 1, 1])
    )
    fragments, color = drawn(mesh, 8)
    expected = np.full((8, 8), not right_is_there)
    expected[:, :4] = True
    np.testing.assert_array_equal(fragments.face[0] >= 2, expected)
    np.testing.assert_array_equal(color[..., 1] == 1.0, expected)
    assert (color[..., 3] == 1.0).all()
    np.testing.assert_allclose(fragments.depth[0], np.where(expected, 0.5, -0.5))


def test_opaque_materials_have_no_holes():
    fragments, _ = drawn(quad(UPRIGHT, Material(texture=0), (hole_texture(),)), 8)
    assert (fragments.face >= 0).all()


def test_seven_cut_out_layers_are_seen_through_and_nothing_is_left_where_all_are():
    front = Material(texture=0, alpha_mode=AlphaMode.MASK)
    mesh = quad(UPRIGHT, front, (hole_texture(),), depths=tuple(np.linspace(-0.7, 0.7, 8)))
    see_through, _ = drawn(mesh, 8)
    assert (see_through.face[0, :, :4] == -1).all() and np.isinf(see_through.depth[0, :, :4]).all()
    assert (see_through.face[0, :, 4:] < 2).all()
    last_is_solid = replace(mesh, materials=(front, Material()), face_material=np.int32([0] * 14 + [1] * 2))
    fragments, _ = drawn(last_is_solid, 8)
    assert (fragments.face[0, :, :4] >= 14).all()


def test_coincident_layers_are_peeled_one_by_one():
    """A decal in the plane of a wall: same depth, cut out; the wall behind it (higher face) must show."""
    front = Material(texture=0, alpha_mode=AlphaMode.MASK)
    mesh = quad(UPRIGHT, front, (hole_texture(),), depths=(0.25, 0.25))
    mesh = replace(mesh, materials=(front, Material()), face_material=np.int32([0, 0, 1, 1]))
    fragments, _ = drawn(mesh, 8)
    np.testing.assert_array_equal(fragments.face[0] >= 2, np.broadcast_to(np.arange(8) < 4, (8, 8)))


def test_colour_is_known_where_alpha_cuts():
    mesh = quad(UPRIGHT, Material(texture=0, alpha_mode=AlphaMode.MASK), (hole_texture(),))
    color = surface_color(mesh, RASTERIZER.rasterize(clip_of(mesh), mesh.faces, 4, 4))
    assert (color[..., :3] == 1.0).all()
    assert (color[0, :, :2, 3] == 0.0).all() and (color[0, :, 2:, 3] == 1.0).all()


@pytest.mark.parametrize("most_alike", [1, 7, 2000])
def test_points_looked_up_in_runs_have_the_colour_of_each_point_alone(most_alike: int):
    """Rows of points on faces of five materials, gaps between them: whatever stands beside a point, and however long
    its run is, it has the very bits that it has as the only one."""
    rng = np.random.default_rng(most_alike)
    images = [rng.integers(0, 256, (*shape, 4), dtype=np.uint8) for shape in ((5, 9), (16, 4))]
    textures = (Texture(image=images[0], wrap_u=Wrap.MIRROR), Texture(image=images[1], nearest=True, wrap_v=Wrap.CLAMP))
    materials = (
        Material(texture=0),
        Material(texture=1, base_color=(0.5, 0.25, 1.0, 1.0)),
        Material(base_color=(0.1, 0.2, 0.3, 1.0)),
        Material(texture=0, alpha_mode=AlphaMode.MASK, alpha_cutoff=0.6),
        Material(texture=1, alpha_mode=AlphaMode.BLEND, base_color=(1.0, 1.0, 1.0, 0.8)),
    )
    plain = quad(3 * rng.normal(size=(4, 2)), materials[0], textures, depths=(0.0,) * 10)
    mesh = replace(plain, materials=materials, face_material=np.arange(20, dtype=np.int32) % 5)
    mesh = replace(mesh, face_has_uv=np.arange(20) < 18)
    face = np.repeat(rng.integers(-1, 20, 3000), rng.integers(1, most_alike + 1, 3000))[:3000].astype(np.int32)
    bary = rng.dirichlet((1, 1, 1), 3000)[:, :2].astype(np.float32)
    for colors in (mesh.colors, rng.random((40, 4)).astype(np.float32)):
        surface = pack_surface(replace(mesh, colors=colors))
        row, column = (
            surface_color(
                surface,
                Fragments(face=face.reshape(shape), bary=bary.reshape(*shape, 2), depth=np.zeros(shape, np.float32)),
            )
            for shape in ((1, 1, 3000), (1, 3000, 1))
        )
        np.testing.assert_array_equal(row.reshape(-1, 4), column.reshape(-1, 4))
        assert (row[0, 0, face < 0] == 0.0).all()
        weights = np.concatenate([bary, 1 - bary.sum(axis=1, keepdims=True)], axis=1)
        for point in np.flatnonzero((face >= 0) & (face < 18) & (mesh.face_material[face] < 3))[:60]:
            corners, material = mesh.faces[face[point]], materials[mesh.face_material[face[point]]]
            expected = np.array(material.base_color) * (weights[point] @ colors[corners])
            if material.texture is not None:
                expected *= reference_look_up(textures[material.texture], *(weights[point] @ mesh.uv[corners]))
            np.testing.assert_allclose(row[0, 0, point, :3], expected[:3], atol=2e-4)


def test_materials_and_textures_that_do_not_exist_are_refused():
    mesh = quad(UPRIGHT, Material(texture=1), (hole_texture(),))
    with pytest.raises(ValueError, match="outside the 1 textures"):
        pack_surface(mesh)
    with pytest.raises(ValueError, match="outside the 1 materials"):
        pack_surface(replace(mesh, materials=(Material(),), face_material=np.int32([0, 1])))


def test_srgb_encoding_is_correctly_rounded_and_undone():
    levels = np.repeat(np.arange(256)[:, None], 3, axis=1)
    np.testing.assert_array_equal(encode_srgb8(srgb_to_linear(levels / 255.0).astype(np.float32)), levels)
    linear = np.concatenate([RNG.random((100_000, 3)) ** 3, [[-1.0, 2.0, np.nan]]]).astype(np.float32)
    exact = linear_to_srgb(linear[:-1].astype(np.float64)) * 255.0
    assert np.abs(encode_srgb8(linear)[:-1] - exact).max() < 0.5 + 1e-4
    np.testing.assert_array_equal(encode_srgb8(linear)[-1], [0, 255, 0])


def test_dilation_repeats_the_nearest_colours_and_fills_everything():
    mask = np.zeros((37, 53), bool)
    mask[5:20, 4:20] = mask[5:20, 30:50] = True
    rgb = np.zeros((37, 53, 3), np.float32)
    rgb[:, :25] = (1.0, 0.25, 0.0)
    rgb[:, 25:] = (0.0, 0.25, 1.0)
    filled = dilate(rgb * mask[..., None], mask)
    np.testing.assert_array_equal(filled[mask], rgb[mask])
    np.testing.assert_allclose(filled[1:24, 0:24], np.broadcast_to(rgb[0, 0], (23, 24, 3)), atol=1e-6)
    np.testing.assert_allclose(filled[..., 1], 0.25, atol=1e-6)  # no black mixed in, anywhere
    np.testing.assert_allclose(filled[..., 0] + filled[..., 2], 1.0, atol=1e-5)


def test_dilation_of_nothing_is_black():
    assert (dilate(np.ones((4, 4, 3), np.float32), np.zeros((4, 4), bool)) == 0).all()


def test_sampling_an_image_at_its_texel_centres_returns_it():
    image = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    u, v = (np.arange(9) + 0.5) / 9, 1.0 - (np.arange(6) + 0.5) / 6
    uv = np.stack(np.meshgrid(u, v), axis=-1)
    np.testing.assert_allclose(sample_image(image, uv), image, atol=1e-4)
    between = sample_image(image, np.array([2.0 / 9, v[1]]))
    np.testing.assert_allclose(between, (image[1, 1].astype(float) + image[1, 2]) / 2, atol=1e-4)
