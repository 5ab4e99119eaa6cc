"""Metrics over the surface, on meshes and textures made so that the right value is known."""

import numpy as np
import pytest

from geometry.cameras import project, seqtex4
from geometry.raster_cpu import CpuRasterizer
from schemas.mesh import UvMesh
from training.metrics.surface import Seen, cross_view_consistency, find_seams, seam_step, visible_texels

SIZE = 128


def cube(margin: float = 0.1) -> UvMesh:
    """Six squares, each a chart in a 3 x 2 grid, `margin` of a cell away from its neighbours."""
    sides = [(2, 1), (0, 1), (2, -1), (0, -1), (1, 1), (1, -1)]
    vertices, normals, uv, faces = [], [], [], []
    for index, (axis, sign) in enumerate(sides):
        normal = np.zeros(3)
        normal[axis] = sign
        right = np.roll(normal, 1)
        up = np.cross(normal, right)
        for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)):
            vertices.append(normal + (2 * x - 1) * right + (2 * y - 1) * up)
            normals.append(normal)
            inner = margin + (1 - 2 * margin) * np.array([x, y])
            uv.append([(index % 3 + inner[0]) / 3, (index // 3 + inner[1]) / 2])
        faces += [[4 * index, 4 * index + 1, 4 * index + 2], [4 * index, 4 * index + 2, 4 * index + 3]]
    return UvMesh(
        vertices=np.array(vertices, np.float32) / 2,
        normals=np.array(normals, np.float32),
        uv=np.array(uv, np.float32),
        faces=np.array(faces, np.int32),
        layout="authored",
    )


def flat_texture(colors: list[int]) -> np.ndarray:
    """Each cell of the cube's atlas in one grey; row 0 is v = 1."""
    image = np.zeros((2 * SIZE, 3 * SIZE, 3), np.uint8)
    for index, grey in enumerate(colors):
        row, column = 1 - index // 3, index % 3
        image[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE] = grey
    return image


def test_a_cube_of_six_charts_has_its_twelve_edges_as_seams():
    seams = find_seams(cube())
    assert len(seams.length) == 12
    np.testing.assert_allclose(seams.length, 1.0)


def test_diagonals_inside_a_chart_are_no_seams():
    mesh = cube()
    one_side = UvMesh(
        vertices=mesh.vertices[:4], normals=mesh.normals[:4], uv=mesh.uv[:4], faces=mesh.faces[:2], layout="authored"
    )
    assert len(find_seams(one_side).length) == 0
    assert seam_step(one_side, flat_texture([9] * 6)) == 0.0


def test_the_step_at_seams_is_the_difference_of_colour_by_length():
    assert seam_step(cube(), flat_texture([80] * 6)) == 0.0
    # one side differs by 51 = 0.2: four of the twelve edges
    assert seam_step(cube(), flat_texture([131, 80, 80, 80, 80, 80])) == pytest.approx(0.2 * 4 / 12)
    # sides 0 and 2 are opposite: eight edges
    assert seam_step(cube(), flat_texture([131, 80, 131, 80, 80, 80])) == pytest.approx(0.2 * 8 / 12)


def test_a_picture_that_goes_on_across_the_border_has_no_seam():
    """Colour as a function of the place on the surface, baked with room around the charts."""
    mesh = cube()
    x, y = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2)
    image = flat_texture([0] * 6)
    for index in range(6):
        corner, right, up = (mesh.vertices[4 * index + k].astype(float) for k in (0, 1, 3))
        a, b = ((c - 0.1) / 0.8 for c in (x, 1 - y))
        place = corner + a[..., None] * (right - corner) + b[..., None] * (up - corner)
        row, column = 1 - index // 3, index % 3
        cell = (slice(row * SIZE, (row + 1) * SIZE), slice(column * SIZE, (column + 1) * SIZE))
        image[cell] = np.round(255 * (0.5 + 0.3 * place))
    assert seam_step(mesh, image) < 1 / 255


def views_of(mesh: UvMesh, resolution: int = 192) -> Seen:
    cameras, rasterizer = seqtex4(mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)), CpuRasterizer()
    clip = project(mesh.vertices, cameras.world_to_clip)
    fragments = rasterizer.rasterize(clip, mesh.faces, resolution, resolution)
    return Seen(
        position=rasterizer.interpolate(fragments, mesh.faces, mesh.vertices),
        normal=rasterizer.interpolate(fragments, mesh.faces, mesh.normals),
        mask=fragments.face >= 0,
        cameras=cameras,
    )


def bumpy_sphere() -> UvMesh:
    """Not convex, so that parts hide parts."""
    v, u = np.meshgrid(np.linspace(0.02, np.pi - 0.02, 60), np.linspace(0, 2 * np.pi, 120), indexing="ij")
    direction = np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], axis=-1)
    radius = 0.7 + 0.25 * np.sin(4 * u) * np.sin(v) ** 2
    points = radius[..., None] * direction
    normal = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    first = (np.arange(59)[:, None] * 120 + np.arange(119)).reshape(-1, 1)
    faces = (first + np.array([[0, 120, 121, 0, 121, 1]])).reshape(-1, 3)
    return UvMesh(
        vertices=points.reshape(-1, 3).astype(np.float32),
        normals=normal.reshape(-1, 3).astype(np.float32),
        uv=np.stack([u / (2 * np.pi), 1 - v / np.pi], axis=-1).reshape(-1, 2).astype(np.float32),
        faces=faces.astype(np.int32),
        layout="authored",
    )


def test_views_of_one_colouring_agree_and_a_brighter_one_does_not():
    seen = views_of(bumpy_sphere())
    rgb = np.round(seen.mask[..., None] * (127 + 60 * np.sin(2 * seen.position))).astype(np.uint8)
    same = cross_view_consistency(rgb, seen)
    assert same.pairs > 5_000
    assert same.step < 0.5 / 255
    brighter = rgb.copy()
    brighter[1] += np.uint8(51) * seen.mask[1, ..., None]
    found = cross_view_consistency(brighter, seen)
    assert found.pairs == same.pairs
    # neighbours of view 1 share points with it, as does it with them: half of all pairs, each off by 0.2
    facing = [seen.inner(view) for view in range(4)]
    pairs = np.array(
        [
            [seen.places(seen.position[a][facing[a]], seen.normal[a][facing[a]], b)[1].sum() for b in range(4)]
            for a in range(4)
        ]
    )
    assert found.step == pytest.approx(0.2 * (pairs[1].sum() + pairs[:, 1].sum() - 2 * pairs[1, 1]) / (
        pairs.sum() - np.trace(pairs)), rel=0.08)  # fmt: skip


def test_opposite_views_of_a_cube_share_nothing():
    seen = views_of(cube())
    two = Seen(
        position=seen.position[[0, 2]], normal=seen.normal[[0, 2]], mask=seen.mask[[0, 2]],
        cameras=type(seen.cameras)(
            world_to_cam=seen.cameras.world_to_cam[[0, 2]], projection=seen.cameras.projection[[0, 2]]
        ),
    )  # fmt: skip
    sides = np.abs(two.position[..., 2]) < 0.499  # the top is seen by both
    only_sides = Seen(position=two.position, normal=two.normal, mask=two.mask & sides, cameras=two.cameras)
    rgb = np.full((*two.mask.shape, 3), 99, np.uint8)
    assert cross_view_consistency(rgb, only_sides).pairs == 0


def texel_maps(mesh: UvMesh, resolution: int):
    clip = np.zeros((1, len(mesh.uv), 4), np.float32)
    clip[0, :, 0], clip[0, :, 1], clip[0, :, 3] = 2 * mesh.uv[:, 0] - 1, 1 - 2 * mesh.uv[:, 1], 1
    rasterizer = CpuRasterizer()
    fragments = rasterizer.rasterize(clip, mesh.faces, resolution, resolution)
    position, normal = (rasterizer.interpolate(fragments, mesh.faces, a)[0] for a in (mesh.vertices, mesh.normals))
    return position, normal, fragments.face[0] >= 0


def test_the_four_views_see_the_sides_of_a_cube_and_not_its_top_and_bottom():
    """At 10 degrees and 1.39 diagonals (2.41) away the cameras are 0.42 up, and the top of the cube is at 0.5."""
    mesh = cube()
    position, normal, mask = texel_maps(mesh, 192)
    visible = visible_texels(position, normal, mask, views_of(mesh, 256))
    assert not visible[~mask].any()
    sides = mask & (np.abs(position[..., 2]) < 0.4999)
    assert sides.sum() == pytest.approx(mask.sum() * 4 / 6, rel=0.01)
    inner = np.sort(np.abs(position), axis=-1)[..., 1] < 0.47  # edges are hit or missed by rounding
    assert visible[sides & inner].mean() > 0.999
    assert not visible[mask & ~sides & inner].any()


def test_what_is_behind_something_is_not_visible():
    mesh = bumpy_sphere()
    position, normal, mask = texel_maps(mesh, 256)
    visible = visible_texels(position, normal, mask, views_of(mesh, 256))
    assert 0.6 < visible[mask].mean() < 0.99
    facing_down = mask & (normal[..., 2] < -0.995)
    assert not visible[facing_down].any()


def test_the_back_of_a_thin_sheet_is_not_its_front():
    """Two squares in one place, facing forth and back, seen from the front alone."""
    front = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]], np.float32) / 2
    mesh = UvMesh(
        vertices=np.concatenate([front, front]),
        normals=np.repeat(np.array([[0, -1, 0], [0, 1, 0]], np.float32), 4, axis=0),
        uv=np.array([[0, 0], [0.5, 0], [0.5, 1], [0, 1], [0.5, 0], [1, 0], [1, 1], [0.5, 1]], np.float32),
        faces=np.array([[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]], np.int32),
        layout="authored",
    )
    position, normal, mask = texel_maps(mesh, 64)
    seen = views_of(mesh)
    first = Seen(
        position=seen.position[:1], normal=seen.normal[:1], mask=seen.mask[:1],
        cameras=type(seen.cameras)(
            world_to_cam=seen.cameras.world_to_cam[:1], projection=seen.cameras.projection[:1]
        ),
    )  # fmt: skip
    visible = visible_texels(position, normal, mask, first)
    assert visible[2:-2, 2:30].all()
    assert not visible[:, 32:].any()
