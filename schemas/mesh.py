"""Meshes between the steps of the pipeline: planned, as loaded, and as unwrapped; the latter also as a file.

Conventions, stated once:

- Positions as loaded are in the asset's own glTF frame (right-handed, Y up); `geometry.frames.normalise` takes them to
  the dataset frame (Z up, bounding box centred, largest side 2).
- Texture coordinates have v pointing **up**: v = 1 is row 0 of an image. (glTF files store 1 - v; the loader flips.)
- Base colour factors and vertex colours are linear RGBA in [0, 1]; texture images are sRGB RGB plus linear alpha.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import deflate
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from schemas.images import DEFLATE_LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Author and licence of an asset, carried into every sample."""

    name: str = ""
    """Name of the collection."""
    licence: str = ""
    attribution: str = ""
    """The line that a licence such as CC-BY asks for: title, author, page."""
    title: str = ""
    author: str = ""
    url: str = ""
    """The asset's page."""


class AssetKind(StrEnum):
    """The kind of an asset's main file."""

    MESH = "mesh"
    OFFICIAL_MODEL = "official-model"
    """The `model.glb` of SeqTex's 3D layout, perhaps with its texture beside it."""
    OFFICIAL_RENDERS = "official-renders"
    """The `meta.json` of SeqTex's image layout: views without a mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshRef:
    """One planned asset."""

    uid: str
    """Key of the sample; `[A-Za-z0-9_-]{1,200}` only."""
    uri: str
    """Path of the main file, absolute, in a plan within the folder of its job; or `objaverse://`, `objaverse-xl://` or
    `texverse://` and its place there."""
    sha256: str | None = None
    """The sha256 of the main file, or of all its files (`pipeline.mesh_io.side_files`), when the source knows it."""
    source: Attribution = Attribution()
    caption: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Texts by level (`short`, `long`), where there are several: the same levels for all assets of a dataset."""
    kind: AssetKind = AssetKind.MESH
    root: str | None = None
    """The folder that all files of the asset lie in, as in `uri`, where it is not the main file's own, and for a .glb
    that refers to other files; a .glb without it may not."""


class Wrap(StrEnum):
    """Texture coordinates outside [0, 1], as in a glTF sampler."""

    REPEAT = "repeat"
    MIRROR = "mirror"
    CLAMP = "clamp"


class AlphaMode(StrEnum):
    """The use of a material's alpha, as in glTF."""

    OPAQUE = "opaque"
    MASK = "mask"
    BLEND = "blend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texture:
    """One image with its sampler."""

    image: UInt8[np.ndarray, "height width 4"]
    """RGB sRGB-encoded, A linear; row 0 is v = 1."""
    wrap_u: Wrap = Wrap.REPEAT
    wrap_v: Wrap = Wrap.REPEAT
    nearest: bool = False
    """Nearest instead of bilinear magnification."""
    file: bytes | None = None
    """The image as its file has it, where originals were asked for and it is used as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shading:
    """The metallic-roughness half of a material, which only lit views need (glTF 2.0, 3.9). Its textures share the
    coordinates of the base colour; where a file gives them others, the factor alone counts."""

    metallic: float = 0.0
    roughness: float = 1.0
    metallic_roughness: int | None = None
    """Index into `TexturedMesh.textures`: roughness in G, metallic in B, both linear."""
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Linear RGB factor, strength applied."""
    emissive_texture: int | None = None
    """Index into `TexturedMesh.textures`, sRGB."""
    normal_map: int | None = None
    """Index into `TexturedMesh.textures`: tangent-space normal, 8-bit linear."""
    normal_scale: float = 1.0
    occlusion_map: int | None = None
    """Index into `TexturedMesh.textures`: ambient occlusion in R, linear, where originals were asked for."""
    occlusion_strength: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The look of a surface: unlit base colour, and its answer to light."""

    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Linear RGBA factor."""
    texture: int | None = None
    """Index into `TexturedMesh.textures`."""
    alpha_mode: AlphaMode = AlphaMode.OPAQUE
    alpha_cutoff: float = 0.5
    double_sided: bool = True
    """Drawn from both sides of its faces; else from the one around which their corners run counter-clockwise."""
    shading: Shading = Shading()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One property of a surface beside its base colour: a factor per material, times a texture on coordinates of its
    own."""

    factors: Float32[np.ndarray, "m 3"]
    textures: tuple[int | None, ...]
    """Index of each material into `TexturedMesh.textures`: every face of a material that has one has coordinates."""
    uv: Float32[np.ndarray, "v 2"]
    """Texture transform applied, v up."""


FLAT = (0.5, 0.5, 1.0)
"""A normal that is not bent, as a normal map encodes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialLayers:
    """The material of a surface beside its base colour (glTF 2.0, 3.9): what samples with materials hold."""

    metallic_roughness: Layer
    """Linear: roughness in G, metallic in B."""
    normal: Layer
    """Linear, tangent space, 0..1 for -1..1, +Y towards +v; factor `FLAT` where a material has no map."""
    normal_scale: Float32[np.ndarray, " m"]
    """Factor of the map's x and y, per material."""
    emissive: Layer
    """Linear factors in [0, 1], sRGB textures; light emitted is `emissive_strength` times as much."""
    emissive_strength: float = 1.0
    tangents: Float32[np.ndarray, "f 3 4"]
    """Unit tangent of every corner, and the sign of cross(normal, tangent) that makes it the bitangent; 0 where the
    material has no normal map."""
    occlusion: Layer | None = None
    """Linear: ambient occlusion in R, factor 1; None where originals were not asked for."""
    occlusion_strength: Float32[np.ndarray, " m"] | None = None
    """Share of the occlusion that counts, per material."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturedMesh:
    """A whole asset as one indexed triangle mesh; node transforms applied, attributes per vertex."""

    vertices: Float32[np.ndarray, "v 3"]
    normals: Float32[np.ndarray, "v 3"]
    """Unit vertex normals (authored where the file has them)."""
    uv: Float32[np.ndarray, "v 2"]
    """Coordinates of the base-colour texture, texture transform applied; 0 where a part has none."""
    colors: Float32[np.ndarray, "v 4"]
    """Vertex colours, linear RGBA; 1 where a part has none."""
    faces: Int32[np.ndarray, "f 3"]
    face_material: Int32[np.ndarray, " f"]
    """Index into `materials`."""
    face_has_uv: Bool[np.ndarray, " f"]
    """False where the part of this face has no texture coordinates."""
    materials: tuple[Material, ...]
    textures: tuple[Texture, ...]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Origin of `vertices` in the asset's own frame, in double precision: not 0 only for an asset so far from its
    origin (UTM coordinates) that single precision would distort it."""
    layers: MaterialLayers | None = None
    """Materials beside the base colour; None where they were not asked for."""

    @property
    def single_sided(self) -> Bool[np.ndarray, " f"]:
        """Faces that are not seen from behind."""
        single = ~np.array([material.double_sided for material in self.materials], bool)
        return single[self.face_material] if single.any() else np.zeros(len(self.face_material), bool)


AUTHORED, GROWN, XATLAS = LAYOUTS = ("authored", "grown", "xatlas")
"""Origins of a UV layout: the asset's author, our own charts, xatlas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UvMesh:
    """The same surface with one UV layout in [0, 1]^2. Face i is face i of the `TexturedMesh` it came from; vertices
    are split at chart borders."""

    vertices: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    uv: Float32[np.ndarray, "n 2"]
    faces: Int32[np.ndarray, "f 3"]
    layout: str
    """One of `LAYOUTS`."""
    single_sided: Bool[np.ndarray, " f"] | None = None
    """Faces that are not seen from behind; None: there are none."""


MAX_MESH_BYTES = 1 << 28
_MESH_DTYPES = {"vertices": "<f4", "normals": "<f4", "uv": "<f4", "faces": "<i4"}
_SINGLE_SIDED = "single_sided"
"""A further array of bools, for meshes of which some face is not seen from behind."""
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f4|<i4|\|b1)', 'fortran_order': False, "
    rb"'shape': \((\d{1,10}),(?: (\d))?\), \} *\n",
    re.DOTALL,
)
"""The header that `np.savez` writes before an array of format 1.0."""
_ZIP_DATE = 0x21
"""1 January 1980, the first day that a zip archive can name."""
_MESH_COLUMNS = {"vertices": (3,), "normals": (3,), "uv": (2,), "faces": (3,), _SINGLE_SIDED: ()}


def encode_mesh(mesh: UvMesh) -> bytes:
    """Encode a mesh as a compressed .npz, as `numpy.load` reads it."""
    members = {f"{name}.npy": _npy(getattr(mesh, name), kind) for name, kind in _members(mesh).items()}
    if (size := sum(map(len, members.values()))) > MAX_MESH_BYTES:
        raise ValueError(f"field 'mesh.npz' has {size} bytes, more than {MAX_MESH_BYTES}")
    return _zip(members)


def mesh_arrays(mesh: UvMesh) -> dict[str, np.ndarray]:
    """Return the arrays of a mesh by name, as its file has them."""
    return {array: getattr(mesh, array) for array in _members(mesh)}


def _members(mesh: UvMesh) -> dict[str, str]:
    """Arrays of a mesh and their types."""
    return _MESH_DTYPES | ({} if mesh.single_sided is None else {_SINGLE_SIDED: "|b1"})


def _npy(array: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array, dtype=kind), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _zip(members: Mapping[str, bytes]) -> bytes:
    """Encode a zip archive by libdeflate, whose bytes are the same everywhere: `zipfile` takes Python's own zlib."""
    files, directory = bytearray(), bytearray()
    for name, data in members.items():
        packed = deflate.deflate_compress(data, DEFLATE_LEVEL)
        sizes = deflate.crc32(data), len(packed), len(data), len(name), 0
        entry = struct.pack("<5H3I2H", 20, 0, zipfile.ZIP_DEFLATED, 0, _ZIP_DATE, *sizes)
        place = struct.pack("<3H2I", 0, 0, 0, 0, len(files))
        directory += b"PK\1\2" + struct.pack("<H", 20) + entry + place + name.encode()
        files += b"PK\3\4" + entry + name.encode() + packed
    end = struct.pack("<4H2IH", 0, 0, len(members), len(members), len(directory), len(files), 0)
    return bytes(files + directory + b"PK\5\6" + end)


def decode_mesh(data: bytes, layout: str) -> UvMesh:
    """Decode a mesh of a layout. Raises ValueError for anything but what `encode_mesh` writes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [*_MESH_DTYPES, *([_SINGLE_SIDED] if f"{_SINGLE_SIDED}.npy" in archive.namelist() else [])]
            if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in names):
                raise ValueError(f"field 'mesh.npz' holds {archive.namelist()}, expected {list(_MESH_DTYPES)}")
            if (size := sum(info.file_size for info in archive.infolist())) > MAX_MESH_BYTES:
                raise ValueError(f"field 'mesh.npz' declares {size} bytes, more than {MAX_MESH_BYTES}")
            arrays = {name: _decode_npy(archive, name) for name in names}
    # zipfile's own words for a compression it does not know (NotImplementedError) and for a password (RuntimeError)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"field 'mesh.npz' cannot be read: {error}") from error
    corners = len(arrays["vertices"])
    if len(arrays["normals"]) != corners or len(arrays["uv"]) != corners:
        raise ValueError("field 'mesh.npz': vertices, normals and uv differ in number")
    faces = arrays["faces"]
    if faces.size and not (faces.min() >= 0 and faces.max() < corners):
        raise ValueError(f"field 'mesh.npz': a face refers to a vertex beyond the {corners} there are")
    if len(arrays.get(_SINGLE_SIDED, faces)) != len(faces):
        raise ValueError(f"field 'mesh.npz': {_SINGLE_SIDED} and faces differ in number")
    return UvMesh(**arrays, layout=layout)


def _decode_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Decode one array without numpy's loader, which takes memory for the declared shape before it reads, and whose
    parser of headers raises errors of many kinds."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"field 'mesh.npz': member {name} has compression {info.compress_type}, not deflate")
    data = archive.read(info)
    if (header := _NPY_HEADER.match(data)) is None:
        raise ValueError(f"field 'mesh.npz': member {name} is not an array as it is written here")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(extent) for extent in header.groups()[1:] if extent)
    raw = data[header.end() :]
    good = dtype == _MESH_DTYPES.get(name, "|b1") and shape[1:] == _MESH_COLUMNS[name]
    if not good or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"field 'mesh.npz': member {name} is {dtype} {shape} in {len(raw)} bytes")
    if dtype.kind == "b":
        return np.frombuffer(raw, np.uint8) != 0
    array = np.frombuffer(raw, dtype).reshape(shape).copy()
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"field 'mesh.npz': member {name} is not finite")
    return array
