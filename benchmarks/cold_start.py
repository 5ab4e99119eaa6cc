"""Time to the first asset of a build, on a machine without compiled kernels and on one with them:
`python -m benchmarks.cold_start [--repository DIR]`. For an idle machine; DIR is another checkout to compare with.

Every start is a `seqtex build` of one procedural asset by two workers, with a cache of kernels of its own that is empty
before the first one. The first row is there when the job's ledger part is. Processor seconds are those of the build and
of all that it starts, Ray's processes included.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.sandbox.linux import adopt_orphans
from pipeline.sandbox.policy import REPO

LOOK_S = 0.02
"""Seconds between looks for the first row."""
OPTIONS = ("--source", "procedural:1", "--workers", "2", "--views.resolution", "64", "--uv.resolution", "128")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Seconds of one build."""

    first_row: float
    """Seconds from the command to the ledger row of the asset."""
    whole: float
    """Seconds until the command ends."""
    processor: float
    """Processor seconds of all processes."""


def timed_start(repository: Path, out: Path, kernels: Path) -> Start:
    """Build one asset with the code of a checkout."""
    command = [sys.executable, "-m", "seqtex.cli.main", "build", "--out", str(out), *OPTIONS]
    environment = os.environ | {"PYTHONPATH": str(repository), "NUMBA_CACHE_DIR": str(kernels)}
    before, begun = _processor_seconds(), time.monotonic()
    build = subprocess.Popen(command, cwd=repository, env=environment, stdout=subprocess.DEVNULL)
    while not list((out / "ledger").glob("*.parquet")):
        if build.poll():
            raise SystemExit(f"the build ended with exit code {build.returncode}")
        time.sleep(LOOK_S)
    first_row = time.monotonic() - begun
    build.wait()
    whole = time.monotonic() - begun
    _reap()
    return Start(first_row=first_row, whole=whole, processor=_processor_seconds() - before)


def _reap() -> None:
    """Wait for the processes that the build has left: they count once they have ended."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repository", type=Path, default=REPO, help="checkout whose start is measured")
    parser.add_argument("--warm", type=int, default=3, help="starts with a full cache")
    options = parser.parse_args()
    adopt_orphans()
    print(f"load before: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    print("| start | first row, s | whole, s | processor, s |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="cold-start-") as name:
        for number in range(1 + options.warm):
            start = timed_start(options.repository.resolve(), Path(name) / f"out-{number}", Path(name) / "kernels")
            label = f"warm {number}" if number else "cold"
            print(f"| {label} | {start.first_row:.1f} | {start.whole:.1f} | {start.processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
