"""Checkpoints of the averaged weights, which `seqtex texture` opens: at the end of a run, and on the way."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning

from training.config import RunConfig
from training.loop.callbacks import AveragedWeights
from training.loop.checkpoints import CARD, CARD_ENTRY, CheckpointCard, card_entries, read_card, save_checkpoint
from training.loop.loggers import Curves
from training.loop.signals import StopSignals
from training.loop.throughput import Meter
from training.loop.validation import Validation
from training.model.files import remove_leftovers
from training.module import TextureModule
from training.steps import StepCallback, is_last_step

CHECKPOINT = "checkpoint"
"""Folder of the finished checkpoint in a run's directory."""
SNAPSHOTS = "checkpoints"
"""Folder of those that a run writes on its way."""
log = logging.getLogger(__name__)


class Snapshots(StepCallback):
    """Writes the finished checkpoint where training comes to its end, and one every so many steps on the way, of which
    the newest are kept, and those with the lowest validation loss, which is measured as each is written. Training takes
    no notice: no random number is drawn for it. Every trainer state gets what its weights need to be sampled."""

    def __init__(
        self,
        cfg: RunConfig,
        card_at: Callable[[int], CheckpointCard],
        average: AveragedWeights,
        signals: StopSignals,
        validation: Validation | None,
        curves: Curves,
        meter: Meter,
    ) -> None:
        """card_at: the card of a checkpoint after so many steps. validation: the samples that are measured; None:
        none, and no checkpoint is better than another."""
        self.cfg = cfg
        self.finished = cfg.directory / CHECKPOINT
        self.directory = cfg.directory / SNAPSHOTS
        self.card_at = card_at
        self.average = average
        self.signals = signals
        self.validation = validation
        self.curves = curves
        self.meter = meter

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            remove_leftovers(self.finished)  # as large as the model

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Delete what a run that was killed left unfinished, and what it wrote behind the state that goes on."""
        if not trainer.is_global_zero or not self.cfg.weights_every:
            return
        for path in self.directory.glob(".step-*"):
            shutil.rmtree(path)
        for path in self._on_the_way():
            if read_card(path).steps > trainer.global_step:
                delete(path)
        if self.validation is None and self.cfg.weights_best and self.cfg.weights_every <= trainer.max_steps:
            log.warning("no validation samples: of the checkpoints on the way, none is kept as the best")

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        step, every = trainer.global_step, self.cfg.weights_every
        is_snapshot = every > 0 and step % every == 0
        is_finished = is_last_step(trainer) and self.signals.stopped_by is None
        if not is_snapshot and not is_finished:
            return
        assert isinstance(pl_module, TextureModule)
        with self.average.applied():
            loss = self._validation_loss(pl_module) if is_snapshot else None
            model = pl_module.finished_model()
            if trainer.is_global_zero and is_finished:
                save_checkpoint(self.finished, model, self.card_at(step))
            if trainer.is_global_zero and is_snapshot:
                card = replace(self.card_at(step), validation_loss=loss)
                save_checkpoint(self.directory / f"step-{step:08d}", model, card)
                self.delete_others()
        if loss is not None:
            self.curves.logger.log_metrics({"validation/loss": loss}, step)
        self.meter.exclude()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CARD_ENTRY] = card_entries(self.card_at(trainer.global_step))

    def _validation_loss(self, module: TextureModule) -> float | None:
        if self.validation is None:
            return None
        losses = [module.held_out_losses(one, place) for place, one in enumerate(self.validation.samples)]
        mean = fmean(task["loss"] for by_task in losses for task in by_task.values())
        return mean if math.isfinite(mean) else None

    def _on_the_way(self) -> list[Path]:
        return sorted(path.parent for path in self.directory.glob(f"step-*/{CARD}"))

    def delete_others(self) -> None:
        """Delete the checkpoints on the way that are neither among the newest nor among the best."""
        paths = self._on_the_way()
        losses = {path: loss for path in paths if (loss := read_card(path).validation_loss) is not None}
        best = sorted(losses, key=lambda path: losses[path])[: self.cfg.weights_best]
        for path in set(paths[: -self.cfg.weights_kept]) - set(best):
            delete(path)


def delete(path: Path) -> None:
    """Delete a checkpoint: all of it, or none where the process is killed."""
    hidden = path.with_name(f".{path.name}.deleted")
    path.rename(hidden)
    shutil.rmtree(hidden)
