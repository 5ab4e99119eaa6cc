"""Encode and decode a TextureSample as the fields of one WebDataset sample. A closed list of extensions, no pickles,
every declared size checked before memory is taken for it. Formats and figures:
docs/decisions/0001-shard-image-formats.md.

Views are stored as one strip per modality, (V*H, W). Every field is JSON, a standard image or an .npz; all samples of a
regime have the same fields, and their JSON the same keys with values of the same type. Colour and masks are lossless;
positions are 16 bit and normals 8 bit a channel, with the errors stated at `POSITION_ERROR` and `NORMAL_ERROR_DEG`."""

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import deflate
import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from schemas.images import (
    DEFLATE_LEVEL,
    check_size,
    decode_image,
    decode_normals,
    decode_positions,
    encode_grey,
    encode_image,
    encode_normals,
    encode_positions,
    field_bytes,
)
from schemas.mesh import UvMesh
from schemas.sample import Cameras, Regime, TextureSample, UvMaps, Views

SCHEMA_VERSION = 3
"""Version of the sample's fields and of its JSON; a reader refuses any other."""

VIEW_FIELDS = ("rgb.webp", "mask.png", "coverage.png", "position.png", "normal.png")
UV_FIELDS = ("uv_rgb.webp", "uv_mask.png", "uv_opacity.png", "uv_position.png", "uv_normal.png", "mesh.npz")
LIT, OPACITY = "lit.webp", "uv_opacity.png"
EXTENSIONS = frozenset(("json", *VIEW_FIELDS, *UV_FIELDS, LIT))
"""Everything a sample may hold."""

UPGRADE = "`seqtex upgrade DATASET --out NEW` writes a dataset of version 2 anew, any other is to be built again"
"""Remedy for a dataset of another version."""

UID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""The form of a sample's key."""

MAX_JSON_BYTES = 1 << 20
MAX_MESH_BYTES = 1 << 28

POSITION_ERROR = 1 / 65_534
"""Largest error of one stored coordinate, before float32 rounding; 0 is exact."""
NORMAL_ERROR_DEG = 0.4
"""Largest angle between a stored normal and the original: asin(sqrt(3) / 254) = 0.391 degrees."""

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


def fields_of(regime: Regime, lit: bool = False) -> tuple[str, ...]:
    """Return the extensions of a sample of a regime, in a dataset with views under light or without."""
    return ("json", *VIEW_FIELDS, *(UV_FIELDS if regime is Regime.TEXTURED else ()), *((LIT,) if lit else ()))


def encode(sample: TextureSample) -> dict[str, bytes]:
    """Encode a sample as fields, keyed by extension. Equal samples give equal bytes.

    Raises ValueError where the sample contradicts itself: maps of different sizes, cameras that are not those of its
    JSON, positions outside [-1, 1], a textured sample without UV maps."""
    _check_regime(sample.regime, sample.uv is not None, sample.mesh is not None)
    _check_meta(sample.meta)
    if sample.meta["uid"] != sample.uid or sample.meta["regime"] != sample.regime:
        raise ValueError(f"sample {sample.uid}: its JSON is of {sample.meta['uid']!r}, {sample.meta['regime']!r}")
    if cameras_json(sample.cameras) != sample.meta["cameras"]:
        raise ValueError(f"sample {sample.uid}: the cameras in its JSON are not those of the views")
    if sample.mesh is not None and sample.meta["measurements"].get("layout") != sample.mesh.layout:
        raise ValueError(f"sample {sample.uid}: measurements.layout in its JSON is not {sample.mesh.layout!r}")
    views = sample.views
    fields = {"json": _encode_json(sample.meta)}
    fields |= _encode_maps("", _strip(views.rgb), _strip(views.mask), _strip(views.position), _strip(views.normal))
    fields |= _encode_extra("coverage.png", _strip(views.coverage), views.mask.size)
    if views.lit is not None:
        fields |= _encode_extra(LIT, _strip(views.lit), views.mask.size)
    if sample.uv is not None and sample.mesh is not None:
        opaque = np.full(sample.uv.mask.shape, 255, np.uint8)
        opacity = opaque if sample.uv.opacity is None else sample.uv.opacity
        fields |= _encode_extra(OPACITY, opacity, sample.uv.mask.size)
        fields |= _encode_maps("uv_", sample.uv.rgb, sample.uv.mask, sample.uv.position, sample.uv.normal)
        fields["mesh.npz"] = encode_mesh(sample.mesh)
    return fields


def decode(fields: Mapping[str, Any]) -> TextureSample:
    """Decode the sample in `fields` (extension -> bytes). Names like `__key__`, which webdataset adds, are skipped.

    Raises ValueError naming the field: unknown or missing, malformed, oversized, or at odds with the JSON."""
    names = {name for name in fields if not (name.startswith("__") and name.endswith("__"))}
    if unknown := sorted(names - EXTENSIONS):
        raise ValueError(f"unknown field {unknown[0]!r}: a sample may hold only {', '.join(sorted(EXTENSIONS))}")
    meta = _decode_json(field_bytes(fields, "json"))
    regime = Regime(meta["regime"])
    required = fields_of(regime, LIT in names)
    if names != set(required):
        raise ValueError(f"sample {meta['uid']}: a {regime} sample has exactly {sorted(required)}, not {sorted(names)}")
    cameras = _decode_cameras(meta["cameras"])
    rgb, mask, position, normal = _decode_maps(fields, "")
    count = len(cameras.projection)
    if len(rgb) % count:
        raise ValueError(f"sample {meta['uid']}: a strip of {len(rgb)} rows does not divide into {count} views")
    views = Views(
        rgb=_unstrip(rgb, count),
        mask=_unstrip(mask, count),
        coverage=_unstrip(_decode_extra(fields, "coverage.png", mask.shape), count),
        position=_unstrip(position, count),
        normal=_unstrip(normal, count),
        lit=_unstrip(_decode_extra(fields, LIT, rgb.shape), count) if LIT in names else None,
    )
    uv, mesh = None, None
    if regime is Regime.TEXTURED:
        uv_rgb, uv_mask, uv_position, uv_normal = _decode_maps(fields, "uv_")
        opacity = _decode_extra(fields, OPACITY, uv_mask.shape)
        holes = None if opacity.min() == 255 else opacity
        uv = UvMaps(rgb=uv_rgb, mask=uv_mask, position=uv_position, normal=uv_normal, opacity=holes)
        mesh = decode_mesh(field_bytes(fields, "mesh.npz"), str(meta["measurements"].get("layout")))
    return TextureSample(uid=meta["uid"], regime=regime, views=views, cameras=cameras, uv=uv, mesh=mesh, meta=meta)


def decode_field(name: str, data: bytes) -> Any:
    """Decode one field without the others of its sample: JSON to a dict, a mesh to its arrays by name, an image to one
    array, in which views stay a strip. None for a field that no sample has.

    Raises ValueError naming the field where it is malformed or oversized."""
    fields, kind = {name: data}, name.removeprefix("uv_")
    if name not in EXTENSIONS:
        return None
    if name == "json":
        return _decode_json(data)
    if name == "mesh.npz":
        mesh = decode_mesh(data, layout="")
        return {array: getattr(mesh, array) for array in _members(mesh)}
    if kind in ("position.png", "normal.png"):
        return (decode_positions if kind == "position.png" else decode_normals)(fields, name)
    if name.endswith(".webp"):
        return decode_image(fields, name, "WEBP", "RGB")
    return decode_image(fields, name, "PNG", "1" if kind == "mask.png" else "L")


def cameras_json(cameras: Cameras) -> dict[str, list[list[list[float]]]]:
    """Return the `cameras` entry of a sample's JSON; float32 values survive exactly."""
    return {"world_to_cam": cameras.world_to_cam.tolist(), "projection": cameras.projection.tolist()}


def _check_regime(regime: Regime, has_uv: bool, has_mesh: bool) -> None:
    wanted = regime is Regime.TEXTURED
    if has_uv != wanted or has_mesh != wanted:
        raise ValueError(f"a {regime} sample must {'' if wanted else 'not '}have UV maps and a mesh")


def _encode_json(meta: dict[str, Any]) -> bytes:
    data = json.dumps(meta, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"field 'json' has {len(data)} bytes, more than {MAX_JSON_BYTES}")
    return data


def _decode_json(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"field 'json' has {len(data)} bytes, more than {MAX_JSON_BYTES}")
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"field 'json' is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError("field 'json' is not a JSON object")
    _check_meta(meta)
    return meta


def _check_meta(meta: dict[str, Any]) -> None:
    """Check that the keys that other tools rely on are there and have the right types."""
    if meta.get("schema_version") != SCHEMA_VERSION:
        version = meta.get("schema_version")
        raise ValueError(f"field 'json': schema version {version!r}, this program reads {SCHEMA_VERSION}; {UPGRADE}")
    types = dict.fromkeys(("uid", "regime", "caption"), str) | dict.fromkeys(
        ("source", "cameras", "frame", "measurements"), dict
    )
    for key, kind in types.items():
        if not isinstance(meta.get(key), kind):
            raise ValueError(f"field 'json': {key!r} is missing or not a {kind.__name__}")
    if not UID_PATTERN.fullmatch(meta["uid"]):
        raise ValueError(f"field 'json': {meta['uid']!r} is no uid, which is {UID_PATTERN.pattern}")
    if meta["regime"] not in list(Regime):
        raise ValueError(f"field 'json': unknown regime {meta['regime']!r}, known are {', '.join(Regime)}")
    for key in ("name", "uri", "licence", "attribution"):
        if not isinstance(meta["source"].get(key), str):
            raise ValueError(f"field 'json': source.{key} is missing or not text")
    _numbers(meta["frame"], "frame.center", (3,))
    _numbers(meta["frame"], "frame.scale", ())


def _numbers(entry: dict[str, Any], name: str, shape: tuple[int | None, ...]) -> Float32[np.ndarray, "..."]:
    """Return the numbers of `entry` under the last part of `name`, finite and of `shape` (None: any extent above 0)."""
    try:
        array = np.array(entry[name.rsplit(".", 1)[-1]], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"field 'json': {name} is missing or not numbers") from error
    extents = zip(array.shape, shape, strict=False)
    fits = array.ndim == len(shape) and all(n > 0 if want is None else n == want for n, want in extents)
    if not fits or not np.isfinite(array).all():
        raise ValueError(f"field 'json': {name} has shape {array.shape}, expected finite numbers of shape {shape}")
    return array


def _decode_cameras(entry: dict[str, Any]) -> Cameras:
    world_to_cam = _numbers(entry, "cameras.world_to_cam", (None, 4, 4))
    projection = _numbers(entry, "cameras.projection", (len(world_to_cam), 4, 4))
    return Cameras(world_to_cam=world_to_cam, projection=projection)


# images


def _strip(images: Shaped[np.ndarray, "views height width *c"]) -> Shaped[np.ndarray, "rows width *c"]:
    return images.reshape(-1, *images.shape[2:])


def _unstrip(strip: Shaped[np.ndarray, "rows width *c"], count: int) -> Shaped[np.ndarray, "views height width *c"]:
    return strip.reshape(count, len(strip) // count, *strip.shape[1:])


def _encode_maps(
    prefix: str,
    rgb: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    position: Float32[np.ndarray, "h w 3"],
    normal: Float32[np.ndarray, "h w 3"],
) -> dict[str, bytes]:
    """Encode the four images of one kind; they must agree in size."""
    if not rgb.shape == (*mask.shape, 3) == position.shape == normal.shape:
        shapes = [array.shape for array in (rgb, mask, position, normal)]
        raise ValueError(f"the {prefix or 'view'} images differ in size: {shapes}")
    check_size(f"{prefix}rgb.webp", *mask.shape)
    return {
        f"{prefix}rgb.webp": _encode_rgb(rgb, prefix),
        f"{prefix}mask.png": encode_grey(mask),
        f"{prefix}position.png": encode_positions(position, mask, f"{prefix}position.png"),
        f"{prefix}normal.png": encode_normals(normal, mask, f"{prefix}normal.png"),
    }


def _encode_extra(
    name: str, image: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"], pixels: int
) -> dict[str, bytes]:
    """Encode one more image beside the four of a kind, of as many pixels as they have."""
    if image.shape[0] * image.shape[1] != pixels:
        raise ValueError(f"field {name!r} has {image.shape[:2]} pixels, its mask {pixels} in all")
    return {name: _encode_rgb(image) if image.ndim == 3 else encode_grey(image)}


def _decode_extra(fields: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    form, mode = ("WEBP", "RGB") if len(shape) == 3 else ("PNG", "L")
    image = decode_image(fields, name, form, mode)
    if image.shape != shape:
        raise ValueError(f"field {name!r} is {image.shape}, the images beside it {shape}")
    return image


def _encode_rgb(image: UInt8[np.ndarray, "h w 3"], prefix: str = "") -> bytes:
    # method 1 takes three times as long as 0, and halves the size of an image with background, which a UV map lacks
    return encode_image(image, "WEBP", lossless=True, method=0 if prefix else 1, quality=0, exact=True)


def _decode_maps(fields: Mapping[str, Any], prefix: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Decode rgb, mask, position and normal of one kind, all of one size."""
    rgb = decode_image(fields, f"{prefix}rgb.webp", "WEBP", "RGB")
    mask = decode_image(fields, f"{prefix}mask.png", "PNG", "1")
    if mask.shape != rgb.shape[:2]:
        raise ValueError(f"field '{prefix}mask.png' is {mask.shape} pixels, '{prefix}rgb.webp' {rgb.shape[:2]}")
    position = decode_positions(fields, f"{prefix}position.png", mask)
    return rgb, mask, position, decode_normals(fields, f"{prefix}normal.png", mask)


# mesh


def encode_mesh(mesh: UvMesh) -> bytes:
    """Encode a mesh as a compressed .npz, as `numpy.load` reads it."""
    members = {f"{name}.npy": _npy(getattr(mesh, name), kind) for name, kind in _members(mesh).items()}
    if (size := sum(map(len, members.values()))) > MAX_MESH_BYTES:
        raise ValueError(f"field 'mesh.npz' has {size} bytes, more than {MAX_MESH_BYTES}")
    return _zip(members)


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
