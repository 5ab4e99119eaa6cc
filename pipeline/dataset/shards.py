"""Shards on disk: written beside, flushed, renamed; the ledger part comes last and alone makes them count."""

import os
import shutil
import tarfile
from collections.abc import Iterable, Set
from dataclasses import replace
from pathlib import Path

from schemas.dataset import (
    PART_NAME,
    SHARD_NAME,
    LedgerPart,
    ShardRecord,
    file_sha256,
    part_path,
    place,
    read_ledger_part,
    shard_name,
    shard_path,
    staged,
    write_ledger_part,
)
from schemas.errors import UserError
from schemas.ledger import Outcome
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.shards import read_samples
from schemas.storage import Location, working_folder


def _stage_shard(out: Location, job: int, regime: Regime, samples: Iterable[tuple[str, list[Path]]]) -> ShardRecord:
    """A tar of samples that lacks its final name alone. Each sample is its uid and the files of its fields, named by
    extension. Equal samples give equal bytes: members in the order given, fields by name, no times, no owners."""
    name = shard_name(regime, job)
    path = shard_path(out, name)
    temporary = staged(path)
    count = 0
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for uid, fields in samples:
                    count += 1
                    for field in sorted(fields):
                        _add(tar, f"{uid}.{field.name}", field)
            file.flush()
            os.fsync(file.fileno())
        sha256, size = file_sha256(temporary), temporary.stat().st_size
    except BaseException:  # an interrupt too leaves nothing half-written; it goes on its way
        temporary.unlink(missing_ok=True)
        raise
    return ShardRecord(name=name, regime=regime, sha256=sha256, bytes=size, count=count)


def _place_shard(out: Location, shard: ShardRecord) -> None:
    """Give a staged shard its final name; one that is there with the same bytes stays."""
    path = shard_path(out, shard.name)
    if path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256:
        staged(path).unlink()
        return
    place(staged(path), path)


def _add(tar: tarfile.TarFile, name: str, field: Path) -> None:
    info = tarfile.TarInfo(name)
    info.size = field.stat().st_size
    info.mode = 0o644
    with field.open("rb") as file:
        tar.addfile(info, file)


def commit(
    out: Location, job: int, outcomes: list[Outcome], samples: dict[Regime, list[tuple[str, list[Path]]]]
) -> LedgerPart:
    """Make a job's results count: shards first, the ledger part that names them last. Regimes never share a shard. What
    an earlier run has committed counts until all shards are written and only their names are missing; the same results
    again, but for the time they took, change no byte.

    Raises UserError where the dataset cannot be written."""
    part, shards = part_path(out, job), list[ShardRecord]()
    try:
        for regime in Regime:
            if samples.get(regime):
                shards.append(_stage_shard(out, job, regime, samples[regime]))
        if there := _same_results(out, LedgerPart(job=job, outcomes=tuple(outcomes), shards=tuple(shards))):
            return there
        part.unlink(missing_ok=True)
        for regime in Regime:
            if not samples.get(regime):
                shard_path(out, shard_name(regime, job)).unlink(missing_ok=True)
        for shard in shards:
            _place_shard(out, shard)
        ledger = LedgerPart(job=job, outcomes=tuple(outcomes), shards=tuple(shards))
        write_ledger_part(out, ledger)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot write job {job} ({error.strerror or error}); fix that and run the same "
            "command again, finished jobs are kept"
        ) from error
    finally:
        for shard in shards:
            staged(shard_path(out, shard.name)).unlink(missing_ok=True)
    return ledger


def _same_results(out: Location, found: LedgerPart) -> LedgerPart | None:
    """Return the committed ledger part if it holds the same results, whatever time they took; else None."""
    try:
        part = read_ledger_part(part_path(out, found.job))
    except UserError:
        return None
    untimed = [[replace(outcome, seconds=0.0) for outcome in one.outcomes] for one in (part, found)]
    if untimed[0] != untimed[1] or part.shards != found.shards:
        return None
    paths = [(shard_path(out, shard.name), shard.sha256) for shard in part.shards]
    return part if all(path.is_file() and file_sha256(path) == sha256 for path, sha256 in paths) else None


def committed(out: Location, job: ShardJob, sha256: str | None = None) -> LedgerPart | None:
    """The ledger part of a finished job: readable, of the assets planned, all its shards there with the right size.
    `sha256`: of the part's bytes, where it is known."""
    try:
        part = read_ledger_part(part_path(out, job.index), sha256)
    except UserError:
        return None  # not done yet, or damaged: the job is done again
    if part.job != job.index or [o.uid for o in part.outcomes] != [ref.uid for ref in job.refs]:
        return None
    for shard in part.shards:
        try:
            if shard_path(out, shard.name).stat().st_size != shard.bytes:
                return None
        except FileNotFoundError:
            return None
    return part


def unpack(out: Location, part: LedgerPart, uids: Set[str], directory: Path) -> dict[str, list[Path]]:
    """The fields of stored samples as files below `directory`, by uid. Raises UserError where a shard is damaged."""
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
    """Remove half-written files of an interrupted build, and files of no planned job. Only for the holder of the build
    lock."""
    for folder, pattern in ((out / "shards", SHARD_NAME), (out / "ledger", PART_NAME)):
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            stray = match is not None and int(match.groups()[-1]) >= jobs
            if stray or (path.name.startswith(".") and path.name.endswith(".tmp")):
                path.unlink(missing_ok=True)
    if working_folder(out).is_dir():
        for path in working_folder(out).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # workers of a build just killed may still be writing there
            else:
                path.unlink(missing_ok=True)
