"""The files that an asset's main file refers to, and one hash of them all, without loading anything."""

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.mesh_io.gltf.buffers import reference
from pipeline.mesh_io.gltf.json_fields import Json, parse_json
from pipeline.mesh_io.mtl import read_mtl
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.references import confined

_LIBRARY = re.compile(rb"^[ \t]*mtllib[ \t]+([^\s][^\r\n]*)", re.MULTILINE)
MAX_HASHED_BYTES = 512 * 2**20
"""Default of `preflight.max_file_bytes`."""
_MAX_TEXT_BYTES = 32 * 2**20
"""Of a .gltf's JSON and of an .mtl; more is refused by the preflight's defaults too."""
_MAX_JSON_DEPTH = 64


def asset_sha256(path: Path, others: Sequence[Path], max_bytes: int = MAX_HASHED_BYTES) -> str | None:
    """The sha256 of a file; where it refers to `others` (`side_files`), one of all their names and hashes. None where
    the file itself cannot be read, is no regular file or has more than `max_bytes`: the preflight says what is wrong.
    Another one that cannot be read, or goes beyond `max_bytes` for all together, counts as missing."""
    own, left = _sha256_or_none(path, max_bytes), max_bytes
    if own is None or not others:
        return own
    whole, root = hashlib.sha256(own.encode()), path.parent.resolve()
    for other in sorted(set(others)):
        found = _sha256_or_none(other, left, os.O_NOFOLLOW)
        left -= other.stat().st_size if found else 0
        whole.update(f"\n{other.relative_to(root).as_posix()} {found}".encode())
    return whole.hexdigest()


def side_files(path: Path) -> list[Path]:
    """Files that `path` refers to, there or not, inside its own folder; none where it cannot be understood."""
    try:
        if path.suffix.lower() == ".gltf":
            return list(_of_gltf(path))
        return list(_of_obj(path)) if path.suffix.lower() == ".obj" else []
    except (AssetError, OSError, ValueError):
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


def _of_obj(path: Path) -> Iterator[Path]:
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        names = [name.rstrip().decode("utf-8", "replace") for name in _LIBRARY.findall(text)]
    for name in dict.fromkeys(names):
        library = confined(name, path.parent, "mtllib", encoded=False)
        yield library
        try:
            materials = read_mtl(library, path.parent, "mtllib", _MAX_TEXT_BYTES)
        except AssetError:
            continue
        yield from (material.image for material in materials.values() if material.image)


def _sha256_or_none(path: Path, max_bytes: int, flags: int = 0) -> str | None:
    """The sha256 of a regular file of at most `max_bytes`. It is read in pieces, and never waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)
    except (OSError, ValueError):
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
