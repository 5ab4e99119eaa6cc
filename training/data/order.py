"""Order of the samples: regime, dataset and place of each are pure functions of the seed and its number, so that a
stream is resumed by one number: the samples consumed so far."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from jaxtyping import Int

from schemas.sample import Regime

CHUNK = 4096
"""Draws that are made by one generator."""


class WeightedDraws:
    """An endless sequence of independent draws among a few kinds, by weight; a pure function of the index."""

    def __init__(self, seed: tuple[int, ...], weights: Sequence[float]) -> None:
        """seed: (seed, what is drawn); what is drawn may be absent if it is 0."""
        self.seed = seed
        self.bounds = np.cumsum(weights)[:-1] / np.sum(weights)
        self._counts = [np.zeros(len(weights), dtype=np.int64)]
        self._chunk = lru_cache(maxsize=4)(self._draw)

    def __call__(self, number: int) -> tuple[int, int]:
        """Return the kind of draw `number`, and how many draws of that kind came before it."""
        chunk, within = divmod(number, CHUNK)
        while len(self._counts) <= chunk:
            kinds = self._draw(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(kinds, minlength=len(self._counts[0])))
        kinds = self._chunk(chunk)
        kind = int(kinds[within])
        return kind, int(self._counts[chunk][kind] + np.count_nonzero(kinds[:within] == kind))

    def _draw(self, chunk: int) -> Int[np.ndarray, " draws"]:
        seed, *rest = self.seed
        return np.searchsorted(self.bounds, np.random.default_rng((seed, chunk, *rest)).random(CHUNK), side="right")


class Schedule:
    """The regime of every batch, and which batch of its regime it is."""

    def __init__(self, seed: int, mv_only_ratio: float) -> None:
        self._draws = WeightedDraws((seed,), (mv_only_ratio, 1 - mv_only_ratio))

    def __call__(self, number: int) -> tuple[Regime, int]:
        """Return the regime of batch `number`, and how many batches of that regime came before it."""
        kind, earlier = self._draws(number)
        return (Regime.TEXTURED if kind else Regime.MV_ONLY), earlier


class SampleOrder:
    """The order of one dataset's samples of one regime: every epoch each sample once. Shards are shuffled, then the
    samples within windows of `window` shards, so that only so many are open at a time."""

    def __init__(self, counts: tuple[int, ...], seed: int, window: int, source: int = 0) -> None:
        """counts: samples of each shard. source: number of the dataset, which gives it an order of its own."""
        self.counts = np.array(counts)
        self.total = sum(counts)
        self.seed = seed
        self.window = window
        self.source = source
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, position: int) -> tuple[int, int]:
        """Return (shard, sample within it) at a position of the endless stream."""
        epoch, within = divmod(position, self.total)
        shard, sample = self._epoch(epoch)[0][within]
        return int(shard), int(sample)

    def replacements(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield replacements for a sample that cannot be read: random ones of the same window, then of the same epoch.
        They are a pure function of seed and position, too: all ranks find the same ones without communication."""
        epoch, within = divmod(position, self.total)
        places, starts = self._epoch(epoch)
        end = np.searchsorted(starts, within, side="right")
        start, stop = starts[end - 1], starts[end] if end < len(starts) else self.total
        rng = np.random.default_rng((self.seed, position, self.source, 1))
        for at in chain(start + rng.permutation(stop - start), rng.permutation(self.total)):
            yield int(places[at][0]), int(places[at][1])

    def _shuffle(self, epoch: int) -> tuple[Int[np.ndarray, "samples 2"], Int[np.ndarray, " windows"]]:
        """Return the places of an epoch in their order, and the start of each window."""
        rng = np.random.default_rng((self.seed, epoch, self.source))
        shards = rng.permutation(len(self.counts))
        windows = []
        for start in range(0, len(shards), self.window):
            chosen = shards[start : start + self.window]
            counts = self.counts[chosen]
            samples = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            windows.append(rng.permutation(np.stack([np.repeat(chosen, counts), samples], axis=1).astype(np.int32)))
        starts = np.cumsum([0, *(len(window) for window in windows[:-1])])
        return np.concatenate(windows), starts
