"""`seqtex report` and `seqtex view`: the gallery of a dataset, as a folder or served on this machine."""

from pathlib import Path

from pipeline.report.gallery import contents, write_gallery
from pipeline.report.view_server import GalleryServer, Site
from schemas.errors import UsageError, UserError
from schemas.storage import Location
from seqtex.cli.options import built_thresholds
from seqtex.cli.terminal.console import bar, log, log_event
from seqtex.gallery.pages import write_evaluation_page, write_run_page


def report(
    dataset: Location,
    assets: int = 10_000,
    workers: int = 1,
    run: list[Path] = [],  # noqa: B006 (jsonargparse shows it; it is never changed)
    evaluation: list[Path] = [],  # noqa: B006
) -> int:
    """Write the gallery of a dataset, report/index.html, which a browser opens from disk: every asset with its outcome,
    filters, and each sample with its pictures and its mesh in 3D. Run it again after more was built: only new or
    changed shards are drawn.

    Args:
        dataset: folder that `seqtex build` wrote
        assets: list at most so many, chosen evenly; the charts count all
        workers: processes that draw
        run: also a page about this training run (its folder): loss and validation pictures; may be given several times
        evaluation: also a page about this evaluation (the file of `seqtex evaluate --out`); may be given several times
    """
    require_positive(assets=assets, workers=workers)
    write_pages(dataset, run, evaluation)
    with bar("drawing", None, "shards") as update:
        thresholds = built_thresholds(dataset).filter
        gallery = write_gallery(dataset, thresholds, assets, workers, lambda done, total: update(done, "", total=total))
    for problem in gallery.problems:
        log_event("problem", detail=problem)
    log_event("report", path=str(gallery.page), listed=gallery.listed, drawn=gallery.drawn, kept=gallery.kept)
    return 1 if gallery.problems else 0


def view(dataset: Location, assets: int = 100_000, port: int = 0) -> int:
    """Serve the gallery of a dataset to a browser on this machine, until Ctrl-C. Pictures and meshes are drawn when
    they are looked at, so a large dataset needs no `seqtex report`; nothing is written. On another machine: forward the
    port by `ssh -L PORT:127.0.0.1:PORT HOST`, and open the printed URL here.

    Args:
        dataset: folder that `seqtex build` wrote
        assets: list at most so many, chosen evenly; the charts count all
        port: of 127.0.0.1; 0 is any free one
    """
    require_positive(assets=assets)
    if not 0 <= port <= 65_535:
        raise UsageError(f"--port {port}: give 0 to 65535")
    found = contents(dataset, built_thresholds(dataset).filter, assets)
    for problem in found.problems:
        log_event("problem", detail=problem)
    try:
        server = GalleryServer(Site(found), port, lambda problem: log_event("problem", detail=problem))
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); give another, or 0 for any") from error
    with server:
        log.at_rest()
        log_event("view", url=server.url, listed=len(found.assets))
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # how it is meant to end
            return 0
    return 0


def require_positive(**values: int) -> None:
    """Raise UsageError for an option below 1."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"--{name} {value}: give 1 or more")


def write_pages(dataset: Location, runs: list[Path], evaluations: list[Path]) -> None:
    """Write the further pages of a gallery."""
    for run in runs:
        log_event("page", path=str(write_run_page(dataset, run)))
    for file in evaluations:
        log_event("page", path=str(write_evaluation_page(dataset, file)))
