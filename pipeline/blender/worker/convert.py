"""Any format that Blender reads to one .glb: what would be rendered, modifiers and poses applied, nothing else."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from materials import AssetError, check_material

READERS = {
    ".fbx": ("fbx_import", {"use_anim": False}),
    ".usd": ("usd_import", {"import_cameras": False, "import_lights": False, "set_frame_range": False}),
    ".abc": ("alembic_import", {"set_frame_range": False, "as_background_job": False}),
}
"""Operator in `bpy.ops.wm` and its options; for everything else its defaults."""


def convert(command: dict[str, Any]) -> dict[str, float]:
    """`source` to `target`, a .glb. Seconds of reading and of writing."""
    start = time.process_time()
    source, target = Path(command["source"]), Path(command["target"])
    read(source)
    check_references(source.parent.resolve())
    between = time.process_time()
    objects = flatten()
    materials = {m for obj in objects for m in obj.data.materials if m is not None}
    textured = {material.name for material in materials if check_material(material)}
    write(target)
    check_textures(target, textured)
    return {"read": between - start, "write": time.process_time() - between}


def read(source: Path) -> None:
    """Load a file into the scene without running anything that it holds."""
    suffix = source.suffix.lower()
    try:
        if suffix == ".blend":
            bpy.ops.wm.open_mainfile(filepath=str(source), load_ui=False, use_scripts=False)
            return
        name, options = READERS[".usd" if suffix.startswith(".usd") else suffix]
        if name not in dir(bpy.ops.wm):
            raise AssetError(
                "unsupported_format", f"Blender {bpy.app.version_string} reads no {suffix}; save it as glTF"
            )
        done = getattr(bpy.ops.wm, name)(filepath=str(source), **options)
    except RuntimeError as error:  # what an operator raises where it reports an error
        raise AssetError("load_error", f"Blender: {str(error).strip()[:500]}") from error
    if done != {"FINISHED"}:
        raise AssetError("load_error", f"Blender: {name} ended with {sorted(done)}")


def check_references(folder: Path) -> None:
    """Files outside the asset's folder are not the asset's to show."""
    files = [image.filepath for image in bpy.data.images if image.packed_file is None and image.filepath]
    files += [library.filepath for library in bpy.data.libraries]
    files += [cache.filepath for cache in bpy.data.cache_files]
    for name in files:
        path = Path(bpy.path.abspath(name)).resolve()
        if path.exists() and not path.is_relative_to(folder):
            raise AssetError("unsafe_uri", f"refers to {name[:200]!r}, outside the folder of the asset")


def flatten() -> list[bpy.types.Object]:
    """Replace everything by plain meshes: each visible mesh as modifiers, poses and shape keys make it, one object per
    instance."""
    depsgraph = bpy.context.evaluated_depsgraph_get()
    meshes: dict[int, bpy.types.Mesh] = {}
    placed = []
    for instance in depsgraph.object_instances:
        obj = instance.object
        owner = instance.parent if instance.is_instance else obj
        if obj.type != "MESH" or not instance.show_self or obj.original.hide_render or owner.original.hide_render:
            continue
        key = obj.data.as_pointer()
        if key not in meshes:
            meshes[key] = bpy.data.meshes.new_from_object(obj, preserve_all_data_layers=True, depsgraph=depsgraph)
            check_finite(meshes[key])
        placed.append((meshes[key], instance.matrix_world.copy()))
    if not sum(len(mesh.polygons) for mesh, _ in placed):
        raise AssetError("no_geometry", f"Blender finds {len(placed)} visible meshes, and no face in them")
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    objects = []
    for mesh, matrix in placed:
        obj = bpy.data.objects.new("part", mesh)
        obj.matrix_world = matrix
        bpy.context.scene.collection.objects.link(obj)
        objects.append(obj)
    return objects


def check_finite(mesh: bpy.types.Mesh) -> None:
    """The glTF writer makes numbers of what is none."""
    positions = np.empty((len(mesh.vertices), 3), np.float32)
    mesh.vertices.foreach_get("co", positions.reshape(-1))
    wrong = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(wrong):
        raise AssetError(
            "non_finite", f"mesh {mesh.name[:100]!r}: vertex {wrong[0]} is at {positions[wrong[0]].tolist()}"
        )


def write(target: Path) -> None:
    try:
        bpy.ops.export_scene.gltf(
            filepath=str(target),
            export_format="GLB",
            export_yup=True,
            use_active_scene=True,
            export_animations=False,
            export_skins=False,
            export_morph=False,
            export_cameras=False,
            export_lights=False,
            export_extras=False,
        )
    except RuntimeError as error:
        raise AssetError("load_error", f"Blender's glTF writer: {str(error).strip()[-500:]}") from error


def check_textures(target: Path, textured: set[str]) -> None:
    """The writer leaves out without an error what it cannot write."""
    data = target.read_bytes()
    tree = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    written = {
        material["name"]
        for material in tree.get("materials", [])
        if "baseColorTexture" in material.get("pbrMetallicRoughness", {})
    }
    if lost := sorted(textured - written):
        raise AssetError("unsupported_material", f"material {lost[0][:100]!r}: glTF cannot carry its texture")
