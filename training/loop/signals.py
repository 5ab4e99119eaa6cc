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
from training.agreement import any_rank
from training.data.datamodule import STOP_SIGNALS
from training.model.optimizers import gradient_norm, skip_next_step
from training.module import TextureModule
from training.steps import StepCallback, is_last_step

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

    def __init__(self, message: str, step: int) -> None:
        """step: the first one beyond the budget."""
        super().__init__(message)
        self.step = step


class StopSignals(StepCallback):
    """Notes a signal in a flag and stops the run at the end of the batch, on every rank at the same one; a second
    Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        """By this process; the run goes on to the end of the batch."""
        self.stopped_by: int | None = None
        """The signal that ended the run, on every rank."""
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
        if is_last_step(trainer):
            return  # it ends here anyway, and with a finished checkpoint
        if any_rank(self.received is not None):
            self.stopped_by = self.received or STOP_SIGNALS[0]
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self, trainer: lightning.Trainer) -> None:
        """Raises Interrupted where the run was stopped by a signal."""
        if self.stopped_by is not None:
            raise Interrupted(signal.Signals(self.stopped_by), trainer.global_step)


class FiniteGuard(lightning.Callback):
    """Drops gradients that are not finite before they reach the optimiser, whose state stays as it was, too.

    One norm of all gradients, over all ranks, shows whether they are, and is what they are clipped by. On a GPU the
    optimiser reads the answer there and the training process goes on; it learns of it in `settle`."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.skipped: deque[int] = deque()
        """Skipped steps, of the last `SKIP_WINDOW`."""
        self._unread: list[tuple[int, Tensor]] = []
        """Steps whose answer lies on the GPU."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.skipped.clear()
        self._unread.clear()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, TextureModule)
        norm = gradient_norm(pl_module)
        pl_module.gradient_norm, step, is_finite = norm, trainer.global_step + 1, torch.isfinite(norm)
        if self.leaves_to_device(pl_module.device) and skip_next_step(optimizer, ~is_finite):
            pl_module.gradient_norm = torch.where(is_finite, norm, 0.0)
            self._unread.append((step, is_finite))
        elif not is_finite:
            for parameter in pl_module.parameters():
                parameter.grad = None
            pl_module.gradient_norm = torch.zeros(())
            self._count(step)

    def leaves_to_device(self, device: torch.device) -> bool:
        """Return whether a step ends sooner if its gradients are not asked for."""
        return device.type != "cpu"

    def settle(self) -> None:
        """Read the answers that lie on the GPU, all at once. Raises Diverged as the step would have that broke the
        budget."""
        unread, self._unread = self._unread, []
        if unread:
            answers = torch.stack([is_finite for _, is_finite in unread]).tolist()
            for (step, _), is_finite in zip(unread, answers, strict=True):
                if not is_finite:
                    self._count(step)

    def _count(self, step: int) -> None:
        self.skipped.append(step)
        while self.skipped[0] <= step - SKIP_WINDOW:
            self.skipped.popleft()
        if len(self.skipped) > self.budget:
            raise Diverged(
                f"{len(self.skipped)} gradients of the last {SKIP_WINDOW} steps were no numbers, the last one in step "
                f"{step}, more than optimizer.skip_budget ({self.budget}): lower optimizer.learning_rate and resume",
                step,
            )
