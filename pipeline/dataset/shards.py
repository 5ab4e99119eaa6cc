"""Commit the results of a job: its shards are written first, its ledger part last, which alone makes them count."""

import contextlib
import re
import shutil
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from pipeline.dataset.pictures import FOLDER as PICTURES
from pipeline.dataset.pictures import PACK_NAME, write_pictures
from schemas.dataset import (
    PART_NAME,
    SHARD_NAME,
    LedgerPart,
    ShardRecord,
    part_path,
    read_ledger_part,
    shard_name,
    shard_path,
    write_ledger_part,
)
from schemas.errors import UserError, explained
from schemas.ledger import Outcome
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.shards import read_samples, write_tar
from schemas.storage import Location, file_sha256, place, staged, staging, working_folder

JOURNAL_NAME = re.compile(r"journal-(\d{6,})-\w+")
"""Name of a journal in the folder for jobs in progress (`pipeline.executor.journal`), by its job."""
STAGED = re.compile(r"\..*\.tmp", re.DOTALL)
"""Name of a half-written file of a build that was killed."""
Samples = list[tuple[str, list[Path]]]
"""Uid of each sample, and the files of its fields, named by extension."""


def _stage_shard(out: Location, job: int, regime: Regime, samples: Samples) -> ShardRecord:
    """Write a shard that lacks only its final name."""
    path = shard_path(out, shard_name(regime, job))
    with staging(path) as file:
        count = write_tar(file, ((uid, {field.name: field for field in fields}) for uid, fields in samples))
        file.flush()
        size, sha256 = file.tell(), file_sha256(staged(path))
    return ShardRecord(name=path.name, regime=regime, sha256=sha256, bytes=size, count=count)


def _is_there(out: Location, shard: ShardRecord) -> bool:
    """Return whether a shard's file has the recorded bytes."""
    path = shard_path(out, shard.name)
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def commit(
    out: Location,
    job: int,
    outcomes: list[Outcome],
    samples: dict[Regime, Samples],
    pictures: Mapping[str, bytes] = MappingProxyType({}),
) -> LedgerPart:
    """Make a job's results count: shards first, the ledger part that names them last. Regimes never share a shard. What
    an earlier run has committed counts until all shards are written and only their names are missing; the same results
    again, whatever time they took, change no byte. `pictures`: of rejected assets, by uid.

    Raises UserError where the dataset cannot be written."""
    path, shards = part_path(out, job), list[ShardRecord]()
    remedy = "fix that and run the same command again, finished jobs are kept"
    with explained(out, f"cannot write job {job}", remedy), contextlib.ExitStack() as leftovers:
        for regime in Regime:
            if samples.get(regime):
                shards.append(_stage_shard(out, job, regime, samples[regime]))
                leftovers.callback(staged(shard_path(out, shards[-1].name)).unlink, missing_ok=True)
        part = LedgerPart(job=job, outcomes=tuple(outcomes), shards=tuple(shards))
        write_pictures(out, job, pictures)
        if there := _same_results(out, part):
            return there
        path.unlink(missing_ok=True)
        for regime in Regime:
            if not samples.get(regime):
                shard_path(out, shard_name(regime, job)).unlink(missing_ok=True)
        for shard in shards:
            if not _is_there(out, shard):
                place(shard_path(out, shard.name))
        write_ledger_part(out, part)
    return part


def _same_results(out: Location, found: LedgerPart) -> LedgerPart | None:
    """Return the committed ledger part if it holds the same results, whatever time they took; else None."""
    try:
        part = read_ledger_part(part_path(out, found.job))
    except UserError:
        return None
    untimed = [[replace(outcome, seconds=0.0) for outcome in one.outcomes] for one in (part, found)]
    same = untimed[0] == untimed[1] and part.shards == found.shards
    return part if same and all(_is_there(out, shard) for shard in part.shards) else None


def committed(out: Location, job: ShardJob, sha256: str | None = None) -> LedgerPart | None:
    """Return the ledger part of a job if it is finished: readable, of the assets planned, all its shards there with the
    recorded size; else None. `sha256`: of the part's bytes, if it is known."""
    try:
        part = read_ledger_part(part_path(out, job.index), sha256)
    except UserError:
        return None  # not done yet, or damaged: the job is done again
    if part.job != job.index or [o.uid for o in part.outcomes] != [ref.uid for ref in job.refs]:
        return None
    try:
        sizes = [shard_path(out, shard.name).stat().st_size for shard in part.shards]
    except FileNotFoundError:
        return None
    return part if sizes == [shard.bytes for shard in part.shards] else None


def require_committed(out: Location, job: ShardJob) -> LedgerPart:
    """Return the ledger part of a job. Raises UserError where the job is not finished, as `committed`."""
    if (part := committed(out, job)) is None:
        raise UserError(f"{out}: job {job.index} is unfinished or damaged; run `seqtex repair {out}` first")
    return part


def unpack(out: Location, part: LedgerPart, uids: Set[str], directory: Path) -> dict[str, list[Path]]:
    """Write the fields of stored samples as files below `directory`; return them by uid. Raises UserError where a shard
    is damaged."""
    files: dict[str, list[Path]] = {}
    for shard in part.shards:
        for uid, fields in read_samples(out, shard):
            if uid in uids:
                (directory / uid).mkdir(parents=True)
                files[uid] = [directory / uid / name for name in sorted(fields)]
                for file in files[uid]:
                    file.write_bytes(fields[file.name])
    return files


def remove_leftovers(out: Location, jobs: int) -> None:
    """Remove half-written files of an interrupted build, and files of no planned job; journals of planned ones stay.
    Only for the holder of the build lock."""
    for name, pattern in (("shards", SHARD_NAME), ("ledger", PART_NAME), (PICTURES, PACK_NAME)):
        for path in (out / name).iterdir() if (out / name).is_dir() else ():
            match = pattern.fullmatch(path.name)
            stray = match is not None and int(match.groups()[-1]) >= jobs
            if stray or STAGED.fullmatch(path.name):
                path.unlink(missing_ok=True)
    if working_folder(out).is_dir():
        for path in working_folder(out).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # workers of a build just killed may still be writing there
            elif not ((match := JOURNAL_NAME.fullmatch(path.name)) and int(match[1]) < jobs):
                path.unlink(missing_ok=True)
