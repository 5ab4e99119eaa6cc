"""The rasteriser against exact arithmetic, closed forms and an independent ray caster."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import trimesh
from scipy.spatial import Delaunay

from geometry.cameras import project, seqtex4
from geometry.raster_cpu import CpuRasterizer
from schemas.sample import Cameras

RASTERIZER = CpuRasterizer()
CAMERAS = seqtex4(np.full(3, -1.0), np.full(3, 1.0))


def flat_clip(points: np.ndarray, z: np.ndarray | float = 0.0) -> np.ndarray:
    """Points [n, 2] in [-1, 1] as clip coordinates of one image."""
    columns = [points[:, 0], points[:, 1], np.broadcast_to(z, len(points)), np.ones(len(points))]
    return np.stack(columns, axis=-1)[None].astype(np.float32)


def bumpy_sphere(subdivisions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A closed, non-convex mesh within [-1, 1]^3."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    radius = 1.0 + 0.3 * np.sin(7.0 * sphere.vertices + np.random.default_rng(seed).uniform(0, 6, 3)).prod(axis=1)
    points = sphere.vertices * radius[:, None]
    return (points / np.abs(points).max()).astype(np.float32), sphere.faces.astype(np.int32)


def test_coverage_is_exact_with_the_top_left_rule():
    """A pixel belongs to a triangle exactly if its centre, moved right by an infinitesimal and down by an infinitely
    smaller one, is inside: that is the top-left rule, here in rational arithmetic."""
    size, step = 16, 256
    rng = np.random.default_rng(1)
    right, down = Fraction(1, 2**40), Fraction(1, 2**80)
    for case in range(300):
        extent = (size + 8, 10, 4, 2)[case // 2 % 4] * step  # some for each of the ways to draw a face
        corners = rng.integers(-4 * step, (size + 4) * step - extent + 1, 2) + rng.integers(0, extent, (3, 2))
        if case % 2:  # corners and edges through pixel centres: ties
            corners = corners // 128 * 128
        points = corners / (size * step / 2) - 1.0  # exact in float32
        fragments = RASTERIZER.rasterize(flat_clip(points), np.array([[0, 1, 2]], np.int32), size, size)
        (ax, ay), (bx, by), (cx, cy) = corners.tolist()
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        for row in range(size):
            for column in range(size):
                x, y = 256 * column + 128 + right, 256 * row + 128 + down
                sides = [
                    ((qx - px) * (y - py) - (qy - py) * (x - px)) * area
                    for (px, py), (qx, qy) in (((ax, ay), (bx, by)), ((bx, by), (cx, cy)), ((cx, cy), (ax, ay)))
                ]
                inside = min(sides) > 0
                assert (fragments.face[0, row, column] == 0) == inside, (case, row, column)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tessellated_square_covers_each_pixel_exactly_once(seed):
    rng = np.random.default_rng(seed)
    size = 48
    border = np.array([(x, y) for x in (-1.3, 1.3) for y in (-1.3, 1.3)])
    inner = rng.uniform(-1.2, 1.2, (120, 2))
    inner[:40] = np.round(inner[:40] * size / 2) / (size / 2) + 1.0 / size  # on pixel centres
    points = np.concatenate([border, inner])
    faces = Delaunay(points).simplices.astype(np.int32)
    flipped = rng.random(len(faces)) < 0.5
    faces[flipped] = faces[flipped][:, ::-1]
    count = np.zeros((size, size), int)
    for face in faces:
        count += RASTERIZER.rasterize(flat_clip(points), face[None], size, size).face[0] >= 0
    assert (count == 1).all()


def test_every_ray_crosses_a_closed_surface_an_even_number_of_times():
    vertices, faces = bumpy_sphere(4)
    clip = project(vertices, seqtex4(-np.ones(3), np.ones(3)).world_to_clip)
    layer = RASTERIZER.rasterize(clip, faces, 96, 96)
    crossings = np.zeros(layer.face.shape, int)
    for _ in range(20):
        crossings += layer.face >= 0
        behind = RASTERIZER.rasterize(clip, faces, 96, 96, layer)
        assert (behind.depth[behind.face >= 0] >= layer.depth[behind.face >= 0]).all()
        layer = behind
    assert not (layer.face >= 0).any()
    assert crossings.max() >= 4
    assert (crossings % 2 == 0).all()


def test_weights_are_perspective_correct():
    """On a tilted plane, the interpolated position is where the pixel's ray meets the plane."""
    vertices = np.array([[-0.9, -0.9, -0.5], [0.9, -0.9, -0.5], [0.9, 0.9, 0.6], [-0.9, 0.9, 0.6]], np.float32)
    faces = np.array([[0, 1, 2], [2, 3, 0]], np.int32)
    cameras = seqtex4(-np.ones(3), np.ones(3), elevation_deg=40.0)
    size = 64
    fragments = RASTERIZER.rasterize(project(vertices, cameras.world_to_clip), faces, size, size)
    position = RASTERIZER.interpolate(fragments, faces, vertices)
    normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0]).astype(float)
    for view in range(4):
        rows, columns = np.nonzero(fragments.face[view] >= 0)
        assert len(rows) > 100
        inverse = np.linalg.inv(cameras.world_to_clip[view].astype(float))
        x, y = (2 * columns + 1) / size - 1, (2 * rows + 1) / size - 1
        near, far = (np.stack([x, y, np.full(len(x), z), np.ones(len(x))], -1) @ inverse.T for z in (-1.0, 1.0))
        near, far = near[:, :3] / near[:, 3:], far[:, :3] / far[:, 3:]
        t = ((vertices[0] - near) @ normal) / ((far - near) @ normal)
        truth = near + t[:, None] * (far - near)
        inner = np.abs(truth[:, :2]).max(axis=1) < 0.89
        np.testing.assert_allclose(position[view, rows, columns][inner], truth[inner], atol=1e-5)
        clip = np.concatenate([truth, np.ones((len(truth), 1))], 1) @ cameras.world_to_clip[view].astype(float).T
        np.testing.assert_allclose(
            fragments.depth[view, rows, columns][inner], (clip[:, 2] / clip[:, 3])[inner], atol=1e-6
        )


def room_cameras() -> Cameras:
    """Eyes inside the unit box, looking at its walls and corners: most faces cross the near plane."""
    orbit = seqtex4(-np.ones(3), np.ones(3), azimuths_deg=(-90.0, 10.0, 133.0), elevation_deg=25.0)
    eyes = np.array([[0.3, 0.2, -0.4], [-0.7, 0.6, 0.8], [0.0, 0.0, 0.0]])
    poses = orbit.world_to_cam.copy()
    for pose, eye in zip(poses, eyes, strict=True):
        pose[:3, 3] = -pose[:3, :3] @ eye
    return replace(orbit, world_to_cam=poses)


@pytest.mark.parametrize("subdivided", [0, 3])
def test_inside_a_room_every_pixel_sees_a_wall(subdivided):
    box = trimesh.creation.box(extents=(2, 2, 2))
    for _ in range(subdivided):
        box = box.subdivide()
    vertices, faces = box.vertices.astype(np.float32), box.faces.astype(np.int32)
    cameras = room_cameras()
    clip = project(vertices, cameras.world_to_clip)
    assert (clip[..., 3] < 0).any()
    fragments = RASTERIZER.rasterize(clip, faces, 128, 128)
    assert (fragments.face >= 0).all()
    assert (fragments.bary >= 0).all() and (fragments.bary.sum(axis=-1) <= 1 + 1e-6).all()
    position = RASTERIZER.interpolate(fragments, faces, vertices)
    np.testing.assert_allclose(np.abs(position).max(axis=-1), 1.0, atol=1e-5)
    again = np.einsum("vij,vhwj->vhwi", cameras.world_to_clip.astype(float), np.insert(position, 3, 1.0, axis=-1))
    centres = (2 * np.arange(128) + 1) / 128 - 1
    assert np.abs(again[..., 0] / again[..., 3] - centres[None, None, :]).max() < 1.0 / 128 / 128
    assert np.abs(again[..., 1] / again[..., 3] - centres[None, :, None]).max() < 1.0 / 128 / 128


def test_nothing_in_front_of_the_near_plane_is_drawn():
    clip = np.array([[[-3, -3, -2, 1], [3, -3, -2, 1], [0, 6, -2, 1]]], np.float32)
    assert (RASTERIZER.rasterize(clip, np.array([[0, 1, 2]], np.int32), 8, 8).face == -1).all()


@pytest.mark.parametrize("reach", [1e3, 1e6, 1e12, 1e30])
def test_huge_coordinates_are_clipped_not_overflown(reach):
    """Four triangles around an off-centre apex, corners at +-reach: all pixels, each in the right quarter."""
    apex = np.array([[0.01, -0.02]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * reach
    clip = flat_clip(np.concatenate([apex, corners]))
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]], np.int32)
    face = RASTERIZER.rasterize(clip, faces, 64, 64).face[0]
    centres = (2 * np.arange(64) + 1) / 64 - 1
    dx, dy = centres[None, :] - apex[0, 0], centres[:, None] - apex[0, 1]
    quarter = np.where(np.abs(dy) > np.abs(dx), np.where(dy < 0, 0, 2), np.where(dx > 0, 1, 3))
    clear = np.abs(np.abs(dx) - np.abs(dy)) > (0.01 if reach > 1e5 else 0.1)
    assert (face >= 0).all()
    assert (face[clear] == quarter[clear]).all()


def test_a_face_whose_corners_all_lie_beyond_the_guard_band_is_drawn():
    around = flat_clip(np.array([[-1e6, -1e6], [3e6, -1e6], [-1e6, 3e6]]))
    assert (RASTERIZER.rasterize(around, np.array([[0, 1, 2]], np.int32), 16, 32).face == 0).all()


def test_a_vertex_that_is_no_number_takes_only_its_own_faces():
    grid = np.linspace(-1, 1, 9)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    faces = Delaunay(points).simplices.astype(np.int32)
    clip = flat_clip(points)
    whole = RASTERIZER.rasterize(clip, faces, 64, 64).face
    for bad in (np.nan, np.inf, -np.inf):
        broken = clip.copy()
        broken[0, 40, 1] = bad
        lost = (faces == 40).any(axis=1)
        face = RASTERIZER.rasterize(broken, faces, 64, 64).face
        np.testing.assert_array_equal(face, np.where(lost[whole], -1, whole))


def test_lowest_face_wins_where_depths_are_equal():
    points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    faces = np.array([[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 2, 3], [3, 0, 2]], np.int32)
    face = RASTERIZER.rasterize(flat_clip(points), faces, 16, 16).face
    assert set(np.unique(face)) == {0, 3}
    nearer = RASTERIZER.rasterize(flat_clip(np.tile(points, (2, 1)), np.repeat([0.5, 0.25], 4)),
                                  np.concatenate([faces, faces + 4]), 16, 16)  # fmt: skip
    assert set(np.unique(nearer.face)) == {5, 8}


def test_the_number_of_threads_changes_no_bit():
    vertices, faces = bumpy_sphere(4)
    clip = np.concatenate([
        project(vertices, seqtex4(-np.ones(3), np.ones(3)).world_to_clip),
        project(vertices * np.float32(3), room_cameras().world_to_clip),
    ])  # fmt: skip
    one = RASTERIZER.rasterize(clip, faces, 131, 97)
    second = RASTERIZER.rasterize(clip, faces, 131, 97, one)
    for threads in (2, 3):
        many = CpuRasterizer(threads=threads)
        for ours, theirs in (
            (one, many.rasterize(clip, faces, 131, 97)),
            (second, many.rasterize(clip, faces, 131, 97, one)),
        ):
            for field in ("face", "bary", "depth"):
                assert getattr(ours, field).tobytes() == getattr(theirs, field).tobytes()
        assert (
            RASTERIZER.interpolate(one, faces, vertices).tobytes() == many.interpolate(one, faces, vertices).tobytes()
        )


def test_wrong_indices_are_refused():
    clip = flat_clip(np.zeros((3, 2)))
    for faces in ([[0, 1, 3]], [[-1, 0, 1]]):
        with pytest.raises(ValueError, match="face indices span"):
            RASTERIZER.rasterize(clip, np.array(faces, np.int32), 8, 8)


def test_empty_meshes_leave_empty_images():
    fragments = RASTERIZER.rasterize(np.zeros((2, 0, 4), np.float32), np.zeros((0, 3), np.int32), 4, 5)
    assert fragments.face.shape == (2, 4, 5)
    assert (fragments.face == -1).all() and np.isinf(fragments.depth).all() and (fragments.bary == 0).all()


def test_sides_are_the_front_faces_and_how_they_turn():
    vertices, faces = bumpy_sphere(3)
    clip = project(vertices, seqtex4(vertices.min(axis=0), vertices.max(axis=0)).world_to_clip)
    front, sides = RASTERIZER.rasterize(clip, faces, 96, 80).face, RASTERIZER.sides(clip, faces, 96, 80)
    np.testing.assert_array_equal(sides >> 1, front)
    turned = RASTERIZER.sides(clip, np.ascontiguousarray(faces[:, ::-1]), 96, 80)
    np.testing.assert_array_equal(turned, np.where(front < 0, -1, sides ^ 1))
    assert len(np.unique(sides[sides >= 0] & 1)) == 1, "only one side of a closed surface is seen"
    np.testing.assert_array_equal(CpuRasterizer(threads=3).sides(clip, faces, 96, 80), sides)


def test_single_sided_faces_are_seen_from_their_front_alone():
    """Neither drawn nor in the way of others: a sphere of backs in front of a sphere of fronts."""
    vertices, faces = bumpy_sphere(2)
    clip = project(np.concatenate([vertices * 0.5, vertices]).astype(np.float32), CAMERAS.world_to_clip)
    shell = faces[:, ::-1] + np.int32(len(vertices))
    both = np.ascontiguousarray(np.concatenate([faces, shell]))
    single = np.ones(len(both), bool)
    single[: len(faces)] = False
    inner = RASTERIZER.rasterize(clip, faces, 96, 96)
    seen = RASTERIZER.rasterize(clip, both, 96, 96, single_sided=single)
    front = seen.face < len(faces)
    assert ((inner.face >= 0) <= front).all()  # the inner sphere is whole
    np.testing.assert_array_equal(seen.face[inner.face >= 0], inner.face[inner.face >= 0])
    sides = RASTERIZER.sides(clip, both, 96, 96, single)
    np.testing.assert_array_equal(sides >> 1, seen.face)
    assert (sides[seen.face >= len(faces)] & 1 == 1).all()
    behind = RASTERIZER.rasterize(clip, both, 96, 96, seen, single)  # the far inside of the shell
    assert (behind.face[(seen.face >= 0) & (seen.face < len(faces))] >= 0).all()


def test_a_closed_mesh_shows_the_same_with_single_sided_faces():
    vertices, faces = bumpy_sphere(4)
    clip = project(vertices, CAMERAS.world_to_clip)
    whole = RASTERIZER.rasterize(clip, faces, 256, 256)
    single = RASTERIZER.rasterize(clip, faces, 256, 256, single_sided=np.ones(len(faces), bool))
    for name in ("face", "bary", "depth"):
        np.testing.assert_array_equal(getattr(single, name), getattr(whole, name))
