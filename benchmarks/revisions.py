"""Time a training step of the tiny preset in two checkouts, side by side: `python -m benchmarks.revisions OTHER`.

OTHER is a checkout of another revision (`git worktree add OTHER REVISION`). One process a checkout trains the preset on
64-pixel views and 128-texel maps with one thread. The two take turns of a few steps, and the one whose turn it is not
waits. Processor time counts all that the process did since its last turn, elapsed time the turn alone, and the row
"ratio" compares the two turns of a round, so that other work on the machine meets both. Medians of all rounds with
quartiles."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

from schemas.sample import Regime
from tests.support.small_dataset import write_dataset

HERE = Path(__file__).resolve().parents[1]
WARM_UP = 1
"""Turns that do not count."""
TURN = 4
"""Steps of a turn."""
VIEW_SIZE, UV_SIZE = 64, 128

STEPS = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from training.config import preset
from training.train import train

def turn(row):
    global processor, wall
    if row["step"] % STEPS == 0:
        now = time.process_time()
        print(json.dumps([now - processor, time.perf_counter() - wall]), flush=True)
        sys.stdin.readline()
        processor, wall = now, time.perf_counter()

data, directory, STEPS = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tiny = preset("tiny")
run = replace(tiny.run, directory=directory, max_steps=100_000, threads=1, logger="none")
cfg = replace(tiny, data=replace(tiny.data, directory=data), run=run, validation=replace(tiny.validation, every=0))
processor, wall = time.process_time(), time.perf_counter()
train(cfg, turn)
"""


def start(checkout: Path, dataset: Path, run: Path, log: Path) -> subprocess.Popen[str]:
    """Begin a training that stops after each turn until it gets a line."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STEPS, str(dataset), str(run), str(TURN)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
    )


def next_turn(process: subprocess.Popen[str], log: Path, go: bool) -> tuple[float, float]:
    """Return processor and elapsed milliseconds a step of the next turn.

    Raises:
        RuntimeError: the training ended.
    """
    assert process.stdin is not None and process.stdout is not None
    if go:
        process.stdin.write("\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("["):
            processor, wall = json.loads(line)
            return 1000 * processor / TURN, 1000 * wall / TURN
    raise RuntimeError(f"the training ended:\n{log.read_text()[-2000:]}")


def spread(values: list[float], digits: int) -> str:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=40, help="at most so many turns of each checkout")
    parser.add_argument("--seconds", type=float, default=150, help="after the warm-up; no round begins later")
    options = parser.parse_args()
    checkouts = {"this": HERE, "other": options.other.resolve()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        dataset, logs = Path(folder) / "data", {name: Path(folder) / f"{name}.log" for name in checkouts}
        write_dataset(dataset, [[(f"t{number}", Regime.TEXTURED) for number in range(8)]], VIEW_SIZE, UV_SIZE)
        processes = {}
        for name, checkout in checkouts.items():
            processes[name] = stack.enter_context(start(checkout, dataset, Path(folder) / name, logs[name]))
            stack.callback(processes[name].kill)
        for number in range(WARM_UP + options.rounds):
            if number == WARM_UP:
                warm = time.perf_counter()
            if number > WARM_UP + 1 and time.perf_counter() - warm > options.seconds:
                break
            order = list(processes) if number % 2 else list(reversed(processes))
            for name in order:
                times[name].append(next_turn(processes[name], logs[name], go=number > 0))
            row = "; ".join(f"{name} {times[name][-1][0]:.0f} / {times[name][-1][1]:.0f} ms" for name in times)
            print(f"{time.perf_counter() - began:5.0f} s, round {number}: {row}", file=sys.stderr, flush=True)
    counted = {name: turns[WARM_UP:] for name, turns in times.items()}
    counted["ratio"] = [(a / c, b / d) for (a, b), (c, d) in zip(counted["this"], counted["other"], strict=True)]
    print("| checkout | turns | processor, ms a step | elapsed, ms a step |\n|---|---:|---:|---:|")
    for name, turns in counted.items():
        processor, wall = (spread(list(values), 3 if name == "ratio" else 1) for values in zip(*turns, strict=True))
        print(f"| {name} | {len(turns)} | {processor} | {wall} |")


if __name__ == "__main__":
    main()
