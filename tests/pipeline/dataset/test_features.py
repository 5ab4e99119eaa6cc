"""The types that a card states are those of what the pipeline writes."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import yaml

from geometry.shading import Light
from pipeline.asset import process_asset
from pipeline.dataset.features import SHADING, feature_lines, kinds_of
from pipeline.render.cycles import LIGHT
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural.assets import procedural
from schemas.codec import encode
from schemas.sample import Regime, TextureSample
from tests.support.small_build import CFG

NAMES = {int: "int64", float: "float64", str: "string"}
LEVELS = {"short": "a", 'on: "{x}"\n---': "b"}
"""Names of columns, as a stranger's table may have them."""


def kind_of(value: Any) -> Any:
    """The type of a value of a JSON file."""
    if isinstance(value, Mapping):
        return {name: kind_of(entry) for name, entry in value.items()}
    return [kind_of(value[0])] if isinstance(value, list | tuple) else NAMES[type(value)]


def from_yaml(entry: Any) -> Any:
    """The type that an entry of the front matter states."""
    if isinstance(entry, list):
        return {field.pop("name"): from_yaml(field) for field in entry}
    (form, inner), *more = entry.items()
    assert not more and form in ("dtype", "list", "struct")
    return [from_yaml(inner)] if form == "list" else inner if form == "dtype" else from_yaml(inner)


@pytest.mark.parametrize("rich", [False, True], ids=["plain", "with everything"])
def test_the_types_are_those_of_a_sample(tmp_path, rich):
    ref = replace(next(iter(procedural(1, tmp_path, clean=True))), captions=LEVELS if rich else {})
    cfg = replace(CFG, materials=rich, views=RenderConfig(resolution=32, lit="pbr" if rich else "none"))
    sample = process_asset(ref, cfg).result
    assert isinstance(sample, TextureSample) and sample.mesh is not None
    fields = encode(replace(sample, mesh=replace(sample.mesh, single_sided=np.ones(len(sample.mesh.faces), bool))))
    kinds = kinds_of(Regime.TEXTURED, cfg.recorded(), LEVELS if rich else ())
    assert kinds["json"] == kind_of(json.loads(fields["json"]))
    assert kinds.keys() == fields.keys() | {"__key__", "__url__"}
    with np.load(io.BytesIO(fields["mesh.npz"])) as mesh:
        columns = {name: str(array.dtype) if array.ndim == 1 else [str(array.dtype)] for name, array in mesh.items()}
    assert kinds["mesh.npz"] == {name: [kind] for name, kind in columns.items()}
    assert from_yaml(yaml.safe_load("\n".join(feature_lines(kinds, "  ")))) == kinds


def test_the_types_of_light_are_those_of_the_renderers():
    assert SHADING["pbr"] == {"light": kind_of(asdict(Light()))}
    assert SHADING["cycles"] == {"light": kind_of(LIGHT), "samples": "int64"}
    assert kinds_of(Regime.MV_ONLY, {"views": {}}, ()).keys().isdisjoint(("mesh.npz", "lit.webp", "uv_rgb.webp"))
