"""Hostile and broken files: each is refused for the right reason, without touching what it points to."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig
from schemas.ledger import Reason, Rejected
from tests.support.small_gltf import CORNERS, QUADRANTS, Builder, box, pack, png, preflight, primitive

CFG = PreflightConfig()


def check(directory: Path, data: bytes, name: str = "asset.glb", cfg: PreflightConfig = CFG) -> AssetFacts | Rejected:
    path = directory / name
    path.write_bytes(data)
    return preflight(path, cfg)


def test_facts_of_a_sound_file(tmp_path: Path) -> None:
    data = box().glb()
    facts = check(tmp_path, data)
    assert facts == AssetFacts(format="glb", bytes=len(data), faces=12, vertices=8, images=1, image_side_max=8)


def spoiled(change: Callable[[Builder], object]) -> bytes:
    builder = box()
    change(builder)
    return builder.glb()


def merged(part: str, index: int, **values: object) -> Callable[[Builder], object]:
    return lambda b: b.tree[part][index].update(values)


def _nan_position(builder: Builder) -> None:
    points = CORNERS.copy()
    points[3, 1] = np.nan
    primitive(builder)["attributes"]["POSITION"] = builder.accessor(points)


def _cycle(builder: Builder) -> None:
    builder.tree["nodes"] = [{"mesh": 0, "children": [1]}, {"children": [2]}, {"children": [1]}]


def _loop(builder: Builder) -> None:
    builder.tree["nodes"] = [{"mesh": 0}, {"children": [2]}, {"children": [1]}]


def _chain(builder: Builder) -> None:
    builder.tree["nodes"] = [{"children": [i + 1]} for i in range(5000)] + [{"mesh": 0}]


def _bad_index(builder: Builder) -> None:
    primitive(builder)["indices"] = builder.accessor(np.array([0, 1, 8], np.uint16))


def _sparse(builder: Builder, index: int) -> None:
    rows = builder.view(np.array([index], np.uint16).tobytes())
    values = builder.view(np.zeros((1, 3), np.float32).tobytes())
    builder.tree["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": rows, "componentType": 5123},
        "values": {"bufferView": values},
    }


def _huge_image(builder: Builder) -> None:
    header = struct.pack(">I4sIIBBBBB", 13, b"IHDR", 30000, 30000, 8, 2, 0, 0, 0)
    builder.tree["textures"][0]["source"] = builder.image(b"\x89PNG\r\n\x1a\n" + header + b"\0" * 4)


def _instances(builder: Builder, count: int) -> None:
    builder.tree["nodes"] = [{"mesh": 0} for _ in range(count)]
    builder.tree["scenes"] = [{"nodes": list(range(count))}]


SPOILED = {
    "view beyond buffer": (merged("bufferViews", 0, byteLength=10**9), Reason.OUT_OF_BOUNDS),
    "view offset of 2^63": (merged("bufferViews", 0, byteOffset=2**53), Reason.OUT_OF_BOUNDS),
    "accessor beyond view": (merged("accessors", 0, count=9), Reason.OUT_OF_BOUNDS),
    "accessor offset": (merged("accessors", 0, byteOffset=4), Reason.OUT_OF_BOUNDS),
    "negative count": (merged("accessors", 0, count=-1), Reason.INVALID_STRUCTURE),
    "count is text": (merged("accessors", 0, count="8"), Reason.INVALID_STRUCTURE),
    "unknown component": (merged("accessors", 0, componentType=5130), Reason.INVALID_STRUCTURE),
    "view does not exist": (merged("accessors", 0, bufferView=99), Reason.INVALID_STRUCTURE),
    "attribute counts differ": (merged("accessors", 1, count=7), Reason.INVALID_STRUCTURE),
    "zeros without bytes": (lambda b: b.tree["accessors"][0].pop("bufferView"), None),
    "index out of range": (_bad_index, Reason.INDEX_OUT_OF_RANGE),
    "sparse in range": (lambda b: _sparse(b, 7), None),
    "sparse out of range": (lambda b: _sparse(b, 8), Reason.INDEX_OUT_OF_RANGE),
    "nan position": (_nan_position, Reason.NON_FINITE),
    "two parents": (_cycle, Reason.INVALID_STRUCTURE),
    "node cycle": (_loop, Reason.INVALID_STRUCTURE),
    "nodes 5000 deep": (_chain, Reason.INVALID_STRUCTURE),
    "60,000 nodes": (lambda b: _instances(b, 60_000), Reason.TOO_LARGE),
    "scale 1e400": (merged("nodes", 0, scale=[1, 1, 10**400]), Reason.INVALID_STRUCTURE),
    "required extension": (lambda b: b.tree.update(extensionsRequired=["EXT_unheard"]), Reason.UNSUPPORTED_EXTENSION),
    "harmless extension": (lambda b: b.tree.update(extensionsRequired=["KHR_materials_clearcoat"]), None),
    "a texture without an image": (lambda b: b.tree["textures"][0].pop("source"), Reason.BAD_IMAGE),
    "version 3": (lambda b: b.tree.update(asset={"version": "3.0"}), Reason.UNSUPPORTED_VERSION),
    "no version": (lambda b: b.tree.update(asset={}), Reason.INVALID_STRUCTURE),
    "image of 30000 x 30000": (_huge_image, Reason.TOO_LARGE),
    "image is text": (lambda b: b.tree["textures"][0].update(source=b.image(b"hello world!")), Reason.BAD_IMAGE),
    "other file from a glb": (lambda b: b.tree["images"][0].update(uri="a.png"), Reason.MISSING_FILE),
}


@pytest.mark.parametrize("name", SPOILED)
def test_one_thing_wrong(tmp_path: Path, name: str) -> None:
    change, reason = SPOILED[name]
    data = spoiled(change)
    start = time.process_time()
    found = check(tmp_path, data)
    assert time.process_time() - start < 2.0
    assert (found.reason if isinstance(found, Rejected) else None) == reason, found
    if isinstance(found, Rejected):
        assert found.detail


CONTAINERS = {
    "empty": (b"", Reason.EMPTY_FILE),
    "not a glb": (b"PK\3\4" + b"\0" * 40, Reason.NOT_A_MESH),
    "glTF 1 container": (b"glTF" + struct.pack("<II", 1, 12), Reason.UNSUPPORTED_VERSION),
    "no chunk": (struct.pack("<4sII", b"glTF", 2, 12), Reason.INVALID_STRUCTURE),
    "json is a list": (pack(b"[1]"), Reason.INVALID_JSON),
    "json is cut": (pack(b'{"asset": '), Reason.INVALID_JSON),
    "json is not utf-8": (pack(b'{"a": "\xff\xfe"}'), Reason.INVALID_JSON),
    "json holds NaN": (pack(b'{"a": NaN}'), Reason.INVALID_JSON),
    "json 100,000 deep": (pack(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), Reason.INVALID_JSON),
    "number of 10,000 digits": (pack(b'{"a":' + b"9" * 10_000 + b"}"), Reason.INVALID_JSON),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_container(tmp_path: Path, name: str) -> None:
    data, reason = CONTAINERS[name]
    found = check(tmp_path, data)
    assert isinstance(found, Rejected) and found.reason == reason, found


def test_brackets_in_strings_are_not_nesting(tmp_path: Path) -> None:
    builder = box()
    builder.tree["asset"]["copyright"] = "[" * 500 + '"' + "{" * 500
    assert isinstance(check(tmp_path, builder.glb()), AssetFacts)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    data = box().glb()
    for end in range(0, len(data), 7):
        found = check(tmp_path, data[:end])
        assert isinstance(found, Rejected), end
        assert found.reason in (Reason.EMPTY_FILE, Reason.NOT_A_MESH, Reason.TRUNCATED, Reason.LENGTH_MISMATCH)


def test_limits_are_named(tmp_path: Path) -> None:
    data = box().glb()
    found = check(tmp_path, data, cfg=PreflightConfig(max_file_bytes=100))
    assert isinstance(found, Rejected) and found.reason == Reason.TOO_LARGE
    assert f"{len(data):,}" in found.detail and "100" in found.detail


def test_every_instance_counts(tmp_path: Path) -> None:
    builder = box()
    _instances(builder, 10)
    found = check(tmp_path, builder.glb(), cfg=PreflightConfig(max_faces=119))
    assert isinstance(found, Rejected) and found.reason == Reason.TOO_LARGE and "120" in found.detail
    assert isinstance(check(tmp_path, builder.glb(), cfg=PreflightConfig(max_faces=120)), AssetFacts)


def gltf(builder: Builder, directory: Path) -> bytes:
    (directory / "data.bin").write_bytes(builder.data)
    tree = builder.tree | {"buffers": [{"byteLength": len(builder.data), "uri": "data.bin"}]}
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    "uri",
    [
        "../secret.png",
        "%2e%2e/secret.png",
        "a/../../secret.png",
        "/etc/passwd",
        "..\\secret.png",
        "file:///etc/passwd",
        "http://host/a.png",
        "C:secret.png",
        "link.png",
        "folder/secret.png",
        "a%00.png",
    ],
)
def test_uris_that_leave_the_folder(tmp_path: Path, uri: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"canary")
    inside = tmp_path / "asset"
    inside.mkdir()
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "folder").symlink_to(tmp_path)
    builder = box()
    builder.tree["images"] = [{"uri": uri}]
    found = check(inside, gltf(builder, inside), "asset.gltf")
    assert isinstance(found, Rejected) and found.reason == Reason.UNSAFE_URI, found
    assert "canary" not in found.detail


def test_files_beside_a_gltf(tmp_path: Path) -> None:
    builder = box()
    builder.tree["images"] = [{"uri": "my%20texture.png"}]
    data = gltf(builder, tmp_path)
    missing = check(tmp_path, data, "asset.gltf")
    assert isinstance(missing, Rejected) and missing.reason == Reason.MISSING_FILE
    assert "my texture.png" in missing.detail
    (tmp_path / "my texture.png").write_bytes(png(QUADRANTS))
    assert isinstance(check(tmp_path, data, "asset.gltf"), AssetFacts)
    (tmp_path / "data.bin").unlink()
    gone = check(tmp_path, data, "asset.gltf")
    assert isinstance(gone, Rejected) and gone.reason == Reason.MISSING_FILE and "data.bin" in gone.detail


def test_own_fault_comes_before_what_we_cannot_read(tmp_path: Path) -> None:
    builder = box()
    builder.tree["images"] = [{"uri": "gone.png"}]
    builder.tree["extensionsRequired"] = ["EXT_unheard"]
    found = check(tmp_path, gltf(builder, tmp_path), "asset.gltf")
    assert isinstance(found, Rejected) and found.reason == Reason.MISSING_FILE


OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
OBJS = {
    "sound": (OBJ + "f 1 2 3\n", None),
    "relative indices": (OBJ + "f -3 -2 -1\n", None),
    "no face": (OBJ, Reason.NO_GEOMETRY),
    "index out of range": (OBJ + "f 1 2 4\n", Reason.INDEX_OUT_OF_RANGE),
    "index zero": (OBJ + "f 0 1 2\n", Reason.INDEX_OUT_OF_RANGE),
    "relative index before the file": (OBJ + "f -4 -2 -1\n", Reason.INDEX_OUT_OF_RANGE),
    "uv out of range": (OBJ + "f 1/1 2/1 3/1\n", Reason.INDEX_OUT_OF_RANGE),
    "two corners": (OBJ + "f 1 2\n", Reason.NO_GEOMETRY),
    "nan": (OBJ + "v nan 0 0\nf 1 2 4\n", Reason.NON_FINITE),
    "nan that no face uses": (OBJ + "v nan 0 0\nf 1 2 3\n", None),
    "word for a number": (OBJ + "v a b c\nf 1 2 3\n", Reason.INVALID_STRUCTURE),
    "binary": ("\0\0\0", Reason.NOT_A_MESH),
    "library leaves": ("mtllib ../a.mtl\n" + OBJ + "f 1 2 3\n", Reason.UNSAFE_URI),
    "library missing": ("mtllib a.mtl\n" + OBJ + "f 1 2 3\n", Reason.MISSING_FILE),
    "map leaves": ("mtllib leaves.mtl\nusemtl a\n" + OBJ + "f 1 2 3\n", Reason.UNSAFE_URI),
    "map missing": ("mtllib missing.mtl\nusemtl a\n" + OBJ + "f 1 2 3\n", Reason.MISSING_FILE),
}


@pytest.mark.parametrize("name", OBJS)
def test_obj(tmp_path: Path, name: str) -> None:
    (tmp_path / "leaves.mtl").write_text("newmtl a\nmap_Kd /etc/hostname\n")
    (tmp_path / "missing.mtl").write_text("newmtl a\nmap_Kd -s 1 1 1 my map.png\n")
    text, reason = OBJS[name]
    found = check(tmp_path, text.encode(), "asset.obj")
    assert (found.reason if isinstance(found, Rejected) else None) == reason, found
    if name == "map missing":
        assert isinstance(found, Rejected) and "my map.png" in found.detail
