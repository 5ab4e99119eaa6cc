"""The fault matrix of a build: calls that fail, full and read-only disks, exceptions in shards."""

import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.shards import commit
from pipeline.dataset.state import settle, writable
from pipeline.dataset.verify import verify
from schemas.errors import UserError
from schemas.sample import Regime
from seqtex.cli.main import main
from tests.support.build_without_assets import CFG, Material, content, no_partial_shard, regime_of, shards
from tests.trust.trust import Trust

# 2: failure before and after every write, flush and rename


class Failing:
    """Counts the calls that change the disk, and does `fault` before or after one of them."""

    def __init__(self, point: int, after: bool, fault: Callable[[], None]) -> None:
        self.point, self.after, self.fault, self.seen = point, after, fault, 0
        self.hit = ""
        """Name of the call at the point."""
        self.returned: list[int] = []
        """Calls that came to their end: removing a file that is gone does not."""
        self.opened: list[str] = []
        """Files opened for writing."""

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        mine = self.seen == self.point
        self.seen += 1
        if mine:
            self.hit = call.__name__
        if mine and not self.after:
            self.fault()
        number = self.seen - 1
        result = call(*arguments, **options)
        self.returned.append(number)
        if mine and self.after:
            self.fault()
        return result

    def installed(self, patch: pytest.MonkeyPatch) -> None:
        real_open = io.open

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa"):
                return real_open(file, mode, *arguments, **options)
            self.opened.append(str(file))
            return FailingFile(self(real_open, file, mode, *arguments, **options), self)

        patch.setattr(io, "open", opened)  # what pathlib opens with
        for name in ("fsync", "replace", "unlink", "mkdir"):
            real = getattr(os, name)
            patch.setattr(os, name, lambda *a, _real=real, **o: self(_real, *a, **o))


class FailingFile:
    """A file whose writes count."""

    def __init__(self, file: Any, failing: Failing) -> None:
        self._file, self._failing = file, failing

    def write(self, data: bytes) -> int:
        return self._failing(self._file.write, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def eio() -> None:
    raise OSError(errno.EIO, "Input/output error", "the disk")


def build_with_fault(material: Material, out: Path, failing: Failing) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing.installed(patch)
        material.build(out)


def killed_at(material: Material, out: Path, point: int, after: bool) -> bool:
    """A build in a process of its own, which dies at a point; whether it got there."""
    pid = os.fork()
    if pid == 0:
        try:
            build_with_fault(material, out, Failing(point, after, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.trust(2)
@pytest.mark.parametrize("fault", ["error", "death"])
def test_a_failure_at_any_point_of_a_build_is_made_good(
    trust: Trust, material: Material, whole: Path, tmp_path: Path, fault: str
) -> None:
    """Every open, write, flush, rename, removal and new folder, before and after; the next build ends with the bytes of
    one that met no failure, and until then no partial shard is there under its name."""
    counter = Failing(-1, False, eio)
    build_with_fault(material, tmp_path / "counted", counter)
    for name in ("shards/textured-000000.tar", "ledger/000000.parquet", "index.json"):  # no file escapes the count
        assert (tmp_path / "counted" / name).is_file()
        assert any(Path(name).name in opened for opened in counter.opened)
    points = [(point, False) for point in range(counter.seen)] + [(point, True) for point in counter.returned]
    if not trust.full:
        chosen = trust.rng().choice(len(points), trust.count(full=len(points), short=24), replace=False)
        points = [points[i] for i in sorted(chosen)]
    expected, held = content(whole), 0
    for point, after in points:
        out = tmp_path / f"{point}-{after}"
        if fault == "death":
            reached = killed_at(material, out, point, after)
        else:
            failing = Failing(point, after, eio)
            try:
                build_with_fault(material, out, failing)
                reached = failing.hit == "mkdir"  # the folder is there, which is all that was asked for
            except UserError as error:
                reached = "the disk" in str(error) and "Input/output error" in str(error)
        partial = not no_partial_shard(out, shards(whole))
        material.build(out)
        held += reached and not partial and content(out) == expected and verify(out) == []
        shutil.rmtree(out)
    trust.held(held, len(points))
    assert held == len(points)


# 5: an exception in the middle of a shard


@pytest.mark.trust(5)
def test_an_exception_in_a_shard_leaves_no_file_of_its_name(trust: Trust, material: Material, tmp_path: Path) -> None:
    """Before every sample, and in every field, whatever is raised."""
    out = tmp_path / "out"
    for name in ("shards", "ledger"):
        (out / name).mkdir(parents=True)
    samples = [(uid, files) for uid, files in material.files.items() if files]
    kinds = [OSError, RuntimeError, MemoryError, KeyboardInterrupt]
    places = [(at, field) for at in range(len(samples)) for field in range(-1, len(samples[at][1]))]
    cases = [(kind, place) for kind in kinds for place in places]
    held = 0
    for kind, (at, field) in cases:
        with contextlib.suppress(UserError if kind is OSError else kind):
            commit(out, 0, [], broken(samples, at, field, kind))
            raise AssertionError("the exception was swallowed")
        held += not [*(out / "shards").iterdir(), *(out / "ledger").iterdir()]
    trust.held(held, len(cases))
    assert held == len(cases)


def broken(
    samples: list[tuple[str, list[Path]]], at: int, field: int, kind: type[BaseException]
) -> dict[Regime, list[tuple[str, list[Path]]]]:
    """The samples of a job by regime; one of them, or one of its fields, raises when its turn comes."""

    class Broken(type(Path())):  # type: ignore[misc]
        def open(self, *arguments: Any, **options: Any) -> Any:
            raise kind("in the middle")

    class BrokenFields(list[Path]):
        def __iter__(self) -> Iterator[Path]:
            raise kind("in the middle")

    found: dict[Regime, list[tuple[str, list[Path]]]] = {}
    for number, (uid, files) in enumerate(samples):
        if number == at and field < 0:
            files = BrokenFields(files)
        elif number == at:
            files = [Broken(file) if index == field else file for index, file in enumerate(sorted(files))]
        found.setdefault(regime_of(uid), []).append((uid, files))
    return found


# 11: full disk, I/O errors, read-only


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system takes the right to mount one (root)")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.trust(11)
def test_a_full_disk_is_told_and_made_good(
    trust: Trust, small_disk: Path, material: Material, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With less and less room left, until all of it fits."""
    needed = sum(len(data) for data in content(whole).values())
    steps = trust.count(full=100, short=10)
    held = 0
    for left in np.linspace(0, needed, steps, endpoint=False).astype(int):
        filler, out = small_disk / "filler", small_disk / "out"
        shutil.rmtree(out, ignore_errors=True)
        fill(filler, int(left))
        try:
            material.build(out)
            told = False
        except UserError as error:
            told = "No space left on device" in str(error) and str(out) in str(error)
        clean = no_partial_shard(out, shards(whole))
        filler.unlink()
        material.build(out)
        held += told and clean and content(out) == content(whole) and verify(out) == []
    fill(small_disk / "filler", 0)
    shutil.rmtree(small_disk / "out")
    assert main(["build", "--source", "procedural:2", "--out", str(small_disk / "out")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    trust.held(held, steps)
    assert held == steps


def fill(path: Path, left: int) -> None:
    """Writes a file that leaves so many bytes free."""
    stat = os.statvfs(path.parent)
    with contextlib.suppress(OSError), path.open("wb") as file:
        file.write(bytes(max(0, stat.f_bavail * stat.f_frsize - left)))


@pytest.mark.trust(11)
def test_a_read_only_disk_is_told_and_made_good(
    trust: Trust, small_disk: Path, material: Material, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "out"
    held = 0
    for jobs in (0, 1):
        if jobs:
            with writable(out):
                settle(out, material.jobs, CFG.recorded())
                material.commit(out, material.jobs[0])
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        try:
            material.build(out)
            told = False
        except UserError as error:
            told = "Read-only file system" in str(error) and str(small_disk) in str(error)
        code = main(["build", "--source", "procedural:2", "--out", str(out)])
        told &= code == 1 and "Read-only file system" in capsys.readouterr().err
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        held += told
    material.build(out)
    held += content(out) == content(whole)
    trust.held(held, 3)
    assert held == 3
