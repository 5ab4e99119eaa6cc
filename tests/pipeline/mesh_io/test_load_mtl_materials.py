"""Materials of OBJ files: constants, maps, normal maps and heights of an MTL, and the files that they lie in."""

from pathlib import Path

import numpy as np
import pytest

from geometry.texture import srgb_to_linear
from pipeline.asset import process_asset
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.side_files import asset_sha256, side_files
from pipeline.sources.folder import folder
from schemas.ledger import NoteKind, Reason, Rejected
from schemas.mesh import Layer, TexturedMesh, Wrap
from schemas.sample import TextureSample
from tests.pipeline.render.test_materials import CFG, assert_normals, maps_of, speckled
from tests.support.small_gltf import png

OBJ = """mtllib m.mtl
v -1 -1 0
v 1 -1 0
v 1 1 0
v -1 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl a
f 1/1 2/2 3/3
usemtl b
f 1/1 3/3 4/4
"""
"""A square that looks towards +Z, half of it of each material."""
IDENTITY = [[0, 0], [1, 0], [1, 1], [0, 1]]


def write(folder: Path, a: str, b: str = "", **images: np.ndarray) -> Path:
    (folder / "m.mtl").write_text(f"newmtl a\n{a}\nnewmtl b\n{b}\n")
    (folder / "x.obj").write_text(OBJ)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(png(image.astype(np.uint8)))
    return folder / "x.obj"


def opened(path: Path, shading: bool = False) -> tuple[TexturedMesh, dict[NoteKind, str]]:
    found = load_asset(path, PreflightConfig(), shading=shading, materials=True)
    assert not isinstance(found, Rejected), found
    facts, mesh = found
    assert isinstance(mesh, TexturedMesh) and mesh.layers is not None, mesh
    return mesh, {note.kind: note.detail for note in facts.notes}


def grey(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def pixels_of(mesh: TexturedMesh, layer: Layer, material: int = 0) -> np.ndarray:
    number = layer.textures[material]
    assert number is not None
    return mesh.textures[number].image


def coordinates(mesh: TexturedMesh, layer: Layer, material: int) -> dict[tuple[float, float], tuple[float, float]]:
    """Coordinates of a layer by the place of the corner, (0, 0) to (1, 1), on the faces of a material."""
    corners = mesh.faces[mesh.face_material == material].ravel()
    places = ((mesh.vertices[corners, :2] + 1) / 2).round(4).tolist()
    return {(x, y): (u, v) for (x, y), (u, v) in zip(places, layer.uv[corners].round(4).tolist(), strict=True)}


def test_constants(tmp_path):
    """Pr, Pm and Ke, without them Ns; Ke is sRGB-encoded, and a strength beyond 1."""
    a = "Ns 6\nPr 0.25\nPm 0.75\nKe 0.5 0 1"
    mesh, notes = opened(write(tmp_path, a, "Ns 6\nKe 4 2 0"), shading=True)
    layers = mesh.layers
    np.testing.assert_allclose(layers.metallic_roughness.factors, [[1, 0.25, 0.75], [1, 0.5, 0]], atol=1e-6)
    half = float(srgb_to_linear(np.float32([0.5]))[0])
    assert layers.emissive_strength == 4.0
    np.testing.assert_allclose(layers.emissive.factors * 4, [[half, 0, 1], [4, 4 * half, 0]], atol=1e-6)
    assert layers.metallic_roughness.textures == (None, None) and not notes
    assert mesh.materials[0].shading.metallic == 0.75 and mesh.materials[0].shading.roughness == 0.25


@pytest.mark.parametrize(
    "words", ["Pr rough", "Pr nan", "Pr", "map_Pr gone.png", "map_Pr -s nan 1 1 r.png", "norm x.png"]
)
def test_what_cannot_be_read_is_noted_and_counts_as_absent(tmp_path, words):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    mesh, notes = opened(write(tmp_path, f"Ns 6\n{words}", r=grey(9)))
    np.testing.assert_allclose(mesh.layers.metallic_roughness.factors[0], [1, 0.5, 0])
    assert mesh.layers.normal.textures[0] is None and mesh.layers.metallic_roughness.textures[0] is None
    assert notes.keys() == ({NoteKind.DATA_IGNORED} if words != "Pr" else set())


def test_maps_of_roughness_and_metal_become_one(tmp_path):
    """Each replaces its value and may have a size of its own; what has no map keeps its constant."""
    mesh, notes = opened(
        write(
            tmp_path, "Pr 0.1\nPm 0.2\nmap_Pr r.png\nmap_Pm m.png", "Pm 0.5\nmap_Pr r.png", r=grey(60), m=grey(200, 8)
        )
    )
    layer = mesh.layers.metallic_roughness
    both, rough = pixels_of(mesh, layer, 0), pixels_of(mesh, layer, 1)
    assert both.shape == (8, 8, 4) and (both[..., 1] == 60).all() and (both[..., 2] == 200).all()
    assert (rough[..., 1] == 60).all() and (rough[..., 2] == 255).all()
    np.testing.assert_allclose(layer.factors, [[1, 1, 1], [1, 1, 0.5]])
    assert not notes


def test_channels_of_a_packed_picture(tmp_path):
    """-imfchan decides; without it one file for both has glTF's channels."""
    packed = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    a, b = "map_Pr p.png\nmap_Pm p.png", "map_Pr -imfchan b p.png\nmap_Pm -imfchan r p.png"
    mesh, _ = opened(write(tmp_path, a, b, p=packed))
    found = [pixels_of(mesh, mesh.layers.metallic_roughness, number)[0, 0, 1:3].tolist() for number in (0, 1)]
    assert found == [[20, 30], [30, 10]]


def test_maps_have_coordinates_and_edges_of_their_own(tmp_path):
    """-s and -o of the colour, the roughness and the emitted light differ, and the materials share corners."""
    a = "map_Kd -s 3 3 1 k.png\nmap_Pr -s 2 4 1 -o 0.5 0 0 -clamp on r.png\nmap_Ke -o 0.25 0.5 0 e.png"
    path = write(tmp_path, a, "map_Pr r.png", k=grey(90), r=grey(60), e=np.full((4, 4, 3), (255, 0, 0)))
    mesh, notes = opened(path, shading=True)
    layers = mesh.layers
    corners = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    rough = coordinates(mesh, layers.metallic_roughness, 0)
    assert [rough[c] for c in corners] == [(2 * x + 0.5, 4 * y) for x, y in corners]
    assert [coordinates(mesh, layers.emissive, 0)[c] for c in corners] == [(x + 0.25, y + 0.5) for x, y in corners]
    assert coordinates(mesh, layers.metallic_roughness, 1) == {(x, y): (x, y) for x, y in [(0, 0), (1, 1), (0, 1)]}
    assert {mesh.textures[n].wrap_u for n in layers.metallic_roughness.textures} == {Wrap.CLAMP, Wrap.REPEAT}
    np.testing.assert_allclose(layers.emissive.factors, [[1, 1, 1], [0, 0, 0]])
    assert not notes
    seen = [material.shading.metallic_roughness for material in mesh.materials]
    assert seen[0] is None and seen[1] is not None, "lit views look maps up on the coordinates of the colour alone"


def test_two_maps_that_lie_apart_cannot_be_one(tmp_path):
    mesh, notes = opened(write(tmp_path, "Pm 0.5\nmap_Pr r.png\nmap_Pm -s 2 2 1 r.png", r=grey(60)))
    np.testing.assert_allclose(mesh.layers.metallic_roughness.factors[0], [1, 1, 0.5])
    assert "map_Pm has another" in notes[NoteKind.DATA_IGNORED]


@pytest.mark.parametrize("keyword", ["norm", "map_Kn", "map_Bump", "bump"])
def test_a_normal_map_whatever_its_keyword(tmp_path, keyword):
    """Some exporters (Blender's) write normal maps as map_Bump: read as one, and noted. -bm scales its slope."""
    slanted = np.full((4, 4, 3), np.rint((np.array([0.6, 0, 0.8]) + 1) * 127.5), np.uint8)
    mesh, notes = opened(write(tmp_path, f"{keyword} -bm 0.5 n.png", n=slanted))
    np.testing.assert_array_equal(pixels_of(mesh, mesh.layers.normal)[..., :3], slanted)
    np.testing.assert_allclose(mesh.layers.normal_scale, [0.5, 1])
    np.testing.assert_allclose(mesh.layers.tangents[0], np.tile([1.0, 0, 0, 1], (3, 1)), atol=1e-6)
    assert notes.keys() == ({NoteKind.VALUE_CORRECTED} if "ump" in keyword else set())


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_heights_become_normals(tmp_path, strength):
    """The slopes of a wave against its derivatives: up the picture is +v, towards which green points."""
    rows, columns = np.mgrid[:64, :64] / 64
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * columns) * np.cos(2 * np.pi * rows)
    picture = np.rint(wave * 255)[..., None].repeat(3, axis=2)
    mesh, notes = opened(write(tmp_path, f"map_Bump -bm {strength} h.png", h=picture))
    found = pixels_of(mesh, mesh.layers.normal)[..., :3] / 127.5 - 1
    across = 0.4 * np.cos(2 * np.pi * columns) * np.cos(2 * np.pi * rows) * 2 * np.pi / 64
    upwards = 0.4 * np.sin(2 * np.pi * columns) * np.sin(2 * np.pi * rows) * 2 * np.pi / 64
    expected = np.dstack([-across * strength, -upwards * strength, np.ones_like(rows)])
    expected /= np.linalg.norm(expected, axis=2, keepdims=True)
    found /= np.linalg.norm(found, axis=2, keepdims=True)
    angles = np.degrees(np.arccos(np.clip((found * expected).sum(axis=2), -1, 1)))
    assert np.quantile(angles, 0.99) < 1.0 and angles.max() < 2.0
    assert np.degrees(np.arccos(expected[..., 2].min())) > 2 * strength and not notes


def test_heights_at_the_edge(tmp_path):
    """A ramp has its slope up to a clamped edge, and a step at one that repeats."""
    ramp = (np.arange(8) * 30)[None, :, None].repeat(8, axis=0).repeat(3, axis=2)
    mesh, _ = opened(write(tmp_path, "bump -clamp on h.png", "bump h.png", h=ramp))
    clamped, repeated = (pixels_of(mesh, mesh.layers.normal, number)[0, :, 0] / 127.5 - 1 for number in (0, 1))
    assert (clamped[1:-1] < -0.1).all() and clamped[0] < 0 and clamped[-1] < 0
    assert repeated[0] > 0.2 and repeated[-1] > 0.2


def test_maps_without_coordinates_are_noted(tmp_path):
    path = write(tmp_path, "Pr 0.25\nmap_Pr r.png", r=grey(60))
    path.write_text(OBJ.replace("f 1/1 2/2 3/3", "f 1 2 3"))
    mesh, notes = opened(path)
    np.testing.assert_allclose(mesh.layers.metallic_roughness.factors[0], [1, 0.25, 0])
    assert "without vt" in notes[NoteKind.DATA_IGNORED]


def test_nothing_changes_without_materials(tmp_path):
    """Neither the mesh nor the notes: damaged lines and files count for nothing there."""
    a = "map_Pr gone.png\nPr nan\nnorm -s nan 1 1 gone.png\nKe x\nmap_Kd k.png\nmap_Bump ../../leaves.png"
    found = load_asset(write(tmp_path, a, k=grey(90)), PreflightConfig())
    assert not isinstance(found, Rejected)
    facts, mesh = found
    assert isinstance(mesh, TexturedMesh) and not facts.notes and len(mesh.vertices) == 4 and len(mesh.textures) == 1


def test_a_map_outside_the_folder_rejects(tmp_path):
    """A base colour's map rejects likewise (`NEVER_NOTED`)."""
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "r.png").write_bytes(png(grey(60)))
    (inside / "link.png").symlink_to(tmp_path / "r.png")
    for name in ("../r.png", "link.png"):
        found = load_asset(write(inside, f"map_Pr {name}"), PreflightConfig(), materials=True)
        assert isinstance(found, Rejected) or isinstance(found[1], Rejected)
        reason = found.reason if isinstance(found, Rejected) else found[1].reason
        assert reason is Reason.UNSAFE_URI


def test_maps_belong_to_the_identity_of_an_asset(tmp_path):
    keywords = ("map_Pr", "map_Pm", "map_Ke", "norm", "map_Bump")
    lines = "\n".join(f"{keyword} {number}.png" for number, keyword in enumerate(keywords))
    path = write(tmp_path, lines, **{str(number): grey(60 + number) for number in range(len(keywords))})
    listed = {file.name for file in side_files(path)}
    assert listed == {"m.mtl", *(f"{number}.png" for number in range(len(keywords)))}
    before = asset_sha256(path, side_files(path))
    for number in range(len(keywords)):
        content = (tmp_path / f"{number}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(png(grey(9)))
        assert asset_sha256(path, side_files(path)) != before
        (tmp_path / f"{number}.png").write_bytes(content)
    assert asset_sha256(path, side_files(path)) == before


def test_images_count_against_the_limit(tmp_path):
    path = write(tmp_path, "map_Pr r.png", r=grey(60, 64))
    found = load_asset(path, PreflightConfig(max_image_bytes=1000), materials=True)
    assert not isinstance(found, Rejected) and isinstance(found[1], Rejected)
    assert found[1].reason is Reason.TOO_LARGE and "map_pr 'r.png'" in found[1].detail


def test_emitted_light_of_a_map_is_a_colour(tmp_path):
    mesh, _ = opened(write(tmp_path, "Ke 0 0 0\nmap_Ke e.png", e=np.full((4, 4, 3), (250, 128, 3))))
    np.testing.assert_array_equal(pixels_of(mesh, mesh.layers.emissive)[0, 0, :3], [250, 128, 3])
    np.testing.assert_array_equal(mesh.layers.emissive.factors[0], 1.0)


def test_a_sample_of_an_obj_holds_and_proves_its_materials(tmp_path):
    """From the file to the baked maps: left and right halves, bent normals, emitted light."""
    halves = np.concatenate([grey(60, 16), grey(200, 16)], axis=1)
    bent = np.rint((np.array([0.6, 0, 0.8]) + 1) * 127.5)
    words = "map_Kd k.png\nPm 0.5\nmap_Pr r.png\nnorm n.png\nKe 0.5 0 0"
    images = {"k": speckled(), "r": halves, "n": np.tile(bent, (16, 16, 1))}
    path = write(tmp_path, words, words, **images)
    (ref,) = folder(tmp_path)
    assert ref.sha256 == asset_sha256(path, side_files(path))
    processed = process_asset(ref, CFG)
    assert isinstance(processed.result, TextureSample) and processed.result.uv is not None, processed
    maps = maps_of(processed.result)
    left, right = maps.metallic_roughness[:, 4:60].astype(int), maps.metallic_roughness[:, 68:124].astype(int)
    assert np.abs(left - [128, 60]).max() <= 2 and np.abs(right - [128, 200]).max() <= 2
    assert np.abs(maps.emissive.astype(int) - [128, 0, 0]).max() <= 1
    assert_normals(processed.result, np.array([0.6, 0, 0.8]))
    assert processed.measurements.roughness_psnr > 30 and processed.measurements.normal_error_deg < 0.5
    (tmp_path / "n.png").write_bytes(png(grey(9)))
    changed = process_asset(ref, CFG)
    assert isinstance(changed.result, Rejected) and changed.result.reason is Reason.INPUT_CHANGED


def test_a_map_that_is_a_folder_counts_as_missing(tmp_path):
    (tmp_path / "maps").mkdir()
    for words in ("map_Kd maps", "map_Pr maps"):
        path = write(tmp_path, words)
        assert tmp_path / "maps" in side_files(path)
        assert asset_sha256(path, side_files(path)) == asset_sha256(path, side_files(path)) is not None
