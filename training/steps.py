"""Optimiser steps and epochs as Lightning counts its batches: when a step ends, and the right counts after a resume."""

from abc import ABC, abstractmethod
from typing import Any

import lightning
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops.progress import _ProcessedTracker

from schemas.errors import UserError


def is_step_end(trainer: lightning.Trainer) -> bool:
    """Return whether the current batch completes an optimiser step."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0


def is_last_step(trainer: lightning.Trainer) -> bool:
    """Return whether training ends behind the current step."""
    return trainer.should_stop or trainer.global_step >= trainer.max_steps


def accumulations(trainer: lightning.Trainer) -> dict[int, int]:
    """Return the number of batches that make a step, by the epoch from which on they do."""
    callbacks: list[lightning.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    scheduled = [one.scheduling for one in callbacks if isinstance(one, GradientAccumulationScheduler)]
    return scheduled[0] if scheduled else {0: trainer.accumulate_grad_batches}


def check_epochs(trainer: lightning.Trainer) -> None:
    """Raise UserError if an epoch would end within a step, which Lightning would then make of fewer batches."""
    limit = trainer.num_training_batches
    for accumulated in accumulations(trainer).values():
        if limit != float("inf") and limit % accumulated:
            raise UserError(
                f"limit_train_batches {limit:g} is no multiple of accumulate_grad_batches {accumulated}: the last step "
                "of an epoch would have fewer batches; give a multiple"
            )


def count_batches_anew(trainer: lightning.Trainer) -> None:
    """Set batches and epochs by the steps that are done, as the first batch starts. After a resume Lightning counts one
    batch too many, or by the accumulate_grad_batches of an earlier run, and not an epoch that a state was saved at the
    end of."""
    schedule, steps, epoch = accumulations(trainer), trainer.global_step, 0
    while True:
        accumulated = schedule[max(first for first in schedule if first <= epoch)]
        if steps < (steps_of_epoch := trainer.num_training_batches / accumulated):
            break
        steps, epoch = steps - int(steps_of_epoch), epoch + 1
    within, trainer.accumulate_grad_batches = steps * accumulated, accumulated
    batches, epochs = trainer.fit_loop.epoch_loop.batch_progress.current, trainer.fit_loop.epoch_progress
    batches.reset()
    batches.increment_by(within)
    batches.ready = within + 1
    for progress in (epochs.current, epochs.total):
        assert isinstance(progress, _ProcessedTracker)
        progress.reset()
        progress.increment_by(epoch)
        progress.ready = progress.started = epoch + 1


class StepCallback(lightning.Callback, ABC):
    """A callback that acts after optimiser steps alone, and ends alike with training and with an error."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_step_end(trainer):
            self.on_step(trainer, pl_module, batch)

    @abstractmethod
    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        """After an optimiser step, which `batch` completed."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Do as `teardown`, which Lightning does not call after an error."""
        self.teardown(trainer, pl_module, "fit")
