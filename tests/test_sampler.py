import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.sample import Regime
from tests.small_dataset import VIEW_SIZE, small_sample
from training.batch import Batch, LatentBatch, encode_batch, to_model
from training.latents import DctCodec
from training.sampler import Geometry, Textured, prepare_image, sample
from training.tasks import CONDITION_SIGMA

CODEC = DctCodec()
NO_TEXT = torch.zeros(1, 1, 8)


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
        self.timesteps: list[list[float]] = []
        self.given: list[Tensor] = []

    def __call__(self, mv: Tensor, uv: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        assert self.latents.uv is not None
        self.timesteps.append(timestep[0].tolist())
        self.given.append(mv[0, :16, 2].clone())
        assert torch.equal(mv[:, 16:], self.latents.mv.geometry)
        assert torch.equal(uv[:, 16:], self.latents.uv.geometry)
        sigma = (timestep / 1000)[:, None, :, None, None]
        return (
            (mv[:, :16] - self.latents.mv.rgb) / sigma[:, :, :-1],
            (uv[:, :16] - self.latents.uv.rgb) / sigma[:, :, -1:],
        )


def run(batch: Batch, model: TrueFlow, **options: int) -> Textured:
    assert batch.uv is not None
    geometry = Geometry(
        mv_position=batch.mv.position,
        mv_normal=batch.mv.normal,
        uv_position=batch.uv.position,
        uv_normal=batch.uv.normal,
    )
    return sample(model, CODEC, geometry, batch.mv.rgb[:, 2], 2, NO_TEXT, **({"seed": 0, "steps": 6} | options))


def test_a_perfect_model_leads_to_the_true_images(batch: Batch, latents: LatentBatch) -> None:
    result = run(batch, TrueFlow(latents))
    assert latents.uv is not None
    assert torch.allclose(result.uv_rgb, CODEC.decode(latents.uv.rgb).clamp(0, 1), atol=1e-4)
    assert torch.allclose(result.mv_rgb, CODEC.decode(latents.mv.rgb).clamp(0, 1), atol=1e-4)


def test_the_condition_view_stays_at_its_level_with_fresh_noise_and_comes_back(
    batch: Batch, latents: LatentBatch
) -> None:
    model = TrueFlow(latents)
    result = run(batch, model)
    assert len(model.timesteps) == 6
    levels = torch.tensor(model.timesteps)
    assert torch.allclose(levels[:, 2], torch.full((6,), 70.7547))
    for frame in (0, 1, 3, 4):
        assert levels[0, frame] == 1000.0
        assert (levels[1:, frame] < levels[:-1, frame]).all()
    clean = latents.mv.rgb[0, :, 2]
    noise = [(given - (1 - CONDITION_SIGMA) * clean) / CONDITION_SIGMA for given in model.given]
    assert all(abs(n.std().item() - 1) < 0.2 for n in noise)
    assert not torch.allclose(noise[0], noise[1], atol=0.1)
    assert torch.allclose(result.mv_rgb[:, 2], CODEC.decode(latents.mv.rgb)[:, 2].clamp(0, 1), atol=1e-5)


def test_seeds_reproduce(batch: Batch, latents: LatentBatch) -> None:
    one, same, other = (run_blind(batch, seed) for seed in (4, 4, 5))
    assert torch.equal(one.uv_rgb, same.uv_rgb)
    assert torch.equal(one.mv_rgb, same.mv_rgb)
    assert not torch.equal(one.uv_rgb, other.uv_rgb)


def run_blind(batch: Batch, seed: int) -> Textured:
    """With a model that removes half of what it sees."""

    class Half(TrueFlow):
        def __call__(self, mv: Tensor, uv: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            return mv[:, :16] / 2, uv[:, :16] / 2

    return run(batch, Half(encode_batch(batch, CODEC)), seed=seed)


def test_guidance_moves_away_from_the_answer_without_text(batch: Batch, latents: LatentBatch) -> None:
    class Worded(TrueFlow):
        def __call__(self, mv: Tensor, uv: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(mv[:, :16], text.mean().item()), torch.full_like(uv[:, :16], text.mean().item())

    assert batch.uv is not None
    arguments = (
        CODEC,
        Geometry(
            mv_position=batch.mv.position,
            mv_normal=batch.mv.normal,
            uv_position=batch.uv.position,
            uv_normal=batch.uv.normal,
        ),
        batch.mv.rgb[:, 2],
        2,
    )
    word, nothing = torch.full((1, 1, 8), 0.01), torch.full((1, 1, 8), 0.002)
    guided = sample(Worded(latents), *arguments, word, seed=0, steps=2, guidance=3.0, no_text=nothing)
    strong = sample(Worded(latents), *arguments, torch.full((1, 1, 8), 0.026), seed=0, steps=2)
    assert torch.allclose(guided.uv_rgb, strong.uv_rgb, atol=1e-5)  # 0.002 + 3 (0.01 - 0.002)


def test_condition_images_are_laid_over_black_and_resized() -> None:
    image = np.zeros((64, 128, 4), dtype=np.uint8)
    image[:, :64] = (200, 100, 50, 255)
    image[:, 64:] = (255, 255, 255, 0)
    prepared = prepare_image(image, VIEW_SIZE)
    assert prepared.shape == (VIEW_SIZE, VIEW_SIZE, 3)
    assert torch.allclose(prepared[:, :16], torch.tensor([200.0, 100.0, 50.0]) / 255)
    assert (prepared[:, 16:] == 0).all()
    assert torch.equal(prepare_image(image[..., :3], VIEW_SIZE)[:, 16:], torch.ones(VIEW_SIZE, 16, 3))
