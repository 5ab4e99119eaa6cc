"""Checked bytes to one textured mesh: the only reader of assets."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image as PillowImage

from geometry.texture import srgb_to_linear
from pipeline.formats.fault import AssetFault
from pipeline.formats.gltf_container import image_bytes
from pipeline.formats.gltf_parts import scene_parts
from pipeline.formats.gltf_scene import Scene, SceneMaterial
from pipeline.formats.image_header import image_size
from pipeline.formats.obj import ObjFile, ObjMaterial
from pipeline.formats.parts import Part, face_vectors, merge, unit
from pipeline.formats.uris import read_limited
from pipeline.preflight import PreflightConfig, open_checked
from schemas.ledger import Reason, Rejected
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh, Wrap

_COS_CREASE = np.cos(np.radians(40.0))
"""OBJ without normals: a corner is smooth where the mean normal is within 40 degrees of the face's own."""


def load_mesh(path: Path, cfg: PreflightConfig | None = None) -> TexturedMesh | Rejected:
    """A .glb, .gltf or .obj as one mesh in its own Y-up frame, or why it cannot be read. Runs the preflight itself.

    Every face of the default scene, in file order, with node transforms, instances and skins applied. A base-colour
    image that is missing or broken rejects the asset: it is never silently textureless. Normals are the authored ones;
    without them, flat for glTF (as its specification says), smooth up to a crease angle for OBJ.
    """
    cfg = cfg or PreflightConfig()
    try:
        _, content = open_checked(path, cfg)
        return _from_obj(content, cfg) if isinstance(content, ObjFile) else _from_scene(content, cfg)
    except AssetFault as fault:
        return fault.rejected


def decode_image(data: bytes | memoryview, where: str) -> UInt8[np.ndarray, "height width 4"]:
    """PNG, JPEG or WebP to RGBA, row 0 at the top; a fault unless every pixel decodes."""
    size = image_size(data, where)
    try:
        with PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != size:
                raise AssetFault(Reason.BAD_IMAGE, f"{where}: header says {size}, decoder {image.size}")
            image.load()
            return np.array(_eight_bit(image).convert("RGBA"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        PillowImage.DecompressionBombError,
    ) as e:
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: image cannot be decoded ({e})") from e


def _eight_bit(image: PillowImage.Image) -> PillowImage.Image:
    """A mode that Pillow converts to RGBA without clipping."""
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
        return PillowImage.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB") else image


def _from_scene(scene: Scene, cfg: PreflightConfig) -> TexturedMesh:
    parts = scene_parts(scene)
    pixels = {
        number: decode_image(image_bytes(scene.images[number], cfg.max_file_bytes), scene.images[number].where)
        for number in scene.used_images()
    }
    textures: dict[tuple[int, Wrap, Wrap, bool], int] = {}
    materials = []
    for number in _used(parts):
        material = scene.materials[number - 1] if number else SceneMaterial()
        use, slot = material.texture, None
        if use is not None:
            slot = textures.setdefault((use.image, use.wrap_u, use.wrap_v, use.nearest), len(textures))
        materials.append(
            Material(
                base_color=material.base_color,
                texture=slot,
                alpha_mode=material.alpha_mode,
                alpha_cutoff=material.alpha_cutoff,
                double_sided=material.double_sided,
            )
        )
    stored = [Texture(image=pixels[image], wrap_u=u, wrap_v=v, nearest=near) for image, u, v, near in textures]
    return merge(_renumbered(parts), materials, stored)


def _used(parts: list[Part]) -> list[int]:
    """Numbers of the materials that faces have, ascending."""
    return sorted({int(number) for part in parts for number in np.unique(part.face_material)})


def _renumbered(parts: list[Part]) -> list[Part]:
    used = np.array(_used(parts), dtype=np.int64)
    return [replace(part, face_material=np.searchsorted(used, part.face_material)) for part in parts]


def _from_obj(obj: ObjFile, cfg: PreflightConfig) -> TexturedMesh:
    """Every material that faces use, the corners of all faces made vertices."""
    part = _obj_part(obj)
    textures: dict[tuple[Path, Wrap], int] = {}
    materials = []
    for number in _used([part]):
        material = obj.materials[number]
        textured = obj.face_material == number
        slot = None
        if material.image is not None:
            if not part.face_has_uv[textured].all():
                raise AssetFault(Reason.INVALID_STRUCTURE, f"faces with map_Kd {material.image.name!r} but without vt")
            wrap = Wrap.CLAMP if material.clamp else Wrap.REPEAT
            slot = textures.setdefault((material.image, wrap), len(textures))
        materials.append(_obj_material(material, slot))
    pixels = {
        path: decode_image(read_limited(path, "map_Kd", cfg.max_file_bytes), f"map_Kd {path.name!r}")
        for path, _ in textures
    }
    stored = [Texture(image=pixels[path], wrap_u=wrap, wrap_v=wrap) for path, wrap in textures]
    return merge(_renumbered([part]), materials, stored)


def _obj_material(material: ObjMaterial, texture: int | None) -> Material:
    red, green, blue = (float(x) for x in srgb_to_linear(np.array(material.color, dtype=np.float32)))
    factor = (1.0, 1.0, 1.0) if texture is not None else (red, green, blue)
    blend = AlphaMode.BLEND if material.opacity < 1 else AlphaMode.OPAQUE
    return Material(base_color=(*factor, material.opacity), texture=texture, alpha_mode=blend)


def _obj_part(obj: ObjFile) -> Part:
    position, uv, normal = np.moveaxis(obj.corners, 2, 0)
    face_normals = unit(face_vectors(obj.positions, position))
    weighted = face_normals[:, None] * _angles(obj.positions[position])[..., None]
    summed = np.zeros_like(obj.positions)
    np.add.at(summed, position.reshape(-1), weighted.reshape(-1, 3))
    flat, smooth = face_normals[:, None], unit(summed)[position]
    is_flat = (normal < 0) & ((flat * smooth).sum(axis=2) < _COS_CREASE)
    # A corner is a vertex of its own where position, uv or normal differ; a flat corner's normal belongs to its face.
    face = np.broadcast_to(np.arange(len(normal))[:, None], normal.shape)
    keys = np.stack([position, uv, np.where(is_flat, -2 - face, normal)], axis=2).reshape(-1, 3)
    _, first, faces = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    computed = np.where(is_flat[..., None], flat, smooth).reshape(-1, 3)[first]
    at, uv_at, normal_at = position.reshape(-1)[first], uv.reshape(-1)[first], normal.reshape(-1)[first]
    colors = np.ones((len(first), 4))
    if obj.colors is not None:
        colors[:, :3] = srgb_to_linear(obj.colors.astype(np.float32))[at]
    return Part(
        vertices=obj.positions[at],
        normals=np.where((normal_at >= 0)[:, None], _rows(obj.normals, normal_at), computed),
        uv=np.where((uv_at >= 0)[:, None], _rows(obj.uvs, uv_at), 0.0),
        colors=colors,
        faces=faces.reshape(-1, 3),
        face_material=obj.face_material,
        face_has_uv=(uv >= 0).all(axis=1),
    )


def _angles(corners: Float64[np.ndarray, "f 3 3"]) -> Float64[np.ndarray, "f 3"]:
    """Angle of each triangle at its corners, radians: weights that do not depend on how a polygon was cut."""
    forth = unit((np.roll(corners, -1, axis=1) - corners).reshape(-1, 3)).reshape(corners.shape)
    back = unit((np.roll(corners, 1, axis=1) - corners).reshape(-1, 3)).reshape(corners.shape)
    return np.arccos(np.clip((forth * back).sum(axis=2), -1.0, 1.0))


def _rows(table: Float64[np.ndarray, "n width"], index: np.ndarray) -> Float64[np.ndarray, "m width"]:
    """Rows of a table that may be empty; row 0 (or zeros) where the index is negative."""
    return table[np.maximum(index, 0)] if len(table) else np.zeros((len(index), table.shape[1]))
