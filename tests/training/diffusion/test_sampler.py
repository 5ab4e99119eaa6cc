from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry.nearest import Surface
from schemas.sample import Regime, TextureSample
from tests.support.small_dataset import VIEW_SIZE, small_sample
from training.data.batch import LatentBatch, encode_batch, to_model
from training.diffusion.encoders import DctCodec, NullTextEncoder
from training.diffusion.latents import Extensions, to_uint8, uv_to_image
from training.diffusion.sampler import (
    RELEASED_INPUT,
    FlowModel,
    SamplerConfig,
    TexturingInput,
    TexturingResult,
    denoise,
    encode_condition,
    prepare_image,
    resident,
    sample,
)
from training.diffusion.tasks import CONDITION_SIGMA

CODEC = DctCodec()
NO_TEXT = NullTextEncoder(8)


@pytest.fixture(scope="module")
def stored() -> TextureSample:
    return small_sample("a", Regime.TEXTURED, 1)


@pytest.fixture(scope="module")
def latents(stored: TextureSample) -> LatentBatch:
    return encode_batch(to_model(stored), CODEC)


class TrueFlow:
    """The flow of a perfect model: the velocity that leads from what it is given to the one right answer."""

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


def subject(stored: TextureSample, views: Sequence[int], seed: int = 0, with_uv: bool = True) -> TexturingInput:
    assert stored.uv is not None
    return TexturingInput(
        views=Surface(position=stored.views.position, normal=stored.views.normal),
        uv=Surface(position=stored.uv.position, normal=stored.uv.normal) if with_uv else None,
        images={view: stored.views.rgb[view] for view in views},
        seed=seed,
    )


def run(
    stored: TextureSample,
    model: FlowModel,
    views: Sequence[int] = (2,),
    seed: int = 0,
    with_uv: bool = True,
    **options: Any,
) -> TexturingResult:
    cfg = SamplerConfig(**({"steps": 6} | options))
    (result,) = sample(model, CODEC, NO_TEXT, [subject(stored, views, seed, with_uv)], cfg)
    return result


def denoised(
    stored: TextureSample, model: FlowModel, views: Sequence[int], seeds: Sequence[int] = (0,), **options: Any
) -> list[Tensor]:
    """Latents of the views and the UV map."""
    text = NO_TEXT.encode([""] * len(seeds))
    condition = encode_condition(CODEC, [subject(stored, views)] * len(seeds), text, text, Extensions())
    return denoise(model, condition, SamplerConfig(**({"steps": 6} | options)), seeds=seeds)


def images(latents: LatentBatch) -> tuple[np.ndarray, np.ndarray]:
    """Views and UV map as the codec keeps them."""
    assert latents.uv is not None
    return to_uint8(CODEC.decode(latents.mv.rgb)[0]), uv_to_image(CODEC.decode(latents.uv.rgb)[0])


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other).max() <= 1)


@pytest.mark.parametrize("views", [(), (2,), (0, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize(("solver", "steps"), [("euler", 30), ("adams", 30), ("adams", 5), ("euler", 1)])
def test_a_perfect_model_leads_to_the_true_images(
    stored: TextureSample, latents: LatentBatch, views: tuple[int, ...], solver: str, steps: int
) -> None:
    mv, uv = denoised(stored, TrueFlow(latents), views, solver=solver, steps=steps)
    assert latents.uv is not None
    assert torch.allclose(CODEC.decode(uv), CODEC.decode(latents.uv.rgb), atol=1e-4)
    assert torch.allclose(CODEC.decode(mv), CODEC.decode(latents.mv.rgb), atol=1e-4)
    result = run(stored, TrueFlow(latents), views, solver=solver, steps=steps)
    assert all(map(close, (result.views, result.uv), images(latents)))


@pytest.mark.parametrize("views", [(), (2,), (0, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("solver", ["euler", "adams"])
def test_given_views_stay_at_their_level_with_fresh_noise_and_come_back(
    stored: TextureSample, latents: LatentBatch, views: tuple[int, ...], solver: str
) -> None:
    model = TrueFlow(latents)
    result = run(stored, model, views, solver=solver)
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
        assert np.array_equal(result.views[view], images(latents)[0][view])


@pytest.mark.parametrize("views", [(), (1,)])
def test_views_alone_are_sampled_without_the_uv_branch(
    stored: TextureSample, latents: LatentBatch, views: tuple[int, ...]
) -> None:
    """And are the views that come with a UV map: they never read it."""
    model = TrueFlow(latents)
    result = run(stored, model, views, with_uv=False)
    assert result.uv is None
    assert model.uv_seen == [None] * 6
    assert all(timestep[4] == 1000.0 for timestep in model.timesteps)
    assert close(result.views, images(latents)[0])


class Half(TrueFlow):
    """A model that removes half of what it sees: what comes out depends on the noise."""

    def __call__(self, mv: Tensor, uv: Tensor | None, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        return mv[:, :16] / 2, None if uv is None else uv[:, :16] / 2


@pytest.mark.parametrize("views", [(), (1,)])
@pytest.mark.parametrize("solver", ["euler", "adams"])
def test_seeds_reproduce_alone_and_in_a_batch(
    stored: TextureSample, latents: LatentBatch, views: tuple[int, ...], solver: str
) -> None:
    one, same, other = (run(stored, Half(latents), views, seed=seed, solver=solver).uv for seed in (4, 4, 5))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    cfg = SamplerConfig(steps=6, solver=solver)  # type: ignore[arg-type]
    both = sample(Half(latents), CODEC, NO_TEXT, [subject(stored, views, seed) for seed in (5, 4)], cfg)
    assert close(both[0].uv, other) and close(both[1].uv, one)
    alone = [denoised(stored, Half(latents), views, (seed,), solver=solver)[1] for seed in (5, 4)]
    assert torch.allclose(denoised(stored, Half(latents), views, (5, 4), solver=solver)[1], torch.cat(alone), atol=1e-6)


def test_meshes_of_one_batch_give_the_same_views(stored: TextureSample, latents: LatentBatch) -> None:
    with pytest.raises(ValueError, match="same views"):
        sample(Half(latents), CODEC, NO_TEXT, [subject(stored, [0]), subject(stored, [1])], SamplerConfig(steps=1))


class Words(NullTextEncoder):
    """A prompt is a number, the empty one 0.04."""

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.tensor([float(prompt or 0.04) for prompt in prompts])[:, None, None].expand(-1, 1, self.text_dim)


def test_guidance_moves_away_from_the_answer_without_text(stored: TextureSample, latents: LatentBatch) -> None:
    class Worded(TrueFlow):
        def __call__(
            self, mv: Tensor, uv: Tensor | None, timestep: Tensor, text: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            assert uv is not None
            return torch.full_like(mv[:, :16], text.mean().item()), torch.full_like(uv[:, :16], text.mean().item())

    def textured(word: float, guidance: float) -> np.ndarray:
        worded = replace(subject(stored, [2]), prompt=str(word))
        cfg = SamplerConfig(steps=2, guidance=guidance)
        (result,) = sample(Worded(latents), CODEC, Words(8), [worded], cfg)
        assert result.uv is not None
        return result.uv

    # 0.04 + 3 (0.2 - 0.04) = 0.52
    assert close(textured(0.2, guidance=3.0), textured(0.52, guidance=1.0))
    assert not close(textured(0.2, guidance=1.0), textured(0.52, guidance=1.0))


class Seer(TrueFlow):
    """Predicts the mean of the text, and 0.3 more in every branch where it sees the given views."""

    def __call__(self, mv: Tensor, uv: Tensor | None, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        assert uv is not None
        self.timesteps.append(timestep[0].clone())
        self.seen.append(mv[0].clone())
        self.uv_seen.append(uv[0].clone())
        answer = text.mean().item() + 0.3 * bool(torch.isclose(timestep, torch.tensor(1000 * CONDITION_SIGMA)).any())
        return torch.full_like(mv[:, :16], answer), torch.full_like(uv[:, :16], answer)


def seen_by(
    stored: TextureSample,
    model: FlowModel,
    views: Sequence[int],
    word: float,
    extras: Extensions = RELEASED_INPUT,
    **options: Any,
) -> list[Tensor]:
    """Latents after two steps with a prompt."""
    text = Words(8)
    condition = encode_condition(
        CODEC, [subject(stored, views)], text.encode([str(word)]), text.encode([""]), extras
    )  # fmt: skip
    return denoise(model, condition, SamplerConfig(steps=2, **options), seeds=[0])


def test_image_guidance_moves_away_from_the_answer_without_the_given_views(
    stored: TextureSample, latents: LatentBatch
) -> None:
    def uv(word: float, views: Sequence[int] = (2,), **options: Any) -> Tensor:
        return seen_by(stored, Seer(latents), views, word, **options)[1]

    # 0.2 + 3 * 0.3 = 0.8 + 0.3
    torch.testing.assert_close(uv(0.2, image_guidance=3.0), uv(0.8))
    torch.testing.assert_close(uv(0.2, image_guidance=3.0, views=(0, 1, 2, 3)), uv(0.8))
    # and away from the empty prompt, by 2 (0.2 - 0.04)
    torch.testing.assert_close(uv(0.2, image_guidance=3.0, guidance=3.0), uv(1.12))
    assert not torch.allclose(uv(0.2), uv(0.8))
    with pytest.raises(ValueError, match="image guidance needs given views"):
        uv(0.2, views=(), image_guidance=3.0)


def test_without_the_given_views_nothing_of_them_is_left(stored: TextureSample, latents: LatentBatch) -> None:
    """Neither their colours nor their hint: what the model gets then does not change with the picture."""
    extras, other = (
        Extensions(images=("hint",)),
        replace(stored, views=replace(stored.views, rgb=255 - stored.views.rgb)),
    )
    runs = [Seer(latents) for _ in range(2)]
    for model, sample_ in zip(runs, (stored, other), strict=True):
        seen_by(sample_, model, (1, 2), 0.2, extras, image_guidance=0.0)
    seeing, blind = (slice(at, None, 2) for at in (0, 1))
    unseen = [model.seen[blind] + model.uv_seen[blind] for model in runs]
    for one, two in zip(*unseen, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
        assert not one[3 * 16 :].any(), "the hint"
    for one, two in zip(runs[0].seen[seeing], runs[1].seen[seeing], strict=True):
        assert not torch.allclose(one[:16, 1:3], two[:16, 1:3], atol=0.1)
        assert one[3 * 16 :].any() and not torch.allclose(one[3 * 16 :], two[3 * 16 :], atol=0.1)
    levels = torch.stack(runs[0].timesteps[blind])
    assert (levels[:, 1:3] == 1000).all() and torch.equal(levels[:, 0], levels[:, 4])
    assert levels[1, 0] < 1000, "the others are at the level of the step"
    noise = torch.stack(runs[0].seen[blind])[:, :16, 1:3]
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1


def test_parts_are_on_the_device_one_at_a_time(stored: TextureSample, latents: LatentBatch) -> None:
    moved: list[str] = []

    class Text(NullTextEncoder):
        def to(self, device: object) -> None:
            moved.append("text")

    class Codec(DctCodec):
        def to(self, device: object) -> None:
            moved.append("codec")

    class Model(TrueFlow):
        def to(self, device: object) -> None:
            moved.append("model")

    sample(Model(latents), Codec(), Text(8), [subject(stored, [0])], SamplerConfig(steps=2), offload=True)
    assert moved == ["text", "text", "codec", "codec", "model", "model", "codec", "codec"], "there and back"


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


def test_given_pictures_are_laid_over_black_and_resized() -> None:
    image = np.zeros((128, 128, 4), dtype=np.uint8)
    image[:, :64] = (200, 100, 50, 255)
    image[:, 64:] = (255, 255, 255, 0)
    prepared = prepare_image(image, VIEW_SIZE)
    assert prepared.shape == (VIEW_SIZE, VIEW_SIZE, 3)
    assert np.allclose(prepared[:, :16], np.array([200, 100, 50]) / 255)
    assert (prepared[:, 16:] == 0).all()
    assert (prepare_image(image[..., :3], VIEW_SIZE)[:, 16:] == 1).all()


def test_a_photo_three_times_as_wide_as_high_keeps_its_proportions() -> None:
    """It stands between black bars, whole: a square in it stays one."""
    photo = np.full((32, 96, 3), 255, dtype=np.uint8)
    photo[8:24, 40:56] = (255, 0, 0)
    for image, turn in ((photo, 0), (photo.transpose(1, 0, 2), 1)):
        prepared = np.rot90(prepare_image(np.ascontiguousarray(image), 48), turn, axes=(1, 0))
        assert prepared.shape == (48, 48, 3)
        covered = prepared[..., 0] == 1
        assert covered[16:32].all() and not covered[:16].any() and not covered[32:].any()
        rows, columns = np.nonzero(covered & (prepared[..., 1] == 0))
        assert np.ptp(rows) == np.ptp(columns) == 7 and len(rows) == 64
