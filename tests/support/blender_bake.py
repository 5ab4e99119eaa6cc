"""Runs in Blender's interpreter: the materials of glTF files as Blender's own importer and baker have them.

`python -I blender_bake.py JOBS.json`: a list of `{"source": GLB, "atlas": NPZ, "target": NPY, "side": pixels,
"samples": of a texel}`. The atlas holds `places` [f, 3, 3] and `uv` [f, 3, 2]: corners in Blender's frame, and where
they lie in the map. The target is [4, side, side, 3], NaN where nothing was baked: world normals, roughness, metallic
and emitted light (linear)."""

import json
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils.kdtree import KDTree

EMPTY = -7.0
"""Value that no bake writes."""


def main(jobs: list[dict]) -> None:
    for job in jobs:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        bpy.ops.import_scene.gltf(filepath=job["source"])
        scene = bpy.context.scene
        scene.render.engine = "CYCLES"
        scene.cycles.device, scene.cycles.samples = "CPU", job["samples"]
        scene.cycles.use_adaptive_sampling = scene.cycles.use_denoising = False
        scene.cycles.pixel_filter_type = "BOX"
        objects = [obj for obj in scene.objects if obj.type == "MESH"]
        with np.load(job["atlas"], allow_pickle=False) as atlas:
            for obj in objects:
                lay_out(obj, atlas["places"], atlas["uv"])
        side = job["side"]
        normals = baked(objects, side, "NORMAL")
        for index, obj in enumerate(objects):  # baked in each object's own frame
            matrix = np.array(obj.matrix_world.to_3x3().inverted().transposed())
            turned = normals[index] @ matrix.T
            normals[index] = turned / np.linalg.norm(turned, axis=-1, keepdims=True)
        found = [merged(normals)]
        for name in ("Roughness", "Metallic"):
            rewire(name)
            found.append(merged(baked(objects, side, "EMIT")))
        rewire("Emission Color")
        found.append(merged(baked(objects, side, "EMIT")))
        np.save(job["target"], np.stack(found).astype(np.float32))


def lay_out(obj: bpy.types.Object, places: np.ndarray, uv: np.ndarray) -> None:
    """Give an imported mesh the coordinates of the atlas, whatever its own are: those of the nearest face there."""
    tree = KDTree(len(places))
    for index, center in enumerate(places.mean(axis=1)):
        tree.insert(center, index)
    tree.balance()
    mesh = obj.data
    own = np.empty(3 * len(mesh.vertices), np.float32)
    mesh.vertices.foreach_get("co", own)
    matrix = np.array(obj.matrix_world)
    world = own.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    laid = np.empty((len(mesh.loops), 2), np.float32)
    for polygon in mesh.polygons:
        loops = list(polygon.loop_indices)
        corners = world[[mesh.loops[loop].vertex_index for loop in loops]]
        face = tree.find(corners.mean(axis=0))[1]
        away = np.linalg.norm(corners[:, None] - places[face], axis=2)
        assert away.min(axis=1).max() < 1e-4 * np.ptp(places), "the atlas is that of another mesh"
        laid[loops] = uv[face][away.argmin(axis=1)]
    mesh.uv_layers.new(name="atlas").uv.foreach_set("vector", laid.ravel())
    mesh.uv_layers.active = mesh.uv_layers["atlas"]


def baked(objects: list, side: int, kind: str) -> list[np.ndarray]:
    """The bake of each object, row 0 at the top, NaN where it has no face."""
    found = []
    for obj in objects:
        image = bpy.data.images.new("baked", side, side, float_buffer=True, is_data=True)
        image.pixels.foreach_set(np.full(side * side * 4, EMPTY, np.float32))
        for material in obj.data.materials:
            nodes = material.node_tree.nodes
            target = nodes.new("ShaderNodeTexImage")
            target.image = image
            nodes.active = target
        bpy.ops.object.select_all(action="DESELECT")
        obj.select_set(True)
        bpy.context.view_layer.objects.active = obj
        bpy.ops.object.bake(type=kind, normal_space="OBJECT", margin=0, use_clear=False)
        pixels = np.empty(side * side * 4, np.float32)
        image.pixels.foreach_get(pixels)
        rgb = pixels.reshape(side, side, 4)[::-1, :, :3].astype(np.float64)
        empty = (rgb == EMPTY).all(axis=-1, keepdims=True)
        found.append(np.where(empty, np.nan, 2.0 * rgb - 1.0 if kind == "NORMAL" else rgb))
    return found


def merged(layers: list[np.ndarray]) -> np.ndarray:
    whole = layers[0]
    for layer in layers[1:]:
        whole = np.where(np.isnan(whole), layer, whole)
    return whole


def rewire(name: str) -> None:
    """Make every material emit one input of its Principled node: emission is what the baker takes without light."""
    for material in bpy.data.materials:
        if not material.node_tree:
            continue
        tree = material.node_tree
        shader = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
        output = next(node for node in tree.nodes if node.type == "OUTPUT_MATERIAL")
        glow = tree.nodes.new("ShaderNodeEmission")
        if name == "Emission Color":
            glow.inputs["Strength"].default_value = shader.inputs["Emission Strength"].default_value
        if shader.inputs[name].is_linked:
            tree.links.new(shader.inputs[name].links[0].from_socket, glow.inputs["Color"])
        else:
            value = shader.inputs[name].default_value
            glow.inputs["Color"].default_value = tuple(value) if name == "Emission Color" else (value, value, value, 1)
        tree.links.new(glow.outputs[0], output.inputs["Surface"])


main(json.loads(Path(sys.argv[1]).read_text()))
