"""PLY, STL, OFF, 3MF and COLLADA: right shape, place, colour and texture; hostile files are refused."""

import io
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from geometry.raster import Fragments
from geometry.texture import encode_srgb8, surface_color
from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.side_files import asset_sha256, names_in_text, side_files
from schemas.ledger import Note, NoteKind, Reason, Rejected
from schemas.mesh import TexturedMesh
from tests.pipeline.mesh_io.test_load import signed_volume
from tests.pipeline.mesh_io.test_load_fuzz import mutated
from tests.support.small_gltf import BOX_FACES, CORNERS, QUADRANTS, png

SIZES = np.array([1.0, 2.0, 3.0])
"""Half sides of the box in every file: axes cannot be mistaken."""


def opened(path: Path) -> tuple[TexturedMesh, dict[NoteKind, Note]]:
    found = load_asset(path, PreflightConfig())
    assert not isinstance(found, Rejected), found
    facts, mesh = found
    assert isinstance(mesh, TexturedMesh), mesh
    return mesh, {note.kind: note for note in facts.notes}


def reason_of(path: Path, cfg: PreflightConfig | None = None) -> Reason:
    found = load_mesh(path, cfg)
    assert isinstance(found, Rejected), found
    return found.reason


def color_at(mesh: TexturedMesh, point: tuple[float, float, float]) -> list[int]:
    """sRGB colour of the surface at a point of it."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    weights = np.stack([np.linalg.lstsq(np.stack(e, 1), np.subtract(point, o), rcond=None)[0]
                        for *e, o in zip(ab, ac, a, strict=True)])  # fmt: skip
    off = np.linalg.norm(a + weights[:, :1] * ab + weights[:, 1:] * ac - point, axis=1)
    inside = (weights >= -1e-6).all(1) & (weights.sum(1) <= 1 + 1e-6)
    face = int(np.where(inside, off, np.inf).argmin())
    assert inside[face] and off[face] < 1e-5, f"{point} is not on the surface"
    bary = np.array([1 - weights[face].sum(), weights[face, 0]], np.float32)
    one = np.zeros((1, 1, 1), np.int32) + face
    fragments = Fragments(face=one, bary=bary[None, None, None], depth=np.zeros((1, 1, 1), np.float32))
    return encode_srgb8(surface_color(mesh, fragments)[..., :3])[0, 0, 0].tolist()


def box_lines() -> list[str]:
    return [f"{x} {y} {z}" for x, y, z in CORNERS * SIZES]


def coloured_ply(form: str) -> bytes:
    """A box, red where x is low, green where it is high."""
    header = f"ply\nformat {form} 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    header += "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    header += "element face 12\nproperty list uchar int vertex_indices\nend_header\n"
    colors = np.where(CORNERS[:, :1] < 0, np.uint8([[200, 0, 0]]), np.uint8([[0, 200, 0]]))
    if form == "ascii":
        rows = [f"{line} {r} {g} {b}" for line, (r, g, b) in zip(box_lines(), colors, strict=True)]
        rows += [f"3 {i} {j} {k}" for i, j, k in BOX_FACES]
        return (header + "\n".join(rows) + "\n").encode()
    mark = "<" if "little" in form else ">"
    body = b"".join(
        struct.pack(f"{mark}3f3B", *place, *color) for place, color in zip(CORNERS * SIZES, colors, strict=True)
    )
    return header.encode() + body + b"".join(struct.pack(f"{mark}B3i", 3, *face) for face in BOX_FACES)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_with_vertex_colours(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(coloured_ply(form))
    mesh, notes = opened(path)
    assert len(mesh.faces) == 12 and not notes
    np.testing.assert_array_equal(np.abs(mesh.vertices).max(axis=0), SIZES)
    assert signed_volume(mesh) == pytest.approx(8 * SIZES.prod())
    assert color_at(mesh, (-1, 0.5, 0.5)) == [200, 0, 0] and color_at(mesh, (1, 0.5, 0.5)) == [0, 200, 0]
    assert mesh.materials[0].double_sided


def textured_ply(per_face: bool, image: str = "t.png") -> str:
    """The box's side at high z wears the picture upright, and so do the others, seen along z."""
    u, v = ((CORNERS[:, axis] + 1) / 2 for axis in (0, 1))
    header = f"ply\nformat ascii 1.0\ncomment TextureFile {image}\nelement vertex 8\n"
    header += "property float x\nproperty float y\nproperty float z\n"
    header += "" if per_face else "property float s\nproperty float t\n"
    header += "element face 12\nproperty list uchar int vertex_indices\n"
    header += "property list uchar float texcoord\n" if per_face else ""
    rows = box_lines() if per_face else [f"{x} {a} {b}" for x, a, b in zip(box_lines(), u, v, strict=True)]
    for face in BOX_FACES:
        corners = " ".join(f"{u[i]} {v[i]}" for i in face)
        rows.append(f"3 {' '.join(map(str, face))}" + (f" 6 {corners}" if per_face else ""))
    return header + "end_header\n" + "\n".join(rows) + "\n"


def picture(folder: Path, name: str = "t.png") -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(png(QUADRANTS))


def shows_quadrants(mesh: TexturedMesh, x: float, y: float, z: float) -> bool:
    """Top left red, top right green, bottom left blue, bottom right white on the side at `z`."""
    wanted = {(-1, 1): [255, 0, 0], (1, 1): [0, 255, 0], (-1, -1): [0, 0, 255], (1, -1): [255, 255, 255]}
    return all(color_at(mesh, (0.6 * x * i, 0.6 * y * j, z)) == color for (i, j), color in wanted.items())


@pytest.mark.parametrize("per_face", [False, True])
def test_ply_with_a_texture(tmp_path: Path, per_face: bool) -> None:
    path = tmp_path / "a.ply"
    path.write_text(textured_ply(per_face))
    assert reason_of(path) == Reason.MISSING_FILE  # never silently textureless
    before = asset_sha256(path, side_files(path))
    picture(tmp_path)
    assert asset_sha256(path, side_files(path)) != before
    mesh, notes = opened(path)
    assert shows_quadrants(mesh, 1, 2, 3) and mesh.face_has_uv.all() and not notes


@pytest.mark.parametrize("name", ["../t.png", "/etc/passwd", "https://example.org/t.png"])
def test_textures_lie_in_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "asset").mkdir()
    picture(tmp_path)
    path = tmp_path / "asset" / "a.ply"
    path.write_text(textured_ply(False, name))
    assert reason_of(path) in (Reason.UNSAFE_URI, Reason.MISSING_FILE)
    path = tmp_path / "asset" / "a.dae"
    path.write_text(collada(name))
    assert reason_of(path) in (Reason.UNSAFE_URI, Reason.MISSING_FILE)


def test_ply_with_quads_and_face_colours(tmp_path: Path) -> None:
    quads = ["0 2 6 4", "1 5 7 3", "0 4 5 1", "2 3 7 6", "0 1 3 2", "4 6 7 5"]
    header = "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 6\nproperty list uchar int vertex_indices\n"
    header += "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    rows = [f"4 {quad} {40 * number} 10 {250 - 40 * number}" for number, quad in enumerate(quads)]
    (tmp_path / "a.ply").write_text(header + "\n".join(box_lines() + rows) + "\n")
    mesh, _ = opened(tmp_path / "a.ply")
    assert len(mesh.faces) == 12 and abs(signed_volume(mesh)) == pytest.approx(8 * SIZES.prod())
    assert color_at(mesh, (0.3, 0.4, -3)) == [0, 10, 250] and color_at(mesh, (0.3, 0.4, 3)) == [40, 10, 210]


@pytest.mark.parametrize("kind", ["stl", "stl_ascii", "off", "3mf", "dae"])
def test_shapes_of_formats_without_colour(tmp_path: Path, kind: str) -> None:
    box = trimesh.Trimesh(CORNERS * SIZES, BOX_FACES, process=False)
    data = box.export(file_type=kind)
    path = tmp_path / f"a.{kind.partition('_')[0]}"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    mesh, _ = opened(path)
    assert len(mesh.faces) == 12 and signed_volume(mesh) == pytest.approx(8 * SIZES.prod())
    sides = SIZES[[0, 2, 1]] if kind == "3mf" else SIZES  # 3MF is Z up
    np.testing.assert_allclose(np.abs(mesh.vertices).max(axis=0), sides, rtol=1e-6)
    if kind != "dae":  # trimesh writes smooth ones there
        np.testing.assert_allclose(np.abs(mesh.normals).sum(axis=1), 1, atol=1e-5)  # flat


def collada(image: str = "t.png", up: str = "Y_UP", entity: str = "", node: str = "") -> str:
    """The textured box at x + 10, by a node."""
    places = " ".join(box_lines())
    coords = " ".join(f"{(x + 1) / 2} {(y + 1) / 2}" for x, y, _ in CORNERS)
    index = " ".join(f"{i} {i}" for i in BOX_FACES.reshape(-1))

    def source(name: str, values: str, count: int, axes: str) -> str:
        params = "".join(f'<param name="{axis}" type="float"/>' for axis in axes)
        return (
            f'<source id="{name}"><float_array id="{name}-array" count="{count * len(axes)}">{values}</float_array>'
            f'<technique_common><accessor source="#{name}-array" count="{count}" stride="{len(axes)}">{params}'
            "</accessor></technique_common></source>"
        )

    return f"""<?xml version="1.0" encoding="utf-8"?>{entity}
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><created>2020-01-01T00:00:00</created><modified>2020-01-01T00:00:00</modified><up_axis>{up}</up_axis></asset>
<library_images><image id="img"><init_from>{image}</init_from></image></library_images>
<library_effects><effect id="fx"><profile_COMMON>
<newparam sid="surf"><surface type="2D"><init_from>img</init_from></surface></newparam>
<newparam sid="samp"><sampler2D><source>surf</source></sampler2D></newparam>
<technique sid="t"><lambert><diffuse><texture texture="samp" texcoord="UV"/></diffuse></lambert></technique>
</profile_COMMON></effect></library_effects>
<library_materials><material id="mat"><instance_effect url="#fx"/></material></library_materials>
<library_geometries><geometry id="box"><mesh>{source("pos", places, 8, "XYZ")}{source("uv", coords, 8, "ST")}
<vertices id="verts"><input semantic="POSITION" source="#pos"/></vertices>
<triangles count="12" material="m"><input semantic="VERTEX" source="#verts" offset="0"/>
<input semantic="TEXCOORD" source="#uv" offset="1" set="0"/><p>{index}</p></triangles></mesh></geometry>
</library_geometries>
<library_visual_scenes><visual_scene id="scene"><node><translate>10 0 0</translate>
<instance_geometry url="#box"><bind_material><technique_common><instance_material symbol="m" target="#mat"/>
</technique_common></bind_material></instance_geometry></node>{node}</visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#scene"/></scene></COLLADA>"""


def test_collada_with_texture_and_node(tmp_path: Path) -> None:
    path = tmp_path / "a.dae"
    path.write_text(collada("my%20pictures/t.png"))
    assert reason_of(path) == Reason.MISSING_FILE
    picture(tmp_path, "my pictures/t.png")
    mesh, notes = opened(path)
    np.testing.assert_allclose([mesh.vertices.min(0), mesh.vertices.max(0)], [[9, -2, -3], [11, 2, 3]])
    assert not notes and signed_volume(mesh) == pytest.approx(8 * SIZES.prod())
    assert color_at(mesh, (9.4, 1.2, 3)) == [255, 0, 0] and color_at(mesh, (10.6, 1.2, 3)) == [0, 255, 0]
    assert color_at(mesh, (9.4, -1.2, 3)) == [0, 0, 255]


def test_collada_axes(tmp_path: Path) -> None:
    picture(tmp_path)
    path = tmp_path / "a.dae"
    path.write_text(collada(up="Z_UP"))
    mesh, _ = opened(path)
    np.testing.assert_allclose([mesh.vertices.min(0), mesh.vertices.max(0)], [[9, -3, -2], [11, 3, 2]])
    assert color_at(mesh, (9.4, 3, -1.2)) == [255, 0, 0] and signed_volume(mesh) > 0
    path.write_text(collada(up="X_UP"))
    mesh, _ = opened(path)
    np.testing.assert_allclose([mesh.vertices.min(0), mesh.vertices.max(0)], [[-2, 9, -3], [2, 11, 3]])
    assert signed_volume(mesh) > 0


def test_a_broken_part_of_collada_is_noted(tmp_path: Path) -> None:
    picture(tmp_path)
    path = tmp_path / "a.dae"
    path.write_text(collada(node='<node><instance_geometry url="#nowhere"/></node>'))
    mesh, notes = opened(path)
    assert len(mesh.faces) == 12 and "nowhere" in notes[NoteKind.PART_LEFT_OUT].detail


def model(objects: str, build: str) -> bytes:
    """A 3MF archive with the box as object 1, red by its palette but for the first side, which is half green."""
    vertices = "".join('<vertex x="{}" y="{}" z="{}"/>'.format(*point) for point in CORNERS * SIZES)
    faces = "".join(
        '<triangle v1="{}" v2="{}" v3="{}" {}/>'.format(*face, 'pid="6" p1="1"' if number < 1 else "")
        for number, face in enumerate(BOX_FACES)
    )
    text = (
        '<model unit="millimeter" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02" '
        'xmlns:m="http://schemas.microsoft.com/3dmanufacturing/material/2015/02"><resources>'
        '<basematerials id="5"><base name="x" displaycolor="#FF0000"/></basematerials>'
        '<m:colorgroup id="6"><m:color color="#0000FF80"/><m:color color="#00FF00"/></m:colorgroup>'
        f'<object id="1" pid="5" pindex="0"><mesh><vertices>{vertices}</vertices><triangles>{faces}</triangles></mesh>'
        f"</object>{objects}</resources><build>{build}</build></model>"
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("3D/3dmodel.model", text)
    return file.getvalue()


def nested(number: int, *components: tuple[int, str]) -> str:
    inner = "".join(f'<component objectid="{of}" transform="{move}"/>' for of, move in components)
    return f'<object id="{number}"><components>{inner}</components></object>'


STAY, RIGHT, QUARTER = "1 0 0 0 1 0 0 0 1 0 0 0", "1 0 0 0 1 0 0 0 1 20 0 0", "0 1 0 -1 0 0 0 0 1 0 0 0"


def test_3mf_with_colours_and_objects_within_objects(tmp_path: Path) -> None:
    """A box where it is, and one moved 20 along x, then turned by a quarter from x to y, where 3MF's z points up."""
    objects = nested(2, (1, RIGHT), (99, STAY)) + nested(3, (2, QUARTER), (1, STAY))
    path = tmp_path / "a.3mf"
    path.write_bytes(model(objects, '<item objectid="3"/>'))
    mesh, notes = opened(path)
    assert len(mesh.faces) == 24 and signed_volume(mesh) == pytest.approx(96)
    assert "99" in notes[NoteKind.PART_LEFT_OUT].detail and len(notes) == 1
    np.testing.assert_allclose(mesh.vertices.min(axis=0), [-2, -3, -21], atol=1e-5)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [2, 3, 2], atol=1e-5)
    colors = encode_srgb8(mesh.colors[:, :3])[mesh.faces].reshape(-1, 9)
    found, count = np.unique(colors, axis=0, return_counts=True)
    assert found.tolist() == [[0, 255, 0] * 3, [255, 0, 0] * 3] and count.tolist() == [2, 22]


def test_3mf_of_endless_copies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.3mf"
    path.write_bytes(model(nested(2, (3, STAY)) + nested(3, (2, STAY)), '<item objectid="2"/>'))
    assert reason_of(path) == Reason.INVALID_STRUCTURE
    doubled = "".join(nested(number, (number - 1, STAY), (number - 1, STAY)) for number in range(2, 42))
    path.write_bytes(model(doubled, '<item objectid="41"/>'))
    assert reason_of(path, PreflightConfig(max_faces=10_000)) == Reason.TOO_LARGE
    empty = doubled.replace('"1"', '"42"') + nested(42)
    path.write_bytes(model(empty, '<item objectid="41"/>'))
    assert reason_of(path) == Reason.TOO_LARGE


# polygons, colours, coordinates

PLAN = np.array([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], np.float64)
"""An L: a fan from its first corner but one fills the notch."""
PRISM = np.concatenate([np.insert(PLAN, 2, z, axis=1) for z in (0, 1)])
POLYGONS = [
    [0, 5, 4, 3, 2, 1],
    [7, 8, 9, 10, 11, 6],
    *([i, (i + 1) % 6, (i + 1) % 6 + 6, i + 6] for i in range(6)),
]


def prism_ply(form: str) -> bytes:
    header = f"ply\nformat {form} 1.0\nelement vertex 12\nproperty double x\nproperty double y\nproperty double z\n"
    header += "element face 8\nproperty list uchar int vertex_indices\nproperty uchar flags\nend_header\n"
    if form == "ascii":
        rows = ["{} {} {}".format(*point) for point in PRISM]
        rows += [f"{len(face)} {' '.join(map(str, face))} 1" for face in POLYGONS]
        return (header + "\n".join(rows) + "\n").encode()
    mark = "<" if "little" in form else ">"
    faces = (struct.pack(f"{mark}B{len(face)}iB", len(face), *face, 1) for face in POLYGONS)
    return header.encode() + PRISM.astype(f"{mark}f8").tobytes() + b"".join(faces)


def prism_off() -> bytes:
    rows = ["{} {} {}".format(*point) for point in PRISM]
    rows += [f"{len(face)} {' '.join(map(str, face))}" for face in POLYGONS]
    return ("OFF\n# an L\n12 8 0\n" + "\n".join(rows)).encode()


def prism_dae(tag: str) -> bytes:
    text = collada(node="")
    start, end = text.index("<triangles"), text.index("</triangles>") + len("</triangles>")
    inputs = '<input semantic="VERTEX" source="#verts" offset="0"/>'
    if tag == "polylist":
        lengths = " ".join(str(len(face)) for face in POLYGONS)
        index = " ".join(str(i) for face in POLYGONS for i in face)
        body = f"<vcount>{lengths}</vcount><p>{index}</p>"
    else:
        body = "".join(f"<p>{' '.join(map(str, face))}</p>" for face in POLYGONS)
    text = text[:start] + f'<{tag} count="8">{inputs}{body}</{tag}>' + text[end:]
    places, boxes = " ".join("{} {} {}".format(*point) for point in PRISM), " ".join(box_lines())
    text = text.replace(boxes, places).replace('count="24"', 'count="36"', 1)
    return text.replace('source="#pos-array" count="8"', 'source="#pos-array" count="12"').encode()


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        *((".ply", prism_ply(form)) for form in ("ascii", "binary_little_endian", "binary_big_endian")),
        (".off", prism_off()),
        *((".dae", prism_dae(tag)) for tag in ("polylist", "polygons")),
    ],
    ids=["ply", "ply little", "ply big", "off", "polylist", "polygons"],
)
def test_concave_polygons_keep_their_notch(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    mesh, notes = opened(path)
    assert len(mesh.faces) == 20 and not notes and signed_volume(mesh) == pytest.approx(3)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert areas.sum() == pytest.approx(14)  # twice the L's 3, and its outline of 8


def off(header: str, vertex: Callable[[int], str] = lambda _: "", face: Callable[[int], str] = lambda _: "") -> str:
    rows = [f"{line} {vertex(number)}" for number, line in enumerate(box_lines())]
    rows += ["3 {} {} {} {}".format(*corners, face(number)) for number, corners in enumerate(BOX_FACES)]
    return header + "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        off("COFF\n8 12 0\n", lambda i: "200 0 0 255" if CORNERS[i, 0] < 0 else "0 200 0 255"),
        off("OFF 8 12 0\n", lambda i: "200 0 0" if CORNERS[i, 0] < 0 else "0 200 0"),
        off("STCNOFF\n8 12 0\n", lambda i: f"0 0 1 {'0.7843 0' if CORNERS[i, 0] < 0 else '0 0.7843'} 0 1 0.5 0.5"),
        off("OFF8 12 0\n", face=lambda i: "200 0 0" if CORNERS[BOX_FACES[i], 0].max() < 0 else "0 200 0"),
        off("OFF\n8 12 0\n", face=lambda i: f"{'0.7843 0' if CORNERS[BOX_FACES[i], 0].max() < 0 else '0 0.7843'} 0"),
    ],
    ids=["vertices", "no C", "all", "faces", "faces to 1"],
)
def test_off_with_colours(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.off").write_text(text)
    mesh, notes = opened(tmp_path / "a.off")
    assert not notes and signed_volume(mesh) == pytest.approx(8 * SIZES.prod())
    assert color_at(mesh, (-1, 0.5, 0.5)) == [200, 0, 0] and color_at(mesh, (1, 0.5, 0.5)) == [0, 200, 0]
    if text.startswith("ST"):
        np.testing.assert_allclose(mesh.normals, [[0, 0, 1]] * len(mesh.normals))
        assert mesh.face_has_uv.all() and (mesh.uv == 0.5).all()


def test_what_is_left_out_of_off_and_stl_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text(off("OFF\n8 12 0\n", face=lambda _: "7").replace("\n3 0 ", "\n2 0 ", 1))
    _, notes = opened(tmp_path / "a.off")
    assert notes[NoteKind.MATERIAL_MISSING].count >= 11 and notes[NoteKind.FACES_LEFT_OUT].count == 1
    box = trimesh.Trimesh(CORNERS * SIZES, BOX_FACES, process=False)
    stl = bytearray(box.export(file_type="stl"))
    stl[84 + 48 : 84 + 50] = b"\x1f\x80"
    (tmp_path / "a.stl").write_bytes(bytes(stl))
    mesh, notes = opened(tmp_path / "a.stl")
    assert len(mesh.faces) == 12 and notes[NoteKind.MATERIAL_MISSING].count == 1


def test_a_plys_colours_beside_a_texture_are_noted(tmp_path: Path) -> None:
    picture(tmp_path)
    path = tmp_path / "a.ply"
    text = textured_ply(False).replace("float t\n", "float t\nproperty uchar red\nproperty uchar green\n", 1)
    text = text.replace("uchar green\n", "uchar green\nproperty uchar blue\n", 1)
    head, body = text.split("end_header\n")
    rows = [f"{row} 9 9 9" if number < 8 else row for number, row in enumerate(body.splitlines())]
    path.write_text(head + "end_header\n" + "\n".join(rows) + "\n")
    mesh, notes = opened(path)
    assert shows_quadrants(mesh, 1, 2, 3) and "beside a texture" in notes[NoteKind.DATA_IGNORED].detail
    path.write_text((head + "end_header\n" + "\n".join(rows) + "\n").replace("comment TextureFile t.png\n", ""))
    mesh, notes = opened(path)
    assert color_at(mesh, (0.5, 0.5, 3)) == [9, 9, 9] and mesh.face_has_uv.all() and not notes
    np.testing.assert_allclose(mesh.uv[mesh.faces].min(), 0)
    assert mesh.uv.max() == 1
    without = text.replace("property float s\nproperty float t\n", "property float a\nproperty float b\n")
    head, _ = without.split("end_header\n")
    path.write_text(head + "end_header\n" + "\n".join(rows) + "\n")
    mesh, notes = opened(path)
    assert (
        color_at(mesh, (0.5, 0.5, 3)) == [9, 9, 9] and "no texture coordinates" in notes[NoteKind.DATA_IGNORED].detail
    )


@pytest.mark.parametrize(
    ("transparent", "opacity", "noted"),
    [
        ("<transparent><color>1 1 1 0.25</color></transparent>", 0.25, False),
        (
            "<transparent><color>1 1 1 0.5</color></transparent><transparency><float>0.5</float></transparency>",
            0.25,
            False,
        ),
        ("<transparent><color>1 1 1 0</color></transparent>", 1.0, True),
        (
            '<transparent opaque="RGB_ZERO"><color>0.75 0.75 0.75 1</color></transparent>'
            "<transparency><float>1</float></transparency>",
            0.25,
            False,
        ),
        ('<transparent opaque="RGB_ZERO"><color>0 0 0 0</color></transparent>', 1.0, False),
    ],
    ids=["alpha", "transparency", "nothing", "light let through", "no light let through"],
)
def test_collada_opacity(tmp_path: Path, transparent: str, opacity: float, noted: bool) -> None:
    path = tmp_path / "a.dae"
    look = f"<diffuse><color>0.5 0.25 1 1</color></diffuse>{transparent}"
    path.write_text(collada().replace('<diffuse><texture texture="samp" texcoord="UV"/></diffuse>', look))
    mesh, notes = opened(path)
    assert mesh.materials[0].base_color[3] == pytest.approx(opacity)
    assert (NoteKind.VALUE_CORRECTED in notes) == noted
    assert mesh.materials[0].base_color[2] == 1 and mesh.face_has_uv.all()


def archive_of(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", b" " * size)
    return file.getvalue()


BOMB = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
PLY_HEADER = "ply\nformat binary_little_endian 1.0\nelement vertex {}\nproperty float x\nproperty float y\n"
PLY_HEADER += "property float z\nelement face {}\nproperty list uchar int vertex_indices\nend_header\n"
HOSTILE = {
    "many faces": (".ply", PLY_HEADER.format(8, 10**12).encode(), Reason.TOO_LARGE),
    "many vertices": (".ply", PLY_HEADER.format(10**12, 12).encode(), Reason.TRUNCATED),
    "two textures": (
        ".ply",
        b"ply\ncomment TextureFile a.png\ncomment TextureFile b.png\nend_header\n",
        Reason.UNSUPPORTED_MATERIAL,
    ),
    "no ply": (".ply", b"hello", Reason.NOT_A_MESH),
    "half a ply": (".ply", coloured_ply("ascii")[:-60], Reason.TRUNCATED),
    "ply of points": (".ply", PLY_HEADER.format(1, 0).encode() + bytes(12), Reason.NO_GEOMETRY),
    "big stl": (".stl", bytes(80) + struct.pack("<I", 3) + bytes(150), Reason.TOO_LARGE),
    "no stl": (".stl", b"hello", Reason.NO_GEOMETRY),
    "off beyond": (".off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", Reason.INDEX_OUT_OF_RANGE),
    "off nan": (".off", b"OFF\n3 1 0\n0 0 nan\n1 0 0\n0 1 0\n3 0 1 2\n", Reason.NON_FINITE),
    "entities": (".dae", collada(entity=BOMB).encode(), Reason.INVALID_STRUCTURE),
    "utf-16": (".dae", collada(entity=BOMB).encode("utf-16"), Reason.NOT_A_MESH),
    "zipped dae": (".dae", archive_of(100), Reason.NOT_A_MESH),
    "zip bomb": (".3mf", archive_of(2**21), Reason.TOO_LARGE),
    "no zip": (".3mf", b"PK\3\4 hello", Reason.NOT_A_MESH),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    suffix, data, reason = HOSTILE[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    cfg = PreflightConfig(max_file_bytes=2**20, max_faces=2 if name == "big stl" else 1000)
    assert reason_of(path, cfg) == reason


def test_damage_that_nothing_shows_is_noted(tmp_path: Path) -> None:
    text = "OFF\n5 2 0\n0 0 0\n1 0 0\n0 1 0\n1 1 1\nnan 0 0\n3 0 1 2\n3 0 1 3\n"
    (tmp_path / "a.off").write_text(text)
    mesh, notes = opened(tmp_path / "a.off")
    assert len(mesh.faces) == 2 and "vertex 4 of 5" in notes[NoteKind.DATA_IGNORED].detail


def samples(folder: Path) -> dict[str, bytes]:
    """One file or more of each format."""
    picture(folder)
    box = trimesh.Trimesh(CORNERS * SIZES, BOX_FACES, process=False)
    exported = {name: box.export(file_type=name) for name in ("stl", "stl_ascii", "off", "3mf")}
    made = {name: data if isinstance(data, bytes) else data.encode() for name, data in exported.items()}
    made |= {f"ply_{form}": coloured_ply(form) for form in ("ascii", "binary_little_endian")}
    return made | {"ply_texture": textured_ply(True).encode(), "dae": collada().encode()}


def mutate(folder: Path, kind: str, count: int, seed: int) -> dict[str, int]:
    """Outcomes of loading mutated files of a kind."""
    rng, data, outcomes = np.random.default_rng(seed), samples(folder)[kind], dict[str, int]()
    path = folder / f"m.{kind.partition('_')[0]}"
    for number in range(count):
        path.write_bytes(mutated(data, rng))
        if kind == "3mf" and number % 4:  # within
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(path, "w") as archive:
                for name, part in parts.items():
                    archive.writestr(name, mutated(part, rng) if name.endswith(".model") else part)
        found = load_mesh(path, PreflightConfig(max_file_bytes=2**20, max_faces=10_000))
        if isinstance(found, TexturedMesh):
            assert np.isfinite(found.vertices).all() and found.faces.max() < len(found.vertices)
        name = found.reason.value if isinstance(found, Rejected) else "mesh"
        outcomes[name] = outcomes.get(name, 0) + 1
    return outcomes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["stl", "stl_ascii", "off", "3mf", "ply_ascii", "ply_binary_little_endian", "ply_texture", "dae"]
)
def test_mutations_end_in_a_mesh_or_a_reason(tmp_path: Path, kind: str) -> None:
    outcomes = mutate(tmp_path, kind, 60, 20250613)
    assert sum(outcomes.values()) == 60 and len(outcomes) >= 2, outcomes


def test_file_names_in_collada_are_found_in_linear_time(tmp_path: Path) -> None:
    """Also where blanks have no end: this search is not sandboxed when assets are downloaded."""
    path = tmp_path / "a.dae"
    path.write_bytes(
        b"<x><init_from>" + b" " * 2**20 + b"<init_from>\n maps/t.png\n</init_from>" + b"<init_from" * 2**16
    )
    start = time.process_time()
    assert names_in_text(path, 2**25) == ["maps/t.png"]
    assert time.process_time() - start < 1


def test_other_formats_do_not_wait_for_trimesh() -> None:
    code = "import sys, pipeline.asset; assert not {'trimesh', 'lxml', 'collada', 'networkx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
