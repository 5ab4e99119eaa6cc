"""The gallery of a dataset: a folder of files that a browser opens from disk, without a server and without a network.

`index.html` has the first pictures and the charts, `data.js` the table of assets, `samples/SHARD/` pictures and meshes
of a shard, `rejected/` pictures of rejected assets; further pages may lie beside them. Only shards that are new or have
changed are drawn again."""

import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset.pictures import read_pictures
from pipeline.dataset.state import planned_jobs
from pipeline.filter.rules import FilterConfig
from pipeline.report.asset_table import (
    Listed,
    columns,
    kind_of,
    limits,
    listed,
    measurement_groups,
    pictured,
    title_of,
)
from pipeline.report.charts import funnel_chart, histogram
from pipeline.report.pages import WEB, html, page_names, report_folder
from pipeline.report.sample_files import script
from pipeline.report.shard_files import ShardTask, draw_shard
from schemas.dataset import DatasetInfo, LedgerPart, config_hash, read_dataset_json, read_ledger
from schemas.errors import UserError
from schemas.ledger import Outcome
from schemas.storage import Location, write_file

STATIC = {name: WEB / name for name in ("gallery.css", "catalog.js", "mesh.js", "view.js", "sample.js", "gallery.js")}
"""Files that are the same in every gallery."""
FIRST_PICTURES = 60
"""Assets that stand in the page itself: a browser shows their pictures before it has read the table."""
OUTCOMES = {"textured": "textured", "mv_only": "views only", "rejected": "rejected", "failed": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery that was written."""

    page: Path
    """Path of its index.html."""
    listed: int
    """Assets in its table."""
    drawn: int
    """Shards that were drawn."""
    kept: int
    """Shards whose files were up to date."""
    problems: tuple[str, ...]
    """Shards that cannot be read, and packs of pictures; their assets are listed without pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The content of a gallery, before anything is drawn."""

    dataset: Location
    info: DatasetInfo
    parts: tuple[LedgerPart, ...]
    assets: tuple[Listed, ...]
    thresholds: FilterConfig
    rejected: Mapping[str, bytes]
    """Pictures of rejected assets by uid, WebP."""
    problems: tuple[str, ...]

    @property
    def supersample(self) -> int:
        """Return the samples per pixel, along each axis, of the dataset's views."""
        return int(self.info.config.get("views", {}).get("supersample", 2))

    def data(self, drawn: Set[str]) -> bytes:
        """Return `data.js`. drawn: uids of the samples that have files."""
        assets = pictured(self.assets, drawn, self.rejected.keys())
        table = columns(assets, drawn, self.rejected.keys(), self.thresholds)
        data = {
            "dataset": self.dataset.resolve().name if isinstance(self.dataset, Path) else str(self.dataset),
            "groups": measurement_groups(),
            "limits": limits(self.thresholds),
            "columns": table,
        }
        return script("data", data)

    def index(self, drawn: Set[str], pages: Sequence[str]) -> bytes:
        """Return `index.html`. drawn: as for `data`."""
        assets = pictured(self.assets, drawn, self.rejected.keys())[:FIRST_PICTURES]
        table = columns(assets, drawn, self.rejected.keys(), self.thresholds)
        first = [
            {name: table[name][i] for name in ("uid", "outcome", "reason", "picture")} | {"title": title_of(asset)}
            for i, asset in enumerate(assets)
        ]
        outcomes = [outcome for part in self.parts for outcome in part.outcomes]
        facts = _facts(self.info, outcomes) | {
            "name": self.dataset.absolute().name,
            "listed": len(self.assets),
            "pages": pages,
            "first": first,
            "outcomes": OUTCOMES,
        }
        return html("index.html", facts)


def contents(dataset: Location, thresholds: FilterConfig, limit: int) -> Contents:
    """Read the ledger of a dataset and the pictures of its rejected assets. limit: the most assets to list.

    Raises UserError where `dataset` is none, or damaged."""
    info = read_dataset_json(dataset)
    jobs, parts = planned_jobs(dataset, info), read_ledger(dataset)
    pictures, problems = dict[str, bytes](), list[str]()
    for part in parts:
        try:
            pictures |= read_pictures(dataset, part.job)
        except UserError as error:
            problems.append(str(error))
    return Contents(
        dataset=dataset,
        info=info,
        parts=tuple(parts),
        assets=tuple(listed(parts, jobs, limit)),
        thresholds=thresholds,
        rejected=pictures,
        problems=tuple(problems),
    )


def write_gallery(
    dataset: Location, thresholds: FilterConfig, limit: int, workers: int, notify: Callable[[int, int], None]
) -> Gallery:
    """Write the gallery of a dataset, with at most `limit` assets, and the shards that changed since it was last
    written. notify: gets (shards drawn, shards to draw).

    Raises UserError where `dataset` is none, or damaged, or holds a link."""
    out = report_folder(dataset)
    found = contents(dataset, thresholds, limit)
    tasks = list(_tasks(found, out))
    _remove_others(out / "samples", {task.folder.name for task in tasks})
    todo = [task for task in tasks if not task.done()]
    notify(0, len(todo))
    problems = list(found.problems)
    for number, problem in enumerate(_drawn(todo, workers), start=1):
        problems += [problem] if problem else []
        notify(number, len(todo))
    drawn = {uid for task in tasks if task.done() for uid in task.uids if (task.folder / f"{uid}.js").is_file()}
    shown = {asset.outcome.uid for asset in found.assets}
    pictures = {f"{uid}.webp": data for uid, data in found.rejected.items() if uid in shown}
    _remove_others(out / "rejected", pictures.keys())
    for name, data in pictures.items():
        _write_changed(out / "rejected" / name, data)
    for name, source in STATIC.items():
        _write_changed(out / name, source.read_bytes())
    _write_changed(out / "data.js", found.data(drawn))
    _write_changed(out / "index.html", found.index(drawn, page_names(out)))
    return Gallery(
        page=out / "index.html",
        listed=len(found.assets),
        drawn=len(todo),
        kept=len(tasks) - len(todo),
        problems=tuple(problems),
    )


def _remove_others(folder: Path, names: Set[str]) -> None:
    """Make a folder, and remove from it what has none of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _tasks(found: Contents, out: Path) -> Iterator[ShardTask]:
    """Yield the shards that hold listed samples."""
    uids: dict[str, list[str]] = {}
    for asset in found.assets:
        if asset.outcome.shard:
            uids.setdefault(asset.outcome.shard, []).append(asset.outcome.uid)
    for shard in (shard for part in found.parts for shard in part.shards):
        if shard.name in uids:
            yield ShardTask(
                dataset=found.dataset,
                shard=shard,
                uids=tuple(uids[shard.name]),
                folder=out / "samples" / shard.name.removesuffix(".tar"),
                supersample=found.supersample,
            )


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
    faces = [m.faces for m in measured if m.faces is not None]
    seconds = [outcome.seconds for outcome in outcomes]
    charts = {
        "Round trip": histogram(psnr, "Round trip", "dB", "round_trip_psnr", log=False),
        "Faces": histogram(faces, "Faces", "faces", "faces", log=True),
        "Time per asset": histogram(seconds, "Time per asset", "s", "seconds", log=True),
    }
    return {
        "info": info,
        "configuration": config_hash(info.config)[:16],
        "counts": Counter(map(kind_of, outcomes)),
        "assets": len(outcomes),
        "funnel": funnel_chart(outcomes),
        "charts": {title: svg for title, svg in charts.items() if svg},
    }
