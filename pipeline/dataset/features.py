"""Types of the fields of a sample, for the front matter of a dataset's card. The `datasets` package takes them from
there; without them it infers types from the first five samples, and drops without a word what those happen to lack."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from schemas.codec import fields_of
from schemas.ledger import Measurements
from schemas.mesh import Attribution
from schemas.sample import Regime

Kind = str | list[Any] | dict[str, Any]
"""Type of a value: a name that `datasets` knows, a list of one kind, or kinds by name."""
_ROWS, _MATRICES, _COLOR = [["float32"]], [[["float64"]]], ["float64"]
_MESH: dict[str, Kind] = {
    "vertices": _ROWS,
    "normals": _ROWS,
    "uv": _ROWS,
    "faces": [["int32"]],
    "single_sided": ["bool"],
}
_NAMES = {int: "int64", float: "float64", str: "string"}
SHADING: dict[str, dict[str, Kind]] = {
    "pbr": {
        "light": {
            "sky": _COLOR,
            "ground": _COLOR,
            "lamp": _COLOR,
            "lamp_azimuth_deg": "float64",
            "lamp_elevation_deg": "float64",
        },
    },
    "cycles": {"light": {"sky": "float64", "sun": "float64", "direction": ["float64"]}, "samples": "int64"},
}
"""Entries of `shading` in a sample's JSON beside renderer and tone mapping, by the kind of lit views."""


def kinds_of(regime: Regime, config: Mapping[str, Any], caption_levels: Collection[str]) -> dict[str, Kind]:
    """Return the types of every field that a sample of a regime may have, as `datasets` names them, in a dataset of a
    configuration whose samples have captions of some levels."""
    lit, materials = config["views"].get("lit", "none"), bool(config.get("materials"))
    kinds: dict[str, Kind] = {"__key__": "string", "__url__": "string"}
    for field in fields_of(regime, lit != "none", materials):
        kinds[field] = _MESH if field == "mesh.npz" else "image"
    return kinds | {"json": _json(lit, materials, caption_levels)}


def _json(lit: str, materials: bool, caption_levels: Collection[str]) -> dict[str, Kind]:
    measured = Measurements().json(materials)
    kinds: dict[str, Kind] = dict.fromkeys(("uid", "regime", "caption"), "string")
    kinds |= {
        "schema_version": "int64",
        "source": dict.fromkeys((*asdict(Attribution()), "uri"), "string"),
        "cameras": {"world_to_cam": _MATRICES, "projection": _MATRICES},
        "frame": {"center": ["float64"], "scale": "float64"},
        "measurements": {name: _NAMES[type(value)] for name, value in measured.items()},
        "versions": {"seqtex-forge": "string"},
    }
    if caption_levels:
        kinds["captions"] = dict.fromkeys(sorted(caption_levels), "string")
    if materials:
        kinds["materials"] = {"emissive_strength": "float64"}
    if lit != "none":
        kinds["shading"] = {"renderer": "string", "tone_mapping": "string"} | SHADING.get(lit, {})
    return kinds


def feature_lines(kinds: Mapping[str, Kind], indent: str) -> Iterator[str]:
    """Yield the YAML of fields by name, one line a value. Names are quoted: those of captions come from a table."""
    for name, kind in kinds.items():
        if isinstance(kind, dict):
            yield f"{indent}- name: {json.dumps(name)}"
            yield f"{indent}  struct:"
            yield from feature_lines(kind, f"{indent}  ")
        else:
            yield f"{indent}- {{name: {json.dumps(name)}, {_flow(kind)}}}"


def _flow(kind: str | list[Any]) -> str:
    return f"dtype: {kind}" if isinstance(kind, str) else f"list: {{{_flow(kind[0])}}}"
