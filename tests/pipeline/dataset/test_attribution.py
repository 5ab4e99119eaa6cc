"""The attribution as CSV: every sample once, and no cell that a spreadsheet would run."""

import csv
import errno
from pathlib import Path

import pandas
import pytest

from pipeline.dataset.attribution import FILE, attribution_csv, plain
from schemas.dataset import read_parquet
from schemas.errors import UserError
from seqtex.cli.main import main
from tests.support.varied_dataset import SOURCES, write_varied_dataset

DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "=cmd|' /C calc'!A0"]


@pytest.fixture(scope="module")
def forge(tmp_path_factory) -> Path:
    write_varied_dataset(out := tmp_path_factory.mktemp("varied") / "forge")
    return out


def test_cells_that_a_spreadsheet_would_run_get_an_apostrophe():
    assert [plain(cell) for cell in DANGEROUS] == [f"'{cell}" for cell in DANGEROUS]
    for cell in ("", "a=1", "1-2", "'=1", "Zoë", " -", '"=1"'):
        assert plain(cell) == cell


def test_the_command_writes_every_row_and_nothing_that_runs(forge, tmp_path, capsys):
    out = tmp_path / "attribution.csv"
    out.write_text("an earlier one")
    assert main(["attribution", str(forge), "--out", str(out)]) == 0
    rows = read_parquet(forge / FILE).to_pylist()
    assert f"{len(rows)} samples to {out}" in capsys.readouterr().out
    with out.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, strict=True))
    assert found == [{name: plain(cell) for name, cell in row.items()} for row in rows]
    assert {source.title for source in SOURCES} == {row["title"].removeprefix("'") for row in found}
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in found for cell in row.values())
    assert pandas.read_csv(out, keep_default_na=False).to_dict("records") == found
    header, *_ = data = out.read_bytes().split(b"\r\n")
    assert header == b'"uid","shard","name","title","author","licence","url","attribution"' and data[-1] == b""
    assert list(out.parent.iterdir()) == [out]


def test_what_cannot_be_read_or_written_is_named(forge, tmp_path, capsys):
    with pytest.raises(UserError, match=r"nothing/attribution.parquet: no such file; give the folder"):
        attribution_csv(tmp_path / "nothing", tmp_path / "a.csv")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for data, reason in ((b"PAR1", "damaged"), ((forge / "plan.parquet").read_bytes(), "its columns are not")):
        (damaged / FILE).write_bytes(data)
        with pytest.raises(UserError, match=f"attribution.parquet: {reason}.*seqtex repair"):
            attribution_csv(damaged, tmp_path / "a.csv")
    (tmp_path / "folder.csv").mkdir()
    for out, reason in (
        ("missing/a.csv", "No such file"),
        ("folder.csv", "Is a directory"),
        ("f.csv/a.csv", "Not a d"),
    ):
        (tmp_path / "f.csv").touch()
        with pytest.raises(UserError, match=rf"{tmp_path / out}: the attribution cannot be written \({reason}"):
            attribution_csv(forge, tmp_path / out)
    before = (forge / FILE).read_bytes()
    assert main(["attribution", str(forge), "--out", str(forge / FILE)]) == 2
    assert "only a .csv file is written" in capsys.readouterr().err and (forge / FILE).read_bytes() == before


def test_an_error_of_the_store_is_no_damage(forge, tmp_path, monkeypatch, capsys):
    def without_login(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "NoCredentialsError", str(path))

    monkeypatch.setattr(Path, "read_bytes", without_login)
    assert main(["attribution", str(forge), "--out", str(tmp_path / "a.csv")]) == 1
    text = capsys.readouterr().err
    assert text == f"seqtex attribution: {forge / FILE}: NoCredentialsError\n"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["attribution", "--help"])
    assert "seqtex attribution /data/forge --out attribution.csv" in capsys.readouterr().out
