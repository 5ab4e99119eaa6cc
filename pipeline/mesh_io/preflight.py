"""Checks of untrusted bytes before anything is decoded: container, structure, bounds, references, budgets."""

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.blender import host as blender
from pipeline.mesh_io.gltf.accessors import Accessor, read_accessor
from pipeline.mesh_io.gltf.buffers import MESHOPT
from pipeline.mesh_io.gltf.container import BASISU, DRACO, WEBP, image_bytes, read_container, split_glb
from pipeline.mesh_io.gltf.json_fields import Json, parse_json
from pipeline.mesh_io.gltf.primitives import Primitive
from pipeline.mesh_io.gltf.scene import INSTANCING, VISIBILITY, Scene, Skin, read_scene
from pipeline.mesh_io.image_header import image_size
from pipeline.mesh_io.obj import ObjFile, read_obj
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, read_limited
from schemas.ledger import Note, Reason

SUFFIXES = (".glb", ".gltf", ".obj")
_MATERIAL_EXTENSIONS = (
    "anisotropy clearcoat diffuse_transmission dispersion emissive_strength ior iridescence pbrSpecularGlossiness "
    "sheen specular transmission unlit variants volume"
)
SUPPORTED_EXTENSIONS = frozenset(
    {*MESHOPT, DRACO, BASISU, WEBP, INSTANCING, VISIBILITY}
    | {"KHR_mesh_quantization", "KHR_texture_transform", "KHR_lights_punctual", "KHR_xmp_json_ld"}
).union(f"KHR_materials_{name}" for name in _MATERIAL_EXTENSIONS.split(" "))
"""Extensions that a file may require: those we read, and those that leave geometry and base colour alone."""


@dataclass(frozen=True, kw_only=True)
class PreflightConfig:
    """Limits on what an asset may ask of us; all ours."""

    max_file_bytes: int = 512 * 2**20
    """Bytes of the main file, of all its external buffers together, and of all that they decompress to."""
    max_json_bytes: int = 32 * 2**20
    """Bytes of the JSON part."""
    max_json_depth: int = 64
    """Nesting of the JSON part."""
    max_nodes: int = 50_000
    """Nodes in the file."""
    max_node_depth: int = 512
    """Depth of the node tree."""
    max_faces: int = 2_000_000
    """Triangles, each instance counted."""
    max_vertices: int = 6_000_000
    """Vertices, each instance counted."""
    max_image_bytes: int = 2**30
    """Decoded base-colour images together, at 4 bytes a pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFacts:
    """Facts on a sound file, known without decoding it."""

    format: str
    """`glb`, `gltf` or `obj`."""
    bytes: int
    """Of the main file."""
    faces: int
    """Triangles, each instance counted."""
    vertices: int
    """Vertices as stored, each instance counted."""
    images: int
    """Distinct base-colour images."""
    image_side_max: int
    """Pixels; 0 without images."""
    notes: tuple[Note, ...] = ()
    """What loading left out or read differently."""


def open_checked(
    path: Path, cfg: PreflightConfig, root: Path | None, notes: Notes
) -> tuple[AssetFacts, Scene | ObjFile]:
    """Facts and parsed structure of a file that passes every check; raises `AssetError` otherwise. `root`: the folder
    that the files it refers to must lie in; None: its own, and none for a .glb. `notes` gets what is left out."""
    suffix = path.suffix.lower()
    if suffix in blender.SUFFIXES:
        raise AssetError(Reason.NEEDS_BLENDER, f"{suffix} is read through Blender, which is off: {blender.REMEDY}")
    if suffix not in SUFFIXES:
        raise AssetError(Reason.NOT_A_MESH, f"suffix {suffix[:20]!r} is none of {', '.join(SUFFIXES)}")
    data = read_limited(path, "asset", cfg.max_file_bytes)
    if not data:
        raise AssetError(Reason.EMPTY_FILE, "file has 0 bytes")
    folders = Folders(path, root, notes)
    if suffix == ".obj":
        return _check_obj(data, folders, cfg)
    data = data.removeprefix(BOM_UTF8) if suffix == ".gltf" else data
    if suffix == ".gltf" and data.lstrip()[:1] != b"{":
        raise AssetError(Reason.NOT_A_MESH, f"not a glTF: starts with {data[:4]!r}, expected '{{'")
    text, binary = split_glb(data) if suffix == ".glb" else (data, None)
    tree = parse_json(text.removeprefix(BOM_UTF8), cfg.max_json_bytes, cfg.max_json_depth)
    _check_version(tree)
    unsupported = _unsupported(tree)
    try:
        may_refer = suffix == ".gltf" or root is not None
        container = read_container(tree, binary, folders if may_refer else None, cfg.max_file_bytes, notes)
        scene = read_scene(container, cfg.max_nodes, cfg.max_node_depth)
        images = [container.images[i] for i in scene.used_images()]
        sides = _check_images([(image_bytes(image, cfg.max_file_bytes), image.suffix) for image in images], cfg)
    except AssetError as error:
        if unsupported is None or error.rejected.reason in (Reason.MISSING_FILE, Reason.UNSAFE_URI):
            raise  # what is wrong with the asset itself comes before what we cannot read
        raise unsupported from error
    if unsupported is not None:
        raise unsupported
    faces, vertices = _check_counts(scene, cfg)
    for primitive in scene.primitives:
        _check_values(primitive)
    for skin, primitive in {(id(x.skin), id(p)): (x.skin, p) for x in scene.placements for p in x.primitives}.values():
        if skin is not None:
            _check_skin(skin, primitive)
    return _facts(suffix[1:], data, faces, vertices, sides), scene


def _check_obj(data: bytes, folders: Folders, cfg: PreflightConfig) -> tuple[AssetFacts, ObjFile]:
    obj = read_obj(data, folders, cfg.max_file_bytes, cfg.max_faces)
    used = [obj.materials[number] for number in np.unique(obj.face_material)]
    paths = {use.path: name for m in used for name, use in (("map_Kd", m.image), ("map_d", m.mask)) if use and use.path}
    images = [(read_limited(path, name, cfg.max_file_bytes), path.suffix) for path, name in paths.items()]
    facts = _facts("obj", data, len(obj.corners), len(obj.positions), _check_images(images, cfg))
    return replace(facts, images=len({m.image.path for m in used if m.image})), obj


def _facts(kind: str, data: bytes, faces: int, vertices: int, sides: list[int]) -> AssetFacts:
    return AssetFacts(
        format=kind,
        bytes=len(data),
        faces=faces,
        vertices=vertices,
        images=len(sides),
        image_side_max=max(sides, default=0),
    )


def _check_version(tree: Json) -> None:
    asset = tree.object("asset")
    version = asset.text("version") if asset else None
    if version is None:
        raise AssetError(Reason.INVALID_STRUCTURE, "asset.version is missing: not a glTF")
    wanted = asset.text("minVersion", version) if asset else version
    if version.split(".")[0] != "2" or wanted not in (None, "2.0", version):
        raise AssetError(Reason.UNSUPPORTED_VERSION, f"glTF version {version[:20]!r}, only 2.x is supported")


def _unsupported(tree: Json) -> AssetError | None:
    unknown = sorted(set(tree.texts("extensionsRequired")) - SUPPORTED_EXTENSIONS)
    if not unknown:
        return None
    return AssetError(Reason.UNSUPPORTED_EXTENSION, f"requires {', '.join(unknown)[:200]}")


def _check_images(images: Sequence[tuple[bytes | memoryview, str]], cfg: PreflightConfig) -> list[int]:
    """Longest side of each base-colour image; the images with the suffixes of their files."""
    sizes = [image_size(data, f"base-colour image {number}", suffix) for number, (data, suffix) in enumerate(images)]
    decoded = sum(4 * width * height for width, height in sizes)
    if decoded > cfg.max_image_bytes:
        largest = max(sizes, key=lambda size: size[0] * size[1])
        raise AssetError(
            Reason.TOO_LARGE,
            f"images decode to {decoded:,} bytes (largest {largest[0]} x {largest[1]}), limit {cfg.max_image_bytes:,}",
        )
    return [max(size) for size in sizes]


def _check_counts(scene: Scene, cfg: PreflightConfig) -> tuple[int, int]:
    primitives = [primitive for placement in scene.placements for primitive in placement.primitives]
    faces = sum(primitive.num_faces for primitive in primitives)
    vertices = sum(primitive.num_vertices for primitive in primitives)
    if faces > cfg.max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{faces:,} triangles with instances, limit {cfg.max_faces:,}")
    if vertices > cfg.max_vertices:
        raise AssetError(Reason.TOO_LARGE, f"{vertices:,} vertices with instances, limit {cfg.max_vertices:,}")
    return faces, vertices


def _check_values(primitive: Primitive) -> None:
    for number, target in enumerate(primitive.targets):
        for name, accessor in target.items():
            _check_finite(f"{primitive.where}.targets[{number}].{name}", accessor)
    if primitive.draco is not None:
        return  # the loader checks what the stream decodes to
    for name, accessor in primitive.attributes.items():
        if name.startswith(("POSITION", "TEXCOORD", "COLOR", "WEIGHTS")):
            _check_finite(f"{primitive.where}.{name}", accessor)
    if primitive.indices is not None:
        _check_range(f"{primitive.where}.indices", primitive.indices, primitive.num_vertices, "vertices")


def _check_skin(skin: Skin, primitive: Primitive) -> None:
    if primitive.draco is None:
        for name, accessor in primitive.attributes.items():
            if name.startswith("JOINTS"):
                _check_range(f"{primitive.where}.{name}", accessor, len(skin.joints), "joints")
    if skin.inverse_bind is not None:
        _check_finite(f"{skin.where}.inverseBindMatrices", skin.inverse_bind)


def _check_finite(where: str, accessor: Accessor) -> None:
    if accessor.dtype.kind == "f":
        values = read_accessor(accessor)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise AssetError(Reason.NON_FINITE, f"{where}: element {row} of {accessor.count} is {values[row].tolist()}")


def _check_range(where: str, accessor: Accessor, limit: int, of: str) -> None:
    highest = int(read_accessor(accessor).max())
    if highest >= limit:
        raise AssetError(Reason.INDEX_OUT_OF_RANGE, f"{where} holds {highest}, but there are {limit} {of}")
