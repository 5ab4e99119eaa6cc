"""A training step of every preset, with products in bfloat16 whatever the processor, and as `training.arithmetic`
chooses them: `python -m benchmarks.steps [--rounds 5]`.

Both take turns in one run, on equal random latents. `small` and `full` have one sample of half the usual resolution a
step, `full` one of its 30 blocks, as much as a laptop holds; a step is forward, backward and optimiser. For a processor
without AVX-512 run it once more with ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import torch

from schemas.sample import Regime
from seqtex.cli.terminal.console import print_table
from training.arithmetic import arithmetic, autocast_dtype, decisions, fast_dtype
from training.config import PRESETS, TrainConfig
from training.data.batch import LatentBatch, TextFeatures
from training.diffusion.latents import BranchLatents
from training.model.optimizers import make_optimizer, trained_parameters
from training.module import TextureModule

SIZES = {"tiny": (8, 64, 128), "small": (1, 256, 512), "full": (1, 256, 512)}
"""Samples, pixels of a view, texels of the UV map."""
VIEWS, CELL, CHANNELS = 4, 8, 16


def random_latents(samples: int, frames: int, side: int) -> BranchLatents:
    def part(channels: int) -> torch.Tensor:
        return torch.randn(samples, channels, frames, side // CELL, side // CELL)

    hint = {"hint": part(CHANNELS + 1)}
    return BranchLatents(rgb=part(CHANNELS), geometry=part(2 * CHANNELS), points=part(4), conditions=hint)


def batch_of(name: str, text_dim: int) -> LatentBatch:
    samples, pixels, texels = SIZES[name]
    tokens = torch.randn(1 if name != "full" else 512, text_dim)
    return LatentBatch(
        mv=random_latents(samples, VIEWS, pixels),
        uv=random_latents(samples, 1, texels),
        regime=Regime.TEXTURED,
        uids=tuple(map(str, range(samples))),
        captions=("",) * samples,
        samples=tuple(range(samples)),
        text=TextFeatures(captions=(tokens,) * samples, empty=tokens, length=len(tokens)),
    )


@contextmanager
def always_bfloat16() -> Iterator[None]:
    """Products as they were before they were chosen by the machine."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with patch("training.model.optimizers.fast_dtype", lambda device_type: torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def stepper(cfg: TrainConfig, batch: LatentBatch, autocast: torch.dtype | None) -> Callable[[], float]:
    """A model of its own, and a function that trains it a step and tells the seconds."""
    module = TextureModule.of(cfg)
    module.autocast = autocast
    optimizer = make_optimizer(cfg.optimizer, trained_parameters(module))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def measure(name: str, rounds: int) -> tuple[str, float, float, float]:
    """Milliseconds of a step both ways, medians, and their ratio."""
    cfg = PRESETS[name]
    model = replace(cfg.model, start="scratch", compile_blocks=False, activation_checkpointing="none")
    cfg = replace(cfg, model=replace(model, num_layers=1) if name == "full" else model)
    cfg = replace(cfg, tasks=replace(cfg.tasks, textured={"img2tex": 1.0}))
    batch = batch_of(name, cfg.model.text_dim)
    asked = torch.bfloat16 if cfg.run.precision == "bfloat16" else None
    old, new = stepper(cfg, batch, asked), stepper(cfg, batch, autocast_dtype("cpu", cfg.run.precision))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        with always_bfloat16():
            times[0].append(old())
        with arithmetic(0, "cpu"):
            times[1].append(new())
    before, now = (1000 * median(each[1:]) for each in times)  # the first one warms up
    return name, before, now, before / now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=list(SIZES))
    args = parser.parse_args()
    fast_dtype("cpu")
    rows = [measure(name, args.rounds) for name in args.presets]
    chosen = decisions("cpu", "bfloat16")
    title = f"a step, ms, {torch.get_num_threads()} threads, {chosen['cpu_capability']}, Muon in {chosen['muon']}"
    print_table(("preset", "bfloat16 always", "as chosen", "times faster"), rows, title=title)


if __name__ == "__main__":
    main()
