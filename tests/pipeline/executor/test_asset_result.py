"""A parent believes what an asset's process left only where it looks like what such a process leaves."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.pictures import RAW_BYTES, SIDE
from pipeline.executor.asset_result import MAX_OUTCOME_BYTES, PICTURE, read_asset_result, write_asset_result
from pipeline.filter.signature import NUMBERS
from schemas.codec import LIT, OPACITY, VIEW_FIELDS
from schemas.ledger import Measurements, Note, NoteKind, Outcome, Reason, Rejected, Status
from schemas.sample import Regime

SAMPLE = dict.fromkeys(("json", *VIEW_FIELDS, LIT), b"x")
LEFT = dict(
    regime=Regime.MV_ONLY,
    rejected=Rejected(reason=Reason.NO_MESH, detail="none"),
    notes=(Note(kind=NoteKind.FACES_LEFT_OUT, count=2, detail="line 81: a face with 2 corners"),),
    measurements=Measurements(
        faces=12, color_std=0.25, size_x=1e30, layout="grown", layout_fault="no_mesh", signature="0a" * (2 * NUMBERS)
    ),
    stage_seconds=1.5,
)
ROW = Outcome(
    uid="a",
    uri="a.glb",
    sha256=None,
    status=Status.FAILED,
    regime=None,
    reason=None,
    detail="",
    shard=None,
    seconds=2.0,
    sandbox="limits",
    measurements=Measurements(),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_asset_result(tmp_path, ROW, 7) is None
    write_asset_result(tmp_path, **LEFT, sample=SAMPLE)
    found = read_asset_result(tmp_path, ROW, 7)
    assert found is not None
    assert found.outcome == dataclasses.replace(
        ROW,
        status=Status.ACCEPTED,
        regime=Regime.MV_ONLY,
        reason=Reason.NO_MESH,
        detail="none",
        notes=LEFT["notes"],
        shard="mv_only-000007.tar",
        measurements=LEFT["measurements"],
    )
    assert found.stage_seconds == 1.5
    assert {file.name: file.read_bytes() for file in found.files} == SAMPLE


def changed(**values: object):
    def change(folder: Path) -> None:
        path = folder / "outcome.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def measured(**values: object):
    return changed(measurements=dataclasses.asdict(LEFT["measurements"]) | values)


def replaced(name: str, by):
    def change(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return change


def secret(folder: Path) -> Path:
    path = folder.parent / "secret"
    path.write_bytes(b"canary")
    return path


HOSTILE = {
    "no JSON": lambda d: (d / "outcome.json").write_bytes(b"\xff{"),
    "a list": lambda d: (d / "outcome.json").write_text("[]"),
    "100,000 brackets": lambda d: (d / "outcome.json").write_text("[" * 100_000),
    "too large": lambda d: (d / "outcome.json").write_bytes(b" " * (MAX_OUTCOME_BYTES + 1)),
    "a link": replaced("outcome.json", lambda p: p.symlink_to(secret(p.parent))),
    "a pipe": replaced("outcome.json", os.mkfifo),
    "unknown regime": changed(regime="best"),
    "unknown reason": changed(rejected={"reason": "because", "detail": ""}),
    "detail is no text": changed(rejected={"reason": "flat", "detail": 3}),
    "neither sample nor reason": changed(regime=None, rejected=None),
    "no reason for having no map": changed(rejected=None),
    "a reason beside a map": changed(regime="textured"),
    "a duplicate of what it cannot know": changed(rejected={"reason": "duplicate", "detail": "same bytes as a"}),
    "a note of no kind": changed(notes=[{"kind": "odd", "count": 1, "detail": ""}]),
    "a note without a count": changed(notes=[{"kind": "file_missing", "count": 0, "detail": ""}]),
    "two notes of a kind": changed(notes=[{"kind": "file_missing", "count": 1, "detail": ""}] * 2),
    "notes are no list": changed(notes=7),
    "endless": changed(stage_seconds=float("inf")),
    "a measurement is text": measured(faces="12"),
    "a measurement is true": measured(faces=True),
    "a measurement is no number": measured(color_std=float("nan")),
    "a measurement is too large": measured(faces=1 << 64),
    "a measurement is unknown": measured(evil=1),
    "a signature is no hex": measured(signature="x" * (4 * NUMBERS)),
    "a signature is short": measured(signature="ab"),
    "a layout of nobody": measured(layout="\ud800"),
    "a fault of nothing": measured(layout_fault="because"),
    "a field is a link": replaced("fields/rgb.webp", lambda p: p.symlink_to(secret(p.parents[1]))),
    "a field is a second name": replaced("fields/rgb.webp", lambda p: p.hardlink_to(secret(p.parents[1]))),
    "a field is a folder": replaced("fields/rgb.webp", Path.mkdir),
    "a field is missing": lambda d: (d / "fields/rgb.webp").unlink(),
    "a field of the other regime": lambda d: (d / "fields" / OPACITY).write_bytes(b""),
    "a field of another name": lambda d: (d / "fields/evil.pickle").write_bytes(b""),
    "a name that leads out": replaced("fields/rgb.webp", lambda p: (p.parent / "..%2f..%2fx.json").write_bytes(b"")),
    "a field is too large": lambda d: os.truncate(d / "fields/rgb.webp", 1 << 40),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "asset"
    folder.mkdir()
    write_asset_result(folder, **LEFT, sample=SAMPLE)
    HOSTILE[name](folder)
    with pytest.raises(ValueError) as caught:
        read_asset_result(folder, ROW, 7)
    assert "canary" not in str(caught.value)


def test_a_folder_of_fields_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder, other = tmp_path / "asset", tmp_path / "other"
    folder.mkdir()
    write_asset_result(folder, **LEFT, sample=SAMPLE)
    (folder / "fields").rename(other)
    (folder / "fields").symlink_to(other)
    with pytest.raises(ValueError, match="no folder"):
        read_asset_result(folder, ROW, 7)


REJECTED = LEFT | {"regime": None, "rejected": Rejected(reason=Reason.UNTEXTURED, detail="min_color_std: 0")}


def test_the_pixels_of_a_rejected_asset_become_a_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = 255
    write_asset_result(tmp_path, **REJECTED, sample={}, picture=pixels.tobytes())
    found = read_asset_result(tmp_path, ROW, 7)
    assert found is not None and found.outcome.reason is Reason.UNTEXTURED and not found.files
    picture = Image.open(io.BytesIO(found.picture))
    assert (picture.format, picture.size) == ("WEBP", (SIDE, SIDE))
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - pixels[..., :3]).mean() < 60


@pytest.mark.parametrize("size", [0, RAW_BYTES - 1, RAW_BYTES + 1, 1 << 40])
def test_pixels_of_another_number_are_refused(tmp_path: Path, size: int) -> None:
    write_asset_result(tmp_path, **REJECTED, sample={}, picture=b"")
    os.truncate(tmp_path / PICTURE, size)
    with pytest.raises(ValueError, match=PICTURE):
        read_asset_result(tmp_path, ROW, 7)


def test_pixels_behind_a_link_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    folder.mkdir()
    write_asset_result(folder, **REJECTED, sample={})
    (folder / PICTURE).symlink_to(secret(tmp_path))
    with pytest.raises(ValueError, match="no plain file"):
        read_asset_result(folder, ROW, 7)
