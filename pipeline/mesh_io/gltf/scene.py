"""Scenes of glTF: primitives placed by nodes, instances and skins.

Everything is checked against the file's own lists; of accessors, only the transforms of instances are read here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pipeline.mesh_io.gltf.accessors import Accessor, as_floats, read_accessor
from pipeline.mesh_io.gltf.container import Container
from pipeline.mesh_io.gltf.json_fields import Json
from pipeline.mesh_io.gltf.materials import SceneMaterial, read_material
from pipeline.mesh_io.gltf.primitives import Primitive, read_primitives
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

INSTANCING, VISIBILITY = "EXT_mesh_gpu_instancing", "KHR_node_visibility"
_INSTANCE_WIDTHS = {"TRANSLATION": 3, "ROTATION": 4, "SCALE": 3}


@dataclass(frozen=True, slots=True)
class Skin:
    where: str
    joints: list[int]
    inverse_bind: Accessor | None


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """One mesh at one node of the scene."""

    primitives: list[Primitive]
    world: Float64[np.ndarray, "4 4"]
    skin: Skin | None
    weights: list[float]
    """Of the morph targets at rest; a target beyond them has weight 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    placements: list[Placement]
    primitives: list[Primitive]
    """All of the file, drawn or not."""
    worlds: Float64[np.ndarray, "nodes 4 4"]
    """Global transform of every node."""
    materials: list[SceneMaterial]
    container: Container

    def used_images(self) -> list[int]:
        """Base-colour images of what is drawn."""
        used = {p.material for placement in self.placements for p in placement.primitives}
        textures = [self.materials[number].texture for number in used if number is not None]
        return sorted({texture.image for texture in textures if texture is not None})


def read_scene(container: Container, max_nodes: int, max_depth: int) -> Scene:
    """Nodes of the default scene with a mesh, in file order, and all materials. Instances count as nodes."""
    tree = container.tree
    materials = [read_material(entry, container) for entry in tree.objects("materials")]
    entries = tree.objects("meshes")
    meshes = [read_primitives(entry, container, len(materials)) for entry in entries]
    skins = [_skin(entry, container) for entry in tree.objects("skins")]
    nodes = container.nodes
    if len(nodes) > max_nodes:
        raise AssetError(Reason.TOO_LARGE, f"{len(nodes):,} nodes, limit {max_nodes:,}")
    children = [node.indices("children", len(nodes), "nodes") for node in nodes]
    worlds = _worlds(nodes, children, max_depth)
    placements: list[Placement] = []
    for number in _drawn(tree, nodes, children):
        node = nodes[number]
        mesh, skin = node.index("mesh", len(meshes), "meshes"), node.index("skin", len(skins), "skins")
        if mesh is None:
            continue
        weights = (node if "weights" in node else entries[mesh]).list_of_numbers("weights")
        posed = None if skin is None else skins[skin]
        for world in _instances(node, worlds[number], container, max_nodes - len(placements)):
            placements.append(Placement(meshes[mesh], world, posed, weights))
    return Scene(placements, [p for mesh in meshes for p in mesh], worlds, materials, container)


def _instances(
    node: Json, world: Float64[np.ndarray, "4 4"], container: Container, limit: int
) -> list[Float64[np.ndarray, "4 4"]]:
    """Yield the places where a node's mesh is drawn: once, or once for each row of EXT_mesh_gpu_instancing."""
    found = node.extension(INSTANCING)
    names = found.object("attributes") if found else None
    if names is None:
        return [world]
    parts: dict[str, Float64[np.ndarray, "n width"]] = {}
    for name, width in _INSTANCE_WIDTHS.items():
        number = names.index(name, len(container.accessors), "accessors")
        if number is None:
            continue
        accessor = container.accessors[number]
        if accessor.count > limit:
            raise AssetError(Reason.TOO_LARGE, f"{names.at(name)}: {accessor.count:,} instances, limit {limit:,} left")
        if accessor.width != width or any(len(part) != accessor.count for part in parts.values()):
            names.wrong(name, f"an accessor of VEC{width}, as long as the others")
        parts[name] = as_floats(read_accessor(accessor), accessor.dtype, accessor.normalized)
        if not np.isfinite(parts[name]).all():
            raise AssetError(Reason.NON_FINITE, f"{names.at(name)} is not finite")
    count = max((len(part) for part in parts.values()), default=1)
    moves = parts.get("TRANSLATION", np.zeros((count, 3)))
    turns = parts.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))
    scales = parts.get("SCALE", np.ones((count, 3)))
    with np.errstate(over="ignore", invalid="ignore"):  # the loader refuses what is no longer finite
        return [world @ _composed(*row) for row in zip(moves.tolist(), turns.tolist(), scales.tolist(), strict=True)]


def _worlds(nodes: list[Json], children: list[list[int]], max_depth: int) -> Float64[np.ndarray, "nodes 4 4"]:
    """Global transforms. The nodes must form trees (glTF 2.0, 3.5.2) of bounded depth."""
    parents: dict[int, int] = {}
    for number, below in enumerate(children):
        for child in below:
            if child in parents:
                raise AssetError(Reason.INVALID_STRUCTURE, f"nodes[{child}] has two parents")
            parents[child] = number
    worlds = np.tile(np.eye(4), (len(nodes), 1, 1))
    level = [(number, np.eye(4)) for number in range(len(nodes)) if number not in parents]
    reached, depth = 0, 0
    while level:
        depth += 1
        if depth > max_depth:
            raise AssetError(Reason.INVALID_STRUCTURE, f"node tree is deeper than the limit {max_depth}")
        following = []
        for number, parent in level:
            with np.errstate(over="ignore", invalid="ignore"):  # the loader refuses what is no longer finite
                worlds[number] = parent @ _local(nodes[number])
            following += [(child, worlds[number]) for child in children[number]]
        reached += len(level)
        level = following
    if reached < len(nodes):
        raise AssetError(Reason.INVALID_STRUCTURE, f"node tree has a cycle ({len(nodes) - reached} nodes in it)")
    return worlds


def _local(node: Json) -> Float64[np.ndarray, "4 4"]:
    if "matrix" in node:
        return np.array(node.numbers("matrix", [0.0] * 16)).reshape(4, 4).T
    return _composed(
        node.numbers("translation", (0.0, 0.0, 0.0)),
        node.numbers("rotation", (0.0, 0.0, 0.0, 1.0)),
        node.numbers("scale", (1.0, 1.0, 1.0)),
    )


def _composed(move: Sequence[float], turn: Sequence[float], scale: Sequence[float]) -> Float64[np.ndarray, "4 4"]:
    """Scale, then turn (quaternion x y z w, any length), then move."""
    x, y, z, w = turn
    norm = math.sqrt(x * x + y * y + z * z + w * w) or 1.0
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = move
    return matrix


def _drawn(tree: Json, nodes: list[Json], children: list[list[int]]) -> list[int]:
    """Visible nodes of the default scene (else the first, else all nodes), in file order."""
    scenes = tree.objects("scenes")
    number = tree.index("scene", len(scenes), "scenes")
    if scenes:
        waiting = list(scenes[number or 0].indices("nodes", len(children), "nodes"))
    else:
        below = {child for group in children for child in group}
        waiting = [node for node in range(len(children)) if node not in below]
    drawn: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node not in drawn and _visible(nodes[node]):
            drawn.add(node)
            waiting += children[node]
    return sorted(drawn)


def _visible(node: Json) -> bool:
    """KHR_node_visibility hides a node and all below it."""
    found = node.extension(VISIBILITY)
    return found is None or "visible" not in found or found.flag("visible")


def _skin(entry: Json, container: Container) -> Skin:
    joints = entry.indices("joints", len(container.nodes), "nodes")
    number = entry.index("inverseBindMatrices", len(container.accessors), "accessors")
    bind = None if number is None else container.accessors[number]
    if bind is not None and (bind.width != 16 or bind.dtype.kind != "f" or bind.count < len(joints)):
        entry.wrong("inverseBindMatrices", f"an accessor of {len(joints)} float matrices")
    return Skin(entry.where, joints, bind)
