"""A ledger part says what happened to every asset, in columns that SQL counts, whoever wrote them and when."""

import io

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.dataset import LedgerPart, part_path, read_ledger_part, write_ledger_part
from schemas.errors import UserError
from schemas.ledger import Measurements, Note, NoteKind, Outcome, Reason, Status

NOTES = (
    Note(kind=NoteKind.FACES_LEFT_OUT, count=3, detail="line 81: a face with 2 corners"),
    Note(kind=NoteKind.FILE_MISSING, count=1, detail="line 1 (mtllib): 'lost.mtl'"),
)


def outcome(uid: str, notes: tuple[Note, ...]) -> Outcome:
    return Outcome(
        uid=uid,
        uri=f"{uid}.obj",
        sha256=None,
        status=Status.REJECTED,
        regime=None,
        reason=Reason.UNTEXTURED,
        detail="",
        notes=notes,
        shard=None,
        seconds=1.0,
        measurements=Measurements(faces=12),
    )


@pytest.fixture
def part(tmp_path) -> LedgerPart:
    (tmp_path / "ledger").mkdir()
    part = LedgerPart(job=0, outcomes=(outcome("a", NOTES), outcome("b", ()), outcome("c", NOTES[:1])), shards=())
    write_ledger_part(tmp_path, part)
    return part


def test_notes_are_read_as_written_and_counted_in_sql(part, tmp_path):
    assert read_ledger_part(part_path(tmp_path, 0)) == part
    counts = duckdb.sql(
        f"SELECT n.kind, count(*), sum(n.count) FROM (SELECT unnest(notes) AS n FROM '{tmp_path}/ledger/*.parquet')"
        " GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert counts == [("faces_left_out", 2, 6), ("file_missing", 1, 1)]


def rewritten(path, change) -> None:
    table = change(pq.read_table(path))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    path.write_bytes(sink.getvalue())


def test_a_part_written_before_a_column_came_is_read(part, tmp_path):
    path = part_path(tmp_path, 0)
    rewritten(path, lambda table: table.drop_columns(["notes", "texture_score"]))
    found = read_ledger_part(path).outcomes
    assert [row.uid for row in found] == ["a", "b", "c"] and [row.notes for row in found] == [(), (), ()]
    assert found[0].measurements == Measurements(faces=12)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["status"]),
        lambda table: table.append_column("evil", pa.nulls(len(table), pa.string())),
        lambda table: table.set_column(
            table.column_names.index("faces"), "faces", pa.array(["12"] * len(table), pa.string())
        ),
    ],
)
def test_other_columns_are_refused_by_name_of_the_file(part, tmp_path, change):
    path = part_path(tmp_path, 0)
    rewritten(path, change)
    with pytest.raises(UserError, match=f"{path}: no readable ledger part .*columns"):
        read_ledger_part(path)
