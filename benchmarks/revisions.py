"""Time a training step of the tiny preset in two checkouts, side by side: `python -m benchmarks.revisions OTHER`.

OTHER is a checkout of another revision (`git worktree add OTHER REVISION`). Each turn is a process of its own that
trains the preset on 64-pixel views and 128-texel maps with one thread, this checkout and the other one in turn;
processor and wall time of a whole step, everything around it included, medians of all turns."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from schemas.sample import Regime
from tests.support.small_dataset import write_dataset

HERE = Path(__file__).resolve().parents[1]
WARM_UP = 4
"""Steps that do not count."""
VIEW_SIZE, UV_SIZE = 64, 128

STEPS = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from training.config import preset
from training.train import train

tiny = preset("tiny")
run = replace(tiny.run, directory=Path(sys.argv[2]), max_steps=int(sys.argv[3]), threads=1, logger="none")
validation = replace(tiny.validation, every=0)
cfg = replace(tiny, data=replace(tiny.data, directory=Path(sys.argv[1])), run=run, validation=validation)
times = []
train(cfg, lambda row: times.append((time.process_time(), time.perf_counter())))
print(json.dumps([[after - before for before, after in zip(a, b)] for a, b in zip(times, times[1:])]))
"""


def measure(checkout: Path, dataset: Path, steps: int) -> list[tuple[float, float]]:
    """Train in a checkout; returns processor and wall seconds of each step that counts."""
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "-W", "ignore", "-c", STEPS, str(dataset), f"{run}/run", str(steps)]
        ended = subprocess.run(
            command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, check=True
        )
    found = json.loads(ended.stdout.splitlines()[-1])
    return [(processor, wall) for processor, wall in found[WARM_UP:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {"this": [], "other": []}
    checkouts = {"this": HERE, "other": options.other.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "data"
        write_dataset(dataset, [[(f"t{number}", Regime.TEXTURED) for number in range(8)]], VIEW_SIZE, UV_SIZE)
        for _ in range(options.rounds):
            for name, checkout in checkouts.items():
                times[name] += measure(checkout, dataset, options.steps)
    print("| checkout | steps | processor, ms a step | wall, ms a step |\n|---|---:|---:|---:|")
    for name, of_steps in times.items():
        processor, wall = (1000 * median(values) for values in zip(*of_steps, strict=True))
        print(f"| {name} | {len(of_steps)} | {processor:.1f} | {wall:.1f} |")


if __name__ == "__main__":
    main()
