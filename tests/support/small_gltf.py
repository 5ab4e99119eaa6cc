"""Small glTF files for tests, built byte by byte so that any part of them can be wrong."""

import copy
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig, open_checked
from pipeline.mesh_io.problems import AssetError, Notes
from schemas.ledger import Reason, Rejected
from schemas.mesh import TexturedMesh

_CODES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Builder:
    """A glTF tree and the bytes behind it."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [],
            "accessors": [],
            "bufferViews": [],
        }
        self.data = b""

    def view(self, block: bytes) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.tree["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(block)})
        self.data += block
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, **extra: Any) -> int:
        values = np.ascontiguousarray(values)
        width = values.shape[1] if values.ndim > 1 else 1
        entry = {"bufferView": self.view(values.tobytes()), "componentType": _CODES[values.dtype.str[1:]]}
        self.tree["accessors"].append(entry | {"count": len(values), "type": _TYPES[width]} | extra)
        return len(self.tree["accessors"]) - 1

    def sparse(self, rows: np.ndarray, values: np.ndarray, count: int, **extra: Any) -> int:
        """An accessor without a buffer view: zeros, but for some rows."""
        entry = {"componentType": _CODES[values.dtype.str[1:]], "count": count, "type": _TYPES[values.shape[1]]}
        entry["sparse"] = {
            "count": len(rows),
            "indices": {"bufferView": self.view(rows.tobytes()), "componentType": _CODES[rows.dtype.str[1:]]},
            "values": {"bufferView": self.view(values.tobytes())},
        }
        self.tree["accessors"].append(entry | extra)
        return len(self.tree["accessors"]) - 1

    def compressed(self, encoded: bytes, count: int, stride: int, mode: str, **extra: Any) -> int:
        """A view that exists as a meshopt stream alone."""
        view = self.view(encoded)
        source = self.tree["bufferViews"][view] | {"count": count, "byteStride": stride, "mode": mode}
        name = extra.pop("name", "EXT_meshopt_compression")
        plain = {"buffer": 1, "byteLength": count * stride, "extensions": {name: source | extra}}
        self.tree["bufferViews"][view] = plain | ({"byteStride": stride} if mode == "ATTRIBUTES" else {})
        return view

    def image(self, encoded: bytes, mime: str = "image/png") -> int:
        self.tree.setdefault("images", []).append({"bufferView": self.view(encoded), "mimeType": mime})
        return len(self.tree["images"]) - 1

    def glb(self) -> bytes:
        tree = copy.deepcopy(self.tree)
        if self.data:
            fallback = {"byteLength": 2**20, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}
            tree["buffers"] = [{"byteLength": len(self.data)}, fallback]
        return pack(json.dumps(tree).encode(), self.data)


def pack(text: bytes, binary: bytes = b"") -> bytes:
    """A GLB container around any JSON bytes."""
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        body += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


QUADRANTS = np.zeros((8, 8, 3), np.uint8)
"""Top left red, top right green, bottom left blue, bottom right white: no flip or turn leaves it the same."""
QUADRANTS[:4, :4], QUADRANTS[:4, 4:], QUADRANTS[4:, :4], QUADRANTS[4:, 4:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
)

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
BOX_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]],
    np.uint16,
)  # fmt: skip
"""A closed box over `CORNERS`, counter-clockwise seen from outside."""


def box(textured: bool = True) -> Builder:
    """An indexed box of 12 faces; all its sides show the whole of `QUADRANTS`, projected along z."""
    builder = Builder()
    attributes = {"POSITION": builder.accessor(CORNERS)}
    attributes["TEXCOORD_0"] = builder.accessor(((CORNERS[:, :2] * [1, -1] + 1) / 2).astype(np.float32))
    primitive: dict[str, Any] = {"attributes": attributes, "indices": builder.accessor(BOX_FACES.reshape(-1))}
    if textured:
        builder.tree["textures"] = [{"source": builder.image(png(QUADRANTS))}]
        builder.tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
        primitive["material"] = 0
    builder.tree["meshes"] = [{"primitives": [primitive]}]
    return builder


def primitive(builder: Builder) -> dict[str, Any]:
    return builder.tree["meshes"][0]["primitives"][0]


def preflight(path: Path, cfg: PreflightConfig) -> AssetFacts | Rejected:
    """The facts of a file that the loader may be given, or why it may not."""
    try:
        return open_checked(path, cfg, path.parent, Notes())[0]
    except AssetError as fault:
        return fault.rejected


def loaded(directory: Path, builder: Builder, **options: bool) -> TexturedMesh:
    path = directory / "asset.glb"
    path.write_bytes(builder.glb())
    mesh = load_mesh(path, **options)
    assert isinstance(mesh, TexturedMesh), mesh
    return mesh


def refused(directory: Path, builder: Builder) -> Reason:
    path = directory / "asset.glb"
    path.write_bytes(builder.glb())
    found = load_mesh(path)
    assert isinstance(found, Rejected), found
    return found.reason
