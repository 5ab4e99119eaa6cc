"""Weights that training leaves as they were. No trainer state holds them: it knows them by their fingerprint, so that a
run goes on from the weights that it started from and from no others."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import UserError

KEY = "frozen_sha256"
"""Entry of a trainer state."""


def frozen_fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and values of the parameters that do not train; on whole weights, before sharding."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    with ThreadPoolExecutor() as pool:
        sums = pool.map(tensor_sha256, frozen.values())
        lines = [f"{name} {tuple(p.shape)} {sum_}" for (name, p), sum_ in zip(frozen.items(), sums, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def check_frozen(state: Mapping[str, Any], fingerprint: str) -> None:
    """Raises UserError where a trainer state was made from other frozen weights than those that are loaded."""
    if state.get(KEY) != fingerprint:
        raise UserError(
            "the trainer state was made from other frozen weights than those that are loaded: give model.start_path "
            "(and run.seed, where LoRA starts from it) as they were, or another run.directory"
        )
