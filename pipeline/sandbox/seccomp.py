"""A filter on system calls: no sockets, nothing that reaches for other processes, leaves the namespaces, changes who
may use a file, or stays behind; and a supervisor that is asked before a process or a thread is started. Constants from
linux/seccomp.h and linux/filter.h."""

import contextlib
import ctypes
import errno
import fcntl
import platform
import struct
from dataclasses import dataclass

from pipeline.sandbox.linux import syscall

_SET_FILTER, _NEW_LISTENER = 1, 1 << 3
_ALLOW, _ERRNO, _ASK = 0x7FFF0000, 0x00050000, 0x7FC00000
_LOAD, _JUMP_EQUAL, _JUMP_FROM, _RETURN = 0x20, 0x15, 0x35, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT = 0, 4, 16
_SET_DUMPABLE = 4
"""An operation of prctl."""
_X32 = 0x40000000
"""System calls of x86-64's 32-bit variant start here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """Numbers of system calls."""

    architecture: int
    seccomp: int
    starts: tuple[int, ...]
    """clone, and fork and vfork where they exist."""
    denied: tuple[int, ...]
    prlimit: int
    """Denied unless it is for the caller itself."""
    prctl: int
    """Denied where it would hide the caller's files from its parent."""


_CLONE3 = 435
_DENIED: dict[str, tuple[int, int | None]] = {
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # what outlives a process, or is memory that its limit does not count
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # owner, mode, times and attributes of files, of which Landlock knows nothing
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # how other processes are scheduled, and where their memory lies
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
}
"""Numbers on x86-64 and on AArch64; None where it has no such call."""
_MACHINES = {
    "x86_64": _Machine(
        architecture=0xC000003E,
        seccomp=317,
        starts=(56, 57, 58),
        denied=tuple(numbers[0] for numbers in _DENIED.values()),
        prlimit=302,
        prctl=157,
    ),
    "aarch64": _Machine(
        architecture=0xC00000B7,
        seccomp=277,
        starts=(220,),
        denied=tuple(numbers[1] for numbers in _DENIED.values() if numbers[1] is not None),
        prlimit=261,
        prctl=167,
    ),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("true", ctypes.c_uint8), ("false", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def install(*, ask: bool) -> int:
    """Filter this process and all it starts; `no_new_privs` must be set. With `ask`, returns the handle over which the
    supervisor is asked (`pipeline.sandbox.seccomp`). Raises OSError where the kernel does not do it."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    code = _filter(machine, ask)
    instructions = (_Instruction * len(code))(*(_Instruction(*each) for each in code))
    program = _Program(len(code), instructions)
    return syscall(machine.seccomp, _SET_FILTER, _NEW_LISTENER if ask else 0, program)


def _filter(machine: _Machine, ask: bool) -> list[tuple[int, int, int, int]]:
    """The program: what is not named is allowed. Two instructions a name: skip the second one unless it is meant."""
    denied = (_RETURN, 0, 0, _ERRNO | errno.EACCES)
    program = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, machine.architecture),
        denied,
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_FROM, 0, 1, _X32),
        denied,
    ]
    for number in machine.denied:
        program += [(_JUMP_EQUAL, 0, 1, number), denied]
    program += [(_JUMP_EQUAL, 0, 4, machine.prlimit), (_LOAD, 0, 0, _AT_FIRST_ARGUMENT), (_JUMP_EQUAL, 0, 1, 0)]
    program += [(_RETURN, 0, 0, _ALLOW), denied]
    program += [(_JUMP_EQUAL, 0, 4, machine.prctl), (_LOAD, 0, 0, _AT_FIRST_ARGUMENT)]
    program += [(_JUMP_EQUAL, 0, 1, _SET_DUMPABLE), denied, (_RETURN, 0, 0, _ALLOW)]
    # its flags lie in memory, where they can change after a look: the C library then takes clone, whose flags do not
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    if ask:
        for number in machine.starts:
            program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ASK)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


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
    """Counts of processes and threads that a child has started so far, and may start in all."""

    max_processes: int
    max_threads: int
    processes: int = 0
    threads: int = 0
    refused: str = ""
    """First request that was refused, for a person."""

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
