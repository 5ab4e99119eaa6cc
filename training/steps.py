"""Optimiser steps, as callbacks count them: with `run.accumulate` one step is several batches of the loader."""

from abc import ABC, abstractmethod
from typing import Any

import lightning


def is_step_end(trainer: lightning.Trainer) -> bool:
    """Whether the batch that is at work completes an optimiser step."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0


def count_batches_anew(trainer: lightning.Trainer) -> None:
    """To be called as the first batch starts. Lightning steps when the batches that it counts fill a step; after a
    resume it counts one too many, or counts by the `run.accumulate` of an earlier run."""
    current = trainer.fit_loop.epoch_loop.batch_progress.current
    done = trainer.global_step * trainer.accumulate_grad_batches
    current.reset()
    current.increment_by(done)
    current.ready = done + 1


class StepCallback(lightning.Callback, ABC):
    """A callback that acts after optimiser steps alone."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_step_end(trainer):
            self.on_step(trainer, pl_module, batch)

    @abstractmethod
    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        """After an optimiser step, which `batch` completed."""
