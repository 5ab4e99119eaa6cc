"""Limits on a child, each layer where this host has it; everything goes on where a host has none."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.sandbox import landlock, seccomp
from pipeline.sandbox.child import ChildResult, LimitsConfig, run_child
from pipeline.sandbox.policy import Layer, Policy, devices, enter, interpreter_files, program_files
from pipeline.sandbox.seccomp import Starts
from schemas.ledger import Reason

LIMITS = LimitsConfig(timeout_s=20.0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A child's own folder, and one beside it with a secret."""
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "secret").write_text("canary")
    return own, other


def shut_in(work, own: Path, *readable: Path, limits: LimitsConfig = LIMITS) -> ChildResult:
    room = Policy(readable=(*program_files(), *readable), devices=devices(), own=own)
    return run_child(work, limits, own, policy=room)


def needs(ended: ChildResult, layer: Layer) -> None:
    if layer not in ended.sandbox.split("+"):
        pytest.skip(f"this host has no {layer}: {ended.sandbox}")


def denied(work) -> None:
    """Called in a child: `work` is refused, or the child ends with an error."""
    try:
        work()
    except (PermissionError, OSError):
        return
    raise AssertionError(f"{work} was allowed")


def test_files_beyond_its_own_are_out_of_reach(folders):
    own, other = folders

    def work() -> None:
        Path("mine").write_text("x")
        assert Path("mine").read_text() == "x"
        denied(lambda: (other / "secret").read_text())
        denied(lambda: (other / "new").write_text("x"))
        denied(lambda: (other / "secret").unlink())
        denied(lambda: next(other.iterdir()))
        denied(lambda: Path("/etc/passwd").read_text())
        denied(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes())
        denied(lambda: Path("link").symlink_to(other / "secret"))
        denied(lambda: os.link(other / "secret", "hard"))
        script = Path("script")
        script.write_text("#!/bin/sh\n")
        denied(lambda: script.chmod(0o755))
        denied(lambda: subprocess.run(["./script"], check=True))

    ended = shut_in(work, own)
    needs(ended, Layer.FILES)
    assert ended.reason is None, ended.detail
    assert [path.name for path in other.iterdir()] == ["secret"]


def test_what_is_named_can_be_read_and_not_written(folders):
    own, other = folders

    def work() -> None:
        assert (other / "secret").read_text() == "canary"
        (other / "secret").write_text("changed")

    ended = shut_in(work, own, other)
    needs(ended, Layer.FILES)
    assert ended.reason is Reason.CRASHED
    assert "Permission" in ended.detail
    assert (other / "secret").read_text() == "canary"


def test_no_socket_leads_out(folders):
    def work() -> None:
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
            denied(lambda family=family: socket.socket(family, socket.SOCK_STREAM))
        denied(lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY))

    ended = shut_in(work, folders[0])
    needs(ended, Layer.NO_NETWORK)
    assert ended.reason is None, ended.detail


def test_its_supervisor_gets_no_signal(folders):
    ended = shut_in(lambda: denied(lambda: os.kill(os.getppid(), 0)), folders[0])
    needs(ended, Layer.SIGNALS)
    assert ended.reason is None, ended.detail


def test_limits_cannot_be_lifted_even_by_root(folders):
    def work() -> None:
        raised = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            with pytest.raises(ValueError, match="not allowed"):
                resource.setrlimit(what, raised)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)

    ended = shut_in(work, folders[0])
    needs(ended, Layer.NO_PRIVILEGES)
    assert ended.reason is None, ended.detail


def test_open_files_are_bounded(folders):
    def work() -> None:
        handles = []
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                handles.append(os.open("/dev/null", os.O_RDONLY))
        assert 900 < len(handles) < 1024

    ended = shut_in(work, folders[0])
    assert ended.reason is None, ended.detail


def test_no_handle_of_the_supervisor_is_inherited(folders):
    read, write = os.pipe()
    ended = shut_in(lambda: denied(lambda: os.write(write, b"forged")), folders[0])
    assert ended.reason is None, ended.detail
    os.close(write)
    assert os.read(read, 10) == b""
    os.close(read)


def bomb() -> None:
    """A fork bomb that takes no for an answer and goes on."""
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.01)


@pytest.mark.parametrize("ends", [True, False])
def test_a_fork_bomb_is_refused_and_cleared_away(folders, ends):
    def work() -> None:
        if ends:
            while True:
                os.fork()
        bomb()

    timeout_s = 20.0 if ends else 2.0  # the first ends by itself: long before that, even on a busy machine
    ended = shut_in(work, folders[0], limits=LimitsConfig(timeout_s=timeout_s, processes=20))
    needs(ended, Layer.STARTS)
    assert ended.reason is (Reason.CRASHED if ends else Reason.TIMEOUT)
    assert "more than 20 processes" in ended.detail
    assert ended.seconds < timeout_s + 2


def test_starts_are_counted_over_all_descendants(folders):
    def work() -> None:
        for _ in range(10):  # one at a time, each gone before the next
            if (pid := os.fork()) == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        denied(os.fork)

    ended = shut_in(work, folders[0], limits=LimitsConfig(timeout_s=20.0, processes=10))
    needs(ended, Layer.STARTS)
    assert ended.reason is None, ended.detail


def test_a_thread_is_no_process_and_a_namespace_is_refused():
    starts = Starts(max_processes=1, max_threads=1)
    thread, namespace = 0x10000, 0x10000000
    assert [starts._allows(flags) for flags in (thread, namespace, 0, thread, 0)] == [True, False, True, False, False]
    assert starts.refused == "wanted more than 1 threads"


def test_its_processor_time_ends_when_nobody_stops_it(tmp_path, monkeypatch):
    """The supervisor itself is stopped: the kernel ends the child."""

    def busy() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        while True:
            pass

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    supervisor = os.fork()
    if supervisor == 0:
        run_child(busy, LimitsConfig(timeout_s=0.9), tmp_path)
        os._exit(0)
    try:
        while not ((told := tmp_path / "pid").is_file() and told.read_text()):
            time.sleep(0.001)
        os.kill(supervisor, signal.SIGSTOP)
        state = Path(f"/proc/{told.read_text()}/stat")
        end = time.monotonic() + 120  # two seconds of processor time, on a host that may be busy
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < end, "still at work"
            time.sleep(0.05)
    finally:
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)


def test_a_host_without_any_of_it_still_works(folders, monkeypatch):
    """Every layer refused, as in a container that allows nothing."""

    def refused(*_: object, **__: object) -> int:
        raise OSError(38, "not here")

    for module in (landlock, seccomp, sys.modules["pipeline.sandbox.policy"]):
        monkeypatch.setattr(module, "syscall", refused)
    ended = shut_in(lambda: Path("result").write_text("done") and None, folders[0])
    assert (ended.reason, ended.sandbox) == (None, Layer.LIMITS)
    assert (folders[0] / "result").read_text() == "done"


def test_a_filter_that_cannot_ask_still_closes_the_network(folders, monkeypatch):
    """Another filter of the container may already ask its own supervisor."""
    install = seccomp.install

    def only_plain(*, ask: bool) -> int:
        if ask:
            raise OSError(16, "busy")
        return install(ask=False)

    monkeypatch.setattr(seccomp, "install", only_plain)
    ended = shut_in(lambda: denied(lambda: socket.socket()), folders[0])
    needs(ended, Layer.NO_NETWORK)
    assert Layer.STARTS not in ended.sandbox.split("+")
    assert ended.reason is None, ended.detail


def test_a_room_is_inherited_by_what_is_run_in_it(folders):
    """Another program, such as Blender, is started by the child within its own limits."""
    own, other = folders
    (other / "script.py").write_text(f"open({str(other / 'secret')!r}).read()")

    def work() -> None:
        inner = Path("inner")
        inner.mkdir()
        ended = run_child(
            lambda: os.execv(sys.executable, [sys.executable, "-I", "-c", f"open({str(other / 'secret')!r})"]),
            LIMITS,
            inner,
        )
        assert ended.reason is Reason.CRASHED and "PermissionError" in ended.detail, ended.detail
        ended = run_child(lambda: os.execv(sys.executable, [sys.executable, "-I", "-c", "print(1)"]), LIMITS, inner)
        assert ended.reason is None, ended.detail

    ended = shut_in(work, own, *interpreter_files(sys.executable))
    needs(ended, Layer.FILES)
    assert ended.reason is None, ended.detail


def test_as_a_plain_user(folders):
    """Root is not needed for any layer."""
    if os.getuid() != 0:
        pytest.skip("already a plain user: all tests of this file ran as one")
    own, other = folders
    os.chown(own, 65534, 65534)
    for folder in own.parents:
        folder.chmod(folder.stat().st_mode | 0o011) if folder.is_relative_to("/tmp/pytest-of-root") else None
    reached = own.parent / "reached"
    pid = os.fork()
    if pid == 0:
        handle = os.open(reached, os.O_WRONLY | os.O_CREAT)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        ended = shut_in(lambda: denied(lambda: (other / "secret").read_text()), own)
        os.write(handle, f"{ended.reason} {ended.sandbox} {ended.detail}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    root = shut_in(lambda: None, own)
    assert reached.read_text().strip() == f"None {root.sandbox}"


def test_entering_twice_is_no_error(folders):
    """A process in a room may be shut in once more; it never gets out."""
    own, other = folders

    def work() -> None:
        layers, listener = enter(Policy(readable=(*program_files(), other), devices=(), own=own))
        assert listener is None  # the first supervisor goes on counting
        assert Layer.LIMITS in layers
        denied(lambda: (other / "secret").read_text())

    ended = shut_in(work, own)
    needs(ended, Layer.FILES)
    assert ended.reason is None, ended.detail
