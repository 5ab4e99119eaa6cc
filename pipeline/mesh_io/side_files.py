"""The files that an asset's main file refers to, and one hash of them all, without loading anything."""

import contextlib
import hashlib
import mmap
import os
import re
import stat
import struct
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.mesh_io.exchange.pieces import texture
from pipeline.mesh_io.exchange.read import referenced
from pipeline.mesh_io.gltf.buffers import reference
from pipeline.mesh_io.gltf.json_fields import Json, parse_json
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, plain_text
from pipeline.mesh_io.wavefront.mtl import libraries, read_mtl
from pipeline.mesh_io.wavefront.physical import all_maps

_LIBRARY = re.compile(rb"mtllib[ \t\f\v]((?:\\\r?\n|\\\r|[^\r\n])*)")
"""An `mtllib` line from its keyword on, which the search leaps to; a backslash at its end joins the next one."""
_LINE_START = re.compile(rb"(?:\A|[\r\n])(?:[ \t\f\v]|\xef\xbb\xbf)*\Z")
_MAX_INDENT = 256
"""Blanks before a keyword."""
MAX_HASHED_BYTES = 512 * 2**20
"""Default of `preflight.max_file_bytes`."""
_JOINED = re.compile(rb"\\(?:\r\n|\r|\n)")
_MAX_TEXT_BYTES = 32 * 2**20
"""Most bytes of a .gltf's JSON or of an .mtl; more is refused by the preflight's defaults too."""
_MAX_JSON_DEPTH = 64
_GLB_HEADER = struct.Struct("<4sIII4s")
"""Headers of a GLB and its first chunk."""


def asset_sha256(path: Path, others: Sequence[Path], max_bytes: int = MAX_HASHED_BYTES) -> str | None:
    """The sha256 of a file; where it refers to `others` (`side_files`), one of all their names and hashes. None where
    the file itself cannot be read, is no regular file or has more than `max_bytes`: the preflight says what is wrong.
    Another one that cannot be read, or goes beyond `max_bytes` for all together, counts as missing."""
    own, left = _sha256_or_none(path, max_bytes), max_bytes
    if own is None or not others:
        return own
    whole, directory = hashlib.sha256(own.encode()), path.parent.resolve()
    for other in sorted(set(others)):
        found = _sha256_or_none(other, left, os.O_NOFOLLOW)
        left -= other.stat().st_size if found else 0
        name = Path(os.path.relpath(other, directory)).as_posix()
        whole.update(b"\n" + os.fsencode(name) + f" {found}".encode())
    return whole.hexdigest()


def reaches_beyond(path: Path, others: Iterable[Path]) -> bool:
    """Return whether one of the side files of a file is not in its own folder, or is that of a .glb."""
    own = path.parent.resolve()
    return any(path.suffix.lower() == ".glb" or not other.is_relative_to(own) for other in others)


def side_files(path: Path, root: Path | None = None) -> list[Path]:
    """Files that `path` refers to, there or not, below `root` (None: in its own folder, and none of a .glb); none where
    it cannot be understood. A superset of what is read: materials that no face has are not looked at then."""
    kind = path.suffix.lower()
    if root is None and kind == ".glb":
        return []
    try:
        folders = Folders(path, root, Notes())
        if kind in (".glb", ".gltf"):
            return list(_of_gltf(path, folders))
        if kind in (".dae", ".ply"):
            return list(_of_text(path, folders))
        return list(_of_obj(path, folders)) if kind == ".obj" else []
    except (AssetError, OSError, ValueError):
        return []


def _of_gltf(path: Path, folders: Folders) -> Iterator[Path]:
    root = parse_json(_json_of(path).removeprefix(BOM_UTF8), _MAX_TEXT_BYTES, _MAX_JSON_DEPTH)
    for entry in (*root.objects("buffers"), *root.objects("images")):
        if found := _or_none(entry, folders):
            yield found


def _json_of(path: Path) -> bytes:
    """The JSON of a .gltf or .glb."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".gltf":
            return file.read(_MAX_TEXT_BYTES + 1)
        start = file.read(_GLB_HEADER.size)
        if len(start) < _GLB_HEADER.size:
            return b""
        magic, _, _, length, _ = _GLB_HEADER.unpack(start)
        return file.read(min(length, _MAX_TEXT_BYTES + 1)) if magic == b"glTF" else b""


def _or_none(entry: Json, folders: Folders) -> Path | None:
    try:
        return reference(entry, folders)
    except AssetError:
        return None


def _of_text(path: Path, folders: Folders) -> Iterator[Path]:
    """Files that a PLY or COLLADA file names."""
    for name in names_in_text(path, _MAX_TEXT_BYTES):
        with contextlib.suppress(AssetError):
            if found := texture(name, folders).path:
                yield found


def names_in_text(path: Path, max_bytes: int) -> list[str]:
    """The names of files in the header of a PLY, or in a COLLADA file of at most `max_bytes`."""
    suffix = path.suffix.lower()
    if suffix == ".dae" and path.stat().st_size > max_bytes:
        return []
    with path.open("rb") as file:
        return list(dict.fromkeys(referenced(file.read(max_bytes), suffix)))


def library_lines(path: Path) -> list[tuple[str, str]]:
    """The arguments of an OBJ's `mtllib` lines, each with its place."""
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = [
            _JOINED.sub(b"  ", line[1])
            for line in _LIBRARY.finditer(text)
            if _LINE_START.search(text[max(0, line.start() - _MAX_INDENT) : line.start()])
        ]
    arguments = (plain_text(argument).strip() for argument in found)
    return [(argument, "mtllib") for argument in dict.fromkeys(arguments) if argument]


def _of_obj(path: Path, folders: Folders) -> Iterator[Path]:
    for library in libraries(library_lines(path), folders):
        yield library
        try:
            materials = read_mtl(library, "mtllib", _MAX_TEXT_BYTES, folders.notes)
        except AssetError:
            continue
        for use in (use for material in materials.values() for use in all_maps(material)):
            try:
                found = use.found(folders).path
            except AssetError:
                continue
            if found:
                yield found


def _sha256_or_none(path: Path, max_bytes: int, flags: int = 0) -> str | None:
    """The sha256 of a regular file of at most `max_bytes`. It is read in pieces, and never waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)
    except (OSError, ValueError):
        return None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
        os.close(handle)  # a folder cannot even be opened as a file
        return None
    with os.fdopen(handle, "rb") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
