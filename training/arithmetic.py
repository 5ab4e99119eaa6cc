"""Choose the precision and the number of threads that are fast on this machine, and keep a record of the choice.

Processors differ in this more than in anything else. With instructions for bfloat16 a product in it is faster than
one in float32; without, it falls to a plain loop, and a training step takes two to fifteen times as long
(`python -m benchmarks.steps`). Two threads that share a core with other work wait for each other at every product."""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import lightning
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.errors import UsageError
from schemas.storage import write_file
from training.steps import StepCallback

log = logging.getLogger(__name__)

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of such instructions, x86 and ARM, in `torch.cpu.get_capabilities`."""
UNTIMED, TIMED = 2, 3
"""Steps before thread counts are compared, which are slow, and steps with each count."""
SLOWED = 2.5
"""So many times the duration that steps had, and threads wait for each other rather than work."""
TRIAL = UNTIMED + 2 * TIMED
RECENT = 5
"""Steps whose median is compared with that."""
THREADS = "threads.json"
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""Kernels of scaled dot-product attention."""
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@lru_cache(maxsize=8)
def fast_dtype(device_type: str) -> torch.dtype:
    """Choose bfloat16 where matrix products in it are fast, else float32. What counts is what the device can do, not a
    measurement: two starts on one machine must not round differently because one of them was disturbed."""
    if device_type == "cuda":
        is_fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        is_fast = device_type == "cpu" and has_native_bfloat16()
    return torch.bfloat16 if is_fast else torch.float32


def find_device(name: str) -> str:
    """Return the device that an option names; `auto` is a GPU where there is one. Raises UsageError where there is no
    such device."""
    has_gpu = torch.cuda.is_available()
    if name.startswith(("cuda", "gpu")) and not has_gpu:
        raise UsageError(
            f"{name}: torch {torch.__version__} finds no CUDA GPU on this machine; leave the device out, or install a "
            "torch with CUDA and a driver"
        )
    return ("cuda" if has_gpu else "cpu") if name == "auto" else name


def has_native_bfloat16() -> bool:
    """Tell whether the processor has instructions for bfloat16 products and torch may use them."""
    found = torch.cpu.get_capabilities()
    is_held_back = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return not is_held_back and any(found.get(name, False) for name in NATIVE_BFLOAT16)


def float32_products(device_type: str) -> str:
    """Choose torch's precision of float32 matrix products: `medium` is TF32 on a GPU and bfloat16 on a processor."""
    return "medium" if device_type == "cuda" or fast_dtype(device_type) is torch.bfloat16 else "highest"


def autocast_dtype(device_type: str, precision: str) -> torch.dtype | None:
    """Choose the dtype for autocast; None: no autocast. bfloat16 is asked for to be fast, so where it is not, float32
    takes its place."""
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


@contextmanager
def attention(kernel: Attention, device_type: str) -> Iterator[None]:
    """Let one kernel do all attentions of this process, those that are computed again in backward passes included.
    Where a GPU cannot, torch raises RuntimeError: no other takes its place. Raises UsageError for a processor."""
    if device_type == "cpu" and kernel in ("cudnn", "efficient"):
        raise UsageError(
            f"run.attention {kernel}: that kernel needs a GPU; a processor has flash and math, or set auto"
        )
    if kernel == "auto":
        yield
        return
    with sdpa_kernel(KERNELS[kernel]):
        yield


def decisions(device_type: str, precision: str) -> dict[str, Any]:
    """Report the chosen precisions, for the record of a run."""
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
        """Of the step that is at work."""

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
