"""The dataset card: `README.md` of a dataset, written from its records."""

from collections import Counter
from collections.abc import Sequence

from pipeline.plan import ShardJob
from schemas.dataset import DatasetInfo, LedgerPart, config_hash
from schemas.ledger import Status
from schemas.sample import Regime


def dataset_card(info: DatasetInfo, jobs: Sequence[ShardJob], parts: Sequence[LedgerPart]) -> str:
    """Markdown: what is inside, how it came about, under which terms, how to read it."""
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    accepted = {outcome.uid for outcome in outcomes if outcome.status is Status.ACCEPTED}
    used = [ref.source for job in jobs for ref in job.refs if ref.uid in accepted]
    sources = Counter((source.name or "unnamed", source.licence or "not stated") for source in used)
    regimes = Counter(outcome.regime for outcome in outcomes if outcome.regime)
    reasons = Counter((str(o.status), str(o.regime or ""), str(o.reason)) for o in outcomes if o.reason)
    shards = [shard for part in parts for shard in part.shards]
    views, uv = info.config["views"]["resolution"], info.config["uv"]["resolution"]
    lines = [
        "# SeqTex Forge dataset",
        "",
        f"{len(accepted)} samples from {info.planned} assets in {len(shards)} shards "
        f"({sum(shard.bytes for shard in shards) / 1e6:.1f} MB).",
        "",
        f"- `textured`: {regimes[Regime.TEXTURED]} samples, views of {views} x {views} and UV maps of {uv} x {uv}",
        f"- `mv_only`: {regimes[Regime.MV_ONLY]} samples, views of {views} x {views} alone",
        f"- built by seqtex-forge {info.code_version}, schema version {info.schema_version}, "
        f"configuration {config_hash(info.config)[:16]} (in full in `dataset.json`)",
        "",
        "## Sources",
        "",
        *_table(("source", "licence", "samples"), [(*key, n) for key, n in sorted(sources.items())]),
        "",
        "Licence and attribution of every sample are in its `json` and in `plan.parquet`.",
        "",
        "## What was left out, and why",
        "",
        *_table(("status", "regime", "reason", "assets"), [(*key, n) for key, n in sorted(reasons.items())]),
        "",
        "Every planned asset has one row in `ledger/*.parquet`, with its measurements.",
        "",
        "## Reading it",
        "",
        "A shard counts only if a ledger part names it; `seqtex verify` checks hashes, counts and samples.",
        "`schemas.codec.decode(fields)` turns the fields of a sample (`rgb.webp`, `mask.png`, `position.dz`,",
        "`normal.dz`, for `textured` the same with `uv_` and `mesh.npz`) into arrays. Views are stored as one strip,",
        "first view on top;",
        "UV maps have v = 1 in row 0. Positions lie in [-1, 1], Z up. `index.json` is a wids-shard-index-v1.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    """Cells with a bar or a line break would break the table: names come from outside."""
    clean = [[" ".join(str(cell).replace("|", "/").split()) for cell in row] for row in rows]
    return [_line(header), _line(("---",) * len(header)), *(_line(row) for row in clean)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
