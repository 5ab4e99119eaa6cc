"""Charts of the gallery as SVG. Their colours come from its style sheet, so that they follow light and dark; their bars
are links to the assets that they count."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

import numpy as np

from pipeline.filter.rules import RULES, rule_of
from pipeline.maintain.status import Stage, funnel
from schemas.ledger import Outcome

WIDTH = 600
"""Width of the funnel, as of all sizes here in CSS pixels."""
ROW, BAR = 22, 14
LABEL = 252
"""Width of the labels left of the bars."""
BINS = 24
PLOT_WIDTH, PLOT_HEIGHT = 300, 84
STAGES = {
    Stage.PROCESS: "processed without failure",
    Stage.FILE: "a file that can be read",
    Stage.LOAD: "a mesh that can be loaded",
    Stage.FILTER: "accepted by the filter",
    Stage.TEXTURE: "with a verified UV map: textured",
}
"""Property of the assets that passed a stage."""
TONES = {Stage.PROCESS: "failed", Stage.TEXTURE: "mv_only"}
"""Outcome of the others; elsewhere they are rejected."""
THRESHOLDS = frozenset(rule.name for rule in RULES)


def funnel_chart(outcomes: Sequence[Outcome]) -> str:
    """Draw how many assets passed each stage, and why the others did not: by reason and threshold."""
    rows = [_Row("assets", len(outcomes), "all", link="show=pictures")]
    labels = Counter((str(outcome.reason), _rule(outcome)) for outcome in outcomes)
    for step in funnel(outcomes):
        tone = TONES.get(step.stage, "rejected")
        for reason in step.lost:
            for (lost, rule), n in labels.most_common():
                if lost == reason:
                    label = reason.replace("_", " ") + (f" ({rule})" if rule else "")
                    query = {"reason": reason} | ({"text": rule} if rule else {})
                    rows.append(_Row(label, n, tone, inner=True, link=urlencode(query)))
        last = step.stage is Stage.TEXTURE
        tone, link = ("textured", "outcome=textured") if last else ("all", "")
        rows.append(_Row(STAGES[step.stage], step.left, tone, link=link))
    lines = [_bar(i, row, row.count / max(len(outcomes), 1)) for i, row in enumerate(rows)]
    text = "; ".join(f"{row.label}: {row.count}" for row in rows)
    return _svg(WIDTH, ROW * len(rows), f"Assets that passed each stage. {text}", lines)


def _rule(outcome: Outcome) -> str:
    """Return the threshold behind a reason, "" if there is none."""
    rule = rule_of(outcome.detail)
    return rule if rule in THRESHOLDS else ""


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    count: int
    tone: str
    inner: bool = False
    """The assets that a stage removed."""
    link: str = ""
    """Query of the assets that it counts; "" if no filter shows them."""


def _bar(index: int, row: _Row, share: float) -> str:
    """Draw one row: a stage, or indented the assets that it removed."""
    y, room = index * ROW, WIDTH - LABEL - 64
    kind = "inner" if row.inner else "stage"
    bar = (
        f'<rect class="hit" x="0" y="{y}" width="{WIDTH}" height="{ROW}"/>'
        f'<text class="{kind}" x="{24 if row.inner else 0}" y="{y + 15}">{escape(row.label)}</text>'
        f'<rect class="{row.tone}" x="{LABEL}" y="{y + 4}" width="{max(share * room, 1):.1f}" height="{BAR}" rx="2"/>'
        f'<text class="{kind}" x="{LABEL + share * room + 8:.1f}" y="{y + 15}">{row.count:,}</text>'
    )
    return _linked(bar, row.link, f"show {row.count:,}: {row.label}") if row.link and row.count else bar


def _linked(markup: str, query: str, label: str) -> str:
    return f'<a href="#{escape(query)}" aria-label="{escape(label)}">{markup}</a>'


def histogram(values: Sequence[int | float], title: str, unit: str, column: str, *, log: bool) -> str:
    """Draw how often each value of a column occurs, and mark the median. A logarithmic axis has the values above 0."""
    numbers = np.asarray([value for value in values if not log or value > 0], dtype=np.float64)
    if not len(numbers):
        return ""
    scaled = np.log10(numbers) if log else numbers
    low, high = float(scaled.min()), float(scaled.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(scaled, BINS, (low, high))
    if log:
        edges = 10**edges
    step, ground = PLOT_WIDTH / BINS, PLOT_HEIGHT + 16
    bars = [
        _linked(
            f'<rect class="hit" x="{i * step:.1f}" y="0" width="{step:.1f}" height="{ground}"/>'
            f'<rect class="count" x="{i * step + 1:.1f}" y="{ground - h:.1f}" width="{step - 2:.1f}" height="{h:.1f}">'
            f"<title>{n:,}</title></rect>",
            f"range={column}:{edges[i]:.6g}:{edges[i + 1]:.6g}",
            f"show {n:,}: {edges[i]:,.4g} to {edges[i + 1]:,.4g} {unit}",
        )
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
    text = (
        f"{title}: {len(numbers):,} assets, {numbers.min():,.4g} to {numbers.max():,.4g} {unit}, median {median:,.4g}"
    )
    axis = f'<line class="axis" x1="0" x2="{PLOT_WIDTH}" y1="{ground}" y2="{ground}"/>'
    return _svg(PLOT_WIDTH, ground + 22, text, [*bars, axis, *ticks, mark])


def _ticks(low: float, high: float, log: bool) -> list[tuple[float, float]]:
    """Choose round values for the axis, each with its place on it."""
    if log:
        decades = range(int(np.ceil(low)), int(np.floor(high)) + 1)
        steps = {0: (1, 2, 5), 1: (1, 2, 5), 2: (1, 5)}.get(len(decades), (1,))
        values = [s * 10.0**d for d in range(int(np.floor(low)), int(np.ceil(high)) + 1) for s in steps]
        return [(v, float(np.log10(v))) for v in values if low <= np.log10(v) <= high]
    size = 10 ** np.floor(np.log10((high - low) / 4))
    step = next(size * s for s in (1, 2, 5, 10) if (high - low) / (size * s) <= 6)
    return [(float(v), float(v)) for v in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _short(value: float) -> str:
    """Write a round number so that neighbours on an axis do not overlap: 10,000 as 10k."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.10g}"


def _tick(value: float, share: float, ground: int) -> str:
    anchor = "start" if share < 0.06 else "end" if share > 0.94 else "middle"
    x = share * PLOT_WIDTH
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{ground}" y2="{ground + 4}"/>'
        f'<text x="{x:.1f}" y="{ground + 17}" text-anchor="{anchor}">{_short(value)}</text>'
    )


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> str:
    """Draw the training loss on a logarithmic axis: every value, and the running mean over a twentieth of the run."""
    width, height = 720, 220
    values = np.asarray(losses, dtype=np.float64)
    window = max(1, len(values) // 20)
    padded = np.concatenate([np.full(window - 1, values[0]), values])
    smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
    low, high = np.log10(values.min()), np.log10(values.max())
    x = 50 + (width - 60) * np.linspace(0, 1, len(values))

    def points(series: np.ndarray) -> str:
        y = 10 + (height - 40) * (high - np.log10(series)) / max(high - low, 1e-9)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    lines = [f'<polyline class="{name}" points="{points(s)}"/>' for name, s in (("raw", values), ("mean", smooth))]
    scale = [(14, values.max()), (height - 26, values.min())]
    lines += [f'<text x="44" y="{y}" text-anchor="end">{value:.3g}</text>' for y, value in scale]
    ends = [(50, "start", steps[0]), (width - 10, "end", steps[-1])]
    lines += [f'<text x="{at}" y="{height - 8}" text-anchor="{anchor}">step {n}</text>' for at, anchor, n in ends]
    return _svg(width, height, "Training loss, log scale", lines)


def _svg(width: int, height: int, text: str, lines: Sequence[str]) -> str:
    label = escape(text, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{label}">{"".join(lines)}</svg>'
