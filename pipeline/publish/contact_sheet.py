"""Draw the picture of a dataset's card: the first view of a few samples, spread evenly over the dataset."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.report.images import cut_out, in_rows, webp
from schemas.codec import decode
from schemas.dataset import LedgerPart, ShardRecord, by_repair, shard_path
from schemas.errors import UserError
from schemas.shards import ShardFile, require_recorded

MAX_SAMPLES = 24
COLUMNS = 6
TILE_PX = 192
"""Most height of a view."""


def contact_sheet(dataset: Path, parts: Sequence[LedgerPart]) -> bytes | None:
    """Encode the first view of up to `MAX_SAMPLES` samples in rows, as WebP; None if the dataset has no sample. Equal
    datasets give equal bytes. Raises UserError where a shard is damaged."""
    shards = [shard for part in parts for shard in part.shards]
    views = [view for shard, numbers in chosen(shards) for view in _first_views(dataset, shard, numbers)]
    if not views:
        return None
    rows = -(-len(views) // COLUMNS)
    return webp(in_rows(np.stack(views), COLUMNS), rows * TILE_PX)


def chosen(shards: Sequence[ShardRecord], count: int = MAX_SAMPLES) -> Iterator[tuple[ShardRecord, list[int]]]:
    """Yield the shards that hold chosen samples, and the numbers of these in the shard."""
    ends = list(accumulate(shard.count for shard in shards))
    total = ends[-1] if ends else 0
    picks = [index * total // min(count, total) for index in range(min(count, total))]
    for shard, end in zip(shards, ends, strict=True):
        first = end - shard.count
        if numbers := [pick - first for pick in picks if first <= pick < end]:
            yield shard, numbers


def _first_views(
    dataset: Path, shard: ShardRecord, numbers: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "height width 4"]]:
    path = shard_path(dataset, shard.name)
    try:
        with path.open("rb") as file:
            require_recorded(file, shard.sha256, shard.bytes)
            samples = ShardFile(file)
            for number in numbers:
                views = decode(samples[number]).views
                yield cut_out(views.rgb[0], views.mask[0])
    except ValueError as error:
        raise UserError(f"{path}: {error}; {by_repair(dataset)}") from error
