"""Muon's step, matrices of one shape together against one by one: `python -m benchmarks.muon [--device cuda]`.

`training.model.optimizers.BatchedMuon` and `torch.optim.Muon` on the block matrices of the presets that use it, taking
turns; medians. The last column is how far their weights lie from each other after as many steps, as a share of the way
gone."""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.model import build
from seqtex.cli.terminal.console import print_table
from training.config import PRESETS
from training.model.optimizers import BatchedMuon, is_block_matrix


def step_of(optimizer: torch.optim.Optimizer, device: str) -> Callable[[], float]:
    def step() -> float:
        begin = time.perf_counter()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step


def contest(found: list[Tensor], device: str, rounds: int) -> tuple[float, float, float]:
    """Seconds of a step together and one by one, and their difference."""
    gradients = [torch.randn_like(matrix) for matrix in found]
    rivals = [[nn.Parameter(matrix.clone()) for matrix in found] for _ in range(2)]
    for matrices in rivals:
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
    steps = [step_of(BatchedMuon(rivals[0], lr=0.02), device), step_of(torch.optim.Muon(rivals[1], lr=0.02), device)]
    for step in steps:
        step()
    times = [[step() for step in steps] for _ in range(rounds)]
    together, single = (median(column) for column in zip(*times, strict=True))
    way = torch.cat([(after - before).detach().flatten() for after, before in zip(rivals[1], found, strict=True)])
    apart = torch.cat([(a - b).detach().flatten() for a, b in zip(*rivals, strict=True)])
    return together, single, (apart.norm() / way.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    rows = []
    for name in ("tiny", "small"):
        model = build(PRESETS[name].model, args.device)
        found = [p.detach() for key, p in model.named_parameters() if is_block_matrix(key, p)]
        together, single, apart = contest(found, args.device, args.rounds)
        rows.append((name, len(found), f"{1e3 * single:.1f}", f"{1e3 * together:.1f}", f"{single / together:.2f}",
                     f"{apart:.1e}"))  # fmt: skip
    columns = ("preset", "matrices", "one by one, ms", "together, ms", "ratio", "apart")
    print_table(columns, rows, title=f"Muon, {args.device}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
