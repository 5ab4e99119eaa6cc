"""Find what other thresholds would change in a built dataset, from its ledger alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipeline.filter.rules import FilterConfig, FilterResult, apply_rules, rule_of
from pipeline.unwrap.unwrap import UnwrapConfig, authored_problem
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import AUTHORED, XATLAS
from schemas.sample import Regime

UNMEASURED = ("timeout_s", "memory_gb", "padding")
"""Settings of `UnwrapConfig` whose effect no measurement shows."""
_UNWRAP = "unwrap."


class ChangeKind(StrEnum):
    """The ways in which an asset's outcome would change."""

    REJECTED = "accepted -> rejected"
    MV_ONLY = "textured -> mv_only"
    TEXTURED = "mv_only -> textured"
    """Needs a rebuild: the dataset does not hold its UV maps."""
    ACCEPTED = "rejected -> accepted"
    """Needs a rebuild, which takes the later measurements and may still reject it."""
    LAYOUT = "another layout"
    """Needs a rebuild: the map would lie in a layout that the dataset does not hold, if it gets one."""
    RULE = "another rule"
    """Still rejected or multi-view-only, by another rule."""


NEEDS_REBUILD = frozenset({ChangeKind.TEXTURED, ChangeKind.ACCEPTED, ChangeKind.LAYOUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One asset whose outcome other thresholds would change."""

    uid: str
    kind: ChangeKind
    before: str
    """Detail in the ledger; empty for a textured sample."""
    after: str
    """Detail of the new result; empty for a textured sample."""

    @property
    def rule(self) -> str | None:
        """Return the rule behind the change: the one that fires now, or, if the asset would gain, the one that fires no
        longer; `unwrap.` and the setting if it is about layouts."""
        if self.after.startswith(_UNWRAP):
            return self.after.partition(":")[0]
        return rule_of(self.before if self.kind in NEEDS_REBUILD else self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds to apply to recorded measurements."""

    filter: FilterConfig
    unwrap: UnwrapConfig
    built: UnwrapConfig
    """The limits on layouts that the dataset was built with."""


def changes(outcomes: Iterable[Outcome], cfg: Thresholds) -> Iterator[Change]:
    """Yield the assets whose outcome `cfg` would change, in ledger order. Those that failed, or that ended before the
    filter rules, stay as they are."""
    for outcome in outcomes:
        if outcome.status is Status.FAILED:
            continue
        if outcome.status is Status.REJECTED and rule_of(outcome.detail) is None:
            continue  # ended by something else: its bytes, its loading, or another asset like it
        result = apply_rules(outcome.measurements, cfg.filter)
        layout = _layout(outcome.measurements, cfg) if outcome.regime and result.regime else None
        if layout is not None:
            yield Change(uid=outcome.uid, kind=layout[0], before=outcome.detail, after=layout[1])
        elif kind := _kind(outcome, result):
            after = result.rejected.detail if result.rejected else ""
            yield Change(uid=outcome.uid, kind=kind, before=outcome.detail, after=after)


def _layout(m: Measurements, cfg: Thresholds) -> tuple[ChangeKind, str] | None:
    """Find what other limits on layouts would change for an accepted asset, and which limit: `unwrap.unwrap` as far as
    the ledger shows. Limits that stay change nothing."""
    now, built = cfg.unwrap, cfg.built
    if m.faces is None or now == built:
        return None  # images have no layout
    problem = authored_problem(m, now)
    if m.layout != AUTHORED and problem is None:
        return _gain(m), f"{_UNWRAP}authored: kept now, before it was not ({authored_problem(m, built)})"
    if m.layout == AUTHORED and problem is None:
        return None
    if m.faces > now.max_faces:
        detail = f"{_UNWRAP}max_faces: {m.faces:,} faces to unwrap, at most {now.max_faces:,}"
        return (ChangeKind.MV_ONLY, detail) if m.layout is not None else None
    if m.layout == AUTHORED:
        return ChangeKind.LAYOUT, f"{_UNWRAP}authored: unusable ({problem})"
    if m.layout is None and m.faces > built.max_faces:
        return ChangeKind.TEXTURED, f"{_UNWRAP}max_faces: {m.faces:,} faces to unwrap, at most {now.max_faces:,}"
    if (m.faces <= built.max_xatlas_faces) != (m.faces <= now.max_xatlas_faces):
        return _gain(m), f"{_UNWRAP}max_xatlas_faces: {m.faces:,} faces would get their layout from another maker"
    if m.layout == XATLAS and m.faces > max(now.max_rescue_faces, now.max_xatlas_faces):
        return ChangeKind.MV_ONLY, f"{_UNWRAP}max_rescue_faces: {m.faces:,} faces, xatlas gets {now.max_rescue_faces:,}"
    rescued = m.layout_fault in (Reason.UNWRAP_FAILED, Reason.UNWRAP_POOR)
    if rescued and built.max_rescue_faces < m.faces <= now.max_rescue_faces:
        return ChangeKind.TEXTURED, f"{_UNWRAP}max_rescue_faces: {m.faces:,} faces, xatlas would be tried"
    return _quality(m, now, built)


def _gain(m: Measurements) -> ChangeKind:
    return ChangeKind.TEXTURED if m.layout is None else ChangeKind.LAYOUT


def _quality(m: Measurements, now: UnwrapConfig, built: UnwrapConfig) -> tuple[ChangeKind, str] | None:
    """Compare a new layout with other limits on quality. A layout found too poor was not measured further."""
    if m.layout is None:
        looser = [
            name
            for name, more in (("max_charts", 1), ("max_overlap_share", 1), ("min_fill", -1), ("max_stretch", 1))
            if more * getattr(now, name) > more * getattr(built, name)
        ]
        if looser and m.layout_fault == Reason.UNWRAP_POOR:
            return ChangeKind.TEXTURED, f"{_UNWRAP}{looser[0]}: a layout that was too poor may do"
        return None
    for name, value in (("max_charts", m.layout_charts), ("max_stretch", m.layout_stretch), ("min_fill", m.uv_fill)):
        limit = getattr(now, name)
        if value is None or limit == getattr(built, name):
            continue
        if value < limit if name.startswith("min_") else value > limit:
            least = "least" if name.startswith("min_") else "most"
            return ChangeKind.MV_ONLY, f"{_UNWRAP}{name}: {value:.4g} of the {m.layout} layout, at {least} {limit:g}"
    return None


def _kind(outcome: Outcome, result: FilterResult) -> ChangeKind | None:
    if outcome.regime is result.regime:
        rule = rule_of(result.rejected.detail) if result.rejected else None
        return ChangeKind.RULE if rule != rule_of(outcome.detail) else None
    if outcome.regime is None:
        return ChangeKind.ACCEPTED
    if result.regime is None:
        return ChangeKind.REJECTED
    return ChangeKind.MV_ONLY if result.regime is Regime.MV_ONLY else ChangeKind.TEXTURED
