"""A run before its first step: its words, its refusals, and the options that it takes over."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import UsageError, UserError
from schemas.sample import Regime, TextureSample
from seqtex.cli.main import main
from seqtex.cli.train import own_sizes, size_warning
from tests.support.small_dataset import small_sample, write_dataset, write_samples
from tests.training.test_training import load_state, small_config
from training.config import TrainConfig
from training.cost import count_parameters
from training.data.mixture import ImageSizes, image_sizes
from training.diffusion.encoders import DctCodec, make_text_encoder
from training.diffusion.latents import to_uint8
from training.loop.states import AtomicCheckpointIO
from training.loop.validation import Validation, texture
from training.model.init import ModelConfig, make_model, with_architecture
from training.model.weights import export_released, save_model
from training.module import TextureModule
from training.train import plan_run, train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    return out


WIDE = ModelConfig(
    num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=48, text_dim=40, freq_dim=16, lora_rank=4,
    lora_alpha=6, start="scratch", start_path="",
)  # fmt: skip
"""Unlike any preset in every size."""


@pytest.mark.parametrize("layout", ["ours", "released"])
def test_a_run_from_weights_has_their_architecture_whatever_the_preset_says(dataset, tmp_path, layout):
    model = make_model(WIDE, seed=0)
    save_model(model, tmp_path / "start") if layout == "ours" else export_released(model, tmp_path / "start")
    cfg = small_config(dataset, tmp_path / "run", max_steps=1, logger="none")
    cfg = replace(cfg, model=replace(cfg.model, start="seqtex", start_path=str(tmp_path / "start")))
    plan = plan_run(cfg)
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "text_dim", "freq_dim")
    assert {name: asdict(plan.cfg.model)[name] for name in sizes} == {name: asdict(WIDE)[name] for name in sizes}
    assert plan.cfg.model.lora_rank == (4 if layout == "ours" else 128)
    assert not plan.cfg.model.position_rope and plan.cfg.model.view_hint, "the one is the weights', the other is added"
    started = make_model(plan.cfg.model, seed=0)
    planned = sum(total for total, _ in count_parameters(plan.cfg.model).values())
    assert planned == sum(p.numel() for p in started.parameters())
    assert train(cfg).parameters == planned, "captions have the width that the model reads"


def test_the_architecture_of_wan_is_known_without_its_weights(tmp_path):
    narrow = ModelConfig(num_layers=2, text_dim=32, ffn_dim=64, lora_rank=8)
    assert with_architecture(narrow) == replace(ModelConfig(), lora_rank=8)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"num_layers": 40, "ffn_dim": 13824, "lora_rank": 1}')
    other = with_architecture(replace(narrow, start_path=str(tmp_path)))
    assert (other.num_layers, other.ffn_dim, other.text_dim, other.lora_rank) == (40, 13824, 4096, 8)


def test_another_optimiser_does_not_take_a_state_over(dataset, tmp_path):
    cfg = small_config(dataset, tmp_path, max_steps=1, state_every=1, logger="none")
    adamw = replace(cfg, optimizer=replace(cfg.optimizer, muon_learning_rate=None))
    train(cfg)
    with pytest.raises(UserError, match=r"state is of Muon and AdamW.*go on with AdamW.*muon_learning_rate"):
        train(longer(adamw, 2))
    adamw = replace(adamw, run=replace(adamw.run, directory=tmp_path / "adamw"))
    train(adamw)
    with pytest.raises(UserError, match=r"state is of AdamW.*go on with Muon and AdamW"):
        train(longer(replace(adamw, optimizer=cfg.optimizer), 2))
    changed = replace(adamw.optimizer, betas=(0.8, 0.95), weight_decay=0.3)
    train(longer(replace(adamw, optimizer=changed), 2))
    groups = load_state(tmp_path / "adamw", 2)["optimizer_states"][0]["param_groups"]
    found = {(group["betas"], group["weight_decay"]) for group in groups}
    assert found == {((0.8, 0.95), decay) for decay in (0.0, 0.3)}, "matrices alone decay"


def longer(cfg: TrainConfig, steps: int) -> TrainConfig:
    return replace(cfg, run=replace(cfg.run, max_steps=steps))


def test_a_state_of_types_that_are_not_known_says_what_to_give(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"moment": np.zeros(3).dtype, "of": Path("a")}, tmp_path / "step-00000001.ckpt")
    with pytest.raises(UserError, match=r"step-00000001\.ckpt: holds more than plain tensors.*eight_bit"):
        io.load_checkpoint(tmp_path / "step-00000001.ckpt")


def with_views(sample: TextureSample, count: int) -> TextureSample:
    """The same with its views repeated, or the first of them alone."""
    views, cameras = sample.views, sample.cameras
    numbers = np.arange(count) % 4

    def taken(of):
        parts = {name: getattr(of, name) for name in of.__slots__}
        return replace(of, **{name: value[numbers] for name, value in parts.items() if value is not None})

    listed = sample.meta["cameras"]
    meta = sample.meta | {"cameras": {name: [value[i] for i in numbers] for name, value in listed.items()}}
    return replace(sample, views=taken(views), cameras=taken(cameras), meta=meta)


def test_one_view_is_validated_and_thirteen_are_refused(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stored = [small_sample(uid, Regime.TEXTURED, seed) for seed, uid in enumerate(("t0", "t1"))]
    single = [with_views(sample, 1) for sample in stored]
    write_samples(tmp_path / "one", [single])
    cfg = small_config(tmp_path / "one", tmp_path / "run", max_steps=1)
    cfg = replace(cfg, validation=replace(cfg.validation, every=1, steps=1))
    train(cfg, validation=Validation(samples=single, render=lambda sample, uv: sample.views.rgb[0]))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {tag for tag in events.Tags()["scalars"] if "validation" in tag} == {
        f"validation/{name}_psnr" for name in ("uv", "nearest", "fill")
    }
    write_samples(tmp_path / "many", [[with_views(sample, 13) for sample in stored]])
    with pytest.raises(UserError, match=r"13 views, 12 are the most.*rig\.num_views"):
        train(small_config(tmp_path / "many", tmp_path / "refused"))


def test_sizes_that_no_token_fits_are_refused(tmp_path):
    write_dataset(tmp_path, [[("t0", Regime.TEXTURED)]], view_size=24)
    with pytest.raises(UserError, match=r"views\.resolution is 24.*multiples of 16"):
        image_sizes(tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("run.max_steps", -1),
        ("run.max_seconds", 0.0),
        ("run.state_every", 0),
        ("run.accumulate_grad_batches", 0),
        ("data.batch_size", 0),
        ("data.window", 0),
        ("validation.steps", 0),
        ("model.activation_checkpoint_every", 0),
        ("model.num_layers", 0),
        ("model.ffn_dim", 0),
        ("model.lora_rank", -1),
        ("model.attention_head_dim", 7),
        ("model.rope_max_seq_len", 0),
        ("flow.shift", 0.0),
        ("flow.logit_std", 0.0),
        ("flow.uv_weight", -1.0),
        ("optimizer.warmup_steps", -1),
        ("optimizer.learning_rate", -1.0),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.muon_learning_rate", -1.0),
        ("optimizer.weight_decay", -1.0),
    ],
)
def test_numbers_out_of_range_are_named(option, value, dataset, tmp_path):
    part, name = option.split(".")
    with pytest.raises(UsageError, match=rf"{option} is {value}[;,].* give"):
        replace(getattr(small_config(dataset, tmp_path), part), **{name: value})


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("optimizer", {"betas": (0.9, 1.0)}, r"optimizer\.betas is 1\.0; give 0 to 0\.999999"),
        ("tasks", {"textured": {}}, r"tasks\.textured is empty, and 0\.6 of all batches"),
        ("model", {"condition_images": ("mask", "mask")}, "name each once"),
        ("model", {"freq_dim": 3}, r"model\.freq_dim 3; give even numbers"),
        ("model", {"start": "wan"}, r"model\.start wan needs model\.start_path"),
        ("latents", {"text_encoder": "umt5"}, r"text_encoder umt5 needs latents\.text_encoder_path"),
        ("latents", {"codec": "wan"}, r"codec wan needs latents\.codec_path"),
        ("model", {"rope_max_seq_len": 4}, r"rope_max_seq_len is 4; these views and maps need 5 or more"),
        ("model", {"maps": ("base_color", "emissive")}, "has no materials, and the model generates emissive"),
    ],
)
def test_a_plan_refuses_what_cannot_run(dataset, tmp_path, section, options, message):
    """A dry run is this plan."""
    cfg = small_config(dataset, tmp_path)
    with pytest.raises(UserError, match=message):
        plan_run(replace(cfg, **{section: replace(getattr(cfg, section), **options)}))


def test_a_text_encoder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(UserError, match=r"no text encoder can be read there .*set latents\.text_encoder none"):
        make_text_encoder("umt5", str(tmp_path), 32, "cpu")


def test_samples_larger_than_the_preset_is_made_for_are_warned_of(tmp_path, capsys):
    """Once at the start, with how much more there is to do."""
    write_dataset(tmp_path / "large", [[("t0", Regime.TEXTURED)]], view_size=128, uv_size=256)
    place = ["--data.directory", str(tmp_path / "large"), "--run.directory", str(tmp_path / "run")]
    assert main(["train", "--preset", "tiny", "--dry_run", "--json", *place]) == 0
    told = json.loads(capsys.readouterr().out)["warning"]
    assert "has 512 tokens, 4 times those that preset tiny is made for" in told
    assert "--views.resolution 64 --uv.resolution 128" in told
    cfg = small_config(tmp_path / "large", tmp_path / "run")
    assert size_warning(plan_run(cfg, own_sizes("tiny"))) is None
    double = size_warning(plan_run(longer(cfg, 2000), ImageSizes(views=4, view_resolution=128, uv_resolution=256)))
    assert double is not None and "run.max_steps 2000 takes up to" in double


def test_training_leaves_products_and_threads_as_they_were(dataset, tmp_path):
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    train(small_config(dataset, tmp_path, max_steps=1, threads=1, logger="none"))
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


def test_pictures_are_coded_in_full_precision(dataset, tmp_path):
    """Full precision as in training and in `seqtex texture`, whatever the model computes in: the given view comes back
    as the codec keeps it."""
    cfg = small_config(dataset, tmp_path, precision="bfloat16")
    module, stored, codec = TextureModule.of(cfg), small_sample("t0", Regime.TEXTURED, 0), DctCodec()
    module.autocast = torch.bfloat16
    views = texture(module, stored, steps=1, seed=0).views
    rgb = torch.from_numpy(stored.views.rgb[:1, :, :].astype(np.float32) / 255)[None]
    assert np.array_equal(views[0], to_uint8(codec.decode(codec.encode(rgb)).clamp(0, 1)[0])[0])
