import numpy as np
import pytest

from geometry.frames import bounding_box, normalise
from schemas.mesh import Material, TexturedMesh


def triangle_mesh(vertices: list[list[float]], faces: list[list[int]]) -> TexturedMesh:
    points = np.array(vertices, np.float32)
    return TexturedMesh(
        vertices=points,
        normals=np.tile(np.array([0, 1, 0], np.float32), (len(points), 1)),
        uv=np.zeros((len(points), 2), np.float32),
        colors=np.ones((len(points), 4), np.float32),
        faces=np.array(faces, np.int32),
        face_material=np.zeros(len(faces), np.int32),
        face_has_uv=np.zeros(len(faces), bool),
        materials=(Material(),),
        textures=(),
    )


BOX = [[1.0, 2.0, 3.0], [5.0, 2.0, 3.0], [1.0, 3.0, 3.0], [1.0, 2.0, 5.0]]
"""Sides 4 x 1 x 2 in the asset's frame."""
FACES = [[0, 1, 2], [0, 2, 3]]


def test_up_becomes_z_and_front_becomes_minus_y():
    mesh, _ = normalise(triangle_mesh(BOX, FACES))
    along = mesh.vertices[1:] - mesh.vertices[0]
    np.testing.assert_allclose(along, [[2, 0, 0], [0, 0, 0.5], [0, -1, 0]], atol=1e-6)  # x, then up, then front
    np.testing.assert_array_equal(mesh.normals, np.tile([0, 0, 1], (4, 1)))


def test_bounding_box_is_centred_with_largest_side_two():
    mesh, frame = normalise(triangle_mesh(BOX, FACES))
    lower, upper = bounding_box(mesh.vertices, mesh.faces)
    np.testing.assert_allclose(lower + upper, 0.0, atol=1e-6)
    assert (upper - lower).max() == pytest.approx(2.0)
    assert frame.scale == pytest.approx(0.5)
    np.testing.assert_allclose(frame.center, [3.0, -4.0, 2.5])


def test_frame_leads_back_to_the_asset():
    source = triangle_mesh(BOX, FACES)
    mesh, frame = normalise(source)
    np.testing.assert_allclose(frame.to_asset(mesh.vertices), source.vertices, atol=1e-6)


def test_vertices_without_faces_do_not_count():
    stray = [*BOX, [900.0, 0.0, 0.0], [float("nan"), 0.0, 0.0]]
    with_stray, frame = normalise(triangle_mesh(stray, FACES))
    _, expected = normalise(triangle_mesh(BOX, FACES))
    assert frame.scale == expected.scale
    assert np.isfinite(with_stray.vertices[:4]).all()


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (BOX, np.zeros((0, 3)), "without faces"),
        ([[1.0, 1.0, 1.0]] * 3, [[0, 1, 2]], "largest side is 0"),
        ([[float("nan"), 1.0, 1.0], *BOX], [[0, 1, 2]], "largest side is nan"),
    ],
)
def test_what_has_no_size_is_refused(vertices, faces, message):
    mesh = triangle_mesh(vertices, faces)
    with pytest.raises(ValueError, match=message):
        normalise(mesh)
