"""Placed glTF primitives to parts: accessors decoded, skins posed, transforms applied."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import DracoPy
import numpy as np
from jaxtyping import Float64, Int64

from geometry.mesh import face_vectors
from pipeline.mesh_io.gltf.accessors import Accessor, as_floats, read_accessor
from pipeline.mesh_io.gltf.materials import IDENTITY, TextureUse
from pipeline.mesh_io.gltf.primitives import Draco, Primitive, triangles, with_attributes
from pipeline.mesh_io.gltf.scene import Placement, Scene, Skin
from pipeline.mesh_io.parts import LAYERS, Part
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import NoteKind, Reason

Values = tuple[dict[str, Float64[np.ndarray, "v width"]], Int64[np.ndarray, " corners"]]
"""Attributes as floats, and the index of every corner."""


Maps = Mapping[int, tuple[TextureUse | None, ...]]
"""The textures of `LAYERS` by the number of their material."""

MOST = 0.5
"""Share of the surface up to which textured parts may lack texture coordinates (ours)."""


def scene_parts(scene: Scene, maps: Maps | None = None) -> tuple[list[Part], int]:
    """One part per drawn primitive, in file order, and the faces of those that turn out to be damaged, which are left
    out. `face_material` counts from 1; 0 is glTF's default material. With `maps`, parts have what those need.

    As a viewer shows the scene at rest: morph targets at the weights of the node, else of the mesh; a skinned mesh
    posed by joint matrices times inverse bind matrices, the transform of its own node ignored (glTF 2.0, 3.7.3.3).
    """
    drawn, notes = scene.drawn(), scene.container.notes
    left = Counter(id(primitive) for primitive, _ in drawn)
    decoded: dict[int, Values] = {}
    parts: list[Part] = []
    bare: dict[int, Primitive] = {}
    lost = 0
    for primitive, placement in drawn:
        left[id(primitive)] -= 1
        lost += primitive.count_faces()
        with (
            notes.in_place_of_an_error(NoteKind.PART_LEFT_OUT),
            np.errstate(over="ignore", invalid="ignore"),  # `_part` refuses what is no longer finite
        ):
            values = decoded.pop(id(primitive), None) or _values(_with_maps(primitive, scene, maps))
            if left[id(primitive)]:  # an instance: decoded once
                decoded[id(primitive)] = values
            part = _part(primitive, placement, scene, values, maps)
            lost -= primitive.count_faces()
            if _texture(primitive, scene) and _coordinates(primitive, scene) not in values[0] and len(part.faces):
                bare[len(parts)] = primitive
            parts.append(part)
    _check_bare(parts, bare, scene)
    return parts, lost


def _check_bare(parts: list[Part], bare: dict[int, Primitive], scene: Scene) -> None:
    """Note the textured parts without texture coordinates. Raises AssetError where they are most of the surface."""
    if not bare:
        return
    areas = [float(np.linalg.norm(face_vectors(part.vertices, part.faces), axis=1).sum()) for part in parts]
    first = next(iter(bare.values()))
    detail = f"{first.where} has a textured material but no {_coordinates(first, scene)}"
    if sum(areas[number] for number in bare) > MOST * sum(areas):
        raise AssetError(Reason.INVALID_STRUCTURE, detail)
    faces = sum(len(parts[number].faces) for number in bare)
    scene.container.notes.add(NoteKind.COORDINATES_MISSING, f"{detail}: drawn with the texture's corner", faces)


def _texture(primitive: Primitive, scene: Scene) -> TextureUse | None:
    return None if primitive.material is None else scene.materials[primitive.material].texture


def _coordinates(primitive: Primitive, scene: Scene) -> str:
    """Name of the texture coordinates that a primitive shows."""
    texture = _texture(primitive, scene)
    return f"TEXCOORD_{texture.texcoord if texture else 0}"


def _map_uses(primitive: Primitive, maps: Maps) -> tuple[TextureUse | None, ...]:
    return (None,) * len(LAYERS) if primitive.material is None else maps[primitive.material]


def _with_maps(primitive: Primitive, scene: Scene, maps: Maps | None) -> Primitive:
    """A primitive with the attributes that its maps need, as far as it has them."""
    uses = [use for use in (_map_uses(primitive, maps) if maps is not None else ()) if use is not None]
    tangents = ["TANGENT"] if uses and "NORMAL" in primitive.attributes else []
    wanted = [*(f"TEXCOORD_{use.texcoord}" for use in uses), *tangents]
    return with_attributes(primitive, wanted, scene.container) if wanted else primitive


def _map_coordinates(
    primitive: Primitive, maps: Maps, values: dict[str, Float64[np.ndarray, "v width"]]
) -> Float64[np.ndarray, "layers v 2"]:
    """Coordinates of the maps of a primitive, each transformed as its texture asks; NaN without."""
    found = np.full((len(LAYERS), len(values["POSITION"]), 2), np.nan)
    for layer, use in enumerate(_map_uses(primitive, maps)):
        stored = None if use is None else values.get(f"TEXCOORD_{use.texcoord}")
        if use is not None and stored is not None:
            found[layer] = _flipped(stored @ use.transform[:, :2].T + use.transform[:, 2])
    return found


def _tangents(
    primitive: Primitive,
    placement: Placement,
    values: dict[str, Float64[np.ndarray, "v width"]],
    matrices: Float64[np.ndarray, "m 4 4"],
) -> Float64[np.ndarray, "v 4"] | None:
    """The tangents of a file in place, None where they are to be computed: without normals (glTF 2.0, 3.7.2.1), and of
    a shape that morph targets change. What mirrors a surface turns the sign of its bitangents."""
    stored = values.get("TANGENT")
    if stored is None or "NORMAL" not in values or primitive.moved(placement.weights):
        return None
    rows = matrices[:, :3, :3]
    turned = stored[:, :3] @ rows[0].T if len(rows) == 1 else np.einsum("vij,vj->vi", rows, stored[:, :3])
    sign = np.where(stored[:, 3] < 0.0, -1.0, 1.0) * np.where(np.linalg.det(rows) < 0, -1.0, 1.0)
    return np.concatenate([turned, sign[:, None]], axis=1)


def _part(primitive: Primitive, placement: Placement, scene: Scene, stored_values: Values, maps: Maps | None) -> Part:
    values, corners = stored_values
    values = _morphed(values, primitive, placement.weights)
    faces = triangles(corners, primitive.mode)
    positions = values["POSITION"]
    normals = values.get("NORMAL")
    matrices = _vertex_matrices(primitive.where, placement, values, scene)
    if np.linalg.det(placement.world[:3, :3] if placement.skin is None else matrices[0, :3, :3]) < 0:
        faces = faces[:, ::-1]  # a mirroring transform turns the winding round (glTF 2.0, 3.7.4)
    use, stored = _texture(primitive, scene), values.get(_coordinates(primitive, scene))
    has_uv = stored is not None or use is not None
    if stored is None:  # what viewers take for a missing attribute
        stored = np.zeros((len(positions), 2))
    transform = use.transform if use else IDENTITY
    part = Part(
        vertices=_bounded(primitive.where, _points(matrices, positions), faces),
        normals=np.zeros_like(positions) if normals is None else _normals(matrices, normals),
        uv=_flipped(stored @ transform[:, :2].T + transform[:, 2]) if has_uv else stored,
        colors=_rgba(values.get("COLOR_0"), len(positions)),
        faces=faces,
        face_material=np.full(len(faces), 0 if primitive.material is None else primitive.material + 1),
        face_has_uv=np.full(len(faces), has_uv),
        map_uv=None if maps is None else _map_coordinates(primitive, maps, values),
        tangents=None if maps is None else _tangents(primitive, placement, values, matrices),
    )
    return _flat(part) if normals is None else part


def _bounded(
    where: str, points: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]
) -> Float64[np.ndarray, "v 3"]:
    """Points within float32's range; those that no face uses are put at the origin where they are not."""
    beyond = ~(np.abs(points) < 1e30).all(axis=1)
    if not beyond.any():
        return points
    if beyond[faces].any():
        raise AssetError(Reason.NON_FINITE, f"{where}: node transforms take a vertex beyond 1e30")
    return np.where(beyond[:, None], 0.0, points)


def _values(primitive: Primitive) -> Values:
    if primitive.draco is not None:
        return _draco_values(primitive, primitive.draco)
    values = {name: _floats(accessor) for name, accessor in primitive.attributes.items()}
    if primitive.indices is None:
        return values, np.arange(primitive.num_vertices)
    return values, read_accessor(primitive.indices)[:, 0].astype(np.int64)


def _morphed(
    values: dict[str, Float64[np.ndarray, "v width"]], primitive: Primitive, weights: list[float]
) -> dict[str, Float64[np.ndarray, "v width"]]:
    """Attributes plus the weighted displacements of the morph targets (glTF 2.0, 3.7.2.2)."""
    values = dict(values)
    for weight, target in primitive.moved(weights):
        for name, accessor in target.items():
            if name in values:
                moved = values[name].copy()
                moved[:, : accessor.width] += weight * _floats(accessor)
                values[name] = moved
    return values


def _floats(accessor: Accessor) -> Float64[np.ndarray, "v width"]:
    """Values of an accessor, 0 in rows that are not finite: no face uses them, which the preflight has checked, or they
    are normals, which then get computed."""
    values = as_floats(read_accessor(accessor), accessor.dtype, accessor.normalized)
    if accessor.dtype.kind == "f":
        values[~np.isfinite(values).all(axis=1)] = 0.0
    return values


def _draco_values(primitive: Primitive, draco: Draco) -> Values:
    try:
        stream = DracoPy.decode(bytes(draco.view.data))
        numbers = {name: number for name, number in draco.attributes.items() if name in primitive.attributes}
        found = {name: stream.get_attribute_by_unique_id(number) for name, number in numbers.items()}
        corners = np.asarray(stream.faces, dtype=np.int64).reshape(-1)
    except (DracoPy.FileTypeException, ValueError, AttributeError, TypeError) as error:
        raise AssetError(Reason.LOAD_ERROR, f"{primitive.where}: Draco stream cannot be decoded ({error})") from error
    values = {}
    for name, accessor in primitive.attributes.items():
        if found.get(name) is not None:
            data = np.asarray(found[name]["data"])
            if data.shape != (accessor.count, accessor.width):
                raise AssetError(
                    Reason.INVALID_STRUCTURE,
                    f"{primitive.where}.{name}: Draco gives {data.shape}, accessor {accessor.count, accessor.width}",
                )
            values[name] = as_floats(data, accessor.dtype, accessor.normalized)
        elif accessor.view is not None:
            values[name] = _floats(accessor)
    if "POSITION" not in values or not all(np.isfinite(v).all() for k, v in values.items() if k != "NORMAL"):
        raise AssetError(Reason.NON_FINITE, f"{primitive.where}: Draco stream has no positions or not finite values")
    if len(corners) and not 0 <= corners.min() <= corners.max() < primitive.num_vertices:
        raise AssetError(Reason.INDEX_OUT_OF_RANGE, f"{primitive.where}: Draco index {corners.max()}")
    return values, corners


def _vertex_matrices(
    where: str, placement: Placement, values: dict[str, Float64[np.ndarray, "v width"]], scene: Scene
) -> Float64[np.ndarray, "one_or_v 4 4"]:
    if placement.skin is None or "JOINTS_0" not in values or "WEIGHTS_0" not in values:
        return placement.world[None]
    joints = _joint_matrices(placement.skin, scene)
    blended = np.zeros((len(values["POSITION"]), 4, 4))
    total = np.zeros(len(blended))
    for number in range(len(values)):
        if f"JOINTS_{number}" not in values or f"WEIGHTS_{number}" not in values:
            break
        weights, stored = values[f"WEIGHTS_{number}"], values[f"JOINTS_{number}"]
        if outside := stored[~((stored >= 0) & (stored < len(joints)))].tolist():  # a stream holds what it likes
            detail = f"{where}.JOINTS_{number} holds {outside[0]:g}, but there are {len(joints)} joints"
            raise AssetError(Reason.INDEX_OUT_OF_RANGE, detail)
        rows = stored.astype(np.int64)
        for slot in range(4):
            weight = weights[:, slot]
            blended += weight[:, None, None] * joints[rows[:, slot]]
            total += weight
    unweighted = ~(np.abs(total) > 1e-6)
    blended[unweighted] = placement.world
    total[unweighted] = 1.0
    return blended / total[:, None, None]


def _joint_matrices(skin: Skin, scene: Scene) -> Float64[np.ndarray, "joints 4 4"]:
    worlds = scene.worlds[skin.joints]
    if skin.inverse_bind is None:
        return worlds
    stored = read_accessor(skin.inverse_bind).astype(np.float64)[: len(worlds)]
    return worlds @ stored.reshape(-1, 4, 4).transpose(0, 2, 1)  # stored by columns


def _points(matrices: Float64[np.ndarray, "m 4 4"], points: Float64[np.ndarray, "v 3"]) -> Float64[np.ndarray, "v 3"]:
    if len(matrices) == 1:
        return points @ matrices[0, :3, :3].T + matrices[0, :3, 3]
    return np.einsum("vij,vj->vi", matrices[:, :3, :3], points) + matrices[:, :3, 3]


def _normals(matrices: Float64[np.ndarray, "m 4 4"], normals: Float64[np.ndarray, "v 3"]) -> Float64[np.ndarray, "v 3"]:
    """Transform normals by the cofactor matrix (inverse transpose times determinant), which flattening transforms have
    too."""
    rows = matrices[:, :3, :3]
    cofactors = np.cross(rows[:, [1, 2, 0]], rows[:, [2, 0, 1]])
    cofactors *= np.where(np.linalg.det(rows) < 0, -1.0, 1.0)[:, None, None]
    if len(matrices) == 1:
        return normals @ cofactors[0].T
    return np.einsum("vij,vj->vi", cofactors, normals)


def _flipped(uv: Float64[np.ndarray, "v 2"]) -> Float64[np.ndarray, "v 2"]:
    """glTF stores v pointing down from the top of the image."""
    return np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)


def _rgba(colors: Float64[np.ndarray, "v width"] | None, count: int) -> Float64[np.ndarray, "v 4"]:
    if colors is None:
        return np.ones((count, 4))
    if colors.shape[1] == 4:
        return colors
    return np.concatenate([colors, np.ones((len(colors), 1))], axis=1)


def _flat(part: Part) -> Part:
    """Faces that share no vertex: without authored normals a surface is flat-shaded (glTF 2.0, 3.7.2.1)."""
    rows = part.faces.reshape(-1)
    return replace(
        part,
        vertices=part.vertices[rows],
        normals=part.normals[rows],
        uv=part.uv[rows],
        colors=part.colors[rows],
        map_uv=None if part.map_uv is None else part.map_uv[:, rows],
        faces=np.arange(len(rows)).reshape(-1, 3),
    )
