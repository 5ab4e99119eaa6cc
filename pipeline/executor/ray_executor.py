"""Run jobs as Ray tasks, on this machine or a cluster. The only module that imports Ray."""

import atexit
import functools
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import BuildConfig
from pipeline.executor.compile_kernels import compiling
from pipeline.executor.job import JobReport, asset_fork_server, process_job
from pipeline.executor.progress import Progress
from pipeline.executor.ray_environment import environment, no_ray, patiently, socket_folder
from pipeline.executor.scheduler import Capacity, GivenUp, Loss, RunConfig, Schedule, Start
from pipeline.sandbox.child import LimitsConfig
from pipeline.sandbox.fork_server import ForkServer, MachineError
from pipeline.sandbox.policy import REPO
from schemas.errors import UserError
from schemas.ledger import Counts
from schemas.plan import ShardJob
from schemas.storage import Location

LOOK_AROUND_S = 5.0
"""Seconds after which the size of the cluster, and who is slow, is looked at again."""
REPORT_S = 1.0
"""Seconds between two reports of the assets that have ended in running jobs."""
NODE_LOSS_S = 2.0
"""Seconds within which a cluster knows that a node is gone whose worker processes have vanished."""

Task = Callable[..., JobReport | None]
"""`process_job`, as far as it is called here."""


def run_jobs(
    jobs: Sequence[ShardJob],
    out: Location,
    cfg: BuildConfig,
    run: RunConfig,
    workers: int,
    address: str | None,
    progress: Progress,
    do: Task = process_job,
    then: Callable[[], Sequence[ShardJob]] = tuple,
) -> None:
    """Have every job done by `do` in a Ray task. Paths and counts go through Ray, images never. Ray's own retries are
    off: they would run a fatal job for ever. `then`: what is to be done once these are, until there is nothing.

    Raises UserError where there is no cluster, where a job cannot write, or, once all others are done, where a job was
    given up."""
    progress.report("starting", detail="joining Ray" if address else "starting Ray")
    here = nullcontext() if address else compiling(progress.compiles)
    with here, _connected(workers, address) as dashboard:
        while jobs:
            crew = _Crew(out, cfg, run, do)
            schedule = Schedule(jobs, run)
            progress.begin(crew.capacity().at_once, dashboard)
            try:
                _work_off(schedule, crew, progress)
            finally:
                crew.clear_up()
            if schedule.given_up:
                raise UserError(_given_up(schedule.given_up))
            jobs = then()


def _work_off(schedule: Schedule, crew: "_Crew", progress: Progress) -> None:
    running: dict[ray.ObjectRef, Start] = {}
    looked, capacity = time.monotonic(), crew.capacity()
    reported = looked
    while schedule:
        now = time.monotonic()
        if now - looked >= LOOK_AROUND_S:
            looked, before, capacity = now, capacity, crew.capacity()
            if capacity.at_once != before.at_once:
                progress.running_at_once = capacity.at_once
                progress.report("nodes", detail=f"{capacity.nodes} nodes have room for {capacity.at_once} jobs at once")
            _take_back(running, capacity, schedule, crew, progress)
        while start := schedule.next(capacity, now):
            running[crew.submit(start)] = start
            if start.beside:
                progress.report("straggler", start.job.index, "takes long; started a second time")
        for ended in ray.wait(list(running), num_returns=1, timeout=REPORT_S)[0]:
            _settle(ended, running, schedule, crew, progress)
        if time.monotonic() - reported >= REPORT_S:
            reported, at_work = time.monotonic(), {start.job.index for start in running.values()}
            for job, counts in crew.news().items():
                if job in at_work:
                    progress.at_work(job, counts)
            progress.tick()


def _take_back(
    running: dict[ray.ObjectRef, Start], capacity: Capacity, schedule: Schedule, crew: "_Crew", progress: Progress
) -> None:
    """Jobs that wait for more memory than any node has, now that the one which had it is gone, are started anew."""
    if not capacity.nodes:
        return
    too_large = [
        ref for ref, start in running.items() if start.memory_gb > capacity.largest_gb and not crew.began(start)
    ]
    for ref in too_large:
        ray.cancel(ref, force=True)
        start = running.pop(ref)
        schedule.lost(start, Loss.NODE)
        progress.report("retry", start.job.index, str(Loss.NODE))


def _settle(
    ended: ray.ObjectRef, running: dict[ray.ObjectRef, Start], schedule: Schedule, crew: "_Crew", progress: Progress
) -> None:
    """A task has ended, however that came about."""
    start = running.pop(ended)
    try:
        report, seconds = ray.get(ended)
    except RayTaskError as error:
        if not isinstance(error.cause, MachineError):
            raise error.cause from error
        crew.exclude(start, error.cause)
        schedule.lost(start, Loss.MACHINE)
        progress.report("retry", start.job.index, f"{Loss.MACHINE}: {str(error.cause).splitlines()[0]}")
        return
    except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
        why = crew.loss(start, error)
        schedule.lost(start, why)
        progress.report("retry", start.job.index, str(why))
        return
    if report is None:
        schedule.superseded(start)
        return
    others = {other.number for other in schedule.done(start, seconds)}
    for ref in [ref for ref, other in running.items() if other.number in others]:
        del running[ref]
        ray.cancel(ref, force=True)
    progress.done(report.job, report.counts)
    counts = report.counts
    detail = f"{counts.textured + counts.mv_only} accepted, {counts.rejected} rejected, {counts.failed} failed"
    progress.report("job", start.job.index, detail, seconds, report.stage_seconds)


def _given_up(given_up: list[GivenUp]) -> str:
    job, why, starts = given_up[0].job, given_up[0].why, given_up[0].starts
    first, last = job.refs[0].uid, job.refs[-1].uid
    others = f", and {len(given_up) - 1} other jobs," if len(given_up) > 1 else ""
    what = f"job {job.index} (assets {first} to {last}){others} was started {starts} times; the last time {why}"
    if why in (Loss.NODE, Loss.MACHINE):
        return f"{what}. All others are done: the same command goes on once the cluster is sound"
    likely = "" if why is Loss.MEMORY else ", most likely for lack of memory"
    return f"{what}{likely}. All others are done: run the command again with a larger --run.job_memory_gb"


class _Crew:
    """The workers of a cluster, as one build uses them."""

    def __init__(self, out: Location, cfg: BuildConfig, run: RunConfig, do: Task) -> None:
        self.run = run
        self._gpu = run.gpu_share if cfg.rasterizer == "cuda" else 0.0
        self._order = (out, cfg, do)
        self._attempts = _attempts_actor()
        self._excluded: set[str] = set()
        """Nodes that cannot process assets."""
        # a worker that has served many jobs is replaced, whatever it has leaked
        self._task = ray.remote(max_retries=0, max_calls=run.jobs_per_process)(_job_task)

    def submit(self, start: Start) -> ray.ObjectRef:
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._gpu, "memory": int(start.memory_gb * 2**30)}
        beside = self._node_of(start.beside) if start.beside else None
        if unwanted := self._excluded | ({beside} if beside else set()):
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(unwanted))})"}
        return self._task.options(**options).remote(self._order, start.job, self._attempts, start.number, start.round)

    def capacity(self) -> Capacity:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._excluded]
        able = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= self._gpu]
        if not able:
            return Capacity(at_once=0, largest_gb=float("inf"), nodes=0)
        largest_gb = max(node.get("memory", 0) for node in able) / 2**30
        job_gb = min(self.run.job_memory_gb, largest_gb)
        at_once = 0
        for node in able:
            limits = [node["CPU"]]
            limits += [node.get("memory", 0) / 2**30 / job_gb] if job_gb else []
            limits += [node["GPU"] / self._gpu] if self._gpu else []
            at_once += int(min(limits) + 1e-9)
        return Capacity(at_once=at_once, largest_gb=largest_gb, nodes=len(able))

    def loss(self, start: Start, error: RayError) -> Loss:
        """Return why a start gave no result. Its process is found dead before the cluster knows that the node is."""
        if isinstance(error, OutOfMemoryError):
            return Loss.MEMORY
        if isinstance(error, NodeDiedError):
            return Loss.NODE
        node = self._node_of(start)
        return Loss.NODE if node and not _outlives(node, NODE_LOSS_S) else Loss.PROCESS

    def exclude(self, start: Start, error: MachineError) -> None:
        """Give no more jobs to the node of a start, which cannot process assets: it would fail them faster than others
        do them. Raises the error where there is no other node."""
        if node := self._node_of(start):
            self._excluded.add(node)
        if not self.capacity().nodes:
            raise error

    def began(self, start: Start) -> bool:
        return self._node_of(start) is not None

    def _node_of(self, start: Start) -> str | None:
        """None for a start that has not begun to run."""
        return ray.get(self._attempts.node_of.remote(start.number))

    def news(self) -> dict[int, Counts]:
        """Return the assets done in running jobs, by job, where more have ended since this was asked last."""
        return ray.get(self._attempts.news.remote())

    def clear_up(self) -> None:
        """Let nothing be committed from now on, not by an attempt that is still running either: without the actor it
        has no leave."""
        ray.kill(self._attempts)


def _outlives(node: str, seconds: float) -> bool:
    """Return whether a node is still there after some seconds; False as soon as it is not."""
    until = time.monotonic() + seconds
    while any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes()):
        if time.monotonic() > until:
            return True
        time.sleep(0.2)
    return False


class Attempts:
    """The attempts of one build, kept by an actor: the node that each runs on, how far each job is, and which attempt
    commits it."""

    def __init__(self) -> None:
        self._nodes: dict[int, str] = {}
        self._committing: dict[tuple[int, int], int] = {}
        self._news: dict[int, Counts] = {}

    def begin(self, number: int, node: str) -> None:
        """Record that attempt `number` runs on a node."""
        self._nodes[number] = node

    def node_of(self, number: int) -> str | None:
        """Return the node of an attempt, None while it waits."""
        return self._nodes.get(number)

    def at_work(self, job: int, counts: Counts) -> None:
        """Record the assets of a job that an attempt has done."""
        self._news[job] = counts

    def news(self) -> dict[int, Counts]:
        """Return what was recorded since the last call: an attempt that is lost has left all that it had reported."""
        news, self._news = self._news, {}
        return news

    def may_commit(self, job: int, round: int, number: int) -> bool:
        """Give the first attempt that asks for a job, in a round of its attempts, leave to commit it; no other."""
        return self._committing.setdefault((job, round), number) == number


def _attempts_actor() -> Any:
    """Start the actor on the driver's own node: no loss of another node ends it, and it ends with the driver.

    Raises UserError where the cluster does not start it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts: Any = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        ray.get(attempts.node_of.remote(0))
    except RayActorError as error:
        why = "the Ray cluster ended the actor that keeps the attempts of this build before it ran"
        remedy = "if this process was connected to another Ray before, run the build in a new one"
        raise UserError(f"{why} ({str(error).splitlines()[0]}): {remedy}") from error
    return attempts


@contextmanager
def _connected(workers: int, address: str | None) -> Iterator[str | None]:
    """Ray, here or there; yields the address of its dashboard where there is one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"address": address}
    if address is None:
        # jobs exchange paths and counts: the smallest object store does
        options = {"address": "local", "num_cpus": workers, "object_store_memory": 80 * 2**20}
        options["include_dashboard"] = False
    variables, at_sigterm = {"PYTHONPATH": str(REPO)}, signal.getsignal(signal.SIGTERM)
    sockets: AbstractContextManager[dict[str, str]] = nullcontext({}) if address else socket_folder()
    with sockets as folder:
        try:
            with environment({} if address else variables | folder):
                # workers of a Ray started here inherit the variables; with `runtime_env` Ray would start them again
                options["runtime_env"] = {"env_vars": variables} if address else None
                start = functools.partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, **options)
                context = start() if address else patiently(start)
        except Exception as error:  # Ray raises no narrower one where a part of it does not start in time
            raise no_ray(address, str(error)) from error
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, at_sigterm)  # Ray has put its own in its place
            yield f"http://{context.dashboard_url}" if context.dashboard_url else None
        finally:
            ray.shutdown()


# in a worker


def _job_task(
    order: tuple[Location, BuildConfig, Task], job: ShardJob, attempts: Any, number: int, round: int
) -> tuple[JobReport | None, float]:
    """Process a job: its report, None where another attempt commits it, and its seconds."""
    began = time.monotonic()
    out, cfg, do = order
    _answer(attempts.begin.remote(number, ray.get_runtime_context().get_node_id()))
    claim = functools.partial(_may_commit, attempts, job.index, round, number)
    children = _fork_server(cfg.limits, os.environ.get("CUDA_VISIBLE_DEVICES"))
    report = do(job, out, cfg, fork_server=children, may_commit=claim, tell=_reporter(attempts, job.index))
    return report, time.monotonic() - began


def _reporter(attempts: Any, job: int) -> Callable[[Counts], None]:
    """Return a function that sends counts to the driver, at most once in `REPORT_S`, and waits for nothing."""
    sent = -math.inf

    def tell(counts: Counts) -> None:
        nonlocal sent
        if time.monotonic() - sent >= REPORT_S:
            sent = time.monotonic()
            attempts.at_work.remote(job, counts)

    return tell


def _may_commit(attempts: Any, job: int, round: int, number: int) -> bool:
    """Ask for leave to commit a job. False where another attempt has it, or where the build is over."""
    try:
        return _answer(attempts.may_commit.remote(job, round, number))
    except RayActorError:
        return False


def _answer(call: ray.ObjectRef) -> Any:
    """Wait for the answer of an actor. (A task that waits in `ray.get` lends its processor to the next task.)"""
    return call.future().result()


@functools.cache
def _fork_server(limits: LimitsConfig, gpus: str | None) -> ForkServer:
    """One for all jobs of this process that Ray gives the same GPUs (it takes them from the environment): its imports
    cost a second."""
    directory = tempfile.TemporaryDirectory(prefix="seqtex-fork_server-", ignore_cleanup_errors=True)
    fork_server = asset_fork_server(limits, Path(directory.name))
    atexit.register(directory.cleanup)
    atexit.register(fork_server.stop)
    return fork_server
