"""A condition image is one registration: input width, training, latents, sampler, dropout and weights follow."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geometry.nearest import Surface
from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from seqtex.cli.encode import encode
from tests.support.small_dataset import small_sample, write_dataset
from training.conditions.images import IMAGES, MASK, ConditionImage, Pixels, Scene, register
from training.config import TrainConfig, preset
from training.cost import count_parameters, count_tokens, outer_products
from training.data.augment import AugmentConfig
from training.data.batch import LatentBatch, encode_batch, to_model
from training.data.datamodule import BatchStream
from training.data.mixture import ImageSizes
from training.diffusion.encoders import DctCodec, NullTextEncoder
from training.diffusion.latents import Extensions
from training.diffusion.sampler import SamplerConfig, TexturingInput, TexturingResult, sample
from training.loop.checkpoints import load_checkpoint
from training.model.init import ModelConfig, make_model
from training.model.optimizers import part_of
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import export_released, save_model
from training.module import TextureModule
from training.objective import dropped_images
from training.train import train

CODEC = DctCodec()


# A new condition image, all of it: outlines of the stored views, as an artist might draw them. A user draws their own.
def outlines(scene: Scene) -> Pixels | None:
    """Make the strength of edges in brightness [V, h, w, 1]; for the UV map there are none."""
    if scene.sample is None:
        return None
    grey = scene.sample.views.rgb.mean(axis=-1, dtype=np.float32) / 255
    down, right = np.gradient(grey, axis=(1, 2))
    return np.hypot(down, right).clip(0, 1)[..., None], None


SKETCH = ConditionImage(name="sketch", channels=1, pixels=outlines, dropout=0.5)


@pytest.fixture(autouse=True)
def sketch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = dict(IMAGES)
    register(SKETCH)
    yield
    IMAGES.clear()
    IMAGES.update(known)


def config(dataset: Path, run: Path, images: tuple[str, ...] = ("sketch", "mask"), **data: object) -> TrainConfig:
    tiny = preset("tiny")
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64}
    return replace(
        tiny,
        data=replace(tiny.data, directory=dataset, batch_size=2, mv_only_ratio=0.4, **data),
        model=replace(tiny.model, condition_images=images, **sizes),
        validation=replace(tiny.validation, every=0),
        run=replace(tiny.run, directory=run, max_steps=3, threads=1),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[(f"t{i}", Regime.TEXTURED) for i in range(3)] + [("m0", Regime.MV_ONLY)]])
    return out


def textured(model: SeqTexTransformer3DModel, **pictures: Pixels) -> TexturingResult:
    stored = small_sample("a", Regime.TEXTURED, 4)
    assert stored.uv is not None
    one = TexturingInput(
        views=Surface(position=stored.views.position, normal=stored.views.normal),
        uv=Surface(position=stored.uv.position, normal=stored.uv.normal),
        images={0: stored.views.rgb[0]},
        condition_images=pictures,
    )
    text = NullTextEncoder(model.config["text_dim"])
    (result,) = sample(model.eval(), CODEC, text, [one], SamplerConfig(steps=2), extras=Extensions.of(model.config))
    return result


@pytest.mark.parametrize("stored", ["pixels", "kept", "shards"])
def test_a_condition_image_of_20_lines_trains_is_saved_and_sampled(dataset: Path, tmp_path: Path, stored: str) -> None:
    if stored == "shards":
        assert encode(dataset, "dct", device="cpu", view_hint=True, condition_images=("sketch", "mask")) == 0
    cfg = config(dataset, tmp_path, keep_latents=stored == "kept", latents=stored == "shards")
    result = train(replace(cfg, optimizer=replace(cfg.optimizer, ema_decay=0.0)))
    assert len(result.losses) == 3 and all(row["loss"] is not None for row in result.losses)
    model = load_checkpoint(result.checkpoint).model
    assert model.config["condition_channels"] == {"sketch": 1, "mask": 1} and model.in_depth == 3 * 16 + 17 + 2 + 4
    start = make_model(cfg.model, cfg.run.seed).state_dict()
    for name in ("sketch", "mask"):
        layer = f"condition_patch_embeddings.{name}.weight"
        assert not torch.equal(model.state_dict()[layer], start[layer]), "it was trained"
        assert part_of(layer) == "geometry"
    with torch.no_grad():  # after so few steps the weights say little
        model.proj_out.weight.normal_(std=0.1)
    drawn = np.random.default_rng(0).random((4, 32, 32, 1), dtype=np.float32)
    blank, drawing = textured(model), textured(model, sketch=(drawn, None))
    assert blank.uv is not None and drawing.uv is not None and not np.array_equal(blank.uv, drawing.uv)


def test_pixels_memory_and_shards_give_the_same_condition_images(dataset: Path, tmp_path: Path) -> None:
    cfg = config(dataset, tmp_path).data
    cfg = replace(cfg, keep_latents=False, augment=AugmentConfig(rotate_views=0.5))
    encode(dataset, "dct", device="cpu", dtype="float32", condition_images=("sketch", "mask"))
    pixels, kept, disk = (
        BatchStream(replace(cfg, **options), seed=1, codec=CODEC, images=("sketch", "mask"))
        for options in ({}, {"keep_latents": True}, {"latents": True})
    )
    for number in range(8):
        direct = encode_batch(pixels[number], CODEC)
        assert float(direct.mv.conditions["sketch"].amax()) > 0.01
        torch.testing.assert_close(direct.mv.conditions["mask"], direct.mv.points[:, 3:])
        for other in (kept[number], disk[number]):
            for name, latents in direct.mv.conditions.items():
                torch.testing.assert_close(other.mv.conditions[name], latents, atol=1e-5, rtol=1e-4)
            assert (direct.uv is None) == (other.uv is None)
            if direct.uv is not None:
                torch.testing.assert_close(other.uv.conditions["mask"], direct.uv.conditions["mask"])
                assert not other.uv.conditions["sketch"].any(), "it has none for the UV map"
    with pytest.raises(UserError, match=r"no condition image other; run `seqtex encode.*--condition_images"):
        register(replace(SKETCH, name="other"))
        BatchStream(replace(cfg, latents=True), seed=1, codec=CODEC, images=("other",))


def inputs_of(module: TextureModule, batch: LatentBatch, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The views as they enter the model in a training step."""
    seen: list[torch.Tensor] = []
    forward = module.model.forward
    monkeypatch.setattr(module.model, "forward", lambda *arguments: seen.append(arguments[0]) or forward(*arguments))
    module.training_step(batch, 0)
    return seen[0]


def test_a_sample_is_trained_without_it_as_often_as_registered(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none, numbers = torch.zeros(2000, dtype=torch.bool), range(2000)
    found = dropped_images(("hint", "sketch", "mask"), none, 3, numbers, with_own=True)
    assert float(found["sketch"].float().mean()) == pytest.approx(0.5, abs=0.04)
    assert "mask" not in found and found["hint"] is none, "one has no dropout, the other that of the given views"
    assert set(dropped_images(("hint", "sketch"), none, 3, numbers, with_own=False)) == {"hint"}, "in validation"
    cfg = config(dataset, tmp_path)
    module = TextureModule.of(cfg)
    stored = to_model(small_sample("a", Regime.TEXTURED, 4), (0,), module.extras.images)
    at, kept = slice(48 + 17, 48 + 18), dict[bool, torch.Tensor]()
    for number in range(8):
        batch = replace(encode_batch(stored, CODEC), samples=(number,))
        dropped = bool(dropped_images(("sketch",), none[:1], cfg.run.seed, (number,), True)["sketch"])
        entered = inputs_of(module, batch, monkeypatch)
        kept[dropped] = entered[:, at]
        assert entered[:, 48 + 18].any(), "the mask"
    assert not kept[True].any() and torch.equal(kept[False], batch.mv.conditions["sketch"])


def test_weights_without_it_give_the_same_output_before_training(tmp_path: Path) -> None:
    cfg = ModelConfig(
        num_layers=1, num_attention_heads=2, attention_head_dim=12, ffn_dim=8, text_dim=4, freq_dim=8, lora_rank=0,
        start="scratch", start_path="", trained="all",
    )  # fmt: skip
    plain = make_model(cfg, 0)
    with torch.no_grad():
        plain.proj_out.weight.normal_(std=0.1)
    save_model(plain, tmp_path / "plain")
    asked = replace(cfg, start="seqtex", start_path=str(tmp_path / "plain"), condition_images=("mask", "sketch"))
    model = make_model(asked, 0)
    mv, uv = torch.randn(1, 48, 2, 4, 4), torch.randn(1, 48, 1, 4, 4)
    wide = [torch.cat([x, torch.randn_like(x[:, :2])], dim=1) for x in (mv, uv)]
    rest = torch.full((1, 3), 500.0), torch.randn(1, 2, 4)
    for found, expected in zip(model(*wide, *rest), plain(mv, uv, *rest), strict=True):
        assert torch.equal(found, expected)
    save_model(model, tmp_path / "own")
    assert Extensions.of(SeqTexTransformer3DModel.from_pretrained(tmp_path / "own").config).images == (
        "mask",
        "sketch",
    )
    with pytest.raises(UserError, match="takes the condition images sketch"):
        make_model(replace(asked, start_path=str(tmp_path / "own"), condition_images=("mask",)), 0)
    with pytest.raises(UserError, match="no condition images, this model takes mask, sketch"):
        export_released(model, tmp_path / "out")
    IMAGES.pop("sketch")
    with pytest.raises(UsageError, match="'sketch' is no condition image; there are hint, given_view, mask: register"):
        Extensions.of(model.config)


def test_costs_count_its_layer() -> None:
    cfg = preset("tiny").model
    wider = replace(cfg, condition_images=("mask",))
    tokens = count_tokens(ImageSizes(views=4, view_resolution=64, uv_resolution=128), "none")
    before, after = (sum(p.forward for p in outer_products(each, tokens)) for each in (cfg, wider))
    assert after - before == 2 * (tokens.mv + tokens.uv) * 4 * 192
    counts = [count_parameters(each)["geometry"][1] for each in (cfg, wider)]
    assert counts[1] - counts[0] == 192 * (4 + 1)


def test_what_cannot_be_registered_or_asked_for_is_refused() -> None:
    for image in (MASK, replace(SKETCH, name="a.b"), replace(SKETCH, name="c", channels=0)):
        with pytest.raises(ValueError, match="condition image"):
            register(image)
    with pytest.raises(UsageError, match="'nothing' is no condition image"):
        ModelConfig(condition_images=("nothing",))
    with pytest.raises(UsageError, match=r"set model\.view_hint true"):
        ModelConfig(condition_images=("hint",))
    wrong = register(replace(SKETCH, name="wrong", pixels=lambda scene: (np.zeros((1, 2, 2, 1), np.float32), None)))
    stored = small_sample("a", Regime.TEXTURED, 4)
    with pytest.raises(ValueError, match=r"condition image 'wrong' has pixels \(1, 2, 2, 1\)"):
        to_model(stored, (0,), (wrong.name,))
