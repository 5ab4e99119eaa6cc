"""Attribution of a dataset's samples: title, author, licence and URL, as a table to publish with it."""

from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.dataset import LedgerPart
from schemas.ledger import Status
from schemas.plan import ShardJob

FILE = "attribution.parquet"
"""Its name in the dataset."""
_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("uid", "shard", "name", "title", "author", "licence", "url", "attribution")
    ]
)
_ROWS_AT_ONCE = 1 << 14
"""Rows that exist as Python objects at one time: a dataset may have millions."""


def attribution_parquet(jobs: Iterable[ShardJob], parts: Iterable[LedgerPart]) -> bytes:
    """Encode the attribution table of a dataset, given its jobs and their ledger: one row per sample, job by job, shard
    by shard. Equal datasets give equal bytes."""
    sink, rows = pa.BufferOutputStream(), list[dict[str, str | None]]()
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for job, part in zip(jobs, parts, strict=True):
            samples: list[dict[str, str | None]] = [
                asdict(ref.source) | {"uid": ref.uid, "shard": outcome.shard}
                for ref, outcome in zip(job.refs, part.outcomes, strict=True)
                if outcome.status is Status.ACCEPTED
            ]
            rows += sorted(samples, key=lambda row: (row["shard"], row["uid"]))
            if len(rows) >= _ROWS_AT_ONCE:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
                rows = []
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
    return sink.getvalue().to_pybytes()
