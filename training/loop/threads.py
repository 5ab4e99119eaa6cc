"""The number of threads that training goes fastest with on this machine, and a record of the choice. Two threads that
share a core with other work wait for each other at every product."""

import json
import logging
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch

from schemas.storage import write_file
from training.steps import StepCallback

log = logging.getLogger(__name__)

UNTIMED, TIMED = 2, 3
"""Steps before thread counts are compared, which are slow, and steps with each count."""
SLOWED = 2.5
"""Multiple of the duration that steps had, from which on threads wait for each other rather than work."""
TRIAL = UNTIMED + 2 * TIMED
RECENT = 5
"""Steps whose median is compared with that."""
THREADS = "threads.json"


class ThreadChoice(StepCallback):
    """Trains with as many threads as help: all of them or one, whichever made the first steps faster, and one from when
    on steps take far longer than they did, as they do once another program keeps a core busy.

    For one process on a CPU with `run.threads` 0; a number given there is kept. Which step has how many threads is
    written down in the run's directory before it begins, and kept to by runs that resume: they compute what the
    interrupted one did, to the last bit."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / THREADS
        self.most = torch.get_num_threads()
        self._plan: dict[int, int] = {}
        """Threads from a step on, by step; empty where there is nothing to choose."""
        self._trial = 0
        """Its first step."""
        self._seconds: dict[int, list[float]] = {}
        """Durations of its steps, by number of threads."""
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._usual = 0.0
        self._start: float | None = None
        """The start of the step that is at work."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size > 1 or pl_module.device.type != "cpu" or self.most == 1:
            return
        recorded = json.loads(self.path.read_text()) if self.path.is_file() else {}
        if recorded.get("most") == self.most:
            self._plan = {int(step): threads for step, threads in recorded["threads"].items()}
            self._trial = recorded["trial"]
        upcoming = trainer.global_step + 1
        if not any(step <= upcoming for step in self._plan):
            self._plan = {}
            self._try_from(upcoming)
        torch.set_num_threads(self._plan[max(step for step in self._plan if step <= upcoming)])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step + 1 in self._plan:
            torch.set_num_threads(self._plan[trainer.global_step + 1])
        if self._start is None:  # a step may have several batches
            self._start = time.perf_counter()

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        now = time.perf_counter()
        step, seconds = trainer.global_step, now - (self._start or now)
        self._start = None
        if not self._plan:
            return
        if self._trial + UNTIMED <= step < self._trial + TRIAL:
            self._seconds.setdefault(torch.get_num_threads(), []).append(seconds)
        if step == self._trial + TRIAL - 1 and step + 1 not in self._plan:
            self._decide(step)
        elif step >= max(self._plan):
            self._watch(step, seconds)

    def _try_from(self, step: int) -> None:
        self._trial, self._seconds = step, {}
        self._write(self._plan | {step: self.most, step + UNTIMED + TIMED: 1})

    def _decide(self, step: int) -> None:
        medians = {threads: median(times) for threads, times in self._seconds.items()}
        if len(medians) < 2:  # the run was interrupted within the trial
            self._try_from(step + 1)
            return
        best = min(medians, key=lambda threads: medians[threads])
        self._usual = medians[best]
        said = ", ".join(f"{seconds:.3g} s with {threads}" for threads, seconds in medians.items())
        log.info("threads: a step takes %s; training goes on with %d", said, best)
        self._write(self._plan | {step + 1: best})

    def _watch(self, step: int, seconds: float) -> None:
        self._recent.append(seconds)
        if torch.get_num_threads() == 1 or len(self._recent) < RECENT:
            return
        now = median(self._recent)
        self._usual = self._usual or now  # after a resume
        if now > SLOWED * self._usual:
            log.warning(
                "step %d: steps take %.3g s, they took %.3g s: something else keeps a core busy; training goes on with "
                "one thread",
                step, now, self._usual,
            )  # fmt: skip
            self._write(self._plan | {step + 1: 1})

    def _write(self, plan: dict[int, int]) -> None:
        self._plan = plan
        write_file(self.path, json.dumps({"most": self.most, "trial": self._trial, "threads": plan}).encode() + b"\n")
