"""Runs in Blender's interpreter: one .glb saved in every format that is read through Blender, and scenes with a snag.

`python -I blender_formats.py BOX.glb FOLDER`, or `python -I blender_formats.py --trusting FILE.blend`: open with its
scripts allowed to run."""

import os
import sys
from pathlib import Path

import bpy


def main(arguments: list[str]) -> None:
    if arguments[0] == "--trusting":
        bpy.context.preferences.filepaths.use_scripts_auto_execute = True
        bpy.ops.wm.open_mainfile(filepath=arguments[1], use_scripts=True)
        os._exit(0)  # Blender 4.5 as a module waits for ever at its end once a driver has run Python
    source, folder = arguments[0], Path(arguments[1])
    save_formats(source, folder)
    for name, spoil in SNAGS.items():
        box = load(source)
        spoil(box, folder)
        bpy.ops.wm.save_as_mainfile(filepath=str(folder / f"{name}.blend"))
    (folder / "lost.png").unlink()


def load(source: str) -> bpy.types.Object:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=source)
    box = next(obj for obj in bpy.data.objects if obj.type == "MESH")
    bpy.ops.object.select_all(action="DESELECT")
    box.select_set(True)
    bpy.context.view_layer.objects.active = box
    return box


def save_formats(source: str, folder: Path) -> None:
    box = load(source)
    bpy.ops.export_scene.fbx(filepath=str(folder / "box.fbx"), path_mode="COPY", embed_textures=True)
    for suffix in ("usda", "usdz"):
        bpy.ops.wm.usd_export(filepath=str(folder / f"box.{suffix}"))
    bpy.ops.wm.alembic_export(filepath=str(folder / "box.abc"), as_background_job=False)
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "box.blend"))
    colors = box.data.color_attributes.new("paint", "FLOAT_COLOR", "POINT")
    for item, vertex in zip(colors.data, box.data.vertices, strict=True):
        item.color_srgb = (vertex.co.z / 2 + 0.5, 0.2, 0.6, 1.0)  # red grows with height


def shader(box: bpy.types.Object, kind: str) -> bpy.types.Node:
    return next(node for node in box.data.materials[0].node_tree.nodes if node.type == kind)


def scripted(box: bpy.types.Object, folder: Path) -> None:
    """A script and a driver that leave a file behind if they are run."""
    text = bpy.data.texts.new("startup.py")
    text.write(f"open({str(folder / 'script-ran')!r}, 'w').close()")
    text.use_module = True
    driver = box.driver_add("location", 0).driver
    driver.expression = f"open({str(folder / 'driver-ran')!r}, 'w').close() or 0.0"


def composed(box: bpy.types.Object, folder: Path) -> None:
    """A modifier that doubles the box, an instance of it, a hidden copy and one that is not rendered."""
    for far, hide in ((50, "hide_viewport"), (-50, "hide_render")):
        copy = box.copy()
        copy.location = (0, 0, far)
        setattr(copy, hide, True)
        bpy.context.scene.collection.objects.link(copy)
    library = bpy.data.collections.new("library")
    library.objects.link(box.copy())
    instance = bpy.data.objects.new("instance", None)
    instance.instance_type, instance.instance_collection, instance.location = "COLLECTION", library, (0, 10, 0)
    bpy.context.scene.collection.objects.link(instance)
    box.modifiers.new("twice", "ARRAY").count = 2


def noisy(box: bpy.types.Object, folder: Path) -> None:
    tree = box.data.materials[0].node_tree
    noise = tree.nodes.new("ShaderNodeTexNoise")
    tree.links.new(noise.outputs["Color"], shader(box, "BSDF_PRINCIPLED").inputs["Base Color"])


def lost_image(box: bpy.types.Object, folder: Path) -> None:
    save_image(shader(box, "TEX_IMAGE").image, folder / "lost.png")


def outside_image(box: bpy.types.Object, folder: Path) -> None:
    save_image(shader(box, "TEX_IMAGE").image, folder.parent / "secret.png")


def broken_image(box: bpy.types.Object, folder: Path) -> None:
    image = shader(box, "TEX_IMAGE").image
    save_image(image, folder / "broken.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")


def save_image(image: bpy.types.Image, path: Path) -> None:
    image.filepath_raw = str(path)
    image.save()
    image.unpack(method="REMOVE")
    image.filepath = str(path)


def emptied(box: bpy.types.Object, folder: Path) -> None:
    bpy.data.objects.remove(box)


SNAGS = {
    "scripted": scripted,
    "composed": composed,
    "noisy": noisy,
    "lost": lost_image,
    "outside": outside_image,
    "broken": broken_image,
    "emptied": emptied,
}

main(sys.argv[1:])
