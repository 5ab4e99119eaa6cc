"""Results of an ablation: intervals over seeds, a table and a plot."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from cli.progress import log_event
from cli.table import print_table
from schemas.dataset import write_file
from training.metrics.distribution import Interval

MAIN = "render_psnr"
"""The figure that can be compared between UV maps of different resolution: what a user sees of the mesh."""
SHOWN = {
    "render_psnr": "renders, dB",
    "uv_psnr": "UV map, dB",
    "unseen_psnr": "unseen texels, dB",
    "cross_view_step": "step between views",
    "seam_step": "step at seams",
}
ROW = 34
"""Pixels of the plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One finished run."""

    cell: str
    seed: int
    loss: float
    """Mean of its last tenth."""
    seconds: float
    figures: dict[str, float]
    """Means over the held-out meshes, by the names of `cli.evaluate.METRICS`."""
    meshes: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant over its seeds."""

    cell: str
    seeds: int
    figures: dict[str, Interval]
    against_base: Interval | None
    """Difference of `MAIN` to the base with the same seed; None for the base itself."""

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.against_base is not None and not self.against_base.low <= 0 <= self.against_base.high


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of Student's t; without bounds where one seed is all there is."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(value=mean, low=-math.inf, high=math.inf)
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(value=mean, low=mean - half, high=mean + half)


def table_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row a variant, in the order in which they were run."""
    base = {outcome.seed: outcome.figures[MAIN] for outcome in outcomes if outcome.cell == "base"}
    rows = []
    for cell in dict.fromkeys(outcome.cell for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.cell == cell]
        figures = {name: [run.figures[name] for run in runs if name in run.figures] for name in SHOWN}
        gains = [run.figures[MAIN] - base[run.seed] for run in runs if run.seed in base]
        rows.append(
            Row(
                cell=cell,
                seeds=len(runs),
                figures={name: over_seeds(values) for name, values in figures.items() if values},
                against_base=over_seeds(gains) if cell != "base" and gains else None,
            )
        )
    return rows


def in_words(interval: Interval, sign: str = "") -> str:
    bounds = f" [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:{sign}.4g}{bounds}"


def cells_of(row: Row) -> list[str]:
    """The row as text."""
    gain = "" if row.against_base is None else in_words(row.against_base, "+")
    verdict = "" if row.against_base is None else "differs" if row.differs else "no difference shown"
    figures = [in_words(row.figures[name]) if name in row.figures else "" for name in SHOWN]
    return [row.cell, str(row.seeds), *figures, gain, verdict]


COLUMNS = ("variant", "seeds", *SHOWN.values(), "renders against base, dB", "verdict")


def markdown(rows: Sequence[Row], cfg: dict[str, Any]) -> str:
    lines = [
        f"Tiny preset, {cfg['steps']} steps a run, {cfg['held_out_meshes']} held-out procedural meshes textured from "
        "one view. Means over seeds with 95 % intervals (Student's t); the difference to the base is paired by seed.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *("| " + " | ".join(cells_of(row)) + " |" for row in rows),
        "",
        "UV-map figures of `uv-half` are at half the resolution and not comparable; renders are.",
    ]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], width: int = 640) -> str:
    """A dot and its whiskers for every variant, `MAIN` along the axis, as SVG; the base as a line."""
    intervals = [row.figures[MAIN] for row in rows]
    finite = [x for i in intervals for x in (i.value, i.low, i.high) if math.isfinite(x)]
    low, high = min(finite), max(finite)
    span, left = max(high - low, 1e-6), 140
    height = ROW * (len(rows) + 1)

    def x(value: float) -> float:
        return left + (width - left - 30) * (min(max(value, low), high) - low) / span

    parts = []
    for number, (row, interval) in enumerate(zip(rows, intervals, strict=True)):
        y = ROW * (number + 0.5)
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(row.cell)}</text>')
        if math.isfinite(interval.low):
            ends = f'x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}"'
            parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="currentColor" stroke-width="2"/>')
        color = "#c33" if row.differs else "currentColor"
        parts.append(f'<circle cx="{x(interval.value):.1f}" cy="{y}" r="5" fill="{color}"/>')
        if row.cell == "base":
            at = f"{x(interval.value):.1f}"
            parts.append(
                f'<line x1="{at}" x2="{at}" y1="0" y2="{ROW * len(rows)}" stroke="#999" stroke-dasharray="4"/>'
            )
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{height - 10}" text-anchor="{anchor}">{value:.2f} dB</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" '
        f'font-size="13" aria-label="PSNR of renders by variant">{"".join(parts)}</svg>\n'
    )


def as_json(row: Row) -> dict[str, Any]:
    """Bounds that one seed cannot give are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return plain(asdict(row) | {"differs": row.differs})


def write_results(out: Path, outcomes: Sequence[Outcome], cfg: dict[str, Any]) -> None:
    """table.md, table.json and plot.svg, and the table on the terminal."""
    rows = table_rows(outcomes)
    record = {"config": cfg, "rows": [as_json(row) for row in rows], "runs": [asdict(outcome) for outcome in outcomes]}
    write_file(out / "table.md", markdown(rows, cfg).encode())
    write_file(out / "table.json", json.dumps(record, indent=1).encode() + b"\n")
    write_file(out / "plot.svg", plot(rows).encode())
    narrow = [COLUMNS.index(name) for name in ("variant", "seeds", SHOWN[MAIN], COLUMNS[-2], COLUMNS[-1])]
    printed = [[cells_of(row)[column] for column in narrow] for row in rows]
    print_table([COLUMNS[column] for column in narrow], printed, title=f"{len(outcomes)} runs ({out}/table.md)")
    log_event("ablated", runs=len(outcomes), table=str(out / "table.md"))
