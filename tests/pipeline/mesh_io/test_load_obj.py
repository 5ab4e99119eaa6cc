"""OBJ and MTL as the loader reads them, against values worked out by hand and a plain reader."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.problems import Notes
from pipeline.mesh_io.references import Folders
from pipeline.mesh_io.wavefront.obj import read_obj
from schemas.ledger import Reason, Rejected
from schemas.mesh import Shading, TexturedMesh
from tests.support.small_gltf import CORNERS, QUADRANTS, png


def test_obj(tmp_path: Path) -> None:
    (tmp_path / "my map.png").write_bytes(png(QUADRANTS))
    (tmp_path / "a.mtl").write_text("newmtl textured\nKd 0 0 0\nmap_Kd my map.png\nnewmtl plain\nKd 0.5 1 0\nd 0.25")
    lines = ["mtllib a.mtl"] + [f"v {x} {y} {z}" for x, y, z in CORNERS] + ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1"]
    lines += ["usemtl textured", "f 1/1 2/2 4/3 3/4", "usemtl plain", "f 5 7 8 6", "f -8 -4 -3 -7"]
    path = tmp_path / "asset.obj"
    path.write_text("\n".join(lines))
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh), mesh
    expected = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]]
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], CORNERS[np.array(expected)])
    np.testing.assert_array_equal(mesh.uv[mesh.faces[:2]], [[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]])
    assert mesh.face_has_uv.tolist() == [True, True, False, False, False, False]
    assert mesh.face_material.tolist() == [0, 0, 1, 1, 1, 1]
    assert mesh.materials[0].base_color == (1, 1, 1, 1) and mesh.materials[0].texture == 0
    np.testing.assert_allclose(mesh.materials[1].base_color, [0.21404, 1, 0, 0.25], atol=1e-4)
    np.testing.assert_array_equal(mesh.textures[0].image[..., :3], QUADRANTS)
    normals = mesh.normals[mesh.faces]  # edges of a box are sharper than the crease: flat
    np.testing.assert_allclose(np.abs(normals).max(axis=2), 1, atol=1e-6)


def plainly(text: str) -> list[list[tuple[int | None, ...]]]:
    """Triangles as triples of (v, vt, vn), the slow way."""
    counts, triangles = {"v": 0, "vt": 0, "vn": 0}, []
    for line in text.replace("\r\n", "\n").replace("\\\n", " ").split("\n"):
        words = line.split("#")[0].split()
        if words and words[0] in counts:
            counts[words[0]] += 1
        if not words or words[0] != "f":
            continue
        polygon = []
        for word in words[1:]:
            parts = [*word.split("/"), "", ""][:3]
            ends = [counts[kind] for kind in ("v", "vt", "vn")]
            indices = [(int(part) if part else None, end) for part, end in zip(parts, ends, strict=True)]
            polygon.append(tuple(i if i is None else i - 1 if i > 0 else end + i for i, end in indices))
        triangles += [[polygon[0], polygon[i], polygon[i + 1]] for i in range(1, len(polygon) - 1)]
    return triangles


ODD = """# exported\r
v 0 0 0 # a comment\r
\tv 1.5e0 0 0
v  0  1\t0   1.0
vt 0 0
vt 1 0 0
f 1 2 3
vn 0 0 1
f 1//1 2//1 3//1
g group of faces
f 1/1 2/2 3/-1
v -1 0 \\
0
vp 0.1 0.2
f 1/1/1 2/2/1 3/1/-1 -1/2/1
f 4/ 3/1/ 2//
o usemtl
s off
f -4 -3 -2 -1 1
# f 9 9 9
"""


def test_odd_but_valid_lines(tmp_path: Path) -> None:
    obj = read_obj(ODD.encode(), Folders(tmp_path / "a.obj", None, Notes()), 1000, 1000)
    expected = np.array([[[-1 if i is None else i for i in corner] for corner in face] for face in plainly(ODD)])
    np.testing.assert_array_equal(obj.corners, expected)
    np.testing.assert_array_equal(obj.positions, [[0, 0, 0], [1.5, 0, 0], [0, 1, 0], [-1, 0, 0]])
    np.testing.assert_array_equal(obj.uvs, [[0, 0], [1, 0]])
    assert obj.colors is None and set(obj.face_material.tolist()) == {0}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("f 1/1/1/1 2 3", Reason.INVALID_STRUCTURE),
        ("f /1 2 3", Reason.INVALID_STRUCTURE),
        ("f 1.5 2 3", Reason.INVALID_STRUCTURE),
        ("f 1 2 x", Reason.INVALID_STRUCTURE),
        ("f 1 2 99999999999999999999", Reason.INDEX_OUT_OF_RANGE),
        ("f 1/2 2/1 3/1", Reason.INDEX_OUT_OF_RANGE),
        ("f 1//-1 2 3", Reason.INDEX_OUT_OF_RANGE),
        ("v 1 2", Reason.INVALID_STRUCTURE),
        ("v 1 2 3,5", Reason.INVALID_STRUCTURE),
        ("v", Reason.INVALID_STRUCTURE),
        ("vt # nothing", Reason.INVALID_STRUCTURE),
        ("v inf 0 0\nf 1 2 4", Reason.NON_FINITE),
        ("vt 0 nan\nf 1/2 2/1 3/1", Reason.NON_FINITE),
    ],
)
def test_lines_that_will_not_do(tmp_path: Path, line: str, reason: Reason) -> None:
    path = tmp_path / "asset.obj"
    path.write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1 2 3\n{line}\n")
    found = load_mesh(path)
    assert isinstance(found, Rejected) and found.reason == reason, found


def test_a_face_has_the_material_that_came_last(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").write_text("newmtl red one\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\nNs 198\nillum 2\n")
    lines = ["mtllib a.mtl", "v 0 0 0", "v 1 0 0", "v 0 1 0", "f 1 2 3", "usemtl blue", "f 1 2 3", "usemtl red one"]
    lines += ["f 1 2 3", "f 1 2 3", "usemtl unknown", "f 1 2 3", "usemtl blue"]
    path = tmp_path / "asset.obj"
    path.write_text("\n".join(lines))
    mesh = load_mesh(path, shading=True)
    assert isinstance(mesh, TexturedMesh), mesh
    colors = [mesh.materials[number].base_color[:3] for number in mesh.face_material]
    assert colors == [(1, 1, 1), (0, 0, 1), (1, 0, 0), (1, 0, 0), (1, 1, 1)]
    blue = mesh.materials[mesh.face_material[1]].shading
    assert blue.metallic == 0 and blue.roughness == pytest.approx(0.1)  # sqrt(2 / (198 + 2))
    assert mesh.materials[mesh.face_material[0]].shading == Shading()


@pytest.mark.parametrize(("exponent", "roughness"), [("0", 1.0), ("-3", 1.0), ("30", 0.25), ("1e30", 0.0)])
def test_roughness_of_an_exponent(tmp_path: Path, exponent: str, roughness: float) -> None:
    (tmp_path / "a.mtl").write_text(f"newmtl a\nNs {exponent}\n")
    path = tmp_path / "asset.obj"
    path.write_text("mtllib a.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    mesh = load_mesh(path, shading=True)
    assert isinstance(mesh, TexturedMesh), mesh
    assert mesh.materials[0].shading.roughness == pytest.approx(roughness, abs=1e-9)


def test_vertex_colours(tmp_path: Path) -> None:
    path = tmp_path / "asset.obj"
    path.write_text("v 0 0 0 1 0 0\nv 1 0 0 0 0.5 0\nv 0 1 0 0 0 2\nf 1 2 3\n")
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh), mesh
    np.testing.assert_allclose(mesh.colors, [[1, 0, 0, 1], [0, 0.21404, 0, 1], [0, 0, 1, 1]], atol=1e-4)


def test_smooth_below_the_crease_and_split_above(tmp_path: Path) -> None:
    """Two squares folded by 20 degrees share the normals of their edge; folded by 100 degrees they do not."""
    for angle, shared in ((20, True), (100, False)):
        bend = np.radians(angle)
        points = [
            (0, 0, 0),
            (0, 1, 0),
            (1, 0, 0),
            (1, 1, 0),
            (-np.cos(bend), 0, -np.sin(bend)),
            (-np.cos(bend), 1, -np.sin(bend)),
        ]
        path = tmp_path / "asset.obj"
        path.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in points) + "f 1 3 4 2\nf 5 1 2 6\n")
        mesh = load_mesh(path)
        assert isinstance(mesh, TexturedMesh), mesh
        assert len(mesh.vertices) == (6 if shared else 10)  # a flat corner belongs to its triangle
        at_edge = mesh.normals[np.isclose(mesh.vertices[:, 0], 0)]
        tilt = np.degrees(np.arccos(at_edge[:, 2]))
        np.testing.assert_allclose(sorted(tilt), [10, 10] if shared else [0] * 3 + [100] * 3, atol=1e-3)
