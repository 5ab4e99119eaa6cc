"""The fault matrix of a build: the same bytes whoever builds, and whatever is killed."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.dataset.lock import lock
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.verify import verify
from pipeline.executor.job import process_job
from pipeline.sources.procedural import procedural
from schemas.dataset import (
    part_path,
    read_ledger,
    read_ledger_part,
)
from schemas.errors import UserError
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from tests.support.build_without_assets import CFG, REPO, no_partial_shard, shards
from tests.trust.trust import Trust

# 6: the same bytes


OTHER_DAY = """
import datetime, time
from pipeline.executor.job import process_in_child

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
    jobs = plan_jobs(refs, 2, tmp_path / "assets")
    first = built_by_hand(tmp_path / "first", jobs, "pipeline.executor.job:process_in_child", ())
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
from pipeline.executor.build import build
from pipeline.sources.procedural import procedural
from tests.support.build_without_assets import CFG

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
    jobs = plan_jobs(refs, 2, tmp_path / "assets")
    expected = built_by_hand(tmp_path / "expected", jobs, "pipeline.executor.job:process_in_child", ())
    held, done, builds = 0, 0, 0
    kinds: Counter[str] = Counter()
    faults: list[str] = []
    while done < kills:
        out = tmp_path / f"build{builds}"
        of_build, whole_throughout = killed_build(rng, refs, out, kills - done, expected, kinds)
        wrong = [] if whole_throughout else ["part of a shard was there"]
        wrong += verify(out) + wrong_rows(out, tmp_path / "expected", jobs)
        wrong += [f"{name} differs" for name in sorted(dict(shards(out).items() ^ expected.items()))]
        held += 0 if wrong else of_build
        faults += [f"build {builds}: {fault}" for fault in wrong]
        done, builds = done + of_build, builds + 1
        shutil.rmtree(out)
    print(f"{done} kills ({dict(kinds)}) in {builds} builds of {count} assets")
    trust.held(held, done)
    assert not faults, "\n".join(faults)


def wrong_rows(out: Path, expected: Path, jobs: list[ShardJob]) -> list[str]:
    """Planned assets that are not there once, or with another end."""
    rows = [(o.uid, o.status, o.regime, o.reason) for part in read_ledger(out) for o in part.outcomes]
    wanted = [
        (o.uid, o.status, o.regime, o.reason)
        for job in jobs
        for o in read_ledger_part(part_path(expected, job.index)).outcomes
    ]
    differing = [f"{row} in place of {other}" for row, other in zip(rows, wanted, strict=False) if row != other]
    return differing + ([f"{len(rows)} rows for {len(wanted)} assets"] if len(rows) != len(wanted) else [])


LIFE_S = {"driver": 15.0, "worker": 2.0, "child": 0.5}
"""Seconds within which a process is killed: a driver also while it starts, a worker and an asset's process at work."""


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
            wanted = str(rng.choice(["driver", "worker", "child", "child"]))
            time.sleep(rng.uniform(0, LIFE_S[wanted]))
            while kills < most and driver.poll() is None:
                if (victim := victim_of(driver, wanted, spared)) is not None:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victim.kill()
                        kills += 1
                        kinds[wanted] += 1
                    break
                time.sleep(0.02)
            whole &= no_partial_shard(out, expected)
            time.sleep(0.02)
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
        for fork_server in [process for process in below if "pipeline.sandbox.fork_server" in process.cmdline()]:
            for child in fork_server.children():
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
