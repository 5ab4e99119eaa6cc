"""The build: plan, deal jobs out over Ray, write what belongs to the whole. The only `import ray`."""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from pipeline.card import dataset_card
from pipeline.config import BuildConfig
from pipeline.plan import ShardJob, plan_bytes, plan_difference, plan_jobs, read_plan
from pipeline.process import JobReport, process_job
from pipeline.sandbox import REPO
from pipeline.shards import committed, remove_leftovers
from pipeline.sources.spec import open_source
from schemas.dataset import (
    DatasetInfo,
    LedgerPart,
    code_version,
    dataset_json,
    file_sha256,
    index_json,
    indexed_parts,
    part_path,
    read_dataset_json,
    read_ledger,
    write_file,
)
from schemas.errors import UsageError, UserError
from schemas.ledger import Status
from schemas.mesh import MeshRef
from schemas.sample import Regime

JOB_ATTEMPTS = 3
"""How often a job is started whose worker process was lost."""
JOBS_IN_FLIGHT_PER_WORKER = 2
"""One running, one waiting, so that a worker never idles and a cluster's queue stays short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """Progress, for a person or a log."""

    event: str
    """`planned`, `job`, `retry` or `done`."""
    job: int | None = None
    jobs_done: int
    jobs: int
    assets_done: int
    """Assets of finished jobs, those of earlier runs included."""
    planned: int
    """Assets."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """The dataset after a build."""

    planned: int
    textured: int
    mv_only: int
    rejected: int
    failed: int
    jobs: int
    jobs_run: int
    """0: there was nothing to do."""


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
    with _writable(out), _lock(out):
        refs = open_source(source, out / "assets", bool(cfg.blender.python)) if isinstance(source, str) else source
        jobs = plan_jobs(refs, cfg.assets_per_job)
        info = _settle(out, jobs, cfg)
        remove_leftovers(out, len(jobs))
        parts = _finished(out, jobs)
        todo = [job for job in jobs if job.index not in parts]
        progress = _Progress(jobs=jobs, done=set(parts), notify=notify)
        progress.tell("planned", detail="" if todo else "nothing to do")
        if todo:
            (out / "index.json").unlink(missing_ok=True)
            _run_jobs(todo, out, cfg, workers, address, progress)
        report = _finish(out, info, jobs, len(todo))
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


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Errors of the file system become messages that say what to mend."""
    try:
        for folder in (out, out / "shards", out / "ledger", out / ".work"):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{error.filename or out}: cannot write the dataset ({reason}); give another --out, or mend permissions "
            "or space and build again"
        ) from error


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """One build at a time. The kernel lets go of the lock when its holder ends, however that happens."""
    with (out / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{out}: another build (process {file.read().strip() or 'unknown'}) is at work here; wait for it to "
                "end, or give another --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _settle(out: Path, jobs: list[ShardJob], cfg: BuildConfig) -> DatasetInfo:
    """Write down what is to be built; refuse where `out` holds something else."""
    plan = plan_bytes(jobs)
    info = DatasetInfo(
        config=asdict(cfg),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        planned=sum(len(job.refs) for job in jobs),
        jobs=len(jobs),
        code_version=code_version(),
    )
    new_text = dataset_json(info)
    if (out / "dataset.json").exists():
        before = read_dataset_json(out)
        remedy = "give another --out, or build as before"
        if before.code_version != info.code_version:
            raise UserError(f"{out}: built by version {before.code_version}, this is {info.code_version}; {remedy}")
        for name, was, now in _differences(before.config, asdict(cfg)):
            raise UserError(f"{out}: built with {name}={was!r}, now it is {now!r}; {remedy}")
        if before.plan_sha256 != info.plan_sha256:
            difference = plan_difference(read_plan(out / "plan.parquet"), jobs)
            raise UserError(f"{out}: the input has changed: {difference}; {remedy}")
    elif any((out / "ledger").iterdir()):
        raise UserError(f"{out}: has a ledger but no dataset.json; restore that, or give another --out")
    plan_path = out / "plan.parquet"
    if not plan_path.is_file() or plan_path.read_bytes() != plan:
        write_file(plan_path, plan)
    if not (out / "dataset.json").is_file():
        write_file(out / "dataset.json", new_text)
    return info


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ: dotted name, old and new value."""
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from _differences(was, is_now, f"{prefix}{name}.")
        elif was != (list(is_now) if isinstance(is_now, tuple) else is_now):
            yield f"{prefix}{name}", was, is_now


def _finished(out: Path, jobs: list[ShardJob]) -> dict[int, LedgerPart]:
    """Jobs that need not be done again: committed, and not at odds with the hashes of an earlier index."""
    index = out / "index.json"
    known = indexed_parts(index.read_bytes()) if index.is_file() else {}
    parts = {}
    for job in jobs:
        path = part_path(out, job.index)
        part = committed(out, job)
        if part is not None and known.get(path.name) in (None, file_sha256(path)):
            parts[job.index] = part
    return parts


def _finish(out: Path, info: DatasetInfo, jobs: list[ShardJob], jobs_run: int) -> BuildReport:
    """Index and card, once every job is committed."""
    parts = read_ledger(out)
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    assert len(parts) == len(jobs)
    assert len(outcomes) == info.planned
    for name, data in (("index.json", index_json(out, parts)), ("README.md", dataset_card(info, jobs, parts).encode())):
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            write_file(out / name, data)
    shutil.rmtree(out / ".work", ignore_errors=True)
    return BuildReport(
        planned=info.planned,
        textured=sum(outcome.regime is Regime.TEXTURED for outcome in outcomes),
        mv_only=sum(outcome.regime is Regime.MV_ONLY for outcome in outcomes),
        rejected=sum(outcome.status is Status.REJECTED for outcome in outcomes),
        failed=sum(outcome.status is Status.FAILED for outcome in outcomes),
        jobs=len(jobs),
        jobs_run=jobs_run,
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
            finished, _ = ray.wait(list(running), num_returns=1)
            job, attempt = running.pop(finished[0])
            if (report := _result(finished[0], job, attempt)) is None:
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


def _result(finished: ray.ObjectRef, job: ShardJob, attempt: int) -> JobReport | None:
    """The report of a job; None where it has to be started again."""
    try:
        return ray.get(finished)
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
