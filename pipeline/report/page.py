"""One self-contained HTML page: what became of the assets, what the samples look like, and any further sections."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from pipeline.filter.rules import RULES, FilterConfig, rule_of, suspicions
from pipeline.report.images import as_rgb, data_uri, in_rows, side_by_side
from schemas.ledger import Measurements, Reason, Status
from schemas.sample import Regime, TextureSample

Formats = Sequence[tuple[str, str]]
"""Column of `Measurements`, and how it is shown; missing ones are left out."""

GROUPS: dict[str, Formats] = {
    "shape": (
        ("faces", "{:,} faces"),
        ("parts", "{:,} parts"),
        ("boundary_edges", "{:,} open edges"),
        ("nonmanifold_edges", "{:,} edges of three faces or more"),
        ("single_surface_share", "{:.0%} seen from both sides of a sheet"),
    ),
    "colour": (
        ("texture_side_max", "textures up to {:,} px"),
        ("texture_entropy", "entropy {:.1f} bits"),
        ("edge_score", "edges {:.0f}"),
        ("flat_share", "{:.0%} of one colour"),
        ("transparent_share", "{:.0%} transparent"),
    ),
    "authored layout": (
        ("uv_charts", "{:,} charts"),
        ("uv_overlap_share", "{:.1%} overlap"),
        ("uv_outside_share", "{:.0%} outside"),
        ("uv_mirrored_share", "{:.0%} of the overlap mirrored"),
        ("uv_score", "score {:.2f}"),
    ),
    "map": (
        ("layout", "{} layout"),
        ("uv_fill", "fills {:.0%}"),
        ("layout_density", "{:.0f} texels a unit"),
        ("layout_density_spread", "spread {:.1f}"),
        ("round_trip_psnr", "round trip {:.1f} dB"),
        ("round_trip_off_share", "{:.1%} of pixels off"),
    ),
}
"""What a card shows, by subject."""


def measured_lines(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """(subject, facts) of a sample's measurements; what is zero says nothing, and subjects without facts are left
    out."""
    lines = []
    for subject, formats in GROUPS.items():
        told = [shown.format(measured[name]) for name, shown in formats if measured.get(name)]
        facts = [fact for fact in told if not fact.startswith(("0% ", "0.0% "))]
        if facts:
            lines.append((subject, ", ".join(facts)))
    return lines


def as_measurements(measured: dict[str, Any]) -> Measurements:
    """The measurements in a sample's JSON; of another version, those that this program knows."""
    known = Measurements.__dataclass_fields__
    return Measurements(**{name: value for name, value in measured.items() if name in known})


THUMBNAIL_PX = 160
"""Height of one row of a contact sheet."""
DEFAULT_FILTER = FilterConfig()
THRESHOLDS = frozenset(rule.name for rule in RULES)
VIEWS_PER_ROW = 6
"""Further views stand in further rows, so that a row fits a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunnelStep:
    """How many assets ended in one way."""

    label: str
    count: int
    share: float
    tone: str
    """CSS class: `textured`, `mv_only`, `rejected` or `failed`."""
    uids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture with its caption."""

    src: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A headed part of the page: text, a table, figures, ready-made SVG; each may be missing."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Figure] = ()
    svg: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCard:
    """One sample of the contact sheet."""

    uid: str
    regime: str
    caption: str
    licence: str
    measured: Sequence[tuple[str, str]] = ()
    """Subject and facts."""
    suspicions: Sequence[str] = ()
    """What a person should look at."""
    figures: Sequence[Figure] = field(default_factory=tuple)


def funnel(rows: Sequence[dict[str, Any]]) -> list[FunnelStep]:
    """Ledger rows grouped by what became of them, largest group first: accepted ones by regime (and why they are
    multi-view-only), the others by reason; both by the rule that fired, where one did."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        status, regime, reason = row["status"], row["regime"], row["reason"]
        if status == Status.ACCEPTED:
            label = "textured" if regime == Regime.TEXTURED else f"multi-view only: {_words(reason)}{_rule(row)}"
            groups.setdefault((str(regime), label), []).append(row["uid"])
        else:
            groups.setdefault((status, f"{status}: {_words(reason)}{_rule(row)}"), []).append(row["uid"])
    order = [str(tone) for tone in (Regime.TEXTURED, Regime.MV_ONLY, Status.REJECTED, Status.FAILED)]
    steps = [
        FunnelStep(label=label, count=len(uids), share=len(uids) / len(rows), tone=tone, uids=tuple(uids))
        for (tone, label), uids in groups.items()
    ]
    return sorted(steps, key=lambda s: (order.index(s.tone), -s.count, s.label))


def _words(reason: Reason | str | None) -> str:
    return str(reason).replace("_", " ") if reason else "no reason given"


def _rule(row: dict[str, Any]) -> str:
    """The threshold behind a reason, in brackets."""
    rule = rule_of(row["detail"])
    return f" ({rule})" if rule in THRESHOLDS else ""


def sample_card(sample: TextureSample, thresholds: FilterConfig = DEFAULT_FILTER) -> SampleCard:
    """What was measured; colour, light where there is any, normal and position of the views, then the UV maps."""
    views = sample.views
    pictures = {
        "views: colour": views.rgb,
        "views: lit": views.lit,
        "views: normal": as_rgb(views.normal) * views.mask[..., None],
        "views: position": as_rgb(views.position) * views.mask[..., None],
    }
    sheets = [(name, in_rows(images, VIEWS_PER_ROW)) for name, images in pictures.items() if images is not None]
    rows = -(-len(views.rgb) // VIEWS_PER_ROW)
    figures = [Figure(src=data_uri(image, rows * THUMBNAIL_PX), caption=name) for name, image in sheets]
    if sample.uv is not None:
        uv = sample.uv
        maps = np.stack([uv.rgb, as_rgb(uv.normal) * uv.mask[..., None], as_rgb(uv.position) * uv.mask[..., None]])
        figures.append(Figure(src=data_uri(side_by_side(maps), THUMBNAIL_PX), caption="UV: colour, normal, position"))
    measured = sample.meta.get("measurements", {})
    source = sample.meta["source"]
    return SampleCard(
        uid=sample.uid,
        regime=str(sample.regime),
        caption=sample.meta["caption"],
        measured=measured_lines(measured),
        suspicions=suspicions(as_measurements(measured), thresholds),
        licence=", ".join(filter(None, (source["licence"], source["attribution"]))),
        figures=figures,
    )


def rejections(rows: Sequence[dict[str, Any]]) -> Section:
    """Every asset that is not in the dataset, and why."""
    lost = [row for row in rows if row["status"] != Status.ACCEPTED]
    return Section(
        title="Not in the dataset",
        text="" if lost else "Every planned asset was accepted.",
        columns=("asset", "status", "reason", "detail") if lost else (),
        rows=[(row["uid"], row["status"], _words(row["reason"]), row["detail"]) for row in lost],
    )


def loss_curve(steps: Sequence[int], losses: Sequence[float], width: int = 720, height: int = 220) -> str:
    """The training loss as SVG: every logged value, and its running mean over a twentieth of the run; log scale."""
    values = np.asarray(losses, dtype=np.float64)
    window = max(1, len(values) // 20)
    padded = np.concatenate([np.full(window - 1, values[0]), values])
    smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
    low, high = np.log10(values.min()), np.log10(values.max())
    span = max(high - low, 1e-9)
    x = 50 + (width - 60) * np.linspace(0, 1, len(values))

    def points(series: np.ndarray) -> str:
        y = 10 + (height - 40) * (high - np.log10(series)) / span
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    labels = [(10, values.max()), (height - 30, values.min())]
    texts = "".join(f'<text x="44" y="{y + 4}" text-anchor="end">{value:.3g}</text>' for y, value in labels)
    ends = f'<text x="50" y="{height - 8}">step {steps[0]}</text>'
    ends += f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">step {steps[-1]}</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss, log scale">'
        f'<polyline class="raw" points="{points(values)}"/><polyline class="mean" points="{points(smooth)}"/>'
        f"{texts}{ends}</svg>"
    )


def render_page(
    *,
    title: str,
    summary: str,
    rows: Sequence[dict[str, Any]],
    samples: Sequence[TextureSample],
    sections: Sequence[Section] = (),
    thresholds: FilterConfig = DEFAULT_FILTER,
) -> str:
    """HTML of the whole page; `thresholds` decides what looks suspicious. Names, captions and details of assets are
    untrusted text and are escaped."""
    here = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        title=title,
        summary=summary,
        planned=len(rows),
        funnel=funnel(rows),
        cards=[sample_card(sample, thresholds) for sample in samples],
        sections=sections,
        rejections=rejections(rows),
        style=(here / "page.css").read_text(),
    )
