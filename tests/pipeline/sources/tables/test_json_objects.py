"""A JSON object read entry by entry is what `json` reads at once, wherever its pieces are cut."""

import json
from pathlib import Path

import pytest

from pipeline.sources.tables import json_objects
from pipeline.sources.tables.json_objects import json_entries

ENTRIES = {
    "a": {"deep": [1, {"x": [None, True, -1.5e-3]}], "text": 'quote " comma , brace } \\'},
    'na"me,': "größe 🫖",
    "": 12345678,
    "empty": {},
    "list": [],
    "null": None,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_entries_are_those_of_json(tmp_path: Path, monkeypatch, chunk: int, form: dict) -> None:
    path = tmp_path / "o.json"
    path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(ENTRIES, **form).encode() + b"\n")
    monkeypatch.setattr(json_objects, "_CHUNK", chunk)
    assert list(json_entries(path)) == list(ENTRIES.items())


@pytest.mark.parametrize("text", ["{}", " { } \n"])
def test_an_empty_object_has_no_entries(tmp_path: Path, text: str) -> None:
    (tmp_path / "o.json").write_text(text)
    assert list(json_entries(tmp_path / "o.json")) == []


def test_every_cut_is_an_error(tmp_path: Path) -> None:
    path, data = tmp_path / "o.json", json.dumps(ENTRIES).encode()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut off or damaged|no JSON object|unexpected end"):
            list(json_entries(path))


@pytest.mark.parametrize("text", ["[1]", '{"a": 1} x', '{"a" 1}', "{'a': 1}", '{"a": }', "{1: 2}", '{"a": 01}'])
def test_what_is_no_object_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(ValueError, match=r"cut off or damaged|no JSON object"):
        list(json_entries(tmp_path / "o.json"))


def test_an_entry_without_end_is_given_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_objects, "_MAX_ENTRY", 1000)
    monkeypatch.setattr(json_objects, "_CHUNK", 100)
    (tmp_path / "o.json").write_text('{"a": "' + "x" * 5000 + '"}')
    with pytest.raises(ValueError, match="has more than 1,000 characters"):
        list(json_entries(tmp_path / "o.json"))
