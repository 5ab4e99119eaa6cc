"""The table of assets that the gallery lists and filters: one column per property."""

import hashlib
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import Any

from pipeline.filter.rules import RULES, FilterConfig, suspicions
from schemas.dataset import LedgerPart
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import Attribution, MeshRef
from schemas.plan import ShardJob

GROUP_STARTS = {
    "bytes": "File and geometry",
    "materials": "Surface",
    "uv_faces_share": "Texture coordinates as authored",
    "visible_share_min": "Views",
    "layout": "Layout and map",
}
"""The first measurement of each group, in the order of `Measurements`."""
NO_LIMIT = {"max_normal_error_deg": 180.0}
"""Thresholds of `most` that every asset keeps; of `least` it is 0."""
DIGITS = 6
"""Significant digits of a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One asset of the gallery."""

    outcome: Outcome
    ref: MeshRef | None
    """None if the plan does not name it."""


def listed(parts: Sequence[LedgerPart], jobs: Sequence[ShardJob], limit: int) -> list[Listed]:
    """List every asset that has an outcome, by job; of more than `limit`, choose evenly by the hash of their uids."""
    refs = {ref.uid: ref for job in jobs for ref in job.refs}
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    if len(outcomes) > limit:
        chosen = sorted(outcomes, key=lambda o: hashlib.sha256(o.uid.encode()).digest())[:limit]
        uids = {outcome.uid for outcome in chosen}
        outcomes = [outcome for outcome in outcomes if outcome.uid in uids]
    return [Listed(outcome=outcome, ref=refs.get(outcome.uid)) for outcome in outcomes]


def kind_of(outcome: Outcome) -> str:
    """Return the regime of a sample, else `rejected` or `failed`."""
    return str(outcome.regime if outcome.status is Status.ACCEPTED else outcome.status)


def measurement_groups() -> list[dict[str, Any]]:
    """Return titles, each with the names of its measurements."""
    groups: list[dict[str, Any]] = []
    for field in fields(Measurements):
        if field.name in GROUP_STARTS or not groups:
            groups.append({"title": GROUP_STARTS.get(field.name, "Measurements"), "names": []})
        groups[-1]["names"].append(field.name)
    return groups


def title_of(asset: Listed) -> str:
    """Return the title of an asset, else its caption, else its uid."""
    ref = asset.ref
    return (ref and (ref.source.title.strip() or ref.caption.strip())) or asset.outcome.uid


def limits(thresholds: FilterConfig) -> dict[str, list[tuple[str, int | float]]]:
    """Return the thresholds by measurement: ("least" or "most", value) each; those that every asset keeps are none."""
    found: dict[str, list[tuple[str, int | float]]] = {}
    for rule in RULES:
        side, bound = "least" if rule.name.startswith("min_") else "most", getattr(thresholds, rule.name)
        if NO_LIMIT.get(rule.name) != bound:
            found.setdefault(rule.measurement, []).append((side, bound))
    return found


def pictured(assets: Sequence[Listed], drawn: Set[str], rejected: Set[str]) -> list[Listed]:
    """Return the assets with those that have a picture first: samples, then rejected ones; else in their order."""
    return sorted(assets, key=lambda a: (a.outcome.uid not in drawn, a.outcome.uid not in rejected))


def columns(
    assets: Sequence[Listed], drawn: Set[str], rejected: Set[str], thresholds: FilterConfig
) -> dict[str, list[Any]]:
    """Return one value per asset in each column. `drawn`: uids of the samples that have files; `shard` is the folder
    with them, else "". `rejected`: uids of the rejected assets that have a picture; `picture` is the path of a picture,
    for a duplicate that of the asset which stands for it, "" if there is none."""
    outcomes = [asset.outcome for asset in assets]
    sources = [asset.ref.source if asset.ref else Attribution() for asset in assets]
    shards = [str(o.shard).removesuffix(".tar") if o.uid in drawn else "" for o in outcomes]
    stored = {o.uid: f"samples/{shard}/{o.uid}.webp" for o, shard in zip(outcomes, shards, strict=True) if shard}
    texts: dict[str, list[Any]] = {
        "uid": [o.uid for o in outcomes],
        "name": [source.name for source in sources],
        "title": [source.title for source in sources],
        "author": [source.author for source in sources],
        "page": [source.url for source in sources],
        "caption": [asset.ref.caption if asset.ref else "" for asset in assets],
        "licence": [source.licence for source in sources],
        "attribution": [source.attribution for source in sources],
        "uri": [o.uri for o in outcomes],
        "sha256": [o.sha256 or "" for o in outcomes],
        "outcome": [kind_of(o) for o in outcomes],
        "reason": [str(o.reason or "") for o in outcomes],
        "detail": [o.detail for o in outcomes],
        "shard": shards,
        "picture": [_picture(o, stored, rejected) for o in outcomes],
        "sandbox": [o.sandbox or "" for o in outcomes],
        "suspicion": [", ".join(suspicions(o.measurements, thresholds)) for o in outcomes],
        "seconds": [_rounded(o.seconds) for o in outcomes],
    }
    measured = {
        field.name: [_rounded(getattr(o.measurements, field.name)) for o in outcomes] for field in fields(Measurements)
    }
    return texts | measured


def _picture(outcome: Outcome, stored: Mapping[str, str], rejected: Set[str]) -> str:
    if outcome.uid in stored:
        return stored[outcome.uid]
    if outcome.uid in rejected:
        return f"rejected/{outcome.uid}.webp"
    if outcome.reason is Reason.DUPLICATE:
        return next((stored[word] for word in re.findall(r"[\w-]+", outcome.detail) if word in stored), "")
    return ""


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
