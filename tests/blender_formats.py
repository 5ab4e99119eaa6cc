"""Runs in Blender's interpreter: one .glb saved in every format that the pipeline reads through Blender.

`python -I blender_formats.py BOX.glb FOLDER`
"""

import sys
from pathlib import Path

import bpy


def main(source: str, folder: Path) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=source)
    box = next(obj for obj in bpy.data.objects if obj.type == "MESH")
    bpy.ops.object.select_all(action="DESELECT")
    box.select_set(True)
    bpy.context.view_layer.objects.active = box
    bpy.ops.export_scene.fbx(filepath=str(folder / "box.fbx"), path_mode="COPY", embed_textures=True)
    for suffix in ("usda", "usdc", "usdz"):
        bpy.ops.wm.usd_export(filepath=str(folder / f"box.{suffix}"))
    bpy.ops.wm.alembic_export(filepath=str(folder / "box.abc"), as_background_job=False)
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "box.blend"))
    paint(box.data)
    bpy.ops.wm.ply_export(filepath=str(folder / "box.ply"), export_colors="SRGB")


def paint(mesh: bpy.types.Mesh) -> None:
    """Vertex colours, for a format without textures: red grows with height."""
    colors = mesh.color_attributes.new("paint", "FLOAT_COLOR", "POINT")
    heights = [vertex.co.z for vertex in mesh.vertices]
    for item, height in zip(colors.data, heights, strict=True):
        red = (height - min(heights)) / (max(heights) - min(heights))
        item.color_srgb = (red, 0.2, 0.6, 1.0)


main(sys.argv[1], Path(sys.argv[2]))
