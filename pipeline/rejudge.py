"""Other thresholds on a dataset that is there: what they would change, told by its ledger alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipeline.judge import JudgeConfig, Verdict, judge, rule_of
from schemas.ledger import Outcome, Status
from schemas.sample import Regime


class ChangeKind(StrEnum):
    """What would become of an asset."""

    REJECTED = "accepted -> rejected"
    MV_ONLY = "textured -> mv_only"
    TEXTURED = "mv_only -> textured"
    """Needs a rebuild: the dataset does not hold its UV maps."""
    ACCEPTED = "rejected -> accepted"
    """Needs a rebuild, which takes the later measurements and may still reject it."""
    RULE = "another rule"
    """Still rejected or multi-view-only, by another rule."""


NEEDS_REBUILD = frozenset({ChangeKind.TEXTURED, ChangeKind.ACCEPTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One asset that other thresholds would judge otherwise."""

    uid: str
    kind: ChangeKind
    before: str
    """Detail in the ledger; empty for a textured sample."""
    after: str
    """Detail of the new verdict; empty for a textured sample."""

    @property
    def rule(self) -> str | None:
        """The rule behind it: the one that fires now, or that fires no longer where the asset would gain."""
        return rule_of(self.before if self.kind in NEEDS_REBUILD else self.after)


def changes(outcomes: Iterable[Outcome], cfg: JudgeConfig) -> Iterator[Change]:
    """Assets that `cfg` judges otherwise than the ledger says, in ledger order. Those that failed, or that ended before
    they were judged, stay as they are."""
    for outcome in outcomes:
        if outcome.status is Status.FAILED:
            continue
        if outcome.status is Status.REJECTED and rule_of(outcome.detail) is None:
            continue  # ended by something else: its bytes, or its loading
        verdict = judge(outcome.measurements, cfg)
        if kind := _kind(outcome, verdict):
            yield Change(
                uid=outcome.uid,
                kind=kind,
                before=outcome.detail,
                after=verdict.fault.detail if verdict.fault else "",
            )


def _kind(outcome: Outcome, verdict: Verdict) -> ChangeKind | None:
    if outcome.regime is verdict.regime:
        rule = rule_of(verdict.fault.detail) if verdict.fault else None
        return ChangeKind.RULE if rule != rule_of(outcome.detail) else None
    if outcome.regime is None:
        return ChangeKind.ACCEPTED
    if verdict.regime is None:
        return ChangeKind.REJECTED
    return ChangeKind.MV_ONLY if verdict.regime is Regime.MV_ONLY else ChangeKind.TEXTURED
