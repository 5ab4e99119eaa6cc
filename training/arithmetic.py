"""In which precision and with how many threads this machine computes fast: decided at the start of a run, on record.

Processors differ in this more than in anything else. With instructions for bfloat16 a product in it takes half the time
of one in float32 or less; without, it falls to a plain loop that takes ten to forty times as long. Two threads that
share a core with other work wait for each other at every product."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from statistics import median
from typing import Any

import lightning
import torch

from training.steps import StepCallback

log = logging.getLogger(__name__)

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of such instructions, x86 and ARM, in `torch.cpu.get_capabilities`."""
WORTHWHILE = 1.2
"""How much faster than float32 bfloat16 must be, measured, to be used on a processor."""
TRIAL_SIDE = 256
"""Of the matrices of that measurement."""
UNTIMED, TIMED = 2, 3
"""Steps before thread counts are compared, which are slow, and steps with each count."""
SLOWED = 2.5
"""So many times the duration that steps had, and threads wait for each other rather than work."""
RECENT = 5
"""Steps whose median is compared with that."""


@lru_cache(maxsize=8)
def fast_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where matrix products in it are fast, else float32."""
    if device_type == "cuda":
        is_fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        is_fast = device_type == "cpu" and has_native_bfloat16() and bfloat16_gain() > WORTHWHILE
    return torch.bfloat16 if is_fast else torch.float32


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers, and torch may use that."""
    found = torch.cpu.get_capabilities()
    is_held_back = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return not is_held_back and any(found.get(name, False) for name in NATIVE_BFLOAT16)


def bfloat16_gain() -> float:
    """How many times faster than in float32 a product is in bfloat16 on this processor: some milliseconds of trial."""
    wide = torch.ones(TRIAL_SIDE, TRIAL_SIDE)
    narrow = wide.bfloat16()
    return fastest(lambda: wide @ wide) / fastest(lambda: narrow @ narrow)


def fastest(product: Callable[[], object], tries: int = 5) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def float32_products(device_type: str) -> str:
    """How float32 layers multiply, in torch's words: `medium` is TF32 on a GPU and bfloat16 on a processor."""
    return "medium" if device_type == "cuda" or fast_dtype(device_type) is torch.bfloat16 else "highest"


def autocast_dtype(device_type: str, precision: str) -> torch.dtype | None:
    """The dtype that a run of this precision computes layers in; None: that of the weights. bfloat16 is asked for to be
    fast, so where it is not, float32 takes its place."""
    return torch.bfloat16 if precision == "bfloat16" and fast_dtype(device_type) is torch.bfloat16 else None


@contextmanager
def arithmetic(threads: int, device_type: str) -> Iterator[None]:
    """Set threads (0: leave them) and float32 products for training. What this process does afterwards is done as
    before."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads or before[0])
    torch.set_float32_matmul_precision(float32_products(device_type))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def decisions(device_type: str, precision: str) -> dict[str, Any]:
    """The precisions that were decided on, for the record of a run."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_bfloat16": has_native_bfloat16(),
        "float32_products": float32_products(device_type),
        "autocast": str(autocast_dtype(device_type, precision)).removeprefix("torch."),
        "muon": str(fast_dtype(device_type)).removeprefix("torch."),
    }


class ThreadChoice(StepCallback):
    """Trains with as many threads as help: all of them or one, whichever made the first steps faster, and one from when
    on steps take far longer than they did, as they do once another program keeps a core busy.

    The choice is part of the trainer state, so that a resumed run computes as the one before it. For one process on a
    CPU with `run.threads` 0; a number given there is kept."""

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.threads = self.most
        self.is_settled = self.most == 1
        self._seconds: dict[int, list[float]] = {}
        """Durations of the first steps, by number of threads."""
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._usual = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size > 1 or pl_module.device.type != "cpu":
            self.is_settled, self.most = True, 1
        elif self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._start = time.perf_counter()

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        if self.most == 1:
            return
        seconds = time.perf_counter() - self._start
        if self.is_settled:
            self._watch(trainer.global_step, seconds)
        else:
            self._compare(trainer.global_step, seconds)

    def _compare(self, step: int, seconds: float) -> None:
        if step > UNTIMED:
            self._seconds.setdefault(self.threads, []).append(seconds)
        if step == UNTIMED + TIMED:
            self._use(1)
        if step >= UNTIMED + 2 * TIMED:
            medians = {threads: median(times) for threads, times in self._seconds.items()}
            best = min(medians, key=lambda threads: medians[threads], default=self.threads)
            self._use(best)
            self._usual, self.is_settled = medians.get(best, 0.0), True
            said = ", ".join(f"{each:.3g} s with {threads}" for threads, each in medians.items())
            log.info("a step takes %s threads; training goes on with %d", said, best)

    def _watch(self, step: int, seconds: float) -> None:
        self._recent.append(seconds)
        if self.threads == 1 or len(self._recent) < RECENT:
            return
        now = median(self._recent)
        self._usual = self._usual or now  # after a resume
        if now > SLOWED * self._usual:
            log.warning(
                "step %d: steps take %.3g s, they took %.3g s: something else keeps a core busy; training goes on with "
                "one thread",
                step, now, self._usual,
            )  # fmt: skip
            self._use(1)

    def _use(self, threads: int) -> None:
        self.threads = threads
        torch.set_num_threads(threads)

    def state_dict(self) -> dict[str, Any]:
        return {"threads": self.threads, "is_settled": self.is_settled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.threads = min(state_dict["threads"], self.most)
        self.is_settled = state_dict["is_settled"] or self.is_settled
