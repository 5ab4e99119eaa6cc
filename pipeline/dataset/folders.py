"""The folders of this machine that the assets of a dataset lie in. Plan and ledger have paths within them alone; the
folders themselves are in a file of their own, which is never published."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from schemas.errors import UsageError, UserError
from schemas.ledger import Outcome
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.storage import Location, write_file

FILE = "folders.json"
"""File in the dataset with the folder of each run of jobs, by the number of its first one."""
PATH = re.compile(r"(?<![\w/.:-])/(?:[^\s/'\"()]+/)+[^\s/'\"()]*")
"""An absolute path within a text."""
_PROGRAM = Path(__file__).resolve().parents[2]


def within(ref: MeshRef, folder: Path | None) -> MeshRef:
    """Return an asset with its paths relative to `folder`, as far as they lie in it."""
    if folder is None or not Path(ref.uri).is_relative_to(folder):
        return ref
    root = None if ref.root is None else os.path.relpath(ref.root, folder)
    return replace(ref, uri=Path(ref.uri).relative_to(folder).as_posix(), root=root)


def located(ref: MeshRef, folder: str | None) -> MeshRef:
    """Return an asset of a plan with its paths on this machine; one with a URL as it is."""
    if folder is None or "://" in ref.uri:
        return ref
    root = None if ref.root is None else os.path.normpath(Path(folder, ref.root))
    return replace(ref, uri=str(Path(folder, ref.uri)), root=root)


def common_folder(refs: Iterable[MeshRef]) -> Path | None:
    """Return the innermost folder that holds all assets with paths, None where there are none."""
    folders = [ref.root or Path(ref.uri).parent for ref in refs if Path(ref.uri).is_absolute()]
    return Path(os.path.commonpath(folders)) if folders else None


def write_folders(out: Location, jobs: Sequence[ShardJob]) -> None:
    """Write the folders of a dataset's jobs, unless that file has them already."""
    runs = {next(run).index: folder for folder, run in groupby(jobs, key=lambda job: job.folder)}
    data, path = json.dumps(runs, indent=2).encode() + b"\n", out / FILE
    if not path.is_file() or path.read_bytes() != data:
        write_file(path, data)


def read_folders(out: Location) -> Mapping[int, str | None]:
    """Read the folders of a dataset, by the first job of each; none where they are not known on this machine.

    Raises UserError where the file is damaged."""
    path = out / FILE
    try:
        runs = {int(first): folder for first, folder in json.loads(path.read_bytes()).items()}
        if bad := [folder for folder in runs.values() if folder is not None and not Path(folder).is_absolute()]:
            raise ValueError(f"{bad[0]!r} is no absolute path")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it, and give the folder of the assets by --folder"
        ) from error
    return runs


def folder_of(job: int, folders: Mapping[int, str | None]) -> str | None:
    """Return the folder of a job's assets."""
    return folders.get(max((first for first in folders if first <= job), default=-1))


def with_folders(out: Location, jobs: Sequence[ShardJob]) -> list[ShardJob]:
    """Return the jobs of a plan with the folders of their assets."""
    folders = read_folders(out)
    return [replace(job, folder=folder_of(job.index, folders)) for job in jobs]


def in_folder(jobs: Sequence[ShardJob], folder: str) -> list[ShardJob]:
    """Return jobs whose assets lie in a folder that the user names; as they are if it is empty. Raises UsageError where
    there is no such folder."""
    if not folder:
        return list(jobs)
    given = Path(folder).expanduser().resolve()
    if not given.is_dir():
        raise UsageError(f"--folder {folder}: not a folder; give the one that `seqtex build --source folder:` had")
    return [replace(job, folder=str(given)) for job in jobs]


def require_folders(out: Location, jobs: Iterable[ShardJob]) -> None:
    """Raise UserError where this machine does not know where assets of some jobs lie."""
    for ref in (ref for job in jobs if job.folder is None for ref in job.refs):
        if "://" not in ref.uri and not Path(ref.uri).is_absolute():
            raise UserError(f"{out}: has no {FILE} with the folder of assets such as {ref.uri}; give it by --folder")


def portable(outcome: Outcome, folder: str | None, out: Location) -> Outcome:
    """Return a ledger row without folders of this machine in its texts: of what lies in the source, the program or its
    packages the path within those, of all else the name."""
    own = (folder, str(out), str(_PROGRAM), sys.prefix, sys.base_prefix, tempfile.gettempdir())
    known = sorted({re.escape(name.rstrip("/")) for name in own if name and name != "/"}, key=len, reverse=True)
    inside = re.compile(rf"(?<![\w.-])(?:{'|'.join(known)})/")

    def without_folders(text: str) -> str:
        return PATH.sub(lambda found: f"…/{found[0].rpartition('/')[2]}", inside.sub("", text))

    notes = tuple(replace(note, detail=without_folders(note.detail)) for note in outcome.notes)
    return replace(outcome, detail=without_folders(outcome.detail), notes=notes)
