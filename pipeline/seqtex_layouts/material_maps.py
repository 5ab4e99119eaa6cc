"""Samples as plain maps and a .glb, for Blender, three.js and any program that reads PNG: a folder `<uid>/` each.

| file | contents |
|---|---|
| `base_color.png` | RGB, sRGB |
| `opacity.png` | grey, linear; where the surface has holes, which it has below one half |
| `metallic.png`, `roughness.png` | grey, linear |
| `metallic_roughness.png` | both as glTF packs them: roughness in G, metallic in B; R is 255, no occlusion |
| `normal_gl.png` | tangent space (MikkTSpace) of the mesh, +Y up as in OpenGL, linear; 0..255 is -1..1 |
| `emissive.png` | RGB, sRGB, times `emissive_strength` of `sample.json`; where anything is emitted |
| `model.glb` | the mesh in its asset's own place and size, with all of these |
| `sample.json` | caption, source with licence, `emissive_strength` |

Maps have 8 bits a channel, as in shards; row 0 is v = 1. Samples without materials have base colour and opacity alone.
"""

import json
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from geometry.frames import Frame
from geometry.mesh import mikktspace
from pipeline.mesh_io.write_glb import KeptMaterials, Map, plain_materials, write_glb
from pipeline.render.materials import normal_image
from pipeline.seqtex_layouts.layout import MODEL, SOURCE_FIELDS, require_new_folder
from schemas.errors import UserError
from schemas.images import encode_grey, encode_image, with_empty_red
from schemas.mesh import UvMesh
from schemas.sample import MaterialMaps, Regime, TextureSample
from schemas.shards import stored_samples
from schemas.storage import Location, write_file

LIST = "maps.jsonl"
SAMPLE = "sample.json"
NO_OCCLUSION = 255


def export_maps(
    dataset: Location, dest: Path, on_item: Callable[[int, str], None], uids: Set[str] = frozenset()
) -> int:
    """Write the maps of every textured sample into the new folder `dest`, and return how many. uids: those alone.

    The list is written last: with it the export is whole. `on_item` gets the number of samples done, and the last uid.
    Raises UsageError for a uid that has no sample; UserError: no dataset, a damaged shard, a `dest` that is not empty,
    nothing to write."""
    require_new_folder(dest)
    lines = list[bytes]()
    for sample in stored_samples(dataset, Regime.TEXTURED, uids=uids):
        folder = dest / sample.uid
        folder.mkdir(parents=True)
        lines.append(_write_sample(folder, sample))
        on_item(len(lines), sample.uid)
    if not lines:
        raise UserError(f"{dataset}: has no sample of regime {Regime.TEXTURED}, which alone has UV maps")
    write_file(dest / LIST, b"".join(lines))
    return len(lines)


def _write_sample(folder: Path, sample: TextureSample) -> bytes:
    """Write the files of a sample, and return its line of the list."""
    assert sample.mesh is not None and sample.uv is not None
    uv, placed = sample.uv, sample.meta["frame"]
    files, strength = {"base_color": encode_image(uv.rgb, "PNG")}, 1.0
    kept = plain_materials(sample.mesh, uv.opacity)
    if uv.opacity is not None:
        files["opacity"] = encode_grey(uv.opacity)
    if uv.materials is not None:
        strength = float(sample.meta["materials"]["emissive_strength"])
        files |= _material_files(uv.materials)
        kept = _with_maps(kept, sample.mesh, files, strength)
    for name, data in files.items():
        write_file(folder / f"{name}.png", data)
    frame = Frame(center=np.array(placed["center"], np.float64), scale=float(placed["scale"]))
    write_glb(folder / MODEL, sample.mesh, uv.rgb, frame, kept=kept)
    source = {name: str(sample.meta["source"].get(name, "")) for name in SOURCE_FIELDS}
    entry: dict[str, Any] = {"id": sample.uid, "path": sample.uid, "caption": str(sample.meta.get("caption", ""))}
    line = json.dumps(entry | source | {"emissive_strength": strength}, ensure_ascii=False).encode() + b"\n"
    write_file(folder / SAMPLE, line)
    return line


def _material_files(maps: MaterialMaps) -> dict[str, bytes]:
    packed = with_empty_red(maps.metallic_roughness)
    packed[..., 0] = NO_OCCLUSION
    metallic, roughness = np.moveaxis(maps.metallic_roughness, -1, 0)
    images = {"metallic_roughness": packed, "normal_gl": normal_image(maps.normal_tangent)}
    images |= {"emissive": maps.emissive} if maps.emissive.any() else {}
    grey = {"metallic": np.ascontiguousarray(metallic), "roughness": np.ascontiguousarray(roughness)}
    return {name: encode_grey(image) for name, image in grey.items()} | {
        name: encode_image(image, "PNG") for name, image in images.items()
    }


def _with_maps(kept: KeptMaterials, mesh: UvMesh, files: dict[str, bytes], strength: float) -> KeptMaterials:
    """Plain materials with the maps of the files."""
    maps = {name: Map(image=data) for name, data in files.items()}
    glowing = "emissive" in maps
    materials = tuple(
        replace(
            material,
            metallic=1.0,
            metallic_roughness=maps["metallic_roughness"],
            normal=maps["normal_gl"],
            emissive=(1.0, 1.0, 1.0) if glowing else material.emissive,
            emissive_strength=strength if glowing else 1.0,
            emissive_map=maps.get("emissive"),
        )
        for material in kept.materials
    )
    tangents = mikktspace(mesh.vertices, mesh.normals, mesh.uv, mesh.faces)
    return replace(kept, materials=materials, tangents=tangents)
