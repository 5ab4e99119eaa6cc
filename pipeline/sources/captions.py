"""Captions from a user's table."""

import csv
from pathlib import Path

import pyarrow as pa

from schemas.dataset import read_parquet
from schemas.errors import UserError


def read_captions(path: Path) -> dict[str, str]:
    """uid -> caption of a .parquet or .csv with columns `uid` and `caption`; a .csv without these names has the two
    columns in this order (as Cap3D's). Raises UserError where it cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            columns = read_parquet(path).select(["uid", "caption"]).to_pydict()
            rows = list(zip(columns["uid"], columns["caption"], strict=True))
        else:
            rows = _csv_rows(path)
    except (OSError, KeyError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path}: no captions can be read ({error}); give columns uid and caption") from error
    return {str(uid): str(caption).strip() for uid, caption in rows if uid and caption}


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    uid, caption = 0, 1
    if "uid" in header and "caption" in header:
        uid, caption, rows = header.index("uid"), header.index("caption"), rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(uid, caption):
            raise ValueError(f"row {number} has {len(row)} columns")
    return [(row[uid], row[caption]) for row in rows]
