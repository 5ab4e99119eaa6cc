"""The fault matrix of a build: shards that were cut off, bits that were flipped."""

from pathlib import Path

import pytest

from pipeline.dataset.verify import verify
from schemas.dataset import (
    read_ledger,
    shard_path,
)
from tests.trust.trust import Trust
from training.data.dataset_files import LocalFiles, ShardError

# 3, 4: cuts and flipped bits


@pytest.mark.trust(3)
def test_every_cut_is_found_and_refused(trust: Trust, dataset: Path) -> None:
    """At every 512-byte boundary, next to them, and anywhere else: by `verify`, and by what training reads with."""
    held = runs = 0
    for shard in [shard for part in read_ledger(dataset) for shard in part.shards]:
        path = shard_path(dataset, shard.name)
        data = path.read_bytes()
        cuts = set(range(0, len(data), 512))
        cuts |= {cut + near for cut in cuts for near in (1, 511) if cut + near < len(data)} if trust.full else set()
        cuts |= set(trust.rng().integers(0, len(data), trust.count(full=500, short=20)).tolist())
        if not trust.full:
            cuts = set(trust.rng().choice(sorted(cuts), 40, replace=False).tolist())
        for cut in sorted(cuts):
            path.write_bytes(data[:cut])
            runs += 1
            found = any(problem.startswith(f"{path}: {cut} bytes") for problem in verify(dataset))
            held += found and refused(dataset, shard.name, shard.sha256, shard.bytes)
        path.write_bytes(data)
    trust.held(held, runs)
    assert held == runs and verify(dataset) == []


def refused(dataset: Path, name: str, sha256: str, size: int) -> bool:
    try:
        LocalFiles(dataset).open(f"shards/{name}", sha256, size).close()
    except ShardError as error:
        return name in str(error)
    return False


@pytest.mark.trust(4)
def test_every_flipped_bit_is_found_where_it_is(trust: Trust, dataset: Path) -> None:
    """Spread over files of every kind: shards, ledger, plan, index and `dataset.json`."""
    rng, runs = trust.rng(), trust.count(full=1000, short=60)
    kinds = [sorted((dataset / "shards").iterdir()), sorted((dataset / "ledger").iterdir())]
    kinds += [[dataset / name] for name in ("plan.parquet", "index.json", "dataset.json")]
    held = 0
    for run in range(runs):
        of_kind = kinds[run % len(kinds)]
        path = of_kind[rng.integers(len(of_kind))]
        data = path.read_bytes()
        position = int(rng.integers(len(data) * 8))
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        held += any(problem.startswith(f"{path}: ") for problem in verify(dataset))
        path.write_bytes(data)
    trust.held(held, runs)
    assert held == runs and verify(dataset) == []
