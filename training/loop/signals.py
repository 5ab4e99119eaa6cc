"""Stop gracefully on signals, with the state saved, and skip non-finite gradients."""

import os
import signal
from collections import deque
from types import FrameType
from typing import Any

import lightning
import torch
from torch import Tensor

from schemas.errors import UserError
from training.data.datamodule import STOP_SIGNALS
from training.model.fsdp import local
from training.steps import StepCallback

SKIP_WINDOW = 1000
"""Steps over which the skip budget counts."""


class Interrupted(UserError):
    """The run was asked to stop and saved its state: exit code 75 (EX_TEMPFAIL), so that a scheduler runs it again, or
    130 after Ctrl-C."""

    def __init__(self, stopped_by: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {stopped_by.name} after step {step}, state saved; run the same command to go on")
        self.exit_code = 130 if stopped_by == signal.SIGINT else 75


class Diverged(UserError):
    """Too many gradients were no numbers: exit code 65 (EX_DATAERR); run again unchanged, it would end the same way."""

    exit_code = 65


class StopSignals(StepCallback):
    """Notes a signal in a flag and stops the run at the end of the batch, on every rank at the same one; a second
    Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        """By this process; the run goes on to the end of the batch."""
        self.stopped_by: int | None = None
        """What the run was ended by, on every rank."""
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Over Lightning's own handlers: those save inside the handler, or not at all.
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in heard}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            # past the buffers of sys.stderr, in which this signal may have come
            os.write(2, b"\nstopping at the end of this step, with its state saved; Ctrl-C again ends at once\n")

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        if trainer.should_stop or trainer.global_step >= trainer.max_steps:
            return  # it ends here anyway, and with a finished checkpoint
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self.stopped_by = self.received or STOP_SIGNALS[0]
            trainer.should_stop = True

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self, trainer: lightning.Trainer) -> None:
        """Raises Interrupted where the run was stopped by a signal."""
        if self.stopped_by is not None:
            raise Interrupted(signal.Signals(self.stopped_by), trainer.global_step)


class FiniteGuard(lightning.Callback):
    """Drops gradients that are not finite before they reach the optimiser, whose state stays as it was, too."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.skipped: deque[int] = deque()
        """Skipped steps, of the last `SKIP_WINDOW`."""

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [local(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if trainer.strategy.reduce_boolean_decision(finite(gradients), all=True):
            return
        for parameter in pl_module.parameters():
            parameter.grad = None
        step = trainer.global_step + 1
        self.skipped.append(step)
        while self.skipped[0] <= step - SKIP_WINDOW:
            self.skipped.popleft()
        if len(self.skipped) > self.budget:
            raise Diverged(
                f"{len(self.skipped)} gradients of the last {SKIP_WINDOW} steps were no numbers, the last one in step "
                f"{step}, more than optimizer.skip_budget ({self.budget}): lower optimizer.learning_rate and resume"
            )


def finite(gradients: list[Tensor]) -> bool:
    return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
