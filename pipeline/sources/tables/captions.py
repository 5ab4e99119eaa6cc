"""Captions of assets from a user's table: one text each, or one for each of several levels (short, medium, long)."""

import csv
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.sources.tables.json_objects import json_entries
from schemas.dataset import parquet_table
from schemas.errors import UserError

_REMEDY = "give a .csv, .parquet, .jsonl or .json with uid and caption"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """Texts by level for each asset that has any."""

    levels: tuple[str, ...] = ()
    """The best first; empty: one caption without a name."""
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Texts by uid: one for every level, "" where it has none; without levels one text."""

    def of(self, *names: str | None, otherwise: str) -> tuple[str, dict[str, str]]:
        """Return the caption of an asset that may be listed under any of these names, and its texts by level: every
        level for every asset, so that all samples have the same keys. The caption is the first text there is."""
        texts = next((self.rows[name] for name in names if name in self.rows), ("",) * len(self.levels))
        return next(filter(None, texts), otherwise), dict(zip(self.levels, texts, strict=True) if self.levels else ())


def read_captions(table: str, levels: Sequence[str] = (), only: Set[str] | None = None) -> Captions:
    """Read the captions of a .csv or .parquet (columns), .jsonl (an object a line) or .json (an object of texts or of
    objects, by uid). `levels`: its columns or keys to keep; none: `caption` alone, and a .csv without names has the two
    columns uid and caption in this order (as Cap3D's). `only`: the uids to keep; None: all.

    Raises UserError where it cannot be read, or lacks a level."""
    if not table:
        return Captions(levels=tuple(levels))
    path = Path(table).expanduser()
    wanted = tuple(levels) or ("caption",)
    try:
        rows = {
            uid: texts for uid, texts in _rows(path, wanted) if uid and any(texts) and (only is None or uid in only)
        }
    except (OSError, KeyError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path}: no captions can be read ({error}); {_REMEDY}") from error
    if rows and (missing := [w for i, w in enumerate(wanted) if not any(texts[i] for texts in rows.values())]):
        raise UserError(f"{path}: no asset has a caption of the level {missing[0]!r}; name levels that it has")
    return Captions(levels=tuple(levels), rows=rows)


def _rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield uid and texts of every row."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        columns = parquet_table(path.read_bytes()).select(["uid", *wanted]).to_pydict()
        for uid, *texts in zip(columns["uid"], *(columns[name] for name in wanted), strict=True):
            yield _row(uid, texts)
    elif suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            for line in filter(str.strip, file):
                entry = _object(json.loads(line))
                yield _row(entry["uid"], [entry.get(name) for name in wanted])
    elif suffix == ".json":
        for uid, entry in json_entries(path):
            named = {wanted[0]: entry} if isinstance(entry, str | None) else _object(entry)
            yield _row(uid, [named.get(name) for name in wanted])
    else:
        yield from _csv_rows(path, wanted)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} is no JSON object")
    return value


def _row(uid: Any, texts: Sequence[Any]) -> tuple[str, tuple[str, ...]]:
    return str(uid or ""), tuple(str(text or "").strip() for text in texts)


def _csv_rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    lower = [cell.lower() for cell in header]
    names = {name: header.index(name) if name in header else lower.index(name.lower()) for name in wanted
             if name in header or name.lower() in lower}  # fmt: skip
    if "uid" in lower and len(names) == len(wanted):
        uid, places, rows = lower.index("uid"), [names[name] for name in wanted], rows[1:]
    elif wanted == ("caption",):
        uid, places = 0, [1]
    else:
        missing = next((name for name in wanted if name not in names), "uid")
        raise ValueError(f"no column {missing!r} among {', '.join(header[:20])}")
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(uid, *places):
            raise ValueError(f"row {number} has {len(row)} columns")
        yield _row(row[uid], [row[place] for place in places])
