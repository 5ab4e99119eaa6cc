from functools import cache
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from training.diffusion import flow
from training.diffusion.flow import (
    draw,
    inference_sigmas,
    interpolate,
    masked_mse,
    shift_sigma,
    solver_step,
    velocity,
)


def latents(seed: int, frames: int = 3) -> torch.Tensor:
    return torch.randn(2, 4, frames, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_inference_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert torch.allclose(inference_sigmas(steps, shift), scheduler.sigmas, atol=1e-6, rtol=0)
    assert torch.allclose(inference_sigmas(steps, shift)[:-1] * 1000, scheduler.timesteps, atol=1e-3, rtol=0)


def test_shift_keeps_the_ends_and_moves_the_middle_to_noise() -> None:
    assert shift_sigma(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.0, 5 / 6, 1.0])


def test_levels_are_per_frame() -> None:
    clean, noise = latents(0), latents(1)
    mixed = interpolate(clean, noise, torch.tensor([[0.0, 1.0, 0.25]] * 2))
    assert torch.equal(mixed[:, :, 0], clean[:, :, 0])
    assert torch.equal(mixed[:, :, 1], noise[:, :, 1])
    assert torch.allclose(mixed[:, :, 2], 0.75 * clean[:, :, 2] + 0.25 * noise[:, :, 2])


def test_one_step_along_the_true_velocity_arrives_at_any_other_level() -> None:
    clean, noise = latents(0), latents(1)
    start = interpolate(clean, noise, torch.full((2, 3), 0.8))
    arrived, _ = solver_step(start, velocity(clean, noise), 0.8, 0.3)
    assert torch.allclose(arrived, interpolate(clean, noise, torch.full((2, 3), 0.3)), atol=1e-6)


CENTRES = torch.tensor([-1.5, 0.2, 1.0], dtype=torch.float64)
SPREAD = 0.25


def mixture_velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The true flow, E[eps - z_0 | z_t = x], of one-dimensional data around three centres."""
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    away = x[..., None] - (1 - sigma) * CENTRES
    weight = torch.softmax(-(away**2) / (2 * variance), dim=-1)
    clean = (weight * (CENTRES + (1 - sigma) * SPREAD**2 / variance * away)).sum(dim=-1)
    return (x - clean) / sigma


def solution_error(steps: int, solver: str, shift: float) -> float:
    """Mean distance to where 2000 small steps lead."""
    return (solved(steps, solver, shift) - solved(2000, "euler", shift)).abs().mean().item()


@cache
def solved(steps: int, solver: str, shift: float) -> torch.Tensor:
    x = torch.randn(1, 1, 1, 1, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = None
    for sigma, sigma_next in pairwise(inference_sigmas(steps, shift).double().tolist()):
        x, before = solver_step(x, mixture_velocity(x, sigma), sigma, sigma_next, before if solver == "adams" else None)
    return x


@pytest.mark.parametrize("steps", [8, 15, 30])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_second_order_solver_is_better_at_every_number_of_steps(steps: int, shift: float) -> None:
    assert solution_error(steps, "adams", shift) < 0.8 * solution_error(steps, "euler", shift)


def test_twice_the_steps_quarter_the_error_of_the_second_order_solver() -> None:
    assert solution_error(30, "adams", 1.0) < solution_error(15, "adams", 1.0) / 3.5
    assert solution_error(20, "adams", 5.0) < solution_error(30, "euler", 5.0)
    assert solution_error(8, "adams", 1.0) < solution_error(30, "euler", 1.0)


def test_loss_counts_generated_frames_only_and_is_their_mean() -> None:
    target = latents(0)
    predicted = target.clone().requires_grad_()
    mask = torch.tensor([[True, False, False], [True, True, False]])
    wrong = predicted + torch.tensor([2.0, 3.0, 50.0])[:, None, None]
    loss = masked_mse(wrong, target, mask)
    assert loss.item() == pytest.approx((4 + 4 + 9) / 3, rel=1e-5)
    loss.backward()
    assert predicted.grad is not None
    reached = predicted.grad.abs().amax(dim=(1, 3, 4)) > 0
    assert torch.equal(reached, mask)
    assert masked_mse(wrong, target, torch.zeros_like(mask)).item() == 0


def test_draws_belong_to_the_sample_not_to_the_batch() -> None:
    shapes = [(16, 4, 2, 2), (16, 1, 4, 4)]
    whole, part = draw(3, (10, 11, 12), shapes), draw(3, (12, 11), shapes)
    for one, other in zip(
        (whole.level, whole.view_order, whole.drop_text, *whole.noise),
        (part.level, part.view_order, part.drop_text, *part.noise),
        strict=True,
    ):
        assert torch.equal(one[[2, 1]], other)
    assert not torch.equal(whole.noise[0], draw(4, (10, 11, 12), shapes).noise[0])
    alone = draw(3, (10, 11, 12), shapes[:1])
    assert torch.equal(alone.noise[0], whole.noise[0])  # the same views with the UV branch skipped


def test_a_gpu_draws_the_noise_itself_and_the_cpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what is asked of it is done on the CPU, with the seed that it would get."""
    gpu, asked, real = torch.device("cuda"), [], torch.randn

    def seeded(*numbers: int, device: torch.device = flow.CPU) -> torch.Generator:
        asked.append((numbers, device.type))
        return own_seeded(*numbers)

    def randn(shape: tuple[int, ...], device: torch.device, **options: object) -> torch.Tensor:
        assert device.type == "cuda"
        return real(shape, **options)

    own_seeded = flow.seeded
    monkeypatch.setattr(flow, "seeded", seeded)
    monkeypatch.setattr(torch, "randn", randn)
    shapes = [(2, 4, 3, 3), (2, 1, 5, 5)]
    whole, part = flow.draw(3, (10, 11), shapes, gpu), flow.draw(3, (11,), shapes[:1], gpu)
    assert asked[:2] == [((3, 10), "cpu"), ((3, 10, flow.NOISE_STREAM), "cuda")]
    assert torch.equal(whole.noise[0][1:], part.noise[0]), "the sample's own, whatever else is in its batch"
    monkeypatch.undo()
    there = flow.draw(3, (10, 11), shapes)
    for name in ("level", "view_order", "drop_text"):
        assert torch.equal(getattr(whole, name), getattr(there, name))
    assert not torch.equal(whole.noise[0], there.noise[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_noise_of_a_gpu_belongs_to_the_sample() -> None:
    gpu, shapes = torch.device("cuda"), [(2, 4, 3, 3), (2, 1, 5, 5)]
    whole, part = flow.draw(3, (10, 11), shapes, gpu), flow.draw(3, (11, 10), shapes, gpu)
    assert whole.noise[0].is_cuda and not whole.level.is_cuda
    assert torch.equal(whole.noise[1].flip(0), part.noise[1])
