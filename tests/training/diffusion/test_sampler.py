from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.sample import Regime
from tests.support.small_dataset import VIEW_SIZE, small_sample
from training.data.batch import Batch, LatentBatch, encode_batch, join, to_model
from training.diffusion.encoders import DctCodec
from training.diffusion.sampler import (
    FlowModel,
    Geometry,
    Given,
    SamplerConfig,
    Text,
    Textured,
    prepare_image,
    resident,
    sample,
)
from training.diffusion.tasks import CONDITION_SIGMA

CODEC = DctCodec()
NO_TEXT = Text(prompt=torch.zeros(1, 1, 8), empty=torch.zeros(1, 1, 8))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return to_model(small_sample("a", Regime.TEXTURED, 1))


@pytest.fixture(scope="module")
def latents(batch: Batch) -> LatentBatch:
    return encode_batch(batch, CODEC)


class TrueFlow:
    """What a perfect model says: the velocity that leads from what it is given to the one right answer."""

    def __init__(self, latents: LatentBatch) -> None:
        self.latents = latents
        self.timesteps: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.uv_seen: list[Tensor | None] = []

    def __call__(self, mv: Tensor, uv: Tensor | None, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.latents.uv is not None
        self.timesteps.append(timestep[0].clone())
        self.seen.append(mv[0, :16].clone())
        self.uv_seen.append(uv)
        assert torch.equal(mv[:, 16:], self.latents.mv.geometry.expand_as(mv[:, 16:]))
        sigma = (timestep / 1000)[:, None, :, None, None]
        mv_flow = (mv[:, :16] - self.latents.mv.rgb) / sigma[:, :, :-1]
        if uv is None:
            return mv_flow, None
        assert torch.equal(uv[:, 16:], self.latents.uv.geometry.expand_as(uv[:, 16:]))
        return mv_flow, (uv[:, :16] - self.latents.uv.rgb) / sigma[:, :, -1:]


def geometry_of(batch: Batch, *, with_uv: bool = True) -> Geometry:
    assert batch.uv is not None
    return Geometry(
        mv_position=batch.mv.position,
        mv_normal=batch.mv.normal,
        uv_position=batch.uv.position if with_uv else None,
        uv_normal=batch.uv.normal if with_uv else None,
    )


def given_of(batch: Batch, views: Sequence[int]) -> Given:
    is_given = torch.zeros(batch.mv.rgb.shape[1], dtype=torch.bool)
    is_given[list(views)] = True
    return Given(rgb=batch.mv.rgb, views=is_given)


def run(
    batch: Batch,
    model: FlowModel,
    views: Sequence[int] = (2,),
    seed: int = 0,
    with_uv: bool = True,
    **options: Any,
) -> Textured:
    cfg = SamplerConfig(**({"steps": 6} | options))
    geometry = geometry_of(batch, with_uv=with_uv)
    return sample(model, CODEC, geometry, given_of(batch, views), NO_TEXT, cfg, seeds=[seed])


@pytest.mark.parametrize("views", [(), (2,), (0, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize(("solver", "steps"), [("euler", 30), ("adams", 30), ("adams", 5), ("euler", 1)])
def test_a_perfect_model_leads_to_the_true_images(
    batch: Batch, latents: LatentBatch, views: tuple[int, ...], solver: str, steps: int
) -> None:
    result = run(batch, TrueFlow(latents), views, solver=solver, steps=steps)
    assert latents.uv is not None and result.uv_rgb is not None
    assert torch.allclose(result.uv_rgb, CODEC.decode(latents.uv.rgb).clamp(0, 1), atol=1e-4)
    assert torch.allclose(result.mv_rgb, CODEC.decode(latents.mv.rgb).clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("views", [(), (2,), (0, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("solver", ["euler", "adams"])
def test_given_views_stay_at_their_level_with_fresh_noise_and_come_back(
    batch: Batch, latents: LatentBatch, views: tuple[int, ...], solver: str
) -> None:
    model = TrueFlow(latents)
    result = run(batch, model, views, solver=solver)
    levels = torch.stack(model.timesteps)
    assert levels.shape == (6, 5)
    for frame in range(5):
        if frame in views:
            assert torch.allclose(levels[:, frame], torch.full((6,), 70.7547))
        else:
            assert levels[0, frame] == 1000.0
            assert (levels[1:, frame] < levels[:-1, frame]).all()
    for view in views:
        clean = latents.mv.rgb[0, :, view]
        noise = [(seen[:, view] - (1 - CONDITION_SIGMA) * clean) / CONDITION_SIGMA for seen in model.seen]
        assert all(abs(n.std().item() - 1) < 0.2 for n in noise)
        assert not torch.allclose(noise[0], noise[1], atol=0.1)
        assert torch.equal(result.mv_rgb[:, view], CODEC.decode(latents.mv.rgb)[:, view].clamp(0, 1))


@pytest.mark.parametrize("views", [(), (1,)])
def test_views_alone_are_sampled_without_the_uv_branch(
    batch: Batch, latents: LatentBatch, views: tuple[int, ...]
) -> None:
    """And are the views that come with a UV map: they never read it."""
    model = TrueFlow(latents)
    result = run(batch, model, views, with_uv=False)
    assert result.uv_rgb is None
    assert model.uv_seen == [None] * 6
    assert all(timestep[4] == 1000.0 for timestep in model.timesteps)
    assert torch.allclose(result.mv_rgb, CODEC.decode(latents.mv.rgb).clamp(0, 1), atol=1e-4)


class Half(TrueFlow):
    """A model that removes half of what it sees: what comes out depends on the noise."""

    def __call__(self, mv: Tensor, uv: Tensor | None, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        return mv[:, :16] / 2, None if uv is None else uv[:, :16] / 2


@pytest.mark.parametrize("views", [(), (1,)])
@pytest.mark.parametrize("solver", ["euler", "adams"])
def test_seeds_reproduce_alone_and_in_a_batch(
    batch: Batch, latents: LatentBatch, views: tuple[int, ...], solver: str
) -> None:
    one, same, other = (run(batch, Half(latents), views, seed=seed, solver=solver).uv_rgb for seed in (4, 4, 5))
    assert one is not None and same is not None and other is not None
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    pair = join([batch, batch])
    cfg = SamplerConfig(steps=6, solver=solver)  # type: ignore[arg-type]
    text = Text(prompt=torch.zeros(2, 1, 8), empty=torch.zeros(2, 1, 8))
    both = sample(Half(latents), CODEC, geometry_of(pair), given_of(pair, views), text, cfg, seeds=[5, 4])
    assert both.uv_rgb is not None
    assert torch.allclose(both.uv_rgb, torch.cat([other, one]), atol=1e-6)


def test_guidance_moves_away_from_the_answer_without_text(batch: Batch, latents: LatentBatch) -> None:
    class Worded(TrueFlow):
        def __call__(
            self, mv: Tensor, uv: Tensor | None, timestep: Tensor, text: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            assert uv is not None
            return torch.full_like(mv[:, :16], text.mean().item()), torch.full_like(uv[:, :16], text.mean().item())

    def textured(word: float, guidance: float) -> Tensor:
        text = Text(prompt=torch.full((1, 1, 8), word), empty=torch.full((1, 1, 8), 0.002))
        cfg = SamplerConfig(steps=2, guidance=guidance)
        arguments = (geometry_of(batch), given_of(batch, [2]), text, cfg)
        result = sample(Worded(latents), CODEC, *arguments, seeds=[0]).uv_rgb
        assert result is not None
        return result

    # 0.002 + 3 (0.01 - 0.002) = 0.026
    assert torch.allclose(textured(0.01, guidance=3.0), textured(0.026, guidance=1.0), atol=1e-5)
    assert not torch.allclose(textured(0.01, guidance=1.0), textured(0.026, guidance=1.0), atol=1e-3)


def test_parts_are_held_one_at_a_time(batch: Batch, latents: LatentBatch) -> None:
    model, held = TrueFlow(latents), []

    @contextmanager
    def hold(part):
        held.append(part)
        yield
        held.append(None)

    cfg, given = SamplerConfig(steps=2), given_of(batch, [0])
    sample(model, CODEC, geometry_of(batch), given, NO_TEXT, cfg, seeds=[0], hold=hold)
    assert held == [CODEC, None, model, None, CODEC, None]


class Recorder:
    """A part that notes where it is sent."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def to(self, device: str) -> None:
        self.places.append(device)


def test_a_resident_is_on_the_device_while_it_works_and_leaves_after_an_error() -> None:
    part = Recorder()
    with pytest.raises(ZeroDivisionError), resident(part, "cuda"):
        assert part.places == ["cuda"]
        raise ZeroDivisionError
    assert part.places == ["cuda", "cpu"]


def test_condition_images_are_laid_over_black_and_resized() -> None:
    image = np.zeros((64, 128, 4), dtype=np.uint8)
    image[:, :64] = (200, 100, 50, 255)
    image[:, 64:] = (255, 255, 255, 0)
    prepared = prepare_image(image, VIEW_SIZE)
    assert prepared.shape == (VIEW_SIZE, VIEW_SIZE, 3)
    assert torch.allclose(prepared[:, :16], torch.tensor([200.0, 100.0, 50.0]) / 255)
    assert (prepared[:, 16:] == 0).all()
    assert torch.equal(prepare_image(image[..., :3], VIEW_SIZE)[:, 16:], torch.ones(VIEW_SIZE, 16, 3))
