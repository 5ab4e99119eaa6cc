"""`seqtex retry`, `repair`: do parts of a dataset again."""

from dataclasses import asdict
from functools import partial

from cli.dataset import AS_USUAL, verify
from cli.operate import MirrorOptions
from cli.progress import build_progress, log_event
from pipeline.operate.choose import damaged, with_reasons
from pipeline.run import rework
from pipeline.schedule import RunConfig
from schemas.errors import UsageError
from schemas.ledger import Reason
from schemas.locations import Location


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
