"""Progress for whoever is watching: a bar on a terminal, one JSON line per event otherwise."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.progress import BuildEvent


def log_event(event: str, **facts: Any) -> None:
    """One JSON line on standard output."""
    sys.stdout.write(json.dumps({"event": event} | facts) + "\n")
    sys.stdout.flush()


@contextmanager
def bar(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal; yields `update(done, note, total=None)`. Silent otherwise: events go to the log
    instead."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note, total=None: progress.update(task, completed=done, note=note, total=total)


def training_note(row: dict[str, Any]) -> str:
    """What stands beside the bar of a training run: step, loss, and how fast it goes where that is known."""
    loss = "no number" if row["loss"] is None else f"{row['loss']:.3f}"
    rate = f", {row['samples_per_s']:.3g} samples/s, waits {row['wait']:.0%}" if "samples_per_s" in row else ""
    return f"step {row['step']}, loss {loss}{rate}"


@contextmanager
def build_progress() -> Iterator[Callable[[BuildEvent], None]]:
    """What `pipeline.run.build` reports to: assets done out of assets planned, with rate, time to go and what became of
    them."""
    with bar("building", None, "assets") as update:
        terminal = sys.stderr.isatty()

        def notify(event: BuildEvent) -> None:
            if not terminal:
                log_event(**asdict(event))
                return
            update(event.assets_done, build_note(event), event.planned)
            if event.event == "started" and event.dashboard:
                Console(stderr=True).print(f"Ray's dashboard: {event.dashboard}", highlight=False)
            if event.event in ("waiting", "compiling"):
                Console(stderr=True).print(escape(event.detail), highlight=False)

        yield notify


def build_note(event: BuildEvent) -> str:
    """What stands beside the bar of a build."""
    parts = [f"{event.assets_per_s:.3g}/s"] if event.assets_per_s is not None else []
    parts.append(f"{event.textured} textured, {event.mv_only} views only")
    parts.append(f"{event.rejected} rejected, {event.failed} failed")
    if event.event != "job":  # an ordinary job is in these figures
        parts.append(event.detail)
    return "; ".join(part for part in parts if part)
