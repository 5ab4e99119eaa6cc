"""The fault matrix: tests that count how often a promise held. `make trust` runs them at full counts and prints the
matrix; without `--full-counts` they run shortened, among all other tests."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

PROMISES = {
    1: "SIGKILL of driver, worker or child anywhere in a build",
    2: "failure before and after every write, flush and rename",
    3: "shard cut off at any length",
    4: "flipped bits in shards, index and Parquet files",
    5: "exception in the middle of a shard",
    6: "same bytes from other workers, order and day",
    7: "assets that crash, exit, hang or fork without end",
    8: "child that ignores SIGTERM, with descendants",
    9: "no process left after the SIGKILL of a worker",
    10: "memory bomb",
    11: "full disk, I/O errors, read-only folder",
    12: "two builders on one output",
    13: "changed configuration or input",
    14: "every asset in one row; retry touches its reason alone",
    15: "hostile files through preflight",
    16: "paths and addresses that lead out of an asset",
    17: "asset that degrades without a word",
    18: "mutated files through preflight and Blender",
    19: "hostile names",
    20: "hostile shards",
    21: "SIGKILL in training, resumed to equal weights",
    22: "1, 2 and 1 ranks see the same samples",
    23: "SIGKILL while a checkpoint is saved",
    24: "SIGTERM, SIGUSR1, SIGINT and NaN in training",
    25: "uneven, corrupt and exhausted data on two ranks",
    26: "dataset that names programs, or raises limits",
    27: "assets that hang or bloat whoever plans",
    28: "decoder that reaches for other processes and files, memory and disk",
    29: "links in a dataset or a run directory",
    30: "passwords in URLs and paths of this machine in records",
    31: "stores and file systems that stop answering",
    32: "listening sockets of a local build",
}
"""The faults, by number."""
_PROPERTY = "trust"


@dataclass(frozen=True, kw_only=True)
class Held:
    """Number of runs of one test in which a promise held."""

    number: int
    held: int
    runs: int
    seed: int
    seconds: float = 0.0


class Trust:
    """One test's side of the matrix."""

    def __init__(self, number: int, request: pytest.FixtureRequest) -> None:
        self.number = number
        self.full: bool = request.config.getoption("--full-counts")
        self.seed: int = request.config.getoption("--trust-seed")
        self._properties = request.node.user_properties

    def count(self, *, full: int, short: int) -> int:
        """Return the number of cases to run: that of the promise, or fewer."""
        return full if self.full else short

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number])

    def held(self, held: int, runs: int) -> None:
        """Record a count, before asserting anything about it."""
        entry = Held(number=self.number, held=int(held), runs=int(runs), seed=self.seed)  # numpy's do not travel
        self._properties.append((_PROPERTY, asdict(entry)))


@pytest.fixture
def trust(request: pytest.FixtureRequest) -> Trust:
    """For tests marked `trust(number)`: counts, randomness, and where to record how often the promise held."""
    return Trust(request.node.get_closest_marker("trust").args[0], request)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trust")
    group.addoption("--full-counts", action="store_true", help="run the fault matrix at full counts")
    group.addoption("--trust-seed", type=int, default=2507, help="seed of the fault matrix")
    group.addoption("--trust-table", type=Path, help="write the matrix as Markdown to this file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    table = matrix(list(_recorded(terminalreporter)))
    if not config.getoption("--full-counts"):
        return
    terminalreporter.section("fault matrix")
    terminalreporter.write_line(table)
    if path := config.getoption("--trust-table"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(table + "\n")


def _recorded(reporter: pytest.TerminalReporter) -> Iterator[Held]:
    for reports in reporter.stats.values():
        for report in reports:
            for name, entry in getattr(report, "user_properties", ()):
                if name == _PROPERTY and report.when == "call":
                    yield Held(**entry | {"seconds": report.duration})


def matrix(recorded: list[Held]) -> str:
    """The counts as a Markdown table, every promise in its row, those without a count included."""
    lines = ["| # | fault | held | of | seed | seconds |", "|---|---|---|---|---|---|"]
    for number, title in PROMISES.items():
        found = [entry for entry in recorded if entry.number == number]
        if not found:
            lines.append(f"| {number} | {title} | not run | | | |")
            continue
        held, runs = sum(entry.held for entry in found), sum(entry.runs for entry in found)
        seconds, seeds = sum(entry.seconds for entry in found), sorted({entry.seed for entry in found})
        lines.append(f"| {number} | {title} | {held:,} | {runs:,} | {seeds[0]} | {seconds:.0f} |")
    return "\n".join(lines)
