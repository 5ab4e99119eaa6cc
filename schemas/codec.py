"""Encode and decode a TextureSample as the fields of one WebDataset sample. A closed list of extensions, no pickles,
every declared size checked before memory is taken for it. Formats and figures:
docs/decisions/0001-shard-image-formats.md.

Views are stored as one strip per modality, (V*H, W). Every field is JSON, a standard image or an .npz; all samples of a
regime have the same fields, and their JSON the same keys with values of the same type. Colour and masks are lossless;
positions are 16 bit and normals 8 bit a channel, with the errors stated at `POSITION_ERROR` and `NORMAL_ERROR_DEG`."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from schemas.images import (
    check_size,
    decode_image,
    decode_metallic_roughness,
    decode_normals,
    decode_positions,
    encode_grey,
    encode_image,
    encode_normals,
    encode_positions,
    field_bytes,
    with_empty_red,
)
from schemas.mesh import decode_mesh, encode_mesh, mesh_arrays
from schemas.sample import Cameras, MaterialMaps, MaterialViews, Regime, TextureSample, UvMaps, Views

SCHEMA_VERSION = 3
"""Version of the sample's fields and of its JSON; a reader refuses any other."""

VIEW_FIELDS = ("rgb.webp", "mask.png", "coverage.png", "position.png", "normal.png")
UV_FIELDS = ("uv_rgb.webp", "uv_mask.png", "uv_opacity.png", "uv_position.png", "uv_normal.png", "mesh.npz")
LIT, OPACITY = "lit.webp", "uv_opacity.png"
MATERIAL_VIEW_FIELDS = ("metallic_roughness.webp", "normal_detail.png", "emissive.webp")
MATERIAL_UV_FIELDS = (
    "uv_metallic_roughness.webp",
    "uv_normal_detail.png",
    "uv_normal_tangent.png",
    "uv_emissive.webp",
)
MATERIAL_FIELDS = frozenset((*MATERIAL_VIEW_FIELDS, *MATERIAL_UV_FIELDS))
EXTENSIONS = frozenset(("json", *VIEW_FIELDS, *UV_FIELDS, LIT, *MATERIAL_FIELDS))
"""Everything a sample may hold."""

UPGRADE = "`seqtex upgrade DATASET --out NEW` writes a dataset of version 2 anew, any other is to be built again"
"""Remedy for a dataset of another version."""

UID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""The form of a sample's key."""

MAX_JSON_BYTES = 1 << 20

POSITION_ERROR = 1 / 65_534
"""Largest error of one stored coordinate, before float32 rounding; 0 is exact."""
NORMAL_ERROR_DEG = 0.4
"""Largest angle between a stored normal and the original: asin(sqrt(3) / 254) = 0.391 degrees."""


def fields_of(regime: Regime, lit: bool = False, materials: bool = False) -> tuple[str, ...]:
    """Return the extensions of a sample of a regime, in a dataset with views under light or without, with materials or
    without."""
    fields = [*VIEW_FIELDS, *(MATERIAL_VIEW_FIELDS if materials else ()), *((LIT,) if lit else ())]
    if regime is Regime.TEXTURED:
        fields += [*UV_FIELDS, *(MATERIAL_UV_FIELDS if materials else ())]
    return ("json", *fields)


def fields_like(regime: Regime, names: Collection[str]) -> frozenset[str]:
    """Return the extensions that a sample has which has some of `names`: all that belong to lit views and materials, or
    none."""
    return frozenset(fields_of(regime, LIT in names, not MATERIAL_FIELDS.isdisjoint(names)))


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
    if sample.uv is not None and (views.materials is None) != (sample.uv.materials is None):
        raise ValueError(f"sample {sample.uid}: views and UV maps have materials, or neither has them")
    if views.materials is not None:
        known = fields["normal.png"] if views.materials.normal_detail is views.normal else None
        fields |= encode_materials("", views.materials, _strip(views.mask), known)
    if sample.uv is not None and sample.mesh is not None:
        opaque = np.full(sample.uv.mask.shape, 255, np.uint8)
        opacity = opaque if sample.uv.opacity is None else sample.uv.opacity
        fields |= _encode_extra(OPACITY, opacity, sample.uv.mask.size)
        fields |= _encode_maps("uv_", sample.uv.rgb, sample.uv.mask, sample.uv.position, sample.uv.normal)
        if sample.uv.materials is not None:
            fields |= encode_materials("uv_", sample.uv.materials, np.ones_like(sample.uv.mask))
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
    required = fields_like(regime, names)
    if names != required:
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
    layered = not MATERIAL_FIELDS.isdisjoint(names)
    if layered:
        found = {name: _unstrip(strip, count) for name, strip in decode_materials(fields, "", mask.shape).items()}
        views = replace(views, materials=MaterialViews(**found))
    uv, mesh = None, None
    if regime is Regime.TEXTURED:
        uv_rgb, uv_mask, uv_position, uv_normal = _decode_maps(fields, "uv_")
        opacity = _decode_extra(fields, OPACITY, uv_mask.shape)
        holes = None if opacity.min() == 255 else opacity
        materials = MaterialMaps(**decode_materials(fields, "uv_", uv_mask.shape)) if layered else None
        uv = UvMaps(
            rgb=uv_rgb, mask=uv_mask, position=uv_position, normal=uv_normal, opacity=holes, materials=materials
        )
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
        return mesh_arrays(decode_mesh(data, layout=""))
    if kind == "position.png":
        return decode_positions(fields, name)
    if kind.startswith("normal"):
        return decode_normals(fields, name)
    if kind == "metallic_roughness.webp":
        return decode_metallic_roughness(fields, name)
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


# materials


def encode_materials(
    prefix: str, maps: MaterialViews | MaterialMaps, mask: Bool[np.ndarray, "h w"], normal_detail: bytes | None = None
) -> dict[str, bytes]:
    """Encode the material maps of one kind; views become strips of the mask's rows. `normal_detail`: that field, if it
    is encoded already."""
    fields = {}
    for field in dataclass_fields(maps):
        image = getattr(maps, field.name)
        image = image.reshape(-1, *image.shape[-2:])
        if image.shape[:2] != mask.shape:
            raise ValueError(f"the {prefix}{field.name} map is {image.shape[:2]}, its mask {mask.shape}")
        if field.name == "normal_detail" and normal_detail is not None:
            fields[f"{prefix}normal_detail.png"] = normal_detail
        elif image.dtype == np.float32:
            fields[f"{prefix}{field.name}.png"] = encode_normals(image, mask, f"{prefix}{field.name}.png")
        else:
            stored = with_empty_red(image) if image.shape[2] == 2 else image
            fields[f"{prefix}{field.name}.webp"] = _encode_rgb(stored, prefix)
    return fields


def decode_materials(
    fields: Mapping[str, Any], prefix: str, shape: tuple[int, int]
) -> dict[str, Float32[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w _"]]:
    """Decode the material maps of one kind by name, each of a size."""
    maps = {}
    for name in MATERIAL_UV_FIELDS if prefix else MATERIAL_VIEW_FIELDS:
        maps[name.removeprefix(prefix).partition(".")[0]] = image = decode_field(name, field_bytes(fields, name))
        if image.shape[:2] != shape:
            raise ValueError(f"field {name!r} is {image.shape[:2]} pixels, the images beside it {shape}")
    return maps
