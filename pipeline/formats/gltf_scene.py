"""What a glTF scene draws: placed primitives and the base-colour part of their materials.

Everything is checked against the file's own lists; values of accessors are not read here.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pipeline.formats.fault import AssetFault
from pipeline.formats.gltf_container import BASISU, DRACO, WEBP, Accessor, BufferView, Container, Image
from pipeline.formats.json_fields import Json
from schemas.ledger import Reason
from schemas.mesh import AlphaMode, Wrap

TRIANGLE_MODES = {4: "triangles", 5: "strip", 6: "fan"}
_WRAP = {10497: Wrap.REPEAT, 33648: Wrap.MIRROR, 33071: Wrap.CLAMP}
_NEAREST = 9728


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

    @property
    def num_vertices(self) -> int:
        return self.attributes["POSITION"].count

    @property
    def num_faces(self) -> int:
        corners = self.indices.count if self.indices else self.num_vertices
        return corners // 3 if self.mode == 4 else max(0, corners - 2)


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


@dataclass(frozen=True, slots=True, eq=False)
class TextureUse:
    """A base-colour texture as a material uses it."""

    image: int
    wrap_u: Wrap
    wrap_v: Wrap
    nearest: bool
    texcoord: int
    transform: Float64[np.ndarray, "2 3"]
    """KHR_texture_transform on stored (v down) coordinates."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneMaterial:
    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    texture: TextureUse | None = None
    alpha_mode: AlphaMode = AlphaMode.OPAQUE
    alpha_cutoff: float = 0.5
    double_sided: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    placements: list[Placement]
    primitives: list[Primitive]
    """All of the file, drawn or not."""
    worlds: Float64[np.ndarray, "nodes 4 4"]
    """Global transform of every node."""
    materials: list[SceneMaterial]
    images: list[Image]

    def used_images(self) -> list[int]:
        """Base-colour images of what is drawn."""
        used = {p.material for placement in self.placements for p in placement.primitives}
        textures = [self.materials[number].texture for number in used if number is not None]
        return sorted({texture.image for texture in textures if texture is not None})


def read_scene(container: Container, max_nodes: int, max_depth: int) -> Scene:
    """Nodes of the default scene with a mesh, in file order, and all materials."""
    tree = container.tree
    materials = [_material(entry, container) for entry in tree.objects("materials")]
    meshes = [_primitives(entry, container, len(materials)) for entry in tree.objects("meshes")]
    skins = [_skin(entry, container) for entry in tree.objects("skins")]
    nodes = container.nodes
    if len(nodes) > max_nodes:
        raise AssetFault(Reason.TOO_LARGE, f"{len(nodes):,} nodes, limit {max_nodes:,}")
    children = [node.indices("children", len(nodes), "nodes") for node in nodes]
    worlds = _worlds(nodes, children, max_depth)
    placements = []
    for number in _drawn(tree, children):
        mesh = nodes[number].index("mesh", len(meshes), "meshes")
        skin = nodes[number].index("skin", len(skins), "skins")
        if mesh is not None:
            placements.append(Placement(meshes[mesh], worlds[number], None if skin is None else skins[skin]))
    return Scene(placements, [p for mesh in meshes for p in mesh], worlds, materials, container.images)


def _worlds(nodes: list[Json], children: list[list[int]], max_depth: int) -> Float64[np.ndarray, "nodes 4 4"]:
    """Global transforms. The nodes must form trees (glTF 2.0, 3.5.2) of bounded depth."""
    parents: dict[int, int] = {}
    for number, below in enumerate(children):
        for child in below:
            if child in parents:
                raise AssetFault(Reason.INVALID_STRUCTURE, f"nodes[{child}] has two parents")
            parents[child] = number
    worlds = np.tile(np.eye(4), (len(nodes), 1, 1))
    level = [(number, np.eye(4)) for number in range(len(nodes)) if number not in parents]
    reached, depth = 0, 0
    while level:
        depth += 1
        if depth > max_depth:
            raise AssetFault(Reason.INVALID_STRUCTURE, f"node tree is deeper than the limit {max_depth}")
        following = []
        for number, parent in level:
            with np.errstate(over="ignore", invalid="ignore"):  # the loader refuses what is no longer finite
                worlds[number] = parent @ _local(nodes[number])
            following += [(child, worlds[number]) for child in children[number]]
        reached += len(level)
        level = following
    if reached < len(nodes):
        raise AssetFault(Reason.INVALID_STRUCTURE, f"node tree has a cycle ({len(nodes) - reached} nodes in it)")
    return worlds


def _local(node: Json) -> Float64[np.ndarray, "4 4"]:
    if "matrix" in node:
        return np.array(node.numbers("matrix", [0.0] * 16)).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = node.numbers("rotation", (0.0, 0.0, 0.0, 1.0))
    norm = math.sqrt(x * x + y * y + z * z + w * w) or 1.0
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= node.numbers("scale", (1.0, 1.0, 1.0))
    matrix[:3, 3] = node.numbers("translation", (0.0, 0.0, 0.0))
    return matrix


def _drawn(tree: Json, children: list[list[int]]) -> list[int]:
    """Nodes of the default scene (else the first, else all nodes), in file order."""
    scenes = tree.objects("scenes")
    number = tree.index("scene", len(scenes), "scenes")
    if not scenes:
        return list(range(len(children)))
    waiting = list(scenes[number or 0].indices("nodes", len(children), "nodes"))
    drawn: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node not in drawn:
            drawn.add(node)
            waiting += children[node]
    return sorted(drawn)


def _primitives(entry: Json, container: Container, num_materials: int) -> list[Primitive]:
    """Triangle primitives with positions; points, lines and the rest draw no surface."""
    found = (_primitive(item, container, num_materials) for item in entry.objects("primitives"))
    return [primitive for primitive in found if primitive is not None]


def _primitive(entry: Json, container: Container, num_materials: int) -> Primitive | None:
    mode = entry.integer("mode", 4, high=6)
    names = entry.object("attributes") or Json({}, entry.at("attributes"))
    attributes = {}
    for name in names.value:
        number = names.index(name, len(container.accessors), "accessors")
        if number is not None:
            attributes[name] = container.accessors[number]
    number = entry.index("indices", len(container.accessors), "accessors")
    material = entry.index("material", num_materials, "materials")
    if mode not in TRIANGLE_MODES or "POSITION" not in attributes:
        return None
    for name, accessor in attributes.items():
        _check_attribute(names.at(name), name, accessor, attributes["POSITION"].count)
    indices = None if number is None else container.accessors[number]
    if indices is not None and (indices.width != 1 or indices.dtype.kind != "u"):
        entry.wrong("indices", "an accessor of unsigned integer scalars")
    return Primitive(entry.where, mode, attributes, indices, material, _draco(entry, container))


def _check_attribute(where: str, name: str, accessor: Accessor, count: int) -> None:
    widths = {"POSITION": (3,), "NORMAL": (3,), "COLOR": (3, 4), "TEXCOORD": (2,), "JOINTS": (4,), "WEIGHTS": (4,)}
    family = name.split("_", 1)[0] if name else name
    if family in widths and accessor.width not in widths[family]:
        raise AssetFault(Reason.INVALID_STRUCTURE, f"{where}: {accessor.where} has {accessor.width} components")
    if family == "JOINTS" and accessor.dtype.kind != "u":
        raise AssetFault(Reason.INVALID_STRUCTURE, f"{where}: {accessor.where} is not of unsigned integers")
    if accessor.count != count:
        raise AssetFault(
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
    if view.data is None:
        raise AssetFault(Reason.INVALID_STRUCTURE, f"{found.where}: {view.where} has no bytes")
    return Draco(view, {name: names.integer(name, high=2**31) for name in names.value})


def _skin(entry: Json, container: Container) -> Skin:
    joints = entry.indices("joints", len(container.nodes), "nodes")
    number = entry.index("inverseBindMatrices", len(container.accessors), "accessors")
    bind = None if number is None else container.accessors[number]
    if bind is not None and (bind.width != 16 or bind.dtype.kind != "f" or bind.count < len(joints)):
        entry.wrong("inverseBindMatrices", f"an accessor of {len(joints)} float matrices")
    return Skin(entry.where, joints, bind)


def _material(entry: Json, container: Container) -> SceneMaterial:
    """Base colour: metallic-roughness, or KHR_materials_pbrSpecularGlossiness where present (its diffuse)."""
    gloss = entry.extension("KHR_materials_pbrSpecularGlossiness")
    rough = entry.object("pbrMetallicRoughness") or Json({}, entry.at("pbrMetallicRoughness"))
    source, factor, slot = (
        (gloss, "diffuseFactor", "diffuseTexture") if gloss else (rough, "baseColorFactor", "baseColorTexture")
    )
    red, green, blue, alpha = (min(max(x, 0.0), 1.0) for x in source.numbers(factor, (1.0, 1.0, 1.0, 1.0)))
    mode = entry.text("alphaMode", "OPAQUE")
    if mode not in ("OPAQUE", "MASK", "BLEND"):
        entry.wrong("alphaMode", "OPAQUE, MASK or BLEND")
    use = source.object(slot)
    return SceneMaterial(
        base_color=(red, green, blue, alpha),
        texture=None if use is None else _texture_use(use, container),
        alpha_mode=AlphaMode(mode.lower()),
        alpha_cutoff=entry.number("alphaCutoff", 0.5),
        double_sided=entry.flag("doubleSided"),
    )


def _texture_use(use: Json, container: Container) -> TextureUse:
    number = use.index("index", len(container.textures), "textures")
    if number is None:
        use.wrong("index", "a reference")
    texture = container.textures[number]
    chosen = texture.index("sampler", len(container.samplers), "samplers")
    sampler = container.samplers[chosen] if chosen is not None else Json({}, "samplers")
    shift = use.extension("KHR_texture_transform") or Json({}, use.where)
    return TextureUse(
        image=_texture_image(texture, len(container.images)),
        wrap_u=_wrap(sampler, "wrapS"),
        wrap_v=_wrap(sampler, "wrapT"),
        nearest=sampler.integer("magFilter", 9729) == _NEAREST,
        texcoord=shift.integer("texCoord", use.integer("texCoord", 0)),
        transform=_transform(shift),
    )


def _wrap(sampler: Json, key: str) -> Wrap:
    code = sampler.integer(key, 10497)
    if code not in _WRAP:
        sampler.wrong(key, f"one of {sorted(_WRAP)}")
    return _WRAP[code]


def _texture_image(texture: Json, num_images: int) -> int:
    webp = texture.extension(WEBP)
    image = (webp or texture).index("source", num_images, "images")
    if image is None and texture.extension(BASISU) is not None:
        raise AssetFault(Reason.UNSUPPORTED_EXTENSION, f"{texture.where} exists only as {BASISU}")
    if image is None:
        raise AssetFault(Reason.BAD_IMAGE, f"{texture.where} has no image")
    return image


def _transform(shift: Json) -> Float64[np.ndarray, "2 3"]:
    """Offset * rotation * scale. The rotation turns u towards -v (stored v points down): what viewers do, and the
    reading that the extension's maintainers confirmed (KhronosGroup/glTF#1563), against the sign in its listing."""
    offset = shift.numbers("offset", (0.0, 0.0))
    scale = shift.numbers("scale", (1.0, 1.0))
    angle = shift.number("rotation", 0.0)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array(
        [[cos * scale[0], sin * scale[1], offset[0]], [-sin * scale[0], cos * scale[1], offset[1]]], dtype=np.float64
    )
