"""The build: plan, have the jobs done, have written what belongs to the whole."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import BuildConfig, MachineConfig, built_config, require_blender
from pipeline.dataset.folders import common_folder, in_folder, require_folders
from pipeline.dataset.lock import lock
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import remove_leftovers
from pipeline.dataset.state import BuildReport, finish, finished, planned_jobs, replan, require_same, settle, writable
from pipeline.executor.journal import counts_ahead
from pipeline.executor.progress import BuildEvent, Progress
from pipeline.executor.ray_environment import close_to_others
from pipeline.executor.renew import renew, renewed_by_source, stale
from pipeline.executor.scheduler import RunConfig
from pipeline.filter.duplicates import known_ahead, unsettled
from pipeline.sources.registry import kind_of, open_source, source_folder
from schemas.dataset import DatasetInfo, part_path, read_dataset_json, read_ledger_part
from schemas.errors import UsageError, UserError
from schemas.ledger import Counts, counts_of
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.storage import Location, workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """The assets that a source adds to a plan."""

    jobs: tuple[ShardJob, ...]
    """Numbered after those of the plan."""
    present: int
    """Assets that are planned already, by uid."""
    changed: int
    """Assets among `present` whose file is another one now: the dataset keeps what it has."""

    @property
    def assets(self) -> int:
        """New ones."""
        return sum(len(job.refs) for job in self.jobs)


def added(
    jobs: Sequence[ShardJob], refs: Iterable[MeshRef], assets_per_job: int | None, folder: Path | None = None
) -> Addition:
    """The new assets of a source, which lies in `folder`, as jobs of their own. Raises UserError as `plan_jobs`, unless
    all are known."""
    planned = {ref.uid: ref.sha256 for job in jobs for ref in job.refs}
    new, present, changed = list[MeshRef](), 0, 0
    for ref in refs:
        if ref.uid not in planned:
            new.append(ref)
            continue
        present += 1
        changed += None not in (ref.sha256, planned[ref.uid]) and ref.sha256 != planned[ref.uid]
    made = plan_jobs(new, assets_per_job, folder) if new or not present else []
    first = jobs[-1].index + 1
    return Addition(jobs=tuple(replace(job, index=first + job.index) for job in made), present=present, changed=changed)


def step(source: str, cfg: BuildConfig, addition: Addition) -> dict[str, Any]:
    """The entry of an extension in a dataset's history. A folder goes by its name: where it lies decides nothing."""
    kind, rest = kind_of(source)
    return {
        "step": "extended",
        "source": f"{kind}:{rest.rstrip('/').rpartition('/')[2]}",
        "select": cfg.recorded()["select"],
        "first_job": addition.jobs[0].index,
        "assets": addition.assets,
        "present": addition.present,
    }


def build(
    source: str | Iterable[MeshRef],
    out: Location,
    cfg: BuildConfig,
    workers: int = 1,
    on_event: Callable[[BuildEvent], None] | None = None,
    address: str | None = None,
    run: RunConfig | None = None,
) -> BuildReport:
    """Build the dataset of `source` (`pipeline.sources.registry`, or the assets themselves) in `out`, or finish it.

    Finished jobs are kept; of assets without a sample, files that have changed since are taken in. `address` joins a
    running Ray cluster whose machines all see `out`; otherwise Ray is started here with `workers` processes. `run`
    decides nothing about the dataset. Raises UserError: bad source, unwritable output, another build at work on `out`,
    or a configuration or input that differs from that of the dataset in `out`; once all other jobs are done, where one
    could not be."""
    work = _work(out, cfg, workers, on_event, address, run)
    with _alone(work):
        if isinstance(source, str):
            jobs = plan_jobs(_listed(source, work), cfg.assets_per_job, source_folder(source, _assets(work)))
        else:
            jobs = plan_jobs(refs := list(source), cfg.assets_per_job, common_folder(refs))
        if (work.out / "dataset.json").exists():
            renewed_by_source(work.out, read_dataset_json(work.out), jobs)
        return _carry_out(work, jobs, settle(work.out, jobs, cfg.recorded()))


def rework(
    out: Location,
    choose: Callable[[Location, list[ShardJob]], list[ShardJob]],
    workers: int = 1,
    on_event: Callable[[BuildEvent], None] | None = None,
    address: str | None = None,
    machine: MachineConfig | None = None,
    run: RunConfig | None = None,
    *,
    take_in: bool = False,
) -> BuildReport:
    """Do some jobs of a dataset again, by its own plan and configuration: those that `choose` picks, given the dataset
    and its jobs (`pipeline.maintain.failures`). `machine`: what a dataset does not record. `take_in`: the files of the
    assets that are picked may have changed since they were planned.

    Raises UserError as `build`, and where `out` is no dataset."""
    out = out.expanduser().absolute()
    before = read_dataset_json(out)
    cfg = built_config(out, before, machine)
    work = _work(out, cfg, workers, on_event, address, run)
    with _alone(work):
        jobs = in_folder(planned_jobs(out, before), machine.folder if machine else "")
        info = settle(out, jobs, cfg.recorded())
        if take_in:
            chosen = choose(out, jobs)
            require_folders(out, chosen)
            uids = frozenset(uid for job in chosen for uid in job.only or ())
            info, jobs = renew(out, info, jobs, uids, cfg.preflight.max_file_bytes)
        return _carry_out(work, jobs, info, choose)


def extend(
    source: str,
    out: Location,
    cfg: BuildConfig,
    workers: int = 1,
    on_event: Callable[[BuildEvent], None] | None = None,
    address: str | None = None,
    run: RunConfig | None = None,
) -> tuple[BuildReport, Addition]:
    """Add the assets of `source` that a dataset does not have: new jobs after its own, whose files stay as they are. An
    extension that was stopped goes on when it is asked for again.

    Raises UserError as `build`, and where `out` is no dataset."""
    out = out.expanduser().absolute()
    info = read_dataset_json(out)
    require_blender(out, info, cfg.blender)
    work = _work(out, cfg, workers, on_event, address, run)
    with _alone(work):
        require_same(
            out, info, cfg.recorded(), "extend it as it was built, or build a dataset of its own", but="select"
        )
        before = planned_jobs(out, info)
        addition = added(before, _listed(source, work), cfg.assets_per_job, source_folder(source, _assets(work)))
        jobs = [*before, *addition.jobs]
        if addition.jobs:
            info = replan(out, info, jobs, step(source, cfg, addition))
        return _carry_out(work, jobs, info), addition


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The options that building, extending and repairing share."""

    out: Location
    cfg: BuildConfig
    workers: int
    address: str | None
    run: RunConfig
    notify: Callable[[BuildEvent], None]


def _work(
    out: Location,
    cfg: BuildConfig,
    workers: int,
    on_event: Callable[[BuildEvent], None] | None,
    address: str | None,
    run: RunConfig | None,
) -> _Work:
    if workers < 1:
        raise UsageError(f"workers is {workers}; give 1 or more")
    return _Work(
        out=out.expanduser().absolute(),
        cfg=cfg,
        workers=workers,
        address=address,
        run=run or RunConfig(),
        notify=on_event or (lambda event: None),
    )


@contextlib.contextmanager
def _alone(work: _Work) -> Iterator[None]:
    """With the dataset to itself. Who waits for another build hears so."""
    nothing = _nothing_yet(work)
    with writable(work.out), lock(work.out, lambda detail: nothing.report("waiting", detail=detail)):
        yield


def _assets(work: _Work) -> Path:
    """Return the folder for assets that a source makes."""
    return workspace(work.out) / "assets"


def _nothing_yet(work: _Work) -> Progress:
    """Progress before anything is planned."""
    return Progress(jobs=0, planned=0, notify=work.notify, clock=time.monotonic)


def _listed(source: str, work: _Work) -> Iterator[MeshRef]:
    """List the assets of a source. Raises UserError where that fails."""
    cfg, nothing = work.cfg, _nothing_yet(work)
    try:
        for ref in open_source(
            source,
            _assets(work),
            bool(cfg.blender.python),
            cfg.select,
            cfg.objaverse,
            cfg.preflight.max_file_bytes,
            report=lambda line: nothing.report("selected", detail=line),
        ):
            nothing.found()
            yield ref
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{error.filename or source}: the assets of {source} cannot be listed ({reason}); fix that and run "
            "the same command again"
        ) from error


def _progress(jobs: list[ShardJob], done: Collection[Counts], notify: Callable[[BuildEvent], None]) -> Progress:
    """Make the progress of a build some of whose jobs are done already."""
    planned, counts = sum(len(job.refs) for job in jobs), sum(done, Counts())
    return Progress(
        jobs=len(jobs), planned=planned, notify=notify, clock=time.monotonic, jobs_done=len(done), counts=counts
    )


def _carry_out(
    work: _Work,
    jobs: list[ShardJob],
    info: DatasetInfo,
    choose: Callable[[Location, list[ShardJob]], list[ShardJob]] | None = None,
) -> BuildReport:
    """Run the jobs that `choose` picks (by default those that are not finished), and again those that hold
    duplicates, which are known when all are done; then write what belongs to the whole."""
    out = work.out
    remove_leftovers(out, len(jobs))
    chosen = choose(out, jobs) if choose else None
    doing = {job.index for job in chosen or ()}
    done = finished(out, [job for job in jobs if job.index not in doing])
    if chosen is None:
        renewed = {job.index: job for job in stale(out, info, [job for job in jobs if job.index in done])}
        done = {index: counts for index, counts in done.items() if index not in renewed}
        chosen = [renewed.get(job.index, job) for job in jobs if job.index not in done]
    require_folders(out, chosen)
    todo = chosen
    doing |= {job.index for job in todo}
    progress = _progress(jobs, done.values(), work.notify)

    def with_duplicates() -> list[ShardJob]:
        parts = (read_ledger_part(part_path(out, job.index)) for job in jobs)
        again = unsettled(jobs, parts, work.cfg.duplicates)
        for job in again:
            doing.add(job.index)
            progress.undone(job.index, counts_of(read_ledger_part(part_path(out, job.index)).outcomes))
        return again

    todo = known_ahead(jobs, todo, work.cfg.duplicates) or with_duplicates()
    for index, counts in counts_ahead(out, todo, work.cfg):
        progress.at_work(index, counts)
    progress.report("planned", detail="" if todo else "nothing to do")
    if todo:
        (out / "index.json").unlink(missing_ok=True)
        if work.address is None:
            close_to_others()
        from pipeline.executor.ray_executor import run_jobs  # Ray reads the environment when it is imported

        run_jobs(todo, out, work.cfg, work.run, work.workers, work.address, progress, then=with_duplicates)
        remove_leftovers(out, len(jobs))  # of workers that were lost on the way
    progress.report("finishing", detail="writing index, card and metadata")
    report = finish(out, info, jobs, len(doing))
    progress.report("done")
    return report
