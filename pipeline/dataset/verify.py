"""Verify a dataset: everything on disk against its commit records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset.attribution import FILE as ATTRIBUTION
from pipeline.dataset.attribution import attribution_parquet
from pipeline.dataset.plan import read_plan
from pipeline.dataset.shards import STAGED
from pipeline.dataset.state import planned_jobs
from schemas.codec import decode
from schemas.dataset import (
    PART_NAME,
    SHARD_NAME,
    LedgerPart,
    ShardRecord,
    by_repair,
    index_json,
    indexed_parts,
    part_path,
    part_paths,
    read_dataset_json,
    read_ledger_part,
    shard_path,
)
from schemas.errors import UserError
from schemas.ledger import Outcome, Status
from schemas.plan import ShardJob
from schemas.shards import read_samples
from schemas.storage import Location, file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A defect of a dataset."""

    text: str
    """Names the file and a remedy."""
    job: int | None
    """The job to do again; None if that would not help."""


Progress = Callable[[int, int], None]
"""Called with the jobs that are checked, and all."""


def verify(out: Location, progress: Progress = lambda done, total: None) -> list[str]:
    """Find everything wrong with a dataset, as `find_problems`: one line each."""
    return [problem.text for problem in find_problems(out, progress)]


def find_problems(out: Location, progress: Progress = lambda done, total: None) -> list[Problem]:
    """Find everything wrong with a dataset; nothing if it is whole.

    Raises UserError where `out` is no dataset at all."""
    if not out.is_dir():
        raise UserError(f"{out}: no such folder; give the folder that `seqtex build` wrote")
    try:
        info = read_dataset_json(out)
        jobs = planned_jobs(out, info)
    except UserError as error:
        if not (out / "dataset.json").exists():
            raise
        return [Problem(text=str(error), job=None)]
    problems, plan = list[Problem](), out / "plan.parquet"
    if file_sha256(plan) != info.plan_sha256 and len(read_plan(plan)) == len(jobs):  # else a stopped extension's
        problems.append(Problem(text=f"{plan}: damaged, though it can be read; {by_repair(out)}", job=None))
    parts = []
    for done, job in enumerate(jobs):
        progress(done, len(jobs))
        path = part_path(out, job.index)
        try:
            part = read_ledger_part(path)
        except UserError as error:
            problems.append(Problem(text=str(error), job=job.index))
            continue
        parts.append(part)
        found = list(_check_rows(path, job, part))
        for shard in part.shards:
            found += _check_shard(out, shard, part)
        problems += [Problem(text=text, job=job.index) for text in found]
    progress(len(jobs), len(jobs))
    problems += [*_check_files(out, jobs, parts), *_check_index(out, parts)]
    return problems + (list(_check_attribution(out, jobs, parts)) if len(parts) == len(jobs) else [])


def _check_rows(path: Location, job: ShardJob, part: LedgerPart) -> Iterator[str]:
    """Check that every planned asset has exactly one row, and that the rows agree with the shards."""
    if part.job != job.index:
        yield f"{path}: holds job {part.job}"
    rows = [(o.uid, o.uri) for o in part.outcomes]
    if rows != [(ref.uid, ref.uri) for ref in job.refs]:
        yield f"{path}: its {len(rows)} rows are not the {len(job.refs)} planned assets"
    shards = {shard.name: shard for shard in part.shards}
    for shard in part.shards:
        if sum(o.shard == shard.name for o in part.outcomes) != shard.count:
            yield f"{path}: {shard.name} should hold {shard.count} samples, its rows count otherwise"
    for outcome in part.outcomes:
        if reason := _contradiction(outcome, shards):
            yield f"{path}: row {outcome.uid}: {reason}"


def _contradiction(outcome: Outcome, shards: dict[str, ShardRecord]) -> str | None:
    if outcome.status is not Status.ACCEPTED:
        if outcome.reason is None:
            return f"{outcome.status} without a reason"
        return None if outcome.shard is None and outcome.regime is None else f"{outcome.status}, yet it names a sample"
    if outcome.shard not in shards:
        return f"names {outcome.shard}, which the commit record does not"
    return None if shards[outcome.shard].regime is outcome.regime else f"regime {outcome.regime} in {outcome.shard}"


def _check_shard(out: Location, shard: ShardRecord, part: LedgerPart) -> list[str]:
    """Check size and hash of a shard, decode every sample, and compare it with its row."""
    path = shard_path(out, shard.name)
    expected = [o.uid for o in part.outcomes if o.shard == shard.name]
    found, problems = [], []
    try:
        for uid, fields in read_samples(out, shard):
            found.append(uid)
            sample = decode(fields)
            if sample.uid != uid or sample.regime is not shard.regime:
                problems.append(f"{path}: the sample under {uid} is one of {sample.uid}, {sample.regime}")
    except UserError as error:
        return [*problems, str(error)]
    except ValueError as error:
        problems.append(f"{path}: sample {found[-1]}: {error}; {by_repair(out)}")
    if found != expected:
        text = f"{path}: holds {len(found)} samples that are not the {len(expected)} of its rows"
        problems.append(f"{text}; {by_repair(out)}")
    return problems


def _check_files(out: Location, jobs: list[ShardJob], parts: list[LedgerPart]) -> Iterator[Problem]:
    """Find files that no commit record names. A shard with a planned job's name is replaced when that job is done
    again; `repair` removes files with names of the dataset's own, and leaves those of others."""
    named = {shard.name for part in parts for shard in part.shards}
    planned = {part_path(out, job.index).name for job in jobs}
    for folder, known, own in (("shards", named, SHARD_NAME), ("ledger", planned, PART_NAME)):
        for path in sorted((out / folder).iterdir()) if (out / folder).is_dir() else []:
            if path.name not in known:
                match = own.fullmatch(path.name) if path.is_file() else None
                removed = match or STAGED.fullmatch(path.name)
                remedy = f"{by_repair(out)}, or delete it" if removed else "delete it, or move it out of the dataset"
                text = f"{path}: no commit record names this file, so it does not count; {remedy}"
                index = int(match.groups()[-1]) if match else None
                yield Problem(text=text, job=index if index in {job.index for job in jobs} else None)


def _check_attribution(out: Location, jobs: list[ShardJob], parts: list[LedgerPart]) -> Iterator[Problem]:
    """Check that `attribution.parquet` is what plan and ledger give."""
    path = out / ATTRIBUTION
    if not path.is_file() or path.read_bytes() != attribution_parquet(jobs, parts):
        text = f"{path}: missing or damaged, it is not what plan and ledger give; {by_repair(out)}"
        yield Problem(text=text, job=None)


def _check_index(out: Location, parts: list[LedgerPart]) -> Iterator[Problem]:
    """Check that `index.json` is what the ledger gives. It also holds the hashes of the ledger parts."""
    path = out / "index.json"
    if not path.is_file():
        yield Problem(text=f"{path}: missing, the build did not finish; {by_repair(out)}", job=None)
        return
    data = path.read_bytes()
    if len(parts) == len(part_paths(out)) and data == index_json(out, parts):
        return
    text = f"{path}: does not agree with the ledger; one of the two is damaged; {by_repair(out)}"
    yield Problem(text=text, job=None)
    for name, sha256 in indexed_parts(data).items():
        part = out / "ledger" / Path(name).name
        if part.is_file() and file_sha256(part) != sha256:
            text = f"{part}: its sha256 is not the one in index.json; {by_repair(out)}"
            yield Problem(text=text, job=int(part.stem))
