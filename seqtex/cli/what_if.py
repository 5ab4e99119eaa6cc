"""`seqtex what-if`: other thresholds on a dataset, without rendering anything."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.config import config_from_dict
from pipeline.dataset.state import differences
from pipeline.filter.rules import FilterConfig
from pipeline.maintain.what_if import NEEDS_REBUILD, UNTOLD, Change, Thresholds, changes
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import read_dataset_json, read_ledger, write_file
from schemas.errors import UsageError, UserError
from schemas.storage import Location
from seqtex.cli.console import log_event, logs_json, print_table
from seqtex.cli.options import named_dataset

SECTIONS = ("filter", "unwrap")
"""Of a build's configuration: those that a ledger can be judged by."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What may be other than in the build; what is left out stays as the dataset was built."""

    filter: FilterConfig = field(default_factory=FilterConfig)
    """Thresholds."""
    unwrap: UnwrapConfig = field(default_factory=UnwrapConfig)
    """Limits on layouts, as far as the ledger tells their effect."""


def default_config(command: str, arguments: Sequence[str]) -> FilterOptions:
    """The thresholds that the dataset was built with."""
    dataset = named_dataset(arguments)
    return FilterOptions() if dataset is None else _built(dataset)


def built_with(dataset: Location) -> FilterConfig:
    """The thresholds in `dataset.json`."""
    return _built(dataset).filter


def _built(dataset: Location) -> FilterOptions:
    config = read_dataset_json(dataset).config
    try:
        return config_from_dict(FilterOptions, {name: config.get(name, {}) for name in SECTIONS})
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{dataset / 'dataset.json'}: thresholds of another version of this program ({error}); build it again"
        ) from error


def adapted(arguments: Sequence[str]) -> list[str]:
    """A configuration file of `seqtex build` may be given whole: its thresholds are taken, and what else differs from
    the dataset is named."""
    words = list(arguments)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag != "--config" or not (equals or index + 1 < len(words)):
            continue
        sections = _read_sections(Path(value if equals else words[index + 1]))
        if sections is None:
            continue  # the parser says what is wrong with it
        if (dataset := named_dataset(words)) is not None:
            _tell_the_rest(sections, read_dataset_json(dataset).config)
        kept = json.dumps({name: sections[name] for name in SECTIONS if name in sections})
        words[index if equals else index + 1] = f"--config={kept}" if equals else kept
    return words


def _read_sections(path: Path) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def _tell_the_rest(sections: dict[str, Any], config: dict[str, Any]) -> None:
    """Settings of the file that the ledger alone cannot be judged by."""
    rest = {name: value for name, value in sections.items() if name in config and name not in SECTIONS}
    names = [name for name, _, given in differences(config, config | rest) if given is not None]
    if names:
        log_event("not_applied", settings=names, detail="they need a build into a new folder")


def what_if(dataset: Location, cfg: FilterOptions, out: Path | None = None) -> int:
    """Print what would change if the assets of a dataset were judged by other thresholds. The dataset stays as it is:
    build again, into a new folder, with thresholds that you like. Whatever is not given is as the dataset was built;
    --config reads the sections `filter:` and `unwrap:` of a YAML file, which may be one of `seqtex build`. A table, or
    one JSON line per change with --log json.

    Args:
        dataset: folder that `seqtex build` wrote
        out: also write the changes to this .parquet file
    """
    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"--out {out}: give a file that ends in .parquet")
    outcomes = [outcome for part in read_ledger(dataset) for outcome in part.outcomes]
    built = _built(dataset).unwrap
    if untold := [f"unwrap.{name}" for name in UNTOLD if getattr(cfg.unwrap, name) != getattr(built, name)]:
        log_event("not_applied", settings=untold, detail="no measurement tells their effect")
    found = list(changes(outcomes, Thresholds(filter=cfg.filter, unwrap=cfg.unwrap, built=built)))
    if out is not None:
        write_changes(out, found)
    if not logs_json():
        show(dataset, found, len(outcomes))
        return 0
    for change in found:
        log_event("change", **asdict(change), rule=change.rule, needs_rebuild=change.kind in NEEDS_REBUILD)
    counts = Counter(str(change.kind) for change in found)
    log_event("judged", dataset=str(dataset), assets=len(outcomes), changes=len(found), by_kind=dict(counts))
    return 0


def show(dataset: Location, found: Sequence[Change], assets: int) -> None:
    """The changes by kind and rule, the largest groups first."""
    groups = Counter((change.kind, change.rule or "") for change in found)
    example = {(change.kind, change.rule or ""): change for change in reversed(found)}
    rows = [
        (
            str(kind) + (" (rebuild needed)" if kind in NEEDS_REBUILD else ""),
            rule,
            count,
            f"{example[kind, rule].uid}: {(example[kind, rule].after or example[kind, rule].before)}",
        )
        for (kind, rule), count in groups.most_common()
    ]
    title = f"{dataset}: {len(found)} of {assets} assets would end otherwise"
    print_table(("change", "rule", "assets", "first of them"), rows, title=title)


def write_changes(path: Path, found: Sequence[Change]) -> None:
    """One row per change: uid, kind, rule, before, after, needs_rebuild."""
    schema = pa.schema(
        [pa.field(name, pa.string()) for name in ("uid", "kind", "rule", "before", "after")]
        + [pa.field("needs_rebuild", pa.bool_())]
    )
    rows = [
        asdict(change) | {"kind": str(change.kind), "rule": change.rule, "needs_rebuild": change.kind in NEEDS_REBUILD}
        for change in found
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    write_file(path, sink.getvalue().to_pybytes())
