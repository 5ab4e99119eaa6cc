"""System calls that Python has no name for."""

import ctypes
import functools
import os

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38


def prctl(option: int, value: int) -> None:
    """Raises OSError."""
    _check(_libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def syscall(number: int, *arguments: int | ctypes.Array | ctypes.Structure | None) -> int:
    """What the kernel answers; raises OSError. Structures and arrays are passed by address."""
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
