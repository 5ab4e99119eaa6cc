"""Small files of the kinds that people's tools write, against what viewers show of them: OBJ, MTL, paths, images.

`tests/data/cases` holds cubes of side 1 whose faces wear one texture of four quadrants, upright on the sides, unless a
test says otherwise."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geometry.frames import bounding_box, normalise
from geometry.raster import Fragments
from geometry.texture import linear_to_srgb, pack_surface, srgb_to_linear, surface_color
from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig
from pipeline.sources.folder import folder
from schemas.ledger import NoteKind, Reason, Rejected
from schemas.mesh import TexturedMesh

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"
COLORS = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 220], [230, 210, 50]])
"""Colours of the quadrants, sRGB: top left, top right, bottom left, bottom right."""
SIDES = {
    (1, 0, 0): lambda x, y, z: (0.5 - z, y + 0.5),
    (-1, 0, 0): lambda x, y, z: (z + 0.5, y + 0.5),
    (0, 1, 0): lambda x, y, z: (x + 0.5, 0.5 - z),
    (0, -1, 0): lambda x, y, z: (x + 0.5, z + 0.5),
    (0, 0, 1): lambda x, y, z: (x + 0.5, y + 0.5),
    (0, 0, -1): lambda x, y, z: (0.5 - x, y + 0.5),
}
"""Texture coordinates (v up) of a place on the cube, by the side's normal."""


def opened(path: Path, root: Path = CASES) -> tuple[TexturedMesh, dict[NoteKind, int]]:
    found = load_asset(path, PreflightConfig(), root)
    assert not isinstance(found, Rejected), found
    facts, mesh = found
    assert isinstance(mesh, TexturedMesh), mesh
    return mesh, {note.kind: note.count for note in facts.notes}


def case(name: str) -> Path:
    return next(path for path in CASES.rglob(f"{name}.*") if path.suffix in (".obj", ".gltf", ".glb"))


def colors_at(mesh: TexturedMesh, points: Sequence[Sequence[float]]) -> np.ndarray:
    """sRGB (0..255) and alpha of the surface at points on it; NaN where there is no face."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    face, bary = np.full(len(points), -1, np.int32), np.zeros((len(points), 2), np.float32)
    for number, point in enumerate(points):
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        normal = np.cross(b - a, c - a)
        area = np.maximum((normal**2).sum(axis=1), 1e-30)
        first = (np.cross(b - point, c - point) * normal).sum(axis=1) / area
        second = (np.cross(c - point, a - point) * normal).sum(axis=1) / area
        off = np.abs(((point - a) * normal).sum(axis=1)) / np.sqrt(area)
        inside = (np.minimum(np.minimum(first, second), 1 - first - second) > -1e-4) & (off < 1e-5)
        if inside.any():
            face[number] = inside.argmax()
            bary[number] = first[face[number]], second[face[number]]
    shape = (1, 1, len(points))
    fragments = Fragments(face=face.reshape(shape), bary=bary.reshape(*shape, 2), depth=np.zeros(shape, np.float32))
    linear = surface_color(pack_surface(mesh, mips=False), fragments)[0, 0]
    rgba = np.concatenate([linear_to_srgb(linear[:, :3]) * 255.0, linear[:, 3:]], axis=1)
    return np.where(face[:, None] < 0, np.nan, rgba)


def places(steps: Sequence[float] = (-0.3, -0.2, 0.2, 0.3)) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """Places on all sides of the cube, with the side's normal."""
    found = []
    for side in SIDES:
        axis = int(np.abs(side).argmax())
        for u in steps:
            for v in steps:
                found.append((side, np.insert([u, v], axis, 0.5 * side[axis])))
    return found


def quadrant(u: float, v: float) -> int:
    return (0 if v % 1 > 0.5 else 2) + (1 if u % 1 > 0.5 else 0)


def assert_cube(mesh: TexturedMesh, scale: float = 1.0, offset: float = 0.0, hole: int | None = None) -> None:
    """The cube's colours are where they belong: coordinates times `scale`, u plus `offset`; one quadrant cut out."""
    wanted = []
    for side, point in places():
        u, v = SIDES[side](*point)
        wanted.append(quadrant(u * scale + offset, v * scale))
    found = colors_at(mesh, [point for _, point in places()])
    wanted = np.array(wanted)
    np.testing.assert_array_equal(found[:, 3], 1.0 if hole is None else wanted != hole)
    solid = found[:, 3] == 1
    assert set(wanted[solid]) >= {0, 1, 2, 3} - {hole}
    np.testing.assert_allclose(found[solid, :3], COLORS[wanted[solid]], atol=6)  # GIF and DDS keep few colours


def box_of(mesh: TexturedMesh) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = bounding_box(mesh.vertices, mesh.faces)
    return lower + mesh.offset, upper + mesh.offset


PLAIN: dict[str, dict[NoteKind, int]] = {
    "o_bom_before_mtllib": {},
    "o_bom_before_v": {},
    "o_bom_in_mtl": {},
    "o_bom_in_mtl_two_materials": {},
    "o_index_zero_beside": {NoteKind.FACES_LEFT_OUT: 1},
    "o_latin1_names": {},
    "o_map_absolute_posix": {NoteKind.FILE_FOUND_ELSEWHERE: 1},
    "o_map_absolute_windows": {NoteKind.FILE_FOUND_ELSEWHERE: 1},
    "o_map_backslash": {},
    "o_map_dot_backslash": {},
    "o_map_inline_comment": {},
    "o_map_parent_folder": {},
    "o_map_quoted": {},
    "o_mtl_in_subfolder": {},
    "o_mtl_inline_comments": {},
    "o_mtllib_two_names_on_a_line": {},
    "o_nan_unused_vertex": {NoteKind.DATA_IGNORED: 1},
    "o_one_of_two_usemtl_unknown": {NoteKind.MATERIAL_MISSING: 1},
    "o_texture_bmp": {},
    "o_texture_dds": {},
    "o_texture_gif": {},
    "o_texture_tga": {},
    "o_texture_tif": {},
    "o_two_corner_face": {NoteKind.FACES_LEFT_OUT: 1},
    "o_usemtl_before_mtllib": {},
    "u_backslash": {},
    "u_data_uri_line_breaks": {},
    "u_data_uri_no_padding": {},
    "u_data_uri_percent_encoded_padding": {},
    "u_glb_external_image": {},
    "u_gltf_utf8_bom": {},
    "u_parent_folder": {},
    "u_up_and_down_inside": {},
    "i_basisu_broken_png_fallback": {NoteKind.IMAGE_REPLACED: 1},
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_textured_cube(name: str) -> None:
    mesh, notes = opened(case(name))
    assert notes == PLAIN[name]
    assert len(mesh.faces) == 12
    np.testing.assert_allclose(box_of(mesh), [[-0.5] * 3, [0.5] * 3])
    assert_cube(mesh)


def test_every_case_is_listed_by_the_folder_source_with_what_it_may_read() -> None:
    refs = {Path(ref.uri).stem: ref for ref in folder(CASES)}
    beyond = {name for name, ref in refs.items() if ref.root is not None}
    assert len(refs) == 63
    assert beyond == {"o_map_parent_folder", "u_parent_folder", "u_glb_external_image"}


@pytest.mark.parametrize(
    ("name", "scale", "offset"),
    [("o_map_option_s", 2.0, 0.0), ("o_map_option_o", 1.0, 0.5), ("o_map_options_s_and_file_in_folder", 3.0, 0.0)],
)
def test_map_options(name: str, scale: float, offset: float) -> None:
    mesh, notes = opened(case(name))
    assert not notes
    assert_cube(mesh, scale, offset)


def test_map_d_cuts_out() -> None:
    mesh, notes = opened(case("o_map_d_cutout"))
    assert not notes
    assert_cube(mesh, hole=0)


def test_a_key_of_16_bit_grey_cuts_out() -> None:
    mesh, _ = opened(case("i_png_gray16_trns_key_mask"))
    found = colors_at(mesh, [point for _, point in places()])
    wanted = np.array([quadrant(*SIDES[side](*point)) for side, point in places()])
    np.testing.assert_array_equal(found[:, 3], wanted != 0)
    grey = np.array([0, 0x6E, 0xB4, 0xF0])[wanted]
    np.testing.assert_allclose(found[wanted != 0, 0], grey[wanted != 0], atol=1)


@pytest.mark.parametrize("start", [0, 2])
def test_a_concave_polygon_leaves_its_notch(start: int) -> None:
    mesh, notes = opened(case(f"o_concave_ngon_start{start}"))
    assert not notes and len(mesh.faces) == 20
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    top = np.isclose(corners[:, :, 2], 0.2).all(axis=1)
    assert (normals[top, 2] > 0).all() and normals[top, 2].sum() == pytest.approx(0.51)
    notch, limbs = [[0.6, 0.6, 0.2], [0.35, 0.35, 0.2]], [[0.8, 0.15, 0.2], [0.15, 0.8, 0.2], [0.1, 0.1, 0.2]]
    found = colors_at(mesh, notch + limbs)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2:, :3], [[220, 40, 40]] * 3, atol=1)


@pytest.mark.parametrize("name", ["o_utm_coordinates", "o_utm_sphere"])
def test_coordinates_far_from_the_origin_keep_their_shape(name: str) -> None:
    path = case(name)
    exact = np.array([line.split()[1:4] for line in path.read_text().splitlines() if line.startswith("v ")], float)
    mesh, notes = opened(path)
    lower, upper = box_of(mesh)
    assert not notes
    np.testing.assert_allclose([lower, upper], [exact.min(axis=0), exact.max(axis=0)], atol=1e-5, rtol=0)
    size = (exact.max(axis=0) - exact.min(axis=0)).max()
    normal, frame = normalise(mesh)
    stored = np.unique(frame.to_asset(normal.vertices).round(6), axis=0)
    distance = np.abs(stored[:, None] - exact[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-6 * size and distance.min(axis=0).max() < 1e-6 * size
    assert normal.offset == (0.0, 0.0, 0.0)


def side_colors(mesh: TexturedMesh) -> np.ndarray:
    return colors_at(mesh, [np.array(side) * 0.5 + 0.1 * (1 - np.abs(side)) for side in SIDES])[:, :3]


SIDE_COLORS = 255 * np.array(
    [
        [0.906332, 0.34919, 0.34919],
        [0.34919, 0.797738, 0.34919],
        [0.34919, 0.34919, 0.906332],
        [0.854306, 0.854306, 0.34919],
        [0.797738, 0.34919, 0.797738],
        [0.34919, 0.797738, 0.797738],
    ]
)


@pytest.mark.parametrize(
    ("name", "white", "noted"),
    [
        ("o_vertex_colors_on_some", (3, 4, 5), {}),
        ("o_vertex_colors_on_later_lines", (0, 1, 2), {}),
        ("o_vertex_colors_0_255", (), {NoteKind.VALUE_CORRECTED: 24}),
        ("o_vertex_colors_missing_mtl", (), {NoteKind.FILE_MISSING: 1}),
    ],
)
def test_vertex_colours(name: str, white: tuple[int, ...], noted: dict[NoteKind, int]) -> None:
    mesh, notes = opened(case(name))
    assert notes == noted
    wanted = SIDE_COLORS.copy()
    wanted[list(white)] = 255
    np.testing.assert_allclose(side_colors(mesh), wanted, atol=1.0)


def test_one_number_of_kd_is_grey() -> None:
    mesh, notes = opened(case("o_mtl_kd_one_number"))
    assert not notes and not mesh.textures
    np.testing.assert_allclose(side_colors(mesh), 127.5, atol=0.5)


def test_one_number_of_vt_has_v_0() -> None:
    mesh, _ = opened(case("o_vt_one_component"))
    assert not mesh.uv[:, 1].any() and set(mesh.uv[:, 0]) == {0.0, 1.0}


def test_a_small_part_without_coordinates_shows_the_textures_corner() -> None:
    mesh, notes = opened(case("o_faces_without_vt_in_textured_material"))
    assert notes == {NoteKind.COORDINATES_MISSING: 12} and len(mesh.faces) == 24
    np.testing.assert_array_equal(
        mesh.uv[mesh.faces[12:]] if mesh.uv[mesh.faces[0]].any() else mesh.uv[mesh.faces[:12]], 0
    )
    assert mesh.face_has_uv.all()
    body = [np.abs(p).max() == 0.5 and s != (0, 1, 0) for s, p in places()]
    found = colors_at(mesh, [point for (_, point), on in zip(places(), body, strict=True) if on])
    wanted = [quadrant(*SIDES[side](*point)) for (side, point), on in zip(places(), body, strict=True) if on]
    np.testing.assert_allclose(found[:, :3], COLORS[wanted], atol=6)


# the same kinds, in other words

LINES = (CASES / "o_bom_in_mtl" / "o_bom_in_mtl.obj").read_text().splitlines()
CUBE = "\n".join(line for line in LINES if line[:2] in ("v ", "vt", "vn", "f "))
TEXTURE = CASES / "textures_shared" / "t.png"


def cube(directory: Path, head: str = "mtllib m.mtl\nusemtl quad\n", mtl: bytes | str = "", tail: str = "") -> Path:
    """The cube with other lines around it; `t.png` beside it."""
    shutil.copy(TEXTURE, directory / "t.png")
    if mtl:
        (directory / "m.mtl").write_bytes(mtl if isinstance(mtl, bytes) else mtl.encode())
    path = directory / "cube.obj"
    path.write_text(f"{head}{CUBE}\n{tail}", newline="")
    return path


QUAD = "newmtl quad\nmap_Kd t.png\n"


@pytest.mark.parametrize(
    ("mtl", "noted"),
    [
        (QUAD.replace("\n", "\r"), {}),
        (QUAD.replace("\n", "\r\n"), {}),
        ("\ufeff# made\n" + QUAD, {}),
        ("NEWMTL quad\nMAP_KD t.png\n", {}),
        ("newmtl quad\n\tmap_Kd\t t.png \t\n", {}),
        ("newmtl quad\nmap_Kd './t.png\n".replace("'", ""), {}),
        ('newmtl quad\nmap_Kd ".\\t.png" # the "wood"\n', {}),
        ("newmtl quad\nKd 0 0 0\nd 0\nd 1 # opaque\nmap_Ka gone.png\nmap_Bump -bm 2 gone.png\nmap_Kd t.png\n", {}),
        ("newmtl quad\nTr 0.0\nmap_Kd t.png\n", {}),
        ("newmtl quad\nTr 1.000000\nmap_Kd t.png\n", {NoteKind.VALUE_CORRECTED: 1}),
        ("newmtl quad\nTr 1\nd 1\nmap_Kd t.png\n", {NoteKind.VALUE_CORRECTED: 1}),
        ("newmtl quad\nd 1\nTr 1\nmap_Kd t.png\n", {}),
        ("newmtl quad\nKd spectral file.rfl 1\nmap_Kd t.png\n", {NoteKind.DATA_IGNORED: 1}),
        ("newmtl quad\nmap_Kd -blendu on -mm 0 1 -s 1 -o 0 0 -texres 64 t.png\n", {}),
        ("newmtl quad\nmap_Kd -t 0.1 0.1 0.1 -S 1 1 1 t.png\n", {NoteKind.DATA_IGNORED: 1}),
        ("newmtl quad\nmap_Kd T.PNG\n", {NoteKind.FILE_FOUND_ELSEWHERE: 1}),
        ("newmtl quad\nmap_Kd file:///C:/a/t.png\n", {NoteKind.FILE_FOUND_ELSEWHERE: 1}),
        ("newmtl quad\nmap_Kd \\\\server\\share\\t.png\n", {NoteKind.FILE_FOUND_ELSEWHERE: 1}),
        ("newmtl quad\nmap_Kd ../../../t.png\n", {NoteKind.FILE_FOUND_ELSEWHERE: 1}),
        ("newmtl Quad\nmap_Kd t.png\nnewmtl other\n", {NoteKind.MATERIAL_MISSING: 1}),
        ("newmtl wood\nmap_Kd t.png\n", {NoteKind.MATERIAL_MISSING: 1}),
        ("newmtl bad\nmap_Kd ../../secret.png\nnewmtl quad\nmap_Kd t.png\n", {}),
    ],
)  # fmt: skip
def test_materials_in_other_words(tmp_path: Path, mtl: str, noted: dict[NoteKind, int]) -> None:
    mesh, notes = opened(cube(tmp_path, mtl=mtl), tmp_path)
    assert notes == noted
    assert mesh.materials[0].base_color == (1, 1, 1, 1)
    assert_cube(mesh)


@pytest.mark.parametrize(
    ("head", "tail", "noted"),
    [
        ("\ufeffmtllib m.mtl\rusemtl quad\r", "", {}),
        ("usemtl quad\n", "mtllib   m.mtl  ", {}),
        ("mtllib gone.mtl\nmtllib m.mtl\nusemtl quad\n", "", {NoteKind.FILE_MISSING: 1}),
        ("mtllib gone.mtl m.mtl\nusemtl quad\n", "", {NoteKind.FILE_MISSING: 1}),
        ('mtllib "m.mtl"\nusemtl quad\n', "", {}),
        ("mtllib M.MTL # mine\nusemtl quad # mine\n", "", {NoteKind.FILE_FOUND_ELSEWHERE: 1}),
        ("mtllib C:\\x\\m.mtl\nusemtl quad\n", "", {NoteKind.FILE_FOUND_ELSEWHERE: 1}),
        ("mtllib m.mtl\n", "", {NoteKind.MATERIAL_MISSING: 1}),
        ("mtllib m.mtl\nusemtl quad\n", "f 1 2\nf\nf 0 1 2\n", {NoteKind.FACES_LEFT_OUT: 3}),
        ("mtllib m.mtl\nusemtl quad\n", "vn -1.#IND 0 1.#INF\nvt -nan(ind) 0\n", {NoteKind.DATA_IGNORED: 2}),
    ],
)  # fmt: skip
def test_objs_in_other_words(tmp_path: Path, head: str, tail: str, noted: dict[NoteKind, int]) -> None:
    mesh, notes = opened(cube(tmp_path, head, QUAD, tail), tmp_path)
    assert notes == noted
    assert len(mesh.faces) == 12
    assert_cube(mesh)


def test_two_libraries_with_spaces_in_their_names(tmp_path: Path) -> None:
    (tmp_path / "my own.mtl").write_text("newmtl other\n")
    (tmp_path / "b c.mtl").write_text(QUAD)
    mesh, notes = opened(cube(tmp_path, "mtllib my own.mtl b c.mtl\nusemtl quad\n"), tmp_path)
    assert not notes
    assert_cube(mesh)
    (tmp_path / "my own.mtl b c.mtl").write_text("newmtl quad\nKd 1 0 0\n")
    mesh, _ = opened(tmp_path / "cube.obj", tmp_path)
    assert not mesh.textures, "the file of the whole name comes first"


def test_unknown_materials_are_white_and_noted(tmp_path: Path) -> None:
    text = QUAD + "newmtl other\nKd 1 0 0\n"
    path = cube(
        tmp_path, "mtllib m.mtl\nusemtl lost\n", text, "usemtl quad\nf 1/1 3/3 4/4\nusemtl gone\nf 1/1 3/3 4/4\n"
    )
    mesh, notes = opened(path, tmp_path)
    assert notes == {NoteKind.MATERIAL_MISSING: 2}
    np.testing.assert_allclose(side_colors(mesh), 255)


def test_a_library_that_is_lost_rejects_what_it_would_have_coloured(tmp_path: Path) -> None:
    for head in ("mtllib lost.mtl\n", "mtllib m.mtl\nmtllib lost.mtl\nusemtl else\n"):
        found = load_mesh(cube(tmp_path, head, QUAD))
        assert isinstance(found, Rejected) and found.reason == Reason.MISSING_FILE and "lost.mtl" in found.detail


def test_most_of_a_surface_needs_coordinates(tmp_path: Path) -> None:
    path = cube(tmp_path, mtl=QUAD)
    bare = re.sub(r"(\d+)/\d+/\d+", r"\1", path.read_text())
    path.write_text(bare)
    found = load_mesh(path)
    assert isinstance(found, Rejected) and found.reason == Reason.INVALID_STRUCTURE and "without vt" in found.detail


def test_a_file_that_counts_from_0_is_not_read_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 0 1 2\nf 1 2 3\n")
    found = load_mesh(path)
    assert isinstance(found, Rejected) and found.reason == Reason.INDEX_OUT_OF_RANGE


def test_map_d_alone_beside_kd_and_of_another_size(tmp_path: Path) -> None:
    mask = np.full((8, 8), 255, np.uint8)
    mask[:4, :4] = 0
    Image.fromarray(mask).save(tmp_path / "a.png")
    mesh, _ = opened(cube(tmp_path, mtl="newmtl quad\nKd 1 0 0\nd 0\nmap_d -imfchan l a.png\n"), tmp_path)
    found = colors_at(mesh, [point for _, point in places()])
    wanted = np.array([quadrant(*SIDES[side](*point)) for side, point in places()])
    np.testing.assert_array_equal(found[:, 3], wanted != 0)
    np.testing.assert_allclose(found[wanted != 0, :3], [[255, 0, 0]] * int((wanted != 0).sum()), atol=1)
    assert_cube(opened(cube(tmp_path, mtl=QUAD + "map_d a.png\n"), tmp_path)[0], hole=0)
    Image.fromarray(np.dstack([255 - mask] * 3 + [mask])).save(tmp_path / "a.png")
    assert_cube(opened(tmp_path / "cube.obj", tmp_path)[0], hole=0)  # alpha before grey
    (tmp_path / "m.mtl").write_text(QUAD + "map_d -imfchan r a.png\n")
    with pytest.raises(AssertionError):
        assert_cube(opened(tmp_path / "cube.obj", tmp_path)[0], hole=0)
    (tmp_path / "m.mtl").write_text(QUAD + "map_d t.png\n")
    assert_cube(opened(tmp_path / "cube.obj", tmp_path)[0])  # no alpha, so that it masks nothing of itself
    (tmp_path / "m.mtl").write_text("newmtl quad\nmap_Kd -s 2 2 1 t.png\nmap_d a.png\n")
    mesh, notes = opened(tmp_path / "cube.obj", tmp_path)
    assert notes == {NoteKind.DATA_IGNORED: 1}


def test_a_clamped_map_that_is_shifted(tmp_path: Path) -> None:
    mesh, _ = opened(cube(tmp_path, mtl="newmtl quad\nmap_Kd -clamp on -o 0.5 0 0 t.png\n"), tmp_path)
    found = colors_at(mesh, [[0.3, 0.3, 0.5], [-0.3, 0.3, 0.5]])  # u 1.3 and 0.7: both the right edge's colour
    np.testing.assert_allclose(found[:, :3], [COLORS[1]] * 2, atol=2)


def test_colours_of_an_mtl_that_are_counted_to_255(tmp_path: Path) -> None:
    mesh, notes = opened(cube(tmp_path, mtl="newmtl quad\nKd 255 51 0\n"), tmp_path)
    assert notes == {NoteKind.VALUE_CORRECTED: 1}
    np.testing.assert_allclose(side_colors(mesh), [[255, 51, 0]] * 6, atol=1)
    np.testing.assert_allclose(mesh.materials[0].base_color[1], srgb_to_linear(np.float32([0.2]))[0], rtol=1e-5)


@pytest.mark.parametrize("turn", range(5))
def test_polygons_around_any_corner(tmp_path: Path, turn: int) -> None:
    """A plane tilted in space, an arrow head as a quad, a U of eight corners, and a bow tie, which is noted."""
    shapes = {
        0.25: [(0, 0), (1, 0.5), (0, 1), (0.5, 0.5)],
        7 / 9: [(0, 0), (1, 0), (1, 1), (2 / 3, 1), (2 / 3, 1 / 3), (1 / 3, 1 / 3), (1 / 3, 1), (0, 1)],
    }
    basis = np.array([[1, 2, 2], [2, 1, -2]]) / 3
    for area, corners in shapes.items():
        ring = np.roll(np.array(corners) @ basis, turn, axis=0) + np.array([5, 6, 7])
        path = tmp_path / "a.obj"
        text = "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in ring.tolist())
        path.write_text(text + "f " + " ".join(str(i + 1) for i in range(len(ring))) + "\n")
        mesh, notes = opened(path, tmp_path)
        at = mesh.vertices[mesh.faces].astype(np.float64)
        normals = np.cross(at[:, 1] - at[:, 0], at[:, 2] - at[:, 0]) / 2
        assert not notes and len(mesh.faces) == len(ring) - 2
        assert np.linalg.norm(normals, axis=1).sum() == pytest.approx(area, rel=1e-5)
        assert (normals @ np.cross(*basis) > -1e-9).all()
    path.write_text("v 0 0 0\nv 1 1 0\nv 1 0 0\nv 0 2 0\nf 1 2 3 4\n")
    mesh, notes = opened(path, tmp_path)
    assert notes == {NoteKind.VALUE_CORRECTED: 1} and len(mesh.faces) == 2


def test_convex_polygons_stay_fans(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    angles = np.linspace(0, 2 * np.pi, 7, endpoint=False)
    path.write_text("".join(f"v {np.cos(a)} {np.sin(a)} 0\n" for a in angles) + "f 3 4 5 6 7 1 2\n")
    mesh, _ = opened(path, tmp_path)
    first = mesh.vertices[mesh.faces[:, 0]]
    np.testing.assert_allclose(first, [[np.cos(angles[2]), np.sin(angles[2]), 0]] * 5, atol=1e-6)


def test_facts_count_what_is_drawn(tmp_path: Path) -> None:
    found = load_asset(cube(tmp_path, mtl=QUAD, tail="f 1 2\n"), PreflightConfig(), tmp_path)
    assert not isinstance(found, Rejected)
    assert isinstance(found[0], AssetFacts) and found[0].faces == 12 and found[0].images == 1
