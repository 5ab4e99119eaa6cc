"""What happens around a training step: learning rate, averaged weights, the record of losses, trainer states."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from training.checkpoints import trainer_states
from training.data import TextureDataModule
from training.module import OptimizerConfig


class Clock(lightning.Callback):
    """Seconds of training, over all resumed parts; ends the run at its time limit."""

    def __init__(self, max_steps: int, max_seconds: float | None) -> None:
        self.max_steps = max_steps
        self.max_seconds = max_seconds
        self._before = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._start if self._start is not None else 0.0)

    def progress(self, step: int) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(step / self.max_steps, by_time))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.max_seconds and self.seconds >= self.max_seconds:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["seconds"]


class LearningRate(lightning.Callback):
    """Linear warm-up, then a cosine down to `final_share` of the peak. Under a step limit alone it is a pure function
    of the step."""

    def __init__(self, cfg: OptimizerConfig, clock: Clock) -> None:
        self.cfg = cfg
        self.clock = clock
        self._peaks: list[float] = []

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Before a trainer state is restored: a resumed run goes on with the rates of its own configuration.
        self._peaks = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        warm = min(1.0, (step + 1) / max(1, self.cfg.warmup_steps))
        cosine = (1 + math.cos(math.pi * self.clock.progress(step))) / 2
        share = warm * (self.cfg.final_share + (1 - self.cfg.final_share) * cosine)
        for group, peak in zip(trainer.optimizers[0].param_groups, self._peaks, strict=True):
            group["lr"] = share * peak


class AveragedWeights(lightning.Callback):
    """Exponential moving average of the trained weights; shorter while there are few steps to average."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        device = pl_module.device
        start = {name: p.detach().float().clone() for name, p in trained(pl_module).items()}
        self._average = {name: self._average.get(name, value).to(device) for name, value in start.items()}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        current = [p.detach().float() for p in trained(pl_module).values()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self._average = dict(state_dict)

    @contextmanager
    def applied(self, pl_module: lightning.LightningModule) -> Iterator[None]:
        """The module with the averaged weights in place of the trained ones."""
        parameters = trained(pl_module)
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data.copy_(self._average[name])
            yield
        finally:
            for name, p in parameters.items():
                p.data.copy_(kept[name])


def trained(pl_module: lightning.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}


class LossLog(lightning.Callback):
    """One JSON line per step in `losses.jsonl`: step, seconds, loss, loss_mv, loss_uv, task, regime, learning rate.
    Resumed runs go on in the same file, from the step they resume at."""

    def __init__(self, path: Path, clock: Clock, report: Callable[[dict[str, Any]], None]) -> None:
        """`report` gets every row, with the share of the run that is done as `progress`."""
        self.path = path
        self.clock = clock
        self.report = report
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.rows = [row for row in read_losses(self.path) if row["step"] <= trainer.global_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        numbers = {name: number(value) if isinstance(value, Tensor) else value for name, value in outputs.items()}
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        row = {"step": trainer.global_step, "seconds": round(self.clock.seconds, 3)} | numbers | {"learning_rate": rate}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.report(row | {"progress": self.clock.progress(trainer.global_step)})


def number(value: Tensor) -> float | None:
    """None for what is no number: JSON has no word for it."""
    return value.item() if torch.isfinite(value) else None


def read_losses(path: Path) -> list[dict[str, Any]]:
    """The rows of a loss log; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class SavedStates(lightning.Callback):
    """A trainer state every so many steps and at the end; the newest `keep` are kept. Also tells the data module how
    far it has come, so it must stand last among the callbacks."""

    def __init__(self, directory: Path, every_steps: int, data: TextureDataModule, keep: int = 2) -> None:
        self.data = data
        self.directory = directory
        self.every_steps = every_steps
        self.keep = keep

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.data.consumed(batch)
        if trainer.global_step % self.every_steps == 0 or trainer.should_stop:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.directory / f"step-{trainer.global_step:08d}.ckpt")
        for path in trainer_states(self.directory)[: -self.keep]:
            trainer.strategy.checkpoint_io.remove_checkpoint(path)
