"""Kernels are compiled once per machine: by one process group at a time, and never again while the cache is there."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.executor.compile_kernels import GROUPS, KERNELS
from pipeline.sandbox.child import LimitsConfig
from pipeline.sandbox.fork_server import ForkServer, clean_environment

COUNTING = """
import os
from pathlib import Path

from numba.core import event

import pipeline.executor.compile_kernels as compile_kernels

FEW = ("geometry.mips", "geometry.kernels.average")
compile_kernels.GROUPS = tuple((module,) for module in FEW)
LOG = Path(__file__).with_name("compiled")


class Compiled(event.Listener):
    def on_start(self, event):
        kernel = event.data["dispatcher"].py_func
        with LOG.open("a") as log:
            log.write(f"{kernel.__module__} {kernel.__qualname__} {event.data['args']} by {os.getpid()}\\n")

    def on_end(self, event):
        pass


def warm_up():
    event.register("numba:compile", Compiled())
    compile_kernels.compile_kernels()
    compile_kernels.load_kernels(FEW)


def nothing(request, directory):
    pass


if __name__ == "__main__":
    warm_up()
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a module that compiles a few kernels into an empty cache and writes down which."""
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def fork_server(folder: Path, name: str) -> None:
    """Start a fork server, have it do nothing, and stop it."""
    (folder / name / "child").mkdir(parents=True)
    with ForkServer("counting:nothing", LimitsConfig(), folder / name, "counting:warm_up", (folder,)) as fork_server:
        assert fork_server.run({}, folder / name / "child").reason is None


def compiled(folder: Path) -> list[str]:
    """A line for each of our kernels that some process compiled."""
    log = folder / "compiled"
    return [line for line in log.read_text().splitlines() if line.startswith("geometry.")] if log.exists() else []


@pytest.mark.slow
def test_fork_servers_that_start_at_once_compile_each_kernel_once(counting):
    threads = [threading.Thread(target=fork_server, args=(counting, name)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kernels = Counter(line.partition(" by ")[0] for line in compiled(counting))
    assert {name.split()[1] for name in kernels} >= {"halve", "average_rows", "encode_rows"}
    assert set(kernels.values()) == {1}, kernels
    processes = {line.partition(" by ")[2] for line in compiled(counting)}
    assert len(processes) == min(2, len(os.sched_getaffinity(0)))

    fork_server(counting, "later")
    assert sum(kernels.values()) == len(compiled(counting))


@pytest.mark.slow
def test_a_killed_compiler_does_not_block_the_next_one(counting):
    command = [sys.executable, "-P", str(counting / "counting.py")]
    environment = clean_environment((Path.cwd(),))
    killed = subprocess.Popen(command, env=environment)
    while not compiled(counting):  # it holds the lock
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    subprocess.run(command, env=environment, check=True, timeout=120)
    before = compiled(counting)
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert before == compiled(counting)


BUILDING = """
from pipeline.executor.compile_kernels import compiling
import pipeline.executor.compile_kernels as compile_kernels
import os, pathlib

told = []
with compiling(told.append):
    children = pathlib.Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
assert len(children) == 1, children
assert len(told) == 1 and told[0].startswith("compiling kernels, once on this machine, in "), told
assert not pathlib.Path("/proc", children[0]).exists()
compile_kernels.GROUPS = (("geometry.kernels.average",),)
compile_kernels.compile_kernels()
with compiling(told.append):
    pass
assert len(told) == 1, told
"""


def test_a_build_says_that_it_compiles_and_only_then(counting):
    ended = subprocess.run([sys.executable, "-c", BUILDING], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_every_kernel_belongs_to_one_group():
    grouped = [module for group in GROUPS for module in group]
    assert sorted(grouped) == sorted(KERNELS)


def test_a_fork_server_compiles_for_the_same_processor(monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = clean_environment(())
    assert environment["NUMBA_CPU_NAME"] == "generic"
    assert environment["NUMBA_CPU_FEATURES"] == ""
    assert "AWS_SECRET_ACCESS_KEY" not in environment
