"""A textured mesh as one binary glTF 2.0 file that opens upright in any viewer."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from geometry.frames import Frame, z_up_to_y_up
from schemas.mesh import UvMesh
from schemas.storage import write_file

_FLOAT, _UINT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963


def write_glb(
    path: Path,
    uv_mesh: UvMesh,
    rgb: UInt8[np.ndarray, "height width 3"],
    frame: Frame | None,
    opacity: UInt8[np.ndarray, "height width"] | None = None,
) -> None:
    """Write one mesh with one base-colour texture; the file appears whole or not at all.

    `uv_mesh` in the dataset frame (Z up); `rgb` sRGB, row 0 at v = 1; the surface is cut out where `opacity` is below
    one half. With `frame` the file has the asset's own place and size, without it the dataset's [-1, 1]; either way
    glTF's Y points up.
    """
    png = io.BytesIO()
    Image.fromarray(rgb if opacity is None else np.dstack([rgb, opacity])).save(png, format="PNG")
    write_file(path, glb_bytes(uv_mesh, png.getvalue(), "image/png", frame, cut_out=opacity is not None))


def glb_bytes(uv_mesh: UvMesh, image: bytes, mime_type: str, frame: Frame | None, *, cut_out: bool) -> bytes:
    """The file of `write_glb` around an image that is encoded already: PNG or JPEG."""
    points = frame.to_asset(uv_mesh.vertices) if frame is not None else z_up_to_y_up(uv_mesh.vertices)
    uv_down = np.stack([uv_mesh.uv[:, 0], 1.0 - uv_mesh.uv[:, 1]], axis=1)
    blocks = [
        points.astype("<f4").tobytes(),
        z_up_to_y_up(uv_mesh.normals).astype("<f4").tobytes(),
        uv_down.astype("<f4").tobytes(),
        uv_mesh.faces.astype("<u4").tobytes(),
        image,
    ]
    tree = _tree(uv_mesh, points.astype("<f4"), blocks, mime_type)
    if cut_out:
        tree["materials"][0] |= {"alphaMode": "MASK", "alphaCutoff": 0.5}
    return _glb(tree, b"".join(_padded(b) for b in blocks))


def _tree(uv_mesh: UvMesh, points: np.ndarray, blocks: list[bytes], mime_type: str) -> dict[str, Any]:
    starts = np.cumsum([0, *(len(_padded(block)) for block in blocks)])
    targets = [_ARRAY_BUFFER, _ARRAY_BUFFER, _ARRAY_BUFFER, _ELEMENT_BUFFER, None]
    views = [
        {"buffer": 0, "byteOffset": int(start), "byteLength": len(block)} | ({"target": target} if target else {})
        for start, block, target in zip(starts[:-1], blocks, targets, strict=True)
    ]
    count, corners = len(uv_mesh.vertices), uv_mesh.faces.size
    return {
        "asset": {"version": "2.0", "generator": "SeqTex Forge"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {
                        "attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2},
                        "indices": 3,
                        "material": 0,
                        "mode": 4,
                    }
                ]
            }
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0.0,
                    "roughnessFactor": 1.0,
                },
                "doubleSided": True,
            }
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
        "images": [{"bufferView": 4, "mimeType": mime_type}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": count,
                "type": "VEC3",
                "min": [float(x) for x in points.min(axis=0)],
                "max": [float(x) for x in points.max(axis=0)],
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": count, "type": "VEC3"},
            {"bufferView": 2, "componentType": _FLOAT, "count": count, "type": "VEC2"},
            {"bufferView": 3, "componentType": _UINT, "count": corners, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": int(starts[-1])}],
    }


def _padded(block: bytes, fill: bytes = b"\0") -> bytes:
    return block + fill * (-len(block) % 4)


def _glb(tree: dict[str, Any], binary: bytes) -> bytes:
    text = _padded(json.dumps(tree, separators=(",", ":")).encode(), b" ")
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
