"""Is an asset worth learning from? A pure function of its measurements and of thresholds, so that it can be passed
again on a ledger under other thresholds. A rule whose measurement is missing does not fire: the same function serves
after every stage of a build."""

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.ledger import Measurements, Reason, Rejected
from schemas.sample import Regime


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Thresholds of the filter rules."""

    min_faces: int = 12
    """Triangles; a box has 12 (ours)."""
    max_faces: int = 500_000
    """Triangles (ours)."""
    max_degenerate_share: float = 0.25
    """Share of faces without area (ours)."""
    min_flatness: float = 0.01
    """Smallest over largest side of the bounding box (ours)."""
    max_transparent_share: float = 0.5
    """Share of the surface that is looked through (ours)."""
    min_distinct_colors: int = 2
    """Colours on at least 0.1 % of the surface each; grey and missing textures fail (Tencent-XR drops such models)."""
    min_color_std: float = 0.01
    """Standard deviation of surface colour, sRGB 0..1 (ours); catches one colour with compression noise."""
    max_flat_share: float = 1.0
    """Share of the surface with one quantised colour; 1 is off (ours: good game assets reach 0.9)."""
    min_visible_share: float = 0.002
    """Smallest share of any view's pixels that the mesh must cover (ours: 500 pixels of 512^2)."""
    min_visible_opposite: float = 0.0075
    """Share of the pixels of both of two opposite views (MV-Painter)."""
    max_single_surface_share: float = 0.9
    """Share of the pixels of opposite views that show one surface from its two sides (test of Step1X; value ours)."""
    min_texture_score: float = 0.0
    """35 * entropy + edges; 0 is off (MV-Painter ranks by it and keeps the best 100,000)."""
    min_round_trip_db: float = 30.0
    """Views from the baked map below this PSNR against views of the source make the sample multi-view-only (ours)."""
    max_round_trip_off_share: float = 1.0
    """Share of covered pixels further off than 8/255 in that comparison; 1 is off (ours)."""
    min_metallic_db: float = 0.0
    """The same for metallic, in datasets with materials; 0 is off (ours)."""
    min_roughness_db: float = 0.0
    """The same for roughness; 0 is off (ours)."""
    min_emissive_db: float = 0.0
    """The same for emitted light; 0 is off (ours)."""
    max_normal_error_deg: float = 180.0
    """Mean angle between shading normals in that comparison, degrees; 180 is off (ours)."""
    max_constant_material_share: float = 1.0
    """Share of the surface with one metallic and roughness a material, in datasets with materials; 1 is off (TRELLIS.2
    selects assets with real maps)."""
    suspect_baked_light: float = 0.3
    """`baked_light` from which the report says so (ours); never a reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One threshold on one measurement."""

    name: str
    """Field of `FilterConfig`: `min_...` or `max_...`. Stable: ledgers name it."""
    measurement: str
    """Field of `Measurements`."""
    reason: Reason
    words: str
    """Text on the measurement, for a person; `{}` stands for the value."""
    regime: Regime | None = None
    """Regime left to an asset that fails: none, or views alone."""


RULES = (
    Rule(name="max_faces", measurement="faces", reason=Reason.TOO_MANY_FACES, words="{} faces"),
    Rule(
        name="max_degenerate_share",
        measurement="degenerate_share",
        reason=Reason.DEGENERATE,
        words="{} of faces have no area",
    ),
    Rule(name="min_flatness", measurement="flatness", reason=Reason.FLAT, words="smallest over largest side {}"),
    Rule(name="min_faces", measurement="faces", reason=Reason.TOO_FEW_FACES, words="{} faces"),
    Rule(
        name="max_transparent_share",
        measurement="transparent_share",
        reason=Reason.TRANSPARENT,
        words="{} of the surface is transparent",
    ),
    Rule(
        name="min_distinct_colors",
        measurement="distinct_colors",
        reason=Reason.UNTEXTURED,
        words="distinct colours {}",
    ),
    Rule(
        name="min_color_std",
        measurement="color_std",
        reason=Reason.UNTEXTURED,
        words="standard deviation of colour {}",
    ),
    Rule(
        name="max_flat_share",
        measurement="flat_share",
        reason=Reason.UNTEXTURED,
        words="{} of the surface has one colour",
    ),
    Rule(
        name="min_visible_share",
        measurement="visible_share_min",
        reason=Reason.BARELY_VISIBLE,
        words="covers {} of one of the views",
    ),
    Rule(
        name="min_visible_opposite",
        measurement="visible_share_opposite",
        reason=Reason.BARELY_VISIBLE,
        words="covers {} of opposite views",
    ),
    Rule(
        name="max_single_surface_share",
        measurement="single_surface_share",
        reason=Reason.FLAT,
        words="{} of opposite views show one sheet from its two sides",
    ),
    Rule(
        name="min_texture_score",
        measurement="texture_score",
        reason=Reason.UNTEXTURED,
        words="texture score {}",
    ),
    Rule(
        name="max_constant_material_share",
        measurement="constant_material_share",
        reason=Reason.UNTEXTURED,
        words="{} of the surface has constant metallic and roughness",
    ),
    Rule(
        name="min_round_trip_db",
        measurement="round_trip_psnr",
        reason=Reason.ROUND_TRIP,
        words="views from the baked map reach {} dB",
        regime=Regime.MV_ONLY,
    ),
    Rule(
        name="max_round_trip_off_share",
        measurement="round_trip_off_share",
        reason=Reason.ROUND_TRIP,
        words="{} of the pixels of views from the baked map are off",
        regime=Regime.MV_ONLY,
    ),
    *(
        Rule(
            name=f"min_{channel}_db",
            measurement=f"{channel}_psnr",
            reason=Reason.ROUND_TRIP,
            words=f"{channel} in views from the baked map reaches {{}} dB",
            regime=Regime.MV_ONLY,
        )
        for channel in ("metallic", "roughness", "emissive")
    ),
    Rule(
        name="max_normal_error_deg",
        measurement="normal_error_deg",
        reason=Reason.ROUND_TRIP,
        words="shading normals from the baked map are off by {} degrees",
        regime=Regime.MV_ONLY,
    ),
)
"""Rules in the order in which they are asked; those that leave an asset nothing come first."""
NO_FACES = "no_faces"
"""Rule without a threshold: an asset must have faces."""
NO_LAYOUT = "no_layout"
"""Rule without a threshold: an asset without a UV layout (`layout_fault`) keeps its views alone."""
RULE_NAMES = frozenset({NO_FACES, NO_LAYOUT, *(rule.name for rule in RULES)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """The regime that an asset may have, and the reason where it has less than a texture."""

    regime: Regime | None
    """None: nothing."""
    rejected: Rejected | None
    """Rejection by the first rule that fired; None for a textured sample."""


def apply_rules(measurements: Measurements, cfg: FilterConfig) -> FilterResult:
    """Return the result of the first rule that fires, or textured."""
    return next(_rejections(measurements, cfg), FilterResult(regime=Regime.TEXTURED, rejected=None))


def rule_of(detail: str) -> str | None:
    """Return the rule that the detail of a rejection names; None where something else ended the asset."""
    name = detail.partition(":")[0]
    return name if name in RULE_NAMES else None


def suspicions(measurements: Measurements, cfg: FilterConfig) -> tuple[str, ...]:
    """List what a person should look at; no reason to reject."""
    baked = measurements.baked_light is not None and measurements.baked_light >= cfg.suspect_baked_light
    return ("light may be baked in",) if baked else ()


def _rejections(m: Measurements, cfg: FilterConfig) -> Iterator[FilterResult]:
    """Yield the result of every rule that fires, in order."""
    if m.faces == 0:
        yield FilterResult(regime=None, rejected=Rejected(reason=Reason.NO_GEOMETRY, detail=f"{NO_FACES}: 0 faces"))
    rejecting = [rule for rule in RULES if rule.regime is None]
    for rule in rejecting:
        if rejected := _check(rule, m, cfg):
            yield FilterResult(regime=None, rejected=rejected)
    if m.layout_fault is not None:
        detail = f"{NO_LAYOUT}: no UV layout"
        yield FilterResult(regime=Regime.MV_ONLY, rejected=Rejected(reason=Reason(m.layout_fault), detail=detail))
    for rule in RULES:
        if rule.regime is not None and (rejected := _check(rule, m, cfg)):
            yield FilterResult(regime=rule.regime, rejected=rejected)


def _check(rule: Rule, m: Measurements, cfg: FilterConfig) -> Rejected | None:
    value, threshold = getattr(m, rule.measurement), getattr(cfg, rule.name)
    if value is None:
        return None
    lowest = rule.name.startswith("min_")
    if value >= threshold if lowest else value <= threshold:
        return None
    show = _as_share if rule.measurement.endswith(("_share", "_share_min", "_share_opposite")) else _as_number
    said = f"{rule.words.format(show(value))}, at {'least' if lowest else 'most'} {show(threshold)}"
    return Rejected(reason=rule.reason, detail=f"{rule.name}: {said}")


def _as_share(value: int | float) -> str:
    return f"{value:.2%}"


def _as_number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
