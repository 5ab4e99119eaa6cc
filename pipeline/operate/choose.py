"""Which jobs of a dataset are to be done again (`pipeline.run.rework`)."""

from collections.abc import Set
from dataclasses import replace

from pipeline.plan import ShardJob
from pipeline.shards import committed
from pipeline.verify import find_problems
from schemas.errors import UserError
from schemas.ledger import Reason
from schemas.locations import Location


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
