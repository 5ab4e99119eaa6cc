"""MikkTSpace tangents: along u, handed by the layout, shared where faces of one orientation meet."""

import numpy as np
import pytest

from geometry.kernels.interpolate import bend_rows, tangent_rows
from geometry.mesh import mean_angle_deg, mikktspace

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
UP = np.tile(np.float32([0, 0, 1]), (4, 1))
SQUARE = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
UV = CORNERS[:, :2].copy()


def turned(uv: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return ((uv - 0.5) @ np.array([[cos, sin], [-sin, cos]]) + 0.5).astype(np.float32)


@pytest.mark.parametrize("degrees", [0.0, 90.0, 180.0, 37.0])
def test_tangents_follow_the_chart(degrees):
    """A chart that is rotated in the layout has its u direction rotated the other way on the surface."""
    found = mikktspace(CORNERS, UP, turned(UV, degrees), SQUARE)
    angle = np.radians(-degrees)
    np.testing.assert_allclose(found, np.tile([np.cos(angle), np.sin(angle), 0.0, 1.0], (2, 3, 1)), atol=1e-6)


def test_mirrored_charts_have_the_other_sign():
    mirrored = UV * np.float32([-1, 1])
    found = mikktspace(CORNERS, UP, mirrored, SQUARE)
    np.testing.assert_allclose(found, np.tile([-1.0, 0.0, 0.0, -1.0], (2, 3, 1)), atol=1e-6)
    bitangent = np.cross(UP[0], found[0, 0, :3]) * found[0, 0, 3]
    np.testing.assert_allclose(bitangent, [0.0, 1.0, 0.0], atol=1e-6)  # along v, as in the layout


def test_halves_of_both_orientations_share_no_tangent():
    """Two squares with one edge in common, the second laid out as the mirror image of the first."""
    vertices = np.concatenate([CORNERS, CORNERS[[1, 2]] + np.float32([1, 0, 0])])
    uv = np.concatenate([UV, UV[[0, 3]]])
    faces = np.concatenate([SQUARE, np.array([[1, 4, 5], [1, 5, 2]], np.int32)])
    found = mikktspace(vertices, np.tile(UP[:1], (6, 1)), uv, faces)
    np.testing.assert_allclose(found[:2], np.tile([1.0, 0.0, 0.0, 1.0], (2, 3, 1)), atol=1e-6)
    np.testing.assert_allclose(found[2:], np.tile([-1.0, 0.0, 0.0, -1.0], (2, 3, 1)), atol=1e-6)


def test_smooth_corners_weigh_faces_by_their_angles():
    """Three faces around a vertex, two of them one square cut in two: the cut has no say in the mean."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [-1, 0.5, 0], [-1, 0, 0]], np.float32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [-1, 1.5], [-1, 1]], np.float32)  # the left one is sheared
    normals = np.tile(UP[:1], (6, 1))
    one = mikktspace(vertices, normals, uv, np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4]], np.int32))
    other = mikktspace(vertices, normals, uv, np.array([[0, 1, 3], [1, 2, 3], [0, 3, 4]], np.int32))
    np.testing.assert_allclose(one[0, 0], other[0, 0], atol=1e-6)
    assert not np.allclose(one[0, 0, :3], [1, 0, 0], atol=1e-3)


def test_faces_without_a_place_in_the_layout_take_their_neighbours_tangent():
    vertices = np.concatenate([CORNERS, np.float32([[0.5, -1, 0]])])
    uv = np.concatenate([UV, UV[:1]])
    faces = np.concatenate([SQUARE, np.array([[0, 4, 1]], np.int32)])
    uv[4] = (0.5, 0.0)  # on the line between 0 and 1: no area
    found = mikktspace(vertices, np.tile(UP[:1], (5, 1)), uv, faces)
    np.testing.assert_allclose(found[2, [0, 2], :3], [[1, 0, 0], [1, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[..., :3], axis=2), 1.0, atol=1e-6)


def test_bending_and_its_inverse():
    """Directions in tangent space survive the way to the world and back, also where normals lean and lengths differ."""
    rng = np.random.default_rng(0)
    normals = UP + rng.normal(0, 0.2, (4, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    tangents = mikktspace(CORNERS, normals, turned(UV, 20.0), SQUARE)
    face = rng.integers(0, 2, (8, 8)).astype(np.int32)
    bary = rng.dirichlet([1, 1, 1], (8, 8))[..., :2].astype(np.float32)
    wanted = rng.normal(size=(8, 8, 3)) * [1, 1, 0] + [0, 0, 2]
    wanted /= np.linalg.norm(wanted, axis=2, keepdims=True)
    mapped = np.concatenate([(wanted + 1) / 2, np.ones((8, 8, 1))], axis=2).astype(np.float32)
    world, found = np.tile(np.float32([0, 0, 1]), (8, 8, 1)), np.empty((8, 8, 3), np.float32)
    material, scale = np.zeros(2, np.int32), np.ones(1, np.float32)
    bend_rows(face, bary, mapped, SQUARE, normals, tangents, material, scale, 1e-6, np.empty((3, 3)), world)
    assert mean_angle_deg(world.reshape(-1, 3), np.tile(np.float32([0, 0, 1]), (64, 1))) > 5
    tangent_rows(face, bary, world, SQUARE, normals, tangents, np.empty((3, 3)), found)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
