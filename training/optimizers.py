"""Muon for the matrices of the transformer blocks, AdamW for all other parameters, as one optimiser."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MuonAdamW(torch.optim.Optimizer):
    """Lightning drives one optimiser per loss; this one is two, each with its own learning rate and parameters."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The groups are the parts' own, so that a learning rate set here is theirs."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """What Muon is for: weights of linear layers inside the transformer blocks."""
    return parameter.ndim == 2 and "blocks" in name.split(".")


def muon_adamw(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> MuonAdamW:
    """Muon with momentum 0.95 (its authors') on block matrices at `muon_learning_rate`, AdamW on the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        (matrices if is_block_matrix(name, parameter) else rest).append(parameter)
    return MuonAdamW(
        torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True),
    )
