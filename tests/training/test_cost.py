"""`seqtex train --dry_run`: what it says agrees with counting on a real model."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import training.cost
from seqtex.cli.main import main
from training.config import PRESETS, preset
from training.cost import block_activations, count_flops, count_parameters, count_tokens, estimate, optimizer_bytes
from training.data.mixture import ImageSizes
from training.loop.strategies import choose
from training.model.init import ModelConfig, make_model
from training.model.optimizers import make_optimizer, trained_parameters
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import mark_trained

SIZES = ImageSizes(views=4, view_resolution=64, uv_resolution=128)
SCRATCH = ModelConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=24,
    ffn_dim=96,
    text_dim=32,
    freq_dim=32,
    lora_rank=0,
    start="scratch",
    trained="all",
)
RELEASED = replace(SCRATCH, trained="released", lora_rank=8)


def run(cfg, tokens):
    """A forward pass of one sample, to be differentiated."""
    torch.manual_seed(0)
    model = SeqTexTransformer3DModel(**cfg.architecture())
    mark_trained(model, cfg.trained)
    model.checkpoint_blocks(cfg.activation_checkpointing, cfg.activation_checkpoint_every)
    uv = torch.randn(1, 48, 1, 16, 16) if tokens.uv else None
    arguments = torch.randn(1, 48, 4, 8, 8), uv, torch.rand(1, 5) * 1000, torch.randn(1, tokens.text, 32)
    return lambda: sum(flow.sum() for flow in model(*arguments) if flow is not None)


@pytest.mark.parametrize("needs_uv", [True, False])
@pytest.mark.parametrize(
    "cfg",
    [
        SCRATCH,
        RELEASED,
        replace(RELEASED, uv_branch="shared"),
        replace(SCRATCH, geometry_attention="mv"),
        replace(SCRATCH, geometry_attention="off"),
        replace(RELEASED, activation_checkpointing="full", activation_checkpoint_every=2),
    ],
)
@pytest.mark.parametrize("text", ["none", "umt5"])
def test_operations_agree_with_a_count_of_them(monkeypatch, cfg, text, needs_uv):
    monkeypatch.setitem(training.cost.TEXT_TOKENS, "umt5", 40)
    tokens = count_tokens(SIZES, text, needs_uv)
    loss_of, found = run(cfg, tokens), count_flops(cfg, tokens)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        loss_of()
    with FlopCounterMode(display=False) as both:
        loss_of().backward()
    assert found.forward == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert found.total == pytest.approx(both.get_total_flops(), rel=0.01)
    assert (found.recomputed > 0) == (cfg.activation_checkpointing != "none")


@pytest.mark.parametrize("trained", ["all", "released"])
def test_activations_agree_with_what_autograd_keeps(monkeypatch, trained):
    """Within a third: what norms and frozen layers keep differs by device and version."""
    monkeypatch.setattr("training.model.block.SMALL_SCORES", 0)
    cfg = replace(SCRATCH if trained == "all" else RELEASED, num_attention_heads=4, ffn_dim=384)
    tokens = count_tokens(SIZES, "none")
    loss_of, kept = run(cfg, tokens), {}

    def keep(tensor):
        base = tensor._base if tensor._is_view() else tensor
        if not isinstance(base, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of()
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert cfg.num_layers * block_activations(cfg, tokens, 4)["all"] == pytest.approx(measured, rel=1 / 3)


def test_the_full_preset_has_the_released_sizes():
    cost = estimate(PRESETS["full"], ImageSizes(views=4, view_resolution=512, uv_resolution=1024))
    assert (cost.tokens.mv, cost.tokens.uv, cost.tokens.text) == (4096, 4096, 512)
    millions = {name: round(count / 1e6, 1) for name, (count, _) in cost.parameters.items()}
    assert (millions["LoRA"], millions["UV branch"], millions["geometry"]) == (127.8, 1109.8, 71.0)
    assert round(sum(count for count, _ in cost.parameters.values()) / 1e6, 1) == 2727.6
    assert cost.flops["geo2mv"].total < 0.5 * cost.flops["img2tex"].total
    policies = [cost.memory[policy].activations_per_sample for policy in ("none", "selective", "full")]
    assert policies == sorted(policies, reverse=True)
    assert cost.largest_batch("none", 80) < cost.largest_batch("selective", 80) < cost.largest_batch("full", 80)
    assert cost.gpu_needed("full", shards=8) < cost.gpu_needed("full")


def test_narrow_frozen_matrices_take_two_bytes_instead_of_six():
    sizes, full = ImageSizes(views=4, view_resolution=512, uv_resolution=1024), PRESETS["full"]
    wide = replace(full, model=replace(full.model, frozen_dtype="float32"))
    in_float32 = replace(full, run=replace(full.run, precision="float32"))
    weights = [estimate(cfg, sizes).memory["full"].weights for cfg in (full, wide, in_float32)]
    frozen = sum(count - trained for count, trained in estimate(full, sizes).parameters.values())
    assert 0.98 * 4 * frozen < weights[1] - weights[0] < 4 * frozen  # all but norms, tables and the time embedding
    assert weights[2] == weights[1] / 6 * 4


def test_the_official_preset_fits_where_the_full_one_does():
    sizes = ImageSizes(views=4, view_resolution=512, uv_resolution=1024)
    full, official = (choose(PRESETS[name], estimate(PRESETS[name], sizes), None) for name in ("full", "official"))
    assert official == full
    assert PRESETS["official"].model == PRESETS["full"].model


def test_shared_branches_have_no_uv_parameters():
    assert count_parameters(replace(RELEASED, uv_branch="shared"))["UV branch"] == (0, 0)


def test_the_command_prints_json_and_trains_nothing(capsys, tmp_path):
    place = ["--data.directory", str(tmp_path / "none"), "--run.directory", str(tmp_path / "run")]
    assert main(["train", "--preset", "tiny", "--dry_run", "--json", *place]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"] == {"frames": 5, "mv": 64, "uv": 64, "text": 1}
    assert told["parameters"]["LoRA"] == {"all": 0, "trained": 0}
    assert set(told["flops_per_sample"]) == {"img2tex", "geo2mv"} | set(PRESETS["tiny"].tasks.mv_only)
    assert not list(tmp_path.iterdir())


def test_the_tables_name_every_part_and_task(capsys, tmp_path):
    assert main(["train", "--preset", "full", "--dry_run", "--data.directory", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for word in ("UV branch", "geometry", "img2tex", "geo2mv", "selective", "4096"):
        assert word in told


def test_units_follow_the_preset_so_that_no_cost_is_shown_as_zero(capsys, tmp_path):
    assert main(["train", "--preset", "tiny", "--dry_run", "--data.directory", str(tmp_path / "none")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    forward, backward, _, together = re.findall(r"img2tex │ (.*?) │ (.*?) │ (.*?) │ (.*?) │", told)[0]
    flops = count_flops(PRESETS["tiny"].model, count_tokens(SIZES, "none", token=8 * 2))
    assert "GFLOP, activation" in told and float(together) == pytest.approx(flops.total / 1e9, abs=0.006)
    assert float(forward) > 0.1 and float(backward) > 0.1
    assert "MB of one GPU" in told and " TFLOP, about " in told and " minutes on 1 device" in told


def test_hours_follow_from_operations_and_the_speed_that_is_given(capsys, tmp_path):
    words = ["train", "--preset", "full", "--dry_run", "--json", "--data.directory", str(tmp_path)]
    assert main([*words, "--run.devices", "8", "--tflops", "300"]) == 0
    told = json.loads(capsys.readouterr().out)
    flops = {name: entry["total"] for name, entry in told["flops_per_sample"].items()}
    cfg, total = PRESETS["full"], 0.0
    for share, weights in ((0.7, cfg.tasks.textured), (0.3, cfg.tasks.mv_only)):
        total += share * sum(weight * flops[name] for name, weight in weights.items())
    assert told["total_flops"] == pytest.approx(total * 16 * 100_000)
    assert told["hours"] == pytest.approx(told["total_flops"] / 8 / 3e14 / 3600)
    assert told["speed"]["source"] == "as given"
    assert main([*words[:4], *words[5:], "--run.devices", "8"]) == 0
    assert "about 12.9 hours on 8 devices at 396 TFLOP/s each (reckoned, not measured: 40% of the peak of an H100" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert main([*words, "--tflops", "0"]) == 2


def test_stored_latents_come_without_a_text_encoder():
    sizes = ImageSizes(views=4, view_resolution=512, uv_resolution=1024)
    cfg = PRESETS["full"]
    images, latents = (
        estimate(replace(cfg, data=replace(cfg.data, latents=stored)), sizes).memory["full"].encoders / 1e9
        for stored in (False, True)
    )
    assert (round(images, 1), round(latents, 1)) == (23.2, 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 48, "out_channels": 48}, "16 channels at 1/8, the model takes 48"),  # without its VAE
        ({"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 1536}, "in_channels is 36"),  # Wan2.1-I2V
        ({"image_dim": 1280}, "image_dim is 1280, SeqTex needs None"),
        ({"patch_size": [2, 2, 2]}, r"patch_size is \[2, 2, 2\]"),
    ],
)
def test_weights_that_cannot_be_started_from_are_refused_before_a_run(capsys, tmp_path, changes, words):
    config = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960,
              "text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
              "image_dim": None, "added_kv_proj_dim": None}  # fmt: skip
    (tmp_path / "transformer").mkdir()
    file = tmp_path / "transformer" / "config.json"
    command = ["train", "--preset", "full", "--dry_run", "--model.start_path", str(tmp_path), "--json"]
    file.write_text(json.dumps(config))
    assert main(command) == 0
    file.write_text(json.dumps(config | changes))
    assert main(command) == 1
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_the_bytes_of_the_optimiser_are_those_of_its_state(name: str) -> None:
    """Muon has one moment of the matrices that it trains, AdamW two of the rest."""
    cfg = preset(name)
    cfg = replace(cfg, model=replace(preset("tiny").model, num_layers=1, trained=cfg.model.trained))
    model = make_model(cfg.model, 0)
    optimizer = make_optimizer(cfg.optimizer, trained_parameters(model))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    parts = getattr(optimizer, "parts", (optimizer,))
    states = [x for part in parts for state in part.state.values() for x in state.values() if x.ndim]
    assert optimizer_bytes(cfg) == sum(x.numel() * x.element_size() for x in states)
