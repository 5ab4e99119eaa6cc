"""Charts of a whole dataset as SVG. Colours come from the page's style, so that they follow light and dark."""

from collections.abc import Sequence
from html import escape

import numpy as np

from pipeline.maintain.status import Stage, funnel
from schemas.ledger import Outcome

WIDTH = 560
"""Of the funnel."""
ROW, BAR = 22, 14
LABEL = 210
"""Where bars begin."""
BINS = 24
PLOT_WIDTH, PLOT_HEIGHT = 300, 84
STAGES = {
    Stage.PROCESS: "no failure of ours",
    Stage.FILE: "a file that can be read",
    Stage.LOAD: "a mesh that can be loaded",
    Stage.FILTER: "worth learning from",
    Stage.TEXTURE: "with a proven map: textured",
}
"""What an asset has that got past a stage."""
TONES = {Stage.PROCESS: "failed", Stage.TEXTURE: "mv_only"}
"""What becomes of the others; elsewhere they are rejected."""


def funnel_chart(outcomes: Sequence[Outcome]) -> str:
    """How many assets got past each stage, and why the others did not."""
    rows = [("assets", len(outcomes), "all", False)]
    for step in funnel(outcomes):
        tone = TONES.get(step.stage, "rejected")
        lost = [(reason.replace("_", " "), n, tone, True) for reason, n in step.lost.items()]
        rows += [*lost, (STAGES[step.stage], step.left, "textured" if step.stage is Stage.TEXTURE else "all", False)]
    total = max(len(outcomes), 1)
    lines = [_bar(i, label, n, n / total, tone, inner) for i, (label, n, tone, inner) in enumerate(rows)]
    told = "; ".join(f"{label}: {n}" for label, n, _, _ in rows)
    return _svg(WIDTH, ROW * len(rows), f"What became of the assets. {told}", lines)


def _bar(index: int, label: str, count: int, share: float, tone: str, inner: bool) -> str:
    """One row: a stage, or indented what it took away."""
    y, room = index * ROW, WIDTH - LABEL - 64
    kind = "inner" if inner else "stage"
    return (
        f'<text class="{kind}" x="{24 if inner else 0}" y="{y + 15}">{escape(label)}</text>'
        f'<rect class="{tone}" x="{LABEL}" y="{y + 4}" width="{max(share * room, 1):.1f}" height="{BAR}" rx="2"/>'
        f'<text class="{kind}" x="{LABEL + share * room + 8:.1f}" y="{y + 15}">{count:,}</text>'
    )


def histogram(values: Sequence[int | float], title: str, unit: str, *, log: bool) -> str:
    """How often each value occurs; the median is marked. On a logarithmic axis only what is above 0 counts."""
    numbers = np.asarray([value for value in values if not log or value > 0], dtype=np.float64)
    if not len(numbers):
        return ""
    scaled = np.log10(numbers) if log else numbers
    low, high = float(scaled.min()), float(scaled.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(scaled, BINS, (low, high))
    step, ground = PLOT_WIDTH / BINS, PLOT_HEIGHT + 16
    bars = [
        f'<rect class="count" x="{i * step + 1:.1f}" y="{ground - h:.1f}" width="{step - 2:.1f}" height="{h:.1f}">'
        f"<title>{n:,}</title></rect>"
        for i, n in enumerate(counts)
        if (h := PLOT_HEIGHT * n / counts.max())
    ]
    ticks = [_tick(value, (position - low) / (high - low), ground) for value, position in _ticks(low, high, log)]
    median = float(np.median(numbers))
    at = PLOT_WIDTH * ((np.log10(median) if log else median) - low) / (high - low)
    anchor = "start" if at < PLOT_WIDTH / 2 else "end"
    mark = (
        f'<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{ground}"/>'
        f'<text class="median" x="{at + (5 if anchor == "start" else -5):.1f}" y="13" text-anchor="{anchor}">'
        f"median {median:,.4g} {escape(unit)}</text>"
    )
    told = (
        f"{title}: {len(numbers):,} assets, {numbers.min():,.4g} to {numbers.max():,.4g} {unit}, median {median:,.4g}"
    )
    axis = f'<line class="axis" x1="0" x2="{PLOT_WIDTH}" y1="{ground}" y2="{ground}"/>'
    return _svg(PLOT_WIDTH, ground + 22, told, [*bars, axis, *ticks, mark])


def _ticks(low: float, high: float, log: bool) -> list[tuple[float, float]]:
    """Round values on the axis, with their places on it."""
    if log:
        decades = range(int(np.ceil(low)), int(np.floor(high)) + 1)
        steps = {0: (1, 2, 5), 1: (1, 2, 5), 2: (1, 5)}.get(len(decades), (1,))
        values = [s * 10.0**d for d in range(int(np.floor(low)), int(np.ceil(high)) + 1) for s in steps]
        return [(v, float(np.log10(v))) for v in values if low <= np.log10(v) <= high]
    size = 10 ** np.floor(np.log10((high - low) / 4))
    step = next(size * s for s in (1, 2, 5, 10) if (high - low) / (size * s) <= 6)
    return [(float(v), float(v)) for v in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _tick(value: float, share: float, ground: int) -> str:
    anchor = "start" if share < 0.06 else "end" if share > 0.94 else "middle"
    x = share * PLOT_WIDTH
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{ground}" y2="{ground + 4}"/>'
        f'<text x="{x:.1f}" y="{ground + 17}" text-anchor="{anchor}">{value:,.10g}</text>'
    )


def _svg(width: int, height: int, told: str, lines: Sequence[str]) -> str:
    label = escape(told, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(lines)}</svg>'
