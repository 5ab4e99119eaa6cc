"""docs/data-format.md: its code reads a dataset, and the reader that it gives to strangers gets our numbers."""

import re
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.codec import EXTENSIONS, LIT, MATERIAL_FIELDS, SCHEMA_VERSION, UV_FIELDS, VIEW_FIELDS, decode
from schemas.mesh import LAYOUTS
from schemas.sample import Regime, UvMaps, Views
from schemas.shards import read_shard
from tests.support.varied_dataset import write_varied_dataset

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data-format.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
READER = next(block for block in BLOCKS if "tarfile" in block)


@pytest.fixture(scope="module")
def forge(tmp_path_factory) -> Path:
    write_varied_dataset(out := tmp_path_factory.mktemp("varied") / "forge")
    return out


def assert_maps(found: dict[str, np.ndarray], maps: Views | UvMaps) -> None:
    assert set(found) == {field.name for field in fields_of(maps)} - {"lit", "materials"}
    for name, array in found.items():
        ours = getattr(maps, name)
        if name == "opacity":
            np.testing.assert_array_equal(array, 255 if ours is None else ours)
        elif name in ("position", "normal"):
            assert array.dtype == ours.dtype and array.shape == ours.shape
            np.testing.assert_allclose(array, ours, rtol=0, atol=2e-7)
        else:
            np.testing.assert_array_equal(array, ours, strict=True)


def test_the_reader_imports_nothing_of_ours_and_is_short():
    assert len(READER.splitlines()) <= 40
    lines = re.findall(r"^(?:from|import) ([\w, ]+?)(?: as .*| import .*)?$", READER, flags=re.MULTILINE)
    assert ", ".join(lines).split(", ") == ["io", "json", "tarfile", "numpy", "PIL"]


@pytest.mark.parametrize("regime", list(Regime), ids=str)
def test_the_reader_gets_our_arrays(forge, regime):
    """Its loop over samples keeps the last one, so a loop around it gives each sample to it alone."""
    definitions, loop = READER.split("\n\n\nfor fields in ")
    body = loop.partition(":\n")[2]
    names: dict[str, Any] = {}
    exec(definitions, names)
    for shard in sorted((forge / "shards").glob(f"{regime}-*.tar")):
        found = list(names["samples"](str(shard)))
        assert found == [fields for _, fields in read_shard(shard)]
        for fields in found:
            read = names | {"fields": fields}
            exec("if True:\n" + body, read)
            truth = decode(fields)
            assert read["meta"] == truth.meta
            for name, matrices in read["cameras"].items():
                np.testing.assert_array_equal(matrices, getattr(truth.cameras, name), strict=True)
            assert_maps(read["views"], truth.views)
            assert ("uv" in read) == ("mesh" in read) == (truth.uv is not None)
            if truth.uv is not None:
                assert_maps(read["uv"], truth.uv)
                for name in ("vertices", "normals", "uv", "faces"):
                    np.testing.assert_array_equal(read["mesh"][name], getattr(truth.mesh, name), strict=True)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "litdata" not in block], ids=lambda text: text[:24])
def test_every_block_runs(forge, block):
    exec(block.replace("/data/forge", str(forge)), {"__name__": "page"})


def test_the_table_names_every_field():
    table = PAGE.partition("| field | regimes |")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w.]+)`", row.split(" | ")[0])]
    assert len(names) == len(set(names)) and set(names) == EXTENSIONS
    assert {"json", *VIEW_FIELDS, LIT, *UV_FIELDS, *MATERIAL_FIELDS} == EXTENSIONS


def test_the_table_of_the_json_names_every_key(forge):
    table = PAGE.partition("| key | value |")[2].partition("\n\n")[0]
    keys = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split(" | ")[0])]
    _, fields = next(read_shard(forge / "shards" / "textured-000000.tar"))
    assert set(keys) == set(decode(fields).meta) | {"shading", "captions", "materials"}
    assert f"key; {SCHEMA_VERSION};" in table and all(f"`{layout}`" in table for layout in LAYOUTS)
