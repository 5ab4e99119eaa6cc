"""Assets in a folder of files."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.blender.host import SUFFIXES as BLENDER_SUFFIXES
from pipeline.mesh_io.preflight import SUFFIXES
from pipeline.mesh_io.side_files import MAX_HASHED_BYTES
from pipeline.sources.fingerprint import fingerprints
from schemas.errors import UserError
from schemas.mesh import MeshRef

_HASH_DIGITS, _LONG_HASH = 8, 40
_MAX_SLUG = 75
"""With hash and longest extension a tar member's name has 100 characters: all that a plain tar header holds, and all
that the `wids` package reads."""


_UNREAD = (".3ds", ".c4d", ".ma", ".max", ".mb", ".skp", ".step", ".stp", ".wrl", ".x3d")
"""Other formats of meshes: worth a word, not a row."""


def folder(path: Path, blender: bool = False, max_bytes: int = MAX_HASHED_BYTES) -> Iterator[MeshRef]:
    """Every file below `path` with a suffix of `SUFFIXES`, with `blender` also what only Blender reads, sorted by
    relative path.

    The uid is the relative path made safe, plus a hash of that path: stable when files are added or edited, and
    distinct where two paths look the same once made safe. The sha256 of a file that refers to others, which may lie
    anywhere below `path`, is one of them as well; of files up to `max_bytes`.
    """
    root = path.resolve()
    if not root.is_dir():
        raise UserError(f"{path}: not a folder; give one that holds {', '.join(SUFFIXES)} files")
    wanted = SUFFIXES + BLENDER_SUFFIXES if blender else SUFFIXES
    found = sorted(
        file.relative_to(root).as_posix()
        for file in root.rglob("*")
        if file.suffix.lower() in wanted and file.is_file()
    )
    hashes = fingerprints([root / name for name in found], root, max_bytes)
    for name, uid, (hashed, beyond) in zip(found, uids_of(found), hashes, strict=True):
        # a name that is no text cannot stand in a ledger: it ends there as a missing file, to be renamed
        uri = os.fsencode(root / name).decode(errors="replace")
        yield MeshRef(uid=uid, uri=uri, sha256=hashed, root=str(root) if beyond else None)


def passed_over(path: Path, blender: bool = False) -> str:
    """Meshes below `path` that `folder` does not list, by type; empty where there are none."""
    unread = _UNREAD if blender else _UNREAD + BLENDER_SUFFIXES
    suffixes = (file.suffix.lower() for file in path.rglob("*") if file.is_file())
    counts = Counter(suffix for suffix in suffixes if suffix in unread)
    if not counts:
        return ""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    through = sorted(counts.keys() & set(BLENDER_SUFFIXES))
    return listed + (f"; {' '.join(through)} can be read through Blender (--blender.python)" if through else "")


def uids_of(names: Sequence[str]) -> list[str]:
    """Keys of assets, each as `uid_of`; those that would be one are told apart by more digits."""
    short = [uid_of(name) for name in names]
    counts = Counter(short)
    return [uid if counts[uid] == 1 else uid_of(name, _LONG_HASH) for name, uid in zip(names, short, strict=True)]


def uid_of(name: str, digits: int = _HASH_DIGITS) -> str:
    """Key of the asset at a relative path: `[A-Za-z0-9_-]` only."""
    stem = name.rsplit(".", 1)[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[: _MAX_SLUG + _HASH_DIGITS - digits] or "asset"
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{slug}-{digest[:digits]}"
