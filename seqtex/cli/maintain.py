"""`seqtex extend`, `merge`: more assets for a dataset, several datasets as one."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

from pipeline.blender.host import tried
from pipeline.config import BuildConfig
from pipeline.dataset.lock import lock
from pipeline.dataset.state import built_config, writable
from pipeline.executor.build import extend as extend_dataset
from pipeline.executor.build import rework
from pipeline.executor.scheduler import RunConfig
from pipeline.maintain.failures import damaged, with_reasons
from pipeline.maintain.merge import carry_over, plan_merge
from pipeline.sources.registry import left_out
from schemas.dataset import read_dataset_json
from schemas.errors import UsageError
from schemas.ledger import Reason
from schemas.storage import Location
from seqtex.cli.build import AS_USUAL, verify
from seqtex.cli.console import build_progress, log_event
from seqtex.cli.inspect import MirrorOptions
from seqtex.cli.options import named_dataset


def default_config(command: str, arguments: Sequence[str]) -> BuildConfig | MirrorOptions:
    """What the dataset was built with; nothing to tell for `merge`."""
    if command != "extend":
        return MirrorOptions()
    dataset = named_dataset(arguments)
    return BuildConfig() if dataset is None else built_config(dataset, read_dataset_json(dataset))


def extend(
    dataset: Location,
    source: str,
    cfg: BuildConfig,
    workers: int = 1,
    address: str | None = None,
    run: RunConfig = AS_USUAL,
) -> int:
    """Add the assets of a source that a dataset does not have yet, by the dataset's own configuration: new jobs after
    its own, whose files stay as they are. A setting that differs is refused; --select.* may differ.

    Args:
        dataset: folder that `seqtex build` wrote
        source: where the new assets are, as for `seqtex build`
        workers: processes on this machine
        address: join this Ray cluster (every node must see the dataset and the assets) instead of working here
        run: how it is carried out
    """
    cfg = replace(cfg, blender=tried(cfg.blender))
    if told := left_out(source, bool(cfg.blender.python)):
        log_event("passed_over", detail=told)
    with build_progress() as notify:
        report, addition = extend_dataset(source, dataset, cfg, workers, notify, address, run)
    log_event(
        "extended",
        dataset=str(dataset),
        added=addition.assets,
        present=addition.present,
        changed=addition.changed,
        **asdict(report),
    )
    return 0


def merge(
    datasets: list[Location],
    out: Location,
    cfg: MirrorOptions,
    workers: int = 1,
    address: str | None = None,
    run: RunConfig = AS_USUAL,
) -> int:
    """Put datasets of one configuration together in a new place: their jobs numbered anew, their shards linked where
    the file system can, else copied, within an object store by the store itself. An asset that two of them have is
    taken from the first that has it as a sample; duplicates across them are left out. The datasets stay as they are.

    Args:
        datasets: folders or addresses that `seqtex build` wrote to, two or more
        out: folder or address of the merged dataset
        workers: processes on this machine, for jobs with duplicates
        address: join this Ray cluster (every node must see all datasets) instead of working here
        run: how it is carried out
    """
    plan = plan_merge(datasets)
    out = out.expanduser().absolute()
    with writable(out), lock(out):
        carry_over(plan, out)
    with build_progress() as notify:
        report = rework(out, lambda out, jobs: [], workers, notify, address, cfg.objaverse, run)
    log_event("merged", dataset=str(out), same_uid=plan.twice, **asdict(report))
    return 0


def retry(
    dataset: Location,
    reason: list[str],
    cfg: MirrorOptions,
    workers: int = 1,
    address: str | None = None,
    run: RunConfig = AS_USUAL,
) -> int:
    """Process again the assets that ended with a reason, by the dataset's own configuration. All others keep their rows
    and samples, byte for byte.

    Args:
        dataset: folder that `seqtex build` wrote
        reason: e.g. timeout; may be given several times
        workers: processes on this machine
        address: join this Ray cluster (every node must see the dataset and its assets) instead of working here
        run: how it is carried out
    """
    reasons = frozenset(map(as_reason, reason))
    with build_progress() as notify:
        report = rework(dataset, partial(with_reasons, reasons=reasons), workers, notify, address, cfg.objaverse, run)
    log_event("retried", dataset=str(dataset), **asdict(report))
    return 0


def as_reason(word: str) -> Reason:
    if word not in list(Reason):
        raise UsageError(f"--reason {word}: no such reason; give one of {', '.join(Reason)}")
    return Reason(word)


def repair(
    dataset: Location, cfg: MirrorOptions, workers: int = 1, address: str | None = None, run: RunConfig = AS_USUAL
) -> int:
    """Verify a dataset and build again the jobs that are damaged or missing, by its own plan and configuration; then
    verify once more. Files of other jobs stay as they are. Ends with 1 where something is left.

    Args:
        dataset: folder that `seqtex build` wrote
        workers: processes on this machine
        address: join this Ray cluster (every node must see the dataset and its assets) instead of working here
        run: how it is carried out
    """
    with build_progress() as notify:
        report = rework(dataset, damaged, workers, notify, address, cfg.objaverse, run)
    log_event("repaired", dataset=str(dataset), **asdict(report))
    return verify(dataset)
