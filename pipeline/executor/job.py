"""One job from assets to shards. No Ray: these are plain functions."""

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.asset import process_asset
from pipeline.config import BuildConfig, config_from_dict
from pipeline.dataset.folders import located, portable
from pipeline.dataset.lock import job_folder
from pipeline.dataset.pictures import read_pictures
from pipeline.dataset.shards import commit, committed, unpack
from pipeline.executor.asset_result import AssetResult, read_asset_result, write_asset_result
from pipeline.executor.journal import Journal
from pipeline.sandbox.child import ChildResult, LimitsConfig, insist, stderr_tail
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sandbox.policy import folder_of, interpreter_files, is_too_wide
from pipeline.sources.registry import fetched
from schemas.codec import encode
from schemas.dataset import ShardRecord
from schemas.errors import UserError
from schemas.ledger import Counts, Measurements, Outcome, Reason, Rejected, Status, counts_of
from schemas.mesh import AssetKind, Attribution, MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.storage import Location

ASSET_TARGET = "pipeline.executor.job:process_in_child"
WARM_UP = "pipeline.executor.compile_kernels:warm_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """The result of one job: paths and counts, never images."""

    job: int
    planned: int
    counts: Counts
    stage_seconds: float
    """Time that the assets spent in the stages of the pipeline, inside their children."""
    shards: tuple[ShardRecord, ...]


def asset_fork_server(
    limits: LimitsConfig, directory: Path, target: str = ASSET_TARGET, python_path: tuple[Path, ...] = ()
) -> ForkServer:
    """One whose children process assets, every kernel compiled before the first of them."""
    return ForkServer(target, limits, directory, WARM_UP, python_path)


def process_job(
    job: ShardJob,
    out: Location,
    cfg: BuildConfig,
    target: str = ASSET_TARGET,
    python_path: tuple[Path, ...] = (),
    fork_server: ForkServer | None = None,
    may_commit: Callable[[], bool] = lambda: True,
    tell: Callable[[Counts], None] = lambda counts: None,
) -> JobReport | None:
    """Every asset of a job in its own limited child, then the commit. Every planned asset gets exactly one row.

    `target` names the function that a child runs (`pipeline.sandbox.fork_server.ForkServer`), `process_in_child` unless
    told; `fork_server` is one at hand that runs it, else one is started for this job. None where `may_commit` says that
    another attempt at the job is the one that counts: nothing is written then. `tell` is called with the assets done
    so far as each ends. What a killed attempt has finished is taken from its journal."""
    with job_folder(out, job.index) as work, Journal(out, job, cfg) as journal:
        kept = journal.results(work / "journal") | _kept(job, out, work / "kept")
        kept |= {uid: AssetResult(outcome=_duplicate(job, uid, kept)) for uid in job.duplicates}
        todo = [ref for ref in job.refs if ref.uid not in kept]
        done: list[AssetResult] = []
        with (
            contextlib.nullcontext(fork_server)
            if fork_server
            else asset_fork_server(cfg.limits, work, target, python_path) as children,
            fetched([located(ref, job.folder) for ref in todo], cfg.objaverse) as local,
        ):
            for number, ref in enumerate(job.refs):
                if (asset := kept.get(ref.uid)) is None:
                    asset = _run_asset(children, job.index, ref, next(local), cfg, work / f"{number:06d}")
                    # A failure may be of this attempt, which somebody is killing. The last one goes into the shards.
                    if ref is not todo[-1] and asset.outcome.status is not Status.FAILED:
                        journal.append(asset)
                done.append(asset)
                tell(counts_of(asset.outcome for asset in done))
        if not may_commit():
            return None
        outcomes = [portable(asset.outcome, job.folder, out) for asset in done]
        samples = {
            regime: [(asset.outcome.uid, list(asset.files)) for asset in done if asset.outcome.regime is regime]
            for regime in Regime
        }
        part = commit(out, job.index, outcomes, samples, {a.outcome.uid: a.picture for a in done if a.picture})
        journal.remove()
    counts, stage_seconds = counts_of(outcomes), sum(asset.stage_seconds for asset in done)
    assert counts.total == len(outcomes) == len(job.refs)
    return JobReport(
        job=job.index, planned=len(job.refs), counts=counts, stage_seconds=stage_seconds, shards=part.shards
    )


def _kept(job: ShardJob, out: Location, directory: Path) -> dict[str, AssetResult]:
    """The assets that a job with `only` leaves as they are."""
    part = committed(out, job) if job.only is not None else None
    if part is None or job.only is None:
        return {}
    rows = {outcome.uid: outcome for outcome in part.outcomes if outcome.uid not in job.only}
    files, pictures = unpack(out, part, rows.keys(), directory), dict[str, bytes]()
    with contextlib.suppress(UserError):  # damaged: the gallery does without, `report` has named it
        pictures = read_pictures(out, job.index)
    return {
        uid: AssetResult(outcome=outcome, files=tuple(files.get(uid, ())), picture=pictures.get(uid, b""))
        for uid, outcome in rows.items()
    }


def _duplicate(job: ShardJob, uid: str, kept: dict[str, AssetResult]) -> Outcome:
    """Return the row of a duplicate, with its measurements if it was processed."""
    rejected, row = job.duplicates[uid], kept[uid].outcome if uid in kept else None
    if row is None:
        row = _outcome(next(ref for ref in job.refs if ref.uid == uid), None)
    return replace(row, status=Status.REJECTED, reason=rejected.reason, detail=rejected.detail, regime=None, shard=None)


def _run_asset(
    fork_server: ForkServer, job: int, ref: MeshRef, local: MeshRef | Rejected, cfg: BuildConfig, directory: Path
) -> AssetResult:
    """`local`: where the asset lies on this machine, if it could be had."""
    if isinstance(local, Rejected):
        return AssetResult(outcome=_outcome(ref, local))

    def attempt() -> ChildResult:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return fork_server.run({"ref": asdict(local), "cfg": asdict(cfg)}, directory, _readable(local, cfg))

    ended = insist(attempt)
    failure = None if ended.reason is None else Rejected(reason=ended.reason, detail=ended.detail)
    row = replace(_outcome(ref, failure), sha256=local.sha256, seconds=ended.seconds, sandbox=ended.sandbox or None)
    if failure is not None:
        return AssetResult(outcome=row)
    try:
        if result := read_asset_result(directory, row, job):
            return result
        detail = "the child ended without an outcome"
    except ValueError as error:
        detail = f"the child left an outcome that cannot be used: {error}"
    detail = f"{detail}; {stderr_tail(directory)}".removesuffix("; ")
    return AssetResult(outcome=replace(row, reason=Reason.CRASHED, detail=detail))


def _readable(ref: MeshRef, cfg: BuildConfig) -> tuple[Path, ...]:
    """The files of an asset, and Blender's: a .glb holds all it needs, any other one may refer to what lies in its
    folder; either may refer to what lies in the root that the source has found it to need."""
    path, blender = Path(ref.uri), interpreter_files(cfg.blender.python)
    alone = ref.kind is AssetKind.MESH and path.suffix.lower() == ".glb"
    if alone and ref.root is None:
        return (path, *blender)
    around = () if ref.root is None or is_too_wide(Path(ref.root)) else (Path(ref.root),)
    return (*folder_of(path), *around, *blender)


def _outcome(ref: MeshRef, rejected: Rejected | None) -> Outcome:
    """Return the ledger row of an asset that was not processed."""
    return Outcome(
        uid=ref.uid,
        uri=ref.uri,
        sha256=ref.sha256,
        status=Status.FAILED,
        regime=None,
        reason=rejected.reason if rejected else None,
        detail=rejected.detail if rejected else "",
        shard=None,
        seconds=0.0,
        sandbox=None,
        measurements=Measurements(),
    )


def process_in_child(request: dict[str, Any], directory: Path) -> None:
    """The sandboxed side of `process_job`: leaves `outcome.json` and one file per field."""
    source, kind = Attribution(**request["ref"].pop("source")), AssetKind(request["ref"].pop("kind"))
    ref = MeshRef(**request["ref"], source=source, kind=kind)
    start = time.perf_counter()
    processed = process_asset(ref, config_from_dict(BuildConfig, request["cfg"]))
    fields = {} if isinstance(processed.result, Rejected) else encode(processed.result)
    stage_seconds = time.perf_counter() - start
    write_asset_result(
        directory,
        None if isinstance(processed.result, Rejected) else processed.result.regime,
        processed.result if isinstance(processed.result, Rejected) else processed.mv_only,
        processed.notes,
        processed.measurements,
        stage_seconds,
        fields,
        None if processed.picture is None else processed.picture.tobytes(),
    )
