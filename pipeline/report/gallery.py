"""The gallery of a dataset: a folder of files that a browser opens from disk, without a server and without a network.

`index.html` has the charts, `data.js` the table of assets, `samples/SHARD/` the pictures and models of a shard; further
pages may lie beside them. Only shards that are new or have changed are drawn again."""

import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader

from pipeline.dataset.state import planned_jobs
from pipeline.filter.rules import FilterConfig
from pipeline.report.asset_table import Listed, columns, kind_of, listed, measurement_groups
from pipeline.report.charts import funnel_chart, histogram
from pipeline.report.images import data_uri
from pipeline.report.shard_pages import ShardTask, draw_shard, script
from schemas.dataset import DatasetInfo, LedgerPart, config_hash, read_dataset_json, read_ledger
from schemas.ledger import Outcome
from schemas.storage import Location, refuse_links, workspace, write_file

HERE = Path(__file__).parent
PICTURE_PX = 512
"""Most height of a picture on a further page."""
STATIC = {
    "gallery.css": HERE / "web" / "gallery.css",
    "catalog.js": HERE / "web" / "catalog.js",
    "sample.js": HERE / "web" / "sample.js",
    "gallery.js": HERE / "web" / "gallery.js",
    "model-viewer.js": HERE / "vendor" / "model-viewer-umd.min.js",
    "model-viewer.LICENSE.txt": HERE / "vendor" / "model-viewer.LICENSE.txt",
    "bundled.LICENSES.txt": HERE / "vendor" / "bundled.LICENSES.txt",
}
"""Files that are the same in every gallery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery that was written."""

    page: Path
    """Its index.html."""
    listed: int
    """Assets in its table."""
    drawn: int
    """Shards that were drawn."""
    kept: int
    """Shards whose files were up to date."""
    problems: tuple[str, ...]
    """Shards that cannot be read; their samples are listed without pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A headed part of a page: text, a table, a chart, pictures; each may be missing."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    svg: str = ""
    """Trusted markup."""
    pictures: Mapping[str, UInt8[np.ndarray, "height width 3"]] = field(default_factory=dict)
    """Images by caption."""


def write_gallery(
    dataset: Location, thresholds: FilterConfig, limit: int, workers: int, notify: Callable[[int, int], None]
) -> Gallery:
    """Write `report/` of a dataset, or bring it up to date.

    limit: most assets that are listed. workers: processes that draw. thresholds: decide what looks suspicious. notify:
    gets (shards drawn, shards to draw). The gallery of a dataset in an object store lies in this machine's workspace.
    Raises UserError if there is no dataset, or its records are damaged."""
    refuse_links(dataset)
    info, parts = read_dataset_json(dataset), read_ledger(dataset)
    assets = listed(parts, planned_jobs(dataset, info), limit)
    out = _folder(dataset)
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
    facts = _facts(info, outcomes) | {"name": dataset.absolute().name, "listed": len(assets), "pages": _pages(out)}
    _write_changed(out / "index.html", _html("index.html", facts))
    return Gallery(
        page=out / "index.html",
        listed=len(assets),
        drawn=len(todo),
        kept=len(tasks) - len(todo),
        problems=tuple(problems),
    )


def write_page(dataset: Location, name: str, title: str, summary: str, sections: Sequence[Section]) -> Path:
    """Write a further page of a dataset's gallery, `report/NAME.html`; the index that is written next links to it."""
    shown = [
        asdict(replace(section, pictures={}))
        | {"figures": [(caption, data_uri(picture, PICTURE_PX)) for caption, picture in section.pictures.items()]}
        for section in sections
    ]
    path = _folder(dataset) / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, _html("page.html", {"title": title, "summary": summary, "sections": shown}))
    return path


def _folder(dataset: Location) -> Path:
    return workspace(dataset) / "report"


def _pages(folder: Path) -> list[str]:
    """List the names of the further pages."""
    return sorted(path.stem for path in folder.glob("*.html") if path.name != "index.html")


def _tasks(dataset: Location, parts: Sequence[LedgerPart], assets: Sequence[Listed]) -> Iterator[ShardTask]:
    """Yield the shards that hold listed samples."""
    uids: dict[str, list[str]] = {}
    for asset in assets:
        if asset.outcome.shard:
            uids.setdefault(asset.outcome.shard, []).append(asset.outcome.uid)
    for shard in (shard for part in parts for shard in part.shards):
        if shard.name in uids:
            folder = _folder(dataset) / "samples" / shard.name.removesuffix(".tar")
            yield ShardTask(dataset=dataset, shard=shard, uids=tuple(uids[shard.name]), folder=folder)


def _drawn(tasks: Sequence[ShardTask], workers: int) -> Iterator[str | None]:
    """Draw shards, and yield the problem of each."""
    if workers == 1 or len(tasks) < 2:
        yield from map(draw_shard, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(draw_shard, tasks)


def _write_changed(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        write_file(path, data)


def _facts(info: DatasetInfo, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the counts and charts of a dataset, over all its assets."""
    measured = [outcome.measurements for outcome in outcomes]
    psnr = [m.round_trip_psnr for m in measured if m.round_trip_psnr is not None]
    charts = {
        "Round trip": histogram(psnr, "Round trip", "dB", log=False),
        "Faces": histogram([m.faces for m in measured if m.faces is not None], "Faces", "faces", log=True),
        "Time per asset": histogram([outcome.seconds for outcome in outcomes], "Time per asset", "s", log=True),
    }
    return {
        "info": info,
        "configuration": config_hash(info.config)[:16],
        "counts": Counter(map(kind_of, outcomes)),
        "assets": len(outcomes),
        "funnel": funnel_chart(outcomes),
        "charts": {title: svg for title, svg in charts.items() if svg},
    }


def _html(template: str, values: dict[str, Any]) -> bytes:
    """Fill in a template. Values may come from strangers and are escaped."""
    environment = Environment(loader=FileSystemLoader(HERE / "web"), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(values).encode()
