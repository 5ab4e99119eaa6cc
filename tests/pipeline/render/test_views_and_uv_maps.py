"""Views and UV maps of a box with its own, asymmetric picture on every side: what is seen must be where it belongs."""

from dataclasses import replace

import numpy as np
import pytest

from geometry.cameras import project, seqtex4
from geometry.frames import bounding_box, normalise
from geometry.image_metrics import capped_psnr
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import sample_image, srgb_to_linear
from pipeline.mesh_io.load import load_mesh
from pipeline.render.lit import render_lit
from pipeline.render.uv_maps import BakeConfig, bake_geometry, bake_uv, round_trip
from pipeline.render.views import RenderConfig, render_baked, render_geometry, render_views
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh, UvMesh, Wrap

RASTERIZER = CpuRasterizer()
CAMERAS = seqtex4(-np.ones(3), np.ones(3))
VIEWS = RenderConfig(resolution=128)
MAPS = BakeConfig(resolution=256)
SIDES = [(axis, sign) for axis in range(3) for sign in (-1.0, 1.0)]
"""-x, +x, -y (front), +y, -z, +z."""
UP_AND_RIGHT = {0: (2, 1), 1: (2, 0), 2: (1, 0)}


def box_corners(axis: int, sign: float) -> np.ndarray:
    """Corners of one side seen from outside: bottom left, bottom right, top right, top left of its picture."""
    up_axis, right_axis = UP_AND_RIGHT[axis]
    mirrored = sign if axis != 1 else -sign  # so that seen from outside, right is right
    corners = np.zeros((4, 3))
    corners[:, axis] = sign
    corners[:, right_axis] = np.array([-1, 1, 1, -1]) * mirrored
    corners[:, up_axis] = [-1, -1, 1, 1]
    return corners


def cells(columns: int, rows: int, margin: float) -> list[np.ndarray]:
    """Corners [4, 2] of six cells of a grid in the unit square, each with a margin."""
    size = np.array([1.0 / columns, 1.0 / rows])
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (1 - 2 * margin) + margin
    return [(unit + np.array([i % columns, i // columns])) * size for i in range(6)]


def box(image: np.ndarray, **material: object) -> TexturedMesh:
    """The box [-1, 1]^3; six pictures in the cells of a 3 x 2 grid over the image, without margins."""
    normals = np.array([np.eye(3)[axis] * sign for axis, sign in SIDES])
    return TexturedMesh(
        vertices=np.concatenate([box_corners(*side) for side in SIDES]).astype(np.float32),
        normals=np.repeat(normals, 4, axis=0).astype(np.float32),
        uv=np.concatenate(cells(3, 2, 0.0)).astype(np.float32),
        colors=np.ones((24, 4), np.float32),
        faces=np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(6)]).astype(np.int32),
        face_material=np.zeros(12, np.int32),
        face_has_uv=np.ones(12, bool),
        materials=(Material(texture=0, **material),),
        textures=(Texture(image=image, wrap_u=Wrap.CLAMP, wrap_v=Wrap.CLAMP),),
    )


def unwrapped(mesh: TexturedMesh) -> UvMesh:
    """Another layout of the same faces: 2 x 3 cells with margins."""
    uv = np.concatenate(cells(2, 3, 0.06)).astype(np.float32)
    return UvMesh(vertices=mesh.vertices, normals=mesh.normals, uv=uv, faces=mesh.faces, layout="xatlas")


def picture(seed: int = 0, size: int = 32) -> np.ndarray:
    """A smooth RGBA image with a bright marker in the top left corner of each of its 3 x 2 cells."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 2 * size, 0 : 3 * size] / size
    waves = [np.sin(rng.uniform(1, 3) * x + rng.uniform(1, 3) * y + rng.uniform(0, 6)) for _ in range(3)]
    image = np.full((2 * size, 3 * size, 4), 255, np.uint8)
    image[..., :3] = (np.stack(waves, -1) * 60 + 100).astype(np.uint8)
    for row in range(2):
        for column in range(3):
            image[row * size : row * size + size // 4, column * size : column * size + size // 4, :3] = 255
    return image


BOX = box(picture())
UV_BOX = unwrapped(BOX)


def test_views_are_upright_and_face_the_right_way():
    views = render_views(BOX, CAMERAS, VIEWS, RASTERIZER)
    for view, (axis, sign) in enumerate([(1, -1.0), (0, 1.0), (1, 1.0), (0, -1.0)]):  # front, right, back, left
        facing = views.normal[view][..., axis] * sign > 0.99
        rows, columns = np.nonzero(facing)
        assert len(rows) > 1000
        white = (views.rgb[view] > 250).all(axis=-1) & facing
        white_rows, white_columns = np.nonzero(white)
        assert len(white_rows) > 50
        assert white_rows.max() < rows.min() + 0.4 * np.ptp(rows)  # the marker is at the top left
        assert white_columns.max() < columns.min() + 0.4 * np.ptp(columns)
        height = views.position[view][..., 2]
        assert height[rows.min() + 2, 64] > 0.8 and height[rows.max() - 2, 64] < -0.8


def test_geometry_maps_are_consistent():
    views = render_views(BOX, CAMERAS, VIEWS, RASTERIZER)
    for image in (views.rgb, views.position, views.normal):
        assert (image[~views.mask] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(views.normal[views.mask], axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.abs(views.position[views.mask]).max(axis=-1), 1.0, atol=1e-5)
    for view in range(4):
        rows, columns = np.nonzero(views.mask[view])
        clip = project(views.position[view, rows, columns], CAMERAS.world_to_clip[view : view + 1])[0]
        np.testing.assert_allclose((clip[:, 0] / clip[:, 3] + 1) * 64 - 0.5, columns, atol=0.01)
        np.testing.assert_allclose((clip[:, 1] / clip[:, 3] + 1) * 64 - 0.5, rows, atol=0.01)


def test_supersampling_averages_linear_light_over_covered_samples():
    """A fine black and white checkerboard: the mean of linear light is 0.5, sRGB 188; not 128."""
    checker = np.indices((512, 768)).sum(axis=0) % 2 * 255
    image = np.dstack([checker, checker, checker, np.full_like(checker, 255)]).astype(np.uint8)
    mesh = box(image)
    mesh = replace(mesh, textures=(replace(mesh.textures[0], nearest=True),))
    views = render_views(mesh, CAMERAS, RenderConfig(resolution=64, supersample=8), RASTERIZER)
    assert abs(np.median(views.rgb[views.mask].astype(float)) - 188) <= 2
    darkest = np.sort(views.rgb[views.mask].max(axis=-1))[: views.mask.sum() // 50]
    assert (darkest > 100).all()  # silhouettes do not mix with the black background


def test_one_sample_per_pixel_is_the_colour_at_the_centre():
    one = render_views(BOX, CAMERAS, RenderConfig(resolution=64, supersample=1), RASTERIZER)
    three = render_views(BOX, CAMERAS, RenderConfig(resolution=64, supersample=3), RASTERIZER)
    np.testing.assert_array_equal(one.mask, three.mask)
    np.testing.assert_array_equal(one.position, three.position)
    difference = np.abs(one.rgb.astype(int) - three.rgb)
    assert 0 < np.mean(difference) < 3


def test_holes_show_what_lies_behind_in_every_map():
    image = picture()
    image[..., 3] = 0
    image[:32, :, 3] = 255  # rows 0..31 hold sides 3, 4, 5: +y, -z, +z
    views = render_views(box(image, alpha_mode=AlphaMode.MASK), CAMERAS, VIEWS, RASTERIZER)
    facing_front = views.normal[0][..., 1] < -0.99
    assert not facing_front.any()  # the front is cut out: its inside back is seen
    inside_back = views.normal[0][..., 1] > 0.99
    assert inside_back.sum() > 1000
    np.testing.assert_allclose(views.position[0][inside_back][:, 1], 1.0, atol=1e-5)
    baked, opaque = (
        bake_uv(box(image, alpha_mode=mode), UV_BOX, MAPS, RASTERIZER) for mode in (AlphaMode.MASK, AlphaMode.OPAQUE)
    )
    assert opaque.opacity is None and baked.opacity is not None
    one_sided = baked.mask & ((baked.opacity == 0) | (baked.opacity == 255))
    assert one_sided.sum() > 0.9 * baked.mask.sum()
    np.testing.assert_array_equal(baked.rgb[one_sided], opaque.rgb[one_sided])  # colour is there behind a hole, too


def test_the_lid_is_seen_from_above_at_the_top_of_the_picture():
    views = render_views(BOX, seqtex4(-np.ones(3), np.ones(3), elevation_deg=35.0), VIEWS, RASTERIZER)
    for view in range(4):
        lid, sides = views.normal[view][..., 2] > 0.99, views.mask[view] & (np.abs(views.normal[view][..., 2]) < 0.01)
        assert lid.sum() > 1000 and sides.sum() > 1000
        assert np.nonzero(lid)[0].min() < np.nonzero(sides)[0].min()
        np.testing.assert_allclose(views.position[view][lid][:, 2], 1.0, atol=1e-5)
        assert not (views.normal[view][..., 2] < -0.01).any()


def test_normals_that_cancel_out_become_the_faces_own():
    normals = BOX.normals.copy()
    normals[20:24] = 0.0  # the lid
    above = seqtex4(-np.ones(3), np.ones(3), elevation_deg=35.0)
    given, restored = (
        render_views(replace(BOX, normals=n), above, VIEWS, RASTERIZER).normal for n in (BOX.normals, normals)
    )
    assert (given[..., 2] > 0.99).any()
    np.testing.assert_allclose(restored, given, atol=1e-6)


def test_a_baked_map_sampled_at_the_layout_returns_the_source_colour():
    maps = bake_uv(BOX, UV_BOX, MAPS, RASTERIZER)
    rng = np.random.default_rng(1)
    face = rng.integers(0, 12, 4000)
    weights = rng.dirichlet(np.ones(3), 4000)
    baked_uv = np.einsum("nc,ncd->nd", weights, UV_BOX.uv[UV_BOX.faces[face]].astype(float))
    source_uv = np.einsum("nc,ncd->nd", weights, BOX.uv[BOX.faces[face]].astype(float))
    ours, truth = sample_image(maps.rgb, baked_uv), sample_image(BOX.textures[0].image[..., :3], source_uv)
    close = np.abs(ours - truth).max(axis=1) <= 4
    assert close.mean() > 0.9  # the rest lies on the markers' sharp edges
    assert np.median(np.abs(ours - truth)) <= 1.0


def test_maps_have_row_zero_at_v_one_and_hold_the_surface():
    maps = bake_uv(BOX, UV_BOX, MAPS, RASTERIZER)
    rows, columns = np.nonzero(maps.mask)
    uv = np.stack([(columns + 0.5) / 256, 1.0 - (rows + 0.5) / 256], axis=-1)
    cell = np.floor(uv * (2, 3)).astype(int)
    side = cell[:, 1] * 2 + cell[:, 0]
    inner = (uv * (2, 3) - cell - 0.06) / 0.88
    corners = np.stack([box_corners(*s) for s in SIDES])[side]
    truth = (
        corners[:, 0] + inner[:, :1] * (corners[:, 1] - corners[:, 0]) + inner[:, 1:] * (corners[:, 3] - corners[:, 0])
    )
    np.testing.assert_allclose(maps.position[rows, columns], truth, atol=1e-4)
    np.testing.assert_allclose(maps.normal[rows, columns], BOX.normals[side * 4], atol=1e-6)
    assert (maps.position[~maps.mask] == 0).all() and (maps.normal[~maps.mask] == 0).all()
    assert maps.mask.mean() == pytest.approx(0.88**2, abs=0.01)
    for mine, theirs in zip(
        bake_geometry(UV_BOX, 256, RASTERIZER), (maps.position, maps.normal, maps.mask), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_the_gutter_continues_the_chart():
    red = np.full((2, 3, 4), (200, 30, 30, 255), np.uint8)
    maps = bake_uv(box(red), UV_BOX, MAPS, RASTERIZER)
    assert not maps.mask.all()
    np.testing.assert_array_equal(maps.rgb, np.broadcast_to(np.uint8([200, 30, 30]), (256, 256, 3)))


def test_strips_thinner_than_a_texel_keep_their_colour():
    """A side squeezed to 0.4 texel that meets no texel centre, far from all other charts."""
    image = picture()
    image[32:, :32, :3] = (255, 0, 0)  # cell 0: side -x
    image[:, 32:, :3] = image[:32, :, :3] = (0, 0, 255)
    mesh = box(image)
    uv = UV_BOX.uv * np.float32(0.5)
    uv[:4] = np.array([[0.75, 0.75], [0.9, 0.75], [0.9, 0.75], [0.75, 0.75]])
    uv[:4, 1] += np.array([0.05, 0.05, 0.45, 0.45]) / 256
    thin = replace(UV_BOX, uv=uv.astype(np.float32))
    maps = bake_uv(mesh, thin, MAPS, RASTERIZER)
    strip = sample_image(maps.rgb, np.array([[0.8, 0.75 + 0.25 / 256]]))
    assert not maps.mask[:100, 180:].any()
    np.testing.assert_allclose(strip, [[255, 0, 0]], atol=1)


def test_a_baked_checkerboard_looks_like_its_source():
    checker = ((np.indices((256, 384)) // 16).sum(axis=0) % 2 * 200 + 30).astype(np.uint8)
    mesh = box(np.dstack([checker, checker[::-1], checker, np.full_like(checker, 255)]))
    views = render_views(mesh, CAMERAS, VIEWS, RASTERIZER)
    maps = bake_uv(mesh, UV_BOX, BakeConfig(resolution=1024), RASTERIZER)
    baked = render_baked(UV_BOX, maps.rgb, CAMERAS, VIEWS, RASTERIZER)
    np.testing.assert_array_equal(baked.mask, views.mask)
    np.testing.assert_array_equal(baked.position, views.position)
    proof = round_trip(views, UV_BOX, maps, CAMERAS, VIEWS, RASTERIZER)
    assert proof.psnr_db == capped_psnr(views.rgb, baked.rgb, views.mask)
    off = (np.abs(views.rgb.astype(int) - baked.rgb).max(axis=-1) > 8)[views.mask]
    assert proof.off_share == pytest.approx(off.mean())
    assert proof.psnr_db > 33.0
    mirrored = replace(maps, rgb=np.ascontiguousarray(maps.rgb[:, ::-1]))
    wrong = round_trip(views, UV_BOX, mirrored, CAMERAS, VIEWS, RASTERIZER)
    assert wrong.psnr_db < 20.0 and wrong.off_share > 0.4


def test_psnr_is_that_of_the_mask():
    first = np.zeros((2, 2, 3), np.uint8)
    second = first.copy()
    second[0, 0], second[1, 1] = 255, 51
    mask = np.array([[False, True], [True, True]])
    assert capped_psnr(first, second, mask) == pytest.approx(10 * np.log10(255**2 / (51**2 / 3)))
    assert capped_psnr(first, first, mask) == 100.0
    with pytest.raises(ValueError, match="no pixel"):
        capped_psnr(first, second, np.zeros((2, 2), bool))


def test_an_unwrap_of_other_faces_is_refused():
    with pytest.raises(ValueError, match="must correspond"):
        bake_uv(BOX, replace(UV_BOX, faces=UV_BOX.faces[:4]), MAPS, RASTERIZER)


def test_threads_change_no_bit_of_views_and_maps():
    many = CpuRasterizer(threads=3)
    one, three = (render_views(BOX, CAMERAS, VIEWS, rasterizer) for rasterizer in (RASTERIZER, many))
    assert one.rgb.tobytes() == three.rgb.tobytes() and one.normal.tobytes() == three.normal.tobytes()
    one, three = (bake_uv(BOX, UV_BOX, MAPS, rasterizer) for rasterizer in (RASTERIZER, many))
    assert one.rgb.tobytes() == three.rgb.tobytes() and one.position.tobytes() == three.position.tobytes()


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "psnr_floor"),
    [("exploding_barrel.glb", 52.0), ("fox_skinned.glb", 60.0), ("egyptian_cat_statue_webp.glb", 48.0)],
)
def test_authored_layouts_survive_the_round_trip(assets_dir, name, psnr_floor):
    mesh = load_mesh(assets_dir / name)
    assert isinstance(mesh, TexturedMesh)
    mesh, _ = normalise(mesh)
    cameras = seqtex4(*bounding_box(mesh.vertices, mesh.faces))
    uv_mesh = UvMesh(vertices=mesh.vertices, normals=mesh.normals, uv=mesh.uv, faces=mesh.faces, layout="authored")
    views = render_views(mesh, cameras, RenderConfig(), RASTERIZER)
    maps = bake_uv(mesh, uv_mesh, BakeConfig(), RASTERIZER)
    assert round_trip(views, uv_mesh, maps, cameras, RenderConfig(), RASTERIZER).psnr_db > psnr_floor
    image = mesh.textures[0].image
    if image.shape[:2] == maps.mask.shape and mesh.materials[0].base_color[:3] == (1.0, 1.0, 1.0):
        # Same size, same layout: the map is the texture, up to the mean over a texel.
        inner = maps.mask & np.roll(maps.mask, 1, 0) & np.roll(maps.mask, 1, 1)
        linear = srgb_to_linear(image[..., :3][inner] / 255.0) - srgb_to_linear(maps.rgb[inner] / 255.0)
        assert np.sqrt(np.mean(linear**2)) < 0.02


def test_views_of_a_baked_map_leave_out_the_same_backs():
    """The box with its sides turned inwards: views look through the near ones at the far ones, and so do those of its
    map; what is baked, and its lit views, cover the same."""
    inward = replace(BOX, faces=np.ascontiguousarray(BOX.faces[:, ::-1]))
    room = replace(inward, materials=(replace(BOX.materials[0], double_sided=False),))
    uv_mesh = replace(UV_BOX, faces=inward.faces, single_sided=np.ones(12, bool))
    views = render_views(room, CAMERAS, VIEWS, RASTERIZER)
    outside = render_views(inward, CAMERAS, VIEWS, RASTERIZER)
    assert (views.mask == outside.mask).mean() > 0.99
    eyes = np.linalg.inv(CAMERAS.world_to_cam)[:, :3, 3]
    distances = [
        np.linalg.norm(v.position - eyes[:, None, None], axis=-1)[views.mask & outside.mask] for v in (views, outside)
    ]
    assert (distances[0] > distances[1] + 1e-3).mean() > 0.95  # the far walls
    maps = bake_uv(room, uv_mesh, MAPS, RASTERIZER)
    np.testing.assert_array_equal(maps.mask, bake_uv(inward, uv_mesh, MAPS, RASTERIZER).mask)  # all faces are baked
    again = render_baked(uv_mesh, maps.rgb, CAMERAS, VIEWS, RASTERIZER)
    np.testing.assert_array_equal(again.mask, views.mask)
    np.testing.assert_array_equal(again.position, views.position)
    assert round_trip(views, uv_mesh, maps, CAMERAS, VIEWS, RASTERIZER).psnr_db > 30
    position, _, mask = render_geometry(uv_mesh, CAMERAS, VIEWS.resolution, RASTERIZER)
    np.testing.assert_array_equal(mask, views.mask)
    np.testing.assert_array_equal(position, views.position)
    np.testing.assert_array_equal(render_lit(room, CAMERAS, VIEWS, RASTERIZER).any(axis=-1), views.mask)
