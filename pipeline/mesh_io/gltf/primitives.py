"""Primitives of glTF meshes: parts with their attributes, morph targets and Draco streams, checked, not yet read."""

from dataclasses import dataclass

from pipeline.mesh_io.gltf.accessors import Accessor
from pipeline.mesh_io.gltf.buffers import BufferView
from pipeline.mesh_io.gltf.container import DRACO, Container
from pipeline.mesh_io.gltf.json_fields import Json
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

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
    indices: Accessor | None
    material: int | None
    draco: Draco | None
    targets: list[dict[str, Accessor]]
    """Morph targets: what each adds to which attribute at weight 1."""

    @property
    def num_vertices(self) -> int:
        return self.attributes["POSITION"].count

    @property
    def num_faces(self) -> int:
        corners = self.indices.count if self.indices else self.num_vertices
        return corners // 3 if self.mode == 4 else max(0, corners - 2)


def read_primitives(entry: Json, container: Container, num_materials: int) -> list[Primitive]:
    """Triangle primitives with positions; points, lines and the rest draw no surface."""
    found = (_primitive(item, container, num_materials) for item in entry.objects("primitives"))
    return [primitive for primitive in found if primitive is not None]


def _primitive(entry: Json, container: Container, num_materials: int) -> Primitive | None:
    mode = entry.integer("mode", 4, high=6)
    names = entry.object("attributes") or Json({}, entry.at("attributes"))
    attributes = _accessors(names, container)
    number = entry.index("indices", len(container.accessors), "accessors")
    material = entry.index("material", num_materials, "materials")
    if mode not in TRIANGLE_MODES or "POSITION" not in attributes:
        return None
    for name, accessor in attributes.items():
        _check_attribute(names.at(name), name, accessor, attributes["POSITION"].count)
    targets = [_target(target, container, attributes) for target in entry.objects("targets")]
    indices = None if number is None else container.accessors[number]
    if indices is not None and (indices.width != 1 or indices.dtype.kind != "u"):
        entry.wrong("indices", "an accessor of unsigned integer scalars")
    return Primitive(entry.where, mode, attributes, indices, material, _draco(entry, container), targets)


def _accessors(names: Json, container: Container) -> dict[str, Accessor]:
    found = {}
    for name in names.value:
        number = names.index(name, len(container.accessors), "accessors")
        if number is not None:
            found[name] = container.accessors[number]
    return found


def _target(names: Json, container: Container, base: dict[str, Accessor]) -> dict[str, Accessor]:
    """A morph target's displacements of those attributes of the primitive that the loader reads."""
    target = {
        name: accessor
        for name, accessor in _accessors(names, container).items()
        if name in base and name.startswith(("POSITION", "NORMAL", "TEXCOORD_", "COLOR_"))
    }
    for name, accessor in target.items():
        _check_attribute(names.at(name), name, accessor, base["POSITION"].count)
        if accessor.width > base[name].width:
            names.wrong(name, f"an accessor of at most {base[name].width} components")
    return target


def _check_attribute(where: str, name: str, accessor: Accessor, count: int) -> None:
    widths = {"POSITION": (3,), "NORMAL": (3,), "COLOR": (3, 4), "TEXCOORD": (2,), "JOINTS": (4,), "WEIGHTS": (4,)}
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
