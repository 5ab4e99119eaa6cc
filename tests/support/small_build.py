"""Builds without processing any asset: the results of one dataset, committed to another place."""

import shutil
from pathlib import Path

from pipeline.config import BuildConfig
from pipeline.dataset.shards import commit, unpack
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from schemas.dataset import part_path, read_ledger_part
from schemas.sample import Regime
from schemas.storage import Location

CFG = BuildConfig(
    assets_per_job=2,
    views=RenderConfig(resolution=32),
    uv=BakeConfig(resolution=64),
    filter=FilterConfig(min_round_trip_db=10.0),
)


def commit_again(source: Path, out: Location, index: int, directory: Path) -> None:
    """Commit to `out` the results of job `index` of another dataset."""
    part = read_ledger_part(part_path(source, index))
    files = unpack(source, part, {outcome.uid for outcome in part.outcomes}, directory)
    samples: dict[Regime, list[tuple[str, list[Path]]]] = {}
    for outcome in part.outcomes:
        assert outcome.regime is not None
        samples.setdefault(outcome.regime, []).append((outcome.uid, files[outcome.uid]))
    commit(out, index, list(part.outcomes), samples)
    shutil.rmtree(directory)
