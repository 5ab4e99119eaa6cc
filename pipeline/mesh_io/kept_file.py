"""Kept materials as a file, which the sandboxed process that reads a mesh leaves for the program outside."""

import json
import math
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pipeline.mesh_io.image_header import image_size
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.write_glb import KeptMaterials, Map, Material, is_gltf_image
from schemas.mesh import UvMesh, Wrap

MAX_KEPT_BYTES = 1 << 30
MAX_SIDE = 16_384
"""Longest side of a kept image, pixels (ours)."""
_SHARES = ("roughness", "metallic", "occlusion_strength")
_NUMBERS = ("normal_scale", "emissive_strength")
_FLAGS = ("double_sided", "cut_out", "blended")
_MAPS = ("metallic_roughness", "normal", "occlusion", "emissive_map")


def encode_kept(kept: KeptMaterials) -> bytes:
    """Encode kept materials as safetensors; all their images are files."""
    images = list(dict.fromkeys(found.image for one in kept.materials for found in one.maps() if _is_file(found)))

    def place(found: Map | None) -> dict[str, Any] | None:
        if found is None:
            return None
        places = {name: getattr(found, name) for name in ("uv_set", "wrap_u", "wrap_v", "nearest")}
        return places | {"image": images.index(found.image)}

    plain = ("emissive", *_SHARES, *_NUMBERS, *_FLAGS)
    materials = [
        {name: getattr(one, name) for name in plain} | {name: place(getattr(one, name)) for name in _MAPS}
        for one in kept.materials
    ]
    text = json.dumps({"materials": materials, "skipped": kept.skipped}, allow_nan=False)
    arrays = {"json": np.frombuffer(text.encode(), np.uint8), "face_material": kept.face_material}
    arrays |= {f"image.{number}": np.frombuffer(image, np.uint8) for number, image in enumerate(images)}
    arrays |= {f"uv.{number}": np.ascontiguousarray(uv) for number, uv in enumerate(kept.more_uv, start=1)}
    for name, array in (("tangents", kept.tangents), ("opacity", kept.opacity)):
        arrays |= {} if array is None else {name: np.ascontiguousarray(array)}
    return safetensors.numpy.save(arrays)


def _is_file(found: Map) -> bool:
    return isinstance(found.image, bytes)


def decode_kept(data: bytes, mesh: UvMesh, resolution: int) -> KeptMaterials:
    """Decode the kept materials of a mesh, whose opacity has `resolution` texels a side. Raises ValueError, KeyError or
    TypeError for anything but what `encode_kept` writes."""
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(f"kept materials cannot be read: {error}") from error
    found = json.loads(arrays.pop("json").tobytes())
    images = [_image(arrays[name].tobytes()) for name in _numbered(arrays, "image", 0)]
    more_uv = [_floats(arrays, name, (len(mesh.vertices), 2)) for name in _numbered(arrays, "uv", 1)]
    materials = tuple(_material(entry, images, len(more_uv)) for entry in found["materials"])
    faces, face_material = len(mesh.faces), arrays["face_material"]
    if face_material.dtype != np.int32 or face_material.shape != (faces,):
        raise ValueError(f"face_material is {face_material.dtype} {face_material.shape}, the mesh has {faces} faces")
    if faces and not 0 <= face_material.min() <= face_material.max() < len(materials):
        raise ValueError(f"face_material points outside the {len(materials)} materials")
    opacity = arrays.get("opacity")
    if opacity is not None and (opacity.dtype != np.uint8 or opacity.shape != (resolution, resolution)):
        raise ValueError(f"opacity is {opacity.dtype} {opacity.shape}, expected {resolution} texels a side")
    return KeptMaterials(
        materials=materials,
        face_material=face_material,
        more_uv=tuple(more_uv),
        tangents=_floats(arrays, "tangents", (faces, 3, 4)) if "tangents" in arrays else None,
        opacity=opacity,
        skipped=tuple(str(text) for text in found["skipped"]),
    )


def _numbered(arrays: dict[str, np.ndarray], prefix: str, first: int) -> list[str]:
    count = sum(name.startswith(f"{prefix}.") for name in arrays)
    return [f"{prefix}.{number}" for number in range(first, first + count)]


def _floats(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = arrays[name]
    if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected finite float32 {shape}")
    return array


def _image(data: bytes) -> bytes:
    """Check an image file by its header."""
    if not is_gltf_image(data):
        raise ValueError(f"an image that no glTF file may hold: it starts with {data[:12]!r}")
    try:
        size = image_size(data, "a kept image")
    except AssetError as error:
        raise ValueError(str(error)) from error
    if max(size) > MAX_SIDE:
        raise ValueError(f"an image of {size[0]} x {size[1]} pixels; at most {MAX_SIDE} a side")
    return data


def _material(entry: dict[str, Any], images: list[bytes], more_uv: int) -> Material:
    fields: dict[str, Any] = {name: _number(entry[name], 0.0, 1.0) for name in _SHARES}
    fields |= {name: _number(entry[name], -1e6, 1e6) for name in _NUMBERS}
    fields |= {name: None if entry[name] is None else _map(entry[name], images, more_uv) for name in _MAPS}
    fields |= {name: bool(entry[name]) for name in _FLAGS}
    red, green, blue = (_number(value, 0.0, 1.0) for value in entry["emissive"])
    return Material(emissive=(red, green, blue), **fields)


def _number(value: Any, low: float, high: float) -> float:
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{number} where {low:g} to {high:g} is expected")
    return number


def _map(entry: dict[str, Any], images: list[bytes], more_uv: int) -> Map:
    image, uv_set = int(entry["image"]), int(entry["uv_set"])
    if not (0 <= image < len(images) and 0 <= uv_set <= more_uv):
        raise ValueError(f"a map uses image {image} and coordinates {uv_set}, which there are not")
    return Map(
        image=images[image],
        uv_set=uv_set,
        wrap_u=Wrap(entry["wrap_u"]),
        wrap_v=Wrap(entry["wrap_v"]),
        nearest=bool(entry["nearest"]),
    )
