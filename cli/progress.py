"""Progress for whoever is watching: a bar on a terminal, one JSON line per event otherwise."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.output import BuildEvent


def log_event(event: str, **facts: Any) -> None:
    """One JSON line on standard output."""
    sys.stdout.write(json.dumps({"event": event} | facts) + "\n")
    sys.stdout.flush()


@contextmanager
def bar(description: str, total: int | None, unit: str) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on a terminal; yields `update(done, note)`. Silent otherwise: events go to the log instead."""
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
        yield lambda done, note: progress.update(task, completed=done, note=note)


def training_note(row: dict[str, Any]) -> str:
    """What stands beside the bar of a training run: step, loss, and how fast it goes where that is known."""
    loss = "no number" if row["loss"] is None else f"{row['loss']:.3f}"
    rate = f", {row['samples_per_s']:.3g} samples/s, waits {row['wait']:.0%}" if "samples_per_s" in row else ""
    return f"step {row['step']}, loss {loss}{rate}"


@contextmanager
def build_progress() -> Iterator[Callable[[BuildEvent], None]]:
    """What `pipeline.run.build` reports to: assets done out of assets planned."""
    with bar("building", None, "assets") as update:
        terminal = sys.stderr.isatty()

        def notify(event: BuildEvent) -> None:
            if terminal:
                update(event.assets_done, event.detail)
            else:
                log_event(**asdict(event))

        yield notify
