"""Write meshes as binary glTF 2.0: the same bytes every time, upright in any viewer."""

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8
from PIL import Image

from geometry.frames import Frame, bounding_box, far_origin, z_up_to_y_up
from pipeline.mesh_io.image_header import image_format
from schemas.mesh import UvMesh, Wrap
from schemas.storage import write_file

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963
_NEAREST, _LINEAR, _MIPMAPS = 9728, 9729, 9987
_WRAP = {Wrap.REPEAT: 10497, Wrap.MIRROR: 33648, Wrap.CLAMP: 33071}
_MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "KTX2": "image/ktx2"}
"""Media types of the images that a glTF file may hold."""
_FORMAT_EXTENSIONS = {"image/webp": "EXT_texture_webp", "image/ktx2": "KHR_texture_basisu"}
_STRENGTH = "KHR_materials_emissive_strength"


def is_gltf_image(data: bytes) -> bool:
    """Return whether a glTF file may hold an image file as it is."""
    return image_format(data) in _MIME_TYPES


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
    more_uv: Sequence[Float[np.ndarray, "n 2"]] = ()
    """TEXCOORD_1 and so on, as `uv`."""
    tangents: Float[np.ndarray, "n 4"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Map:
    """A texture beside the base colour."""

    image: UInt8[np.ndarray, "height width channels"] | bytes
    """Pixels, or the bytes of a file (`is_gltf_image`), which are written as they are."""
    uv_set: int = 0
    """Number of its TEXCOORD."""
    wrap_u: Wrap = Wrap.CLAMP
    wrap_v: Wrap = Wrap.CLAMP
    nearest: bool = False
    """Nearest instead of bilinear magnification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A material, rough and no metal unless given otherwise: a linear base colour times a texture, if it has one."""

    base_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    image: UInt8[np.ndarray, "height width channels"] | bytes | None = None
    """The texture, sRGB: pixels, or the bytes of a PNG or JPEG file."""
    metallic: float = 0.0
    roughness: float = 0.9
    metallic_roughness: Map | None = None
    """Roughness in G, metallic in B, linear; factors of them are `roughness` and `metallic`."""
    normal: Map | None = None
    """Tangent space, +Y towards the top of the image."""
    normal_scale: float = 1.0
    occlusion: Map | None = None
    """Occlusion in R, linear."""
    occlusion_strength: float = 1.0
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Linear factor in [0, 1]."""
    emissive_strength: float = 1.0
    emissive_map: Map | None = None
    """sRGB."""
    double_sided: bool = False
    cut_out: bool = False
    """True if there is no surface where the texture's opacity is below one half."""
    blended: bool = False
    """The texture's opacity is that of the surface."""

    def maps(self) -> list[Map]:
        """Return the textures beside the base colour."""
        found = self.metallic_roughness, self.normal, self.occlusion, self.emissive_map
        return [one for one in found if one is not None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptMaterials:
    """The materials that a mesh has beside a base colour that it gets."""

    materials: tuple[Material, ...]
    """Materials without the image of a base colour."""
    face_material: Int32[np.ndarray, " f"]
    """Index into `materials`."""
    more_uv: tuple[Float32[np.ndarray, "n 2"], ...] = ()
    """Coordinates of maps that lie elsewhere than the base colour, v up, for the vertices of the `UvMesh`: `Map.uv_set`
    1 and so on."""
    tangents: Float32[np.ndarray, "f 3 4"] | None = None
    """Tangents of the corners, dataset frame, with the sign of the bitangent; None without normal maps."""
    opacity: UInt8[np.ndarray, "height width"] | None = None
    """Alpha in the layout of the `UvMesh`; None: opaque everywhere."""
    skipped: tuple[str, ...] = ()
    """Maps of the asset that cannot be kept, in words."""


def write_glb(
    path: Path,
    uv_mesh: UvMesh,
    rgb: UInt8[np.ndarray, "height width 3"],
    frame: Frame | None,
    opacity: UInt8[np.ndarray, "height width"] | None = None,
    kept: KeptMaterials | None = None,
) -> None:
    """Write one mesh with one base-colour texture; the file appears whole or not at all.

    `uv_mesh` in the dataset frame (Z up); `rgb` sRGB, row 0 at v = 1; the surface is cut out where `opacity` is below
    one half. With `frame` the file has the asset's own place and size (by its node's translation where that is far from
    the origin), without it the dataset's [-1, 1]; either way glTF's Y points up. `kept`: what its materials have beside
    the base colour; None: rough and no metal.
    """
    kept = kept or plain_materials(uv_mesh, opacity)
    image = rgb if kept.opacity is None else np.dstack([rgb, kept.opacity])
    points, origin = z_up_to_y_up(uv_mesh.vertices), np.zeros(3)
    if frame is not None:
        points = frame.to_asset(uv_mesh.vertices)
        origin = far_origin(*bounding_box(points, uv_mesh.faces))
        points = points - origin
    primitives, materials = list[Primitive](), list[Material]()
    for number in np.unique(kept.face_material).tolist():
        primitives.append(_kept_primitive(uv_mesh, points, kept, number, len(materials)))
        materials.append(replace(kept.materials[number], image=image))
    node = {"translation": origin.tolist()} if origin.any() else {}
    write_file(path, encode_glb(primitives, materials, node, "SeqTex Forge", _MIPMAPS))


def plain_materials(uv_mesh: UvMesh, opacity: UInt8[np.ndarray, "height width"] | None = None) -> KeptMaterials:
    """The rough materials of a mesh of which nothing but the base colour is known, by the sides that are seen."""
    single = np.zeros(len(uv_mesh.faces), np.int32) if uv_mesh.single_sided is None else uv_mesh.single_sided
    cut_out = opacity is not None
    return KeptMaterials(
        materials=tuple(Material(roughness=1.0, double_sided=both, cut_out=cut_out) for both in (True, False)),
        face_material=single.astype(np.int32),
        opacity=opacity,
    )


def _kept_primitive(
    uv_mesh: UvMesh, points: Float[np.ndarray, "n 3"], kept: KeptMaterials, number: int, place: int
) -> Primitive:
    """The faces of one kept material; vertices are split where corners have different tangents."""
    chosen = kept.face_material == number
    faces = uv_mesh.faces[chosen]
    used, corners = np.unique(faces, return_inverse=True)
    tangents = None
    if kept.tangents is not None and kept.materials[number].normal is not None:
        turned = kept.tangents[chosen]
        flat = np.concatenate([z_up_to_y_up(turned[..., :3]), turned[..., 3:]], axis=-1).reshape(-1, 4)
        keyed = np.concatenate([faces.reshape(-1, 1).astype(np.float64), flat], axis=1)
        unique, corners = np.unique(keyed, axis=0, return_inverse=True)
        used, tangents = unique[:, 0].astype(np.int64), unique[:, 1:]

    sets = max((found.uv_set for found in kept.materials[number].maps()), default=0)

    def flipped(uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "u 2"]:
        return np.stack([uv[used, 0], 1.0 - uv[used, 1]], axis=1)

    return Primitive(
        positions=points[used],
        normals=z_up_to_y_up(uv_mesh.normals[used]),
        faces=corners.reshape(-1, 3),
        material=place,
        uv=flipped(uv_mesh.uv),
        more_uv=[flipped(uv) for uv in kept.more_uv[:sets]],
        tangents=tangents,
    )


def encode_glb(
    primitives: Sequence[Primitive],
    materials: Sequence[Material],
    node: dict[str, Any],
    generator: str = "SeqTex Forge procedural source",
    min_filter: int = _LINEAR,
) -> bytes:
    """Encode one node with one mesh; `node` holds its transform (translation, scale) if any."""
    buffer = _Buffer()
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
        textures = _Textures(buffer, min_filter)
        document["materials"] = [_material(textures, material) for material in materials]
        document |= textures.records()
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
    for number, uv in enumerate(primitive.more_uv, start=1):
        attributes[f"TEXCOORD_{number}"] = buffer.accessor(floats(uv), _VERTICES, "VEC2")
    if primitive.tangents is not None:
        attributes["TANGENT"] = buffer.accessor(floats(primitive.tangents), _VERTICES, "VEC4")
    index_type = "<u2" if len(primitive.positions) < 65535 else "<u4"
    indices = buffer.accessor(np.ascontiguousarray(primitive.faces, index_type), _INDICES, "SCALAR")
    record: dict[str, Any] = {"attributes": attributes, "indices": indices}
    return record if primitive.material is None else record | {"material": primitive.material}


class _Textures:
    """Textures, images and samplers as they grow: each image is written once, whoever uses it."""

    def __init__(self, buffer: _Buffer, min_filter: int) -> None:
        self._buffer, self._min_filter = buffer, min_filter
        self._images: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}
        """Places of images by identity."""
        self._samplers: list[dict[str, Any]] = []
        self._textures: list[dict[str, Any]] = []
        self.extensions: set[str] = set()

    def use(self, found: Map) -> dict[str, Any]:
        """Return the reference of a material to a texture."""
        place = self._image(found.image)
        mag, low = (_NEAREST, _NEAREST) if found.nearest else (_LINEAR, self._min_filter)
        sampler = {"magFilter": mag, "minFilter": low, "wrapS": _WRAP[found.wrap_u], "wrapT": _WRAP[found.wrap_v]}
        texture: dict[str, Any] = {"sampler": _index(self._samplers, sampler)}
        if extension := _FORMAT_EXTENSIONS.get(self._images[place]["mimeType"]):
            self.extensions.add(extension)
            texture["extensions"] = {extension: {"source": place}}
        else:
            texture["source"] = place
        number = {"index": _index(self._textures, texture)}
        return number if found.uv_set == 0 else number | {"texCoord": found.uv_set}

    def _image(self, image: np.ndarray | bytes) -> int:
        if id(image) not in self._places:
            file = image if isinstance(image, bytes) else png(image)
            mime_type = _MIME_TYPES[str(image_format(file))]
            self._images.append({"bufferView": self._buffer.view(file), "mimeType": mime_type})
            self._places[id(image)] = len(self._images) - 1
        return self._places[id(image)]

    def records(self) -> dict[str, Any]:
        """Return what a document holds of them; images in formats of extensions have no other form beside them."""
        lists = {"images": self._images, "textures": self._textures, "samplers": self._samplers} if self._images else {}
        required = sorted(self.extensions & {*_FORMAT_EXTENSIONS.values()})
        names = {"extensionsUsed": sorted(self.extensions), "extensionsRequired": required}
        return lists | {key: found for key, found in names.items() if found}


def _index(records: list[dict[str, Any]], record: dict[str, Any]) -> int:
    if record not in records:
        records.append(record)
    return records.index(record)


def _material(textures: _Textures, material: Material) -> dict[str, Any]:
    surface: dict[str, Any] = {"metallicFactor": material.metallic, "roughnessFactor": material.roughness}
    surface["baseColorFactor"] = [*(round(float(c), 6) for c in material.base_color), 1.0]
    if material.image is not None:
        surface["baseColorTexture"] = textures.use(Map(image=material.image))
    if material.metallic_roughness is not None:
        surface["metallicRoughnessTexture"] = textures.use(material.metallic_roughness)
    record: dict[str, Any] = {"pbrMetallicRoughness": surface}
    if material.normal is not None:
        record["normalTexture"] = textures.use(material.normal) | {"scale": material.normal_scale}
    if material.occlusion is not None:
        record["occlusionTexture"] = textures.use(material.occlusion) | {"strength": material.occlusion_strength}
    if any(material.emissive):
        record["emissiveFactor"] = list(material.emissive)
        if material.emissive_map is not None:
            record["emissiveTexture"] = textures.use(material.emissive_map)
        if material.emissive_strength != 1.0:
            textures.extensions.add(_STRENGTH)
            record["extensions"] = {_STRENGTH: {"emissiveStrength": material.emissive_strength}}
    record |= {"doubleSided": True} if material.double_sided else {}
    if material.cut_out:
        record |= {"alphaMode": "MASK", "alphaCutoff": 0.5}
    return record | ({"alphaMode": "BLEND"} if material.blended else {})


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
