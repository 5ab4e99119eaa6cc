"""A process and its descendants: none of them outlives what it works for."""

import contextlib
import os
import signal
from pathlib import Path

from pipeline.isolation.kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Get the signal `by` when `parent`, which started this process, is gone; end at once where it already is."""
    prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process, so that `kill_children` finds them."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_children() -> None:
    """End every child of this process, and those that they leave behind."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := [int(pid) for pid in children.read_text().split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
