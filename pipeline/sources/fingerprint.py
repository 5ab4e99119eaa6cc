"""The sha256 of assets that are files. What they refer to is found by a sandboxed process: nothing here parses them."""

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.mesh_io.side_files import MAX_HASHED_BYTES, asset_sha256, reaches_beyond, side_files
from pipeline.sandbox.child import LimitsConfig
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sandbox.policy import folder_of, is_too_wide

LIMITS = LimitsConfig(timeout_s=20.0, memory_gb=1.0, file_gb=0.1)
"""Limits of the process that looks into a batch of assets (ours: what one of 32 MB of JSON takes, ten times)."""
BATCH = 256
"""Assets that one process looks into."""
REFERRING = (".gltf", ".obj", ".dae", ".ply")
_FOUND = "found"
_MAX_FOUND_BYTES = 64 * 2**20
_MAX_FILES = 4096
"""Others that one asset may refer to; further ones do not count."""


def fingerprints(
    paths: Sequence[Path], root: Path | None, max_bytes: int = MAX_HASHED_BYTES
) -> Iterator[tuple[str | None, bool]]:
    """For every asset in turn its sha256, as `pipeline.mesh_io.side_files.asset_sha256`, and whether it refers to files
    beyond its own folder (of a .glb: to any), below `root`."""
    referring = REFERRING if root is None else (*REFERRING, ".glb")
    others = side_files_of([path for path in paths if path.suffix.lower() in referring], root)
    for path in paths:
        own = others.get(path, [])
        yield asset_sha256(path, own, max_bytes), reaches_beyond(path, own)


def side_files_of(paths: Sequence[Path], root: Path | None = None) -> dict[Path, list[Path]]:
    """The files that each asset refers to, below `root` (None: inside its own folder); none for one that a process with
    limits does not come to an end with. Raises MachineError where no such process starts here."""
    found, paths = dict[Path, list[Path]](), list(dict.fromkeys(paths))
    if not paths:
        return found
    around = () if root is None or is_too_wide(root) else (root,)
    with (
        tempfile.TemporaryDirectory(prefix="side-files-") as name,
        ForkServer(f"{__name__}:find", LIMITS, Path(name)) as children,
    ):
        while todo := paths[len(found) : len(found) + BATCH]:
            directory = Path(tempfile.mkdtemp(dir=name))
            folders = {path.parent: folder_of(path)[1:] for path in todo}
            alone = (path for path in todo if is_too_wide(path.parent))
            readable = {*itertools.chain(*folders.values()), *alone, *around}
            request = {"paths": [os.fsdecode(path) for path in todo], "root": root and os.fsdecode(root)}
            children.run(request, directory, tuple(sorted(readable)))
            done = dict(zip(todo, _read(directory / _FOUND, todo, root), strict=False))
            found |= done or {todo[0]: []}  # the one at which it ended
    return found


def _read(answer: Path, paths: Sequence[Path], root: Path | None) -> Iterator[list[Path]]:
    """Read what a process left, line by line, and believe nothing: files below `root`, or inside the folder of each
    asset, alone."""
    if answer.is_symlink() or not answer.is_file() or answer.stat().st_size > _MAX_FOUND_BYTES:
        return
    for path, line in zip(paths, answer.read_bytes().splitlines(keepends=True), strict=False):
        own = path.parent.resolve()
        try:
            names = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            return
        if not isinstance(names, list) or not all(isinstance(name, str) and "\0" not in name for name in names):
            return
        resolved = (Path(os.path.realpath(own / name)) for name in names[:_MAX_FILES])
        yield [other for other in resolved if other.is_relative_to(root.resolve() if root else own) and other != own]


def find(request: dict[str, Any], directory: Path) -> None:
    """The sandboxed side of `side_files_of`: a line for every asset as soon as it is known."""
    root = Path(request["root"]) if request["root"] else None
    with (directory / _FOUND).open("w") as file:
        for path in map(Path, request["paths"]):
            own = path.parent.resolve()
            names = dict.fromkeys(os.path.relpath(other, own) for other in side_files(path, root))
            file.write(json.dumps(list(names)[:_MAX_FILES]) + "\n")
            file.flush()
