"""`seqtex build`, `extend`, `merge`, `upgrade`, `retry`, `repair`: make a dataset, add to it, write parts anew."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from geometry.raster_cuda import require_cuda
from pipeline.blender.host import tried
from pipeline.config import BuildConfig, MachineConfig
from pipeline.dataset.lock import lock
from pipeline.dataset.state import BuildReport, writable
from pipeline.executor.build import build as build_dataset
from pipeline.executor.build import extend as extend_dataset
from pipeline.executor.build import rework as rework_dataset
from pipeline.maintain.failures import chosen_assets, damaged
from pipeline.maintain.merge import carry_over, plan_merge
from pipeline.maintain.upgrade import upgrade as upgrade_dataset
from pipeline.sources.registry import skipped_files
from schemas.errors import UsageError, UserError
from schemas.ledger import Reason
from schemas.plan import ShardJob
from schemas.storage import Location
from seqtex.cli.inspect import verify
from seqtex.cli.options import WorkOptions, recorded_options
from seqtex.cli.terminal.console import bar, build_progress, log_event, logs_json, print_table


def defaults(command: str, arguments: list[str]) -> dict[str, Any]:
    """Return the options that `extend` takes from the dataset that it adds to."""
    return recorded_options(arguments) if command == "extend" else {}


def build(source: str, out: Location, cfg: BuildConfig, work: WorkOptions) -> int:
    """Build the dataset of `source` in `out`, or finish one that was interrupted.

    Args:
        source: where the assets are: PATH or folder:PATH (every .glb, .gltf, .obj below), procedural:N (N generated
            assets; procedural:N,materials: metallic and rough ones), objaverse:all, objaverse:lvis or objaverse:FILE
            (uids, one a line), objaverse-xl:all or objaverse-xl:FILE (uids, sha256s or file identifiers, one a line),
            texverse:all, texverse:pbr or texverse:FILE (uids, one a line), narrowed down by --select.*, seqtex-3d:PATH
            or seqtex-images:PATH (SeqTex's own data layouts)
        out: folder of the dataset, or its URL in an object store (s3://bucket/forge, gs://bucket/forge)
    """
    cfg = usable(cfg, source)
    if cfg.rasterizer == "cuda" and work.address is None:
        require_cuda()
    with build_progress() as notify:
        report = build_dataset(source, out, cfg, work.workers, notify, work.address, work.run)
    log_report("built", out, report)
    if report.textured + report.mv_only:
        return 0
    nothing = f"{out}: no asset was accepted; see the reasons in {out / 'ledger'} and {out / 'README.md'}"
    if report.failed:
        raise UserError(nothing)
    log_event("warning", detail=nothing)  # an end like any other: each asset has its row and its reason
    return 0


def extend(dataset: Location, source: str, cfg: BuildConfig, work: WorkOptions) -> int:
    """Add the assets of a source that a dataset does not have yet, by the dataset's own configuration: new jobs after
    its own, whose files stay as they are. A setting that differs is refused; --select.* may differ.

    Args:
        dataset: folder that `seqtex build` wrote
        source: where the new assets are, as for `seqtex build`
    """
    cfg = usable(cfg, source)
    with build_progress() as notify:
        report, new = extend_dataset(source, dataset, cfg, work.workers, notify, work.address, work.run)
    log_report("extended", dataset, report, added=new.assets, present=new.present, changed=new.changed)
    return 0


def merge(datasets: list[Location], out: Location, work: WorkOptions, machine: MachineConfig) -> int:
    """Put datasets of one configuration together in a new place: their jobs numbered anew, their shards linked if the
    file system can, else copied, within an object store by the store itself. An asset that two of them have is taken
    from the first that has it as a sample; duplicates across them are excluded. The datasets stay as they are.

    Args:
        datasets: folders or URLs that `seqtex build` wrote to, two or more
        out: folder or URL of the merged dataset
    """
    plan = plan_merge(datasets)
    out = out.expanduser().absolute()
    with writable(out), lock(out):
        carry_over(plan, out)
    log_report("merged", out, rework(out, lambda out, jobs: [], work, machine), same_uid=plan.twice)
    return 0


def upgrade(dataset: Location, out: Location) -> int:
    """Write a dataset of schema version 2 anew in the present version, without its assets: nothing is rendered. The
    dataset stays as it is. An upgrade that was stopped goes on when it is asked for again.

    Args:
        dataset: folder or URL of the dataset of version 2
        out: folder or URL of the new dataset
    """
    out = out.expanduser().absolute()
    with bar("upgrading", None, "jobs") as update:
        report = upgrade_dataset(dataset, out, lambda done, jobs: update(done, "", jobs))
    log_report("upgraded", out, report)
    return 0


def retry(
    dataset: Location,
    work: WorkOptions,
    machine: MachineConfig,
    reason: list[str] = [],  # noqa: B006 (jsonargparse shows it; it is never changed)
    uid: list[str] = [],  # noqa: B006
) -> int:
    """Process again the assets that ended with a reason, or of some uids, by the dataset's own configuration. Files
    that were put right since they were planned are taken in, and the dataset's history names them. All others keep
    their rows and samples, byte for byte.

    Args:
        dataset: folder that `seqtex build` wrote
        reason: e.g. timeout or missing_file; may be given several times
        uid: an asset, or @FILE with one uid a line, as the gallery saves a selection; may be given several times
    """
    if not reason and not uid:
        raise UsageError("give --reason or --uid, e.g. --reason missing_file")
    choose = partial(chosen_assets, reasons=frozenset(map(as_reason, reason)), uids=frozenset(listed_uids(uid)))
    log_report("retried", dataset, rework(dataset, choose, work, machine, take_in=True))
    return 0


def repair(dataset: Location, work: WorkOptions, machine: MachineConfig) -> int:
    """Verify a dataset and build again the jobs that are damaged or missing, by its own plan and configuration; then
    verify once more. Files of other jobs stay as they are. Ends with 1 if a problem remains.

    Args:
        dataset: folder that `seqtex build` wrote
    """
    log_report("repaired", dataset, rework(dataset, damaged, work, machine))
    return verify(dataset)


def usable(cfg: BuildConfig, source: str) -> BuildConfig:
    """Check that Blender starts if it is asked for, and log the meshes of a source that will be skipped."""
    cfg = replace(cfg, blender=tried(cfg.blender))
    if skipped := skipped_files(source, bool(cfg.blender.python)):
        log_event("skipped", detail=skipped)
    return cfg


def rework(
    dataset: Location,
    choose: Callable[[Location, list[ShardJob]], list[ShardJob]],
    work: WorkOptions,
    machine: MachineConfig,
    *,
    take_in: bool = False,
) -> BuildReport:
    """Run the jobs of a dataset that `choose` selects again, and show the progress."""
    with build_progress() as notify:
        return rework_dataset(dataset, choose, work.workers, notify, work.address, machine, work.run, take_in=take_in)


def log_report(event: str, dataset: Location, report: BuildReport, **facts: Any) -> None:
    """Log the counts of a dataset after a build; on a terminal the reasons are a table."""
    table = report.reasons if sys.stdout.isatty() and not logs_json() else {}
    shown = replace(report, reasons={}) if table else report
    log_event(event, dataset=str(dataset), **facts, **asdict(shown))
    if table:
        title = f"Without a sample; `seqtex failures {dataset} --rejected` lists them"
        print_table(("assets", "reason"), [(count, reason) for reason, count in table.items()], title)


def listed_uids(words: list[str]) -> Iterator[str]:
    """Yield uids, those of a file for each @FILE. Raises UsageError for a file without any."""
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        try:
            found = Path(word[1:]).read_text().split()
        except ValueError as error:
            raise UsageError(f"--uid {word}: no text; give a file with one uid a line") from error
        if not found:
            raise UsageError(f"--uid {word}: the file has no uid; give one a line")
        yield from found


def as_reason(word: str) -> Reason:
    """Return the reason of that name. Raises UsageError if there is none."""
    if word not in list(Reason):
        raise UsageError(f"--reason {word}: no such reason; give one of {', '.join(Reason)}")
    return Reason(word)
