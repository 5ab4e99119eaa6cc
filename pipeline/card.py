"""The dataset card: `README.md` of a dataset, written from its records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.plan import ShardJob
from pipeline.progress import Counts, counts_of
from schemas.dataset import DatasetInfo, LedgerPart, config_hash
from schemas.ledger import Status


@dataclass(kw_only=True)
class CardFacts:
    """What the card tells, gathered job by job."""

    counts: Counts = field(default_factory=Counts)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by name and licence of their source."""
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Assets by status, regime and reason."""
    shards: int = 0
    bytes: int = 0

    def add(self, job: ShardJob, part: LedgerPart) -> None:
        """A job, and what became of it."""
        self.counts += counts_of(part.outcomes)
        for ref, outcome in zip(job.refs, part.outcomes, strict=True):
            if outcome.status is Status.ACCEPTED:
                self.sources[ref.source.name or "unnamed", ref.source.licence or "not stated"] += 1
            if outcome.reason:
                self.reasons[str(outcome.status), str(outcome.regime or ""), str(outcome.reason)] += 1
        self.shards += len(part.shards)
        self.bytes += sum(shard.bytes for shard in part.shards)


def dataset_card(info: DatasetInfo, facts: CardFacts) -> str:
    """Markdown: what is inside, how it came about, under which terms, how to read it."""
    counts = facts.counts
    views, uv = info.config["views"]["resolution"], info.config["uv"]["resolution"]
    lines = [
        "# SeqTex Forge dataset",
        "",
        f"{counts.textured + counts.mv_only} samples from {info.planned} assets in {facts.shards} shards "
        f"({facts.bytes / 1e6:.1f} MB).",
        "",
        f"- `textured`: {counts.textured} samples, views of {views} x {views} and UV maps of {uv} x {uv}",
        f"- `mv_only`: {counts.mv_only} samples, views of {views} x {views} alone",
        f"- built by seqtex-forge {info.code_version}, schema version {info.schema_version}, "
        f"configuration {config_hash(info.config)[:16]} (in full in `dataset.json`)",
        "",
        "## Sources",
        "",
        *_table(("source", "licence", "samples"), [(*key, n) for key, n in sorted(facts.sources.items())]),
        "",
        "Title, author, licence and page of every sample are in its `json` and in `attribution.parquet`.",
        "",
        "## What was left out, and why",
        "",
        *_table(("status", "regime", "reason", "assets"), [(*key, n) for key, n in sorted(facts.reasons.items())]),
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
