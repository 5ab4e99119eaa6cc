"""The plan of a dataset: its assets by job, one row each in `plan.parquet`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from schemas.ledger import Rejected
from schemas.mesh import AssetKind, Attribution, MeshRef

LATER_COLUMNS = ("root", "captions")
"""Columns that plans may lack: those of earlier versions, and those of assets without several captions."""
PLAN_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("name", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("attribution", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("author", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("root", pa.string()),
        pa.field("captions", pa.map_(pa.string(), pa.string())),
        pa.field("job", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """A unit of work and of resume: the assets that end in one pair of shards and one ledger part."""

    index: int
    refs: tuple[MeshRef, ...]
    """Assets, sorted by uid."""
    folder: str | None = field(default=None, compare=False)
    """The folder of this machine at which the paths of its assets begin. No part of the plan
    (`pipeline.dataset.folders`)."""
    only: frozenset[str] | None = None
    """The uids to process where the others keep their rows and samples; None: all. No part of the plan."""
    duplicates: Mapping[str, Rejected] = field(default_factory=dict)
    """Duplicates of other assets, by uid: they are not processed, and a sample of theirs goes.
    No part of the plan."""


def plan_row(ref: MeshRef, job: int) -> dict[str, Any]:
    rest = {"caption": ref.caption, "kind": str(ref.kind), "root": ref.root, "captions": ref.captions, "job": job}
    return {"uid": ref.uid, "uri": ref.uri, "sha256": ref.sha256} | asdict(ref.source) | rest


def plan_ref(row: dict[str, Any]) -> MeshRef:
    source = Attribution(**{f.name: row.pop(f.name) for f in fields(Attribution)})
    return MeshRef(**row | {"kind": AssetKind(row["kind"]), "captions": dict(row.get("captions") or ())}, source=source)
