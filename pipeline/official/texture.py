"""`model.jpeg` of the 3D layout: the texture of a model whose .glb has none."""

from dataclasses import replace
from pathlib import Path

from pipeline.formats.fault import AssetFault
from pipeline.formats.image_header import image_size
from pipeline.formats.images import decode_image
from pipeline.formats.uris import read_limited
from pipeline.preflight import PreflightConfig
from schemas.ledger import Reason, Rejected
from schemas.mesh import Texture, TexturedMesh


def wear_jpeg(mesh: TexturedMesh, path: Path, cfg: PreflightConfig) -> TexturedMesh | Rejected:
    """The mesh with the image as base colour; unchanged where it has a texture of its own, or there is no image."""
    if any(material.texture is not None for material in mesh.materials) or not path.is_file():
        return mesh
    try:
        data = read_limited(path, "texture", cfg.max_file_bytes)
        width, height = image_size(data, path.name)
        if 4 * width * height > cfg.max_image_bytes:
            detail = f"{path.name} is {width} x {height} pixels, limit {cfg.max_image_bytes:,} bytes decoded"
            raise AssetFault(Reason.TOO_LARGE, detail)
        image = decode_image(data, path.name)
    except AssetFault as fault:
        return fault.rejected
    slot = len(mesh.textures)
    materials = tuple(
        replace(material, texture=slot, base_color=(1.0, 1.0, 1.0, material.base_color[3]))
        for material in mesh.materials
    )
    return replace(mesh, materials=materials, textures=(*mesh.textures, Texture(image=image)))
