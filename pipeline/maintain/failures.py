"""The assets that came to nothing, one by one, and each of them done again alone."""

import shlex
import tempfile
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import built_config
from pipeline.dataset.shards import committed
from pipeline.dataset.state import planned_jobs
from pipeline.dataset.verify import find_problems
from pipeline.executor.job import ASSET_TARGET, process_job
from pipeline.sources.objaverse import ObjaverseConfig
from schemas.dataset import part_path, part_paths, read_dataset_json, read_ledger_part
from schemas.errors import UsageError, UserError
from schemas.ledger import Outcome, Reason, Status
from schemas.plan import ShardJob
from schemas.storage import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A row without a sample."""

    uid: str
    uri: str
    status: Status
    reason: str
    detail: str
    """What was found; where the asset's process ended by itself, the end of its stderr."""
    reproduce: str
    """Command line that does this asset alone. Where an Objaverse asset came from, and where its copy lies, no dataset
    records: `--objaverse.*` as in the build is for whoever runs it to add."""


def failures(out: Location, rejected: bool = False) -> Iterator[Failure]:
    """Every failed row, with `rejected` every rejected one too, in ledger order."""
    read_dataset_json(out)
    wanted = {Status.FAILED, Status.REJECTED} if rejected else {Status.FAILED}
    for path in part_paths(out):
        for outcome in read_ledger_part(path).outcomes:
            if outcome.status in wanted:
                yield Failure(
                    uid=outcome.uid,
                    uri=outcome.uri,
                    status=outcome.status,
                    reason=str(outcome.reason),
                    detail=outcome.detail,
                    reproduce=shlex.join(["seqtex", "inspect", str(out), "--uid", outcome.uid]),
                )


def process_alone(
    out: Location,
    uid: str,
    objaverse: ObjaverseConfig | None = None,
    target: str = ASSET_TARGET,
    python_path: tuple[Path, ...] = (),
) -> Outcome:
    """Process one planned asset again, under the dataset's own configuration and limits: a job of its own, in a
    folder that is thrown away. `objaverse`: where to download from, which a dataset does not record.

    Raises UsageError where no asset of that uid was planned."""
    info = read_dataset_json(out)
    cfg = replace(built_config(out, info), objaverse=objaverse or ObjaverseConfig())
    refs = (ref for job in planned_jobs(out, info) for ref in job.refs)
    if (ref := next((ref for ref in refs if ref.uid == uid), None)) is None:
        raise UsageError(f"{out}: has no asset {uid!r}; its uids are in {out / 'plan.parquet'}")
    with tempfile.TemporaryDirectory(prefix="inspect-") as name:
        for folder in ("shards", "ledger"):
            (Path(name) / folder).mkdir()
        process_job(ShardJob(index=0, refs=(ref,)), Path(name), cfg, target, python_path)
        (outcome,) = read_ledger_part(part_path(Path(name), 0)).outcomes
    return replace(outcome, shard=None)


def recorded(out: Location, uid: str) -> Outcome | None:
    """The row of an asset; None where its job is not done."""
    rows = (outcome for path in part_paths(out) for outcome in read_ledger_part(path).outcomes)
    return next((outcome for outcome in rows if outcome.uid == uid), None)


def with_reasons(out: Location, jobs: list[ShardJob], *, reasons: Set[Reason]) -> list[ShardJob]:
    """Jobs with assets that ended with one of `reasons`, those assets alone to be processed.

    Raises UserError where a job is unfinished or damaged: its other assets could not be kept as they are."""
    chosen = []
    for job in jobs:
        part = committed(out, job)
        if part is None:
            raise UserError(f"{out}: job {job.index} is unfinished or damaged; run `seqtex repair {out}` first")
        if only := frozenset(outcome.uid for outcome in part.outcomes if outcome.reason in reasons):
            chosen.append(replace(job, only=only))
    return chosen


def damaged(out: Location, jobs: list[ShardJob]) -> list[ShardJob]:
    """Jobs that are missing, or of which a file is. Reads the whole dataset."""
    wanted = {problem.job for problem in find_problems(out)}
    return [job for job in jobs if job.index in wanted]
