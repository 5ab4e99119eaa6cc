"""Find paths of this machine, which name users and folders, in the records of a dataset. Shards have none of them: the
JSON of a sample has the name of its asset's file alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dataset.folders import PATH
from schemas.dataset import LedgerPart, read_dataset_json, read_parquet
from schemas.storage import Location


def local_paths(dataset: Location, parts: Sequence[LedgerPart]) -> list[str]:
    """List the kinds of local paths in a dataset's records, one line each with an example."""
    return [
        f"{kind}: {len(found):,} (such as {_shown(found[0])})"
        for kind, found in (
            ("assets in plan.parquet and ledger/*.parquet", _asset_paths(dataset)),
            ("details in ledger/*.parquet", list(_detail_paths(parts))),
            ("settings in dataset.json", list(_config_paths(read_dataset_json(dataset).config))),
        )
        if found
    ]


def _asset_paths(dataset: Location) -> list[str]:
    """List the URIs of assets that are files of this machine."""
    uris = read_parquet(dataset / "plan.parquet")["uri"].to_pylist()
    return [uri for uri in uris if uri.startswith("/")]


def _detail_paths(parts: Sequence[LedgerPart]) -> Iterator[str]:
    for outcome in (outcome for part in parts for outcome in part.outcomes):
        for text in (outcome.detail, *(note.detail for note in outcome.notes)):
            if match := PATH.search(text):
                yield match[0]


def _config_paths(value: Any) -> Iterator[str]:
    """Yield the absolute paths among the settings, such as that of Blender's interpreter."""
    if isinstance(value, str) and value.startswith(("/", "~")):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _config_paths(entry)


def _shown(path: str) -> str:
    return " ".join(path.split())
