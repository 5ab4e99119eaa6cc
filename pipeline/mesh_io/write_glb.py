"""Write meshes as binary glTF 2.0: the same bytes every time, upright in any viewer."""

import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from geometry.frames import Frame, bounding_box, far_origin, z_up_to_y_up
from schemas.mesh import UvMesh
from schemas.storage import write_file

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963
_LINEAR, _MIPMAPS, _CLAMP = 9729, 9987, 33071
NO_MAPS: Mapping[str, UInt8[np.ndarray, "height width 3"]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitive:
    """Triangles with one material, in glTF's frame (Y up)."""

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
class Material:
    """A material: a linear base colour times a texture, if it has one; rough and no metal unless it states more."""

    base_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    image: UInt8[np.ndarray, "height width channels"] | bytes | None = None
    """The texture, sRGB: pixels, or the bytes of a PNG or JPEG file."""
    metallic: float = 0.0
    roughness: float = 0.9
    metallic_roughness: UInt8[np.ndarray, "height width 3"] | None = None
    """Roughness in G, metallic in B, linear; it stands in place of the two factors."""
    normal_tangent: UInt8[np.ndarray, "height width 3"] | None = None
    """Normals in tangent space (MikkTSpace), [-1, 1] as [0, 255]."""
    emissive: UInt8[np.ndarray, "height width 3"] | None = None
    """Emitted light, sRGB."""
    double_sided: bool = False
    cut_out: bool = False
    """There is no surface where the texture's opacity is below one half."""


def write_glb(
    path: Path,
    uv_mesh: UvMesh,
    rgb: UInt8[np.ndarray, "height width 3"],
    frame: Frame | None,
    opacity: UInt8[np.ndarray, "height width"] | None = None,
    maps: Mapping[str, UInt8[np.ndarray, "height width 3"]] = NO_MAPS,
) -> None:
    """Write one mesh with one base-colour texture; the file appears whole or not at all.

    `uv_mesh` in the dataset frame (Z up); `rgb` sRGB, row 0 at v = 1; the surface is cut out where `opacity` is below
    one half. `maps`: further textures, by the names of `Material`. With `frame` the file has the asset's own place and size (by its node's translation where that is far from
    the origin), without it the dataset's [-1, 1]; either way glTF's Y points up.
    """
    image = rgb if opacity is None else np.dstack([rgb, opacity])
    write_file(path, textured_glb(uv_mesh, image, frame, cut_out=opacity is not None, maps=maps))


def textured_glb(
    uv_mesh: UvMesh,
    image: np.ndarray | bytes,
    frame: Frame | None,
    *,
    cut_out: bool,
    maps: Mapping[str, UInt8[np.ndarray, "height width 3"]] = NO_MAPS,
) -> bytes:
    """Encode the file of `write_glb`; `image`: pixels, or the bytes of a PNG or JPEG file."""
    points, origin = z_up_to_y_up(uv_mesh.vertices), np.zeros(3)
    if frame is not None:
        points = frame.to_asset(uv_mesh.vertices)
        origin = far_origin(*bounding_box(points, uv_mesh.faces))
        points = points - origin
    single = np.zeros(len(uv_mesh.faces), bool) if uv_mesh.single_sided is None else uv_mesh.single_sided
    primitives, materials = list[Primitive](), list[Material]()
    for double_sided in (True, False):
        faces = uv_mesh.faces[single != double_sided]
        if not len(faces) and (not double_sided or len(single)):
            continue
        used, corners = np.unique(faces, return_inverse=True) if single.any() else (np.arange(len(points)), faces)
        primitives.append(
            Primitive(
                positions=points[used],
                normals=z_up_to_y_up(uv_mesh.normals[used]),
                faces=corners.reshape(-1, 3),
                material=len(materials),
                uv=np.stack([uv_mesh.uv[used, 0], 1.0 - uv_mesh.uv[used, 1]], axis=1),
            )
        )
        materials.append(Material(image=image, roughness=1.0, double_sided=double_sided, cut_out=cut_out, **maps))
    node = {"translation": origin.tolist()} if origin.any() else {}
    return encode_glb(primitives, materials, node, "SeqTex Forge", _MIPMAPS)


def encode_glb(
    primitives: Sequence[Primitive],
    materials: Sequence[Material],
    node: dict[str, Any],
    generator: str = "SeqTex Forge procedural source",
    min_filter: int = _LINEAR,
) -> bytes:
    """Encode one node with one mesh; `node` holds its transform (translation, scale) if any."""
    buffer, images = _Buffer(), list[dict[str, Any]]()
    slots: dict[int, int] = {}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": generator},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, **node}],
        "meshes": [{"primitives": [_primitive(buffer, primitive) for primitive in primitives]}],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
    }
    if materials:
        document["materials"] = [_material(buffer, images, slots, material) for material in materials]
    if images:
        document |= {"images": images, "textures": [{"source": k, "sampler": 0} for k in range(len(images))]}
        filters = {"magFilter": _LINEAR, "minFilter": min_filter}
        document["samplers"] = [filters | {"wrapS": _CLAMP, "wrapT": _CLAMP}]
    data = _padded(bytes(buffer.data))
    document["buffers"] = [{"byteLength": len(data)}]
    return _container(document, data)


class _Buffer:
    """The binary chunk and the records that point into it, as they grow."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, payload: bytes, target: int | None = None) -> int:
        self.data.extend(b"\0" * (-len(self.data) % 4))
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(payload)}
        self.views.append(view if target is None else view | {"target": target})
        self.data.extend(payload)
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


def _material(
    buffer: _Buffer, images: list[dict[str, Any]], slots: dict[int, int], material: Material
) -> dict[str, Any]:
    """The record of a material; `slots`: places of the images that are written already, by identity."""
    surface: dict[str, Any] = {"metallicFactor": material.metallic, "roughnessFactor": material.roughness}
    if material.metallic_roughness is not None:
        surface = {"metallicFactor": 1.0, "roughnessFactor": 1.0}
    surface["baseColorFactor"] = [*(round(float(c), 6) for c in material.base_color), 1.0]
    record: dict[str, Any] = {"pbrMetallicRoughness": surface}
    textures = {"baseColorTexture": material.image, "metallicRoughnessTexture": material.metallic_roughness,
                "normalTexture": material.normal_tangent, "emissiveTexture": material.emissive}  # fmt: skip
    for name, image in textures.items():
        if image is not None and id(image) not in slots:
            file = image if isinstance(image, bytes) else png(image)
            mime_type = "image/png" if file.startswith(b"\x89PNG") else "image/jpeg"
            images.append({"bufferView": buffer.view(file), "mimeType": mime_type})
            slots[id(image)] = len(images) - 1
        if image is not None:
            (record if name in ("normalTexture", "emissiveTexture") else surface)[name] = {"index": slots[id(image)]}
    record |= {} if material.emissive is None else {"emissiveFactor": [1.0, 1.0, 1.0]}
    record |= {"doubleSided": True} if material.double_sided else {}
    return record | ({"alphaMode": "MASK", "alphaCutoff": 0.5} if material.cut_out else {})


def png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Encode a texture as PNG, the same bytes every time."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=4)
    return stream.getvalue()


def _padded(block: bytes, fill: bytes = b"\0") -> bytes:
    return block + fill * (-len(block) % 4)


def _container(document: dict[str, Any], data: bytes) -> bytes:
    text = _padded(json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode(), b" ")
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
