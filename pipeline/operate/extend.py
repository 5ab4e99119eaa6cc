"""More assets for a dataset that is there: what they are, and the jobs they make."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.config import BuildConfig
from pipeline.plan import ShardJob, plan_jobs
from schemas.mesh import MeshRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What a source brings to a plan."""

    jobs: tuple[ShardJob, ...]
    """Numbered after those of the plan."""
    present: int
    """Assets that are planned already, by uid."""
    changed: int
    """Of these, those whose file is another one now: the dataset keeps what it has."""

    @property
    def assets(self) -> int:
        """New ones."""
        return sum(len(job.refs) for job in self.jobs)


def added(jobs: Sequence[ShardJob], refs: Iterable[MeshRef], assets_per_job: int) -> Addition:
    """The new assets of a source as jobs of their own. Raises UserError as `plan_jobs`, unless all are known."""
    planned = {ref.uid: ref.sha256 for job in jobs for ref in job.refs}
    new, present, changed = list[MeshRef](), 0, 0
    for ref in refs:
        if ref.uid not in planned:
            new.append(ref)
            continue
        present += 1
        changed += None not in (ref.sha256, planned[ref.uid]) and ref.sha256 != planned[ref.uid]
    made = plan_jobs(new, assets_per_job) if new or not present else []
    first = jobs[-1].index + 1
    return Addition(jobs=tuple(replace(job, index=first + job.index) for job in made), present=present, changed=changed)


def step(source: str, cfg: BuildConfig, addition: Addition) -> dict[str, Any]:
    """The entry of an extension in a dataset's history. A folder goes by its name: where it lies decides nothing."""
    kind, _, rest = source.partition(":")
    return {
        "step": "extended",
        "source": f"{kind}:{rest.rstrip('/').rpartition('/')[2]}",
        "select": asdict(cfg)["select"],
        "first_job": addition.jobs[0].index,
        "assets": addition.assets,
        "present": addition.present,
    }
