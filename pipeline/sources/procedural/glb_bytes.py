"""Binary glTF 2.0 from arrays, the same bytes every time."""

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitive:
    """Triangles with one material, glTF frame (Y up)."""

    positions: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    material: int | None
    """None: glTF's default material (white), so that vertex colours stand alone for every reader."""
    uv: Float[np.ndarray, "n 2"] | None = None
    """Origin at the top left."""
    colors: Float[np.ndarray, "n 4"] | None = None
    """Linear RGBA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paint:
    """A material: linear base colour factor, or a texture."""

    base_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """sRGB."""


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=4)
    return stream.getvalue()


class _Buffer:
    """Grows the binary chunk and the records that point into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, payload: bytes, target: int | None = None) -> int:
        self.data.extend(b"\0" * (-len(self.data) % 4))
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(payload)}
        if target is not None:
            view["target"] = target
        self.data.extend(payload)
        self.views.append(view)
        return len(self.views) - 1

    def accessor(self, array: np.ndarray, target: int, kind: str, *, bounds: bool = False) -> int:
        component = {"f": _FLOAT, "H": _UINT16, "I": _UINT32}[array.dtype.char]
        record: dict[str, Any] = {"bufferView": self.view(array.tobytes(), target), "componentType": component}
        record |= {"count": len(array) if kind != "SCALAR" else array.size, "type": kind}
        if bounds:
            record |= {"min": np.nanmin(array, axis=0).tolist(), "max": np.nanmax(array, axis=0).tolist()}
        self.accessors.append(record)
        return len(self.accessors) - 1


def _primitive(buffer: _Buffer, primitive: Primitive) -> dict[str, Any]:
    def floats(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array, "<f4")

    attributes = {
        "POSITION": buffer.accessor(floats(primitive.positions), _VERTICES, "VEC3", bounds=True),
        "NORMAL": buffer.accessor(floats(primitive.normals), _VERTICES, "VEC3"),
    }
    if primitive.uv is not None:
        attributes["TEXCOORD_0"] = buffer.accessor(floats(primitive.uv), _VERTICES, "VEC2")
    if primitive.colors is not None:
        attributes["COLOR_0"] = buffer.accessor(floats(primitive.colors), _VERTICES, "VEC4")
    index_type = "<u2" if len(primitive.positions) < 65535 else "<u4"
    indices = buffer.accessor(np.ascontiguousarray(primitive.faces, index_type), _INDICES, "SCALAR")
    record: dict[str, Any] = {"attributes": attributes, "indices": indices}
    return record if primitive.material is None else record | {"material": primitive.material}


def _material(buffer: _Buffer, images: list[dict[str, Any]], paint: Paint) -> dict[str, Any]:
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    surface["baseColorFactor"] = [*(round(float(c), 6) for c in paint.base_color), 1.0]
    if paint.image is not None:
        images.append({"bufferView": buffer.view(png(paint.image)), "mimeType": "image/png"})
        surface["baseColorTexture"] = {"index": len(images) - 1}
    return {"pbrMetallicRoughness": surface}


def glb(document: dict[str, Any], data: bytes) -> bytes:
    """The container: JSON chunk, binary chunk."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    data += b"\0" * (-len(data) % 4)
    total = 12 + 8 + len(text) + 8 + len(data)
    header = struct.pack("<4sII", b"glTF", 2, total)
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data


def encode_glb(primitives: Sequence[Primitive], paints: Sequence[Paint], node: dict[str, Any]) -> bytes:
    """One node with one mesh; `node` holds its transform (translation, scale) if any."""
    buffer, images = _Buffer(), list[dict[str, Any]]()
    mesh = {"primitives": [_primitive(buffer, p) for p in primitives]}
    materials = [_material(buffer, images, paint) for paint in paints]
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "SeqTex Forge procedural source"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, **node}],
        "meshes": [mesh],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data) + -len(buffer.data) % 4}],
    }
    if materials:
        document["materials"] = materials
    if images:
        document |= {"images": images, "textures": [{"source": k, "sampler": 0} for k in range(len(images))]}
        document["samplers"] = [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}]
    return glb(document, bytes(buffer.data))
