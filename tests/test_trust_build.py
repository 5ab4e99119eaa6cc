"""The fault matrix of a build: whatever is killed, fails, fills up, is cut, flipped, changed or run twice."""

import contextlib
import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cli.main import main
from pipeline.bake import BakeConfig
from pipeline.config import BuildConfig
from pipeline.judge import JudgeConfig
from pipeline.lock import lock
from pipeline.operate.choose import with_reasons
from pipeline.output import finish, finished, settle, writable
from pipeline.plan import ShardJob, plan_jobs, read_plan
from pipeline.process import process_job
from pipeline.render import RenderConfig
from pipeline.shards import commit, read_shard, remove_leftovers, write_shard
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from pipeline.verify import verify
from pipeline.zygote import Zygote
from schemas.codec import encode
from schemas.dataset import (
    dataset_json,
    file_sha256,
    part_path,
    read_dataset_json,
    read_ledger,
    read_ledger_part,
    shard_path,
    write_file,
)
from schemas.errors import UserError
from schemas.ledger import FAILURES, Measurements, Outcome, Reason, Status
from schemas.mesh import Attribution, MeshRef
from schemas.sample import Regime
from tests.small_dataset import small_sample
from tests.trust import Trust
from training.storage import LocalFiles, ShardError

REPO = Path(__file__).resolve().parents[1]
CFG = BuildConfig(
    assets_per_job=4,
    views=RenderConfig(resolution=32),
    uv=BakeConfig(resolution=64),
    judge=JudgeConfig(min_round_trip_db=10.0),
)


# small datasets, without processing any asset


@dataclass(frozen=True)
class Material:
    """What a build of made-up results needs: the plan, and for each asset what became of it."""

    jobs: list[ShardJob]
    files: dict[str, list[Path]]
    """Fields by uid; none for a rejected asset."""

    def outcomes(self, job: ShardJob) -> list[Outcome]:
        return [outcome_of(ref, job.index, bool(self.files[ref.uid])) for ref in job.refs]

    def commit(self, out: Path, job: ShardJob) -> None:
        samples: dict[Regime, list[tuple[str, list[Path]]]] = {}
        for outcome in self.outcomes(job):
            if outcome.regime is not None:
                samples.setdefault(outcome.regime, []).append((outcome.uid, self.files[outcome.uid]))
        commit(out, job.index, self.outcomes(job), samples)

    def build(self, out: Path) -> None:
        """All of a build but the assets' processing; what is done is kept."""
        with writable(out), lock(out):
            info = settle(out, self.jobs, CFG)
            remove_leftovers(out, len(self.jobs))
            done = finished(out, self.jobs)
            for job in self.jobs:
                if job.index not in done:
                    self.commit(out, job)
            finish(out, info, self.jobs, len(self.jobs) - len(done))


def regime_of(uid: str) -> Regime:
    return Regime.MV_ONLY if uid.endswith("2") else Regime.TEXTURED


def outcome_of(ref: MeshRef, job: int, accepted: bool) -> Outcome:
    regime = regime_of(ref.uid) if accepted else None
    return Outcome(
        uid=ref.uid,
        uri=ref.uri,
        sha256=ref.sha256,
        status=Status.ACCEPTED if accepted else Status.REJECTED,
        regime=regime,
        reason=None if accepted else Reason.UNTEXTURED,
        detail="",
        shard=f"{regime}-{job:06d}.tar" if regime else None,
        seconds=1.0,
        measurements=Measurements(faces=12),
    )


def write_fields(directory: Path, uid: str, regime: Regime) -> list[Path]:
    directory.mkdir(parents=True)
    for name, data in encode(small_sample(uid, regime, seed=len(uid), view_size=16, uv_size=16)).items():
        (directory / name).write_bytes(data)
    return sorted(directory.iterdir())


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two jobs of four assets: textured, textured, mv_only, rejected."""
    root = tmp_path_factory.mktemp("material")
    refs = [
        MeshRef(uid=f"a{job}{number}", uri=f"/assets/a{job}{number}.glb") for job in range(2) for number in range(4)
    ]
    files = {
        ref.uid: [] if ref.uid.endswith("3") else write_fields(root / ref.uid, ref.uid, regime_of(ref.uid))
        for ref in refs
    }
    return Material(plan_jobs(refs, 4), files)


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    material.build(out)
    assert verify(out) == []
    return out


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def content(out: Path) -> dict[str, bytes]:
    """Every file that a reader of the dataset may see."""
    paths = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if ".work" not in path.parts}


def shards(out: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in (out / "shards").glob("[!.]*")}


def no_partial_shard(out: Path, expected: dict[str, str]) -> bool:
    """Whatever lies under a shard's final name is the whole shard."""
    return not (out / "shards").is_dir() or shards(out).items() <= expected.items()


# 2: failure before and after every write, flush and rename


class Failing:
    """Counts the calls that change the disk, and does `fault` before or after one of them."""

    def __init__(self, point: int, after: bool, fault: Callable[[], None]) -> None:
        self.point, self.after, self.fault, self.seen = point, after, fault, 0
        self.hit = ""
        """What was called at the point."""
        self.returned: list[int] = []
        """Calls that came to their end: removing a file that is gone does not."""

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
            if "w" not in mode:
                return real_open(file, mode, *arguments, **options)
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


# 3, 4: cuts and flipped bits


@pytest.mark.trust(3)
def test_every_cut_is_found_and_refused(trust: Trust, dataset: Path) -> None:
    """At every 512-byte boundary, next to them, and anywhere else: by `verify`, and by what training reads with."""
    held = runs = 0
    for shard in [shard for part in read_ledger(dataset) for shard in part.shards]:
        path = shard_path(dataset, shard.name)
        data = path.read_bytes()
        cuts = set(range(0, len(data), 512))
        cuts |= {cut + near for cut in cuts for near in (1, 511) if cut + near < len(data)} if trust.full else set()
        cuts |= set(trust.rng().integers(0, len(data), trust.count(full=500, short=20)).tolist())
        if not trust.full:
            cuts = set(trust.rng().choice(sorted(cuts), 40, replace=False).tolist())
        for cut in sorted(cuts):
            path.write_bytes(data[:cut])
            runs += 1
            found = any(problem.startswith(f"{path}: {cut} bytes") for problem in verify(dataset))
            held += found and refused(dataset, shard.name, shard.sha256, shard.bytes)
        path.write_bytes(data)
    trust.held(held, runs)
    assert held == runs and verify(dataset) == []


def refused(dataset: Path, name: str, sha256: str, size: int) -> bool:
    try:
        LocalFiles(dataset).open(f"shards/{name}", sha256, size).close()
    except ShardError as error:
        return name in str(error)
    return False


@pytest.mark.trust(4)
def test_every_flipped_bit_is_found_where_it_is(trust: Trust, dataset: Path) -> None:
    """Spread over files of every kind: shards, ledger, plan, index and `dataset.json`."""
    rng, runs = trust.rng(), trust.count(full=1000, short=60)
    kinds = [sorted((dataset / "shards").iterdir()), sorted((dataset / "ledger").iterdir())]
    kinds += [[dataset / name] for name in ("plan.parquet", "index.json", "dataset.json")]
    held = 0
    for run in range(runs):
        of_kind = kinds[run % len(kinds)]
        path = of_kind[rng.integers(len(of_kind))]
        data = path.read_bytes()
        position = int(rng.integers(len(data) * 8))
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        held += any(problem.startswith(f"{path}: ") for problem in verify(dataset))
        path.write_bytes(data)
    trust.held(held, runs)
    assert held == runs and verify(dataset) == []


# 5: an exception in the middle of a shard


@pytest.mark.trust(5)
def test_an_exception_in_a_shard_leaves_no_file_of_its_name(trust: Trust, material: Material, tmp_path: Path) -> None:
    """Before every sample, and in every field, whatever is raised."""
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    samples = [(uid, files) for uid, files in material.files.items() if files]
    kinds = [OSError, RuntimeError, MemoryError, KeyboardInterrupt]
    places = [(at, field) for at in range(len(samples)) for field in range(-1, len(samples[at][1]))]
    cases = [(kind, place) for kind in kinds for place in places]
    held = 0
    for kind, (at, field) in cases:
        with contextlib.suppress(kind):
            write_shard(out, 0, Regime.TEXTURED, broken(samples, at, field, kind))
            raise AssertionError("the exception was swallowed")
        held += not list((out / "shards").iterdir())
    trust.held(held, len(cases))
    assert held == len(cases)


def broken(
    samples: list[tuple[str, list[Path]]], at: int, field: int, kind: type[BaseException]
) -> Iterator[tuple[str, list[Path]]]:
    class Broken(type(Path())):  # type: ignore[misc]
        def open(self, *arguments: Any, **options: Any) -> Any:
            raise kind("in the middle")

    for number, (uid, files) in enumerate(samples):
        if number == at:
            if field < 0:
                raise kind("in the middle")
            files = [Broken(file) if index == field else file for index, file in enumerate(sorted(files))]
        yield uid, files


# 6: the same bytes


OTHER_DAY = """
import datetime, time
from pipeline.process import process_in_child

def run(request, directory):
    shift = 40_000_000.0
    now, ns = time.time, time.time_ns
    time.time = lambda: now() + shift
    time.time_ns = lambda: ns() + int(shift * 1e9)
    process_in_child(request, directory)
"""


@pytest.mark.trust(6)
def test_the_same_bytes_on_another_day_in_another_order(
    trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs done last to first, by processes whose clock, zone and environment are those of another day, from files with
    other times; at full counts also over Ray by one worker and by two."""
    refs = list(procedural(trust.count(full=24, short=4), tmp_path / "assets"))
    jobs = plan_jobs(refs, 2)
    first = built_by_hand(tmp_path / "first", jobs, "pipeline.process:process_in_child", ())
    assert first
    (tmp_path / "other_day.py").write_text(OTHER_DAY)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    monkeypatch.setenv("LC_ALL", "C")
    for ref in refs:
        os.utime(ref.uri, (1, 1))
    others = [built_by_hand(tmp_path / "other", jobs[::-1], "other_day:run", (tmp_path,))]
    if trust.full:
        others += [built_over_ray(tmp_path / f"ray{workers}", refs[::-1], workers) for workers in (1, 2)]
    held = sum(other.get(name) == sha256 for other in others for name, sha256 in first.items())
    trust.held(held, len(others) * len(first))
    assert all(other == first for other in others)


def built_by_hand(out: Path, jobs: list[ShardJob], target: str, python_path: tuple[Path, ...]) -> dict[str, str]:
    for name in ("shards", "ledger"):
        (out / name).mkdir(parents=True)
    for job in jobs:
        process_job(job, out, CFG, target, python_path)
    return shards(out)


BUILD = """
import json, sys
from pathlib import Path
from dataclasses import replace
from pipeline.run import build
from pipeline.sources.procedural import procedural
from tests.test_trust_build import CFG

assets, out, count, per_job, workers = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
refs = list(procedural(count, assets))[::-1]
cfg = replace(CFG, assets_per_job=per_job)
build(refs, out, cfg, workers, lambda event: print(event.event, flush=True))
"""


def built_over_ray(out: Path, refs: list[MeshRef], workers: int) -> dict[str, str]:
    assets = str(Path(refs[0].uri).parent)
    command = [sys.executable, "-c", BUILD, assets, str(out), str(len(refs)), "2", str(workers)]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    return shards(out)


# 1: SIGKILL anywhere


@pytest.mark.slow
@pytest.mark.trust(1)
def test_a_build_that_is_killed_all_over_ends_with_the_same_samples(trust: Trust, tmp_path: Path) -> None:
    """SIGKILL of the driver, of a Ray worker, or of the process of an asset, at random moments of real builds. Whatever
    dies, no shard is there in part; the build that comes to its end has every asset once, with the same bytes."""
    rng = trust.rng()
    count, kills = trust.count(full=60, short=6), trust.count(full=200, short=2)
    refs = list(procedural(count, tmp_path / "assets"))
    jobs = plan_jobs(refs, 2)
    expected = built_by_hand(tmp_path / "expected", jobs, "pipeline.process:process_in_child", ())
    held, done, builds = 0, 0, 0
    kinds: Counter[str] = Counter()
    while done < kills:
        out = tmp_path / f"build{builds}"
        of_build, whole_throughout = killed_build(rng, refs, out, kills - done, expected, kinds)
        ended = verify(out) == [] and shards(out) == expected and same_rows(out, tmp_path / "expected", jobs)
        held += of_build if ended and whole_throughout else 0
        done, builds = done + of_build, builds + 1
        shutil.rmtree(out)
    print(f"{done} kills ({dict(kinds)}) in {builds} builds of {count} assets")
    trust.held(held, done)
    assert held == done


def same_rows(out: Path, expected: Path, jobs: list[ShardJob]) -> bool:
    """Every planned asset once, with the same end."""
    rows = [(o.uid, o.status, o.regime, o.reason) for part in read_ledger(out) for o in part.outcomes]
    wanted = [
        (o.uid, o.status, o.regime, o.reason)
        for job in jobs
        for o in read_ledger_part(part_path(expected, job.index)).outcomes
    ]
    return rows == wanted


def killed_build(
    rng: np.random.Generator, refs: list[MeshRef], out: Path, most: int, expected: dict[str, str], kinds: Counter[str]
) -> tuple[int, bool]:
    """One build from start to end, killed up to `most` times. How often it was, and whether shards were whole after
    every kill."""
    assets, kills, whole, spared = str(Path(refs[0].uri).parent), 0, True, set[str]()
    while True:
        command = [sys.executable, "-c", BUILD, assets, str(out), str(len(refs)), "2", "2"]
        driver = psutil.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        next(iter(driver.stdout), None)  # the plan is there
        while driver.poll() is None:
            time.sleep(rng.uniform(0, 1.5))
            wanted = str(rng.choice(["driver", "worker", "child", "child"]))
            if kills < most and (victim := victim_of(driver, wanted, spared)) is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    kills += 1
                    kinds[wanted] += 1
            whole &= no_partial_shard(out, expected)
        driver.stdout.close()
        whole &= no_partial_shard(out, expected)
        if driver.returncode == 0:
            return kills, whole
        gone(out)


def victim_of(driver: psutil.Process, kind: str, spared: set[str]) -> psutil.Process | None:
    """A process of a build. An asset whose process was killed is tried once more, then it counts as failed: nobody
    gets killed twice."""
    if kind == "driver":
        return driver
    with contextlib.suppress(psutil.Error):
        below = driver.children(recursive=True)
        if kind == "worker":
            return next((process for process in below if process.name().startswith("ray::_job_task")), None)
        for zygote in [process for process in below if "pipeline.zygote" in process.cmdline()]:
            for child in zygote.children():
                asset = child.cwd()
                if asset not in spared and "job-" in asset:
                    spared.add(asset)
                    return child
    return None


def gone(out: Path) -> None:
    """Waits until the lock is free: the driver's death may reach its file a moment later."""
    for _ in range(100):
        with contextlib.suppress(UserError), lock(out):
            return
        time.sleep(0.1)


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
                settle(out, material.jobs, CFG)
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


# 12: two builders


@pytest.mark.trust(12)
def test_of_several_builders_at_once_one_builds(trust: Trust, material: Material, whole: Path, tmp_path: Path) -> None:
    """Three that start at the same moment: the others are refused by name, or come after it and find all done."""
    runs, held = trust.count(full=100, short=5), 0
    context = multiprocessing.get_context("fork")
    for run in range(runs):
        out = tmp_path / f"{run}"
        start, told = context.Barrier(3), context.SimpleQueue()
        builders = [context.Process(target=build_at, args=(material, out, start, told)) for _ in range(3)]
        for builder in builders:
            builder.start()
        answers = [told.get() for _ in builders]
        for builder in builders:
            builder.join()
        refused = [answer for answer in answers if answer]
        right = all("another build (process" in answer for answer in refused) and len(refused) < 3
        held += right and content(out) == content(whole) and verify(out) == []
        shutil.rmtree(out)
    trust.held(held, runs)
    assert held == runs


def build_at(material: Material, out: Path, start: Any, told: Any) -> None:
    start.wait()
    try:
        material.build(out)
        told.put("")
    except UserError as error:
        told.put(str(error))
    except BaseException as error:
        told.put(f"unexpected: {error!r}")


# 13: changed configuration or input


def leaves(entries: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def with_leaf(entries: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    name, _, rest = dotted.partition(".")
    return entries | {name: with_leaf(entries[name], rest, value) if rest else value}


@pytest.mark.trust(13)
def test_any_other_setting_is_refused_by_its_name(trust: Trust, material: Material, dataset: Path) -> None:
    info = read_dataset_json(dataset)
    before = content(dataset)
    settings = list(leaves(info.config))
    held = 0
    for name, value in settings:
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "another"
        changed = replace(info, config=with_leaf(info.config, name, other))
        write_file(dataset / "dataset.json", dataset_json(changed))
        try:
            material.build(dataset)
        except UserError as error:
            held += f"built with {name}={other!r}, now it is" in str(error)
        write_file(dataset / "dataset.json", before["dataset.json"])
    assert len(settings) > 50 and content(dataset) == before
    trust.held(held, len(settings))
    assert held == len(settings)


@pytest.mark.trust(13)
def test_any_other_input_is_refused_by_its_name(trust: Trust, tmp_path: Path) -> None:
    source = Attribution(name="s", licence="CC0-1.0", attribution="someone")
    refs = [MeshRef(uid=f"u{i}", uri=f"/x/{i}.glb", sha256=f"{i:064d}", source=source, caption="c") for i in range(5)]
    with writable(tmp_path):
        settle(tmp_path, plan_jobs(refs, 2), CFG)
    other = {"uri": "/y.glb", "sha256": "f" * 64, "caption": "d"}
    cases = [(name, [replace(refs[0], **{name: value}), *refs[1:]]) for name, value in other.items()]
    cases += [
        (name, [*refs[:4], replace(refs[4], source=replace(source, **{name: "other"}))]) for name in asdict(source)
    ]
    told = [(f"{name} of asset u", changed) for name, changed in cases]
    told += [("1 planned assets are gone", refs[1:]), ("1 assets are new", [*refs, replace(refs[0], uid="u9")])]
    held = 0
    for message, changed in told:
        with pytest.raises(UserError) as error:
            settle(tmp_path, plan_jobs(changed, 2), CFG)
        held += message in str(error.value) and "the input has changed" in str(error.value)
    trust.held(held, len(told))
    assert held == len(told)


@pytest.mark.trust(13)
def test_a_changed_side_file_is_refused(trust: Trust, tmp_path: Path) -> None:
    assets, out = tmp_path / "assets", tmp_path / "out"
    assets.mkdir()
    texts = {
        "a.gltf": '{"buffers": [{"uri": "a.bin"}], "images": [{"uri": "a.png"}]}',
        "b.obj": "mtllib b.mtl\n",
        "b.mtl": "newmtl m\nmap_Kd b.png\n",
    } | dict.fromkeys(("a.bin", "a.png", "b.png"), "x")
    for name, text in texts.items():
        (assets / name).write_text(text)
    with writable(out):
        settle(out, plan_jobs(folder(assets), 2), CFG)
    held = 0
    for name, text in texts.items():
        (assets / name).write_text(text + "\n")
        with pytest.raises(UserError, match="the input has changed: sha256 of asset"):
            settle(out, plan_jobs(folder(assets), 2), CFG)
        held += 1
        (assets / name).write_text(text)
    settle(out, plan_jobs(folder(assets), 2), CFG)
    trust.held(held, len(texts))


# 14: one row each


STAGED = """
import json, os
from pathlib import Path
from pipeline.answer import Answer, write_answer
from schemas.ledger import Measurements, Reason, Rejected
from schemas.sample import Regime

def run(request, directory):
    told = json.loads(request["ref"]["caption"])
    if told["reason"] == "crashed":
        os._exit(3)
    regime = Regime(told["regime"]) if told["regime"] else None
    verdict = Rejected(reason=Reason(told["reason"]), detail="") if told["reason"] else None
    files = sorted((Path(request["ref"]["uri"]).parent / regime).iterdir()) if regime else []
    answer = Answer(regime=regime, verdict=verdict, measurements=Measurements(), stage_seconds=0.0)
    write_answer(directory, answer, {file.name: file.read_bytes() for file in files})

def cured(request, directory):
    told = json.loads(request["ref"]["caption"])
    request["ref"]["caption"] = json.dumps(told | {"reason": None, "regime": "textured"})
    run(request, directory)
"""
ENDS = [None, Reason.CRASHED, Reason.MEMORY_LIMIT, Reason.UNTEXTURED, Reason.TRUNCATED, Reason.UNWRAP_POOR]
"""What becomes of an asset: accepted, failed, rejected, or kept for its views."""


@pytest.mark.trust(14)
def test_every_asset_has_one_row_and_a_retry_touches_its_reason_alone(trust: Trust, tmp_path: Path) -> None:
    rng, count = trust.rng(), trust.count(full=200, short=16)
    (tmp_path / "staged.py").write_text(STAGED)
    refs = [staged_ref(tmp_path, number, ENDS[rng.integers(len(ENDS))]) for number in range(count)]
    jobs, out = plan_jobs(refs, 8), tmp_path / "out"
    with writable(out), lock(out):
        info = settle(out, jobs, CFG)
        with Zygote("staged:run", CFG.limits, tmp_path, python_path=(tmp_path,)) as zygote:
            for job in jobs:
                process_job(job, out, CFG, zygote=zygote)
        finish(out, info, jobs, len(jobs))
    assert verify(out) == []
    rows = {outcome.uid: outcome for part in read_ledger(out) for outcome in part.outcomes}
    ends = Counter(outcome.status for outcome in rows.values())
    held = len(rows) if list(rows) == [ref.uid for ref in refs] and ends.total() == count else 0
    runs = count
    for reason in filter(None, ENDS):
        chosen = with_reasons(out, read_plan(out / "plan.parquet"), reasons={reason})
        before, bytes_before = dict(rows), samples_of(out)
        with Zygote("staged:cured", CFG.limits, tmp_path, python_path=(tmp_path,)) as zygote:
            for job in chosen:
                process_job(job, out, CFG, zygote=zygote)
        rows = {outcome.uid: outcome for part in read_ledger(out) for outcome in part.outcomes}
        bytes_now = samples_of(out)
        for uid, row in rows.items():
            runs += 1
            if before[uid].reason is reason:
                held += row.status is Status.ACCEPTED and row.regime is Regime.TEXTURED
            else:
                held += row == before[uid] and bytes_now.get(uid) == bytes_before.get(uid)
    trust.held(held, runs)
    assert held == runs and all(row.reason is None for row in rows.values())


def staged_ref(folder: Path, number: int, reason: Reason | None) -> MeshRef:
    uid = f"staged-{number:04d}"
    regime = None if reason in {*FAILURES, Reason.UNTEXTURED, Reason.TRUNCATED} else "textured"
    regime = "mv_only" if reason is Reason.UNWRAP_POOR else regime
    for kind in Regime:
        write_fields(folder / "fields" / uid / kind, uid, kind)
    main = folder / "fields" / uid / "asset.obj"
    main.touch()
    return MeshRef(uid=uid, uri=str(main), caption=json.dumps({"reason": reason, "regime": regime}))


def samples_of(out: Path) -> dict[str, str]:
    """A hash of every sample, by uid."""
    found = {}
    for part in read_ledger(out):
        for shard in part.shards:
            for uid, fields in read_shard(shard_path(out, shard.name)):
                found[uid] = hashlib.sha256(
                    b"".join(name.encode() + fields[name] for name in sorted(fields))
                ).hexdigest()
    return found
