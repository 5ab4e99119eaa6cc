"""`seqtex status`, `failures`, `inspect`, `verify`, `what-if`: look at a dataset, finished or not."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import MachineConfig
from pipeline.dataset import verify as verification
from pipeline.maintain.failures import Failure, process_alone, recorded
from pipeline.maintain.failures import failures as failed_rows
from pipeline.maintain.status import StatusReport
from pipeline.maintain.status import status as dataset_status
from pipeline.maintain.what_if import NEEDS_REBUILD, UNMEASURED, Change, Thresholds, changes
from schemas.dataset import read_ledger
from schemas.errors import UsageError, printable
from schemas.storage import Location, write_file
from seqtex.cli.options import ThresholdOptions, built_thresholds, leaves, only_thresholds, threshold_options
from seqtex.cli.terminal.console import bar, log_event, logs_json, print_table


def defaults(command: str, arguments: list[str]) -> dict[str, Any]:
    """Return the thresholds that `what-if` compares with, as options."""
    return dict(leaves(threshold_options(arguments))) if command == "what-if" else {}


def adapted(command: str, arguments: list[str]) -> list[str]:
    """Let `what-if` read configuration files of `seqtex build`."""
    return only_thresholds(arguments) if command == "what-if" else arguments


def status(dataset: Location, slowest: int = 5) -> int:
    """Show how far a dataset is, during a build or afterwards: assets done, assets that passed each stage, rate,
    seconds per asset, bytes per shard. Reads the plan and the ledger, no shard. Prints tables, or one JSON line with
    --log json.

    Args:
        dataset: folder that `seqtex build` wrote, or is writing
        slowest: how many of the slowest assets to name
    """
    if slowest < 0:
        raise UsageError(f"--slowest {slowest}: give 0 or more")
    report = dataset_status(dataset, slowest, time.time())
    if logs_json():
        log_event("status", dataset=str(dataset), **asdict(report))
    else:
        show_status(dataset, report)
    return 0


def show_status(dataset: Location, report: StatusReport) -> None:
    """Print the report as tables."""
    state = "a build is running" if report.running else "no build is running"
    lines = [f"{dataset}: {report.done} of {report.planned} assets done, {state}"]
    lines.append(f"jobs: {report.jobs_done} of {report.jobs}")
    if report.assets_per_s is not None and report.eta_s is not None:
        lines.append(f"rate: {report.assets_per_s:.3g} assets/s, {report.eta_s:.0f} s to go")
    lines += [f"cannot be read: {path}; run `seqtex repair {dataset}`" for path in report.unreadable]
    lines.append(
        f"accepted: {report.textured} textured, {report.mv_only} multi-view only; "
        f"rejected: {report.rejected}; failed: {report.failed}"
    )
    if report.seconds_median is not None:
        lines.append(f"seconds per asset: median {report.seconds_median:.2f}, 95 % below {report.seconds_p95:.2f}")
    lines += [f"sandboxed by {level}: {count} assets" for level, count in report.isolation.items()]
    sys.stdout.write(printable("\n".join(lines) + "\n"))
    steps = [
        (step.stage, step.entered, ", ".join(f"{count} {reason}" for reason, count in step.lost.items()), step.left)
        for step in report.funnel
    ]
    print_table(("stage", "assets in", "lost", "assets out"), steps, title="")
    if report.slowest:
        print_table(("slowest", "seconds", "ended as"), [(s.uid, s.seconds, s.ended) for s in report.slowest], title="")
    if report.shards:
        sizes = [
            (s.regime, s.shards, s.samples, s.total_bytes / 1e6, s.median_bytes / 1e6, s.max_bytes / 1e6)
            for s in report.shards
        ]
        print_table(("regime", "shards", "samples", "MB", "MB a shard (median)", "MB (largest)"), sizes, title="")


def failures(dataset: Location, rejected: bool = False) -> int:
    """List the assets that failed: uid, file, reason, detail with the end of the process's stderr, and the command that
    processes this asset alone (add the --blender.python and --objaverse.* of the build, which no dataset records).
    Prints blocks of text, or one JSON line each with --log json.

    Args:
        dataset: folder that `seqtex build` wrote, or is writing
        rejected: list the rejected ones too
    """
    listed = 0
    for failure in failed_rows(dataset, rejected):
        listed += 1
        if logs_json():
            log_event("failure", **asdict(failure))
        else:
            sys.stdout.write(printable(block(failure)))
    if logs_json():
        log_event("failures", dataset=str(dataset), listed=listed)
    else:
        which = "failed or were rejected" if rejected else "failed; --rejected lists the rejected ones, too"
        sys.stdout.write(printable(f"{dataset}: {listed} assets {which}\n"))
    return 0


def block(failure: Failure) -> str:
    """Return a failure as lines of text, the later ones indented."""
    lines = [failure.uri, *failure.detail.splitlines(), failure.reproduce]
    return "\n  ".join([f"{failure.uid}: {failure.status}, {failure.reason}", *lines]) + "\n"


def inspect(dataset: Location, uid: str, machine: MachineConfig) -> int:
    """Process one asset of a dataset alone, by the dataset's own configuration and limits, and show its outcome and
    measurements. The dataset stays as it is. Prints a table, or one JSON line with --log json.

    Args:
        dataset: folder that `seqtex build` wrote, or is writing
        uid: key of the asset, as `seqtex failures` lists it
    """
    before = recorded(dataset, uid)
    outcome = process_alone(dataset, uid, machine)
    as_before = before and (before.status, before.regime, before.reason) == (
        outcome.status,
        outcome.regime,
        outcome.reason,
    )
    row = {name: value for name, value in outcome.row().items() if name != "shard"} | {"as_in_ledger": as_before}
    if logs_json():
        log_event("asset", **row)
    else:
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        known = [(name, str(value)) for name, value in shown.items() if value is not None]
        print_table(("", "now"), known, title=uid)
    return 0


def verify(dataset: Location) -> int:
    """Read every file of a dataset and compare it with the ledger; print what is wrong.

    Args:
        dataset: folder that `seqtex build` wrote
    """
    with bar("verifying", None, "jobs") as update:
        problems = verification.verify(dataset, lambda done, total: update(done, "", total))
    for problem in problems:
        log_event("problem", detail=problem)
    log_event("verified", dataset=str(dataset), problems=len(problems))
    return 1 if problems else 0


def what_if(dataset: Location, cfg: ThresholdOptions, out: Path | None = None) -> int:
    """Print what would change if a dataset were filtered by other thresholds. The dataset stays as it is: build again,
    into a new folder, with thresholds that you like. Whatever is not given is as the dataset was built; --config reads
    the sections `filter:` and `unwrap:` of a YAML file, which may be one of `seqtex build`. Prints a table, or one JSON
    line per change with --log json.

    Args:
        dataset: folder that `seqtex build` wrote
        out: also write the changes to this .parquet file
    """
    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"--out {out}: give a file that ends in .parquet")
    outcomes = [outcome for part in read_ledger(dataset) for outcome in part.outcomes]
    built = built_thresholds(dataset).unwrap
    if unmeasured := [f"unwrap.{name}" for name in UNMEASURED if getattr(cfg.unwrap, name) != getattr(built, name)]:
        log_event("not_applied", settings=unmeasured, detail="no measurement shows their effect")
    found = list(changes(outcomes, Thresholds(filter=cfg.filter, unwrap=cfg.unwrap, built=built)))
    if out is not None:
        write_changes(out, found)
    if not logs_json():
        show_changes(dataset, found, len(outcomes))
        return 0
    for change in found:
        log_event("change", **change_row(change))
    counts = Counter(str(change.kind) for change in found)
    log_event("what_if", dataset=str(dataset), assets=len(outcomes), changes=len(found), by_kind=dict(counts))
    return 0


def show_changes(dataset: Location, found: Sequence[Change], assets: int) -> None:
    """Print the changes by kind and rule, the largest groups first."""
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


def change_row(change: Change) -> dict[str, Any]:
    """Return a change as flat columns: uid, kind, before, after, rule, needs_rebuild."""
    needs_rebuild = change.kind in NEEDS_REBUILD
    return asdict(change) | {"kind": str(change.kind), "rule": change.rule, "needs_rebuild": needs_rebuild}


def write_changes(path: Path, found: Sequence[Change]) -> None:
    """Write one row per change to a Parquet file."""
    texts = [pa.field(name, pa.string()) for name in ("uid", "kind", "rule", "before", "after")]
    table = pa.Table.from_pylist(
        list(map(change_row, found)), pa.schema([*texts, pa.field("needs_rebuild", pa.bool_())])
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_file(path, sink.getvalue().to_pybytes())
