"""Maps beside the base colour: one setting, from which batches, latents, loss, sampler, weights and costs follow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geometry.nearest import Surface
from schemas.errors import UsageError, UserError
from schemas.sample import Regime, TextureSample
from seqtex.cli.encode import encode
from tests.support.small_dataset import small_sample, with_materials, write_samples
from training.config import TrainConfig, preset
from training.cost import count_parameters, count_tokens
from training.data.augment import AugmentConfig
from training.data.batch import encode_batch, to_model
from training.data.datamodule import BatchStream
from training.data.mixture import ImageSizes
from training.diffusion.encoders import DctCodec, NullTextEncoder
from training.diffusion.latents import Extras, uv_to_image
from training.diffusion.sampler import SamplerConfig, TexturingInput, sample
from training.diffusion.tasks import TASKS, TaskConfig
from training.loop.checkpoints import load_checkpoint
from training.maps import MATERIAL_MAPS, check_maps, map_psnr, packed
from training.model.init import ModelConfig, make_model
from training.model.optimizers import make_optimizer, part_of, trained_parameters
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import export_released, save_model
from training.module import TextureModule
from training.train import train

CODEC = DctCodec()
MAPS = ("base_color", "metallic_roughness")
ALL = ("base_color", *MATERIAL_MAPS)
SIZES = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64}


def config(dataset: Path, run: Path, steps: int = 4, maps: tuple[str, ...] = MAPS, **data: object) -> TrainConfig:
    tiny = preset("tiny")
    return replace(
        tiny,
        data=replace(tiny.data, directory=dataset, batch_size=2, mv_only_ratio=0.3, **data),
        model=replace(tiny.model, maps=maps, **SIZES),
        validation=replace(tiny.validation, every=0),
        run=replace(tiny.run, directory=run, max_steps=steps, state_every=2, threads=1),
    )


def stored(uid: str = "a", regime: Regime = Regime.TEXTURED, seed: int = 4) -> TextureSample:
    return with_materials(small_sample(uid, regime, seed, uv_size=32))


def kill() -> None:
    raise RuntimeError("killed")


def textured_input(one: TextureSample) -> TexturingInput:
    assert one.uv is not None
    return TexturingInput(
        views=Surface(position=one.views.position, normal=one.views.normal),
        uv=Surface(position=one.uv.position, normal=one.uv.normal),
        images={0: one.views.rgb[0]},
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "forge"
    samples = [stored(f"t{i}", seed=i) for i in range(3)] + [stored("m0", Regime.MV_ONLY)]
    write_samples(out, [samples], {"materials": True})
    return out


def test_maps_are_packed_as_textures_of_gltf() -> None:
    one = stored()
    assert one.uv is not None and one.uv.materials is not None
    color, metal, normal, light = packed(one, ALL)
    assert color is one.uv.rgb and light is one.uv.materials.emissive
    assert not metal[..., 0].any() and np.array_equal(metal[..., :0:-1], one.uv.materials.metallic_roughness)
    np.testing.assert_allclose(normal / 127.5 - 1, one.uv.materials.normal_tangent, atol=0.5 / 127.5)
    made = dict(zip(ALL[1:], (metal, normal, light), strict=True))
    assert map_psnr(made, one.uv) == dict.fromkeys(
        ("metallic_psnr", "roughness_psnr", "normal_tangent_psnr", "emissive_psnr"), 100.0
    )
    worse = metal.copy()
    worse[..., 1] ^= 1
    figures = map_psnr({"metallic_roughness": worse}, one.uv)
    assert figures == {"metallic_psnr": 100.0, "roughness_psnr": pytest.approx(20 * np.log10(255))}
    latents = encode_batch(to_model(one, maps=ALL), CODEC).uv
    assert latents is not None and latents.rgb.shape[2] == 4 and latents.geometry.shape[2] == 1
    decoded = [uv_to_image(frame[None]) for frame in CODEC.decode(latents.rgb)[0]]
    assert map_psnr({"metallic_roughness": decoded[1]}, one.uv)["roughness_psnr"] > 35, "a frame is the map of its name"
    assert np.abs(decoded[0].astype(int) - color)[4:-4, 4:-4].mean() < 3


def test_two_maps_of_one_sample_are_learnt_by_heart_together() -> None:
    torch.set_num_threads(1)
    tiny = preset("tiny")
    cfg = replace(tiny, tasks=TaskConfig(textured={"img2tex": 1.0}), model=replace(tiny.model, maps=MAPS, num_layers=2))
    module = TextureModule.of(cfg)
    optimizer = make_optimizer(cfg.optimizer, trained_parameters(module))
    batch = replace(encode_batch(to_model(stored(), (1,), module.extras.images, MAPS), CODEC), samples=(0,))
    rows = []
    for _ in range(40):
        optimizer.zero_grad()
        row = module.training_step(batch, 0)
        row["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), cfg.optimizer.gradient_clip)
        optimizer.step()
        rows.append({name: float(value.detach()) for name, value in row.items() if isinstance(value, torch.Tensor)})
    for name in ("loss_base_color", "loss_metallic_roughness", "loss_mv"):
        assert rows[-1][name] < 0.15 * rows[0][name], name
    for row in rows:
        assert row["loss_uv"] == pytest.approx((row["loss_base_color"] + row["loss_metallic_roughness"]) / 2, rel=1e-5)
        assert row["loss"] == pytest.approx(row["loss_mv"] + cfg.flow.uv_weight * row["loss_uv"], rel=1e-5)
    assert module.model.uv_map_embeddings["metallic_roughness"].abs().max() > 1e-3, "it was trained"
    errors = module.held_out_losses(stored(), 0)["img2tex"]
    assert errors["flow_uv"] == pytest.approx((errors["flow_base_color"] + errors["flow_metallic_roughness"]) / 2)


def test_a_network_knows_which_map_a_frame_is() -> None:
    """With positions in space two frames of one mesh are alike but for the turn of the time channels; their embedding
    keeps them apart, too."""
    model = make_model(config(Path(), Path()).model, 0)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.1)
    depth, generator = model.in_depth, torch.Generator().manual_seed(0)
    mv = torch.randn(1, depth, 2, 4, 4, generator=generator)
    uv = torch.randn(1, depth, 1, 4, 4, generator=generator).expand(-1, -1, 2, -1, -1)
    rest = torch.full((1, 4), 500.0), torch.zeros(1, 1, 32)
    views, flow = model(mv, uv, *rest)
    by_time = float((flow[:, :, 0] - flow[:, :, 1]).detach().abs().max())
    with torch.no_grad():
        model.uv_map_embeddings["metallic_roughness"].normal_(std=0.5)
    again, flow = model(mv, uv, *rest)
    assert float((flow[:, :, 0] - flow[:, :, 1]).detach().abs().max()) > 2 * by_time > 0
    assert torch.equal(views, again), "views never read UV maps"
    assert torch.equal(model(mv, None, *rest)[0], views)
    with pytest.raises(ValueError, match="3 timesteps for 2 views and 2 UV maps; give 4"):
        model(mv, uv, rest[0][:, :3], rest[1])
    with pytest.raises(ValueError, match="2 frames of the UV branch"):
        model(mv, uv[:, :, :1], *rest)


def test_a_run_resumes_exactly_and_its_checkpoint_generates_both_maps(dataset: Path, tmp_path: Path) -> None:
    whole = train(config(dataset, tmp_path / "whole"))
    cfg = config(dataset, tmp_path / "resumed")
    with pytest.raises(RuntimeError, match="killed"):  # behind the state of step 2
        train(cfg, lambda row: kill() if row["step"] == 3 else None)
    assert not (tmp_path / "resumed" / "checkpoint").exists()
    resumed = train(cfg)
    assert [row["loss"] for row in resumed.losses] == [row["loss"] for row in whole.losses]
    first, second = (load_checkpoint(each.checkpoint).model.state_dict() for each in (whole, resumed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    names = {name for row in whole.losses for name in row if name.startswith("loss_")}
    assert names == {"loss_mv", "loss_uv", "loss_base_color", "loss_metallic_roughness"}
    network = load_checkpoint(whole.checkpoint)
    assert Extras.of(network.model.config).maps == MAPS
    text = NullTextEncoder(network.model.config["text_dim"])
    (result,) = sample(
        network.model, CODEC, text, [textured_input(stored())], SamplerConfig(steps=2),
        extras=Extras.of(network.model.config),
    )  # fmt: skip
    assert result.uv is not None and result.uv.shape == result.maps["metallic_roughness"].shape == (32, 32, 3)
    assert list(result.maps) == ["metallic_roughness"] and not result.maps["metallic_roughness"][..., 0].any()
    assert result.maps["metallic_roughness"][..., 1:].std() > 1


def test_pixels_memory_and_shards_give_the_same_latents(dataset: Path, tmp_path: Path) -> None:
    cfg = replace(config(dataset, tmp_path).data, keep_latents=False, augment=AugmentConfig(rotate_views=0.5))
    encode(dataset, "dct", device="cpu", dtype="float32")
    with pytest.raises(UserError, match=r"latents\.json: has no map metallic_roughness; run `seqtex encode.*--maps"):
        BatchStream(replace(cfg, latents=True), seed=1, codec=CODEC, maps=MAPS)
    encode(dataset, "dct", device="cpu", dtype="float32", maps=ALL)
    pixels, kept, disk, drawn, one = (
        BatchStream(replace(cfg, **options), seed=1, codec=CODEC, maps=maps)
        for options, maps in (
            ({}, MAPS),
            ({"keep_latents": True}, MAPS),
            ({"latents": True}, MAPS),
            ({"latents": True, "draw_posterior": True}, MAPS),
            ({"latents": True}, MAPS[:1]),
        )
    )
    regimes = set()
    for number in range(8):
        direct = encode_batch(pixels[number], CODEC)
        regimes.add(direct.regime)
        for other in (kept[number], disk[number], drawn[number]):
            assert (direct.uv is None) == (other.uv is None) == (direct.regime is Regime.MV_ONLY)
            if direct.uv is not None:
                assert direct.uv.rgb.shape[2] == 2
                torch.testing.assert_close(other.uv.rgb, direct.uv.rgb, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(one[number].uv.rgb, direct.uv.rgb[:, :, :1], atol=1e-5, rtol=1e-4)
    assert regimes == set(Regime)


def test_data_without_materials_is_refused_by_name(dataset: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_samples(plain, [[small_sample("t0", Regime.TEXTURED, 0, uv_size=32)]])
    cfg = config(dataset, tmp_path / "run")
    mixed = replace(cfg, data=replace(cfg.data, directories={str(dataset): 1.0, str(plain): 1.0}))
    with pytest.raises(
        UserError, match=rf"{plain} has no materials, and the model generates metallic_roughness; build"
    ):
        train(mixed)
    train(replace(mixed, model=replace(mixed.model, maps=MAPS[:1])))  # one map asks for no materials
    with pytest.raises(UserError, match="sample t0 has no materials"):
        encode(plain, "dct", device="cpu", maps=MAPS)
    for wrong in ((), MAPS[1:], (*MAPS, "metallic_roughness"), ("base_color", "height")):
        with pytest.raises(UsageError, match="give base_color first, then any of metallic_roughness, normal_tangent"):
            check_maps(wrong)
    with pytest.raises(UsageError, match=r"model\.maps is \['height'\]"):
        ModelConfig(maps=("height",))


def test_maps_are_added_to_weights_and_recorded_with_them(tmp_path: Path) -> None:
    cfg = ModelConfig(start="scratch", start_path="", text_dim=4, freq_dim=8, lora_rank=0, **SIZES)
    save_model(make_model(cfg, 0), tmp_path / "plain")
    asked = replace(cfg, start="seqtex", start_path=str(tmp_path / "plain"), maps=MAPS)
    model = make_model(asked, 0)
    added = dict(model.named_parameters())["uv_map_embeddings.metallic_roughness"]
    assert added.requires_grad and not added.any() and part_of("uv_map_embeddings.metallic_roughness") == "UV branch"
    mv, uv = torch.randn(1, 48, 2, 4, 4), torch.randn(1, 48, 1, 4, 4)
    rest = torch.full((1, 4), 500.0), torch.randn(1, 2, 4)
    plain = make_model(replace(asked, maps=MAPS[:1]), 0)
    views = plain(mv, uv, rest[0][:, :3], rest[1])[0]
    assert torch.equal(model(mv, uv.expand(-1, -1, 2, -1, -1), *rest)[0], views)
    assert plain.config["maps"] is None and not hasattr(plain, "uv_map_embeddings"), "one map is the released model"
    save_model(model, tmp_path / "two")
    wider = make_model(replace(asked, start_path=str(tmp_path / "two"), maps=ALL), 0)
    assert Extras.of(wider.config).maps == ALL
    with pytest.raises(UserError, match=r"generates base_color, metallic_roughness; set model\.maps so"):
        make_model(replace(asked, start_path=str(tmp_path / "two"), maps=MAPS[:1]), 0)
    with pytest.raises(UserError, match="one UV map, this model generates base_color, metallic_roughness"):
        export_released(model, tmp_path / "out")
    again = SeqTexTransformer3DModel.from_pretrained(tmp_path / "two")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_costs_count_the_tokens_of_every_map() -> None:
    cfg, sizes = preset("tiny").model, ImageSizes(views=4, view_resolution=64, uv_resolution=128)
    one, two = (count_tokens(sizes, "none", maps=maps) for maps in (1, 2))
    assert (two.uv, two.mv, two.frames) == (2 * one.uv, one.mv, one.frames + 1)
    assert count_tokens(sizes, "none", TASKS["geo2mv"].needs_uv, maps=2).uv == 0
    counts = [count_parameters(each)["UV branch"][1] for each in (cfg, replace(cfg, maps=MAPS))]
    assert counts[1] - counts[0] == cfg.num_attention_heads * cfg.attention_head_dim
