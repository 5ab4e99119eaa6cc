"""A recording of some steps of a run: operators, kernels and copies over time, and on a GPU the memory."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch.profiler import ProfilerActivity, profile

from training.loop.throughput import Meter
from training.steps import StepCallback

FOLDER = "profile"
"""In a run's directory."""
MOST_MEMORY_EVENTS = 200_000


class Profile(StepCallback):
    """Records steps with torch's profiler. Each rank writes `profile/steps-FIRST-LAST-rank-N.json`, which
    chrome://tracing and Perfetto show, and on a GPU a `.pickle` beside it for https://pytorch.org/memory_viz. What is
    computed stays the same; the steps take longer, and do not count in the figures of the run."""

    def __init__(self, directory: Path, steps: tuple[int, int], meter: Meter) -> None:
        """directory: that of the run. steps: the first and the last one."""
        self.directory = directory / FOLDER
        self.first, self.last = steps
        self.meter = meter
        self._recording: profile | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._recording is not None or trainer.global_step + 1 != self.first:
            return
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MOST_MEMORY_EVENTS)
        self._recording = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._recording.start()

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        if self._recording is None:
            return
        self.meter.exclude()
        if trainer.global_step < self.last:
            return
        recording = self._end()
        self.directory.mkdir(exist_ok=True)
        path = self.directory / f"steps-{self.first}-{self.last}-rank-{trainer.global_rank}.json"
        unfinished = path.with_suffix(".tmp")
        recording.export_chrome_trace(str(unfinished))
        unfinished.replace(path)
        if pl_module.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(unfinished))
            unfinished.replace(path.with_suffix(".pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)

    def _end(self) -> profile:
        recording, self._recording = self._recording, None
        assert recording is not None
        recording.stop()
        return recording

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop a recording that the run ended in the middle of."""
        if self._recording is not None:
            self._end()
