"""Work in a child process under limits, sandboxed with its own files. Nothing comes back but files; what
went wrong comes back as a reason.

Two ways in. `pipeline.sandbox.fork_server.ForkServer` starts one clean, single-threaded process (forking a Ray worker,
which has threads, is unsafe) that imports the heavy modules once and then forks a child per asset. `run_limited` forks
straight from the caller, for one step inside such a child."""

import contextlib
import faulthandler
import io
import math
import os
import resource
import select
import signal
import socket
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.sandbox.disk import overuse
from pipeline.sandbox.linux import PR_SET_NO_NEW_PRIVS, die_with_parent, prctl
from pipeline.sandbox.policy import Policy, enter
from pipeline.sandbox.seccomp import Starts
from schemas.errors import require_between
from schemas.ledger import Reason, Rejected

STDERR_NAME = ".stderr"
TAIL_BYTES = 2000
"""Last bytes of a child's stderr that go into the ledger."""
OPEN_FILES = 1024
"""Files that a child may have open."""
WATCH_S = 1.0
"""Seconds between looks at what a child has written."""
MEMORY_EXIT = 77
"""Exit code of a child that ran out of memory."""
OUT_OF_MEMORY = ("std::bad_alloc", "Cannot allocate memory")
"""Messages of programs without MemoryError that are out of memory."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits on the process of one asset."""

    timeout_s: float = 300.0
    """Wall clock, seconds (ours: forty times what a 100k-face asset takes)."""
    memory_gb: float = 4.0
    """Address space on top of what the loaded modules map, GiB (ours)."""
    file_gb: float = 1.0
    """Largest file a child may write, GiB (ours)."""
    processes: int = 8
    """Processes that a child and its descendants may start in all (ours: an asset takes two, Blender two more). Each of
    them may take `memory_gb`."""
    threads: int = 1024
    """Threads that they may start in all (ours: Blender takes some for each processor)."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_gb", "file_gb"):
            require_between(f"limits.{name}", getattr(self, name), 1e-3, 1e6)
        require_between("limits.processes", self.processes, 1, 1 << 22)
        require_between("limits.threads", self.threads, 0, 1 << 22)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """The result of a child process."""

    reason: Reason | None
    """None: it did its work."""
    detail: str
    seconds: float
    killed: bool = False
    """Killed by somebody else: the kernel, for lack of memory, or a person. Worth a second attempt."""
    sandbox: str = ""
    """Layers of isolation that were in force (`pipeline.sandbox.policy.Layer`), joined by `+`."""


ATTEMPTS = 2
"""Attempts at work whose process somebody else killed, most likely the kernel for lack of memory: a moment later there
may be enough."""


def insist(attempt: Callable[[], ChildResult]) -> ChildResult:
    """Make an attempt, and once more where somebody else has killed it; return its result with the seconds of both."""
    seconds = 0.0
    for _ in range(ATTEMPTS):
        ended = attempt()
        seconds += ended.seconds
        if not ended.killed:
            break
    return replace(ended, seconds=seconds)


def run_limited(
    fn: Callable[[], dict[str, np.ndarray]], *, timeout_s: float, memory_gb: float = 4.0
) -> dict[str, np.ndarray] | Rejected:
    """The arrays that `fn` returns, computed in a forked child; Rejected (timeout, memory_limit, crashed) where it did
    not come to an end. The caller must be single-threaded. Arrays travel through a file, without pickles."""
    limits = LimitsConfig(timeout_s=timeout_s, memory_gb=memory_gb)
    with tempfile.TemporaryDirectory(prefix="limited-") as name:
        path = Path(name) / "arrays.npz"

        def work() -> None:
            np.savez(path, allow_pickle=False, **fn())

        # no session of its own: it must die with the group of the asset it works for
        ended = insist(lambda: run_child(work, limits, Path(name), own_group=False))
        if ended.reason is not None:
            return Rejected(reason=ended.reason, detail=ended.detail)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def run_child(
    work: Callable[[], None],
    limits: LimitsConfig,
    directory: Path,
    *,
    own_group: bool = True,
    policy: Policy | None = None,
) -> ChildResult:
    """Fork, do `work` in `directory`, wait no longer than the limit, and leave no descendant behind. `policy`: the
    sandbox of the child, and of what it starts itself."""
    parent, start, mapped = os.getpid(), time.monotonic(), _mapped_bytes()
    sys.stdout.flush()
    sys.stderr.flush()
    channel, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        channel.close()
        _child(work, limits, directory, parent, own_group, policy, there, mapped)
    there.close()
    with channel:
        watched = _watch(pid, channel, limits, directory if policy else None)
    # from here on the child and its descendants can start nothing: there is nobody left to allow it
    if own_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if watched.timed_out or watched.filled:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    tail = "; ".join(text for text in (watched.refused, stderr_tail(directory)) if text)
    seconds = time.monotonic() - start
    if watched.filled:
        ended = ChildResult(
            reason=Reason.CRASHED, detail=f"{watched.filled}; {tail}".removesuffix("; "), seconds=seconds
        )
    elif watched.timed_out:
        detail = f"stopped after {limits.timeout_s:g} s; {tail}".removesuffix("; ")
        ended = ChildResult(reason=Reason.TIMEOUT, detail=detail, seconds=seconds)
    else:
        ended = _classify(status, tail, limits, seconds)
    return replace(ended, sandbox=watched.sandbox)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    timed_out: bool
    sandbox: str
    refused: str
    """Request of the process that was refused, for a person; empty where there is none."""
    filled: str
    """Description of what it wrote beyond its limits, for a person; empty if there is nothing."""


def _watch(pid: int, channel: socket.socket, limits: LimitsConfig, own: Path | None) -> _Watched:
    """Until the process ends, its time is up or its folder `own` full: hear which layers it is in, and answer for what
    it starts."""
    end = time.monotonic() + limits.timeout_s
    starts, sandbox, listener = Starts(max_processes=limits.processes, max_threads=limits.threads), "", None
    process, poll, timed_out, filled, looked = os.pidfd_open(pid), select.poll(), True, "", time.monotonic()
    try:
        poll.register(process, select.POLLIN)
        poll.register(channel, select.POLLIN)
        while timed_out and not filled and (left := end - time.monotonic()) > 0:
            ready = dict(poll.poll(min(left, WATCH_S) * 1000))
            if own is not None and time.monotonic() - looked > WATCH_S:
                filled, looked = overuse(own, int(limits.file_gb * 2**30)), time.monotonic()
            if channel.fileno() in ready:
                poll.unregister(channel)
                sandbox, listener = _told(channel)
                if listener is not None:
                    poll.register(listener, select.POLLIN)
            if process in ready:
                timed_out = False
            elif listener is not None and ready.get(listener, 0) & select.POLLIN:
                starts.answer(listener)
    finally:
        os.close(process)
        if listener is not None:
            os.close(listener)
    return _Watched(timed_out=timed_out and not filled, sandbox=sandbox, refused=starts.refused, filled=filled)


def _told(channel: socket.socket) -> tuple[str, int | None]:
    """Receive a child's report once it is sandboxed: its layers, and the handle of its seccomp listener."""
    try:
        text, handles, _, _ = socket.recv_fds(channel, 4096, 1)
    except ConnectionResetError:
        return "", None
    return text.decode(), handles[0] if handles else None


def _classify(status: int, tail: str, limits: LimitsConfig, seconds: float) -> ChildResult:
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ChildResult(reason=None, detail="", seconds=seconds)
    if code == MEMORY_EXIT or any(words in tail for words in OUT_OF_MEMORY):
        detail = f"needed more than {limits.memory_gb:g} GiB; {tail}"
        return ChildResult(reason=Reason.MEMORY_LIMIT, detail=detail, seconds=seconds)
    if code == -signal.SIGXCPU:
        return ChildResult(reason=Reason.TIMEOUT, detail=f"used up its processor time; {tail}", seconds=seconds)
    if code == -signal.SIGKILL:
        detail = f"killed from outside, most likely by the kernel for lack of memory; {tail}".removesuffix("; ")
        return ChildResult(reason=Reason.MEMORY_LIMIT, detail=detail, seconds=seconds, killed=True)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ChildResult(reason=Reason.CRASHED, detail=f"{how}; {tail}", seconds=seconds)


def stderr_tail(directory: Path) -> str:
    """The end of what a child that worked in `directory` wrote to stderr."""
    return tail(directory / STDERR_NAME)


def tail(path: Path) -> str:
    """The end of a text; empty where there is none, or what a child has put there is no plain file of one name."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        status = os.fstat(handle)
        plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        data = os.pread(handle, TAIL_BYTES, max(0, status.st_size - TAIL_BYTES)) if plain else b""
    finally:
        os.close(handle)
    return data.decode(errors="replace").strip()


def _child(
    work: Callable[[], None],
    limits: LimitsConfig,
    directory: Path,
    parent: int,
    own_group: bool,
    policy: Policy | None,
    channel: socket.socket,
    mapped: int,
) -> None:
    """The forked side; does not return."""
    code = 1
    try:
        if own_group:
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(parent)
        _redirect(directory / STDERR_NAME)
        os.chdir(directory)
        tempfile.tempdir = str(directory)
        _set_limits(limits, mapped)
        if policy is not None:
            _sandbox(policy, channel)
        channel.close()
        work()
        code = 0
    except MemoryError:
        code = MEMORY_EXIT
        os.write(2, b"MemoryError\n")
    except BaseException:  # a forked copy must never return into its parent's code: exit code and stderr tell
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _sandbox(policy: Policy, channel: socket.socket) -> None:
    with contextlib.suppress(OSError):  # where memory runs out, the kernel shall end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    layers, listener = enter(policy)
    socket.send_fds(channel, ["+".join(layers).encode()], [] if listener is None else [listener])
    channel.close()
    os.closerange(3, OPEN_FILES)  # the pipe over which the supervisor gives its answers, for one


def _redirect(stderr: Path) -> None:
    """No input, all output into `stderr`, stack traces of fatal signals included."""
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="replace", write_through=True)
    sys.stdout = sys.stderr
    faulthandler.enable(file=2, all_threads=False)


def _mapped_bytes() -> int:
    """Measure the address space of this process; a child has the same, and may not be allowed to look."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _set_limits(limits: LimitsConfig, mapped: int) -> None:
    # more than a process can use in its time: for when there is no supervisor at work to stop it
    seconds = math.ceil(limits.timeout_s * (os.cpu_count() or 1)) + 1
    for what, limit, grace in (
        (resource.RLIMIT_AS, mapped + int(limits.memory_gb * 2**30), 0),
        (resource.RLIMIT_CPU, seconds, 1),
        (resource.RLIMIT_FSIZE, int(limits.file_gb * 2**30), 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        hard = resource.getrlimit(what)[1]
        ceiling = limit + grace if hard == resource.RLIM_INFINITY else min(limit + grace, hard)
        resource.setrlimit(what, (min(limit, ceiling), ceiling))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
