"""`seqtex judge`: other thresholds on a dataset, without rendering anything."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cli.progress import log_event
from cli.table import print_table
from pipeline.config import config_from_dict
from pipeline.judge import JudgeConfig
from pipeline.rejudge import NEEDS_REBUILD, Change, changes
from schemas.dataset import read_dataset_json, read_ledger, write_file
from schemas.errors import UsageError, UserError


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What may be other than in the build; what is left out stays as the dataset was built."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Thresholds."""


def default_config(arguments: Sequence[str]) -> JudgeOptions:
    """The thresholds that the dataset was built with."""
    dataset = next((Path(word) for word in arguments if (Path(word) / "dataset.json").is_file()), None)
    return JudgeOptions() if dataset is None else JudgeOptions(judge=built_with(dataset))


def built_with(dataset: Path) -> JudgeConfig:
    """The thresholds in `dataset.json`."""
    entries = read_dataset_json(dataset).config.get("judge", {})
    try:
        return config_from_dict(JudgeConfig, entries)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{dataset / 'dataset.json'}: thresholds of another version of this program ({error}); build it again"
        ) from error


def judge(dataset: Path, cfg: JudgeOptions, out: Path | None = None) -> int:
    """Print what would change if the assets of a dataset were judged by other thresholds. The dataset stays as it is:
    build again, into a new folder, with thresholds that you like. Whatever is not given is as the dataset was built;
    --config reads a YAML file with a `judge:` section. A table on a terminal, one JSON line per change otherwise.

    Args:
        dataset: folder that `seqtex build` wrote
        out: also write the changes to this .parquet file
    """
    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"--out {out}: give a file that ends in .parquet")
    outcomes = [outcome for part in read_ledger(dataset) for outcome in part.outcomes]
    found = list(changes(outcomes, cfg.judge))
    if out is not None:
        write_changes(out, found)
    if sys.stdout.isatty():
        show(dataset, found, len(outcomes))
    else:
        for change in found:
            log_event("change", **asdict(change), rule=change.rule, needs_rebuild=change.kind in NEEDS_REBUILD)
        counts = Counter(str(change.kind) for change in found)
        log_event("judged", dataset=str(dataset), assets=len(outcomes), changes=len(found), by_kind=dict(counts))
    return 0


def show(dataset: Path, found: Sequence[Change], assets: int) -> None:
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
