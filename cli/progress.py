"""Progress for whoever is watching: a bar on a terminal, plain lines in a pipe, JSON lines where they are asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli import plain
from cli.log import elapsed, log_event, log_progress, logs_json
from pipeline.progress import BuildEvent
from schemas.text import printable

LOG_EVERY = 50
"""Steps of training between two JSON lines."""
BEFORE_THE_END = 0.99
"""A share of jobs that makes no last line: `done`, which follows, is that."""


@contextmanager
def terminal_bar(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal; yields `draw(done, note, total=None)`. Draws nothing elsewhere, or with JSON
    lines."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    disabled = logs_json() or not sys.stderr.isatty()
    # Lines for the same terminal appear above the bar; those for a pipe or file go there.
    above = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=disabled, redirect_stdout=above) as progress:
        task = progress.add_task(printable(description), total=total, note="")
        yield lambda done, note, total=None: progress.update(task, completed=done, note=printable(note), total=total)


@contextmanager
def bar(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, now and then a plain line elsewhere; yields `update(done, note, total=None)`.
    Silent with JSON lines: events go to the log instead."""
    pace, known = plain.Pace(), total
    with terminal_bar(description, total, unit) as draw:

        def update(done: int, note: str, total: int | None = None) -> None:
            nonlocal known
            known = known if total is None else total
            draw(done, note, total)
            text = plain.working(description, done, known, unit, pace.rate(elapsed(), done), note)
            log_progress(text, done / known if known else None)

        yield update


def training_note(row: dict[str, Any]) -> str:
    """What stands beside the bar of a training run: step, loss, and how fast it goes where that is known."""
    loss = "no number" if row["loss"] is None else f"{row['loss']:.3f}"
    rate = f", {row['samples_per_s']:.3g} samples/s, waits {row['wait']:.0%}" if "samples_per_s" in row else ""
    return f"step {row['step']}, loss {loss}{rate}"


@contextmanager
def training_progress(max_steps: int | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Receives the rows of `training.fit.train`: a bar, now and then a plain line, or a JSON line every 50 steps.
    `max_steps`: None where a time limit may end the run before."""
    steps, shares = plain.Pace(), plain.Pace()
    with terminal_bar("training", 100, "%") as draw:

        def report(row: dict[str, Any]) -> None:
            share = row["progress"]
            draw(int(100 * share), training_note(row))
            if logs_json() and row["step"] % LOG_EVERY == 0:
                log_event("step", **row)
            rate, pace = steps.rate(elapsed(), row["step"]), shares.rate(elapsed(), share)
            log_progress(plain.training(row, max_steps, rate, (1 - share) / pace if pace else None), share)

        yield report


@contextmanager
def build_progress() -> Iterator[Callable[[BuildEvent], None]]:
    """Receives the events of `pipeline.run.build`: assets done out of assets planned, with rate, time to go and what
    became of them. Jobs that end have a plain line now and then, other events always."""
    with terminal_bar("building", None, "assets") as draw:

        def notify(event: BuildEvent) -> None:
            draw(event.assets_done, build_note(event), event.planned)
            if event.event != "job" or logs_json():
                log_event(**asdict(event))
            else:
                log_progress(plain.building(asdict(event)), min(event.assets_done / event.planned, BEFORE_THE_END))

        yield notify


def build_note(event: BuildEvent) -> str:
    """What stands beside the bar of a build."""
    parts = [f"{event.assets_per_s:.3g}/s"] if event.assets_per_s is not None else []
    parts.append(f"{event.textured} textured, {event.mv_only} views only")
    parts.append(f"{event.rejected} rejected, {event.failed} failed")
    if event.event != "job":  # an ordinary job is in these figures
        parts.append(event.detail)
    return "; ".join(part for part in parts if part)
