"""Augmentations of a sample are the same for all its images, on every rank, and reach nothing that is generated."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.codec import cameras_json
from schemas.errors import UsageError
from schemas.sample import Regime, TextureSample
from tests.support.small_dataset import small_sample, write_samples
from training.data.augment import (
    Augmentation,
    AugmentConfig,
    condition_images,
    draw_augmentation,
    draw_caption,
    rotate_views,
)
from training.data.batch import Batch, encode_batch, to_model
from training.data.datamodule import BatchStream
from training.data.latent_shards import rotate_latents
from training.data.mixture import DataConfig
from training.diffusion.encoders import DctCodec

PLAIN = Augmentation(shift=0, background=(0, 0, 0), lit=False, jpeg_quality=None, blur_sigma=None, stops=None)
EVERYTHING = AugmentConfig(rotate_views=1.0, background="random", lit=1.0, jpeg=1.0, blur=1.0, exposure=1.0)


@pytest.fixture
def sample() -> TextureSample:
    """With a lit twin of each view, and a soft rim."""
    made = small_sample("a", Regime.TEXTURED, 3)
    rng = np.random.default_rng(0)
    coverage = made.views.coverage.copy()
    coverage[made.views.mask & (rng.random(coverage.shape) < 0.1)] = 128
    return replace(made, views=replace(made.views, lit=255 - made.views.rgb, coverage=coverage))


def test_views_turn_with_their_cameras_and_geometry(sample: TextureSample) -> None:
    turned = rotate_views(sample, 1)
    for name in ("rgb", "mask", "coverage", "position", "normal", "lit"):
        old, new = getattr(sample.views, name), getattr(turned.views, name)
        assert np.array_equal(new[1:], old[:-1]) and np.array_equal(new[0], old[-1])
    assert np.array_equal(turned.cameras.world_to_cam[0], sample.cameras.world_to_cam[3])
    assert turned.meta["cameras"] == cameras_json(turned.cameras)
    # what a camera sees lies where it says: positions project onto the same pixels as before
    latents = rotate_latents(encode_batch(to_model(sample), DctCodec()), 1)
    direct = encode_batch(to_model(turned), DctCodec())
    assert torch.equal(latents.mv.rgb, direct.mv.rgb) and torch.equal(latents.mv.geometry, direct.mv.geometry)


def test_draws_depend_on_seed_and_sample_alone() -> None:
    drawn = [draw_augmentation(EVERYTHING, 4, 5, number) for number in range(200)]
    assert [draw_augmentation(EVERYTHING, 4, 5, number) for number in range(200)] == drawn
    assert [draw_augmentation(EVERYTHING, 4, 6, number) for number in range(200)] != drawn
    assert {each.shift for each in drawn} == {0, 1, 2, 3}
    qualities = [each.jpeg_quality for each in drawn]
    assert 40 <= min(qualities) < 45 and 90 < max(qualities) <= 95
    assert min(each.stops for each in drawn) < -0.45 and max(each.stops for each in drawn) > 0.45
    one_less = replace(EVERYTHING, blur=0.0)
    others = [draw_augmentation(one_less, 4, 5, number) for number in range(200)]
    assert others == [replace(each, blur_sigma=None) for each in drawn]
    half = [draw_augmentation(AugmentConfig(jpeg=0.5), 4, 5, number) for number in range(2000)]
    count = sum(each.jpeg_quality is not None for each in half)
    assert abs(count - 1000) < 2.576 * 500**0.5
    assert draw_augmentation(AugmentConfig(), 4, 5, 0) == PLAIN


def test_condition_images(sample: TextureSample) -> None:
    views = sample.views
    assert np.array_equal(condition_images(views, PLAIN), views.rgb)
    assert np.array_equal(condition_images(views, replace(PLAIN, lit=True)), views.lit)
    assert np.array_equal(condition_images(replace(views, lit=None), replace(PLAIN, lit=True)), views.rgb)
    red = condition_images(views, replace(PLAIN, background=(255, 0, 0)))
    assert (red[views.coverage == 0] == (255, 0, 0)).all()
    assert np.array_equal(red[views.coverage == 255], views.rgb[views.coverage == 255])
    rim = views.coverage == 128
    assert np.array_equal(red[rim][:, 0], np.minimum(views.rgb[rim][:, 0].astype(int) + 127, 255))
    assert np.array_equal(condition_images(views, replace(PLAIN, stops=0.0)), views.rgb)
    brighter = condition_images(views, replace(PLAIN, stops=1.0))
    linear = np.where(views.rgb <= 10, views.rgb / 255 / 12.92, ((views.rgb / 255 + 0.055) / 1.055) ** 2.4) * 2
    again = np.where(brighter <= 10, brighter / 255 / 12.92, ((brighter / 255 + 0.055) / 1.055) ** 2.4)
    assert np.abs(again - linear.clip(max=1))[brighter < 255].max() < 0.005
    blurred = condition_images(views, replace(PLAIN, blur_sigma=40.0))
    assert np.abs(np.diff(blurred.astype(int), axis=2)).max() < np.abs(np.diff(views.rgb.astype(int), axis=2)).max() / 2
    losses = []
    for quality in (95, 40):
        packed = condition_images(views, replace(PLAIN, jpeg_quality=quality))
        losses.append(np.square(packed.astype(int) - views.rgb).mean())
    assert 0 < losses[0] < losses[1] / 2


@pytest.fixture
def dataset(sample: TextureSample, tmp_path: Path) -> Path:
    others = [small_sample(f"b{i}", Regime.TEXTURED, i) for i in range(3)]
    write_samples(tmp_path / "d", [[sample, *others]])
    return tmp_path / "d"


def batches(dataset: Path, cfg: AugmentConfig, **options: object) -> list[Batch]:
    data = DataConfig(directory=dataset, batch_size=4, augment=cfg, keep_latents="codec" in options)
    stream = BatchStream(data, seed=2, **options)
    return [stream[number] for number in range(4)]


def test_only_the_condition_is_degraded(dataset: Path) -> None:
    plain, changed = batches(dataset, AugmentConfig()), batches(dataset, replace(EVERYTHING, rotate_views=0.0))
    for before, after in zip(plain, changed, strict=True):
        assert not before.mv.conditions and set(after.mv.conditions) == {"given_view"} and not after.uv.conditions
        assert after.uids == before.uids
        for name in ("rgb", "position", "normal"):
            assert torch.equal(getattr(after.mv, name), getattr(before.mv, name))
            assert torch.equal(getattr(after.uv, name), getattr(before.uv, name))
        assert not torch.equal(after.mv.conditions["given_view"], after.mv.rgb)
        latents = encode_batch(after, DctCodec())
        given = torch.zeros(4, 4, dtype=torch.bool)
        given[:, 2] = True
        seen = latents.mv.given(given)
        assert torch.equal(seen.rgb[:, :, 2], latents.mv.conditions["given_view"][:, :, 2])
        assert torch.equal(seen.rgb[:, :, :2], latents.mv.rgb[:, :, :2])
        assert torch.equal(seen.geometry, latents.mv.geometry)


def test_ranks_draw_alike_and_a_run_resumes_with_the_same_draws(dataset: Path) -> None:
    whole = batches(dataset, EVERYTHING)
    for rank in range(2):
        for part, all_ranks in zip(batches(dataset, EVERYTHING, rank=rank, ranks=2), whole, strict=True):
            assert torch.equal(
                part.mv.conditions["given_view"], all_ranks.mv.conditions["given_view"][2 * rank : 2 * rank + 2]
            )
            assert torch.equal(part.mv.position, all_ranks.mv.position[2 * rank : 2 * rank + 2])


def test_kept_latents_turn_too_and_degraded_images_are_not_kept(dataset: Path) -> None:
    turning = AugmentConfig(rotate_views=1.0)
    for pixels, kept in zip(batches(dataset, turning), batches(dataset, turning, codec=DctCodec()), strict=True):
        direct = encode_batch(pixels, DctCodec())
        assert torch.allclose(kept.mv.rgb, direct.mv.rgb, atol=1e-5)
        assert torch.allclose(kept.mv.geometry, direct.mv.geometry, atol=1e-5)
    assert isinstance(batches(dataset, EVERYTHING, codec=DctCodec())[0], Batch)


def test_captions_are_drawn_among_the_levels_that_have_a_text(tmp_path: Path) -> None:
    levels = {"short": "a cup", "medium": "a red cup", "long": ""}
    samples = [small_sample(f"c{i}", Regime.TEXTURED, i) for i in range(4)]
    told = [replace(each, meta=each.meta | {"captions": levels}) for each in samples[:3]]
    write_samples(tmp_path / "d", [[*told, samples[3]]])
    own = {each.uid: each.meta["caption"] for each in samples}
    for batch in batches(tmp_path / "d", AugmentConfig()):
        assert [own[uid] for uid in batch.uids] == list(batch.captions)
    drawing = AugmentConfig(captions=True)
    drawn, again = (batches(tmp_path / "d", drawing, rank=0, ranks=ranks) for ranks in (1, 2))
    for all_ranks, part in zip(drawn, again, strict=True):
        assert all_ranks.captions[:2] == part.captions, "the same on any number of ranks"
    found = [entry for batch in drawn for entry in zip(batch.uids, batch.captions, strict=True)]
    assert {caption for uid, caption in found if uid != "c3"} == {"a cup", "a red cup"}
    assert {caption for uid, caption in found if uid == "c3"} == {own["c3"]}
    assert batches(tmp_path / "d", drawing, codec=DctCodec())[0].captions == drawn[0].captions
    counts = [draw_caption(drawing, told[0], 5, number).meta["caption"] for number in range(2000)].count("a cup")
    assert abs(counts - 1000) < 2.576 * 500**0.5
    broken = replace(told[0], meta=told[0].meta | {"captions": ["x"]})
    assert draw_caption(drawing, broken, 5, 0) is broken


def test_impossible_augmentations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"draws captions, latents hold one each"):
        DataConfig(directory=tmp_path, latents=True, augment=AugmentConfig(captions=True))
    with pytest.raises(UsageError, match=r"augment\.jpeg"):
        AugmentConfig(jpeg=1.5)
    with pytest.raises(UsageError, match=r"augment\.jpeg_quality"):
        AugmentConfig(jpeg_quality=(90, 20))
    with pytest.raises(UsageError, match=r"set data\.latents false"):
        DataConfig(directory=tmp_path, latents=True, augment=AugmentConfig(blur=0.1))
