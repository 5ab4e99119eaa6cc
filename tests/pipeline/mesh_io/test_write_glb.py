"""Written files: what two readers make of them, and that they are written whole."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from geometry.frames import normalise
from pipeline.filter.measure_mesh import measure
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig
from pipeline.mesh_io.write_glb import write_glb
from schemas.mesh import AlphaMode, TexturedMesh, UvMesh
from tests.support.small_gltf import QUADRANTS, box, preflight


def uv_box(directory: Path) -> tuple[TexturedMesh, UvMesh, TexturedMesh]:
    """A box that is not at the origin, as loaded, in the dataset frame as a `UvMesh`, and normalised."""
    builder = box()
    builder.tree["nodes"][0] |= {"translation": [10, 20, 30], "scale": [1, 4, 2]}
    path = directory / "source.glb"
    path.write_bytes(builder.glb())
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh)
    normal, _ = normalise(mesh)
    uv_mesh = UvMesh(
        vertices=normal.vertices, normals=normal.normals, uv=normal.uv, faces=normal.faces, layout="authored"
    )
    return mesh, uv_mesh, normal


def test_written_file_is_the_asset_again(tmp_path: Path) -> None:
    mesh, uv_mesh, _ = uv_box(tmp_path)
    _, frame = normalise(mesh)
    path = tmp_path / "out.glb"
    write_glb(path, uv_mesh, QUADRANTS, frame)
    assert isinstance(preflight(path, PreflightConfig()), AssetFacts)
    again = load_mesh(path)
    assert isinstance(again, TexturedMesh)
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-4)
    np.testing.assert_allclose(again.normals, mesh.normals, atol=1e-6)
    np.testing.assert_allclose(again.uv, mesh.uv, atol=1e-6)
    np.testing.assert_array_equal(again.faces, mesh.faces)
    np.testing.assert_array_equal(again.textures[0].image[..., :3], QUADRANTS)
    assert again.materials[0].double_sided


def test_another_reader_sees_it_upright(tmp_path: Path) -> None:
    """Without a frame: dataset size, still Y up in the file. The tallest side of the box is glTF's Y, and the top of
    the picture (red and green) is where y is largest."""
    _, uv_mesh, _ = uv_box(tmp_path)
    path = tmp_path / "out.glb"
    write_glb(path, uv_mesh, QUADRANTS, None)
    other = trimesh.load(path, force="mesh", process=False)
    np.testing.assert_allclose(other.extents, [0.5, 2, 1], atol=1e-6)
    assert other.volume == pytest.approx(1.0)
    picture = np.asarray(other.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_array_equal(picture, QUADRANTS)
    top = other.vertices[:, 1] > 0.99
    np.testing.assert_allclose(other.visual.uv[top, 1], 1, atol=1e-6)  # trimesh has v up, as we do
    np.testing.assert_allclose(other.visual.uv[~top, 1], 0, atol=1e-6)


def test_holes_are_written_and_read_again(tmp_path: Path) -> None:
    _, uv_mesh, _ = uv_box(tmp_path)
    opacity = np.linspace(0, 255, QUADRANTS[..., 0].size).astype(np.uint8).reshape(QUADRANTS.shape[:2])
    write_glb(tmp_path / "out.glb", uv_mesh, QUADRANTS, None, opacity)
    again = load_mesh(tmp_path / "out.glb")
    assert isinstance(again, TexturedMesh)
    np.testing.assert_array_equal(again.textures[0].image, np.dstack([QUADRANTS, opacity]))
    assert again.materials[0].alpha_mode is AlphaMode.MASK and again.materials[0].alpha_cutoff == 0.5


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, uv_mesh, _ = uv_box(tmp_path)
    path = tmp_path / "out.glb"
    path.write_bytes(b"what was there before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_glb(path, uv_mesh, QUADRANTS, None)
    assert path.read_bytes() == b"what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.glb", "source.glb"]


def test_material_is_unlit_friendly_and_bytes_repeat(tmp_path: Path) -> None:
    _, uv_mesh, _ = uv_box(tmp_path)
    for name in ("a.glb", "b.glb"):
        write_glb(tmp_path / name, uv_mesh, QUADRANTS, None)
    data = (tmp_path / "a.glb").read_bytes()
    assert data == (tmp_path / "b.glb").read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    (material,) = json.loads(data[20 : 20 + length])["materials"]
    assert material["doubleSided"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 1


@pytest.mark.parametrize("single", [range(12), range(0, 12, 2)], ids=["all", "some"])
def test_single_sided_faces_stay_so(tmp_path: Path, single: range) -> None:
    _, uv_mesh, normal = uv_box(tmp_path)
    chosen = np.isin(np.arange(12), single)
    write_glb(tmp_path / "out.glb", replace(uv_mesh, single_sided=chosen), QUADRANTS, None)
    again = load_mesh(tmp_path / "out.glb")
    assert isinstance(again, TexturedMesh)
    order = np.concatenate([np.flatnonzero(~chosen), np.flatnonzero(chosen)])
    np.testing.assert_array_equal(again.single_sided, chosen[order])
    np.testing.assert_allclose(again.uv[again.faces], normal.uv[normal.faces[order]], atol=1e-6)
    assert len(again.textures) == 1


def test_an_asset_far_from_its_origin_is_written_to_its_place(tmp_path: Path) -> None:
    """Its node carries the distance in double precision, so that the file, read again, has the same place and shape."""
    exact = np.array(
        [[500000.123, 100.5, 4649776.25], [500010.377, 100.5, 4649776.25], [500000.123, 103.25, 4649781.5]]
    )
    source, path = tmp_path / "a.obj", tmp_path / "out.glb"
    source.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in exact.tolist()) + "f 1 2 3\n")
    mesh = load_mesh(source)
    assert isinstance(mesh, TexturedMesh)
    normal, frame = normalise(mesh)
    layout = np.zeros((3, 2), np.float32)
    uv_mesh = UvMesh(vertices=normal.vertices, normals=normal.normals, uv=layout, faces=normal.faces, layout="authored")
    write_glb(path, uv_mesh, QUADRANTS, frame)
    again = load_mesh(path)
    assert isinstance(again, TexturedMesh)
    for found in (mesh, again):
        places = (found.vertices + np.array(found.offset))[found.faces[0]]
        np.testing.assert_allclose(places, exact, atol=1e-5, rtol=0)
    np.testing.assert_allclose((measure(mesh).size_x, measure(mesh).size_y), (10.254, 2.75), atol=1e-5)
