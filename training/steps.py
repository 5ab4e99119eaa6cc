"""Optimiser steps, as callbacks count them: with `run.accumulate` one step is several batches of the loader."""

from typing import Any

import lightning


def is_step_end(trainer: lightning.Trainer) -> bool:
    """Whether the batch that is at work completes an optimiser step."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0


def count_batches_anew(trainer: lightning.Trainer) -> None:
    """After a resume: the batches behind us are those of the steps behind us at today's `run.accumulate`."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    count = trainer.global_step * trainer.accumulate_grad_batches
    for part in (progress.total, progress.current):
        for name in ("ready", "started", "processed", "completed"):
            setattr(part, name, count)


class StepCallback(lightning.Callback):
    """A callback that acts after optimiser steps alone."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_step_end(trainer):
            self.on_step(trainer, pl_module, batch)

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        raise NotImplementedError
