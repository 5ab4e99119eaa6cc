"""The fault matrix of a decoder that a stranger's bytes have taken over: what it reaches beyond its own folder."""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.sandbox.child import ChildResult, LimitsConfig, run_child
from pipeline.sandbox.disk import FILES
from pipeline.sandbox.policy import Layer, Policy, devices, program_files
from schemas.ledger import Reason
from tests.trust.trust import Trust

LIMITS = LimitsConfig(timeout_s=30.0, file_gb=0.05)
CREATE, PRIVATE = 0o1000 | 0o600, 0


def sandboxed(work, own: Path, limits: LimitsConfig = LIMITS) -> ChildResult:
    own.mkdir(exist_ok=True)
    return run_child(work, limits, own, policy=Policy(readable=program_files(), devices=devices(), own=own))


def refused(answer: int) -> bool:
    return answer < 0 and ctypes.get_errno() in (1, 13, 38)  # EPERM, EACCES, ENOSYS


def attempts(victim: int, file: Path) -> dict[str, object]:
    """Each reaches for what is not the child's; the value is a function that returns whether it was refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    mq_open = {"x86_64": 240, "aarch64": 180}[os.uname().machine]
    path, limit = os.fsencode(file), (ctypes.c_uint64 * 2)(0, 0)

    def no_reading() -> bool:
        try:
            Path(f"/proc/{victim}/cmdline").read_bytes()
        except OSError:
            return True
        return False

    return {
        "prlimit of another": lambda: refused(libc.prlimit(victim, 0, limit, None)),
        "priority of another": lambda: refused(libc.setpriority(0, victim, 19)),
        "signal": lambda: refused(libc.kill(victim, 0)),
        "cmdline of another": no_reading,
        "shmget": lambda: refused(libc.shmget(PRIVATE, 4096, CREATE)),
        "msgget": lambda: refused(libc.msgget(PRIVATE, CREATE)),
        "semget": lambda: refused(libc.semget(PRIVATE, 1, CREATE)),
        "mq_open": lambda: refused(libc.syscall(mq_open, b"q", 66, 384, None)),
        "memfd_create": lambda: refused(libc.memfd_create(b"m", 0)),
        "chmod": lambda: refused(libc.chmod(path, 0o777)),
        "fchmodat": lambda: refused(libc.fchmodat(-100, path, 0o777, 0)),
        "chown": lambda: refused(libc.chown(path, 1, 1)),
        "utime": lambda: refused(libc.utime(path, None)),
        "utimensat": lambda: refused(libc.utimensat(-100, path, None, 0)),
        "setxattr": lambda: refused(libc.setxattr(path, b"user.a", b"b", 1, 0)),
        "hiding its open files": lambda: refused(libc.prctl(4, 0, 0, 0, 0)),
        "removexattr": lambda: refused(libc.removexattr(path, b"user.a")),
    }  # fmt: skip


def leftovers() -> dict[str, str]:
    return {name: Path(f"/proc/sysvipc/{name}").read_text() for name in ("shm", "msg", "sem")}


@pytest.mark.trust(28)
def test_a_taken_over_decoder_reaches_nobody_and_leaves_nothing(trust: Trust, tmp_path: Path) -> None:
    file, before = tmp_path / "other", leftovers()
    file.write_text("x")
    status = file.stat()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as victim:

        def work() -> None:
            for name, attempt in attempts(victim.pid, file).items():
                assert callable(attempt)
                Path(f"{name}: {'refused' if attempt() else 'allowed'}").touch()

        ended = sandboxed(work, tmp_path / "own")
        alive = victim.poll() is None
        victim.kill()
    layers = ended.sandbox.split("+")
    if not {Layer.FILES, Layer.SIGNALS, Layer.NO_NETWORK} <= set(layers):
        pytest.skip(f"this host has not all layers: {ended.sandbox}")
    told = sorted(path.name for path in (tmp_path / "own").glob("*: *"))
    held = [name.endswith("refused") for name in told]
    held += [ended.reason is None, alive, leftovers() == before, file.stat() == status]
    trust.held(sum(held), len(held))
    assert len(told) == len(attempts(0, file)) and all(held), (told, ended.detail)


@pytest.mark.trust(28)
def test_disk_and_files_are_bounded_in_all(trust: Trust, tmp_path: Path) -> None:
    """Many files below the limit of one, files without content, and deleted ones that stay open or mapped, by a
    descendant too; an asset that writes some, and deletes as it goes on, is left alone."""

    def much() -> None:
        for number in range(10_000):
            Path(f"{number}").write_bytes(bytes(16 << 20))

    def many() -> None:
        for number in range(10_000_000):
            Path(f"{number % 100}").mkdir(exist_ok=True)
            os.close(os.open(f"{number % 100}/{number}", os.O_CREAT))

    def deleted() -> None:
        for number in range(100):
            os.write(os.open(f"{number}", os.O_CREAT | os.O_WRONLY), bytes(16 << 20))
            Path(f"{number}").unlink()
        time.sleep(60)

    def deleted_by_a_child() -> None:
        if os.fork() == 0:
            os.setsid()
            deleted()
        time.sleep(60)

    def mapped() -> None:
        kept = []
        for number in range(100):
            with Path(f"{number}").open("x+b") as file:
                file.write(bytes(16 << 20))
                file.flush()
                kept.append(mmap.mmap(file.fileno(), 4096))
            Path(f"{number}").unlink()
        os.closerange(3, 1024)  # Python's maps keep their files open
        time.sleep(60)

    def some() -> None:
        for number in range(3):
            Path(f"{number}").write_bytes(bytes(16 << 20))
        for _ in range(20):
            Path("again").write_bytes(bytes(16 << 20))
            Path("again").unlink()
            time.sleep(0.1)

    works = (much, many, deleted, deleted_by_a_child, mapped, some)
    ends = {work.__name__: sandboxed(work, tmp_path / work.__name__) for work in works}
    held = [
        ends[name].reason is Reason.CRASHED and "wrote more than 0.1 GiB" in ends[name].detail
        for name in ("much", "deleted", "deleted_by_a_child", "mapped")
    ]
    held += [ends["many"].reason is Reason.CRASHED and f"more than {FILES:,} files" in ends["many"].detail]
    held += [ends["some"].reason is None]
    trust.held(sum(held), len(held))
    assert all(held), ends
