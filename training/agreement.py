"""Numbers that ranks agree on by way of main memory, so that no rank waits for its GPU.

Every rank calls these functions at the same places; one process alone agrees with itself."""

from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import distributed

Own = TypeVar("Own")


@lru_cache(maxsize=1)
def _in_main_memory(world: Any) -> Any:
    """Return a group of all ranks whose messages never pass a GPU: their own where it is such a one, else a second."""
    return world if distributed.get_backend(world) == "gloo" else distributed.new_group(backend="gloo")


def mean_over_ranks(value: float) -> float:
    """Return the mean of a number over all ranks, the same on each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total, group=_in_main_memory(distributed.group.WORLD))
    return float(total) / distributed.get_world_size()


def any_rank(decision: bool) -> bool:
    """Return whether any rank decides so, the same on each."""
    return mean_over_ranks(float(decision)) > 0


def gather_if_any(own: Own, matters: bool) -> list[Own]:
    """Return what all ranks have, in their order, if it matters to any of them; else nothing, at the cost of one
    number."""
    if not any_rank(matters):
        return []
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    found: list[Own] = [own] * distributed.get_world_size()
    distributed.all_gather_object(found, own, group=_in_main_memory(distributed.group.WORLD))
    return found
