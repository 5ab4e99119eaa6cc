"""Status of a dataset from its plan and its ledger alone, finished or while a build runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.dataset.lock import running_since
from pipeline.dataset.state import planned_jobs
from schemas.dataset import LedgerPart, ShardRecord, part_path, read_dataset_json, read_ledger_part
from schemas.errors import UserError
from schemas.ledger import FAILURES, Outcome, Reason, Status
from schemas.sample import Regime
from schemas.storage import Location


class Stage(StrEnum):
    """The stages at which assets are lost, in order."""

    PROCESS = "process"
    """Our own failures, of any stage."""
    FILE = "file"
    LOAD = "load"
    FILTER = "filter"
    TEXTURE = "texture"
    """Assets lost here keep their views."""


_REASONS = {
    Stage.PROCESS: FAILURES,
    Stage.LOAD: frozenset(
        {Reason.LOAD_ERROR, Reason.NO_GEOMETRY, Reason.UNSUPPORTED_MATERIAL, Reason.INCONSISTENT_VIEWS}
    ),
    Stage.FILTER: frozenset(
        {
            Reason.TOO_FEW_FACES,
            Reason.TOO_MANY_FACES,
            Reason.DEGENERATE,
            Reason.FLAT,
            Reason.UNTEXTURED,
            Reason.TRANSPARENT,
            Reason.BARELY_VISIBLE,
            Reason.DUPLICATE,
        }
    ),
}
"""All others are of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage of the funnel."""

    stage: Stage
    entered: int
    lost: dict[str, int]
    """Assets by reason, most first."""
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """One of the slowest assets."""

    uid: str
    seconds: float
    ended: str
    """Regime or reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSizes:
    """Number and size of a regime's shards."""

    regime: Regime
    shards: int
    samples: int
    total_bytes: int
    median_bytes: float
    """Bytes of a shard."""
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """The state of a dataset."""

    planned: int
    """Assets."""
    done: int
    jobs: int
    jobs_done: int
    unreadable: tuple[str, ...]
    """Ledger parts that cannot be read."""
    running: bool
    assets_per_s: float | None
    """Rate of the running build; None if there is none, or it has not finished a job."""
    eta_s: float | None
    textured: int
    mv_only: int
    rejected: int
    failed: int
    funnel: tuple[Step, ...]
    seconds_median: float | None
    """Seconds of an asset; None before the first one."""
    seconds_p95: float | None
    slowest: tuple[Slow, ...]
    shards: tuple[ShardSizes, ...]
    isolation: dict[str, int]
    """Assets by the sandbox of their processes (`sandbox` in the ledger), most first; those without a process are not
    counted."""


def status(out: Location, slowest: int, now: float) -> StatusReport:
    """Read the status of a dataset from plan and ledger. `slowest`: number of assets to name; `now`: seconds since the
    epoch. Raises UserError where `out` is no dataset, or has no plan."""
    info = read_dataset_json(out)
    jobs = planned_jobs(out, info)
    since = running_since(out)
    parts, unreadable, fresh = list[LedgerPart](), list[str](), 0
    for job in jobs:
        path = part_path(out, job.index)
        try:
            written = path.stat().st_mtime
            parts.append(read_ledger_part(path))
        except FileNotFoundError:
            continue  # not done yet
        except UserError:
            if path.exists():  # else: taken back by the build at work
                unreadable.append(str(path))
            continue
        if since is not None and written >= since:
            fresh += len(job.refs)
    planned, outcomes = sum(len(job.refs) for job in jobs), [o for part in parts for o in part.outcomes]
    rate = fresh / (now - since) if since is not None and fresh and now > since else None
    seconds = [outcome.seconds for outcome in outcomes]
    by_status, by_regime = Counter(o.status for o in outcomes), Counter(o.regime for o in outcomes)
    return StatusReport(
        planned=planned,
        done=len(outcomes),
        jobs=len(jobs),
        jobs_done=len(parts),
        unreadable=tuple(unreadable),
        running=since is not None,
        assets_per_s=rate,
        eta_s=(planned - len(outcomes)) / rate if rate else None,
        textured=by_regime[Regime.TEXTURED],
        mv_only=by_regime[Regime.MV_ONLY],
        rejected=by_status[Status.REJECTED],
        failed=by_status[Status.FAILED],
        funnel=tuple(funnel(outcomes)),
        seconds_median=float(np.median(seconds)) if seconds else None,
        seconds_p95=float(np.quantile(seconds, 0.95)) if seconds else None,
        slowest=tuple(
            Slow(uid=o.uid, seconds=o.seconds, ended=str(o.reason or o.regime))
            for o in sorted(outcomes, key=lambda o: (-o.seconds, o.uid))[:slowest]
        ),
        shards=tuple(_shard_sizes([shard for part in parts for shard in part.shards])),
        isolation=dict(Counter(outcome.sandbox for outcome in outcomes if outcome.sandbox).most_common()),
    )


def funnel(outcomes: Sequence[Outcome]) -> list[Step]:
    """Count the assets that pass each stage, down to the textured samples."""
    lost: dict[Stage, Counter[str]] = {stage: Counter() for stage in Stage}
    for outcome in outcomes:
        if outcome.reason is not None:
            lost[_stage(outcome)][str(outcome.reason)] += 1
    steps, entered = [], len(outcomes)
    for stage, reasons in lost.items():
        left = entered - reasons.total()
        steps.append(Step(stage=stage, entered=entered, lost=dict(reasons.most_common()), left=left))
        entered = left
    return steps


def _stage(outcome: Outcome) -> Stage:
    if outcome.status is Status.ACCEPTED:
        return Stage.TEXTURE
    return next((stage for stage, reasons in _REASONS.items() if outcome.reason in reasons), Stage.FILE)


def _shard_sizes(shards: Sequence[ShardRecord]) -> Iterator[ShardSizes]:
    for regime in Regime:
        of_regime = [shard for shard in shards if shard.regime is regime]
        if sizes := [shard.bytes for shard in of_regime]:
            yield ShardSizes(
                regime=regime,
                shards=len(sizes),
                samples=sum(shard.count for shard in of_regime),
                total_bytes=sum(sizes),
                median_bytes=float(np.median(sizes)),
                max_bytes=max(sizes),
            )
