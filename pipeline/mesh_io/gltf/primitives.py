"""Primitives of glTF meshes: parts with their attributes, morph targets and Draco streams, checked, not yet read."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Integer

from pipeline.mesh_io.gltf.accessors import Accessor, read_accessor
from pipeline.mesh_io.gltf.buffers import BufferView
from pipeline.mesh_io.gltf.container import DRACO, Container
from pipeline.mesh_io.gltf.json_fields import Json, Parsed
from pipeline.mesh_io.gltf.materials import SceneMaterial
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import NoteKind, Reason

TRIANGLE_MODES = {4: "triangles", 5: "strip", 6: "fan"}


@dataclass(frozen=True, slots=True)
class Draco:
    view: BufferView
    attributes: dict[str, int]
    """glTF attribute name to the stream's unique id."""


@dataclass(frozen=True, slots=True)
class Primitive:
    where: str
    mode: int
    attributes: dict[str, Accessor]
    """Attributes that are read; a damaged one that can be done without is missing."""
    indices: Accessor | None
    material: int | None
    """None: glTF's default material."""
    draco: Draco | None
    targets: Parsed[dict[str, Accessor]]
    """Morph targets: what each adds to which attribute at weight 1."""
    names: Json
    """All attributes, as they stand in the file."""

    @property
    def num_vertices(self) -> int:
        return self.attributes["POSITION"].count

    @property
    def num_faces(self) -> int:
        """Upper bound, known without reading indices: the joints of a strip are no faces."""
        corners = self.indices.count if self.indices else self.num_vertices
        return corners // 3 if self.mode == 4 else max(0, corners - 2)

    def count_faces(self) -> int:
        """Faces that will be read, but for those of a damaged Draco stream."""
        if self.mode == 4 or self.indices is None or self.draco is not None:
            return self.num_faces
        return len(triangles(read_accessor(self.indices)[:, 0], self.mode))

    def moved(self, weights: list[float]) -> list[tuple[float, dict[str, Accessor]]]:
        """Morph targets that show at these weights; the others are never read."""
        count = min(len(weights), len(self.targets))
        return [(weights[number], self.targets[number]) for number in range(count) if weights[number]]


def read_primitives(
    entry: Json, container: Container, materials: Parsed[SceneMaterial], skinned: bool
) -> list[Primitive]:
    """Triangle primitives with positions; points, lines and the rest draw no surface. A primitive that cannot be read
    is left out."""
    found = []
    for item in entry.objects("primitives"):
        with container.notes.in_place_of_an_error(NoteKind.PART_LEFT_OUT):
            if primitive := _primitive(item, container, materials, skinned):
                found.append(primitive)
    return found


def triangles(corners: Integer[np.ndarray, " corners"], mode: int) -> Integer[np.ndarray, "f 3"]:
    """Faces of a triangle list, strip (every second triangle turned) or fan (glTF 2.0, 3.7.2.1). Repeated corners join
    the pieces of a strip or fan: they make no face."""
    if mode == 4:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    first = np.arange(max(0, len(corners) - 2))
    odd = first % 2
    strip = mode == 5
    order = [first, first + 1 + odd, first + 2 - odd] if strip else [first + 1, first + 2, np.zeros_like(first)]
    faces = corners[np.stack(order, axis=1)]
    return faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]


def _primitive(entry: Json, container: Container, materials: Parsed[SceneMaterial], skinned: bool) -> Primitive | None:
    mode = entry.integer("mode", 4, high=6)
    names = entry.object("attributes") or Json({}, entry.at("attributes"))
    if mode not in TRIANGLE_MODES or "POSITION" not in names:
        missing = "has no POSITION" if mode in TRIANGLE_MODES else "draws points or lines"
        container.notes.add(NoteKind.PART_LEFT_OUT, f"{entry.where} {missing}")
        return None
    material = entry.index("material", len(materials), "materials")
    texture = materials[material].texture if material is not None else None
    coordinates = f"TEXCOORD_{texture.texcoord if texture else 0}"
    needed = ["POSITION", "COLOR_0", *([coordinates] if texture else []), *(_skin_names(names) if skinned else [])]
    attributes = _accessors(names, needed, container)
    for name in ["NORMAL", *([] if texture else [coordinates])]:
        with container.notes.in_place_of_an_error(NoteKind.DATA_IGNORED):
            attributes |= _accessors(names, [name], container, attributes["POSITION"].count)
    number = entry.index("indices", len(container.accessors), "accessors")
    indices = None if number is None else container.accessors[number]
    if indices is not None and (indices.width != 1 or indices.dtype.kind != "u"):
        entry.wrong("indices", "an accessor of unsigned integer scalars")
    targets = Parsed(entry.objects("targets"), lambda target: _target(target, container, attributes))
    return Primitive(entry.where, mode, attributes, indices, material, _draco(entry, container), targets, names)


def with_attributes(primitive: Primitive, wanted: Iterable[str], container: Container) -> Primitive:
    """A primitive with further attributes, as far as it has them undamaged."""
    attributes = dict(primitive.attributes)
    for name in wanted:
        if name not in attributes:
            with container.notes.in_place_of_an_error(NoteKind.DATA_IGNORED):
                attributes |= _accessors(primitive.names, [name], container, primitive.num_vertices)
    return replace(primitive, attributes=attributes)


def _skin_names(names: Json) -> list[str]:
    return [name for name in names.value if name.startswith(("JOINTS_", "WEIGHTS_"))]


def _accessors(
    names: Json, wanted: Iterable[str], container: Container, count: int | None = None
) -> dict[str, Accessor]:
    """Accessors of those of the wanted attributes that are there, of `count` elements each, else of as many as the
    first."""
    found: dict[str, Accessor] = {}
    for name in wanted:
        number = names.index(name, len(container.accessors), "accessors")
        if number is not None:
            accessor = container.accessors[number]
            count = accessor.count if count is None else count
            _check_attribute(names.at(name), name, accessor, count)
            found[name] = accessor
    return found


def _target(names: Json, container: Container, base: dict[str, Accessor]) -> dict[str, Accessor]:
    """A morph target's displacements of those attributes of the primitive that the loader reads."""
    wanted = [name for name in base if name.startswith(("POSITION", "NORMAL", "TEXCOORD_", "COLOR_"))]
    target = _accessors(names, wanted, container, base["POSITION"].count)
    for name, accessor in target.items():
        if accessor.width > base[name].width:
            names.wrong(name, f"an accessor of at most {base[name].width} components")
    return target


def _check_attribute(where: str, name: str, accessor: Accessor, count: int) -> None:
    widths = {
        "POSITION": (3,),
        "NORMAL": (3,),
        "COLOR": (3, 4),
        "TANGENT": (4,),
        "TEXCOORD": (2,),
        "JOINTS": (4,),
        "WEIGHTS": (4,),
    }
    family = name.split("_", 1)[0] if name else name
    if family in widths and accessor.width not in widths[family]:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: {accessor.where} has {accessor.width} components")
    if family == "JOINTS" and accessor.dtype.kind != "u":
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: {accessor.where} is not of unsigned integers")
    if accessor.count != count:
        raise AssetError(
            Reason.INVALID_STRUCTURE, f"{where}: {accessor.where} has {accessor.count} elements, POSITION {count}"
        )


def _draco(entry: Json, container: Container) -> Draco | None:
    found = entry.extension(DRACO)
    if found is None:
        return None
    number = found.index("bufferView", len(container.views), "bufferViews")
    names = found.object("attributes")
    if number is None or names is None:
        found.wrong("bufferView", "a reference, and attributes too")
    view = container.views[number]
    return Draco(view, {name: names.integer(name, high=2**31) for name in names.value})
