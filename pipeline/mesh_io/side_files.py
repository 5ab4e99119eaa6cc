"""The files that an asset's main file refers to, and one hash of them all, without loading anything."""

import contextlib
import hashlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.mesh_io.gltf.buffers import reference
from pipeline.mesh_io.gltf.json_fields import Json, parse_json
from pipeline.mesh_io.mtl import read_mtl
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.references import confined
from pipeline.mesh_io.trimesh_formats import referenced
from schemas.storage import file_sha256

_LIBRARY = re.compile(rb"^[ \t]*mtllib[ \t]+([^\r\n]*[^\s])", re.MULTILINE)
_MAX_TEXT_BYTES = 32 * 2**20
"""Of a .gltf's JSON and of an .mtl; more is refused by the preflight's defaults too."""
_MAX_JSON_DEPTH = 64


def asset_sha256(path: Path) -> str:
    """The sha256 of a file; of a .gltf or .obj that refers to others, one of all their names and hashes. What cannot be
    read, or may not be referred to, counts as missing: the preflight reports it. Raises OSError for `path` itself."""
    own = file_sha256(path)
    others = sorted(set(side_files(path)))
    if not others:
        return own
    whole = hashlib.sha256(own.encode())
    for other in others:
        whole.update(f"\n{other.relative_to(path.parent.resolve()).as_posix()} {_sha256_or_none(other)}".encode())
    return whole.hexdigest()


def side_files(path: Path) -> list[Path]:
    """Files that `path` refers to, there or not, inside its own folder; none where it cannot be understood."""
    try:
        if path.suffix.lower() == ".gltf":
            return list(_of_gltf(path))
        if path.suffix.lower() in (".dae", ".ply"):
            return list(_of_text(path))
        return list(_of_obj(path)) if path.suffix.lower() == ".obj" else []
    except (AssetError, OSError):
        return []


def _of_gltf(path: Path) -> Iterator[Path]:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        return
    root = parse_json(path.read_bytes(), _MAX_TEXT_BYTES, _MAX_JSON_DEPTH)
    for entry in (*root.objects("buffers"), *root.objects("images")):
        if found := _or_none(entry, path.parent):
            yield found


def _or_none(entry: Json, directory: Path) -> Path | None:
    try:
        return reference(entry, directory)
    except AssetError:
        return None


def _of_text(path: Path) -> Iterator[Path]:
    """Files that a PLY or COLLADA file names."""
    if path.stat().st_size > _MAX_TEXT_BYTES and path.suffix.lower() == ".dae":
        return
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT_BYTES)
    for name in dict.fromkeys(referenced(data, path.suffix.lower())):
        with contextlib.suppress(AssetError):
            yield confined(name.removeprefix("file://"), path.parent, "texture")


def _of_obj(path: Path) -> Iterator[Path]:
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        names = [name.decode("utf-8", "replace") for name in _LIBRARY.findall(text)]
    for name in dict.fromkeys(names):
        library = confined(name, path.parent, "mtllib", encoded=False)
        yield library
        try:
            materials = read_mtl(library, path.parent, "mtllib", _MAX_TEXT_BYTES)
        except AssetError:
            continue
        yield from (material.image for material in materials.values() if material.image)


def _sha256_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
