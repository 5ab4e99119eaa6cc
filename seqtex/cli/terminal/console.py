"""The log of a command on standard output: plain lines for people, JSON lines for programs."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from schemas.errors import printable, redacted, redacted_values
from seqtex.cli.terminal import sentences as plain

if TYPE_CHECKING:
    from pipeline.executor.progress import BuildEvent  # half a second, which the first line must not wait for

WIDE = 1000
"""Columns in a pipe or file, so that a row stays on its line."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> None:
    """Print a table, numbers to the right. Cells show as they are: their text may come from strangers. On a narrow
    terminal words are folded, numbers stay whole, and nothing is cut off."""
    console, table = Console(width=None if sys.stdout.isatty() else WIDE), Table()
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        digits = max((len(written(row[index])) for row in rows), default=0) if numeric else None
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=digits)
    for row in rows:
        table.add_row(*map(written, row))
    if title:
        console.print(Text(printable(title), style="table.title"), soft_wrap=True)
    console.print(table, crop=False)


def written(cell: object) -> str:
    """Write a cell of a table."""
    return f"{cell:.2f}" if isinstance(cell, float) else escape(printable(str(cell)))


LogFormat = Literal["plain", "json"]


class Log:
    """The log of the running command on standard output, in the format that its `--log` names."""

    def __init__(self) -> None:
        self.begin("plain")

    def begin(self, log_format: LogFormat, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the log of a command: time counts from here."""
        self.format = log_format
        self._clock, self._start = clock, clock()
        self._throttle, self._lock = plain.Throttle(), threading.Lock()
        self._work: tuple[str, float | None] | None = None
        self.drawn = 0
        """Bars on the terminal."""

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._start

    def event(self, event: str, **facts: Any) -> None:
        """Write one line: a sentence, or a JSON object."""
        if self.format == "json":
            self._write(json.dumps(redacted_values({"event": event} | facts)) + "\n")
        else:
            self._write(plain.line(self.elapsed, plain.sentence(event, facts)))

    def progress(self, text: str, share: float | None) -> None:
        """Write a plain line about work in progress if one is due (`plain.Throttle`) and no bar shows the same."""
        self.working_on(text, share)
        self.repeat()

    def working_on(self, text: str, share: float | None) -> None:
        """Name the work in progress for the next line that is due."""
        self._work = text, share

    def at_rest(self) -> None:
        """Write no more lines about work: from here on the command waits for others."""
        self._work = None

    def repeat(self) -> None:
        """Write the line about work in progress again if one is due: the time before it moves while nothing else
        does."""
        shown = self.drawn and sys.stdout.isatty()
        with self._lock:
            if self._work and self.format == "plain" and not shown:
                text, share = self._work
                if self._throttle.due(self.elapsed, share):
                    self._write(plain.line(self.elapsed, text))

    def _write(self, line: str) -> None:
        sys.stdout.write(redacted(line))
        sys.stdout.flush()


log = Log()
begin_log, log_event = log.begin, log.event


def logs_json() -> bool:
    """Return whether `--log json` was given: for commands whose result is a table or text otherwise."""
    return log.format == "json"


LOG_EVERY = 50
"""Training steps between two JSON lines."""
BEFORE_THE_END = 0.99
"""Largest share of a build's progress lines: the last line is `done`, which follows."""


FIRST_S = 2.0
"""Seconds before a command's first sign of life: one that is refused for its options has ended by then."""
REPEAT_S = 0.2
"""Seconds between two looks at whether a line is due."""
ENDED = ("assets", "job")
WORKING = (*ENDED, "listing", "starting", "finishing")
"""Events of a build that come often, or say only that it is at work."""


@contextmanager
def terminal_bar(
    description: str, total: int | None, unit: str, estimated: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal; yields `draw(done, note, total=None)`. Draws nothing elsewhere, or with
    `--log json`. estimated: show the time that is left; else the notes do."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if estimated else []),
        TextColumn("{task.fields[note]}", markup=False),
    )
    disabled = logs_json() or not sys.stderr.isatty()
    # Lines for the same terminal appear above the bar; those for a pipe or file go there.
    above = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=disabled, redirect_stdout=above) as progress:
        task = progress.add_task(printable(description), total=total, note="")
        log.drawn += not disabled
        try:
            yield lambda done, note, total=None: progress.update(
                task, completed=done, note=printable(note), total=total
            )
        finally:
            log.drawn -= not disabled


@contextmanager
def signs_of_life(text: str) -> Iterator[None]:
    """Write a line about the work in progress, `text` at first, as soon as it takes `FIRST_S`, and again whenever one
    is due (`Log.repeat`)."""
    ended = threading.Event()

    def repeat() -> None:
        wait = FIRST_S
        while not ended.wait(wait):
            log.repeat()
            wait = REPEAT_S

    log.working_on(text, None)
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def compiles(detail: str) -> None:
    """Log that kernels are compiled (`pipeline.executor.compile_kernels.compiling`)."""
    log_event("compiling", detail=detail)


@contextmanager
def bar(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal, elsewhere a plain line now and then; yields `update(done, note, total=None)`.
    Shows nothing with `--log json`."""
    pace, known = plain.Pace(), total
    with terminal_bar(description, total, unit) as draw:

        def update(done: int, note: str, total: int | None = None) -> None:
            nonlocal known
            known = known if total is None else total
            draw(done, note, total)
            text = plain.working(description, done, known, unit, pace.rate(log.elapsed, done), note)
            log.progress(text, done / known if known else None)

        yield update


def training_note(row: dict[str, Any]) -> str:
    """Return the note beside the bar of a training run: step, loss, and its speed if that is known."""
    loss = "no number" if row["loss"] is None else f"{row['loss']:.3f}"
    rate = f", {row['samples_per_s']:.3g} samples/s, waits {row['wait']:.0%}" if "samples_per_s" in row else ""
    return f"step {row['step']}, loss {loss}{rate}"


FIRST_STEP = "making the model and the first step"
"""Work of a training run before it can report."""


@contextmanager
def training_progress(max_steps: int | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show the rows of `training.train.train` as a bar, as a plain line now and then, or as a JSON line every 50 steps.
    max_steps: None if a time limit may end the run before."""
    steps, shares = plain.Pace(), plain.Pace()
    with terminal_bar("training", 100, "%") as draw:
        draw(0, FIRST_STEP, 100)
        log.working_on(f"training  {FIRST_STEP}", None)

        def report(row: dict[str, Any]) -> None:
            share = row["progress"]
            draw(int(100 * share), training_note(row))
            if logs_json() and row["step"] % LOG_EVERY == 0:
                log_event("step", **row)
            rate, pace = steps.rate(log.elapsed, row["step"]), shares.rate(log.elapsed, share)
            log.progress(plain.training(row, max_steps, rate, (1 - share) / pace if pace else None), share)

        yield report


@contextmanager
def build_progress() -> "Iterator[Callable[[BuildEvent], None]]":
    """Show the events of `pipeline.executor.build`: assets done out of those planned, rate, time left and outcomes.
    Work in progress gives a plain line now and then, other events always."""
    with terminal_bar("building", None, "assets", estimated=False) as draw:
        log.working_on("planning  the build", None)

        def notify(event: "BuildEvent") -> None:
            draw(event.assets_done, build_note(event), event.planned)
            if event.event not in WORKING or logs_json():
                log_event(**asdict(event))
            if event.event in WORKING:
                share = min(event.assets_done / event.planned, BEFORE_THE_END) if event.event in ENDED else None
                log.progress(plain.sentence(event.event, asdict(event)), share)
            elif event.planned:
                log.working_on(plain.building(asdict(event)), None)

        yield notify


def build_note(event: "BuildEvent") -> str:
    """Return the note beside the bar of a build."""
    parts = [", ".join([*plain.speed(event.assets_per_s), *plain.left(event.eta_s)]), plain.outcomes(asdict(event))]
    if event.event not in ENDED or event.assets_per_s is None:  # else they are in these figures
        parts.append(event.detail)
    return "; ".join(part for part in parts if part)
