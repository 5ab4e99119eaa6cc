"""Measurements against values known by construction, and against what other programs recorded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import RigConfig, rig_cameras, seqtex4
from geometry.frames import bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.filter.measure_mesh import measure
from pipeline.filter.measure_views import measure_map, measure_views, opposite_pairs
from pipeline.filter.rules import FilterConfig, apply_rules
from pipeline.filter.surface_samples import count_by_color
from pipeline.mesh_io.load import load_mesh
from pipeline.render.views import RenderConfig, render_views
from pipeline.unwrap.uv_metrics import coverage
from schemas.ledger import Measurements, Reason
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh, UvMesh
from schemas.sample import UvMaps
from tests.support.small_gltf import box


def fault(measurements: Measurements) -> Reason | None:
    """Return the reason for which the default thresholds reject an asset."""
    verdict = apply_rules(measurements, FilterConfig())
    return verdict.rejected.reason if verdict.rejected else None


@pytest.fixture
def cube(tmp_path: Path) -> TexturedMesh:
    path = tmp_path / "box.glb"
    path.write_bytes(box().glb())
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh)
    return mesh


def painted(mesh: TexturedMesh, texel: np.ndarray, **material: object) -> TexturedMesh:
    image = np.ascontiguousarray(np.broadcast_to(np.asarray(texel, np.uint8), (16, 16, 4)))
    return replace(mesh, textures=(Texture(image=image),), materials=(Material(texture=0, **material),))  # type: ignore[arg-type]


def test_cube(cube: TexturedMesh) -> None:
    m = measure(cube)
    assert (m.faces, m.vertices, m.parts, m.materials, m.textures, m.texture_side_max) == (12, 36, 1, 1, 1, 8)
    assert m.degenerate_share == 0 and m.flatness == pytest.approx(1) and m.transparent_share == 0
    assert m.uv_faces_share == 1 and m.uv_outside_share == 0
    # front and back show the whole picture on the same texels; the four other sides are lines in the layout
    assert m.uv_overlap_share == pytest.approx(1)
    assert m.uv_degenerate_share == pytest.approx(4 / 6)
    assert m.distinct_colors is not None and m.distinct_colors >= 4
    assert fault(m) is None


def test_grey_never_slips_in(cube: TexturedMesh) -> None:
    """A texture of one colour; the same with JPEG-like noise across a quantisation step; no texture; white vertices."""
    noise = np.random.default_rng(0).integers(126, 131, (16, 16, 1), np.uint8)
    noisy = np.concatenate([np.repeat(noise, 3, axis=2), np.full((16, 16, 1), 255, np.uint8)], axis=2)
    plain = replace(cube, textures=(), materials=(Material(base_color=(0.5, 0.5, 0.5, 1.0)),))
    for grey in (painted(cube, [128, 128, 128, 255]), painted(cube, noisy), plain):
        assert fault(measure(grey)) is Reason.UNTEXTURED


def test_colour_without_textures_counts(cube: TexturedMesh) -> None:
    """Two flat materials, and vertex colours: both are something to learn."""
    red, blue = Material(base_color=(0.8, 0.1, 0.1, 1.0)), Material(base_color=(0.1, 0.1, 0.8, 1.0))
    two = replace(cube, textures=(), materials=(red, blue), face_material=np.arange(12, dtype=np.int32) % 2)
    m = measure(two)
    assert m.distinct_colors == 2 and fault(m) is None
    colors = np.ones_like(cube.colors)
    colors[:, 0] = (cube.vertices[:, 1] + 1) / 2
    shaded = replace(cube, textures=(), materials=(Material(),), colors=colors)
    assert fault(measure(shaded)) is None


def test_a_colour_weighs_by_its_area(cube: TexturedMesh) -> None:
    """One face of twelve, all of one size, is red on white: std of the two other channels is sqrt(p (1 - p))."""
    red = Material(base_color=(1.0, 0.0, 0.0, 1.0))
    which = np.zeros(12, np.int32)
    which[5] = 1
    m = measure(replace(cube, textures=(), materials=(Material(), red), face_material=which))
    share = 1 / 12
    assert m.color_std == pytest.approx(2 / 3 * np.sqrt(share * (1 - share)), rel=1e-3)


def test_transparency(cube: TexturedMesh) -> None:
    glass = measure(painted(cube, [255, 0, 0, 40], alpha_mode=AlphaMode.BLEND))
    assert glass.transparent_share == 1
    assert fault(glass) is Reason.TRANSPARENT
    assert measure(painted(cube, [255, 0, 0, 40])).transparent_share == 0  # opaque materials ignore alpha


def test_degenerate_faces_and_parts(cube: TexturedMesh) -> None:
    far = replace(
        cube,
        vertices=np.concatenate([cube.vertices, cube.vertices + np.float32(9)]),
        normals=np.tile(cube.normals, (2, 1)),
        uv=np.tile(cube.uv, (2, 1)),
        colors=np.tile(cube.colors, (2, 1)),
        faces=np.concatenate([cube.faces, cube.faces + 36, [[0, 0, 0]] * 12]).astype(np.int32),
        face_material=np.zeros(36, np.int32),
        face_has_uv=np.ones(36, bool),
    )
    m = measure(far)
    assert m.parts == 2 and m.degenerate_share == pytest.approx(1 / 3)
    assert fault(m) is Reason.DEGENERATE


def test_all_degenerate_does_not_raise(cube: TexturedMesh) -> None:
    m = measure(replace(cube, vertices=np.zeros_like(cube.vertices)))
    assert fault(m) is Reason.DEGENERATE
    tiny = measure(replace(cube, vertices=cube.vertices * np.float32(1e-30)))
    assert fault(tiny) is None  # size does not matter
    huge = measure(replace(cube, vertices=cube.vertices * np.float32(1e29)))
    assert fault(huge) is None


# shape and layout


def grid(
    count: int, height: np.ndarray | None = None, uv_scale: tuple[float, float] = (1.0, 1.0), texel: int = 200
) -> TexturedMesh:
    """A square of count x count quads over [-1, 1]^2 in x and y, `height` [count + 1, count + 1] in z, one chart."""
    line = np.linspace(0, 1, count + 1)
    v, u = np.meshgrid(line, line, indexing="ij")
    z = np.zeros_like(u) if height is None else height
    corner = np.arange((count + 1) ** 2).reshape(count + 1, count + 1)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    vertices = np.stack([2 * u - 1, 2 * v - 1, z], -1).reshape(-1, 3).astype(np.float32)
    slope_v, slope_u = np.gradient(z, 2 / count)
    normals = np.stack([-slope_u, -slope_v, np.ones_like(z)], -1).reshape(-1, 3)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return TexturedMesh(
        vertices=vertices,
        normals=normals.astype(np.float32),
        uv=(np.stack([u, v], -1).reshape(-1, 2) * uv_scale).astype(np.float32),
        colors=np.ones((len(vertices), 4), np.float32),
        faces=faces.astype(np.int32),
        face_material=np.zeros(len(faces), np.int32),
        face_has_uv=np.ones(len(faces), bool),
        materials=(Material(texture=0),),
        textures=(Texture(image=np.full((8, 8, 4), texel, np.uint8)),),
    )


def test_a_square_grid() -> None:
    m = measure(grid(4))
    assert (m.parts, m.boundary_edges, m.nonmanifold_edges, m.uv_charts) == (1, 16, 0, 1)
    assert (m.size_x, m.size_y, m.size_z) == (2, 2, 0)
    assert m.uv_fill_authored == 1 and m.uv_overlap_share == 0 and m.uv_mirrored_share == 0 and m.uv_flipped_share == 0
    assert m.uv_density_spread == pytest.approx(1, abs=1e-5) and m.uv_score == pytest.approx(1)
    assert m.textured_share == 1 and (m.texture_side_min, m.texture_side_max) == (8, 8)


def test_a_fin_on_an_edge_is_not_manifold() -> None:
    """A fifth of the squares' corners raised to a third face on one inner edge: 2 more boundary edges."""
    sheet = grid(2)
    top = np.concatenate([sheet.vertices, np.array([[0, 0, 1]], np.float32)])
    inner = [4, 8, 9]  # the diagonal from the middle to a corner, and the new point
    fin = replace(
        sheet,
        vertices=top,
        normals=np.concatenate([sheet.normals, sheet.normals[:1]]),
        uv=np.concatenate([sheet.uv, sheet.uv[:1]]),
        colors=np.concatenate([sheet.colors, sheet.colors[:1]]),
        faces=np.concatenate([sheet.faces, np.array([inner], np.int32)]),
        face_material=np.zeros(9, np.int32),
        face_has_uv=np.ones(9, bool),
    )
    m = measure(fin)
    assert (m.boundary_edges, m.nonmanifold_edges, m.parts) == (8 + 2, 1, 1)


def test_charts_end_where_coordinates_jump(cube: TexturedMesh) -> None:
    """The left half moved by a quarter: two charts of one part, though every point stays where it is."""
    sheet = grid(4)
    left = sheet.vertices[sheet.faces][:, :, 0].mean(axis=1) < 0
    corners = sheet.faces.reshape(-1)
    uv = sheet.uv[corners].reshape(-1, 3, 2) * 0.5
    uv[left] += np.array([0.5, 0.5], np.float32)
    split = replace(
        sheet,
        vertices=sheet.vertices[corners],
        normals=sheet.normals[corners],
        colors=sheet.colors[corners],
        uv=uv.reshape(-1, 2),
        faces=np.arange(len(corners), dtype=np.int32).reshape(-1, 3),
    )
    m = measure(split)
    assert (m.parts, m.uv_charts, m.boundary_edges) == (1, 2, 16)
    assert m.uv_fill_authored == pytest.approx(0.25, abs=1e-3) and m.uv_score == pytest.approx(1)
    assert measure(cube).uv_charts == 1, "a projection onto one plane tears nothing"


def test_a_layout_folded_onto_itself_is_mirrored() -> None:
    sheet = grid(4)
    u = np.abs(sheet.uv[:, 0] - np.float32(0.5))
    folded = replace(sheet, uv=np.stack([u, sheet.uv[:, 1]], axis=-1))
    m = measure(folded)
    assert m.uv_overlap_share == pytest.approx(1) and m.uv_mirrored_share == pytest.approx(1)
    assert m.uv_flipped_share == pytest.approx(0.5) and m.uv_fill_authored == pytest.approx(0.5, abs=2e-3)


def test_a_tiled_layout_overlaps_without_a_mirror() -> None:
    """Three tiles side by side are the same texels thrice, once wrapped."""
    m = measure(grid(6, uv_scale=(3.0, 1.0)))
    assert m.uv_overlap_share == pytest.approx(1) and m.uv_mirrored_share == 0 and m.uv_fill_authored == 1
    assert m.uv_outside_share == pytest.approx(2 / 3)
    endless = grid(6, uv_scale=(1e6, 1e6))
    assert measure(endless).uv_overlap_share is None


def test_coverage_counts_texels_as_a_brute_force_search_does() -> None:
    rng = np.random.default_rng(3)
    uv = rng.random((90, 2)).astype(np.float32) * 0.4 + np.repeat(rng.random((30, 1, 2)) * 0.6, 3, axis=1).reshape(
        -1, 2
    ).astype(np.float32)
    faces = np.arange(90, dtype=np.int32).reshape(-1, 3)
    found = coverage(uv, faces, np.ones(30, bool))
    side = 1024
    y, x = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij")
    count, up, down = np.zeros((side, side), int), np.zeros((side, side), bool), np.zeros((side, side), bool)
    for a, b, c in uv[faces].astype(np.float64):
        edges = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        inside_up, inside_down = np.all([e > 0 for e in edges], 0), np.all([e < 0 for e in edges], 0)
        count += inside_up | inside_down
        up |= inside_up
        down |= inside_down
    assert found is not None
    assert found.fill == pytest.approx((count > 0).mean(), rel=2e-3)
    assert found.overlap_share == pytest.approx((count > 1).sum() / (count > 0).sum(), rel=5e-3)
    assert found.mirrored_share == pytest.approx((up & down).sum() / (count > 1).sum(), rel=5e-3)


def test_density_and_score_of_an_uneven_layout() -> None:
    """The right half of a square gets a strip a ninth as long: lengths spread by 3 (areas by 9)."""
    sheet = grid(20)
    u = np.where(sheet.uv[:, 0] <= 0.5, sheet.uv[:, 0] * 1.8, 0.9 + (sheet.uv[:, 0] - 0.5) * 0.2)
    m = measure(replace(sheet, uv=np.stack([u, sheet.uv[:, 1]], -1).astype(np.float32)))
    assert m.uv_density_spread == pytest.approx(3, rel=1e-3)
    assert m.uv_score == pytest.approx(1), "one chart has all of both"


# colours


def test_entropy_of_known_colours() -> None:
    assert count_by_color(np.full((50, 3), 77, np.uint8)).entropy == 0
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    assert count_by_color(grey).entropy == pytest.approx(8 / 3), "8 bits of value, none of hue and saturation"
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    # hue 0 twice (red, white): 1.5 bits; saturation 3 : 1; value one
    assert count_by_color(primaries).entropy == pytest.approx((1.5 + 0.75 * np.log2(4 / 3) + 0.25 * 2) / 3)


def test_flat_and_grey_shares(cube: TexturedMesh) -> None:
    red, grey = Material(base_color=(0.8, 0.0, 0.0, 1.0)), Material(base_color=(0.2, 0.2, 0.2, 1.0))
    which = np.array([0] * 3 + [1] * 9, np.int32)
    m = measure(replace(cube, textures=(), materials=(red, grey), face_material=which))
    assert m.flat_share == pytest.approx(0.75, abs=1e-3) and m.grey_share == pytest.approx(0.75, abs=1e-3)
    assert m.textured_share == 0 and m.texture_side_min is None and m.texture_side_max == 0


def rippled(seed: int = 0) -> TexturedMesh:
    """Hills of one chart, painted with coloured noise that has nothing to do with their slopes."""
    line = np.linspace(0, 2 * np.pi, 65)
    y, x = np.meshgrid(line, line, indexing="ij")
    hills = grid(64, 0.35 * np.sin(2 * x) * np.cos(3 * y))
    image = np.full((256, 256, 4), 255, np.uint8)
    cells = np.random.default_rng(seed).uniform(0.3, 1.0, (32, 32, 1))
    image[..., :3] = np.kron(cells, np.ones((8, 8, 1))) * np.array([200, 120, 60])
    return replace(hills, textures=(Texture(image=image),))


def test_baked_light_is_suspected_where_it_is() -> None:
    """The same hills with and without light in their vertex colours, from above to one side, and as occlusion alone."""
    paint = rippled()
    sun = np.array([0.6, 0.3, 0.74])
    shade = 0.25 + 0.75 * np.maximum(paint.normals @ sun, 0)
    lit = replace(
        paint,
        colors=np.concatenate([np.repeat(shade[:, None], 3, axis=1), np.ones((len(shade), 1))], 1).astype(np.float32),
    )
    plain, suspected = measure(paint).baked_light, measure(lit).baked_light
    assert plain is not None and suspected is not None
    assert plain < 0.05 and suspected > 0.35


# views


def views_of(mesh: TexturedMesh, resolution: int = 96):
    posed = normalise(mesh)[0]
    cameras = seqtex4(*bounding_box(posed.vertices, posed.faces))
    return render_views(posed, cameras, RenderConfig(resolution=resolution, supersample=1), CpuRasterizer()), cameras


def test_opposite_views_of_the_rigs() -> None:
    low, high = -np.ones(3), np.ones(3)
    assert opposite_pairs(seqtex4(low, high)) == [(0, 2), (1, 3)]
    ortho = rig_cameras(RigConfig(name="ortho6"), low, high, seed=0)
    assert len(opposite_pairs(ortho)) == 3
    assert opposite_pairs(seqtex4(low, high, azimuths_deg=(0.0, 60.0))) == []


def test_a_sheet_is_one_surface_and_a_box_is_not(cube: TexturedMesh) -> None:
    """A curtain in waves is the same from both sides; a box, and two sheets with air between, are not."""
    line = np.linspace(0, 4 * np.pi, 33)
    curtain = grid(32, np.broadcast_to(0.05 * np.sin(line), (33, 33)).copy())
    shares = {}
    double = replace(
        curtain,
        vertices=np.concatenate([curtain.vertices, curtain.vertices + np.array([0, 0, 0.2], np.float32)]),
        normals=np.concatenate([-curtain.normals, curtain.normals]),
        uv=np.tile(curtain.uv, (2, 1)),
        colors=np.tile(curtain.colors, (2, 1)),
        faces=np.concatenate([curtain.faces[:, ::-1], curtain.faces + len(curtain.vertices)]).astype(np.int32),
        face_material=np.zeros(2 * len(curtain.faces), np.int32),
        face_has_uv=np.ones(2 * len(curtain.faces), bool),
    )
    for name, mesh in (("curtain", curtain), ("box", cube), ("double", double)):
        views, cameras = views_of(mesh)
        shares[name] = measure_views(Measurements(), views, cameras).single_surface_share
    assert shares["curtain"] > 0.9 and shares["box"] < 0.02 and shares["double"] < 0.1
    assert fault(Measurements(single_surface_share=shares["curtain"])) is Reason.FLAT


def test_what_views_show(cube: TexturedMesh) -> None:
    views, cameras = views_of(cube)
    m = measure_views(measure(cube), views, cameras)
    shares = views.mask.mean(axis=(1, 2))
    assert m.visible_share_min == pytest.approx(shares.min())
    assert m.visible_share_opposite == pytest.approx(max(min(shares[0], shares[2]), min(shares[1], shares[3])))
    assert m.texture_score == pytest.approx(35 * m.texture_entropy + m.edge_score) and m.edge_score > 10
    plain, cameras = views_of(painted(cube, [90, 60, 30, 255]))
    assert measure_views(Measurements(), plain, cameras).edge_score == 0


def test_the_density_of_a_layout_is_in_texels_of_its_map() -> None:
    """A square of side 2 that fills a map of 64 texels has 32 of them per dataset unit."""
    sheet = grid(4)
    uv_mesh = UvMesh(vertices=sheet.vertices, normals=sheet.normals, uv=sheet.uv, faces=sheet.faces, layout="authored")
    flat = np.zeros((64, 64, 3), np.float32)
    maps = UvMaps(rgb=flat.astype(np.uint8), mask=np.ones((64, 64), bool), position=flat, normal=flat)
    m = measure_map(Measurements(), uv_mesh, maps)
    assert m.layout == "authored" and m.uv_fill == 1
    assert m.layout_density == pytest.approx(32, rel=1e-5) and m.layout_density_spread == pytest.approx(1, rel=1e-5)
