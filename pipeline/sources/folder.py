"""Assets in a folder of files."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.blender.host import SUFFIXES as BLENDER_SUFFIXES
from pipeline.mesh_io.preflight import SUFFIXES
from pipeline.mesh_io.side_files import reaches_beyond, sha256_with, side_files
from schemas.errors import UserError
from schemas.mesh import MeshRef

_HASH_DIGITS = 8
_MAX_SLUG = 75
"""With hash and longest extension a tar member's name has 100 characters: all that a plain tar header holds, and all
that the `wids` package reads."""


_UNREAD = (".3ds", ".c4d", ".ma", ".max", ".mb", ".skp", ".step", ".stp", ".wrl", ".x3d")
"""Other formats of meshes: worth a word, not a row."""


def folder(path: Path, blender: bool = False) -> Iterator[MeshRef]:
    """Every file below `path` with a suffix of `SUFFIXES`, with `blender` also what only Blender reads, sorted by
    relative path.

    The uid is the relative path made safe, plus a hash of that path: stable when files are added or edited, and
    distinct where two paths look the same once made safe. The hash of a file that refers to others, which may lie
    anywhere below `path`, is one of them as well.
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
    for name in found:
        # a name that is no text cannot stand in a ledger: it ends there as a missing file, to be renamed
        uri = os.fsencode(root / name).decode(errors="replace")
        others = side_files(root / name, root)
        around = str(root) if reaches_beyond(root / name, others) else None
        yield MeshRef(uid=uid_of(name), uri=uri, sha256=sha256_or_none(root / name, others), root=around)


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


def uid_of(name: str) -> str:
    """Key of the asset at a relative path: `[A-Za-z0-9_-]` only."""
    stem = name.rsplit(".", 1)[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:_MAX_SLUG] or "asset"
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{slug}-{digest[:_HASH_DIGITS]}"


def sha256_or_none(path: Path, others: Iterable[Path] = ()) -> str | None:
    """The hash of a file and of its side files."""
    try:
        return sha256_with(path, others)
    except OSError:
        return None  # an unreadable file still gets its row in the ledger: preflight says why
