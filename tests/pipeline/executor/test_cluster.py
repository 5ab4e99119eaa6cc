"""Builds on a cluster of several nodes: whatever is lost costs a retry and no byte."""

import contextlib
import dataclasses
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray._private.node import Node
from ray.cluster_utils import Cluster

from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.verify import verify
from pipeline.executor.build import build
from pipeline.executor.job import JobReport
from pipeline.executor.progress import BuildEvent, Progress
from pipeline.executor.ray_executor import run_jobs
from pipeline.executor.scheduler import JOBS_IN_FLIGHT, RunConfig
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sandbox.child import LimitsConfig
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sources.procedural import procedural
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import read_ledger
from schemas.errors import UserError
from schemas.ledger import Counts
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.storage import file_sha256
from tests.support.processes import until

CFG = BuildConfig(
    assets_per_job=2,
    views=RenderConfig(resolution=32),
    uv=BakeConfig(resolution=64),
    filter=FilterConfig(min_round_trip_db=15.0),
    unwrap=UnwrapConfig(max_faces=40_000),
)
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A head that does no work, and two workers of one processor each. They ask for a token, as a Ray that a build
    starts does: a process that worked with one kind cannot work with the other."""
    enable_token_auth_by_default()
    ensure_token_if_auth_enabled()
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


def rows(out: Path) -> list[dict]:
    """The ledger, but for the time that everything took."""
    return [
        {key: value for key, value in outcome.row().items() if key != "seconds"}
        for part in read_ledger(out)
        for outcome in part.outcomes
    ]


def hashes(out: Path) -> dict[str, str]:
    kept = ("plan.parquet", "dataset.json")
    return {path.name: file_sha256(path) for path in (*out.glob("shards/*"), *(out / name for name in kept))}


def at_work(node: Node) -> bool:
    """Return whether the process of an asset runs on the node."""
    below = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    with contextlib.suppress(psutil.NoSuchProcess):  # a process that ended just now
        fork_servers = {process.pid for process in below if "pipeline.sandbox.fork_server" in process.cmdline()}
        return any(process.ppid() in fork_servers for process in below)
    return False


@pytest.mark.slow
def test_a_node_killed_and_another_added_change_no_byte(cluster, tmp_path):
    refs = list(procedural(20, tmp_path / "assets"))
    build(refs, tmp_path / "alone", CFG, 1)
    events: list[BuildEvent] = []

    def upset(event: BuildEvent) -> None:
        events.append(event)
        kinds = [e.event for e in events]
        if kinds.count("job") < 2 or "upset" in kinds:
            return
        here = ray.get_runtime_context().get_node_id()  # on one machine a driver joins any of its nodes
        others = [node for node in cluster.worker_nodes if node.node_id != here]
        for _ in range(100):
            if busy := next(filter(at_work, others), None):
                break
            time.sleep(0.02)
        if busy:
            cluster.remove_node(busy, allow_graceful=False)
            cluster.add_node(**NODE)
            events.append(dataclasses.replace(event, event="upset"))

    build(refs, tmp_path / "out", CFG, 1, upset, cluster.address)
    assert "its node was lost" in [event.detail for event in events if event.event == "retry"]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone")
    assert rows(tmp_path / "out") == rows(tmp_path / "alone")
    assert verify(tmp_path / "out") == []


# jobs that do no work, for what befalls their workers


def carry_out(cluster: Cluster, folder: Path, do: Callable[..., JobReport | None], jobs: int, run: RunConfig):
    """Events of jobs done by `do`, which leaves files in `folder`."""
    refs = [MeshRef(uid=f"asset-{number}", uri=str(folder)) for number in range(jobs)]
    events: list[BuildEvent] = []
    progress = Progress(jobs=jobs, planned=jobs, notify=events.append, clock=time.monotonic)
    try:
        run_jobs(plan_jobs(refs, 1), folder, CFG, run, 1, cluster.address, progress, do)
    except UserError as error:
        return events, str(error)
    return events, ""


def report(job: ShardJob) -> JobReport:
    return JobReport(job=job.index, planned=1, counts=Counts(rejected=1), stage_seconds=0.0, shards=())


def tries(job: ShardJob, folder: Path) -> int:
    """Count the starts of the job, this one included."""
    with (folder / f"{job.index}").open("a") as file:
        file.write("x")
        return file.tell()


def hang_once(job: ShardJob, folder: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object):
    if tries(job, folder) == 1 and job.index == 4:
        time.sleep(600)
    return report(job) if may_commit() else None


@pytest.mark.slow
def test_a_job_that_hangs_is_done_by_another_node(cluster, tmp_path):
    begun = time.monotonic()
    events, error = carry_out(cluster, tmp_path, hang_once, 6, RunConfig(straggler_s=1.0))
    assert not error and time.monotonic() - begun < 300  # half of what the first start sleeps
    assert [event.job for event in events if event.event == "straggler"] == [4]
    assert events[-1].jobs_done == 6
    assert (tmp_path / "4").read_text() == "xx"


def commit(job: ShardJob, folder: Path) -> JobReport:
    with (folder / f"commits-of-{job.index}").open("a") as file:
        file.write("x")
    return report(job)


def slow_claimer(job: ShardJob, folder: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object):
    """The start of job 4 that claims it takes long; the other one finds it claimed."""
    if not may_commit():
        (folder / "refused").touch()
        return None
    while job.index == 4 and not (folder / "refused").exists():
        time.sleep(0.05)
    time.sleep(2 if job.index == 4 else 0)  # time for a third start
    return commit(job, folder)


@pytest.mark.slow
def test_of_two_starts_of_a_job_one_commits(cluster, tmp_path):
    events, error = carry_out(cluster, tmp_path, slow_claimer, 6, RunConfig(straggler_s=1.0))
    assert not error and [event.job for event in events if event.event == "straggler"] == [4]
    assert {path.name: path.read_text() for path in tmp_path.glob("commits*")} == {
        f"commits-of-{n}": "x" for n in range(6)
    }
    assert [event.job for event in events if event.event == "job"].count(4) == 1


def ask_late(job: ShardJob, folder: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object):
    """A start whose process asks for leave to commit once the build is over."""

    def ask() -> None:
        while not (folder / "over").exists():
            time.sleep(0.05)
        (folder / "asking").write_text(str(may_commit()))
        (folder / "asking").rename(folder / "answer")

    threading.Thread(target=ask, daemon=True).start()
    return report(job)


def test_a_start_that_outlives_its_build_commits_nothing(cluster, tmp_path):
    def over() -> list[ShardJob]:
        (tmp_path / "over").touch()
        until((tmp_path / "answer").exists, 30)
        return []

    jobs = plan_jobs([MeshRef(uid="asset", uri=str(tmp_path))], 1)
    progress = Progress(jobs=1, planned=1, notify=lambda event: None, clock=time.monotonic)
    run_jobs(jobs, tmp_path, CFG, RunConfig(), 1, cluster.address, progress, ask_late, over)
    assert (tmp_path / "answer").read_text() == "False"


def die(job: ShardJob, folder: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object):
    """Job 1 dies once, job 2 always."""
    attempt = tries(job, folder)
    if job.index == 2 or (job.index == 1 and attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return report(job) if may_commit() else None


@pytest.mark.slow
def test_a_job_that_kills_its_worker_is_given_up_and_all_others_are_done(cluster, tmp_path):
    events, error = carry_out(cluster, tmp_path, die, 5, RunConfig(attempts=2))
    assert error.startswith("job 2 (assets asset-2 to asset-2) was started 2 times; the last time its worker process")
    assert sorted(event.job for event in events if event.event == "job") == [0, 1, 3, 4]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0": "x", "1": "xx", "2": "xx", "3": "x", "4": "x"
    }  # fmt: skip


def on_a_broken_node(job: ShardJob, folder: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object):
    """The first node to come has no program for its assets' processes; with `all` in the folder none has."""
    tries(job, folder)
    node = ray.get_runtime_context().get_node_id()
    with contextlib.suppress(FileExistsError), (folder / "broken").open("x") as file:
        file.write(node)
    until(lambda: (folder / "broken").read_text() != "", 30)
    if node == (folder / "broken").read_text() or (folder / "all").exists():
        with (
            tempfile.TemporaryDirectory() as own,
            ForkServer("no_such_module:run", LimitsConfig(), Path(own)) as fork_server,
        ):
            fork_server.run({}, folder)
    return report(job) if may_commit() else None


@pytest.mark.slow
def test_a_broken_node_is_left_out_and_fails_no_job(cluster, tmp_path):
    events, error = carry_out(cluster, tmp_path, on_a_broken_node, 30, RunConfig(min_in_flight=2, node_losses=1))
    assert not error and events[-1].jobs_done == 30
    retried = [event for event in events if event.event == "retry"]
    assert "cannot process assets" in retried[0].detail and "No module named 'no_such_module'" in retried[0].detail
    assert 1 <= len(retried) <= JOBS_IN_FLIGHT * 2  # what was in flight when it was found out


@pytest.mark.slow
def test_where_all_nodes_are_broken_the_build_says_so(cluster, tmp_path):
    (tmp_path / "all").touch()
    events, error = carry_out(cluster, tmp_path, on_a_broken_node, 30, RunConfig())
    assert "the process that opens assets does not start here" in error and "No module named" in error
    assert "job" not in [event.event for event in events]


def meet(job: ShardJob, folder: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object):
    """Every job waits until three are there at one time: two nodes of one processor cannot do that."""
    (folder / f"here-{job.index}").touch()
    while len(list(folder.glob("here-*"))) < 3:
        time.sleep(0.05)
    return report(job) if may_commit() else None


@pytest.mark.slow
def test_nodes_that_join_get_jobs(cluster, tmp_path):
    nodes = []

    def carry_on(event: BuildEvent) -> None:
        if event.event == "started":
            assert event.running_at_once == 2
            nodes.append(cluster.add_node(**NODE, wait=False))

    refs = [MeshRef(uid=f"asset-{number}", uri=str(tmp_path)) for number in range(3)]
    progress = Progress(jobs=3, planned=3, notify=carry_on, clock=time.monotonic)
    run_jobs(plan_jobs(refs, 1), tmp_path, CFG, RunConfig(), 1, cluster.address, progress, meet)
    assert progress.jobs_done == 3
    cluster.remove_node(nodes[0], allow_graceful=False)


def test_a_node_gets_no_more_jobs_than_its_memory_holds(cluster, tmp_path):
    """Each node has room for one job by its processors; a job of nearly all memory still gets started."""
    run = dataclasses.replace(RunConfig(), job_memory_gb=1e5)
    events, error = carry_out(cluster, tmp_path, hang_once, 2, run)
    (started,) = (event for event in events if event.event == "started")
    assert not error and started.running_at_once == 1  # the largest node alone holds it: reserved is what that has
