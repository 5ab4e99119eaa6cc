"""Curation from outside: a table of what people or models found about assets, and a condition on its columns."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.sources.selection import SelectConfig
from pipeline.sources.tables.conditions import columns, met, parse
from schemas.errors import UserError
from schemas.mesh import MeshRef
from schemas.storage import file_sha256

RECORDED = "sha256:"
"""Prefix of a table in `dataset.json`: its content counts, where it lay does not."""
_UID = ("uid", "UID", "Uid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The uids of a table, and which of them it selects; counts the assets of a source that were looked up."""

    table: str
    """File name of the table and the begin of its sha256."""
    rows: dict[str, bool]
    """True by uid if its row meets the condition."""
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, *names: str | None) -> bool:
        """Look up an asset by its names, of which the table may have any, and return whether it is selected."""
        found = next((self.rows[name] for name in names if name in self.rows), None)
        self.counts["absent" if found is None else "selected" if found else "unfit"] += 1
        return bool(found)

    def taken(self, refs: Iterable[MeshRef]) -> Iterator[MeshRef]:
        """Yield the assets that are selected."""
        return (ref for ref in refs if self.take(ref.uid))

    def summary(self) -> str:
        """One line on the assets that were looked up."""
        selected, unfit, absent = (self.counts[name] for name in ("selected", "unfit", "absent"))
        return f"by {self.table}: {selected:,} selected, {unfit:,} do not meet select.where, {absent:,} are not in it"


def recorded(scores: str) -> str:
    """Return what `dataset.json` has for a table: its sha256. Raises UserError where it cannot be read."""
    if not scores or scores.startswith(RECORDED):
        return scores
    path = Path(scores).expanduser()
    try:
        return RECORDED + file_sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_scores(select: SelectConfig) -> Scores | None:
    """Read the table that `select.scores` names and evaluate `select.where` for its rows; None where none is named.

    Raises UserError where the table cannot be read, has no `uid` or a column that the condition names, has a uid twice,
    or its columns are of other kinds than the condition asks for (UsageError)."""
    if not select.scores:
        return None
    if select.scores.startswith(RECORDED):
        raise UserError(
            f"select.scores: the dataset was built with a table of {select.scores}, which it does not hold; name its "
            "file by --select.scores, or give --select.scores '' --select.where ''"
        )
    path = Path(select.scores).expanduser()
    condition = parse(select.where) if select.where else None
    sha256 = recorded(select.scores).removeprefix(RECORDED)
    uids, table = _read(path, columns(condition) if condition else set())
    fits = met(condition, table).to_pylist() if condition else [True] * len(uids)
    rows = {uid: fit is True for uid, fit in zip(uids, fits, strict=True)}
    if len(rows) < len(uids):
        twice, times = Counter(uids).most_common(1)[0]
        raise UserError(f"{path}: the uid {twice!r} stands in {times} rows; keep one row of each uid")
    return Scores(table=f"{path.name} (sha256 {sha256[:12]})", rows=rows)


def _read(path: Path, wanted: set[str]) -> tuple[list[str], pa.Table]:
    """The uids of a table, and its columns that are wanted."""
    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
                uid = _checked(path, file.schema_arrow.names, wanted)
                table = file.read(columns=[uid, *sorted(wanted - {uid})], use_threads=False)
        elif path.suffix.lower() == ".csv":
            options = pa_csv.ConvertOptions(column_types=dict.fromkeys(_UID, pa.string()), strings_can_be_null=True)
            pa.enable_signal_handlers(False)  # its pipe for them would be closed once more in every forked child
            table = pa_csv.read_csv(path, pa_csv.ReadOptions(use_threads=False), convert_options=options)
            uid = _checked(path, table.column_names, wanted)
        elif path.suffix.lower() == ".txt":
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            table = pa.table({"uid": [line.strip() for line in lines if line.strip()]})
            uid = _checked(path, table.column_names, wanted)
        else:
            raise UserError(
                f"{path}: select.scores is no table; give a .parquet or .csv with a column uid, or a .txt with one uid "
                "a line"
            )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    uids = table[uid].to_pylist()
    if wrong := [number for number, name in enumerate(uids, start=1) if not isinstance(name, str) or not name]:
        raise UserError(
            f"{path}: {len(wrong)} rows have no text as uid, first row {wrong[0]}; give each its asset's uid"
        )
    return uids, table


def _checked(path: Path, names: list[str], wanted: set[str]) -> str:
    """Return the name of the column of uids. Raises UserError where it or one that is wanted is missing."""
    uid = next((name for name in _UID if name in names), None)
    if uid is None:
        raise UserError(f"{path}: no column uid among {', '.join(names[:20])}; name the column of uids so")
    if missing := sorted(wanted - set(names)):
        raise UserError(f"{path}: no column {missing[0]!r}, which select.where names; it has {', '.join(names[:20])}")
    return uid


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(f"{path}: select.scores cannot be read ({reason}); give a .parquet or .csv with a column uid")
