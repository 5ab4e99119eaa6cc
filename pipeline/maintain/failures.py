"""List the assets without a sample, process one of them alone, and choose jobs to do again."""

import shlex
import tempfile
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import MachineConfig, built_config
from pipeline.dataset.folders import folder_of, in_folder, located, read_folders, require_folders
from pipeline.dataset.shards import require_committed
from pipeline.dataset.state import planned_jobs
from pipeline.dataset.verify import find_problems
from pipeline.executor.job import ASSET_TARGET, process_job
from schemas.dataset import part_path, part_paths, read_dataset_json, read_ledger_part
from schemas.errors import UsageError
from schemas.ledger import Outcome, Reason, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.storage import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The ledger row of an asset without a sample."""

    uid: str
    uri: str
    """With its folder, where that is known on this machine."""
    status: Status
    reason: str
    detail: str
    """Explanation of the reason; the end of its stderr if the asset's process crashed."""
    reproduce: str
    """Command line that processes this asset alone. A dataset records no program, server or cache: add
    `--blender.python` and `--objaverse.*` as in the build."""


def failures(out: Location, rejected: bool = False) -> Iterator[Failure]:
    """Yield every failed row, with `rejected` every rejected one too, in ledger order."""
    read_dataset_json(out)
    wanted = {Status.FAILED, Status.REJECTED} if rejected else {Status.FAILED}
    folders = read_folders(out)
    for part in map(read_ledger_part, part_paths(out)):
        folder = folder_of(part.job, folders)
        for outcome in part.outcomes:
            if outcome.status in wanted:
                yield Failure(
                    uid=outcome.uid,
                    uri=located(MeshRef(uid=outcome.uid, uri=outcome.uri), folder).uri,
                    status=outcome.status,
                    reason=str(outcome.reason),
                    detail=outcome.detail,
                    reproduce=shlex.join(["seqtex", "inspect", str(out), "--uid", outcome.uid]),
                )


def process_alone(
    out: Location,
    uid: str,
    machine: MachineConfig | None = None,
    target: str = ASSET_TARGET,
    python_path: tuple[Path, ...] = (),
) -> Outcome:
    """Process one planned asset again, under the dataset's own configuration and limits: a job of its own, in a
    folder that is thrown away. `machine`: what a dataset does not record.

    Raises UsageError where no asset of that uid was planned."""
    info = read_dataset_json(out)
    cfg = built_config(out, info, machine)
    jobs = in_folder(planned_jobs(out, info), machine.folder if machine else "")
    alone = (replace(job, index=0, refs=(ref,)) for job in jobs for ref in job.refs if ref.uid == uid)
    if (job := next(alone, None)) is None:
        raise UsageError(f"{out}: has no asset {uid!r}; its uids are in {out / 'plan.parquet'}")
    require_folders(out, [job])
    with tempfile.TemporaryDirectory(prefix="inspect-") as name:
        for folder in ("shards", "ledger"):
            (Path(name) / folder).mkdir()
        process_job(job, Path(name), cfg, target, python_path)
        (outcome,) = read_ledger_part(part_path(Path(name), 0)).outcomes
    return replace(outcome, shard=None)


def recorded(out: Location, uid: str) -> Outcome | None:
    """Return the row of an asset; None if its job is not done."""
    rows = (outcome for path in part_paths(out) for outcome in read_ledger_part(path).outcomes)
    return next((outcome for outcome in rows if outcome.uid == uid), None)


def chosen_assets(
    out: Location, jobs: list[ShardJob], *, reasons: Set[Reason] = frozenset(), uids: Set[str] = frozenset()
) -> list[ShardJob]:
    """Choose the jobs with assets that ended with one of `reasons`, or have one of `uids`, to process those assets
    alone.

    Raises UserError where a job is unfinished or damaged: its other assets could not be kept as they are; UsageError
    for a uid that no asset has."""
    if unknown := sorted(uids - {ref.uid for job in jobs for ref in job.refs}):
        raise UsageError(f"{out}: has no asset {unknown[0]!r}; its uids are in {out / 'plan.parquet'}")
    chosen = []
    for job in jobs:
        rows = require_committed(out, job).outcomes if reasons or any(ref.uid in uids for ref in job.refs) else ()
        if only := frozenset(row.uid for row in rows if row.reason in reasons or row.uid in uids):
            chosen.append(replace(job, only=only))
    return chosen


def damaged(out: Location, jobs: list[ShardJob]) -> list[ShardJob]:
    """Choose the jobs that are missing or have a missing or damaged file. Reads the whole dataset."""
    wanted = {problem.job for problem in find_problems(out)}
    return [job for job in jobs if job.index in wanted]
