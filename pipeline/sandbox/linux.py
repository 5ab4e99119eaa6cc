"""System calls that Python has no name for."""

import contextlib
import ctypes
import functools
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prctl(option: int, value: int) -> None:
    """Raises OSError."""
    _check(_libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def syscall(number: int, *arguments: int | ctypes.Array | ctypes.Structure | None) -> int:
    """Make a system call and return the kernel's answer; raises OSError. Structures and arrays are passed by
    address."""
    passed = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument and ctypes.byref(argument)
        for argument in arguments
    ]
    return _check(_libc().syscall(ctypes.c_long(number), *passed), f"system call {number}")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(answer: int, what: str) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return answer


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Get the signal `by` when `parent`, which started this process, is gone; end at once where it already is."""
    prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def keep_freed_memory() -> None:
    """Let this process and its children use the memory of freed arrays again before they take fresh pages, each of
    which the kernel has to clear: a tenth of an asset's time. Does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError):
        _libc().mallopt(M_MMAP_MAX, 0)
        _libc().mallopt(M_TRIM_THRESHOLD, ctypes.c_int(-1))


def return_freed_memory() -> None:
    """Give the memory of freed arrays back to the kernel, before children are forked: they would have to copy each of
    its pages to use it, which takes longer than to get fresh ones. Does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError):
        _libc().malloc_trim(ctypes.c_size_t(0))


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
