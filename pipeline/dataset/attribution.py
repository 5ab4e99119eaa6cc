"""Attribution of a dataset's samples: title, author, licence and URL, as a table to publish with it."""

from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.dataset import LedgerPart
from schemas.ledger import Status
from schemas.plan import ShardJob

FILE = "attribution.parquet"
_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("uid", "shard", "name", "title", "author", "licence", "url", "attribution")
    ]
)
_ROWS_AT_ONCE = 1 << 14


class AttributionTable:
    """One row per sample, gathered job by job, shard by shard; equal datasets give equal bytes."""

    def __init__(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, _SCHEMA, compression="zstd", write_page_checksum=True)
        self._rows: list[dict[str, str | None]] = []

    def add(self, job: ShardJob, part: LedgerPart) -> None:
        """A job, and what became of it."""
        rows: list[dict[str, str | None]] = [
            asdict(ref.source) | {"uid": ref.uid, "shard": outcome.shard}
            for ref, outcome in zip(job.refs, part.outcomes, strict=True)
            if outcome.status is Status.ACCEPTED
        ]
        self._rows += sorted(rows, key=lambda row: (row["shard"], row["uid"]))
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=_SCHEMA))
        self._rows = []

    def parquet(self) -> bytes:
        """The whole table; the last thing to ask for."""
        self._flush()
        self._writer.close()
        return self._sink.getvalue().to_pybytes()


def attribution_parquet(jobs: Iterable[ShardJob], parts: Iterable[LedgerPart]) -> bytes:
    """The table of a whole dataset."""
    table = AttributionTable()
    for job, part in zip(jobs, parts, strict=True):
        table.add(job, part)
    return table.parquet()
