"""`seqtex build`, `verify`, `report`: make a dataset, check it, look at it."""

from dataclasses import asdict, replace
from itertools import islice

from geometry.raster_cuda import require_cuda
from pipeline.blender.host import tried
from pipeline.config import BuildConfig
from pipeline.dataset import verify as verification
from pipeline.dataset.shards import stored_samples
from pipeline.executor.build import build as build_dataset
from pipeline.executor.scheduler import RunConfig
from pipeline.report.gallery import write_gallery
from pipeline.sources.registry import left_out
from schemas.errors import UsageError, UserError
from schemas.sample import Regime, TextureSample
from schemas.storage import Location
from seqtex.cli.console import bar, build_progress, log_event
from seqtex.cli.what_if import built_with

AS_USUAL = RunConfig()
"""The default of `--run.*`."""


def build(
    source: str,
    out: Location,
    cfg: BuildConfig,
    workers: int = 1,
    address: str | None = None,
    run: RunConfig = AS_USUAL,
) -> int:
    """Build the dataset of `source` in `out`, or finish one that was interrupted.

    Args:
        source: where the assets are: folder:PATH (every .glb, .gltf, .obj below), procedural:N (N made-up assets),
            objaverse:all, objaverse:lvis or objaverse:FILE (uids, one a line), objaverse-xl:all or objaverse-xl:FILE
            (uids, sha256s or file identifiers, one a line), narrowed down by --select.*,
            seqtex-3d:PATH or seqtex-images:PATH (SeqTex's own data layouts)
        out: folder of the dataset, or its address in an object store (s3://bucket/forge, gs://bucket/forge)
        workers: processes on this machine
        address: join this Ray cluster (every node must see `out` and the assets) instead of working here
        run: how it is carried out
    """
    cfg = replace(cfg, blender=tried(cfg.blender))
    if cfg.rasterizer == "cuda" and address is None:
        require_cuda()
    if told := left_out(source, bool(cfg.blender.python)):
        log_event("passed_over", detail=told)
    with build_progress() as notify:
        report = build_dataset(source, out, cfg, workers, notify, address, run)
    log_event("built", dataset=str(out), **asdict(report))
    if report.textured + report.mv_only == 0:
        raise UserError(f"{out}: no asset was accepted; the reasons stand in {out / 'ledger'} and {out / 'README.md'}")
    return 0


def verify(dataset: Location) -> int:
    """Read every file of a dataset and compare it with the ledger; print what is wrong.

    Args:
        dataset: folder that `seqtex build` wrote
    """
    problems = verification.verify(dataset)
    for problem in problems:
        log_event("problem", detail=problem)
    log_event("verified", dataset=str(dataset), problems=len(problems))
    return 1 if problems else 0


def report(dataset: Location, assets: int = 10_000, workers: int = 1) -> int:
    """Write the gallery of a dataset, report/index.html, which a browser opens from disk: every asset with what became
    of it, filters, and each sample with its pictures and its mesh in 3D. Run it again after more was built: only new or
    changed shards are drawn.

    Args:
        dataset: folder that `seqtex build` wrote
        assets: list at most so many, chosen evenly; the charts count all
        workers: processes that draw
    """
    for name, value in (("assets", assets), ("workers", workers)):
        if value < 1:
            raise UsageError(f"--{name} {value}: give 1 or more")
    with bar("drawing", None, "shards") as update:
        thresholds = built_with(dataset)
        gallery = write_gallery(dataset, thresholds, assets, workers, lambda done, total: update(done, "", total=total))
    for problem in gallery.problems:
        log_event("problem", detail=problem)
    log_event("report", path=str(gallery.page), listed=gallery.listed, drawn=gallery.drawn, kept=gallery.kept)
    return 1 if gallery.problems else 0


def some_samples(dataset: Location, count: int) -> list[TextureSample]:
    """The first samples, about a fifth of them multi-view-only where there are such."""
    mv_only = list(islice(stored_samples(dataset, Regime.MV_ONLY), max(1, count // 5)))
    return list(islice(stored_samples(dataset, Regime.TEXTURED), count - len(mv_only))) + mv_only
