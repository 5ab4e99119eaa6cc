"""Callbacks around a training step: time limits, averaged weights, the record of losses, trainer states."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.storage import write_file
from training.agreement import mean_over_ranks
from training.loop.signals import Diverged, FiniteGuard
from training.loop.states import is_complete, newest_state, sum_path, trainer_states, verified
from training.loop.strategies import is_first_process
from training.loop.throughput import Meter
from training.model.fsdp import as_shards, gathered, local, part_of_whole
from training.model.optimizers import trained_parameters
from training.module import TextureModule
from training.steps import StepCallback, is_last_step, is_step_end


class Clock(StepCallback):
    """Seconds of training, over all resumed parts; ends the run at its time limit, or this start of it at its own, on
    all ranks at once."""

    def __init__(self, max_steps: int, max_seconds: float | None, pause_seconds: float | None = None) -> None:
        self.max_steps = max_steps
        self.max_seconds = max_seconds
        self.pause_seconds = pause_seconds
        self._before = 0.0
        self._start: float | None = None
        self._first_start: float | None = None
        """The start of this process, whatever it rolls back to."""
        self._agreed = 0.0
        """Seconds after the last step, the same on every rank."""

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._start if self._start is not None else 0.0)

    def progress(self, step: int) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        by_time = self._agreed / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(step / self.max_steps, by_time))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start, self._agreed = time.monotonic(), self._before
        self._first_start = self._first_start or self._start
        if self.max_seconds and self._before >= self.max_seconds:
            trainer.should_stop = True

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        self._agreed = mean_over_ranks(self.seconds) if self.max_seconds else self.seconds
        if self.max_seconds and self._agreed >= self.max_seconds:
            trainer.should_stop = True
        if self.pause_seconds and mean_over_ranks(time.monotonic() - (self._first_start or 0.0)) >= self.pause_seconds:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = self._agreed = state_dict["seconds"]  # the scheduler's rate is restored before training starts


class AveragedWeights(StepCallback):
    """Exponential moving average of the trained weights, shorter while there are few steps to average; in a
    `lightning.Trainer` with validation, its steps see the average. In a sharded run each rank averages its shards; the
    state holds whole tensors, so that any number of ranks can go on."""

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._average: dict[str, Tensor] = {}
        """This rank's part."""
        self._restored: dict[str, Tensor] = {}
        """Whole, until training starts."""
        self._narrow: dict[str, Tensor] = {}
        """Trained weights of another dtype than the average, while the average is in their place."""
        self._swapped = ExitStack()
        self._keeps_shards = False
        """True where the trainer's strategy saves each rank's part by itself."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._keeps_shards = getattr(trainer.strategy, "keeps_shards", False)
        if stage == "fit":
            self._average = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin(pl_module)

    def _begin(self, pl_module: lightning.LightningModule) -> None:
        """Start from the weights, or from what a trainer state brought."""
        self._parameters = trained_parameters(pl_module)
        if self._average and not self._restored:
            return
        self._average = {
            name: part_of_whole(self._restored[name], p)
            if name in self._restored
            else local(p).detach().float().clone()
            for name, p in self._parameters.items()
        }
        self._restored = {}

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        current = [local(p).detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - decay)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin(pl_module)
        self._swapped.enter_context(self.applied())

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._swapped.close()

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._swapped.close()  # where validation failed

    def state_dict(self) -> dict[str, Tensor]:
        shards = as_shards(self._average, self._parameters)
        return shards if self._keeps_shards else gathered(shards)

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self._restored = dict(state_dict)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, which lie in theirs meanwhile: no third copy of all."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            shard, average = local(parameter.detach()), self._average[name]
            if name in self._narrow:
                shard.copy_(self._narrow.pop(name))
            elif shard.dtype != average.dtype:  # the way there and back would lose something
                self._narrow[name] = shard.clone()
                shard.copy_(average)
            else:
                kept = shard.clone()
                shard.copy_(average)
                average.copy_(kept)


class LossLog(lightning.Callback):
    """One JSON line per step in `losses.jsonl`: step, seconds, loss, loss_mv and loss_uv where the task generates views
    or UV maps, loss_NAME of each of several maps, task, regime, learning rate, norm of the gradients before they are
    clipped (0 where they were skipped).
    Losses are means over the whole batch, whatever ranks it lay on. Resumed runs go on in the same file, from the step
    they resume at.

    Numbers stay where they were computed until they are read together, every `log_every_n_steps` of the trainer, before
    anything is saved, and at the end: between, no step waits for its GPU."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        guard: FiniteGuard,
        report: Callable[[dict[str, Any]], None],
        saves: Sequence[int] = (),
    ) -> None:
        """guard: is settled before rows are read. report: gets every row, with the share of the run that is done as
        `progress`; on rank 0 alone. saves: what is saved is saved every so many steps; 0: never."""
        self.path = path
        self.clock = clock
        self.guard = guard
        self.report = report
        self.saves = saves
        self.rows: list[dict[str, Any]] = []
        self._sums: dict[str, Tensor] = {}
        """Losses of the batches of this step, added up."""
        self._unread: list[dict[str, Any]] = []
        """Rows whose numbers lie on the device, with the share of the run that is done as `progress`."""
        self._rate = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._sums, self._unread = {}, []
        self.rows = [row for row in read_losses(self.path) if row["step"] <= trainer.global_step]
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            write_file(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._rate = float(optimizer.param_groups[-1]["lr"])  # at the end of the batch it is that of the next step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                # Lightning has divided the loss itself, and it alone, by the number of accumulated batches
                share = value if name == "loss" else value / trainer.accumulate_grad_batches
                self._sums[name] = self._sums.get(name, 0.0) + share
        if not is_step_end(trainer):
            return
        assert isinstance(pl_module, TextureModule) and pl_module.gradient_norm is not None
        means = trainer.strategy.reduce(torch.stack([value.float() for value in self._sums.values()]))
        row: dict[str, Any] = {"step": trainer.global_step, "seconds": round(self.clock.seconds, 3)}
        row |= dict(zip(self._sums, means, strict=True))
        row |= {name: value for name, value in outputs.items() if not isinstance(value, Tensor)}
        row |= {"learning_rate": self._rate, "gradient_norm": pl_module.gradient_norm.to(means)}
        self._unread.append(row | {"progress": self.clock.progress(trainer.global_step)})
        self._sums = {}
        every = (trainer.log_every_n_steps, *self.saves)  # type: ignore[attr-defined]
        if is_last_step(trainer) or any(steps and trainer.global_step % steps == 0 for steps in every):
            self.read(trainer)

    def read(self, trainer: lightning.Trainer) -> None:
        """Write and report the rows of the steps since the last time. Raises Diverged, with the rows before written,
        where the guard does."""
        unread, self._unread = self._unread, []
        try:
            self.guard.settle()
        except Diverged as end:
            self._write(trainer, [row for row in unread if row["step"] < end.step])
            raise
        self._write(trainer, unread)

    def _write(self, trainer: lightning.Trainer, unread: list[dict[str, Any]]) -> None:
        """Write and report rows; None for what is no number: JSON has no word for it."""
        on_device = [value for row in unread for value in row.values() if isinstance(value, Tensor)]
        read = torch.stack(on_device).tolist() if unread else []
        numbers = iter([number if math.isfinite(number) else None for number in read])
        for row in unread:
            whole = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in row.items()}
            progress = whole.pop("progress")
            self.rows.append(whole)
            if trainer.is_global_zero:
                with self.path.open("a") as file:
                    file.write(json.dumps(whole) + "\n")
                self.report(whole | {"progress": progress})

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write the rows of the steps that were made, unless the device itself may have failed."""
        if isinstance(exception, UserError | KeyboardInterrupt):
            self._write(trainer, self._unread)
        self._unread = []


def read_losses(path: Path) -> list[dict[str, Any]]:
    """The rows of a loss log; a last line cut off by a crash is skipped."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class OlderState(Exception):
    """Rank 0 found the newest state damaged, and all ranks are to go on from an older one."""


class SavedStates(StepCallback):
    """A trainer state every so many steps and at the end; the newest `keep` are kept."""

    def __init__(self, directory: Path, every_steps: int, meter: Meter, keep: int = 2) -> None:
        self.meter = meter
        self.directory = directory
        self.every_steps = every_steps
        self.keep = keep
        self._found: Path | None = None
        self._is_agreed = False

    def newest(self) -> Path | None:
        """The newest state that verifies, from which the run goes on. Rank 0 alone reads states for that, as large as
        they are; the others take the newest that is complete, and `setup` asks whether it is the same one."""
        if not self._is_agreed:
            is_good = verified if is_first_process() else is_complete
            self._found = newest_state(self.directory, is_good)
        self._is_agreed = False  # a run that goes back looks again
        return self._found

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        def sum_of(path: Path | None) -> str:
            return sum_path(path).read_text() if path and is_complete(path) else "none"

        own = self._found
        name, text = trainer.strategy.broadcast((own.name if own else None, sum_of(own)))
        self._found = self.directory / name if name else None
        if not trainer.strategy.reduce_boolean_decision(sum_of(self._found) == text):
            raise UserError(
                f"{self.directory}: the processes of this run do not find the same trainer states there; give a "
                "run.directory that all of them see, or start again"
            )
        if not trainer.strategy.reduce_boolean_decision(self._found == own):
            self._is_agreed = True
            raise OlderState

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        if is_last_step(trainer) or trainer.global_step % self.every_steps == 0:
            self.meter.exclude()
            trainer.save_checkpoint(self.directory / f"step-{trainer.global_step:08d}.ckpt", weights_only=False)
            self._delete_others(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        trainer.strategy.checkpoint_io.teardown()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io.teardown()  # a state may be on its way in the background
        self._delete_others(trainer)

    def _delete_others(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero:
            for path in trainer_states(self.directory)[: -self.keep]:
                trainer.strategy.checkpoint_io.remove_checkpoint(path)
