"""Attribution of a dataset's samples: title, author, licence and URL, as a table to publish with it."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.dataset import LedgerPart, by_repair, parquet_table
from schemas.errors import UserError, explained
from schemas.ledger import Status
from schemas.plan import ShardJob
from schemas.storage import Location, place, staging

FILE = "attribution.parquet"
"""Name of the file in the dataset."""
_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("uid", "shard", "name", "title", "author", "licence", "url", "attribution")
    ]
)
_ROWS_AT_ONCE = 1 << 14
"""Rows that exist as Python objects at one time: a dataset may have millions."""
FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""Characters that make a spreadsheet run a cell as a formula (OWASP, CSV injection); the last four are full-width."""


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


def attribution_csv(dataset: Location, out: Path) -> int:
    """Write the attribution table of a dataset as CSV and return its rows: UTF-8, every cell quoted (RFC 4180). A cell
    that a spreadsheet would run as a formula gets an apostrophe before it: titles and authors are whatever the source
    has. Raises UserError where the dataset has no whole table, or `out` cannot be written."""
    table = _read(dataset)
    with explained(out, "the attribution cannot be written", "fix that or give another --out"):
        with staging(out) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, quoting=csv.QUOTE_ALL)
            writer.writerow(table.column_names)
            for batch in table.to_batches(_ROWS_AT_ONCE):
                writer.writerows(map(plain, row.values()) for row in batch.to_pylist())
            text.detach()
        place(out)
    return table.num_rows


def plain(cell: str) -> str:
    """Return the text of a cell, with an apostrophe before it where a spreadsheet would run it as a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def _read(dataset: Location) -> pa.Table:
    """Read the attribution table of a dataset. Raises UserError where it is missing or damaged, OSError where it cannot
    be read now, although it may be whole."""
    path = dataset / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        remedy = "give the folder of a finished build"
        raise UserError(f"{path}: no such file; {remedy}") from error
    try:
        table = parquet_table(data)
    except (OSError, pa.ArrowException) as error:  # OSError: pyarrow's, for damage
        raise UserError(f"{path}: damaged ({error}); {by_repair(dataset)}") from error
    if not table.schema.equals(_SCHEMA):
        raise UserError(f"{path}: its columns are not those of this program's attribution; {by_repair(dataset)}")
    return table
