"""Compressed geometry and textures, against what other programs decode (tests/assets/make_compressed.mjs)."""

import base64
import json
from pathlib import Path
from typing import Any

import DracoPy
import meshopt
import numpy as np
import pytest

from pipeline.mesh_io.gltf.buffers import MESHOPT, ViewReader
from pipeline.mesh_io.gltf.json_fields import Json
from pipeline.mesh_io.images import decode_image
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig
from pipeline.mesh_io.problems import AssetError, Notes
from schemas.ledger import Reason, Rejected
from schemas.mesh import TexturedMesh
from tests.pipeline.mesh_io.test_load import signed_volume
from tests.support.small_gltf import BOX_FACES, CORNERS, Builder, box, loaded, preflight, primitive, refused

ASSETS = Path(__file__).resolve().parents[2] / "assets"
STREAMS = {case["name"]: case for case in json.loads((ASSETS / "meshopt.json").read_text())}
KTX2 = ["etc1s", "uastc", "uastc_zstd"]


def test_draco(tmp_path: Path) -> None:
    builder = box()
    stream = DracoPy.encode(CORNERS, BOX_FACES.astype(np.uint32), preserve_order=True, quantization_bits=16)
    view = builder.view(stream)
    entry = primitive(builder)
    entry["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": view, "attributes": {"POSITION": 0}}}
    entry["attributes"] = {"POSITION": entry["attributes"]["POSITION"]}
    entry.pop("material")
    for name in (0, 2):
        builder.tree["accessors"][name].pop("bufferView")
    builder.tree["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    mesh = loaded(tmp_path, builder)
    key = sorted(map(tuple, np.sort(mesh.vertices[mesh.faces].round(3).reshape(12, 9), axis=1).tolist()))
    expected = sorted(map(tuple, np.sort(CORNERS[BOX_FACES].reshape(12, 9), axis=1).tolist()))
    np.testing.assert_allclose(key, expected, atol=1e-2)
    assert signed_volume(mesh) == pytest.approx(8, rel=1e-3)
    builder.data = builder.data[: -len(stream)] + stream[:20] + b"\0" * (len(stream) - 20)
    assert refused(tmp_path, builder) in (Reason.LOAD_ERROR, Reason.INVALID_STRUCTURE, Reason.NON_FINITE)


@pytest.mark.parametrize("joint", [0, 1, 2, 2**32, -1, -0.5])
def test_joints_out_of_a_stream_are_those_of_the_skin(tmp_path: Path, joint: float) -> None:
    """A stream may hold any number where its accessor promises small ones."""
    builder = box()
    entry = primitive(builder)
    joints, weights = np.zeros((8, 4), np.float32), np.tile(np.float32([1, 0, 0, 0]), (8, 1))
    joints[3, 2] = joint
    stream = DracoPy.encode(
        CORNERS, BOX_FACES.astype(np.uint32), preserve_order=True, generic_attributes={1: joints, 2: weights}
    )
    numbers = {"POSITION": 3, "JOINTS_0": 1, "WEIGHTS_0": 2}
    entry["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": builder.view(stream), "attributes": numbers}}
    attributes = {"POSITION": entry["attributes"]["POSITION"]}
    attributes["JOINTS_0"] = builder.accessor(np.zeros((8, 4), np.uint8))
    attributes["WEIGHTS_0"] = builder.accessor(weights)
    entry["attributes"] = attributes
    entry.pop("material")
    for number in attributes.values():
        builder.tree["accessors"][number].pop("bufferView")
    builder.tree["nodes"] = [{"mesh": 0, "skin": 0}, {}, {}]
    builder.tree["skins"] = [{"joints": [1, 2]}]
    if joint in (0, 1):
        assert len(loaded(tmp_path, builder).faces) == 12
    else:
        assert refused(tmp_path, builder) is Reason.INDEX_OUT_OF_RANGE


def view_of(
    case: dict[str, Any], encoded: bytes, extension: str = "EXT_meshopt_compression", **changes: object
) -> bytes:
    """Return the bytes that the reader gives for a compressed view of this one stream."""
    stated = {key: case[key] for key in ("mode", "filter", "count", "byteStride")} | changes
    entry = {
        "buffer": 1,
        "byteLength": case["count"] * case["byteStride"],
        "extensions": {extension: stated | {"buffer": 0, "byteLength": len(encoded)}},
    }
    return bytes(ViewReader([memoryview(encoded), None], 2**20, Notes())(Json(entry, "bufferViews[0]")).data)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("extension", MESHOPT)
def test_meshopt_streams(name: str, extension: str) -> None:
    case = STREAMS[name]
    found = np.frombuffer(view_of(case, base64.b64decode(case["encoded"]), extension), np.uint8)
    expected = np.frombuffer(base64.b64decode(case["decoded"]), np.uint8)
    if case["filter"] in ("OCTAHEDRAL", "QUATERNION", "COLOR"):  # rounding may differ by one unit
        kind = np.int8 if case["byteStride"] == 4 else np.int16
        assert np.abs(found.view(kind).astype(int) - expected.view(kind).astype(int)).max() <= 1
        assert len(np.unique(expected.view(kind))) > 10
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("plain 12 v0", {"mode": "VERTICES"}),
        ("plain 12 v0", {"filter": "SEPIA"}),
        ("plain 12 v0", {"filter": "OCTAHEDRAL"}),
        ("plain 12 v0", {"byteStride": 6}),
        ("plain 12 v0", {"count": 19}),
        ("triangles 2", {"filter": "EXPONENTIAL"}),
        ("triangles 2", {"byteStride": 8}),
        ("plain 12 v0", {"count": 2**40}),
    ],
)
def test_meshopt_views_that_contradict_themselves(name: str, changes: dict[str, object]) -> None:
    case = STREAMS[name]
    with pytest.raises(AssetError) as caught:
        view_of(case, base64.b64decode(case["encoded"]), **changes)
    assert caught.value.rejected.reason == Reason.INVALID_STRUCTURE


@pytest.mark.parametrize("name", ["plain 12 v1", "triangles 4", "indices 2", "normals 8"])
def test_meshopt_streams_cut_anywhere(name: str) -> None:
    encoded = base64.b64decode(STREAMS[name]["encoded"])
    for end in range(len(encoded)):
        with pytest.raises(AssetError) as caught:
            view_of(STREAMS[name], encoded[:end])
        assert caught.value.rejected.reason in (Reason.LOAD_ERROR, Reason.INVALID_STRUCTURE)


def compressed_box() -> Builder:
    builder = box()
    points = builder.compressed(meshopt.encode_gltf_buffer(CORNERS, "ATTRIBUTES"), 8, 12, "ATTRIBUTES")
    corners = builder.compressed(meshopt.encode_gltf_buffer(BOX_FACES.reshape(-1), "TRIANGLES"), 36, 2, "TRIANGLES")
    builder.tree["accessors"][0]["bufferView"] = points
    builder.tree["accessors"][2]["bufferView"] = corners
    builder.tree["extensionsRequired"] = ["EXT_meshopt_compression"]
    return builder


def test_a_mesh_in_meshopt_streams(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, compressed_box())
    key = np.sort(mesh.vertices[mesh.faces].reshape(12, 9), axis=1)
    expected = np.sort(CORNERS[BOX_FACES].reshape(12, 9), axis=1)
    assert sorted(map(tuple, key.tolist())) == sorted(map(tuple, expected.tolist()))
    assert signed_volume(mesh) == pytest.approx(8)


def test_what_streams_decode_to_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "asset.glb"
    builder = compressed_box()
    rows = np.zeros((20_000, 128), np.uint8)
    view = builder.compressed(meshopt.encode_gltf_buffer(rows, "ATTRIBUTES"), 20_000, 128, "ATTRIBUTES")
    builder.tree["accessors"].append({"bufferView": view, "componentType": 5126, "type": "VEC3", "count": 20_000})
    assert len(builder.glb()) < 1_000_000
    path.write_bytes(builder.glb())
    assert isinstance(preflight(path, PreflightConfig(max_file_bytes=1_000_000)), AssetFacts)  # nobody asks for it
    builder.tree["meshes"].append({"primitives": [{"attributes": {"POSITION": len(builder.tree["accessors"]) - 1}}]})
    builder.tree["nodes"][0]["mesh"] = 1
    path.write_bytes(builder.glb())
    found = preflight(path, PreflightConfig(max_file_bytes=1_000_000))
    assert isinstance(found, Rejected) and found.reason == Reason.TOO_LARGE
    assert isinstance(preflight(path, PreflightConfig()), AssetFacts)


def ktx2_box(encoded: bytes) -> Builder:
    builder = box()
    builder.tree["textures"] = [
        {"extensions": {"KHR_texture_basisu": {"source": builder.image(encoded, "image/ktx2")}}}
    ]
    builder.tree["extensionsRequired"] = ["KHR_texture_basisu"]
    return builder


@pytest.mark.parametrize("name", KTX2)
def test_ktx2_textures(tmp_path: Path, name: str) -> None:
    image = loaded(tmp_path, ktx2_box((ASSETS / f"{name}.ktx2").read_bytes())).textures[0].image
    expected = np.zeros((8, 16, 4), int)
    expected[:4, :8], expected[:4, 8:] = (255, 0, 0, 255), (0, 255, 0, 64)
    expected[4:, :8], expected[4:, 8:] = (0, 0, 255, 255), (255, 255, 255, 64)
    assert image.shape == (8, 16, 4)
    assert np.abs(image.astype(int) - expected).max() <= 12  # lossy


@pytest.mark.parametrize("name", KTX2)
def test_ktx2_textures_cut_anywhere(name: str) -> None:
    encoded = (ASSETS / f"{name}.ktx2").read_bytes()
    whole = decode_image(encoded, "image")
    for end in range(0, len(encoded), 3):
        try:
            found = decode_image(encoded[:end], "image")
        except AssetError as fault:
            assert fault.rejected.reason == Reason.BAD_IMAGE
        else:
            np.testing.assert_array_equal(found, whole)  # what was lost belongs to smaller levels


@pytest.mark.parametrize(
    ("at", "value"),
    [(12, 37), (28, 4), (32, 2), (36, 6), (44, 3), (20, 2**20), (20, 0), (80, 2**40), (88, 2**40), (96, 2**40)],
    ids=["vkFormat", "depth", "layers", "faces", "scheme", "width", "no width", "offset", "length", "unpacked"],
)
def test_ktx2_headers_that_cannot_be(tmp_path: Path, at: int, value: int) -> None:
    encoded = bytearray((ASSETS / "uastc_zstd.ktx2").read_bytes())
    size = 8 if at >= 80 else 4
    encoded[at : at + size] = value.to_bytes(size, "little")
    assert refused(tmp_path, ktx2_box(bytes(encoded))) == Reason.BAD_IMAGE


def test_a_huge_ktx2_is_not_decoded(tmp_path: Path) -> None:
    encoded = bytearray((ASSETS / "etc1s.ktx2").read_bytes())
    encoded[20:28] = (2**16).to_bytes(4, "little") * 2
    assert refused(tmp_path, ktx2_box(bytes(encoded))) == Reason.TOO_LARGE


@pytest.mark.assets
def test_the_same_bottle_compressed(assets_dir: Path) -> None:
    """Quantised, in meshopt streams and ETC1S textures: the same surface and nearly the same colours."""
    plain, small = (load_mesh(assets_dir / f"water_bottle_{kind}.glb") for kind in ("pbr", "meshopt_ktx2"))
    assert isinstance(plain, TexturedMesh) and isinstance(small, TexturedMesh)
    assert len(plain.faces) == len(small.faces)
    side = np.ptp(plain.vertices, axis=0).max()
    middles = [
        np.sort(np.round(m.vertices[m.faces].mean(axis=1) / side, 2).view("f4,f4,f4"), axis=0) for m in (plain, small)
    ]
    assert np.mean(middles[0] == middles[1]) > 0.9
    np.testing.assert_allclose(small.vertices.min(axis=0), plain.vertices.min(axis=0), atol=1e-4 * side)
    np.testing.assert_allclose(small.vertices.max(axis=0), plain.vertices.max(axis=0), atol=1e-4 * side)
    error = small.textures[0].image.astype(np.float64) - plain.textures[0].image
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 38
