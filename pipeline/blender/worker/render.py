"""Cycles images of one mesh that comes as arrays (`pipeline.blender.scene`): views, and a bake of its base colour."""

import time
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector
from surface import add_material

SUN_ANGLE = 0.35
"""Radians across: soft shadows."""


def render(command: dict[str, Any]) -> dict[str, float]:
    """One PNG (RGBA, sRGB, straight alpha) per camera in `directory`: 00.png, 01.png, ..."""
    start = time.process_time()
    build(command)
    set_up(command)
    if command["shading"] == "lit":
        add_light(command["light"])
    scene = bpy.context.scene
    scene.render.resolution_x = scene.render.resolution_y = command["resolution"]
    seconds = {"scene": time.process_time() - start}
    start = time.process_time()
    for number, camera in enumerate(command["cameras"]):
        scene.camera = add_camera(camera)
        scene.render.filepath = str(Path(command["directory"]) / f"{number:02d}.png")
        bpy.ops.render.render(write_still=True)
    return seconds | {"views": time.process_time() - start}


def bake(command: dict[str, Any]) -> dict[str, float]:
    """The base colour laid out by the corner coordinates `atlas`: a PNG at `path`."""
    start = time.process_time()
    obj = build(command)
    set_up(command)
    image = bpy.data.images.new("baked", command["resolution"], command["resolution"])
    for material in obj.data.materials:
        node = material.node_tree.nodes.new("ShaderNodeTexImage")
        node.image = image
        material.node_tree.nodes.active = node
    obj.data.uv_layers.active = obj.data.uv_layers["atlas"]
    obj.select_set(True)
    bpy.context.view_layer.objects.active = obj
    seconds = {"scene": time.process_time() - start}
    start = time.process_time()
    bpy.ops.object.bake(type="EMIT", margin=4, use_clear=True)
    image.save(filepath=command["path"])
    return seconds | {"bake": time.process_time() - start}


def set_up(command: dict[str, Any]) -> None:
    """Plain sRGB, no film or filter effects, nothing left to chance."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.film_transparent = True
    scene.render.use_persistent_data = True  # views share the scene's acceleration structure
    scene.render.dither_intensity = 0.0
    settings = scene.render.image_settings
    settings.file_format, settings.color_mode, settings.color_depth, settings.compression = "PNG", "RGBA", "8", 15
    scene.view_settings.view_transform, scene.view_settings.look = "Standard", "None"
    cycles = scene.cycles
    cycles.device = "CPU"
    cycles.samples, cycles.seed = command["samples"], command["seed"]
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = False
    cycles.pixel_filter_type = "BOX"  # a pixel is the mean over its own square, as in our coverage
    cycles.max_bounces, cycles.transparent_max_bounces = 4, 8
    scene.world = bpy.data.worlds.new("dark")
    scene.world.color = (0.0, 0.0, 0.0)


def add_light(light: dict[str, Any]) -> None:
    """A uniform sky, and a sun that shines along `direction`."""
    world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    background = next(node for node in world.node_tree.nodes if node.type == "BACKGROUND")
    background.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    background.inputs["Strength"].default_value = light["sky"]
    bpy.context.scene.world = world
    sun = bpy.data.lights.new("sun", "SUN")
    sun.energy, sun.angle = light["sun"], SUN_ANGLE
    obj = bpy.data.objects.new("sun", sun)
    obj.matrix_world = Vector(light["direction"]).to_track_quat("-Z", "Y").to_matrix().to_4x4()
    bpy.context.scene.collection.objects.link(obj)


def add_camera(camera: dict[str, Any]) -> bpy.types.Object:
    """`cam_to_world` [4][4], looking down -z. The image is `2 / scale` wide, for a perspective at distance 1."""
    data = bpy.data.cameras.new("camera")
    data.clip_start, data.clip_end = 1e-3, 1e3
    data.sensor_fit, data.sensor_width = "HORIZONTAL", 36.0
    if camera["perspective"]:
        data.lens = camera["scale"] * data.sensor_width / 2
    else:
        data.type, data.ortho_scale = "ORTHO", 2 / camera["scale"]
    obj = bpy.data.objects.new("camera", data)
    obj.matrix_world = Matrix(camera["cam_to_world"])
    bpy.context.scene.collection.objects.link(obj)
    return obj


def build(command: dict[str, Any]) -> bpy.types.Object:
    """The mesh with its materials; faces without texture coordinates get untextured copies of theirs."""
    with np.load(command["mesh"], allow_pickle=False) as stored:
        arrays = dict(stored)
    faces = arrays["faces"]
    mesh = bpy.data.meshes.new("mesh")
    mesh.vertices.add(len(arrays["vertices"]))
    mesh.vertices.foreach_set("co", arrays["vertices"].ravel())
    mesh.loops.add(faces.size)
    mesh.loops.foreach_set("vertex_index", faces.ravel())
    mesh.polygons.add(len(faces))
    mesh.polygons.foreach_set("loop_start", np.arange(0, faces.size, 3, dtype=np.int32))
    combined = arrays["face_material"] * 2 + arrays["face_has_uv"]
    used, slots = np.unique(combined, return_inverse=True)
    mesh.polygons.foreach_set("material_index", slots.astype(np.int32))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(faces), bool))
    mesh.update(calc_edges=True)
    mesh.attributes.new("custom_normal", "FLOAT_VECTOR", "POINT").data.foreach_set("vector", arrays["normals"].ravel())
    mesh.attributes.new("painted", "FLOAT_COLOR", "POINT").data.foreach_set("color", arrays["colors"].ravel())
    mesh.uv_layers.new(name="uv").uv.foreach_set("vector", arrays["uv"][faces].ravel())
    if "atlas" in arrays:
        mesh.uv_layers.new(name="atlas").uv.foreach_set("vector", arrays["atlas"].ravel())
    for code in used:
        material = command["materials"][code // 2]
        mesh.materials.append(add_material(material, bool(code % 2), command["textures"], arrays, command["shading"]))
    obj = bpy.data.objects.new("mesh", mesh)
    bpy.context.scene.collection.objects.link(obj)
    return obj
