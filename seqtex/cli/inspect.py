"""`seqtex status`, `failures`, `inspect`: look at a dataset that is being built, or was."""

import sys
import time
from dataclasses import asdict, dataclass, field

from pipeline.maintain.failures import Failure, process_alone, recorded
from pipeline.maintain.failures import failures as failed_rows
from pipeline.maintain.status import StatusReport
from pipeline.maintain.status import status as dataset_status
from pipeline.sources.objaverse import ObjaverseConfig
from schemas.errors import UsageError, printable
from schemas.storage import Location
from seqtex.cli.console import log_event, logs_json, print_table


def status(dataset: Location, slowest: int = 5) -> int:
    """Tell how far a dataset is, while a build is at work or afterwards: assets done, what each stage let through,
    rate, seconds per asset, bytes per shard. Reads the plan and the ledger, no shard. Tables, or one JSON line with
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
    """The report as tables."""
    state = "a build is at work" if report.running else "no build is at work"
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
    lines += [f"kept apart by {level}: {count} assets" for level, count in report.isolation.items()]
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
    does this asset alone (add to it the --objaverse.* that the build had, or an Objaverse asset is downloaded anew).
    Blocks of text, or one JSON line each with --log json.

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
        sys.stdout.write(printable(f"{dataset}: {listed} assets\n"))
    return 0


def block(failure: Failure) -> str:
    """A failure as lines of text, the later ones set in."""
    lines = [failure.uri, *failure.detail.splitlines(), failure.reproduce]
    return "\n  ".join([f"{failure.uid}: {failure.status}, {failure.reason}", *lines]) + "\n"


@dataclass(frozen=True, kw_only=True)
class MirrorOptions:
    """What a dataset does not record."""

    objaverse: ObjaverseConfig = field(default_factory=ObjaverseConfig)
    """Where Objaverse's assets come from."""


def inspect(dataset: Location, uid: str, cfg: MirrorOptions) -> int:
    """Process one asset of a dataset alone, by the dataset's own configuration and limits, and tell what becomes of it
    and what was measured. The dataset stays as it is. A table, or one JSON line with --log json.

    Args:
        dataset: folder that `seqtex build` wrote, or is writing
        uid: key of the asset, as `seqtex failures` tells it
    """
    before = recorded(dataset, uid)
    outcome = process_alone(dataset, uid, cfg.objaverse)
    as_before = before and (before.status, before.regime, before.reason) == (
        outcome.status,
        outcome.regime,
        outcome.reason,
    )
    row = {name: value for name, value in outcome.row().items() if name != "shard"} | {"as_in_ledger": as_before}
    if logs_json():
        log_event("asset", **row)
    else:
        told = [(name, str(value)) for name, value in row.items() if value is not None]
        print_table(("", "now"), told, title=uid)
    return 0
