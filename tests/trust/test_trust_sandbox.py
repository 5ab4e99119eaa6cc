"""The fault matrix, promises 7 to 10: whatever an asset's process does, the others are done and nothing is left."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import BuildConfig
from pipeline.executor.job import process_job
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sandbox.child import ATTEMPTS, LimitsConfig
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sources.procedural import procedural
from schemas.dataset import part_path, read_ledger_part
from schemas.ledger import Outcome, Reason, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from tests.support.processes import command_lines, until
from tests.trust.trust import Trust

TIMEOUT_S = 6.0
SMALL = BuildConfig(
    views=RenderConfig(resolution=32),
    uv=BakeConfig(resolution=64),
    filter=FilterConfig(min_round_trip_db=0.0),
    limits=LimitsConfig(timeout_s=TIMEOUT_S),
)
REPO = Path(__file__).resolve().parents[2]
POISON = """
import ctypes, mmap, os, signal, sys, time
from pathlib import Path
import numpy as np
from pipeline.executor.job import process_in_child

def bomb():
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.001)

def processes(depth, count, stubborn):
    Path(f"pid-{os.getpid()}").touch()
    for number in stubborn:
        signal.signal(number, signal.SIG_IGN)
    if depth:
        for _ in range(count):
            if os.fork() == 0:
                os.setsid()
                processes(depth - 1, 1, stubborn)
    while True:
        time.sleep(0.01)

def mapped():
    pieces = []
    while True:
        pieces.append(mmap.mmap(-1, 64 << 20))
        pieces[-1].write(bytes(64 << 20))

ENDS = {
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(0),
    "abort": os.abort,
    "sleep": lambda: time.sleep(600),
    "busy": lambda: [0 for _ in iter(int, 1)] and None,
    "fork bomb": bomb,
    "memory: lists": lambda: [bytearray(16 << 20) for _ in range(1 << 20)],
    "memory: one array": lambda: np.ones(1 << 40),
    "memory: arrays": lambda: [np.ones(1 << 21) for _ in range(1 << 20)],
    "memory: mapped": mapped,
    "memory: text": lambda: "x" * (1 << 40),
}

def run(request, directory):
    if "stubborn" in request:
        processes(request["depth"], request["count"], request["stubborn"])
    kind = request["ref"]["caption"]
    if kind in ENDS:
        if kind == "busy":
            while True:
                pass
        ENDS[kind]()
    process_in_child(request, directory)
"""


@pytest.fixture
def poison(tmp_path: Path) -> Path:
    """The folder of a module whose `run` does to itself what an asset's caption says."""
    folder = tmp_path / "poison"
    folder.mkdir()
    (folder / "poison.py").write_text(POISON)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> MeshRef:
    return next(iter(procedural(1, tmp_path_factory.mktemp("assets"))))


def rows(kinds: list[str], good: MeshRef, folder: Path, poison: Path, cfg: BuildConfig = SMALL) -> list[Outcome]:
    """The rows of a job with one asset of each kind."""
    out = folder / "out"
    for name in ("shards", "ledger", ".work"):
        (out / name).mkdir(parents=True)
    refs = tuple(dataclasses.replace(good, uid=f"a-{i:02d}", caption=kind) for i, kind in enumerate(kinds))
    process_job(ShardJob(index=0, refs=refs), out, cfg, "poison:run", (poison,))
    return list(read_ledger_part(part_path(out, 0)).outcomes)


def none_left(mark: str) -> bool:
    return not any(mark in line for line in command_lines())


SEVEN = {
    "segfault": (Reason.CRASHED, "SIGSEGV"),
    "exit": (Reason.CRASHED, "without an outcome"),
    "abort": (Reason.CRASHED, "SIGABRT"),
    "sleep": (Reason.TIMEOUT, "stopped after"),
    "busy": (Reason.TIMEOUT, "stopped after"),
    "fork bomb": (Reason.TIMEOUT, "more than 8 processes"),
}


@pytest.mark.trust(7)
def test_one_poisoned_asset_of_each_kind_among_forty(good, tmp_path, poison, trust: Trust) -> None:
    count = trust.count(full=40, short=10)
    kinds = [*SEVEN, *["good"] * (count - len(SEVEN))]
    trust.rng().shuffle(kinds)
    found = rows(kinds, good, tmp_path, poison)
    if "starts" not in (found[0].sandbox or ""):
        pytest.skip(f"this host does not let us count processes: {found[0].sandbox}")
    right = []
    for kind, row in zip(kinds, found, strict=True):
        reason, detail = SEVEN.get(kind, (None, ""))
        bounded = row.seconds <= ATTEMPTS * (TIMEOUT_S + 2)
        right.append(row.reason is reason and detail in row.detail and bounded)
    trust.held(sum(right), count)
    assert all(right), [(kind, row.reason, row.detail, row.seconds) for kind, row in zip(kinds, found, strict=True)]
    assert sum(row.status is Status.ACCEPTED for row in found) == count - len(SEVEN)
    assert none_left(
        f"pipeline.sandbox.fork_server poison:run pipeline.executor.compile_kernels:warm_up {os.getpid()} "
    )


@pytest.mark.trust(8)
def test_a_child_that_ignores_signals_dies_with_its_descendants(tmp_path, poison, trust: Trust) -> None:
    rng, count, held = trust.rng(), trust.count(full=30, short=3), 0
    ignorable = [int(number) for number in signal.Signals if number not in (signal.SIGKILL, signal.SIGSTOP)]
    with ForkServer("poison:run", LimitsConfig(timeout_s=1.0), tmp_path, python_path=(poison,)) as fork_server:
        for number in range(count):
            directory = tmp_path / str(number)
            directory.mkdir()
            stubborn = [int(signal.SIGTERM)] if number % 3 == 0 else ignorable
            depth, width = int(rng.integers(0, 4)), int(rng.integers(1, 3))
            ended = fork_server.run({"stubborn": stubborn, "depth": depth, "count": width}, directory)
            pids = [int(path.name.removeprefix("pid-")) for path in directory.glob("pid-*")]
            gone = not any(Path(f"/proc/{pid}").exists() for pid in pids)
            held += ended.reason is Reason.TIMEOUT and ended.seconds <= 1.0 + 2.0 and gone and len(pids) > 0
    trust.held(held, count)
    assert held == count


OWNER = """
import sys
from pathlib import Path
from schemas.plan import ShardJob
from pipeline.executor.job import process_job
from schemas.mesh import MeshRef
from tests.trust.test_trust_sandbox import SMALL
out, poison, asset = map(Path, sys.argv[1:4])
kinds = sys.argv[4:]
refs = tuple(MeshRef(uid=f"a-{i}", uri=str(asset), caption=kind) for i, kind in enumerate(kinds))
(out / "begun").touch()
process_job(ShardJob(index=0, refs=refs), out, SMALL, "poison:run", (poison,))
"""


@pytest.mark.trust(9)
def test_nothing_is_left_of_a_killed_job(good, tmp_path, poison, trust: Trust) -> None:
    """SIGKILL for the process that runs a job, at any moment: while its fork server starts, between assets, amid
    one that hangs, forks or works. Five seconds later nothing of it runs."""
    rng, count, held = trust.rng(), trust.count(full=25, short=2), 0
    for number in range(count):
        out = tmp_path / str(number)
        for name in ("shards", "ledger", ".work"):
            (out / name).mkdir(parents=True)
        last = ("sleep", "fork bomb", "busy", "good")[number % 4]
        arguments = [str(out), str(poison), good.uri, "good", "good", last]
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, *arguments],
            env=os.environ | {"PYTHONPATH": str(REPO)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        mark = f"pipeline.sandbox.fork_server poison:run pipeline.executor.compile_kernels:warm_up {owner.pid} "
        until((out / "begun").exists, 120)
        until(lambda mark=mark: not none_left(mark), 120)
        time.sleep(float(rng.uniform(0, 6)))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        end = time.monotonic() + 5
        while not none_left(mark) and time.monotonic() < end:
            time.sleep(0.1)
        held += none_left(mark)
    trust.held(held, count)
    assert held == count


BOMBS = ("memory: lists", "memory: one array", "memory: arrays", "memory: mapped", "memory: text")


@pytest.mark.trust(10)
def test_a_memory_bomb_is_told_as_one_and_the_rest_goes_on(good, tmp_path, poison, trust: Trust) -> None:
    turns = trust.count(full=4, short=1)
    kinds = [kind for _ in range(turns) for bomb in BOMBS for kind in (bomb, "good")]
    limits = dataclasses.replace(SMALL.limits, timeout_s=60.0, memory_gb=0.5)
    found = rows(kinds, good, tmp_path, poison, dataclasses.replace(SMALL, limits=limits))
    right = [
        row.reason is (None if kind == "good" else Reason.MEMORY_LIMIT) for kind, row in zip(kinds, found, strict=True)
    ]
    trust.held(sum(right), len(kinds))
    assert all(right), [(kind, row.reason, row.detail) for kind, row in zip(kinds, found, strict=True)]
