"""Scenes of glTF: primitives placed by nodes, instances and skins.

Everything that is drawn is checked against the file's own lists; of accessors, only the transforms of instances are
read here. Meshes, materials and skins that no node of the scene needs are never parsed, and a node that cannot be drawn
is left out with a note.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from pipeline.mesh_io.gltf.accessors import Accessor, as_floats, read_accessor
from pipeline.mesh_io.gltf.container import Container
from pipeline.mesh_io.gltf.extensions import INSTANCING, VISIBILITY
from pipeline.mesh_io.gltf.json_fields import Json, Parsed
from pipeline.mesh_io.gltf.materials import SceneMaterial, read_material
from pipeline.mesh_io.gltf.primitives import Primitive, read_primitives
from pipeline.mesh_io.problems import AssetError, Notes
from schemas.ledger import NoteKind, Reason

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
    """Weights of the morph targets at rest; a target beyond them has weight 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    placements: list[Placement]
    worlds: Float64[np.ndarray, "nodes 4 4"]
    """Global transform of every node."""
    materials: dict[int, SceneMaterial]
    """Materials of what is drawn, by number."""
    container: Container

    def drawn(self) -> list[tuple[Primitive, Placement]]:
        """All primitives with their places, in file order, each instance by itself."""
        return [(primitive, placement) for placement in self.placements for primitive in placement.primitives]

    def used_images(self) -> list[int]:
        """Base-colour images of what is drawn."""
        used = {primitive.material for primitive, _ in self.drawn()}
        textures = [self.materials[number].texture for number in used if number is not None]
        return sorted({texture.image for texture in textures if texture is not None})


def read_scene(container: Container, max_nodes: int, max_depth: int) -> Scene:
    """Nodes of the default scene with a mesh, in file order. Instances count as nodes."""
    tree, nodes, notes = container.tree, container.nodes, container.notes
    if len(nodes) > max_nodes:
        raise AssetError(Reason.TOO_LARGE, f"{len(nodes):,} nodes, limit {max_nodes:,}")
    materials = all_materials(container)
    entries, skins = tree.objects("meshes"), Parsed(tree.objects("skins"), lambda entry: _skin(entry, container))
    children = [_known(node, "children", len(nodes), notes) for node in nodes]
    worlds = _worlds(nodes, children, max_depth, notes)
    drawn = [number for number in _drawn(tree, nodes, children, notes) if "mesh" in nodes[number]]
    skinned = [nodes[number].get("mesh") for number in drawn if "skin" in nodes[number]]
    meshes: dict[int, list[Primitive]] = {}
    placements: list[Placement] = []
    for number in drawn:
        node = nodes[number]
        with notes.in_place_of_an_error(NoteKind.PART_LEFT_OUT):
            mesh, skin = node.index("mesh", len(entries), "meshes"), node.index("skin", len(skins), "skins")
            assert mesh is not None
            if mesh not in meshes:
                meshes[mesh] = read_primitives(entries[mesh], container, materials, mesh in skinned)
            weights = (node if "weights" in node else entries[mesh]).list_of_numbers("weights")
            posed = None if skin is None else skins[skin]
            if posed is None and not np.isfinite(worlds[number]).all():
                raise AssetError(Reason.NON_FINITE, f"{node.where}: its transform is not finite")
            worlds_here = _instances(node, worlds[number], container, max_nodes - len(placements))
            placements += [Placement(meshes[mesh], world, posed, weights) for world in worlds_here]
    used = {primitive.material for placement in placements for primitive in placement.primitives}
    return Scene(placements, worlds, {number: materials[number] for number in used if number is not None}, container)


def all_materials(container: Container) -> Parsed[SceneMaterial]:
    """Return the materials of a file, each read when first asked for."""
    return Parsed(container.tree.objects("materials"), lambda entry: read_material(entry, container))


def all_meshes(scene: Scene) -> Scene:
    """Every mesh of the file placed once, for what is wrong with a file that draws none."""
    container = scene.container
    entries, materials = container.tree.objects("meshes"), all_materials(container)
    found = [read_primitives(entry, container, materials, skinned=False) for entry in entries]
    used = {primitive.material for primitives in found for primitive in primitives}
    return replace(
        scene,
        placements=[Placement(primitives, np.eye(4), None, []) for primitives in found],
        materials={number: materials[number] for number in used if number is not None},
    )


def _known(entry: Json, key: str, size: int, notes: Notes) -> list[int]:
    """References of an entry to nodes; those to nodes that are not there are left out."""
    found = entry.get(key, [])
    if not isinstance(found, list):
        entry.wrong(key, "a list")
    known = [x for x in found if isinstance(x, int) and not isinstance(x, bool) and 0 <= x < size]
    if lost := len(found) - len(known):
        notes.add(NoteKind.PART_LEFT_OUT, f"{entry.at(key)} refers to nodes that are not there", lost)
    return known


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
    with np.errstate(over="ignore", invalid="ignore"):  # the loader leaves out what is no longer finite
        return [world @ _composed(*row) for row in zip(moves.tolist(), turns.tolist(), scales.tolist(), strict=True)]


def _worlds(
    nodes: list[Json], children: list[list[int]], max_depth: int, notes: Notes
) -> Float64[np.ndarray, "nodes 4 4"]:
    """Global transforms, not finite at and below a node whose own cannot be read. The nodes must form trees (glTF 2.0,
    3.5.2) of bounded depth."""
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
            worlds[number] = np.nan
            with (
                notes.in_place_of_an_error(NoteKind.PART_LEFT_OUT),
                np.errstate(over="ignore", invalid="ignore"),  # what is no longer finite is not drawn
            ):
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


def _drawn(tree: Json, nodes: list[Json], children: list[list[int]], notes: Notes) -> list[int]:
    """Visible nodes of the default scene (else the first, else all nodes), in file order."""
    scenes, number = tree.objects("scenes"), None
    with notes.in_place_of_an_error(NoteKind.VALUE_CORRECTED):
        number = tree.index("scene", len(scenes), "scenes")
    if scenes:
        waiting = _known(scenes[number or 0], "nodes", len(children), notes)
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
