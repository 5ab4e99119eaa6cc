"""Whatever a child does, the parent gets an answer in time and nothing is left running."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.sandbox.child import ChildResult, LimitsConfig, run_child, run_limited
from pipeline.sandbox.fork_server import ForkServer, MachineError
from schemas.ledger import Reason, Rejected
from tests.support.processes import command_lines, until

POISON = """
import ctypes, os, signal, time
from pathlib import Path

def run(request, directory):
    kind = request["kind"]
    if kind == "good":
        Path("result.txt").write_text(os.environ.get("CANARY", "nothing"))
    if kind == "stubborn":  # ignores SIGTERM, has a descendant in a session of its own
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        Path(f"pid-{os.getpid()}").touch()
        time.sleep(600)
    if kind == "busy":
        while True:
            pass
    if kind == "exit":
        os._exit(5)
    if kind == "abort":
        os.abort()
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "memory":
        blocks = [bytearray(64 << 20) for _ in range(1000)]
    if kind == "raise":
        raise RuntimeError("this very message")
    if kind == "large file":
        Path("large").write_bytes(bytes(32 << 20))
    if kind == "orphan":
        if os.fork() == 0:
            os.setsid()
            Path(f"pid-{os.getpid()}").touch()
            time.sleep(600)
        while not list(Path(".").glob("pid-*")):
            time.sleep(0.01)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "loses the fork_server":
        Path("fork_server").write_text(str(os.getppid()))
        time.sleep(600)
    if kind in ("pipe", "link", "second name", "folder"):
        Path(".stderr").unlink()
        secret = Path(__file__).with_name("secret")
    if kind == "pipe":
        os.mkfifo(".stderr")
    if kind == "link":
        Path(".stderr").symlink_to(secret)
    if kind == "second name":
        Path(".stderr").hardlink_to(secret)
    if kind == "folder":
        Path(".stderr").mkdir()
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Every kind of poison through one fork_server, and a good request before and after."""
    folder = tmp_path_factory.mktemp("fork_server")
    (folder / "poison.py").write_text(POISON)
    os.environ["CANARY"] = "secret"
    kinds = [
        "good",
        "stubborn",
        "busy",
        "exit",
        "abort",
        "segfault",
        "memory",
        "raise",
        "large file",
        "orphan",
        "killed",
    ]
    found: dict[str, tuple[ChildResult, Path]] = {}
    limits = LimitsConfig(timeout_s=3.0, memory_gb=0.25, file_gb=1 / 64)
    try:
        with ForkServer("poison:run", limits, folder, python_path=(folder,)) as fork_server:
            for kind in [*kinds, "loses the fork_server", "good again"]:
                directory = folder / kind
                directory.mkdir()
                if kind == "loses the fork_server":
                    threading.Thread(target=_kill_zygote, args=(directory / "fork_server",)).start()
                found[kind] = (fork_server.run({"kind": kind.removesuffix(" again")}, directory), directory)
    finally:
        del os.environ["CANARY"]
    return found


def _kill_zygote(told: Path) -> None:
    until(lambda: told.is_file() and told.read_text(), 30)
    os.kill(int(told.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("kind", "reason", "detail"),
    [
        ("good", None, ""),
        ("stubborn", Reason.TIMEOUT, "3 s"),
        ("busy", Reason.TIMEOUT, "3 s"),
        ("exit", Reason.CRASHED, "exit code 5"),
        ("abort", Reason.CRASHED, "SIGABRT"),
        ("segfault", Reason.CRASHED, "SIGSEGV"),
        ("memory", Reason.MEMORY_LIMIT, "0.25 GiB"),
        ("raise", Reason.CRASHED, "this very message"),
        ("large file", Reason.CRASHED, "File too large"),
        ("orphan", None, ""),
        ("killed", Reason.MEMORY_LIMIT, "killed from outside"),
        ("loses the fork_server", Reason.CRASHED, "sandbox process ended"),
        ("good again", None, ""),
    ],
)
def test_every_end_has_its_reason(answers, kind, reason, detail):
    ended, _ = answers[kind]
    assert ended.reason == reason
    assert detail in ended.detail
    assert ended.killed == (kind in ("killed", "loses the fork_server"))
    assert ended.seconds < 5  # the limit is three seconds, and a signal that is ignored does not help


def test_a_crash_tells_where_it_happened(answers):
    assert "poison.py" in answers["segfault"][0].detail
    assert "poison.py" in answers["raise"][0].detail


def test_no_descendant_outlives_its_asset(answers):
    for kind in ("stubborn", "orphan"):
        pids = [int(path.name.removeprefix("pid-")) for path in answers[kind][1].glob("pid-*")]
        assert pids
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_environment_stays_outside(answers):
    assert (answers["good"][1] / "result.txt").read_text() == "nothing"


def test_results_come_back_only_from_the_private_folder(answers):
    assert {path.name for path in answers["good"][1].iterdir()} == {".stderr", "result.txt"}


BROKEN = """
import os, signal
from pathlib import Path
import pipeline.sandbox.fork_server

def dies():
    raise ImportError("no library for this driver")

def cannot_shut_in():
    def fail(room):
        raise OSError("the kernel of this machine knows no rooms")
    pipeline.sandbox.child.enter = fail

def killed_once():
    with open("starts", "a") as file:
        file.write("x")
        if file.tell() == 1:
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

def run(request, directory):
    Path("result.txt").touch()
"""


@pytest.mark.parametrize(
    ("target", "warm_up", "told"),
    [
        ("gone:run", "", "No module named 'gone'"),
        ("broken:run", "broken:dies", "no library for this driver"),
        ("broken:run", "broken:cannot_shut_in", "the kernel of this machine knows no rooms"),
    ],
)
def test_a_machine_that_cannot_start_is_no_verdict_on_an_asset(tmp_path, target, warm_up, told):
    (tmp_path / "broken.py").write_text(BROKEN)
    with ForkServer(target, LimitsConfig(), tmp_path, warm_up, (tmp_path,)) as fork_server:
        for _ in range(2):
            with pytest.raises(MachineError, match=f"does not start here .*{told}") as caught:
                fork_server.run({}, tmp_path)
            assert "finished jobs are kept" in str(caught.value)
    assert not (tmp_path / "result.txt").exists()


def test_a_start_that_somebody_kills_is_made_again(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    with ForkServer("broken:run", LimitsConfig(), tmp_path, "broken:killed_once", (tmp_path,)) as fork_server:
        assert fork_server.run({}, tmp_path).reason is None
    assert (tmp_path / "starts").read_text() == "xx" and (tmp_path / "result.txt").exists()


@pytest.mark.parametrize("kind", ["pipe", "link", "second name", "folder"])
def test_only_what_a_child_itself_has_said_is_told(tmp_path, monkeypatch, kind):
    """Also where no room keeps it from putting something else in the place of its stderr."""
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "poison.py").write_text(POISON)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own").mkdir()

    def work() -> None:
        importlib.import_module("poison").run({"kind": kind}, tmp_path / "own")
        os._exit(3)

    ended = run_child(work, LimitsConfig(timeout_s=30.0), tmp_path / "own")
    assert (ended.reason, ended.detail) == (Reason.CRASHED, "exit code 3; ")


def test_run_limited_brings_arrays_back():
    found = run_limited(lambda: {"a": np.arange(5), "b": np.eye(2)}, timeout_s=10.0)
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["a"], np.arange(5))
    np.testing.assert_array_equal(found["b"], np.eye(2))


@pytest.mark.parametrize("kills", [1, 2])
def test_run_limited_tries_again_what_somebody_else_killed(tmp_path, kills):
    """Work has as many attempts as an asset."""

    def work():
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
            tries = file.tell()
        if tries <= kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"a": np.arange(3)}

    found = run_limited(work, timeout_s=10.0)
    if kills == 1:
        assert not isinstance(found, Rejected) and found["a"].tolist() == [0, 1, 2]
    else:
        assert isinstance(found, Rejected) and found.reason is Reason.MEMORY_LIMIT
        assert found.detail.startswith("killed from outside")
    assert (tmp_path / "tries").read_text() == "xx"


def test_run_limited_stops_what_takes_too_long_or_too_much():
    slow = run_limited(lambda: time.sleep(600) or {}, timeout_s=0.2)
    assert isinstance(slow, Rejected)
    assert slow.reason is Reason.TIMEOUT
    large = run_limited(lambda: {"a": np.ones(10**10)}, timeout_s=10.0, memory_gb=1.0)
    assert isinstance(large, Rejected)
    assert large.reason is Reason.MEMORY_LIMIT


def test_a_pickled_result_is_not_read():
    """An array of objects is refused where it would be written."""
    found = run_limited(lambda: {"a": np.array([object()])}, timeout_s=10.0)
    assert isinstance(found, Rejected)
    assert found.reason is Reason.CRASHED
    assert "allow_pickle" in found.detail


FREED = """
import resource
from pathlib import Path
import numpy as np
from pipeline.sandbox.linux import keep_freed_memory

def warm_up():
    keep_freed_memory()
    arrays = [np.ones(1 << 14) for _ in range(2000)]
    arrays.clear()
    Path("peak.txt").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

def run(request, directory):
    Path("own.txt").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def test_children_do_not_start_with_freed_memory(tmp_path):
    """The 250 MB that warming up has freed are not pages that every child would have to copy."""
    (tmp_path / "freed.py").write_text(FREED)
    (tmp_path / "work").mkdir()
    with ForkServer("freed:run", LimitsConfig(), tmp_path, "freed:warm_up", (tmp_path,)) as server:
        assert server.run({}, tmp_path / "work").reason is None
    peak, own = (int((tmp_path / name).read_text()) for name in ("peak.txt", "work/own.txt"))
    assert own < peak - 200_000  # KiB


def test_nothing_outlives_a_killed_owner(tmp_path):
    """SIGKILL on the process that owns the fork_server: fork_server and child are gone within five seconds."""
    (tmp_path / "poison.py").write_text(POISON)
    (tmp_path / "work").mkdir()
    script = (
        "from pathlib import Path\n"
        "from pipeline.sandbox.child import LimitsConfig\n"
        "from pipeline.sandbox.fork_server import ForkServer\n"
        f"here = Path({str(tmp_path)!r})\n"
        "ForkServer('poison:run', LimitsConfig(), here, python_path=(here,)).run({'kind': 'stubborn'}, here / 'work')\n"
    )
    repo = Path(__file__).resolve().parents[3]
    owner = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(repo)})
    try:
        until(lambda: len(list((tmp_path / "work").glob("pid-*"))) == 2, 30)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    mark = f"pipeline.sandbox.fork_server poison:run  {owner.pid} "  # on the command line of all that was forked
    until(lambda: not any(mark in line for line in command_lines()), 5)
