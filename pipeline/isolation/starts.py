"""The supervisor's side of `pipeline.isolation.seccomp`: how many processes and threads its child may start.
RLIMIT_NPROC counts all processes of a user and does not bind root; this counts one child with its descendants."""

import contextlib
import errno
import fcntl
import struct
from dataclasses import dataclass

_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_REQUEST = struct.Struct("<QIIiIQ6Q")
"""id, pid, flags; then the call's number, architecture, instruction pointer and arguments."""
_REPLY = struct.Struct("<QqiI")
_CONTINUE = 1
_THREAD, _NAMESPACES = 0x10000, 0x7E020080
"""Flags of clone."""
_CLONES = (56, 220)
"""Numbers of clone; fork and vfork have no flags."""


@dataclass(kw_only=True)
class Starts:
    """What the child and its descendants have started so far, and may start in all."""

    max_processes: int
    max_threads: int
    processes: int = 0
    threads: int = 0
    refused: str = ""
    """What was first refused, for a person."""

    def answer(self, listener: int) -> None:
        """Answer one request that is waiting on the listener."""
        request = bytearray(_REQUEST.size)
        with contextlib.suppress(FileNotFoundError, InterruptedError):  # who asked is gone, or asks again
            fcntl.ioctl(listener, _RECEIVE, request)
            number, *_, call, _, _, flags = _REQUEST.unpack(request)[:7]
            allowed = self._allows(flags if call in _CLONES else 0)
            answer = (number, 0, 0, _CONTINUE) if allowed else (number, 0, -errno.EAGAIN, 0)
            fcntl.ioctl(listener, _ANSWER, bytearray(_REPLY.pack(*answer)))

    def _allows(self, flags: int) -> bool:
        if flags & _NAMESPACES:
            return False
        thread = bool(flags & _THREAD)
        self.threads += thread
        self.processes += not thread
        if self.processes > self.max_processes:
            self.refused = self.refused or f"wanted more than {self.max_processes} processes"
        elif self.threads > self.max_threads:
            self.refused = self.refused or f"wanted more than {self.max_threads} threads"
        else:
            return True
        return False
