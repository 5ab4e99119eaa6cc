"""The gallery of a dataset: a folder of files that a browser opens from disk, without a server and without a network.

`index.html` has the charts, `data.js` what is known of every asset, `samples/SHARD/` what is shown of each sample. Only
shards that are new or have changed are drawn again."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from pipeline.dataset.state import planned_jobs
from pipeline.filter.rules import FilterConfig
from pipeline.report.asset_table import Listed, columns, fate, listed, measurement_groups
from pipeline.report.charts import funnel_chart, histogram
from pipeline.report.shard_pages import ShardTask, draw_shard, script
from schemas.dataset import DatasetInfo, LedgerPart, config_hash, read_dataset_json, read_ledger, write_file
from schemas.ledger import Outcome
from schemas.storage import Location, workspace

HERE = Path(__file__).parent
STATIC = {
    "gallery.css": HERE / "web" / "gallery.css",
    "catalog.js": HERE / "web" / "catalog.js",
    "sample.js": HERE / "web" / "sample.js",
    "gallery.js": HERE / "web" / "gallery.js",
    "model-viewer.js": HERE / "vendor" / "model-viewer-umd.min.js",
    "model-viewer.LICENSE.txt": HERE / "vendor" / "model-viewer.LICENSE.txt",
    "bundled.LICENSES.txt": HERE / "vendor" / "bundled.LICENSES.txt",
}
"""Files of the gallery that are the same for every dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """What was written."""

    page: Path
    listed: int
    """Assets."""
    drawn: int
    """Shards."""
    kept: int
    """Shards whose files were there already."""
    problems: tuple[str, ...]
    """Shards that cannot be read; their samples are listed without pictures."""


def write_gallery(
    dataset: Location, thresholds: FilterConfig, limit: int, workers: int, notify: Callable[[int, int], None]
) -> Gallery:
    """Writes `report/` of a dataset, or brings it up to date; at most `limit` assets are listed, `workers` processes
    draw. That of a dataset in an object store lies in this machine's workspace. `thresholds` decide what looks
    suspicious; `notify` hears (shards drawn, shards to draw).

    Raises UserError where `dataset` is none, or its records are damaged."""
    info, parts = read_dataset_json(dataset), read_ledger(dataset)
    assets = listed(parts, planned_jobs(dataset, info), limit)
    out = workspace(dataset) / "report"
    (out / "samples").mkdir(parents=True, exist_ok=True)
    tasks = list(_tasks(dataset, parts, assets))
    todo = [task for task in tasks if not task.done()]
    problems = []
    notify(0, len(todo))
    for count, problem in enumerate(_drawn(todo, workers), start=1):
        notify(count, len(todo))
        problems += [problem] if problem else []
    shown = {task.folder for task in tasks}
    for folder in (out / "samples").iterdir():
        if folder not in shown:
            shutil.rmtree(folder)
    for name, source in STATIC.items():
        _write_changed(out / name, source.read_bytes())
    drawn = {path.stem for path in (out / "samples").glob("*/*.js")}
    data = {"groups": measurement_groups(), "columns": columns(assets, drawn, thresholds)}
    _write_changed(out / "data.js", script("data", data))
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    _write_changed(out / "index.html", _page(dataset.absolute().name, info, outcomes, len(assets)).encode())
    return Gallery(
        page=out / "index.html",
        listed=len(assets),
        drawn=len(todo),
        kept=len(tasks) - len(todo),
        problems=tuple(problems),
    )


def _tasks(dataset: Location, parts: Sequence[LedgerPart], assets: Sequence[Listed]) -> Iterator[ShardTask]:
    """The shards that hold listed samples."""
    uids: dict[str, list[str]] = {}
    for asset in assets:
        if asset.outcome.shard:
            uids.setdefault(asset.outcome.shard, []).append(asset.outcome.uid)
    for shard in (shard for part in parts for shard in part.shards):
        if shard.name in uids:
            folder = workspace(dataset) / "report" / "samples" / shard.name.removesuffix(".tar")
            yield ShardTask(dataset=dataset, shard=shard, uids=tuple(uids[shard.name]), folder=folder)


def _drawn(tasks: Sequence[ShardTask], workers: int) -> Iterator[str | None]:
    if workers == 1 or len(tasks) < 2:
        yield from map(draw_shard, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(draw_shard, tasks)


def _write_changed(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        write_file(path, data)


def _page(name: str, info: DatasetInfo, outcomes: Sequence[Outcome], listed_assets: int) -> str:
    """`index.html`: the frame of the gallery and the charts over all assets. Names are untrusted and are escaped."""
    measured = [outcome.measurements for outcome in outcomes]
    charts = {
        "Round trip": histogram(
            [m.round_trip_psnr for m in measured if m.round_trip_psnr is not None], "Round trip", "dB", log=False
        ),
        "Faces": histogram([m.faces for m in measured if m.faces is not None], "Faces", "faces", log=True),
        "Time per asset": histogram([outcome.seconds for outcome in outcomes], "Time per asset", "s", log=True),
    }
    fates = [fate(outcome) for outcome in outcomes]
    environment = Environment(loader=FileSystemLoader(HERE / "web"), autoescape=True, trim_blocks=True)
    return environment.get_template("index.html").render(
        name=name,
        info=info,
        configuration=config_hash(info.config)[:16],
        counts={kind: fates.count(kind) for kind in ("textured", "mv_only", "rejected", "failed")},
        assets=len(outcomes),
        listed=listed_assets,
        funnel=funnel_chart(outcomes),
        charts={title: svg for title, svg in charts.items() if svg},
    )
