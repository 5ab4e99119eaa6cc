"""Geometry of a file as the loader reads it: places, poses and normals, against values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.mesh_io.preflight import PreflightConfig
from schemas.ledger import Reason, Rejected
from schemas.mesh import TexturedMesh
from tests.support.small_gltf import BOX_FACES, CORNERS, QUADRANTS, Builder, box, loaded, preflight, primitive, refused


def signed_volume(mesh: TexturedMesh) -> float:
    """Positive where faces are counter-clockwise seen from outside."""
    a, b, c = np.moveaxis(mesh.vertices.astype(np.float64)[mesh.faces], 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


def test_box(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, box())
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], CORNERS[BOX_FACES])
    assert signed_volume(mesh) == pytest.approx(8)
    np.testing.assert_array_equal(mesh.textures[0].image[..., :3], QUADRANTS)
    # v up: the corner at +y shows the top of the image, row 0
    top = mesh.uv[mesh.faces][CORNERS[BOX_FACES][..., 1] == 1]
    assert (top[:, 1] == 1).all()
    # no normals in the file: flat
    normals = mesh.normals[mesh.faces]
    np.testing.assert_allclose(np.abs(normals).max(axis=2), 1)
    np.testing.assert_array_equal(normals[:, 0], normals[:, 1])


def test_nodes_instances_and_mirrors(tmp_path: Path) -> None:
    builder = box()
    half = np.sqrt(0.5)
    builder.tree["nodes"] = [
        {"translation": [10, 0, 0], "rotation": [0, 0, half, half], "children": [1]},
        {"mesh": 0, "scale": [1, 2, 3]},
        {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1]},
        {"mesh": 0, "translation": [99, 99, 99]},
    ]
    builder.tree["scenes"] = [{"nodes": [3]}, {"nodes": [0, 2]}]
    builder.tree["scene"] = 1
    mesh = loaded(tmp_path, builder)
    assert len(mesh.faces) == 24
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        mesh.vertices[mesh.faces[:12]], (CORNERS * [1, 2, 3] @ quarter.T + [10, 0, 0])[BOX_FACES], atol=1e-6
    )
    mirrored = mesh.vertices[mesh.faces[12:]]
    np.testing.assert_allclose(mirrored, (CORNERS * [-1, 1, 1] + [0, 0, 5])[BOX_FACES[:, ::-1]], atol=1e-6)
    assert signed_volume(mesh) == pytest.approx(6 * 8 + 8)  # both outside out


def test_normals_follow_the_surface_through_a_mirroring_stretch(tmp_path: Path) -> None:
    builder = box()
    primitive(builder)["attributes"]["NORMAL"] = builder.accessor(CORNERS / np.float32(np.sqrt(3)))
    builder.tree["nodes"][0]["matrix"] = [-2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 1]
    mesh = loaded(tmp_path, builder)
    expected = CORNERS / [-2, 1, 0.5]
    np.testing.assert_allclose(mesh.normals, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_missing_normals_are_filled(tmp_path: Path) -> None:
    builder = box()
    normals = CORNERS.copy()
    normals[2], normals[3] = np.nan, 0
    primitive(builder)["attributes"]["NORMAL"] = builder.accessor(normals)
    mesh = loaded(tmp_path, builder)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, rtol=1e-6)
    assert (mesh.normals[2:4] * CORNERS[2:4]).sum(axis=1).min() > 1


def test_vertex_colours_and_quantised_attributes(tmp_path: Path) -> None:
    builder = box(textured=False)
    attributes = primitive(builder)["attributes"]
    attributes["POSITION"] = builder.accessor((CORNERS * 127).astype(np.int8), normalized=True)
    attributes["COLOR_0"] = builder.accessor(np.tile(np.uint8([255, 51, 0, 255]), (8, 1)), normalized=True)
    mesh = loaded(tmp_path, builder)
    np.testing.assert_allclose(mesh.vertices[mesh.faces], CORNERS[BOX_FACES], atol=1e-6)
    np.testing.assert_allclose(mesh.colors, np.tile([1, 0.2, 0, 1], (len(mesh.colors), 1)), atol=1e-6)


def test_sparse_positions_and_strides(tmp_path: Path) -> None:
    builder = box()
    interleaved = np.concatenate([CORNERS, np.full((8, 2), 7, np.float32)], axis=1)
    view = builder.view(interleaved.tobytes())
    builder.tree["bufferViews"][view]["byteStride"] = 20
    builder.tree["accessors"][0]["bufferView"] = view
    rows, values = builder.view(np.uint8([6]).tobytes()), builder.view(np.float32([[9, 8, 7]]).tobytes())
    builder.tree["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": rows, "componentType": 5121},
        "values": {"bufferView": values},
    }
    mesh = loaded(tmp_path, builder)
    expected = CORNERS.copy()
    expected[6] = [9, 8, 7]
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], expected[BOX_FACES])


@pytest.mark.parametrize(
    ("mode", "expected"), [(5, [[0, 1, 2], [1, 3, 2], [2, 3, 4]]), (6, [[1, 2, 0], [2, 3, 0], [3, 4, 0]])]
)
def test_strips_and_fans(tmp_path: Path, mode: int, expected: list[list[int]]) -> None:
    builder = box()
    primitive(builder).update(mode=mode, indices=builder.accessor(np.arange(5, dtype=np.uint32)))
    mesh = loaded(tmp_path, builder)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], CORNERS[np.array(expected)])


def test_skin_at_rest(tmp_path: Path) -> None:
    """Half of each vertex' weight on a joint moved by +2 x since binding, half on one turned about z; the node of the
    mesh itself does not count."""
    builder = box()
    attributes = primitive(builder)["attributes"]
    attributes["JOINTS_0"] = builder.accessor(np.tile(np.uint8([0, 1, 0, 0]), (8, 1)))
    attributes["WEIGHTS_0"] = builder.accessor(np.tile(np.float32([0.5, 0.5, 0, 0]), (8, 1)))
    bind = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    bind[0, 0, 3] = -1
    turn = Rotation.from_euler("z", 90, degrees=True)
    builder.tree["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [100, 0, 0]},
        {"translation": [3, 0, 0]},
        {"rotation": [float(x) for x in turn.as_quat()]},
    ]
    builder.tree["scenes"] = [{"nodes": [0, 1, 2]}]
    stored = builder.accessor(bind.transpose(0, 2, 1).reshape(2, 16))
    builder.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": stored}]
    mesh = loaded(tmp_path, builder)
    expected = 0.5 * (CORNERS + np.array([2, 0, 0])) + 0.5 * turn.apply(CORNERS)
    np.testing.assert_allclose(mesh.vertices[mesh.faces], expected[BOX_FACES], atol=1e-6)


def test_nothing_to_draw(tmp_path: Path) -> None:
    builder = box()
    primitive(builder)["mode"] = 1
    assert refused(tmp_path, builder) == Reason.NO_GEOMETRY


def test_transforms_may_not_overflow(tmp_path: Path) -> None:
    builder = box()
    builder.tree["nodes"] = [{"scale": [1e200] * 3, "children": [1]}, {"scale": [1e200] * 3, "mesh": 0}]
    assert refused(tmp_path, builder) == Reason.NON_FINITE


def test_quantised_positions_in_whole_units(tmp_path: Path) -> None:
    """KHR_mesh_quantization: integers that are not normalised, brought to size by the node."""
    builder = box(textured=False)
    primitive(builder)["attributes"]["POSITION"] = builder.accessor(
        np.pad((CORNERS + 1).astype(np.uint16), [(0, 0), (0, 1)])
    )
    entry = builder.tree["accessors"][primitive(builder)["attributes"]["POSITION"]]
    builder.tree["bufferViews"][entry["bufferView"]]["byteStride"] = 8
    entry["type"] = "VEC3"
    builder.tree["nodes"][0] |= {"scale": [0.5, 0.5, 0.5]}
    builder.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    mesh = loaded(tmp_path, builder)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], (CORNERS + 1)[BOX_FACES] / 2)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("width", [3, 4])
def test_vertex_colours_of_every_type(tmp_path: Path, kind: type, width: int) -> None:
    builder = box(textured=False)
    share = np.tile(np.array([[1, 0.2, 0, 0.6]])[:, :width], (8, 1))
    whole = kind is not np.float32
    stored = (share * np.iinfo(kind).max).round().astype(kind) if whole else share.astype(kind)
    padded = np.pad(stored, [(0, 0), (0, 4 - width)]) if whole else stored  # rows start on multiples of 4 bytes
    number = builder.accessor(padded, normalized=whole)
    primitive(builder)["attributes"]["COLOR_0"] = number
    entry = builder.tree["accessors"][number]
    entry["type"] = f"VEC{width}"
    if whole:
        builder.tree["bufferViews"][entry["bufferView"]]["byteStride"] = 4 * padded.itemsize
    expected = np.pad(share, [(0, 0), (0, 4 - width)], constant_values=1)
    colors = loaded(tmp_path, builder).colors
    np.testing.assert_allclose(colors, np.tile(expected[0], (len(colors), 1)), atol=1e-6)


def morphing(mesh_weights: list[float], node_weights: list[float] | None = None) -> Builder:
    """A box with normals along its corners; target 0 lifts corner 7 by +2 y, target 1 turns all normals to +z more."""
    builder = box()
    primitive(builder)["attributes"]["NORMAL"] = builder.accessor(CORNERS.copy())
    lift = builder.sparse(np.uint8([7]), np.float32([[0, 2, 0]]), 8)
    turn = builder.accessor(np.tile(np.float32([0, 0, 4]), (8, 1)))
    primitive(builder)["targets"] = [{"POSITION": lift}, {"NORMAL": turn}]
    builder.tree["meshes"][0]["weights"] = mesh_weights
    if node_weights is not None:
        builder.tree["nodes"][0]["weights"] = node_weights
    return builder


@pytest.mark.parametrize(
    ("mesh_weights", "node_weights", "lifted", "turned"),
    [([0.5, 0.25], None, 1, 1), ([0.5, 0.25], [0, 1], 0, 4), ([], None, 0, 0), ([1], None, 2, 0)],
)
def test_morph_targets_at_rest(
    tmp_path: Path, mesh_weights: list[float], node_weights: list[float] | None, lifted: float, turned: float
) -> None:
    mesh = loaded(tmp_path, morphing(mesh_weights, node_weights))
    points, normals = CORNERS.copy(), CORNERS + np.float32([0, 0, turned])
    points[7, 1] += lifted
    np.testing.assert_allclose(mesh.vertices[mesh.faces], points[BOX_FACES], atol=1e-6)
    unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    np.testing.assert_allclose(mesh.normals[mesh.faces], unit[BOX_FACES], atol=1e-6)


def test_a_morphed_mesh_is_then_skinned(tmp_path: Path) -> None:
    builder = morphing([1.0])
    attributes = primitive(builder)["attributes"]
    attributes["JOINTS_0"] = builder.accessor(np.zeros((8, 4), np.uint8))
    attributes["WEIGHTS_0"] = builder.accessor(np.tile(np.float32([1, 0, 0, 0]), (8, 1)))
    builder.tree["nodes"] = [{"mesh": 0, "skin": 0}, {"scale": [1, 3, 1]}]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    builder.tree["skins"] = [{"joints": [1]}]
    points = CORNERS.copy()
    points[7, 1] += 2
    mesh = loaded(tmp_path, builder)
    np.testing.assert_allclose(mesh.vertices[mesh.faces], (points * [1, 3, 1])[BOX_FACES], atol=1e-6)


def test_flat_normals_follow_the_morph(tmp_path: Path) -> None:
    builder = morphing([1.0])
    primitive(builder)["attributes"].pop("NORMAL")
    primitive(builder)["targets"].pop()
    mesh = loaded(tmp_path, builder)
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    expected = np.cross(b - a, c - a)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mesh.normals[mesh.faces][:, 0], expected, atol=1e-6)


def test_morph_targets_fit_their_mesh(tmp_path: Path) -> None:
    builder = morphing([1.0])
    builder.tree["accessors"][primitive(builder)["targets"][0]["POSITION"]]["count"] = 7
    assert refused(tmp_path, builder) == Reason.INVALID_STRUCTURE
    builder = morphing([1.0])
    primitive(builder)["targets"][0]["POSITION"] = builder.accessor(np.full((8, 3), np.nan, np.float32))
    assert refused(tmp_path, builder) == Reason.NON_FINITE


def instanced() -> Builder:
    builder = box()
    half = np.float32(np.sqrt(0.5))
    attributes = {
        "TRANSLATION": builder.accessor(np.float32([[5, 0, 0], [0, 0, 7]])),
        "ROTATION": builder.accessor(np.float32([[0, 0, 0, 1], [0, 0, half, half]])),
        "SCALE": builder.accessor(np.float32([[1, 1, 1], [2, 1, 1]])),
    }
    builder.tree["nodes"][0] |= {
        "translation": [0, 100, 0],
        "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}},
    }
    builder.tree["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    return builder


def test_gpu_instances(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, instanced())
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    first = CORNERS + np.array([5, 100, 0])
    second = CORNERS * [2, 1, 1] @ quarter.T + [0, 100, 7]
    np.testing.assert_allclose(
        mesh.vertices[mesh.faces] + mesh.offset, np.stack([first, second])[:, BOX_FACES].reshape(24, 3, 3), atol=1e-5
    )


def test_instances_count_as_nodes(tmp_path: Path) -> None:
    path = tmp_path / "asset.glb"
    path.write_bytes(instanced().glb())
    found = preflight(path, PreflightConfig(max_nodes=1))
    assert isinstance(found, Rejected) and found.reason == Reason.TOO_LARGE and "instances" in found.detail


def test_hidden_nodes_are_not_drawn(tmp_path: Path) -> None:
    builder = box()
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}}
    builder.tree["nodes"] = [{"mesh": 0}, hidden | {"children": [2]}, {"mesh": 0, "translation": [9, 0, 0]}]
    for scenes in ([{"nodes": [0, 1]}], []):
        builder.tree["scenes"] = scenes
        builder.tree["scene"] = 0
        if not scenes:
            builder.tree.pop("scene")
        mesh = loaded(tmp_path, builder)
        assert len(mesh.faces) == 12 and mesh.vertices[:, 0].max() == 1


def test_points_and_lines_draw_no_surface(tmp_path: Path) -> None:
    builder = box()
    for mode in (0, 1, 2, 3):
        builder.tree["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "mode": mode})
    assert len(loaded(tmp_path, builder).faces) == 12


def test_zeros_that_cost_the_file_nothing_are_limited(tmp_path: Path) -> None:
    builder = box()
    builder.tree["accessors"].append({"componentType": 5126, "type": "MAT4", "count": 2**40})
    builder.tree["skins"] = [{"joints": [0], "inverseBindMatrices": len(builder.tree["accessors"]) - 1}]
    assert loaded(tmp_path, builder)  # nobody reads them
    builder.tree["nodes"][0]["skin"] = 0
    assert refused(tmp_path, builder) == Reason.TOO_LARGE
