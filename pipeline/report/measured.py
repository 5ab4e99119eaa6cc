"""What was measured on a sample, in a few lines that a person reads."""

from collections.abc import Sequence
from typing import Any

from schemas.ledger import Measurements

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
