"""Merge datasets of one configuration: their jobs get new numbers, their shards are linked or copied."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.dataset.lock import running_since
from pipeline.dataset.pictures import read_pictures, write_pictures
from pipeline.dataset.shards import commit, committed, require_committed, unpack
from pipeline.dataset.state import differences, planned_jobs, replan, require_version
from schemas.dataset import (
    DatasetInfo,
    LedgerPart,
    ShardRecord,
    read_dataset_json,
    shard_name,
    shard_path,
    write_ledger_part,
)
from schemas.errors import UsageError, UserError
from schemas.ledger import Outcome, Status
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.storage import Location, ObjectPath, place, staged, working_folder

_SAMPLES_STAY = ("assets_per_job", "duplicates", "limits", "select")
"""Settings that decide which assets become samples, and where they lie, but nothing in a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A job of the merged dataset, and the source of its assets."""

    job: ShardJob
    dataset: Location
    old: ShardJob
    """Holds all assets of `job`, perhaps more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """The datasets to merge."""

    info: DatasetInfo
    moves: tuple[Move, ...]
    step: dict[str, Any]
    """The entry in the history of the merged dataset."""
    twice: int
    """Assets skipped since another dataset has their uid."""


def plan_merge(datasets: Sequence[Location]) -> MergePlan:
    """Plan a merge: the jobs of all datasets, one dataset after the other. Of assets with one uid, the first that has a
    sample is taken, else the first.

    Raises UserError where they differ in a setting that changes samples, or one is not whole."""
    places = [dataset.resolve() if isinstance(dataset, Path) else dataset for dataset in datasets]
    if len(set(places)) < 2:
        raise UsageError("give two datasets or more, each once")
    infos = [read_dataset_json(dataset) for dataset in datasets]
    for dataset, info in zip(datasets, infos, strict=True):
        require_version(dataset, info)
        for name, here, there in differences(info.config, infos[0].config):
            if name.partition(".")[0] not in _SAMPLES_STAY:
                raise UserError(
                    f"{dataset}: built with {name}={here!r}, {datasets[0]} with {there!r}; only datasets of one "
                    "configuration can be merged"
                )
    jobs = [_whole(dataset, info) for dataset, info in zip(datasets, infos, strict=True)]
    owner = _owners(datasets, jobs)
    moves, made_of = list[Move](), []
    for number, (dataset, info) in enumerate(zip(datasets, infos, strict=True)):
        first = len(moves)
        for old in jobs[number]:
            if refs := tuple(ref for ref in old.refs if owner[ref.uid] == number):
                moves.append(
                    Move(job=ShardJob(index=len(moves), refs=refs, folder=old.folder), dataset=dataset, old=old)
                )
        taken = sum(len(move.job.refs) for move in moves[first:])
        made_of.append(
            {
                "dataset": places[number].name,
                "plan_sha256": info.plan_sha256,
                "first_job": first,
                "assets": taken,
                "skipped": info.planned - taken,
                "select": info.config.get("select"),
                "history": info.history,
            }
        )
    twice = sum(info.planned for info in infos) - sum(len(move.job.refs) for move in moves)
    info = replace(infos[0], history=[])
    return MergePlan(info=info, moves=tuple(moves), step={"step": "merged", "of": made_of}, twice=twice)


def _whole(dataset: Location, info: DatasetInfo) -> list[ShardJob]:
    """Return the jobs of a dataset. Raises UserError where it is not finished, or a build is at work on it."""
    if running_since(dataset) is not None:
        raise UserError(f"{dataset}: a build is at work here; wait for it to end")
    jobs = planned_jobs(dataset, info)
    for job in jobs:
        require_committed(dataset, job)
    return jobs


def _owners(datasets: Sequence[Location], jobs: Sequence[Sequence[ShardJob]]) -> dict[str, int]:
    """Return the number of the dataset that each asset is taken from, by uid."""
    owner: dict[str, tuple[bool, int]] = {}
    for number, dataset in enumerate(datasets):
        for job in jobs[number]:
            for outcome in require_committed(dataset, job).outcomes:
                claim = (outcome.status is not Status.ACCEPTED, number)
                owner[outcome.uid] = min(claim, owner.get(outcome.uid, claim))
    return {uid: number for uid, (_, number) in owner.items()}


def carry_over(plan: MergePlan, out: Location) -> None:
    """Write plan, `dataset.json` and every job of the merged dataset; jobs that are there already stay. Only for the
    holder of the build lock of `out`."""
    jobs = [move.job for move in plan.moves]
    if (out / "dataset.json").exists():
        found = read_dataset_json(out)
        if (found.history, found.config) != ([plan.step], plan.info.config):
            raise UserError(f"{out}: holds another dataset; give another --out, or delete it")
    else:
        replan(out, plan.info, jobs, plan.step)
    for move in plan.moves:
        if committed(out, move.job) is None:
            _move(move, out)


def _move(move: Move, out: Location) -> None:
    """Write one job: its shards as they are if all its assets are taken, else again without the others."""
    part = require_committed(move.dataset, move.old)
    keep = {ref.uid for ref in move.job.refs}
    pictures = {uid: picture for uid, picture in read_pictures(move.dataset, move.old.index).items() if uid in keep}
    outcomes = [_renumbered(outcome, move.job.index) for outcome in part.outcomes if outcome.uid in keep]
    if len(outcomes) == len(part.outcomes):
        shards = tuple(_placed(move.dataset, shard, move.job.index, out) for shard in part.shards)
        write_pictures(out, move.job.index, pictures)
        write_ledger_part(out, LedgerPart(job=move.job.index, outcomes=tuple(outcomes), shards=shards))
        return
    with tempfile.TemporaryDirectory(prefix="merge-", dir=working_folder(out)) as name:
        files = unpack(move.dataset, part, keep, Path(name))
        samples: dict[Regime, list[tuple[str, list[Path]]]] = {}
        for outcome in outcomes:
            if outcome.regime is not None:
                samples.setdefault(outcome.regime, []).append((outcome.uid, files[outcome.uid]))
        commit(out, move.job.index, outcomes, samples, pictures)


def _renumbered(outcome: Outcome, job: int) -> Outcome:
    return replace(outcome, shard=shard_name(outcome.regime, job)) if outcome.regime else outcome


def _placed(dataset: Location, shard: ShardRecord, job: int, out: Location) -> ShardRecord:
    """Copy a shard to its new name. Its bytes are the recorded ones, else `seqtex verify` reports it."""
    record = replace(shard, name=shard_name(shard.regime, job))
    source, target = shard_path(dataset, shard.name), shard_path(out, record.name)
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath) and source.scheme == target.scheme:
        target.copy_from(source)
        return record
    temporary = staged(target)
    temporary.unlink(missing_ok=True)  # a file left by another process of this number may be a name of a shard
    try:
        _link_or_copy(source, temporary)
        place(target)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _link_or_copy(source: Location, file: Path) -> None:
    """Make `file` a second name of a local source where the file system allows it, else a flushed copy."""
    if isinstance(source, ObjectPath):
        source.download(file)
    else:
        assert isinstance(source, Path)
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source, file)
            return
        shutil.copyfile(source, file)
    with file.open("rb") as written:
        os.fsync(written.fileno())
