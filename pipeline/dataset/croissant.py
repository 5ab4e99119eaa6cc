"""Croissant metadata (`croissant.json`): the files of a dataset and their fields, for machines. Version 1.0 of
http://mlcommons.org/croissant, in JSON-LD."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.dataset.attribution import FILE as ATTRIBUTION
from pipeline.dataset.card import CardFacts
from schemas.codec import fields_of
from schemas.dataset import DatasetInfo, ShardRecord, config_hash
from schemas.ledger import LEDGER_SCHEMA
from schemas.sample import Regime

_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet",
    "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references",
    "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
CONTEXT = dict(
    sorted(
        (
            {name: f"cr:{name}" for name in _TERMS}
            | {name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")}
            | {"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/"}
            | {"cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/"}
            | {"dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo"}
            | {"dataType": {"@id": "cr:dataType", "@type": "@vocab"}}
        ).items()
    )
)
"""The context of the specification."""
FILES = {
    "dataset.json": ("application/json", "The resolved configuration of the build and its hash."),
    "plan.parquet": ("application/x-parquet", "Every planned asset with source, licence and attribution."),
    ATTRIBUTION: ("application/x-parquet", "Title, author, licence and page of every sample."),
    "index.json": ("application/json", "A wids-shard-index-v1 with the sha256 of every shard and ledger part."),
}
"""Single files: format and description."""
FORMATS = {
    "json": "application/json",
    "webp": "image/webp",
    "png": "image/png",
    "npz": "application/zip",
}


def croissant_json(
    info: DatasetInfo, facts: CardFacts, shards: Sequence[ShardRecord], sha256: Mapping[str, str]
) -> bytes:
    """Describe a dataset in Croissant; equal datasets give equal bytes. `sha256`: of each of `FILES`."""
    counts = facts.counts
    entries = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "SeqTex_Forge_dataset",
        "description": f"Views and UV texture maps of 3D assets: {counts.textured} textured samples and "
        f"{counts.mv_only} with views alone, from {info.planned} assets.",
        "license": sorted(facts.licences()) or ["not stated"],
        "version": f"{info.schema_version}.0.0",
        "citeAs": f"SeqTex Forge dataset, plan {info.plan_sha256[:16]}, configuration {config_hash(info.config)[:16]}, "
        f"built by seqtex-forge {info.code_version}; the works of its samples as attribution.parquet lists them",
        "keywords": ["3d", "texture", "multi-view", "webdataset", "seqtex"],
        "creator": {"@type": "Organization", "name": f"seqtex-forge {info.code_version}"},
        "identifier": f"{config_hash(info.config)}:{info.plan_sha256}",
        "distribution": [*_files(sha256), *_shards(shards), LEDGER_FILES, *_fields(info, shards)],
        "recordSet": [*_samples(shards), _ledger()],
    }
    return as_json(entries)


def as_json(entries: Mapping[str, Any]) -> bytes:
    """Return the text of a Croissant file."""
    return json.dumps(entries, indent=1, allow_nan=False).encode() + b"\n"


def _files(sha256: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, (encoding, description) in FILES.items():
        yield _file_object(name, encoding, sha256[name]) | {"description": description}


def _file_object(path: str, encoding: str, sha256: str) -> dict[str, Any]:
    named = {"@type": "cr:FileObject", "@id": path, "name": path, "contentUrl": path}
    return named | {"encodingFormat": encoding, "sha256": sha256}


def _shards(shards: Sequence[ShardRecord]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        size = {"contentSize": f"{shard.bytes} B"}
        yield _file_object(f"shards/{shard.name}", "application/x-tar", shard.sha256) | size


LEDGER_FILES = {
    "@type": "cr:FileSet",
    "@id": "ledger-files",
    "name": "ledger-files",
    "description": "One row per planned asset; one file per job. Their sha256 are in index.json.",
    "encodingFormat": "application/x-parquet",
    "includes": "ledger/*.parquet",
}


def _fields(info: DatasetInfo, shards: Sequence[ShardRecord]) -> Iterator[dict[str, Any]]:
    """Describe the members of the shards, one set of files per regime and extension."""
    for regime in Regime:
        inside = [{"@id": f"shards/{shard.name}"} for shard in shards if shard.regime is regime]
        lit = info.config["views"].get("lit", "none") != "none"
        materials = bool(info.config.get("materials"))
        for extension in fields_of(regime, lit, materials) if inside else ():
            name = f"{regime}-{extension}"
            yield {
                "@type": "cr:FileSet",
                "@id": name,
                "name": name,
                "containedIn": inside,
                "encodingFormat": FORMATS[extension.rpartition(".")[2]],
                "includes": f"*.{extension}",
            }


def _samples(shards: Sequence[ShardRecord]) -> Iterator[dict[str, Any]]:
    """Describe a record per sample: its key, and its JSON as text."""
    for regime in Regime:
        if any(shard.regime is regime for shard in shards):
            file_set = f"{regime}-json"
            named = {"fileProperty": "filename"}
            uid = _field(f"{regime}/uid", "sc:Text", file_set, named, {"regex": r"^([^.]+)\.json$"})
            content = _field(f"{regime}/json", "sc:Text", file_set, {"fileProperty": "content"})
            yield _record_set(str(regime), "Caption, source, cameras and measurements.", uid["@id"], [uid, content])


def _ledger() -> dict[str, Any]:
    fields = [
        _field(f"ledger/{column.name}", _data_type(column.type), "ledger-files", {"column": column.name})
        for column in LEDGER_SCHEMA
        if not pa.types.is_nested(column.type)
    ]
    return _record_set("ledger", "The outcome of every planned asset, and its measurements.", "ledger/uid", fields)


def _record_set(name: str, description: str, key: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    named = {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description}
    return named | {"key": {"@id": key}, "field": fields}


def _field(
    name: str, data_type: str, file_set: str, extract: dict[str, str], transform: dict[str, str] | None = None
) -> dict[str, Any]:
    source = {"fileSet": {"@id": file_set}, "extract": extract} | ({"transform": transform} if transform else {})
    return {"@type": "cr:Field", "@id": name, "name": name, "dataType": data_type, "source": source}


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
