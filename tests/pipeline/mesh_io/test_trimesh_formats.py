"""PLY, STL, OFF, 3MF and COLLADA: right shape, place, colour and texture; hostile files are refused."""

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from geometry.raster import Fragments
from geometry.texture import encode_srgb8, surface_color
from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.side_files import asset_sha256, side_files
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


def test_3mf_places_instances_and_says_that_colours_are_lost(tmp_path: Path) -> None:
    vertices = "".join('<vertex x="{}" y="{}" z="{}"/>'.format(*point) for point in CORNERS * SIZES)
    faces = "".join('<triangle v1="{}" v2="{}" v3="{}"/>'.format(*face) for face in BOX_FACES)
    text = (
        '<model unit="millimeter" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><resources>'
        '<basematerials id="5"><base name="x" displaycolor="#FF0000"/></basematerials>'
        f'<object id="1" type="model"><mesh><vertices>{vertices}</vertices><triangles>{faces}</triangles></mesh>'
        '</object></resources><build><item objectid="1"/><item objectid="1" transform="1 0 0 0 1 0 0 0 1 20 0 0"/>'
        "</build></model>"
    )
    with zipfile.ZipFile(tmp_path / "a.3mf", "w") as archive:
        archive.writestr("3D/3dmodel.model", text)
    mesh, notes = opened(tmp_path / "a.3mf")
    assert len(mesh.faces) == 24 and mesh.vertices[:, 0].max() == 21 and signed_volume(mesh) == pytest.approx(96)
    assert "colours" in notes[NoteKind.MATERIAL_MISSING].detail


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
    "off beyond": (".off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", Reason.LOAD_ERROR),
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


def test_other_formats_do_not_wait_for_trimesh() -> None:
    code = "import sys, pipeline.asset; assert not {'trimesh', 'lxml', 'collada', 'networkx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
