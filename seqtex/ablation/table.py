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

from schemas.storage import write_file
from seqtex.ablation.materials import material_lines
from seqtex.cli.terminal.console import log_event, logs_json, print_table
from training.metrics.distribution import Interval

COMPARED = {"render_psnr": "renders, dB", "flow_uv": "UV flow loss"}
"""Metrics that compare variants. Renders are what a user sees, and comparable between UV maps of different resolution;
the loss of the UV map's flow at fixed noise varies far less between seeds."""
SHOWN = {
    **COMPARED,
    "flow_mv": "view flow loss",
    "uv_psnr": "UV map, dB",
    "unseen_psnr": "unseen texels, dB",
    "cross_view_step": "step between views",
    "seam_step": "step at seams",
}
BASELINES = {"nearest_psnr": "the nearest visible pixel's colour", "fill_psnr": "a fill with the mean colour"}
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
    """Means over the held-out meshes, by the names of `seqtex.gallery.comparison.METRICS`."""
    meshes: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant over its seeds."""

    cell: str
    seeds: int
    figures: dict[str, Interval]
    against_base: dict[str, Interval]
    """Differences of `COMPARED` to the base with the same seed; empty for the base itself."""

    def differs(self, name: str) -> bool:
        """Return whether the interval of the difference excludes zero."""
        gap = self.against_base.get(name)
        return gap is not None and not gap.low <= 0 <= gap.high


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of Student's t; without bounds where one seed is all there is."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(value=mean, low=-math.inf, high=math.inf)
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(value=mean, low=mean - half, high=mean + half)


def table_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row a variant, in the order in which they were run."""
    base = {outcome.seed: outcome.figures for outcome in outcomes if outcome.cell == "base"}
    rows = []
    for cell in dict.fromkeys(outcome.cell for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.cell == cell]
        names = (*SHOWN, *BASELINES)
        figures = {name: [run.figures[name] for run in runs if name in run.figures] for name in names}
        pairs = [(run.figures, base[run.seed]) for run in runs if run.seed in base and cell != "base"]
        gaps = {name: [mine[name] - its[name] for mine, its in pairs if name in mine] for name in COMPARED}
        rows.append(
            Row(
                cell=cell,
                seeds=len(runs),
                figures={name: over_seeds(values) for name, values in figures.items() if values},
                against_base={name: over_seeds(values) for name, values in gaps.items() if values},
            )
        )
    return rows


def in_words(interval: Interval, sign: str = "") -> str:
    bounds = f" [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:{sign}.4g}{bounds}"


def cells_of(row: Row) -> list[str]:
    """The row as text."""
    cells = [row.cell, str(row.seeds)]
    cells += [in_words(row.figures[name]) if name in row.figures else "" for name in SHOWN]
    for name in COMPARED:
        gap = row.against_base.get(name)
        verdict = "differs" if row.differs(name) else "no difference shown"
        cells += ["", ""] if gap is None else [in_words(gap, "+"), verdict]
    return cells


AGAINST = tuple(title for name in COMPARED.values() for title in (f"{name}, against base", "verdict"))
COLUMNS = ("variant", "seeds", *SHOWN.values(), *AGAINST)


def markdown(rows: Sequence[Row], cfg: dict[str, Any]) -> str:
    lines = [
        f"Tiny preset, {cfg['steps']} steps a run, {cfg['held_out_meshes']} held-out procedural meshes textured from "
        "one view. Means over seeds with 95 % intervals (Student's t); the difference to the base is paired by seed. "
        "Flow losses: of training, on the held-out meshes, at noise levels and with noise that are the same for all.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *("| " + " | ".join(cells_of(row)) + " |" for row in rows),
        "",
        baseline_line(rows),
        "",
        "UV-map figures and flow losses of `uv-half` are at half the resolution and not comparable; renders are.",
    ]
    return "\n".join(lines) + "\n"


def baseline_line(rows: Sequence[Row]) -> str:
    """Write in a sentence what the baselines reach on the same meshes."""
    figures = next(row.figures for row in rows if row.cell == "base")
    parts = [f"{title} {figures[name].value:.2f} dB" for name, title in BASELINES.items() if name in figures]
    return f"UV map without any learning: {', '.join(parts)}." if parts else ""


def plot(rows: Sequence[Row], width: int = 640) -> str:
    """Every figure of `COMPARED` in a panel of its own, as SVG: for each variant a dot and its whiskers, red where it
    differs from the base; the base as a line."""
    height = ROW * (len(rows) + 2)
    panels = [
        f'<g transform="translate(0 {height * number})">{panel(rows, name, width)}</g>'
        for number, name in enumerate(COMPARED)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * len(panels)}" role="img" '
        f'font-family="sans-serif" font-size="13" aria-label="{" and ".join(COMPARED.values())} by variant">'
        f"{''.join(panels)}</svg>\n"
    )


def panel(rows: Sequence[Row], name: str, width: int) -> str:
    rows = [row for row in rows if name in row.figures]
    intervals = [row.figures[name] for row in rows]
    finite = [x for i in intervals for x in (i.value, i.low, i.high) if math.isfinite(x)]
    if not finite:
        return ""
    low, high, left = min(finite), max(finite), 140
    span = max(high - low, 1e-6)

    def x(value: float) -> float:
        return left + (width - left - 30) * (min(max(value, low), high) - low) / span

    parts = []
    for number, (row, interval) in enumerate(zip(rows, intervals, strict=True)):
        y = ROW * (number + 0.5)
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(row.cell)}</text>')
        if math.isfinite(interval.low):
            ends = f'x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}"'
            parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="currentColor" stroke-width="2"/>')
        color = "#c33" if row.differs(name) else "currentColor"
        parts.append(f'<circle cx="{x(interval.value):.1f}" cy="{y}" r="5" fill="{color}"/>')
        if row.cell == "base":
            at, end = f"{x(interval.value):.1f}", ROW * len(rows)
            parts.append(f'<line x1="{at}" x2="{at}" y1="0" y2="{end}" stroke="#999" stroke-dasharray="4"/>')
    bottom = ROW * len(rows) + 18
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{bottom}" text-anchor="{anchor}">{value:.3g}</text>')
    middle = (left + width - 30) / 2
    parts.append(f'<text x="{middle}" y="{bottom}" text-anchor="middle">{escape(COMPARED[name])}</text>')
    return "".join(parts)


def as_json(row: Row) -> dict[str, Any]:
    """Bounds that one seed cannot give are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return plain(asdict(row) | {"differs": {name: row.differs(name) for name in row.against_base}})


def write_results(out: Path, outcomes: Sequence[Outcome], cfg: dict[str, Any]) -> None:
    """table.md, table.json and plot.svg, and the table on the terminal."""
    rows = table_rows(outcomes)
    record = {"config": cfg, "rows": [as_json(row) for row in rows], "runs": [asdict(outcome) for outcome in outcomes]}
    meshes = {cell: {one.seed: one.meshes for one in outcomes if one.cell == cell} for cell in ("base", "materials")}
    seeds = sorted(meshes["base"].keys() & meshes["materials"].keys())
    runs, alone = ([meshes[cell][seed] for seed in seeds] for cell in ("materials", "base"))
    written = markdown(rows, cfg) + "\n".join(["", *material_lines(runs, alone)] if runs else [])
    write_file(out / "table.md", written.encode())
    write_file(out / "table.json", json.dumps(record, indent=1).encode() + b"\n")
    write_file(out / "plot.svg", plot(rows).encode())
    shown = len(COLUMNS) - len(AGAINST)
    narrow = [0, 1, 2, 3, *range(shown, len(COLUMNS))]
    printed = [[cells_of(row)[column] for column in narrow] for row in rows]
    if not logs_json():
        print_table([COLUMNS[column] for column in narrow], printed, title=f"{len(outcomes)} runs ({out}/table.md)")
    log_event("ablated", runs=len(outcomes), table=str(out / "table.md"))
