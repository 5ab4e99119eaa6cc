"""AdamW, or Muon for the matrices of the transformer blocks and AdamW for the rest, by part of the model."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from schemas.errors import UsageError, UserError, require_between
from training.arithmetic import fast_dtype

MUON_MOMENTUM = 0.95
"""Its authors'."""
TOGETHER = 8
"""Matrices that Muon takes at once; more leave the caches of a processor (`python -m benchmarks.muon`)."""
PARTS = ("LoRA", "UV branch", "geometry", "rest")
"""Parts of the model that may have learning rates of their own."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon and AdamW, with warm-up and decay."""

    learning_rate: float = 2e-4
    """Peak (TEXGen)."""
    lora_factor: float = 1.0
    """Learning rate of LoRA as a multiple of the others (ours)."""
    uv_factor: float = 1.0
    """The same of the UV branch."""
    geometry_factor: float = 1.0
    """The same of geometry embeddings and casters, and of view hint and condition images."""
    muon_learning_rate: float | None = None
    """Peak for the matrices of the blocks, which Muon then optimises; None: AdamW everywhere (TEXGen)."""
    muon_iterations: int = 5
    """Steps of its Newton-Schulz iteration (its authors'); with 3 a small model learns as well, in shorter steps."""
    eight_bit: bool = False
    """AdamW with its two moments in 8 bits: 6 bytes less per trained weight; needs the `eightbit` extra (torchao)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """TEXGen."""
    weight_decay: float = 0.05
    """Decay of matrices (TEXGen); norms, biases, modulation tables and LoRA have none (ours)."""
    gradient_clip: float = 1.0
    """Largest gradient norm (TEXGen). `seqtex train` alone reads it; a trainer of yours takes `gradient_clip_val`."""
    skip_budget: int = 10
    """Gradients that are no numbers, of any 1000 steps, that are skipped; one more, and the run goes back to its
    newest trainer state and on behind the batch that broke it (ours). `seqtex train` alone."""
    warmup_steps: int = 1000
    """Linear from 0 (ours)."""
    final_share: float = 1.0
    """Learning rate at the end of the run as a share of the peak, reached along a cosine; 1: constant (ours)."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights that are sampled and saved (TEXGen). `seqtex train` alone; a trainer of yours takes
    `AveragedWeights`."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "lora_factor", "uv_factor", "geometry_factor", "weight_decay"):
            require_between(f"optimizer.{name}", getattr(self, name), 0, 1e9)
        if self.muon_learning_rate is not None:
            require_between("optimizer.muon_learning_rate", self.muon_learning_rate, 0, 1e9)
        for beta in self.betas:
            require_between("optimizer.betas", beta, 0, 0.999999)
        require_between("optimizer.warmup_steps", self.warmup_steps, 0, 10**9)
        require_between("optimizer.muon_iterations", self.muon_iterations, 1, 20)
        require_between("optimizer.skip_budget", self.skip_budget, 0, 10**9)
        require_between("optimizer.final_share", self.final_share, 0, 1)
        require_between("optimizer.ema_decay", self.ema_decay, 0, 1)
        require_between("optimizer.gradient_clip", self.gradient_clip, 0, 1e9)

    def factor(self, part: str) -> float:
        factors = {"LoRA": self.lora_factor, "UV branch": self.uv_factor, "geometry": self.geometry_factor}
        return factors.get(part, 1.0)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, by its name."""
    if ".lora_" in name:
        return "LoRA"
    if "uv" in name:
        return "UV branch"
    if any(word in name for word in ("geometry_caster", "pos_patch", "norm_patch", "hint_patch", "condition_patch")):
        return "geometry"
    return "rest"


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def make_optimizer(cfg: OptimizerConfig, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of these parameters. Raises UsageError where what was asked for cannot be had."""
    if cfg.muon_learning_rate is None:
        return make_adamw(cfg, groups(cfg, named, cfg.learning_rate))
    if cfg.eight_bit:
        raise UsageError("optimizer.eight_bit is for AdamW alone; leave optimizer.muon_learning_rate out")
    matrices = {name: p for name, p in named.items() if is_block_matrix(name, p)}
    rest = {name: p for name, p in named.items() if name not in matrices}
    muon = BatchedMuon(
        groups(cfg, matrices, cfg.muon_learning_rate),
        weight_decay=cfg.weight_decay,
        momentum=MUON_MOMENTUM,
        ns_steps=cfg.muon_iterations,
    )
    muon.register_load_state_dict_pre_hook(keep_options)
    return MuonAdamW(muon, make_adamw(cfg, groups(cfg, rest, cfg.learning_rate)))


def groups(cfg: OptimizerConfig, named: Mapping[str, nn.Parameter], learning_rate: float) -> list[dict[str, Any]]:
    """Parameter groups by part of the model, the rest last, those that decay apart; empty ones are skipped."""
    found = {
        (part, decays): [p for name, p in named.items() if part_of(name) == part and does_decay(name, p) == decays]
        for part in PARTS
        for decays in (False, True)
    }
    return [
        {"params": parameters, "lr": learning_rate * cfg.factor(part), "part": part}
        | ({} if decays else {"weight_decay": 0.0})
        for (part, decays), parameters in found.items()
        if parameters
    ]


def does_decay(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay pulls a parameter to zero: not norms, biases, modulation tables and LoRA."""
    return parameter.ndim > 1 and ".lora_" not in name and "scale_shift_table" not in name


def make_adamw(cfg: OptimizerConfig, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": cfg.learning_rate, "betas": cfg.betas, "weight_decay": cfg.weight_decay}
    adamw: torch.optim.Optimizer
    if cfg.eight_bit:
        adamw = import_torchao().AdamW8bit(parameters, **options)
    else:
        adamw = torch.optim.AdamW(parameters, **options, fused=True)
    adamw.register_load_state_dict_pre_hook(keep_options)
    return adamw


def keep_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A trainer state brings moments; rates, betas and decay stay those of the run that goes on from it. Raises
    UserError where the state is of another optimiser or has other groups of parameters."""
    check_optimizer({"param_groups": optimizer.param_groups}, state)
    if len(state["param_groups"]) != len(optimizer.param_groups):
        raise UserError(
            f"the trainer state has {len(state['param_groups'])} groups of parameters, this run has "
            f"{len(optimizer.param_groups)}: it is of an earlier version or of other trained parts; give another "
            "run.directory"
        )
    groups = [
        saved | {name: value for name, value in own.items() if name != "params"}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return state | {"param_groups": groups}


def kind_of(state: Mapping[str, Any]) -> str:
    """The optimiser that a state is of."""
    if "parts" in state:
        return "Muon and AdamW"
    group = state["param_groups"][0]
    if "betas" not in group:
        return "another optimiser"
    return "8-bit AdamW" if isinstance(group["lr"], Tensor) else "AdamW"


def check_optimizer(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raises UserError where a state is of another optimiser than the own one."""
    found, wanted = kind_of(state), kind_of(own)
    if found != wanted:
        raise UserError(
            f"the trainer state is of {found}, this run is to go on with {wanted}: give optimizer.muon_learning_rate "
            "and optimizer.eight_bit as in config.json of run.directory, or another run.directory"
        )


def import_torchao() -> Any:
    """Its optimisers. To be called before a trainer state with 8-bit moments is read: this makes their type known."""
    try:
        import torchao.optim  # an extra
    except ImportError as error:
        raise UsageError(
            f"optimizer.eight_bit needs torchao ({error}); in this program's folder, pip install -c constraints.txt "
            "'.[eightbit]', or leave it out"
        ) from error
    return torchao.optim


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Select the weights that Muon trains: those of linear layers inside the transformer blocks."""
    return parameter.ndim == 2 and "blocks" in name.split(".")


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss that a step is given to compute, with its gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def gradient_norm(module: nn.Module) -> Float[Tensor, ""]:
    """The norm of all gradients together, over all shards, on their device; 0 where there is none."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def skip_next_step(optimizer: torch.optim.Optimizer, skip: Bool[Tensor, ""]) -> bool:
    """Let the next step change neither weights nor moments where `skip`, on the device, is true, without waiting for
    its value. Returns False where the optimiser cannot."""
    parts = optimizer.parts if isinstance(optimizer, MuonAdamW) else (optimizer,)
    if not all(getattr(part, "_step_supports_amp_scaling", False) for part in parts):
        return False
    for part in parts:
        part.found_inf = skip.float()  # type: ignore[attr-defined]  # as a scaler of losses does
    return True


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, state and all, which takes matrices of one shape together: a small model has many small ones, and
    one by one they leave most of a processor idle. Its update is scaled by sqrt(max(1, rows / columns))."""

    _step_supports_amp_scaling = True
    found_inf: Float[Tensor, ""] | None = None
    """1: the next step changes nothing; 0 or None: it is made."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for matrices in by_shape.values():
                for first in range(0, len(matrices), TOGETHER):
                    self._step_equal_shapes(matrices[first : first + TOGETHER], group)
        return loss

    def _step_equal_shapes(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        updates = torch.stack([self._direction(matrix, momentum) for matrix in matrices])
        dtype = fast_dtype(updates.device.type)
        updates = orthogonalized(updates.to(dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = matrices[0].shape
        adjusted_rate = rate * max(1.0, rows / columns) ** 0.5
        decay: float | Tensor = rate * group["weight_decay"]
        if self.found_inf is not None:
            updates, decay = updates * (1 - self.found_inf), decay * (1 - self.found_inf)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - decay)
            matrix.add_(update, alpha=-adjusted_rate)

    def _direction(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        """The gradient with Nesterov momentum; the average of the gradients is brought up to date."""
        gradient = matrix.grad
        assert gradient is not None
        share: float | Tensor = 1 - momentum
        if self.found_inf is not None:
            gradient, share = gradient.masked_fill(self.found_inf > 0, 0), share * (1 - self.found_inf)
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"].lerp_(gradient, share)
        return gradient.lerp(average, momentum)


def orthogonalized(
    matrices: Float[Tensor, "n rows columns"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "n rows columns"]:
    """Nearly the nearest matrices with orthonormal rows or columns, by Muon's quintic Newton-Schulz iteration (Jordan
    et al., https://kellerjordan.github.io/posts/muon), which bfloat16 is enough for. Singular values end between 0.7
    and 1.2."""
    a, b, c = coefficients
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Lightning drives one optimiser per loss; this one is two, each with its own learning rates and parameters."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The groups are the parts' own, so that a learning rate set here is theirs."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_optimizer(self.state_dict(), state_dict)
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
