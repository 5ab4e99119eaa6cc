"""A whole build by one worker and by two: how much faster, and what all but the stages costs:
`OMP_NUM_THREADS=1 python -m benchmarks.build`. For an idle machine of two cores.

Assets: made-up ones, and the folder in $SEQTEX_ASSETS, else ../shared/assets, where it is there. Per job and asset the
time in the stages (load to encode) is taken in the asset's own process; the rest of a worker's time is sandbox, files
and commit, and Ray. Starting Ray, planning and the files that belong to the whole are told apart: they are the same for
a dataset of any size.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.config import BuildConfig
from pipeline.executor.build import build
from pipeline.executor.progress import BuildEvent
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.mesh import MeshRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of one build."""

    workers: int
    whole: float
    """Seconds from the call to the finished dataset."""
    working: float
    """Seconds from the first job's start, Ray being there, to the last job's end: all workers are to be busy."""
    jobs: float
    """Sum over jobs, in their workers."""
    stages: float
    """Sum over assets, in their children."""

    @property
    def overhead(self) -> float:
        """Share of the workers' time that is not the stages."""
        return 1 - self.stages / (self.workers * self.working)


def timed_build(refs: list[MeshRef], out: Path, cfg: BuildConfig, workers: int) -> Timed:
    events: list[tuple[float, BuildEvent]] = []
    begun = time.perf_counter()
    build(refs, out, cfg, workers, lambda event: events.append((time.perf_counter(), event)))
    whole = time.perf_counter() - begun
    jobs = [event for _, event in events if event.event == "job"]
    times = {name: [at for at, event in events if event.event == name] for name in ("started", "job")}
    return Timed(
        workers=workers,
        whole=whole,
        working=times["job"][-1] - times["started"][0],
        jobs=sum(event.job_seconds or 0 for event in jobs),
        stages=sum(event.stage_seconds or 0 for event in jobs),
    )


def assets(count: int, directory: Path) -> Iterator[MeshRef]:
    """Made-up ones, then the shared ones."""
    found = Path(os.environ.get("SEQTEX_ASSETS", "../shared/assets")).absolute()
    return chain(procedural(count, directory), folder(found) if found.is_dir() else ())


def line(timed: Timed) -> str:
    """One row of the table; shares are of the workers' time while there were jobs."""
    busy = timed.workers * timed.working
    sandbox, ray = (timed.jobs - timed.stages) / busy, (busy - timed.jobs) / busy
    cells = [f"{timed.workers}", f"{timed.whole:.1f}", f"{timed.working:.1f}", f"{timed.stages:.1f}"]
    return "| " + " | ".join([*cells, f"{sandbox:.1%}", f"{ray:.1%}", f"{timed.overhead:.1%}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=200, help="made-up assets, beside the shared ones")
    parser.add_argument("--rounds", type=int, default=1, help="builds of each kind; the fastest counts")
    parser.add_argument("--assets_per_job", type=int, default=16)
    options = parser.parse_args()
    cfg = BuildConfig(assets_per_job=options.assets_per_job)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        refs = list(assets(options.assets, directory / "assets"))
        build(refs[:: max(1, len(refs) // 16)], directory / "first", cfg, 2)  # kernels compiled, files read
        best: dict[int, Timed] = {}
        for number in range(options.rounds):
            for workers in (1, 2):
                timed = timed_build(refs, directory / f"{workers}-{number}", cfg, workers)
                best[workers] = min(timed, best.get(workers, timed), key=lambda one: one.whole)
    print(f"{len(refs)} assets, jobs of {options.assets_per_job}, {os.cpu_count()} cores\n")
    print("| workers | whole, s | with jobs, s | stages, s | sandbox, files, commit | Ray, idle | overhead |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for timed in best.values():
        print(line(timed))
    print(f"\ntwo workers against one: {best[1].working / best[2].working:.2f}x with jobs, ", end="")
    print(f"{best[1].whole / best[2].whole:.2f}x whole")


if __name__ == "__main__":
    main()
