"""Speed of reading batches, in one process on one thread: `python -m benchmarks.loader DATASET`.

Ours is `BatchStream` with everything that it does: seeded order, sums checked, limits of the decoder, batches in the
model's form. Plain is `webdataset.WebDataset` over the same shards in their stored order, with the same decoding and
the same stacking. The kinds take turns; the least processor time of all rounds counts. `seqtex encode DATASET --codec
dct` must have run. With --profile, where the time of decoding a sample goes.
"""

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
import webdataset as wds

from schemas.sample import Regime
from training.data.batch import Prepared, join, stack_samples
from training.data.datamodule import BatchStream
from training.data.dataset_files import LocalFiles
from training.data.latent_shards import LatentDecoder, codec_header, find_latents
from training.data.mixture import DataConfig, decode_pixels, shards_by_regime
from training.diffusion.encoders import DctCodec

BATCH = 8
ROUNDS = 5


def ours(dataset: Path, latents: bool) -> Iterator[int]:
    """Samples of each batch."""
    cfg = DataConfig(directory=dataset, batch_size=BATCH, mv_only_ratio=0.0, latents=latents)
    stream = BatchStream(cfg, seed=0, codec=DctCodec())
    number = 0
    while True:
        yield len(stream[number].uids)
        number += 1


def plain(dataset: Path, latents: bool) -> Iterator[int]:
    """Samples of each batch."""
    shards = shards_by_regime(dataset)[Regime.TEXTURED]
    folder = "shards"
    if latents:
        header, _ = find_latents(LocalFiles(dataset), codec_header(DctCodec()), [])
        folder, decoder = header.folder, LatentDecoder(header, None, with_variance=False)
    urls = [str(dataset / folder / shard.name) for shard in shards]
    samples = wds.WebDataset(urls, shardshuffle=False, empty_check=False).repeat()
    fields = ({name: value for name, value in each.items() if not name.startswith("__")} for each in samples)
    while True:
        group = list(islice(fields, BATCH))
        if latents:
            join([decoder(each).batch for each in group])
        else:
            stack_samples([Prepared(sample=decode_pixels(each)) for each in group])
        yield len(group)


def measure(batches: Iterator[int], samples: int) -> float:
    """Processor seconds a sample."""
    start, count = time.process_time(), 0
    while count < samples:
        count += next(batches)
    return (time.process_time() - start) / count


def profile(dataset: Path) -> None:
    batches = ours(dataset, latents=False)
    next(batches)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(3):
        next(batches)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--samples", type=int, default=48, help="per round and kind")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: tuple[Callable[[Path, bool], Iterator[int]], ...] = (ours, plain)
    streams = {(kind.__name__, latents): kind(options.dataset, latents) for kind in kinds for latents in (False, True)}
    for stream in streams.values():
        next(stream)  # opened, compiled
    best = dict.fromkeys(streams, float("inf"))
    for _ in range(ROUNDS):
        for key, stream in streams.items():
            best[key] = min(best[key], measure(stream, options.samples))
    print("| samples a second and core | ours | plain webdataset | ours / plain |")
    print("|---|---:|---:|---:|")
    for name, latents in (("pixels", False), ("latents", True)):
        mine, other = 1 / best["ours", latents], 1 / best["plain", latents]
        print(f"| {name} | {mine:.1f} | {other:.1f} | {mine / other:.2f} |")
    print(f"latents / pixels: {best['ours', False] / best['ours', True]:.1f}")
    if options.profile:
        profile(options.dataset)


if __name__ == "__main__":
    main()
