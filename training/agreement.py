"""What one rank meets on its way to a batch is told to all, so that they pass over the same shards, count them together
and stop at the same batch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightning.pytorch.strategies import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a rank met on its way to a batch."""

    fault: str | None = None
    """Why it has none."""
    bad_shards: dict[str, str] = field(default_factory=dict)
    """Why each cannot be read, by name; those that the run does not know yet."""


Share = Callable[[Findings], list[Findings]]


def share_findings(strategy: Strategy, own: Findings) -> list[Findings]:
    """Those of all ranks, in their order; none where no rank has any. Every rank calls it for every batch."""
    if not strategy.reduce_boolean_decision(bool(own.fault or own.bad_shards), all=False):
        return []
    if not torch.distributed.is_initialized():
        return [own]
    found: list[Findings] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def keep_findings(own: Findings) -> list[Findings]:
    """Of a process that reads alone."""
    return [own]
