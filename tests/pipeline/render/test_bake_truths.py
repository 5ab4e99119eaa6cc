"""Baked maps and their round trip on made-up surfaces whose right answer is known to the level."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from geometry.cameras import seqtex4
from geometry.mips import MIP_SCALE, mip_levels
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import SRGB_DECODE, encode_srgb8, linear_to_srgb, sample_image, srgb_to_linear
from pipeline.render.uv_maps import BakeConfig, bake_uv, round_trip
from pipeline.render.views import RenderConfig, render_baked, render_views
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh, UvMesh, Wrap
from schemas.sample import UvMaps

RASTERIZER = CpuRasterizer()
UNIT = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
"""Corners of the whole square: bottom left, bottom right, top right, top left."""
CAMERAS = seqtex4(-np.ones(3), np.ones(3))


def sheets(
    source: list[np.ndarray], target: list[np.ndarray], images: tuple[np.ndarray, ...], **texture: object
) -> tuple[TexturedMesh, UvMesh]:
    """Upright squares side by side, facing the front: square i shows `source[i]` of image min(i, last), and gets
    `target[i]` of the map (corners [4, 2])."""
    count = len(source)
    left = np.linspace(-1, 1, count + 1)
    points = [np.array([[a, 0, -1], [b, 0, -1], [b, 0, 1], [a, 0, 1]]) for a, b in pairwise(left)]
    textures = tuple(Texture(image=image, **texture) for image in images)
    mesh = TexturedMesh(
        vertices=np.concatenate(points).astype(np.float32),
        normals=np.tile(np.float32([0, -1, 0]), (4 * count, 1)),
        uv=np.concatenate(source).astype(np.float32),
        colors=np.ones((4 * count, 4), np.float32),
        faces=np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(count)]).astype(np.int32),
        face_material=np.repeat(np.minimum(np.arange(count), len(images) - 1), 2).astype(np.int32),
        face_has_uv=np.ones(2 * count, bool),
        materials=tuple(Material(texture=i) for i in range(len(images))),
        textures=textures,
    )
    uv = np.concatenate(target).astype(np.float32)
    return mesh, UvMesh(vertices=mesh.vertices, normals=mesh.normals, uv=uv, faces=mesh.faces, layout="authored")


def baked(pair: tuple[TexturedMesh, UvMesh], resolution: int) -> UvMaps:
    return bake_uv(*pair, BakeConfig(resolution=resolution), RASTERIZER)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image[..., 3] = 255
    return image


def plain(color: tuple[int, int, int], height: int = 1, width: int = 1) -> np.ndarray:
    return np.broadcast_to(np.uint8([*color, 255]), (height, width, 4)).copy()


def block_means(image: np.ndarray, size: int) -> np.ndarray:
    """sRGB levels of the mean linear light of size x size blocks."""
    height, width = image.shape[0] // size, image.shape[1] // size
    light = srgb_to_linear(image[..., :3] / 255.0).reshape(height, size, width, size, 3).mean(axis=(1, 3))
    return linear_to_srgb(light) * 255


def off(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(found.astype(float) - truth).max())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_map_of_the_sources_own_layout_is_the_source_or_its_exact_mean(size):
    image = noise(60, 60)
    maps = baked(sheets([UNIT], [UNIT], (image,)), 60 // size)
    assert maps.mask.all() and maps.opacity is None
    assert off(maps.rgb, block_means(image, size)) <= 1.0


def test_coordinates_on_texel_centres_and_edges_return_the_texels():
    image = noise(64, 64)
    for low, high in ((0.5, 63.5), (1.0, 63.0)):
        square = low / 64 + UNIT * (high - low) / 64
        maps = baked(sheets([square], [square], (image,)), 64)
        inner = maps.rgb[1:-1, 1:-1]
        assert maps.mask[1:-1, 1:-1].all() and off(inner, image[1:-1, 1:-1, :3]) <= 1.0


def test_a_checkerboard_finer_than_the_map_becomes_its_mean_in_linear_light():
    """Two texels of black and white to a texel and more: mean light one half, level 188; also at sizes that do not
    divide, and turned by 30 degrees (where the parallelogram of a texel is summed by its probes)."""
    checker = np.indices((512, 512)).sum(axis=0) % 2 * 255
    image = np.dstack([checker, checker, checker, np.full_like(checker, 255)]).astype(np.uint8)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    for resolution, source, bound in ((64, UNIT, 0.5), (100, UNIT, 3.0), (64, UNIT @ turn, 3.0)):
        maps = baked(sheets([source], [UNIT], (image,)), resolution)
        assert off(maps.rgb, 187.5) <= bound + 0.5, resolution


def test_a_sine_of_4096_cycles_comes_out_flat():
    cycle = np.rint(127.5 + 127.5 * np.sin(np.arange(16) * 2 * np.pi / 16)).astype(np.uint8)
    image = np.dstack([*[np.broadcast_to(cycle, (4, 16))] * 3, np.full((4, 16), 255)]).astype(np.uint8)
    mean = linear_to_srgb(srgb_to_linear(cycle / 255.0).mean()) * 255
    pair = sheets([UNIT * (4096, 1)], [UNIT], (image,))
    for resolution in (64, 97):
        assert off(baked(pair, resolution).rgb, mean) <= 1.5
    views = render_views(pair[0], CAMERAS, RenderConfig(resolution=96), RASTERIZER)
    inside = views.coverage[0] == 255
    assert inside.sum() > 500 and off(views.rgb[0][inside], mean) <= 1.5


def test_a_baked_checkerboard_looks_like_its_source():
    checker = (np.indices((64, 64)) // 8).sum(axis=0) % 2 * 255
    image = np.dstack([checker, checker, checker, np.full_like(checker, 255)]).astype(np.uint8)
    pair = sheets([UNIT], [0.1 + 0.8 * UNIT], (image,))
    views = render_views(pair[0], CAMERAS, RenderConfig(resolution=128), RASTERIZER)
    maps, cfg = baked(pair, 320), RenderConfig(resolution=128)
    again = render_baked(pair[1], maps.rgb, CAMERAS, cfg, RASTERIZER)
    light = [srgb_to_linear(images.rgb[0] / 255.0)[views.mask[0]] for images in (views, again)]
    assert np.abs(light[0] - light[1]).max() < 0.05  # between black and white, on the steps; most have none
    assert np.median(np.abs(light[0] - light[1])) < 1e-3
    proof = round_trip(views, pair[1], maps, CAMERAS, cfg, RASTERIZER)
    assert proof.psnr_db > 30 and proof.off_share < 0.06


def test_mirrored_coordinates_are_baked_mirrored():
    image = noise(32, 32)
    maps = baked(sheets([UNIT * (-1, 1) + (1, 0)], [UNIT], (image,)), 32)
    assert off(maps.rgb, image[:, ::-1, :3]) <= 1.0


@pytest.mark.parametrize("wrap", [Wrap.REPEAT, Wrap.MIRROR])
@pytest.mark.parametrize("size", [1, 2])
def test_six_tiles_are_six_tiles(wrap, size):
    image = noise(16, 16)
    maps = baked(sheets([UNIT * 6], [UNIT], (image,), wrap_u=wrap, wrap_v=wrap), 96 // size)
    pair = image if wrap is Wrap.REPEAT else image[:, ::-1]
    row = np.concatenate([image, pair] * 3, axis=1)
    above = row if wrap is Wrap.REPEAT else row[::-1]
    truth = np.concatenate([above, row] * 3, axis=0)  # v = 0 is the last row
    assert off(maps.rgb, block_means(truth, size)) <= 1.0


def test_vertex_colours_multiply_the_texture():
    mesh, uv_mesh = sheets([UNIT], [UNIT], (plain((188, 100, 255)),))
    tint = np.array([[1, 0.5, 0, 1], [0, 0.5, 1, 1], [0, 0.25, 1, 1], [1, 0.25, 0, 1]], np.float32)
    maps = baked((replace(mesh, colors=tint), uv_mesh), 64)
    across, up = np.meshgrid((np.arange(64) + 0.5) / 64, 1 - (np.arange(64) + 0.5) / 64)
    colors = np.stack([1 - across, 0.5 - 0.25 * up, across], axis=-1)
    truth = linear_to_srgb(colors * srgb_to_linear(np.array([188, 100, 255]) / 255.0)) * 255
    assert off(maps.rgb, truth) <= 1.0


def leaf(size: int = 128) -> np.ndarray:
    """A green disc with a soft edge of some texels; pink where it is cut out."""
    y, x = (np.indices((size, size)) + 0.5) / size - 0.5
    alpha = np.clip((0.35 - np.hypot(x, y)) * size / 4 + 0.5, 0, 1)
    image = np.where(alpha[..., None] > 0, np.uint8([40, 160, 30, 0]), np.uint8([255, 0, 200, 0]))
    image[..., 3] = np.rint(alpha * 255)
    return image.astype(np.uint8)


@pytest.mark.parametrize(("mode", "cutoff"), [(AlphaMode.MASK, 0.5), (AlphaMode.MASK, 0.2), (AlphaMode.BLEND, 0.5)])
def test_cut_out_leaves_survive_the_round_trip(mode, cutoff):
    mesh, uv_mesh = sheets([UNIT, UNIT], [UNIT * 0.4 + 0.05, UNIT * 0.4 + 0.5], (leaf(), plain((90, 60, 40))))
    cut = replace(mesh.materials[0], alpha_mode=mode, alpha_cutoff=cutoff)
    mesh = replace(mesh, materials=(cut, mesh.materials[1]))
    cfg = RenderConfig(resolution=192)
    views = render_views(mesh, CAMERAS, cfg, RASTERIZER)
    maps = baked((mesh, uv_mesh), 256)
    assert maps.opacity is not None
    again = render_baked(uv_mesh, maps.rgb, CAMERAS, cfg, RASTERIZER, maps.opacity)
    left = views.position[0][views.mask[0] & (views.position[0][..., 0] < -0.02)] - (-0.5, 0, 0)
    assert len(left) > 1000 and np.hypot(left[:, 0], left[:, 2] / 2).max() < 0.4  # a leaf, and nothing beside it
    assert (views.mask & again.mask).sum() > 0.995 * (views.mask | again.mask).sum()
    radius = 0.35 + (0.5 - cutoff) * 4 / 128
    area = (maps.opacity[maps.position[..., 0] < 0] >= 128).sum() / (0.4 * 256) ** 2
    assert area == pytest.approx(np.pi * radius**2, rel=0.01)
    proof = round_trip(views, uv_mesh, maps, CAMERAS, cfg, RASTERIZER)
    without = round_trip(views, uv_mesh, replace(maps, opacity=None), CAMERAS, cfg, RASTERIZER)
    assert proof.psnr_db > 30 and without.psnr_db < 15


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("thickness", [1.0, 0.1])
def test_a_chart_one_texel_thin_or_thinner_has_the_colour_of_its_own_texels_alone(offset, thickness):
    """The red half of a picture on a strip, far from the green one; in the source the two halves touch."""
    image = np.concatenate([plain((0, 255, 0), 32, 64), plain((255, 0, 0), 32, 64)])
    lower, upper = UNIT * (1, 0.5), UNIT * (1, 0.5) + (0, 0.5)
    bottom = (20 + offset) / 64
    strip = np.array([[0.1, bottom], [0.9, bottom], [0.9, bottom + thickness / 64], [0.1, bottom + thickness / 64]])
    maps = baked(sheets([lower, upper], [strip, UNIT * 0.2 + 0.75], (image,)), 64)
    middle = sample_image(maps.rgb, np.array([[u, bottom + thickness / 128] for u in (0.2, 0.5, 0.8)]))
    assert off(middle, np.array([255, 0, 0])) <= 1.0


def test_charts_that_share_texels_in_the_source_get_their_own_copies():
    image = noise(32, 32)
    left, right = UNIT * 0.5, UNIT * 0.5 + (0.5, 0)
    maps = baked(sheets([UNIT, UNIT], [left, right], (image,)), 64)
    assert off(maps.rgb[32:, :32], image[..., :3]) <= 1.0
    assert off(maps.rgb[32:, 32:], image[..., :3]) <= 1.0


def test_two_materials_end_in_one_map_without_mixing():
    """Two charts that touch along texel edges, images of different sizes, one with a factor."""
    first, second = noise(32, 32), noise(64, 64, seed=1)
    mesh, uv_mesh = sheets([UNIT, UNIT], [UNIT * (0.5, 1), UNIT * (0.5, 1) + (0.5, 0)], (first, second))
    tinted = replace(mesh.materials[1], base_color=(0.5, 1.0, 0.25, 1.0))
    maps = baked((replace(mesh, materials=(mesh.materials[0], tinted)), uv_mesh), 64)
    light = srgb_to_linear(second[..., :3] / 255.0).reshape(64, 32, 2, 3).mean(axis=2) * (0.5, 1.0, 0.25)
    inner = slice(2, -2)  # where the diagonal meets a border, a footprint ends with its triangle
    assert off(maps.rgb[inner, 32:], linear_to_srgb(light)[inner] * 255) <= 1.0
    # magnified twice along v: texel centres at 1/4 and 3/4 between the source's
    linear = srgb_to_linear(first[..., :3] / 255.0)
    rows = np.stack([0.75 * linear + 0.25 * np.roll(linear, 1, 0), 0.75 * linear + 0.25 * np.roll(linear, -1, 0)], 1)
    assert off(maps.rgb[:, :32], linear_to_srgb(rows.reshape(64, 32, 3)) * 255) <= 1.0


def test_seams_show_no_foreign_colour_at_two_mip_levels():
    """Charts of loud colours 16 texels apart; bilinear look-ups along their borders in the map and its mip levels."""
    colors = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 20)]
    places = [UNIT * 0.42 + (0.04 + 0.5 * (i % 2), 0.04 + 0.5 * (i // 2)) for i in range(4)]
    pair = sheets([UNIT] * 4, places, tuple(plain(color) for color in colors))
    maps = baked(pair, 256)
    image = np.dstack([maps.rgb, np.full((256, 256), 255, np.uint8)])
    levels = mip_levels(image, SRGB_DECODE, False)
    smaller = [encode_srgb8((level[..., :3] / np.float32(MIP_SCALE)).astype(np.float32)) for level in levels[:2]]
    along = np.linspace(0, 1, 101)[:, None]
    for place, color in zip(places, colors, strict=True):
        border = np.concatenate([place[i] * (1 - along) + place[(i + 1) % 4] * along for i in range(4)])
        for level in (maps.rgb, *smaller):
            assert off(sample_image(level, border), np.array(color)) <= 2.0


def test_mip_levels_keep_the_mean_of_any_size_and_weigh_by_alpha():
    image = np.random.default_rng(3).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    light = np.dstack([srgb_to_linear(image[..., :3] / 255.0), image[..., 3] / 255.0]).reshape(-1, 4)
    last = mip_levels(image, SRGB_DECODE, False)[-1][0, 0] / MIP_SCALE
    np.testing.assert_allclose(last, light.mean(axis=0), atol=2e-5)
    cut = image.copy()
    hidden = image[..., 3] < 128
    cut[hidden] = (255, 0, 255, 0)
    shown = light[~hidden.reshape(-1)]
    weighted = mip_levels(cut, SRGB_DECODE, True)[-1][0, 0] / MIP_SCALE
    np.testing.assert_allclose(weighted[:3], np.average(shown[:, :3], weights=shown[:, 3], axis=0), atol=1e-4)
    assert weighted[3] == pytest.approx(shown[:, 3].sum() / len(light), abs=2e-5)
    unseen = mip_levels(np.uint8([[[255, 0, 0, 0], [255, 0, 0, 0]]]), SRGB_DECODE, True)[0][0, 0] / MIP_SCALE
    np.testing.assert_array_equal(unseen, [1, 0, 0, 0])  # nothing to see: the plain mean
