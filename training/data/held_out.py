"""Samples that are validated on and never trained on, shared out among ranks."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from schemas.errors import UserError
from schemas.sample import Regime, TextureSample
from training.data.mixture import DataConfig, open_datasets, readable_samples


class HeldOutSample:
    """A stored sample that is validated on, and its number. (No dataclass: Lightning would look for tensors in it.)"""

    def __init__(self, number: int, sample: TextureSample, weight: int = 1) -> None:
        """weight: in the means over all samples; 0 for one that another rank counts. (Else the number of ranks:
        Lightning rounds the mean weight of all ranks down to a whole number.)"""
        self.number = number
        self.sample = sample
        self.weight = weight


class HeldOut:
    """The first samples of each regime of a dataset, read once: those of one rank. Ranks have samples of one regime at
    a time, so that they compute and log the same tasks together; where a regime has no equal share for each, its first
    ones are measured again, and not counted. (No `DataLoader`: Lightning would share samples out in an order of its
    own.)"""

    def __init__(
        self, location: Path, cfg: DataConfig, count: int, rank: int = 0, ranks: int = 1, *, materials: bool = False
    ) -> None:
        """count: samples of each regime at most. materials: with theirs. Raises UserError where there is none."""
        (files,) = open_datasets(replace(cfg, directory=location, directories={}))
        self.samples: list[HeldOutSample] = []
        found = 0
        for regime in Regime:
            of_regime = list(itertools.islice(readable_samples(files, regime, materials), count))
            for place in range(rank, math.ceil(len(of_regime) / ranks) * ranks, ranks):
                again = place >= len(of_regime)
                place %= len(of_regime)
                self.samples.append(HeldOutSample(found + place, of_regime[place], weight=0 if again else ranks))
            found += len(of_regime)
        if not self.samples:
            raise UserError(f"{location}: no readable sample to validate on; name another dataset as held_out")

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[HeldOutSample]:
        return iter(self.samples)
