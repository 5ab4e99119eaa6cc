"""A material as Cycles nodes: factor x texture x vertex colour, cut out below an alpha, lit or glowing."""

from collections.abc import Mapping
from typing import Any

import bpy
import numpy as np

EXTENSION = {"repeat": "REPEAT", "mirror": "MIRROR", "clamp": "EXTEND"}


class Nodes:
    """Shorthand for one node tree: sockets in, a socket out."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        self.tree = tree

    def add(self, kind: str, inputs: Mapping[Any, Any], **settings: Any) -> bpy.types.Node:
        node = self.tree.nodes.new(f"ShaderNode{kind}")
        for name, value in settings.items():
            setattr(node, name, value)
        for name, value in inputs.items():
            if isinstance(value, bpy.types.NodeSocket):
                self.tree.links.new(value, node.inputs[name])
            else:
                node.inputs[name].default_value = value
        return node

    def math(self, operation: str, first: Any, second: Any) -> bpy.types.NodeSocket:
        return self.add("Math", {0: first, 1: second}, operation=operation).outputs[0]

    def times(self, first: Any, second: Any) -> bpy.types.NodeSocket:
        """Product of two colours."""
        return self.add("VectorMath", {0: first, 1: second}, operation="MULTIPLY").outputs[0]


def add_material(
    material: dict[str, Any], has_uv: bool, textures: list[dict[str, Any]], arrays: dict[str, np.ndarray], shading: str
) -> bpy.types.Material:
    """`shading`: `lit` or `emission`. A single-sided material is not seen from behind; shadows are cast by what light
    meets from behind, as in three.js, so that a shell of backs does not darken what it surrounds."""
    made = bpy.data.materials.new("material")
    made.use_nodes = True
    made.node_tree.nodes.clear()
    nodes = Nodes(made.node_tree)

    def look_up(index: int | None, linear: bool) -> bpy.types.Node | None:
        if index is None or not has_uv:
            return None
        return add_texture(nodes, textures[index], index, arrays, linear)

    painted = nodes.add("VertexColor", {}, layer_name="painted")
    color = nodes.times(painted.outputs["Color"], tuple(material["base_color"][:3]))
    alpha = nodes.math("MULTIPLY", painted.outputs["Alpha"], material["base_color"][3])
    if texture := look_up(material["texture"], linear=False):
        color = nodes.times(color, texture.outputs["Color"])
        alpha = nodes.math("MULTIPLY", alpha, texture.outputs["Alpha"])
    if shading == "emission":
        shader = nodes.add("Emission", {"Color": color})
    else:
        shader = principled(nodes, material["shading"], color, look_up)
    surface = shader.outputs[0]
    if material["cutoff"] >= 0:
        hole = nodes.math("LESS_THAN", alpha, material["cutoff"])
        surface = nodes.add("MixShader", {0: hole, 1: surface, 2: nodes.add("BsdfTransparent", {}).outputs[0]}).outputs[
            0
        ]
    if not material["double_sided"]:
        behind = nodes.add("NewGeometry", {}).outputs["Backfacing"]
        shadow = nodes.add("LightPath", {}).outputs["Is Shadow Ray"]
        unseen = nodes.math("ABSOLUTE", nodes.math("SUBTRACT", behind, shadow), 0.0)
        nothing = nodes.add("BsdfTransparent", {}).outputs[0]
        surface = nodes.add("MixShader", {0: unseen, 1: surface, 2: nothing}).outputs[0]
    nodes.add("OutputMaterial", {"Surface": surface})
    return made


def principled(nodes: Nodes, shading: dict[str, Any], color: bpy.types.NodeSocket, look_up: Any) -> bpy.types.Node:
    """glTF's metallic-roughness material."""
    metallic, roughness = shading["metallic"], shading["roughness"]
    if packed := look_up(shading["metallic_roughness"], linear=True):
        channels = nodes.add("SeparateColor", {0: packed.outputs["Color"]})
        roughness = nodes.math("MULTIPLY", channels.outputs["Green"], roughness)
        metallic = nodes.math("MULTIPLY", channels.outputs["Blue"], metallic)
    glow: Any = (*shading["emissive"], 1.0)
    if texture := look_up(shading["emissive_texture"], linear=False):
        glow = nodes.times(texture.outputs["Color"], tuple(shading["emissive"]))
    inputs = {"Base Color": color, "Metallic": metallic, "Roughness": roughness}
    inputs |= {"Emission Color": glow, "Emission Strength": 1.0}
    if normal := look_up(shading["normal_map"], linear=True):
        bent = nodes.add(
            "NormalMap", {"Strength": shading["normal_scale"], "Color": normal.outputs["Color"]}, uv_map="uv"
        )
        inputs["Normal"] = bent.outputs[0]
    return nodes.add("BsdfPrincipled", inputs)


def add_texture(
    nodes: Nodes, texture: dict[str, Any], index: int, arrays: dict[str, np.ndarray], linear: bool
) -> bpy.types.Node:
    """An image at the coordinates `uv`. Cycles wraps both axes alike: where they differ, the coordinate is."""
    place = nodes.add("UVMap", {}, uv_map="uv").outputs[0]
    wraps = texture["wrap_u"], texture["wrap_v"]
    if wraps[0] != wraps[1]:
        axes = nodes.add("SeparateXYZ", {0: place})
        height, width = arrays[f"image_{index}"].shape[:2]
        bent = [
            wrapped(nodes, axes.outputs[axis], wrap, size)
            for axis, (wrap, size) in enumerate(zip(wraps, (width, height), strict=True))
        ]
        place = nodes.add("CombineXYZ", {0: bent[0], 1: bent[1]}).outputs[0]
    extension = EXTENSION[wraps[0]] if wraps[0] == wraps[1] else "EXTEND"
    interpolation = "Closest" if texture["nearest"] else "Linear"
    image = add_image(index, arrays, linear)
    return nodes.add("TexImage", {0: place}, image=image, extension=extension, interpolation=interpolation)


def wrapped(nodes: Nodes, coordinate: bpy.types.NodeSocket, wrap: str, size: int) -> bpy.types.NodeSocket:
    """A coordinate brought into [0, 1]."""
    if wrap == "repeat":
        return nodes.math("FRACT", coordinate, 0.0)
    if wrap == "mirror":
        return nodes.math("PINGPONG", coordinate, 1.0)
    return nodes.add("Clamp", {0: coordinate, 1: 0.5 / size, 2: 1 - 0.5 / size}).outputs[0]


def add_image(index: int, arrays: dict[str, np.ndarray], linear: bool) -> bpy.types.Image:
    """RGB and alpha as two independent things; Blender's first row is the bottom."""
    name = f"{index} {'linear' if linear else 'sRGB'}"
    if name in bpy.data.images:
        return bpy.data.images[name]
    pixels = arrays[f"image_{index}"]
    image = bpy.data.images.new(name, pixels.shape[1], pixels.shape[0], alpha=True)
    image.colorspace_settings.name = "Non-Color" if linear else "sRGB"
    image.alpha_mode = "CHANNEL_PACKED"
    image.pixels.foreach_set((pixels[::-1].astype(np.float32) / 255.0).ravel())
    image.pack()
    return image
