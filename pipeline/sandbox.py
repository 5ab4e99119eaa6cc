"""Work in a child process under limits: wall clock, memory, file size. Nothing comes back but files; what went wrong
comes back as a reason.

Two ways in. `Zygote` starts one clean, single-threaded process (forking a Ray worker, which has threads, is unsafe)
that imports the heavy modules once and then forks a child per asset. `run_limited` forks straight from the caller, for
one step inside such a child."""

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from schemas.errors import require_between
from schemas.ledger import Reason, Rejected

REPO = Path(__file__).resolve().parents[1]
STDERR_NAME = ".stderr"
TAIL_BYTES = 2000
"""How much of a child's stderr goes into the ledger."""
STOP_S = 5.0
"""Seconds that a zygote has to end its children."""
MEMORY_EXIT = 77
"""Exit code of a child that ran out of memory."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one asset may use."""

    timeout_s: float = 300.0
    """Wall clock, seconds (ours: forty times what a 100k-face asset takes)."""
    memory_gb: float = 4.0
    """Address space on top of what the loaded modules map, GiB (ours)."""
    file_gb: float = 1.0
    """Largest file a child may write, GiB (ours)."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_gb", "file_gb"):
            require_between(f"limits.{name}", getattr(self, name), 1e-3, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended."""

    reason: Reason | None
    """None: it did its work."""
    detail: str
    seconds: float
    killed: bool = False
    """Killed by somebody else: the kernel, for want of memory, or a person. Worth a second attempt."""


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
        ended = run_child(work, limits, Path(name), own_group=False)
        if ended.reason is not None:
            return Rejected(reason=ended.reason, detail=ended.detail)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def run_child(work: Callable[[], None], limits: LimitsConfig, directory: Path, *, own_group: bool = True) -> Ended:
    """Fork, do `work` in `directory`, wait no longer than the limit, and leave no descendant behind."""
    parent, start = os.getpid(), time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, limits, directory, parent, own_group)
    timed_out = not _wait(pid, limits.timeout_s)
    if own_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if timed_out:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - start
    if timed_out:
        detail = f"stopped after {limits.timeout_s:g} s; {stderr_tail(directory)}".removesuffix("; ")
        return Ended(reason=Reason.TIMEOUT, detail=detail, seconds=seconds)
    return _classify(status, stderr_tail(directory), limits, seconds)


def _wait(pid: int, timeout_s: float) -> bool:
    """True once the process has ended, False at the timeout."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(handle)


def _classify(status: int, tail: str, limits: LimitsConfig, seconds: float) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return Ended(reason=None, detail="", seconds=seconds)
    if code == MEMORY_EXIT or "std::bad_alloc" in tail:
        detail = f"needed more than {limits.memory_gb:g} GiB; {tail}"
        return Ended(reason=Reason.MEMORY_LIMIT, detail=detail, seconds=seconds)
    if code == -signal.SIGKILL:
        detail = f"killed from outside, most likely by the kernel for want of memory; {tail}".removesuffix("; ")
        return Ended(reason=Reason.MEMORY_LIMIT, detail=detail, seconds=seconds, killed=True)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Ended(reason=Reason.CRASHED, detail=f"{how}; {tail}", seconds=seconds)


def stderr_tail(directory: Path) -> str:
    """The end of what a child that worked in `directory` wrote to stderr."""
    return _tail(directory / STDERR_NAME)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _child(work: Callable[[], None], limits: LimitsConfig, directory: Path, parent: int, own_group: bool) -> None:
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
        _set_limits(limits)
        work()
        code = 0
    except MemoryError:
        code = MEMORY_EXIT
        os.write(2, b"MemoryError\n")
    except BaseException:  # a forked copy must never return into its parent's code: exit code and stderr tell
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _redirect(stderr: Path) -> None:
    """No input, all output into `stderr`, stack traces of fatal signals included."""
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="replace", write_through=True)
    sys.stdout = sys.stderr
    faulthandler.enable(file=2, all_threads=False)


def _set_limits(limits: LimitsConfig) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, limit in (
        (resource.RLIMIT_AS, mapped + int(limits.memory_gb * 2**30)),
        (resource.RLIMIT_FSIZE, int(limits.file_gb * 2**30)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Get the signal `by` when `parent`, which started this process, is gone; end at once where it already is."""
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process, so that `kill_children` finds them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_children() -> None:
    """End every child of this process, and those that they leave behind."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := [int(pid) for pid in children.read_text().split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


class Zygote:
    """A process that has everything imported and forks a child for each request. Use as a context manager, from the
    thread that lives longest: the kernel ends the zygote when the thread that started it ends.

    `target` is `module:function`; the function is called in the child as `function(request, directory)` with the
    working directory set to `directory`, and leaves its results there as files."""

    def __init__(self, target: str, limits: LimitsConfig, directory: Path, python_path: tuple[Path, ...] = ()) -> None:
        self.target = target
        self.limits = limits
        self.directory = directory
        self.python_path = (*python_path, REPO)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def run(self, request: dict[str, Any], directory: Path) -> Ended:
        """One request in one child. `killed` is set where zygote or child were killed from outside."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        start = time.monotonic()
        try:
            process.stdin.write(json.dumps({"request": request, "directory": str(directory)}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.stop()
            detail = f"the sandbox process ended; {_tail(self.directory / 'zygote.log')}"
            return Ended(reason=Reason.CRASHED, detail=detail, seconds=time.monotonic() - start, killed=True)
        ended = json.loads(answer)
        return Ended(**(ended | {"reason": Reason(ended["reason"]) if ended["reason"] else None}))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()  # it takes its descendants with it
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert stream is not None
                    stream.close()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        """The environment is a new one: nothing of ours reaches code that reads untrusted bytes."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "NUMBA_CACHE_DIR") if name in os.environ}
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        paths = {"PYTHONPATH": os.pathsep.join(map(str, self.python_path))}
        arguments = [self.target, str(os.getpid()), json.dumps(asdict(self.limits))]
        with (self.directory / "zygote.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.zygote", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.directory,
                env=kept | threads | paths,
                start_new_session=True,
            )
        return self._process
