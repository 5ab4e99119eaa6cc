"""Rectified flow with a shifted schedule: z_t = (1 - sigma) z_0 + sigma eps, target velocity eps - z_0.

Latents are [batch, channels, frames, h, w]; noise levels are per frame, [batch, frames]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from schemas.errors import require_between

SHIFT = 5.0
"""Released code."""
FIRST_VIEW = 2
"""Index of the views' order among a sample's first draws."""
NOISE_STREAM = 19
"""Keeps noise that a GPU draws apart from other draws by (seed, sample number)."""
CPU = torch.device("cpu")


@runtime_checkable
class FlowModel(Protocol):
    """`SeqTexTransformer3DModel`, or anything that predicts the same flow."""

    def __call__(
        self,
        mv: Float[Tensor, "b c views h w"],
        uv: Float[Tensor, "b c maps uv_h uv_w"] | None,
        timestep: Float[Tensor, "b frames"],
        text: Float[Tensor, "b l d"],
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Random numbers of a training step, one row per sample."""

    level: Float[Tensor, " batch"]
    """Noise level before the shift, uniform in [0, 1)."""
    view_order: Float[Tensor, "batch views"]
    """Decides which views are given, uniform."""
    drop_text: Float[Tensor, " batch"]
    """Uniform; compared with the dropout rate."""
    drop_image: Float[Tensor, " batch"]
    """The same for the given views."""
    noise: tuple[Float[Tensor, "batch _ _ _ _"], ...]
    """Standard normal, one tensor per branch, on the device; all other numbers are on the CPU, which decides by them
    without waiting for a GPU."""


def draw(seed: int, samples: tuple[int, ...], shapes: Sequence[tuple[int, ...]], device: torch.device = CPU) -> Draws:
    """Draw each sample's numbers from a generator of its own, seeded by its number in the stream: they do not depend on
    rank, process or earlier draws. A GPU draws the noise itself, another one than a CPU from the same seed.

    shapes: those of the latents of each branch, views first, without the batch: (channels, frames, h, w)."""
    numbers, noise, drop_image = [], [], []
    for sample in samples:
        generator = seeded(seed, sample)
        numbers.append(draw_numbers(generator, shapes[0][1]))
        source = generator if device.type == "cpu" else seeded(seed, sample, NOISE_STREAM, device=device)
        noise.append([torch.randn(shape, generator=source, dtype=torch.float32, device=device) for shape in shapes])
        drop_image.append(torch.rand((), generator=generator, dtype=torch.float32))
    table = torch.stack(numbers)
    return Draws(
        level=table[:, 0],
        drop_text=table[:, 1],
        drop_image=torch.stack(drop_image),
        view_order=table[:, FIRST_VIEW:],
        noise=tuple(torch.stack(rows) for rows in zip(*noise, strict=True)),
    )


def draw_numbers(generator: torch.Generator, views: int) -> Float[Tensor, " numbers"]:
    """Draw a sample's first numbers: its noise level, whether its caption is dropped, the order of its views."""
    return torch.rand(FIRST_VIEW + views, generator=generator, dtype=torch.float32)


def draw_view_order(seed: int, sample: int, views: int) -> Float[Tensor, " views"]:
    """Draw a sample's `view_order` as `draw` does, without the rest."""
    return draw_numbers(seeded(seed, sample), views)[FIRST_VIEW:]


def seeded(*numbers: int, device: torch.device = CPU) -> torch.Generator:
    """Make a generator of a device that these numbers seed."""
    return torch.Generator(device).manual_seed(
        int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    )


def logit_normal(uniform: Float[Tensor, " batch"], mean: float, std: float) -> Float[Tensor, " batch"]:
    """Turn uniform numbers into noise levels in [0, 1) whose logit is normally distributed, by the inverse of that
    distribution's function, so that each sample still takes one number from its generator."""
    return torch.sigmoid(mean + std * torch.special.ndtri(uniform.double())).to(uniform)


def shift_sigma(s: Float[Tensor, "*shape"], shift: float = SHIFT) -> Float[Tensor, "*shape"]:
    """Move a uniform level s in [0, 1] towards noise: 5 s / (1 + 4 s) at shift 5."""
    return shift * s / (1 + (shift - 1) * s)


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Options of the noise levels and the loss."""

    shift: float = SHIFT
    """Shift of the noise levels, in training and sampling (released code)."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of a sample's noise level before the shift: evenly, or mostly in the middle (Esser 2024)."""
    logit_mean: float = 0.0
    """Mean of logit_normal: below 0 little noise, above 0 much."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal: the smaller, the closer to the middle."""
    uv_weight: float = 1.0
    """Weight of the UV map's mean squared error; that of the views has weight 1 (ours)."""
    text_dropout: float = 0.1
    """Share of captions replaced by "", for classifier-free guidance (ours)."""
    image_dropout: float = 0.0
    """Share of samples whose given views are pure noise instead, without view hint, for image guidance (ours)."""

    def __post_init__(self) -> None:
        require_between("flow.shift", self.shift, 1e-3, 1e3)
        require_between("flow.logit_std", self.logit_std, 1e-3, 1e3)
        require_between("flow.uv_weight", self.uv_weight, 0, 1e9)
        require_between("flow.text_dropout", self.text_dropout, 0, 1)
        require_between("flow.image_dropout", self.image_dropout, 0, 1)

    def sigma(self, uniform: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Turn one number in [0, 1) per sample into noise levels."""
        if self.timestep_sampling == "logit_normal":
            uniform = logit_normal(uniform, self.logit_mean, self.logit_std)
        return shift_sigma(uniform, self.shift)


def interpolate(
    clean: Float[Tensor, "b c f h w"], noise: Float[Tensor, "b c f h w"], sigma: Float[Tensor, "b f"]
) -> Float[Tensor, "b c f h w"]:
    """Mix latents and noise: z_t."""
    level = sigma[:, None, :, None, None]
    return (1 - level) * clean + level * noise


def velocity(clean: Float[Tensor, "b c f h w"], noise: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
    """Return the flow that the network learns to predict: d z_t / d sigma."""
    return noise - clean


def masked_mse(
    predicted: Float[Tensor, "b c f h w"],
    target: Float[Tensor, "b c f h w"],
    mask: Bool[Tensor, "b f"],
    count: float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared error over the elements of the frames in `mask`; 0 when there is none. count: what the
    sum over frames is divided by; None: their number."""
    per_frame = (predicted.float() - target.float()).square().mean(dim=(1, 3, 4))
    return (per_frame * mask).sum() / (mask.sum().clamp(min=1) if count is None else max(count, 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """The last step of a multistep solver."""

    velocity: Float[Tensor, "b c f h w"]
    width: float
    """sigma_next - sigma of that step."""


def solver_step(
    latent: Float[Tensor, "b c f h w"],
    velocity: Float[Tensor, "b c f h w"],
    sigma: float,
    sigma_next: float,
    before: Slope | None = None,
) -> tuple[Float[Tensor, "b c f h w"], Slope]:
    """Take one step of the Euler method, or after a step `before` of the Adams-Bashforth method of second order with
    variable width: the velocity is extrapolated to the middle of the step from this one and the last.
    (DPM-Solver++(2M), which extrapolates in log-SNR, is worse than Euler on these shifted levels, whose last step is
    long.)"""
    now = Slope(velocity=velocity, width=sigma_next - sigma)
    if before is not None:
        velocity = velocity + now.width / (2 * before.width) * (velocity - before.velocity)
    return latent + now.width * velocity, now


def inference_sigmas(steps: int, shift: float = SHIFT) -> Float[Tensor, " levels"]:
    """Return the `steps + 1` noise levels of a sampling run, 1 first and 0 last: those of diffusers'
    `FlowMatchEulerDiscreteScheduler(shift=shift)`, which shifts a range that ends at the shifted first of 1000."""
    last = shift_sigma(torch.tensor(1 / 1000, dtype=torch.float64), shift)
    s = torch.linspace(1.0, float(last), steps, dtype=torch.float64)
    return torch.cat([shift_sigma(s, shift), torch.zeros(1, dtype=torch.float64)]).float()
