"""A build of a million assets, simulated: `python -m benchmarks.scale`; with `--plan`, what builds of some sizes take.

Discrete events under the scheduling of `pipeline.executor.scheduler`; all that is simulated is time. An asset takes
what one of the table did, drawn at random: benchmarks/asset_costs.csv (`python -m benchmarks.costs`), or with
`--ledger` the ledger of a dataset. Nodes are lost at random and replaced, a few starts run slow. All from a seed.
"""

import argparse
import csv
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.executor.scheduler import Capacity, Loss, RunConfig, Schedule, Start
from schemas.dataset import read_ledger
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime

COSTS = Path(__file__).with_name("asset_costs.csv")
LOOK_S = 60.0
"""Seconds between looks for slow jobs once nothing waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Costs of single assets."""

    seconds: np.ndarray
    regimes: list[str]
    """Regimes of the samples, or reasons."""
    sizes: np.ndarray
    """Bytes of the sample; 0 without one, and where the source does not tell."""

    def bytes_per_asset(self) -> float:
        return float(self.sizes.mean())


@dataclass(frozen=True, kw_only=True)
class World:
    """Behaviour of the machines."""

    cores: int = 16
    """Workers of a node."""
    hours_to_loss: float = 24.0
    """Mean life of a node: preemption and failure together."""
    boot_s: float = 300.0
    """Seconds until its replacement works."""
    slow_share: float = 0.002
    """Share of starts that run slow."""
    slow_factor: float = 20.0
    job_overhead_s: float = 0.5
    """Seconds a job takes for its files, commit and the way through Ray."""


@dataclass(slots=True, kw_only=True)
class Result:
    """Result of one simulated build."""

    makespan_s: float = 0.0
    useful_s: float = 0.0
    """Worker seconds of starts that counted."""
    wasted_s: float = 0.0
    """Worker seconds of all other starts."""
    lost_nodes: int = 0
    second_starts: int = 0


@dataclass(slots=True)
class _Node:
    free: int
    running: dict[int, tuple[Start, float]] = field(default_factory=dict)
    """Starts by number, and when they began."""


class Simulation:
    """One build on `workers` workers."""

    def __init__(self, job_seconds: np.ndarray, job_size: int, workers: int, world: World, seed: int) -> None:
        refs = tuple(MeshRef(uid=str(number), uri="") for number in range(job_size))
        jobs = [ShardJob(index=number, refs=refs) for number in range(len(job_seconds))]
        self.world, self.job_seconds = world, job_seconds
        self.rng = np.random.default_rng([seed, job_size, workers])
        self.schedule = Schedule(jobs, RunConfig())
        self.result, self.now = Result(), 0.0
        self._events: list[tuple[float, int, str, int, int]] = []
        """Time, order, what, node, start."""
        self._order, self._ids = itertools.count(), itertools.count()
        self._nodes: dict[int, _Node] = {}
        self._queue: deque[Start] = deque()
        for _ in range(workers // world.cores):
            self._join()
        self._at(LOOK_S, "look")

    def run(self) -> Result:
        self._start_jobs()
        while self.schedule:
            self.now, _, what, node, number = heapq.heappop(self._events)
            if what == "end":
                self._end(node, number)
            elif what == "lost":
                self._lose(node)
            elif what == "join":
                self._join()
            else:
                self._at(LOOK_S, "look")
            self._start_jobs()
        self.result.makespan_s = self.now
        return self.result

    def _at(self, delay: float, what: str, node: int = -1, number: int = -1) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), what, node, number))

    def _join(self) -> None:
        name = next(self._ids)
        self._nodes[name] = _Node(self.world.cores)
        self._at(self.rng.exponential(self.world.hours_to_loss * 3600), "lost", name)

    def _start_jobs(self) -> None:
        capacity = Capacity(
            at_once=len(self._nodes) * self.world.cores, largest_gb=float("inf"), nodes=len(self._nodes)
        )
        while start := self.schedule.next(capacity, self.now):
            self.result.second_starts += start.beside is not None
            self._queue.append(start)
        free = deque((name, node) for name, node in self._nodes.items() if node.free)
        while self._queue and free:
            name, node = free[0]
            start = self._queue.popleft()
            slow = self.world.slow_factor if self.rng.random() < self.world.slow_share else 1.0
            self._at(slow * (self.job_seconds[start.job.index] + self.world.job_overhead_s), "end", name, start.number)
            node.running[start.number] = (start, self.now)
            node.free -= 1
            if not node.free:
                free.popleft()

    def _end(self, name: int, number: int) -> None:
        node = self._nodes.get(name)
        if node is None or number not in node.running:
            return  # lost or called off meanwhile
        start, began = node.running.pop(number)
        node.free += 1
        self.result.useful_s += self.now - began
        for other in self.schedule.done(start, self.now - began):
            self._call_off(other)

    def _call_off(self, start: Start) -> None:
        for node in self._nodes.values():
            if start.number in node.running:
                _, began = node.running.pop(start.number)
                node.free += 1
                self.result.wasted_s += self.now - began
                return
        self._queue.remove(start)

    def _lose(self, name: int) -> None:
        self.result.lost_nodes += 1
        for start, began in self._nodes.pop(name).running.values():
            self.result.wasted_s += self.now - began
            self.schedule.lost(start, Loss.NODE)
        self._at(self.world.boot_s, "join")


def read_costs(path: Path) -> Costs:
    """A table of `benchmarks.costs`, or the ledger of a dataset (a folder)."""
    if path.is_dir():
        parts = read_ledger(path)
        outcomes = [outcome for part in parts for outcome in part.outcomes]
        sizes = {shard.name: shard.bytes / shard.count for part in parts for shard in part.shards}
        return Costs(
            seconds=np.array([outcome.seconds for outcome in outcomes]),
            regimes=[str(outcome.regime or outcome.reason) for outcome in outcomes],
            sizes=np.array([sizes.get(outcome.shard or "", 0.0) for outcome in outcomes]),
        )
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return Costs(
        seconds=np.array([float(row["seconds"]) for row in rows]),
        regimes=[row["outcome"] for row in rows],
        sizes=np.array([float(row["bytes"]) for row in rows]),
    )


def simulate(costs: Costs, assets: int, job_size: int, workers: int, world: World, seed: int) -> Result:
    """The same assets in the same order, whatever the job size."""
    drawn = np.random.default_rng(seed).choice(costs.seconds, assets)
    drawn = np.pad(drawn, (0, -assets % job_size)).reshape(-1, job_size)
    return Simulation(drawn.sum(axis=1), job_size, workers, world, seed).run()


def print_simulations(costs: Costs, options: argparse.Namespace, world: World) -> None:
    print(
        f"{options.assets:,} assets, {costs.seconds.mean():.2f} s each on average; nodes of {world.cores} workers, ",
        end="",
    )
    print(
        f"lost every {world.hours_to_loss:g} h, back after {world.boot_s:g} s; {world.slow_share:.1%} of starts run ",
        end="",
    )
    print(f"{world.slow_factor:g} times as long; seed {options.seed}\n")
    print("| workers | assets a job | hours | best possible | utilisation | wasted work | nodes lost | second starts |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    best = costs.seconds.mean() * options.assets / 3600
    for workers, job_size in itertools.product(options.workers, options.job_sizes):
        found = simulate(costs, options.assets, job_size, workers, world, options.seed)
        useful, wasted = found.useful_s, found.wasted_s
        print(
            f"| {workers} | {job_size} | {found.makespan_s / 3600:.2f} | {best / workers:.2f} "
            f"| {best * 3600 / (found.makespan_s * workers):.1%} | {wasted / (useful + wasted):.2%} "
            f"| {found.lost_nodes} | {found.second_starts} |"
        )


def print_plan(costs: Costs, utilisation: float) -> None:
    """core hours = assets x seconds / 3600 / utilisation; hours = core hours / cores; TB = assets x bytes / 1e12."""
    textured = np.mean([regime == Regime.TEXTURED for regime in costs.regimes])
    views = np.mean([regime == Regime.MV_ONLY for regime in costs.regimes])
    print(f"seconds an asset: mean {costs.seconds.mean():.2f}, median {np.median(costs.seconds):.2f}, ", end="")
    print(
        f"95 % below {np.quantile(costs.seconds, 0.95):.2f}; {textured:.0%} textured, {views:.0%} views only; ", end=""
    )
    print(f"{costs.bytes_per_asset() / 1e6:.2f} MB an asset; utilisation {utilisation:.0%}\n")
    print("| assets | core hours | cores | hours | dataset, TB | jobs of 64 |")
    print("|---:|---:|---:|---:|---:|---:|")
    for assets, cores in ((10_000, 16), (500_000, 256), (10_000_000, 2048)):
        core_hours = assets * costs.seconds.mean() / 3600 / utilisation
        size = assets * costs.bytes_per_asset() / 1e12
        hours, jobs = core_hours / cores, -(-assets // 64)
        print(f"| {assets:,} | {core_hours:,.1f} | {cores} | {hours:.1f} | {size:.3g} | {jobs:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ledger", type=Path, default=COSTS, help="folder of a dataset, or a table of benchmarks.costs"
    )
    parser.add_argument("--assets", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--job_sizes", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--hours_to_loss", type=float, default=World.hours_to_loss, help="mean life of a node")
    parser.add_argument("--slow_share", type=float, default=World.slow_share, help="share of starts that run slow")
    parser.add_argument("--seed", type=int, default=2507)
    parser.add_argument("--plan", action="store_true", help="the planning table of docs/benchmarks.md instead")
    parser.add_argument("--utilisation", type=float, default=0.80, help="of the workers' time, for --plan")
    options = parser.parse_args()
    costs = read_costs(options.ledger)
    if options.plan:
        print_plan(costs, options.utilisation)
    else:
        print_simulations(costs, options, World(hours_to_loss=options.hours_to_loss, slow_share=options.slow_share))


if __name__ == "__main__":
    main()
