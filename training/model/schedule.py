"""The learning rate: linear warm-up, then a cosine down to `final_share` of the peak."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from training.model.optimizers import OptimizerConfig


class WarmupCosine(LRScheduler):
    """A scheduler of torch whose state is the step alone: a resumed run goes on with the rates of its own
    configuration. Where `progress` follows the steps, the rates are a pure function of the step."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, cfg: OptimizerConfig, progress: Callable[[int], float]
    ) -> None:
        """progress: share of the run that is done after so many steps."""
        self.cfg = cfg
        self.progress = progress
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the rates of the step that comes."""
        step = self.last_epoch  # torch's word for the steps so far
        warm = min(1.0, (step + 1) / max(1, self.cfg.warmup_steps))
        cosine = (1 + math.cos(math.pi * self.progress(step))) / 2
        share = warm * (self.cfg.final_share + (1 - self.cfg.final_share) * cosine)
        return [share * peak for peak in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps."""
        return {"steps": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the rates of the step that follows."""
        self.last_epoch = state_dict["steps"]
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):  # of 8-bit AdamW, whose compiled step must not see a new one
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
