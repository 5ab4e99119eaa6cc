"""One clean, single-threaded process that forks a child per request: the side that starts it, and `python -m
pipeline.sandbox.fork_server`, which it starts."""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pipeline.sandbox.child import ChildResult, LimitsConfig, run_child, tail
from pipeline.sandbox.linux import adopt_orphans, die_with_parent, kill_children, return_freed_memory
from pipeline.sandbox.policy import REPO, Policy, devices, program_files
from schemas.errors import UserError
from schemas.ledger import Reason

READY = "ready\n"
STARTS = 2
"""Starts of a fork server that does not get ready: the first one may have been killed from outside."""
STOP_S = 5.0
"""Seconds that a fork server has to end its children."""


KEPT = ("PATH", "HOME", "CUDA_VISIBLE_DEVICES", "NUMBA_CACHE_DIR", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
"""Environment variables that a fork server gets: numba's decide where its cache is and for which processor."""


def clean_environment(python_path: Sequence[Path]) -> dict[str, str]:
    """A new environment, so that nothing of ours reaches code that reads untrusted bytes."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    return kept | threads | {"PYTHONPATH": os.pathsep.join(map(str, python_path))}


class MachineError(UserError):
    """This machine cannot process any asset: says nothing about the one at hand, nor about its job."""


class ForkServer:
    """A process that has everything imported and forks a child for each request. Use as a context manager, from the
    thread that lives longest: the kernel ends the fork server when the thread that started it ends.

    `target` is `module:function`; the function is called in the child as `function(request, directory)` with the
    working directory set to `directory`, and leaves its results there as files."""

    def __init__(
        self,
        target: str,
        limits: LimitsConfig,
        directory: Path,
        warm_up: str = "",
        python_path: tuple[Path, ...] = (),
    ) -> None:
        """warm_up: `module:function`, called once before the first child."""
        self.target = target
        self.limits = limits
        self.directory = directory
        self.warm_up = warm_up
        self.python_path = (*python_path, REPO)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def run(self, request: dict[str, Any], directory: Path, readable: tuple[Path, ...] = ()) -> ChildResult:
        """One request in one child, which may write in `directory` and read what is `readable`. `killed` is set where
        fork_server or child were killed from outside. Raises MachineError where the fork server does not get ready."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        start = time.monotonic()
        try:
            message = {"request": request, "directory": str(directory), "readable": [str(path) for path in readable]}
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.stop()
            detail = f"the sandbox process ended; {tail(self.directory / 'fork_server.log')}"
            return ChildResult(reason=Reason.CRASHED, detail=detail, seconds=time.monotonic() - start, killed=True)
        ended = json.loads(answer)
        return ChildResult(**(ended | {"reason": Reason(ended["reason"]) if ended["reason"] else None}))

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
        for _ in range(STARTS):
            self._process = self._launch()
            assert self._process.stdout is not None
            if self._process.stdout.readline() == READY:
                return self._process
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)  # its last words shall be its own
            self.stop()
        log = tail(self.directory / "fork_server.log") or "it was killed"
        raise MachineError(
            f"{socket.gethostname()}: the process that opens assets does not start here ({log.splitlines()[-1]}); fix "
            f"that and build again, finished jobs are kept. Its log ends:\n{log}"
        )

    def _launch(self) -> subprocess.Popen[str]:
        arguments = [self.target, self.warm_up, str(os.getpid()), json.dumps(asdict(self.limits))]
        with (self.directory / "fork_server.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.sandbox.fork_server", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.directory,
                env=clean_environment(self.python_path),
                start_new_session=True,
            )


def main() -> None:
    """Imports and warms up once, says `READY`, and forks a child for every line that it reads. One JSON line in and one
    out per request. Arguments: module:function for the children, one to warm up or nothing, process id of the parent,
    limits as JSON."""
    target, warm_up, parent, limits_json = sys.argv[1:]
    adopt_orphans()
    signal.signal(signal.SIGTERM, _end)
    die_with_parent(int(parent), signal.SIGTERM)
    # the pipe is ours alone: whatever a library prints goes to the log
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limits = LimitsConfig(**json.loads(limits_json))
    function = _named(target)
    if warm_up:
        _named(warm_up)()
    program, hardware = program_files(), devices()
    _try_out(program, hardware)
    gc.collect()
    return_freed_memory()
    gc.freeze()  # children share these pages as long as nobody touches them
    try:
        channel.write(READY)
        channel.flush()
        for line in sys.stdin:
            message = json.loads(line)
            directory = Path(message["directory"])
            policy = Policy(readable=(*program, *map(Path, message["readable"])), devices=hardware, own=directory)
            ended = run_child(partial(function, message["request"], directory), limits, directory, policy=policy)
            kill_children()
            channel.write(json.dumps(asdict(ended)) + "\n")
            channel.flush()
    finally:
        kill_children()


def _try_out(program: tuple[Path, ...], hardware: tuple[Path, ...]) -> None:
    """End this process where one of its children, sandboxed like that of an asset, cannot even do nothing."""
    with tempfile.TemporaryDirectory(prefix="try-out-", dir=Path.cwd()) as name:
        policy = Policy(readable=program, devices=hardware, own=Path(name))
        ended = run_child(lambda: None, LimitsConfig(), policy.own, policy=policy)
    if ended.reason is not None:
        sys.exit(f"a child that does nothing ended with {ended.reason}: {ended.detail}")


def _named(name: str) -> Callable[..., None]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _end(number: int, frame: FrameType | None) -> None:
    """Once only: the kernel sends the signal for every thread of a dying parent, and the second one must not break off
    the killing of children that the first one started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


if __name__ == "__main__":
    main()
