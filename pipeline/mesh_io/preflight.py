"""Checks of untrusted bytes before anything is decoded: container, structure, bounds, references, budgets."""

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.blender import host as blender
from pipeline.mesh_io.exchange.read import SUFFIXES as EXCHANGE_SUFFIXES
from pipeline.mesh_io.exchange.read import read_exchange
from pipeline.mesh_io.gltf.accessors import Accessor, read_accessor
from pipeline.mesh_io.gltf.container import image_bytes, read_container, split_glb
from pipeline.mesh_io.gltf.extensions import SUPPORTED_EXTENSIONS
from pipeline.mesh_io.gltf.json_fields import Json, parse_json
from pipeline.mesh_io.gltf.primitives import Primitive
from pipeline.mesh_io.gltf.scene import Placement, Scene, Skin, all_meshes, read_scene
from pipeline.mesh_io.image_header import image_size
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, read_limited
from pipeline.mesh_io.wavefront.obj import ObjFile, read_obj
from schemas.ledger import Note, NoteKind, Reason

SUFFIXES = (".glb", ".gltf", ".obj", *EXCHANGE_SUFFIXES)
UpAxis = Literal["y", "z"]
"""The axis that points up in a file of a format that does not say so."""


@dataclass(frozen=True, kw_only=True)
class PreflightConfig:
    """Limits on what an asset may ask of us, all ours, and how it is read."""

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
    emissive_as_base: bool = True
    """Emitted light stands in for a base colour that is black (glTF), as baked looks are often exported; noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFacts:
    """Facts on a sound file, known without decoding it."""

    format: str
    """`glb`, `gltf`, `obj`, or another suffix of `SUFFIXES`."""
    bytes: int
    """Size of the main file, bytes."""
    faces: int
    """Triangles, each instance counted."""
    vertices: int
    """Vertices as stored, each instance counted."""
    images: int
    """Distinct base-colour images."""
    image_side_max: int
    """Pixels; 0 without images."""
    notes: tuple[Note, ...] = ()
    """Notes on what loading left out or read differently."""


def open_checked(
    path: Path, cfg: PreflightConfig, root: Path | None, notes: Notes, up_axis: UpAxis = "y"
) -> tuple[AssetFacts, Scene | ObjFile]:
    """Facts and parsed structure, Y up, of a file that passes every check; raises `AssetError` otherwise. `root`: the
    folder that the files it refers to must lie in; None: its own, and none for a .glb. `notes` gets what is left out.
    `up_axis`: of OBJ, OFF, PLY and STL."""
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
        read = read_obj(data, folders, cfg.max_file_bytes, cfg.max_faces, z_up=up_axis == "z")
        return _check_indexed(suffix, data, read, cfg)
    if suffix in EXCHANGE_SUFFIXES:
        read = read_exchange(data, suffix, folders, cfg.max_file_bytes, cfg.max_faces, z_up=up_axis == "z")
        return _check_indexed(suffix, data, read, cfg)
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
        _check_counts(scene, cfg)
        scene = _sound(scene, notes)
        if not scene.placements:
            _sound(all_meshes(scene), notes)
        images = [container.images[i] for i in scene.used_images()]
        sides = _check_images([(image_bytes(image, cfg.max_file_bytes), image.suffix) for image in images], cfg)
    except AssetError as error:
        if unsupported is None or error.rejected.reason in (Reason.MISSING_FILE, Reason.UNSAFE_URI):
            raise  # what is wrong with the asset itself comes before what we cannot read
        raise unsupported from error
    if unsupported is not None:
        raise unsupported
    drawn = [primitive for primitive, _ in scene.drawn()]
    if notes.first_error and not drawn:
        raise notes.first_error
    counted = {id(primitive): primitive.count_faces() for primitive in drawn}
    faces = sum(counted[id(primitive)] for primitive in drawn)
    return _facts(suffix[1:], data, faces, sum(primitive.num_vertices for primitive in drawn), sides), scene


def _check_indexed(suffix: str, data: bytes, obj: ObjFile, cfg: PreflightConfig) -> tuple[AssetFacts, ObjFile]:
    """Facts of an OBJ, or of what was read as one."""
    if len(obj.positions) > cfg.max_vertices:
        raise AssetError(Reason.TOO_LARGE, f"{len(obj.positions):,} vertices, limit {cfg.max_vertices:,}")
    used = [obj.materials[number] for number in np.unique(obj.face_material)]
    names = ("map_Kd", "map_d") if suffix == ".obj" else ("texture", "mask")
    uses = ((use, name) for material in used for use, name in zip((material.image, material.mask), names, strict=True))
    paths = {use.path: name for use, name in uses if use and use.path}
    images = [(read_limited(path, name, cfg.max_file_bytes), path.suffix) for path, name in paths.items()]
    facts = _facts(suffix[1:], data, len(obj.corners), len(obj.positions), _check_images(images, cfg))
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


def _check_counts(scene: Scene, cfg: PreflightConfig) -> None:
    faces = sum(primitive.num_faces for primitive, _ in scene.drawn())
    vertices = sum(primitive.num_vertices for primitive, _ in scene.drawn())
    if faces > cfg.max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{faces:,} triangles with instances, limit {cfg.max_faces:,}")
    if vertices > cfg.max_vertices:
        raise AssetError(Reason.TOO_LARGE, f"{vertices:,} vertices with instances, limit {cfg.max_vertices:,}")


def _sound(scene: Scene, notes: Notes) -> Scene:
    """The scene without primitives whose values cannot be drawn, each of which is noted."""
    sound: dict[tuple[int, int, tuple[float, ...]], bool] = {}
    placements = []
    for placement in scene.placements:
        kept = []
        for primitive in placement.primitives:
            key = id(primitive), id(placement.skin), tuple(placement.weights)
            if key not in sound:
                sound[key] = False
                with notes.in_place_of_an_error(NoteKind.PART_LEFT_OUT):
                    _check_values(primitive, placement, scene, notes)
                    sound[key] = True
            kept += [primitive] if sound[key] else []
        placements.append(replace(placement, primitives=kept))
    return replace(scene, placements=placements)


def _check_values(primitive: Primitive, placement: Placement, scene: Scene, notes: Notes) -> None:
    """Check that what a placed primitive shows is finite and refers to what is there. A damaged attribute that it can
    do without is taken from it."""
    for _, target in primitive.moved(placement.weights):
        for name, accessor in target.items():
            _check_finite(f"{primitive.where}.targets.{name}", accessor, primitive, notes)
    if placement.skin is not None:
        _check_skin(placement.skin, primitive)
    if primitive.draco is not None:
        return  # the loader checks what the stream decodes to
    if primitive.indices is not None:
        _check_range(f"{primitive.where}.indices", primitive.indices, primitive.num_vertices, "vertices")
    textured = primitive.material is not None and scene.materials[primitive.material].texture is not None
    for name, accessor in list(primitive.attributes.items()):
        if name.startswith("TEXCOORD") and not textured:
            del primitive.attributes[name]
            with notes.in_place_of_an_error(NoteKind.DATA_IGNORED):
                _check_finite(f"{primitive.where}.{name}", accessor, primitive, notes)
                primitive.attributes[name] = accessor
        elif name.startswith(("POSITION", "TEXCOORD", "COLOR", "WEIGHTS")):
            _check_finite(f"{primitive.where}.{name}", accessor, primitive, notes)


def _check_skin(skin: Skin, primitive: Primitive) -> None:
    if primitive.draco is None:
        for name, accessor in primitive.attributes.items():
            if name.startswith("JOINTS"):
                _check_range(f"{primitive.where}.{name}", accessor, len(skin.joints), "joints")
    if skin.inverse_bind is not None and not np.isfinite(read_accessor(skin.inverse_bind)).all():
        raise AssetError(Reason.NON_FINITE, f"{skin.where}.inverseBindMatrices are not finite")


def _check_finite(where: str, accessor: Accessor, primitive: Primitive, notes: Notes) -> None:
    """Values at the vertices that faces use are finite; others are noted."""
    if accessor.dtype.kind != "f":
        return
    values = read_accessor(accessor)
    broken = ~np.isfinite(values).all(axis=1)
    if not broken.any():
        return
    row = int(broken.argmax())
    detail = f"{where}: element {row} of {accessor.count} is {values[row].tolist()}"
    used = np.ones(accessor.count, bool)
    if primitive.indices is not None and primitive.draco is None:
        used[:] = False
        used[read_accessor(primitive.indices)[:, 0]] = True
    if (broken & used).any():
        raise AssetError(Reason.NON_FINITE, detail)
    notes.add(NoteKind.DATA_IGNORED, f"{detail}; no face uses it", int(broken.sum()))


def _check_range(where: str, accessor: Accessor, limit: int, of: str) -> None:
    highest = int(read_accessor(accessor).max())
    if highest >= limit:
        raise AssetError(Reason.INDEX_OUT_OF_RANGE, f"{where} holds {highest}, but there are {limit} {of}")
