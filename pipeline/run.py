"""The build: plan, deal jobs out over Ray, have written what belongs to the whole. The only `import ray`."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from pipeline.config import BuildConfig
from pipeline.output import BuildEvent, BuildReport, built_config, finish, finished, lock, settle, writable
from pipeline.plan import ShardJob, plan_jobs, read_plan
from pipeline.process import JobReport, process_job
from pipeline.sandbox import REPO
from pipeline.shards import remove_leftovers
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.spec import open_source
from schemas.dataset import (
    DatasetInfo,
    read_dataset_json,
)
from schemas.errors import UsageError, UserError
from schemas.mesh import MeshRef

JOB_ATTEMPTS = 3
"""How often a job is started whose worker process was lost."""
JOBS_IN_FLIGHT_PER_WORKER = 2
"""One running, one waiting, so that a worker never idles and a cluster's queue stays short."""


def build(
    source: str | Iterable[MeshRef],
    out: Path,
    cfg: BuildConfig,
    workers: int = 1,
    on_event: Callable[[BuildEvent], None] | None = None,
    address: str | None = None,
) -> BuildReport:
    """Build the dataset of `source` (`pipeline.sources.spec`, or the assets themselves) in `out`, or finish it.

    Finished jobs are kept. `address` joins a running Ray cluster whose machines all see `out`; otherwise Ray is started
    here with `workers` processes. Raises UserError: bad source, unwritable output, another build at work on `out`, or
    a configuration or input that differs from that of the dataset in `out`."""
    out = out.expanduser().absolute()
    if workers < 1:
        raise UsageError(f"workers is {workers}; give 1 or more")
    notify = on_event or (lambda event: None)
    with writable(out), lock(out):
        refs = _listed(source, out, cfg) if isinstance(source, str) else source
        jobs = plan_jobs(refs, cfg.assets_per_job)
        info = settle(out, jobs, cfg)
        remove_leftovers(out, len(jobs))
        parts = finished(out, jobs)
        todo = [job for job in jobs if job.index not in parts]
        return _carry_out(todo, jobs, out, cfg, info, workers, address, notify)


def _listed(source: str, out: Path, cfg: BuildConfig) -> Iterable[MeshRef]:
    return open_source(source, out / "assets", bool(cfg.blender.python), cfg.select, cfg.objaverse)


def rework(
    out: Path,
    choose: Callable[[Path, list[ShardJob]], list[ShardJob]],
    workers: int = 1,
    on_event: Callable[[BuildEvent], None] | None = None,
    address: str | None = None,
    objaverse: ObjaverseConfig | None = None,
) -> BuildReport:
    """Do some jobs of a dataset again, by its own plan and configuration: those that `choose` picks, given the dataset
    and its jobs (`pipeline.operate.choose`). `objaverse`: where to download from, which a dataset does not record.

    Raises UserError as `build`, and where `out` is no dataset."""
    out = out.expanduser().absolute()
    if workers < 1:
        raise UsageError(f"workers is {workers}; give 1 or more")
    cfg = replace(built_config(out, read_dataset_json(out)), objaverse=objaverse or ObjaverseConfig())
    jobs = read_plan(out / "plan.parquet")
    with writable(out), lock(out):
        info = settle(out, jobs, cfg)
        remove_leftovers(out, len(jobs))
        todo = choose(out, jobs)
        return _carry_out(todo, jobs, out, cfg, info, workers, address, on_event or (lambda event: None))


def _carry_out(
    todo: list[ShardJob],
    jobs: list[ShardJob],
    out: Path,
    cfg: BuildConfig,
    info: DatasetInfo,
    workers: int,
    address: str | None,
    notify: Callable[[BuildEvent], None],
) -> BuildReport:
    """Run the jobs that are to be done, then write what belongs to the whole."""
    doing = {job.index for job in todo}
    progress = _Progress(jobs=jobs, done={job.index for job in jobs} - doing, notify=notify)
    progress.tell("planned", detail="" if todo else "nothing to do")
    if todo:
        (out / "index.json").unlink(missing_ok=True)
        _run_jobs(todo, out, cfg, workers, address, progress)
    report = finish(out, info, jobs, len(todo))
    progress.tell("done")
    return report


@dataclass(kw_only=True)
class _Progress:
    jobs: list[ShardJob]
    done: set[int]
    notify: Callable[[BuildEvent], None]

    def tell(self, event: str, job: int | None = None, detail: str = "") -> None:
        self.notify(
            BuildEvent(
                event=event,
                job=job,
                jobs_done=len(self.done),
                jobs=len(self.jobs),
                assets_done=sum(len(job.refs) for job in self.jobs if job.index in self.done),
                planned=sum(len(job.refs) for job in self.jobs),
                detail=detail,
            )
        )


# Ray


def _run_jobs(
    todo: list[ShardJob], out: Path, cfg: BuildConfig, workers: int, address: str | None, progress: _Progress
) -> None:
    """Every job in a Ray task. Ray's own retries are off: they would run a fatal job for ever."""
    _start_ray(workers, address)
    try:
        # a worker that has served many jobs is replaced, whatever it has leaked
        task = ray.remote(num_cpus=1, max_retries=0, max_calls=64)(_job_task)
        capacity = max(1, int(ray.cluster_resources().get("CPU", workers))) * JOBS_IN_FLIGHT_PER_WORKER
        waiting = [(job, 1) for job in reversed(todo)]
        running: dict[ray.ObjectRef, tuple[ShardJob, int]] = {}
        while waiting or running:
            while waiting and len(running) < capacity:
                job, attempt = waiting.pop()
                running[task.remote(job, out, cfg)] = (job, attempt)
            ended, _ = ray.wait(list(running), num_returns=1)
            job, attempt = running.pop(ended[0])
            if (report := _result(ended[0], job, attempt)) is None:
                waiting.append((job, attempt + 1))
                progress.tell("retry", job.index, "its worker process was lost")
                continue
            progress.done.add(job.index)
            detail = f"{report.accepted} accepted, {report.rejected} rejected, {report.failed} failed"
            progress.tell("job", job.index, detail)
    finally:
        ray.shutdown()


def _job_task(job: ShardJob, out: Path, cfg: BuildConfig) -> JobReport:
    return process_job(job, out, cfg)


def _result(ended: ray.ObjectRef, job: ShardJob, attempt: int) -> JobReport | None:
    """The report of a job; None where it has to be started again."""
    try:
        return ray.get(ended)
    except RayTaskError as error:
        raise error.cause from error
    except (WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        if attempt < JOB_ATTEMPTS:
            return None
        first, last = job.refs[0].uid, job.refs[-1].uid
        raise UserError(
            f"job {job.index} (assets {first} to {last}) lost its worker process {attempt} times, most likely for want "
            "of memory; build again with fewer workers"
        ) from error


def _start_ray(workers: int, address: str | None) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"address": address}
    if address is None:
        # jobs exchange paths and counts: the smallest object store does
        options = {"address": "local", "num_cpus": workers, "object_store_memory": 80 * 2**20}
        options["include_dashboard"] = False
    environment = {"env_vars": {"PYTHONPATH": str(REPO)}}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **options)
    except ConnectionError as error:
        remedy = "leave the address out to work on this machine alone"
        raise UserError(f"no Ray cluster at {address!r} ({error}); {remedy}") from error
