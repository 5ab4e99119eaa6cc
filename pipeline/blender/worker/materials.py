"""Check that glTF can carry the base colour of a Blender material. The writer ignores nodes that it does not know, and
says nothing: an asset in wrong colours must not look like one in right colours."""

from collections.abc import Iterator
from pathlib import Path

import bpy


class AssetError(Exception):
    """An asset that Blender cannot process. `reason` is a value of `schemas.ledger.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


CARRIED = {"TEX_IMAGE", "MIX", "RGB", "VERTEX_COLOR", "REROUTE"}
"""Nodes between an image and a base colour that the glTF writer understands (MIX: where it multiplies)."""
PLACED_BY = {"UVMAP", "MAPPING", "TEX_COORD", "REROUTE", "COMBXYZ", "SEPXYZ", "MATH"}
"""Nodes that may place an image (those of wrap modes included)."""


def check_material(material: bpy.types.Material) -> bool:
    """Return whether the base colour has an image. Faults: a shader that is not Principled, colours that nodes make,
    images that are missing or broken."""
    if material.node_tree is None:
        return False
    output = material.node_tree.get_output_node("ALL")
    links = output.inputs["Surface"].links if output else ()
    if not links:
        return False
    shader = links[0].from_node
    if shader.type != "BSDF_PRINCIPLED":
        raise unsupported(material, f"its surface is a {shader.bl_label!r} node, not a Principled one")
    images = 0
    for link in upstream(shader.inputs["Base Color"]):
        node = link.from_node
        if node.type not in CARRIED or (node.type == "MIX" and node.blend_type != "MULTIPLY"):
            raise unsupported(material, f"the node {node.bl_label!r} makes its colour")
        if node.type == "TEX_IMAGE":
            check_image_node(material, node)
            images += 1
    return images > 0


def upstream(socket: bpy.types.NodeSocket) -> Iterator[bpy.types.NodeLink]:
    """Links towards a socket, not through images."""
    for link in socket.links:
        yield link
        if link.from_node.type != "TEX_IMAGE":
            for other in link.from_node.inputs:
                yield from upstream(other)


def check_image_node(material: bpy.types.Material, node: bpy.types.ShaderNodeTexImage) -> None:
    """An image that decodes, laid on by a UV map."""
    image = node.image
    if image is None:
        raise AssetError("missing_file", f"material {material.name[:100]!r}: its image is gone")
    if 0 in image.size:
        there = image.packed_file is not None or Path(bpy.path.abspath(image.filepath)).is_file()
        reason, what = ("bad_image", "cannot be decoded") if there else ("missing_file", "does not exist")
        raise AssetError(reason, f"material {material.name[:100]!r}: image {image.filepath[:200]!r} {what}")
    if image.source not in ("FILE", "GENERATED"):
        raise unsupported(material, f"its image is of the kind {image.source.lower()}")
    if node.projection != "FLAT":
        raise unsupported(material, f"its image is projected ({node.projection.lower()})")
    for link in upstream(node.inputs["Vector"]):
        place = link.from_node
        if place.type not in PLACED_BY or (place.type == "TEX_COORD" and link.from_socket.name != "UV"):
            raise unsupported(material, f"the node {place.bl_label!r} ({link.from_socket.name}) places its image")


def unsupported(material: bpy.types.Material, what: str) -> AssetError:
    return AssetError("unsupported_material", f"material {material.name[:100]!r}: {what}; glTF cannot carry that")
