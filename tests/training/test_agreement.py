"""Ranks agree through main memory, one process with itself."""

import multiprocessing
from pathlib import Path

import torch

from training.agreement import any_rank, gather_if_any, mean_over_ranks


def agreed(rank: int) -> list[object]:
    """The results of a rank: rank 1 alone decides, and has something to say."""
    mean = mean_over_ranks(float(2 * rank + 1))
    return [
        mean,
        any_rank(rank == 1),
        any_rank(False),
        gather_if_any(f"of {rank}", rank == 1),
        gather_if_any("", False),
    ]


def join(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting")
    (folder / f"{rank}.txt").write_text(repr(agreed(rank)))


def test_one_process_agrees_with_itself() -> None:
    assert agreed(1) == [3.0, True, False, ["of 1"], []]


def test_every_rank_gets_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=join, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = repr([2.0, True, False, ["of 0", "of 1"], []])
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [expected] * 2
