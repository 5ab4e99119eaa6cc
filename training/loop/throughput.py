"""Figures of a run beside its loss: running means by task and regime, samples and tokens per second, how much of the
device's arithmetic is used, how long data is waited for."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch

from training.config import TrainConfig
from training.cost import H100_TFLOPS, Flops, Tokens, count_flops, tokens_by_task
from training.data.mixture import ImageSizes
from training.steps import is_step_end

WINDOW = 50
"""Steps that a rate is the mean of."""
MEAN_WINDOW = 100
"""Steps of one task or regime that its running mean spans."""
PEAK_TFLOPS = {"H200": H100_TFLOPS, "H100": H100_TFLOPS, "H800": H100_TFLOPS, "B200": 2250.0,
               "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L40": 181.0, "RTX 4090": 165.2, "L4": 121.0}  # fmt: skip
"""Dense bfloat16 products with float32 sums, by a part of the device's name, the first that fits (NVIDIA's data sheets;
SXM where there are several). float32 products run as TF32: half of it."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Floating-point operations per second that a device may do; None where that is not known."""
    found = next((value for name, value in PEAK_TFLOPS.items() if name in device_name), None)
    return None if found is None else found * 1e12 * (1.0 if precision == "bfloat16" else 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The cost of a sample of each task, and the peak of a device."""

    samples: int
    """In a global batch."""
    tokens: dict[str, Tokens]
    flops: dict[str, Flops]
    peak: float | None
    """Operations per second of all devices together."""

    @classmethod
    def of(cls, cfg: TrainConfig, sizes: ImageSizes, device: torch.device) -> "Work":
        tokens = tokens_by_task(cfg, sizes)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name, cfg.run.precision)
        return cls(
            samples=cfg.data.batch_size,
            tokens=tokens,
            flops={name: count_flops(cfg.model, count) for name, count in tokens.items()},
            peak=None if peak is None else peak * cfg.run.ranks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """One optimiser step."""

    seconds: float
    waited: float
    """Seconds of it until its batches were there."""
    task: str


class Meter(lightning.Callback):
    """Measures steps from the end of one to the end of the next."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work = work
        self._clock = clock
        self._laps: deque[Lap] = deque(maxlen=WINDOW)
        self._step_began: float | None = None
        self._batch_ended: float | None = None
        self._waited = 0.0
        self._excluded = False
        self._memory: float | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._step_began = self._batch_ended = None
        self._waited, self._excluded = 0.0, False

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._batch_ended is not None:
            self._waited += self._clock() - self._batch_ended

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._batch_ended = self._clock()
        if not is_step_end(trainer):
            return
        if pl_module.device.type == "cuda":
            self._memory = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        if self._step_began is not None and not self._excluded:  # the first step compiles and warms up
            lap = Lap(seconds=now - self._step_began, waited=self._waited, task=outputs["task"])
            self._laps.append(lap)
        self._step_began, self._waited, self._excluded = now, 0.0, False

    def exclude(self) -> None:
        """This step did something else, too: it does not count."""
        self._excluded = True

    def figures(self) -> dict[str, float]:
        """Means of the last steps: samples_per_s, tokens_per_s, wait (share of the time), and mfu where the device's
        peak is known: operations that the model needs, without those that checkpointing repeats, by the peak. On a GPU
        also memory_gb, the most that was ever allocated."""
        seconds = sum(lap.seconds for lap in self._laps)
        if not seconds:
            return {}
        tokens = sum(self.work.tokens[lap.task].mv + self.work.tokens[lap.task].uv for lap in self._laps)
        found = {
            "samples_per_s": len(self._laps) * self.work.samples / seconds,
            "tokens_per_s": tokens * self.work.samples / seconds,
            "wait": sum(lap.waited for lap in self._laps) / seconds,
        }
        if self._memory is not None:
            found["memory_gb"] = self._memory
        if self.work.peak:
            needed = (self.work.flops[lap.task] for lap in self._laps)
            flops = sum(one.forward + one.backward for one in needed)
            found["mfu"] = flops * self.work.samples / seconds / self.work.peak
        return found


class RunningMeans:
    """Means of each loss over the last steps of every task and of every regime."""

    def __init__(self) -> None:
        self._values: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MEAN_WINDOW))

    def add(self, row: dict[str, Any]) -> None:
        """A row of the loss log."""
        for name in ("loss", *(name for name in row if name.startswith("loss_"))):
            value = row.get(name)
            if value is not None:
                for group in (f"task {row['task']}", f"regime {row['regime']}"):
                    self._values[f"{name}/{group}"].append(value)

    def __call__(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._values.items()}
