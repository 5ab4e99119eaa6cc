"""Cost of a plan of many assets to the process that drives the build: `python -m benchmarks.driver --assets 100000`.

Plans, deals jobs out over Ray, looks for duplicates and writes what belongs to the whole, as a build does; the jobs
write ledger parts of the right size and do nothing else. For the duplicates every asset counts as a sample.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import BuildConfig
from pipeline.dataset.lock import lock
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import commit
from pipeline.dataset.state import finish, finished, settle, writable
from pipeline.executor.job import JobReport
from pipeline.executor.progress import Progress
from pipeline.executor.ray_executor import run_jobs
from pipeline.executor.scheduler import RunConfig
from pipeline.filter.duplicates import known_ahead, unsettled
from pipeline.filter.signature import NUMBERS
from schemas.dataset import LedgerPart, part_path, read_ledger_part
from schemas.ledger import Measurements, Outcome, Reason, Status, counts_of
from schemas.mesh import Attribution, MeshRef
from schemas.plan import ShardJob


def refs(count: int) -> Iterator[MeshRef]:
    """Yield references like Objaverse's."""
    for number in range(count):
        uid = f"{number:032x}"
        page = f"https://example.org/3d-models/{uid}"
        yield MeshRef(
            uid=uid,
            uri=f"objaverse://glbs/000-{number % 160:03d}/{uid}.glb",
            source=Attribution(name=f"Model {number}", licence="CC-BY-4.0", attribution=f"Author {number}, {page}"),
            caption=f"Model {number}; chair, wood, old, scanned",
        )


def note_down(
    job: ShardJob, out: Path, cfg: BuildConfig, *, may_commit: Callable[[], bool], **_: object
) -> JobReport | None:
    """A job whose every asset is turned away after everything was measured."""
    kinds: dict[str, Any] = {"int | None": 1000, "float | None": 0.123456789, "str | None": "authored"}
    measured = Measurements(**{f.name: kinds[str(f.type)] for f in fields(Measurements)})
    outcomes = [
        Outcome(
            uid=ref.uid,
            uri=ref.uri,
            sha256=ref.uid * 2,
            status=Status.REJECTED,
            regime=None,
            reason=Reason.UNTEXTURED,
            detail="min_color_std: standard deviation of colour 0.004, at least 0.01",
            shard=None,
            seconds=1.0,
            measurements=measured,
        )
        for ref in job.refs
    ]
    if not may_commit():
        return None
    commit(out, job.index, outcomes, {})
    return JobReport(job=job.index, planned=len(job.refs), counts=counts_of(outcomes), stage_seconds=0.0, shards=())


def as_samples(out: Path, jobs: list[ShardJob]) -> Iterator[LedgerPart]:
    """The ledger, with signatures and verdicts under which every asset counts and none is like another."""
    rng = np.random.default_rng(0)
    for job in jobs:
        part = read_ledger_part(part_path(out, job.index))
        signatures = (rng.integers(0, 2**16, NUMBERS).astype(">u2").tobytes().hex() for _ in part.outcomes)
        outcomes = tuple(
            replace(one, status=Status.ACCEPTED, measurements=replace(one.measurements, signature=signature))
            for one, signature in zip(part.outcomes, signatures, strict=True)
        )
        yield replace(part, outcomes=outcomes)


def memory_mb(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (the most so far) of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def growth(assets: int, out: Path, workers: int = 2) -> float:
    """Most MB by which this process grows in a build of that many assets (`pipeline.executor.build`)."""
    before, cfg = memory_mb("VmRSS"), BuildConfig()
    with writable(out), lock(out):
        jobs = plan_jobs(refs(assets), cfg.assets_per_job)
        info = settle(out, jobs, cfg.recorded())
        assert not finished(out, jobs)
        progress = Progress(jobs=len(jobs), planned=assets, notify=lambda event: None, clock=time.monotonic)
        jobs = known_ahead(jobs, jobs, cfg.duplicates)
        run_jobs(jobs, out, cfg, RunConfig(), workers, None, progress, note_down)
        assert not unsettled(jobs, as_samples(out, jobs), cfg.duplicates)
        report = finish(out, info, jobs, len(jobs))
    assert report.rejected == progress.counts.rejected == assets
    return memory_mb("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        grown = growth(options.assets, Path(name) / "out")
        print(f"{options.assets} assets: the driver grew by {grown:.0f} MB, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
