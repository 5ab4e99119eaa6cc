"""The result that an asset's process leaves for its parent: `outcome.json`, and one file per field of a sample. It has
read untrusted bytes, so its parent believes nothing without a look."""

import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.dataset.pictures import RAW_BYTES, encode_picture
from pipeline.filter.signature import is_signature
from schemas.codec import fields_like
from schemas.dataset import shard_name
from schemas.errors import storable
from schemas.ledger import (
    FAILURES,
    LAYOUT_FAULTS,
    MAX_NOTE_CHARS,
    Measurements,
    Note,
    NoteKind,
    Outcome,
    Reason,
    Rejected,
    Status,
)
from schemas.mesh import LAYOUTS
from schemas.sample import Regime
from schemas.shards import MAX_MEMBER_BYTES

OUTCOME, FIELDS, PICTURE = "outcome.json", "fields", "picture.raw"
MAX_OUTCOME_BYTES = 1 << 20
_TEXTS: dict[str, Callable[[str], bool]] = {
    "signature": is_signature,
    "layout": LAYOUTS.__contains__,
    "layout_fault": LAYOUT_FAULTS.__contains__,
}
"""Checks of the measurements that are text, by name."""
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetResult:
    """The result of one asset: its row of the ledger, and the files of its sample."""

    outcome: Outcome
    files: tuple[Path, ...] = ()
    """One for each field of the sample, named by extension."""
    stage_seconds: float = 0.0
    """Time spent in the stages of the pipeline; 0 for an asset that did not get to its end."""
    picture: bytes = b""
    """Picture of a rejected asset that could be loaded, WebP (`pipeline.dataset.pictures`)."""


def write_asset_result(
    directory: Path,
    regime: Regime | None,
    rejected: Rejected | None,
    notes: tuple[Note, ...],
    measurements: Measurements,
    stage_seconds: float,
    sample: dict[str, bytes],
    picture: bytes | None = None,
) -> None:
    """Write the result of an asset's process: the fields of its sample, or its picture, then `outcome.json`.
    `rejected`: why there is no sample, or no UV map in it; `picture`: the pixels of a rejected asset."""
    if sample:
        (directory / FIELDS).mkdir()
    for name, data in sample.items():
        (directory / FIELDS / name).write_bytes(data)
    if picture is not None:
        (directory / PICTURE).write_bytes(picture)
    outcome = {
        "regime": regime,
        "rejected": asdict(rejected) if rejected else None,
        "notes": [asdict(note) for note in notes],
        "measurements": asdict(measurements),
        "stage_seconds": stage_seconds,
    }
    (directory / OUTCOME).write_text(json.dumps(outcome))


def read_asset_result(directory: Path, row: Outcome, job: int) -> AssetResult | None:
    """Read what an asset's process left, as a result whose outcome completes `row`; None where it left nothing.

    Raises ValueError where it is not what `write_asset_result` writes: other types or names, links and other things
    that are no files, sizes beyond every limit."""
    if not os.path.lexists(directory / OUTCOME):
        return None
    _check_file(directory / OUTCOME, MAX_OUTCOME_BYTES)
    try:
        left = json.loads((directory / OUTCOME).read_bytes())
        regime = Regime(left["regime"]) if left["regime"] is not None else None
        rejected = None if left["rejected"] is None else _rejected(left["rejected"])
        notes = _notes(left["notes"])
        measurements, stage_seconds = _measurements(left["measurements"]), float(left["stage_seconds"])
        files = () if regime is None else _fields(directory / FIELDS, regime)
        picture = _picture(directory / PICTURE) if regime is None else b""
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{OUTCOME} is not what an asset's process leaves ({error!r})") from error
    if not math.isfinite(stage_seconds) or (rejected is None) != (regime is Regime.TEXTURED):
        raise ValueError(f"{OUTCOME} contradicts itself")
    reason = rejected.reason if rejected else None
    outcome = replace(
        row,
        status=Status.ACCEPTED if regime else (Status.FAILED if reason in FAILURES else Status.REJECTED),
        regime=regime,
        reason=reason,
        detail=rejected.detail if rejected else "",
        notes=notes,
        shard=shard_name(regime, job) if regime else None,
        measurements=measurements,
    )
    return AssetResult(outcome=outcome, files=files, stage_seconds=stage_seconds, picture=picture)


def _rejected(left: dict[str, Any]) -> Rejected:
    if not isinstance(left["detail"], str):
        raise ValueError(f"{OUTCOME}: the detail is not text")
    if left["reason"] == Reason.DUPLICATE:
        raise ValueError(f"{OUTCOME}: the process of one asset knows no other")
    return Rejected(reason=Reason(left["reason"]), detail=left["detail"])


def _notes(left: list[dict[str, Any]]) -> tuple[Note, ...]:
    """At most one note of a kind, by kind."""
    notes = tuple(Note(kind=NoteKind(note["kind"]), count=note["count"], detail=note["detail"]) for note in left)
    if [note.kind for note in notes] != sorted({note.kind for note in notes}):
        raise ValueError(f"{OUTCOME}: the notes are not one of a kind, in order")
    for note in notes:
        if type(note.count) is not int or not 0 < note.count < 2**63 or not isinstance(note.detail, str):
            raise ValueError(f"{OUTCOME}: the note {note.kind} has no count or no detail")
    return tuple(replace(note, detail=storable(note.detail[:MAX_NOTE_CHARS])) for note in notes)


def _measurements(left: dict[str, Any]) -> Measurements:
    for field in fields(Measurements):
        value, kinds = left[field.name], _KINDS[str(field.type).removesuffix(" | None")]
        if value is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{OUTCOME}: {field.name} is a {type(value).__name__}")
        if isinstance(value, str) and not _TEXTS[field.name](value):
            raise ValueError(f"{OUTCOME}: {field.name} is {value[:80]!r}")
        if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**63):
            raise ValueError(f"{OUTCOME}: {field.name} is out of range")
    return Measurements(**left)


def _fields(folder: Path, regime: Regime) -> tuple[Path, ...]:
    """The files of a sample: all that its regime has, no others."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise ValueError(f"{folder.name} is no folder")
    files = sorted(folder.iterdir())
    names = {file.name for file in files}
    required = fields_like(regime, names)
    if names != required:
        raise ValueError(f"{folder.name} holds {sorted(names)[:20]}, expected {sorted(required)}")
    for file in files:
        _check_file(file, MAX_MEMBER_BYTES)
    return tuple(files)


def _picture(path: Path) -> bytes:
    """Encode the pixels that the process left; empty if it left none."""
    if not os.path.lexists(path):
        return b""
    _check_file(path, RAW_BYTES)
    if len(raw := path.read_bytes()) != RAW_BYTES:
        raise ValueError(f"{PICTURE} has {len(raw):,} bytes, {RAW_BYTES:,} are a picture")
    return encode_picture(raw)


def _check_file(path: Path, max_bytes: int) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ValueError(f"{path.name} is no plain file")
    if status.st_size > max_bytes:
        raise ValueError(f"{path.name} has {status.st_size:,} bytes, at most {max_bytes:,}")
