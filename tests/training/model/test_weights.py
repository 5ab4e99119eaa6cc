"""Model files, the start from Wan, and the trainable split."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from schemas.errors import UserError
from seqtex.cli.main import main
from tests.support.hub_server import TOKEN, serving
from tests.support.hub_server import Hub as Server
from tests.support.tiny_transformer import TINY
from training.model.backbones.backbone import wan_name
from training.model.files import WEIGHTS, remove_leftovers
from training.model.lora import load_lora, merge_lora, merged_state, save_lora
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import RELEASED_CLASS, export_released, from_wan, mark_trained, save_model

REPO = Path(__file__).resolve().parents[3]


def randomise(model, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def tiny_model(**changes):
    return randomise(SeqTexTransformer3DModel(**TINY | changes))


@pytest.fixture(scope="module")
def wan():
    return randomise(WanTransformer3DModel(**TINY), seed=3)


def inputs(views=3):
    torch.manual_seed(5)
    mv, uv = torch.randn(2, 12, views, 4, 6), torch.randn(2, 12, 1, 8, 8)
    return mv, uv, torch.rand(2, views + 1) * 1000, torch.randn(2, 5, 8)


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_from_wan_gives_wans_own_output_for_one_timestep(wan):
    model = from_wan(wan, lora_rank=3)
    mv, uv, timestep, text = inputs()
    timestep[:, :3] = timestep[:, :1]
    with torch.no_grad():
        found = model(mv, uv, timestep, text)[0]
        expected = wan(mv[:, :4], timestep[:, 0], text).sample
    assert relative_error(found, expected) < 1e-5


def test_from_wan_gives_wans_own_output_for_a_timestep_per_frame(wan):
    model = from_wan(wan, lora_rank=3)
    mv, uv, timestep, text = inputs()
    of_tokens = timestep[:, :3].repeat_interleave(2 * 3, dim=1)
    with torch.no_grad():
        found = model(mv, uv, timestep, text)[0]
        expected = wan(mv[:, :4], of_tokens, text).sample
    assert relative_error(found, expected) < 1e-5


def test_from_wan_copies_every_twin_and_zeroes_the_new_paths(wan):
    model = from_wan(wan, lora_rank=3, seed=1)
    state, source = model.state_dict(), wan.state_dict()
    assert wan_name("blocks.1.attnuv.norm_k.weight") == "blocks.1.attn1.norm_k.weight"
    assert wan_name("pos_patch_embedding.bias") == "patch_embedding.bias"
    copied = {name: wan_name(name) for name in state if wan_name(name)}
    assert set(copied.values()) == set(source)
    for name, twin in copied.items():
        assert torch.equal(state[name], source[twin]), name
    uv_branch = {name for name in state if "uv" in name}
    assert uv_branch <= set(copied)
    assert len(uv_branch) == 1 + 2 * (10 + 2 + 4 + 1)  # table; per block: attention, norm, feed-forward, table
    rest = set(state) - set(copied)
    assert all(state[name].any() == ("lora_A" in name) for name in rest)
    assert {name.split(".")[-3 if "lora" in name else -2] for name in rest} == {"geometry_caster", "lora_A", "lora_B"}
    storages = [tensor.data_ptr() for tensor in state.values()]
    assert len(set(storages)) == len(storages), "the branches must not share memory"
    assert states_equal(model, from_wan(wan, lora_rank=3, seed=1))
    assert not states_equal(model, from_wan(wan, lora_rank=3, seed=2))


def test_training_from_wan_starts_with_a_finite_falling_loss(wan):
    model = from_wan(wan, lora_rank=3)
    mv, uv, timestep, text = inputs()
    targets = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 4, 1, 8, 8)
    optimizer = torch.optim.AdamW(mark_trained(model, "released").values(), lr=3e-3)
    losses = []
    for _ in range(12):
        flows = model(mv, uv, timestep, text)
        loss = sum((flow - target).square().mean() for flow, target in zip(flows, targets, strict=True))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[-1] < 0.8 * losses[0]
    start = from_wan(wan, lora_rank=3).state_dict()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == set(mark_trained(model, "released"))


def test_a_shared_uv_branch_starts_as_wan_on_one_more_frame(wan):
    """In one block nothing of the last frame has reached the views yet, so that Wan's own attention, which lets all
    frames see each other, agrees with ours on the last frame."""
    one = randomise(WanTransformer3DModel(**TINY | {"num_layers": 1}), seed=4)
    model = from_wan(one, lora_rank=2, uv_branch="shared")
    assert not [name for name in model.state_dict() if "uv" in name]
    mv, _, timestep, text = inputs()
    uv = torch.randn(2, 12, 1, 4, 6)
    with torch.no_grad():
        found = model(mv, uv, timestep, text)[1]
        expected = one(torch.cat([mv, uv], 2)[:, :4], timestep.repeat_interleave(6, dim=1), text).sample[:, :, -1:]
    assert relative_error(found, expected) < 1e-5


def test_from_wan_takes_a_state_dict_and_a_directory(wan, tmp_path):
    model = from_wan(wan, lora_rank=2)
    assert states_equal(model, from_wan(wan.state_dict(), wan.config, lora_rank=2))
    wan.save_pretrained(tmp_path / "wan")
    assert states_equal(model, from_wan(tmp_path / "wan", lora_rank=2))
    with pytest.raises(UserError, match="from_wan"):
        SeqTexTransformer3DModel.from_pretrained(tmp_path / "wan")


def test_from_wan_refuses_other_weights_in_one_message(wan):
    state = wan.state_dict() | {"blocks.0.attn2.add_k_proj.weight": torch.zeros(24, 8)}
    del state["blocks.1.norm2.bias"]
    state["proj_out.weight"] = torch.zeros(1, 2)
    with pytest.raises(UserError) as caught:
        from_wan(state, wan.config)
    message = str(caught.value)
    assert "1 missing: blocks.1.norm2.bias [24]" in message
    assert "1 unexpected: blocks.0.attn2.add_k_proj.weight [24, 8]" in message
    assert "1 of another shape: proj_out.weight is [1, 2], not [16, 24]" in message


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("max_shard_size", ["5GB", "50KB"])
def test_save_and_load(tmp_path, lora_rank, max_shard_size):
    model = tiny_model(lora_rank=lora_rank, lora_alpha=7)
    save_model(model, tmp_path / "model", max_shard_size)
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    if max_shard_size == "5GB":
        assert files == ["config.json", WEIGHTS]
    else:
        assert f"{WEIGHTS}.index.json" in files
        assert sum("-of-" in name for name in files) >= 2
    loaded = SeqTexTransformer3DModel.from_pretrained(tmp_path / "model")
    assert states_equal(model, loaded)
    assert loaded.config["lora_rank"] == lora_rank
    assert torch.equal(model(*inputs())[1], loaded(*inputs())[1])
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture(scope="module")
def golden(golden_dir, tmp_path_factory):
    """The reference as a released model directory, with its tensors."""
    path, directory = golden_dir / "seqtex_tiny_a.safetensors", tmp_path_factory.mktemp("golden")
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    config |= {"_class_name": RELEASED_CLASS, "_diffusers_version": "0.33.1", "image_dim": None}
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("state.")}, directory / WEIGHTS)
    return directory, tensors


def golden_error(model, tensors):
    with torch.no_grad():
        found = model(*(tensors[f"in.{name}"] for name in ("mv", "uv", "timestep", "text")))
    return max(relative_error(output, tensors[f"out.{name}"]) for output, name in zip(found, ("mv", "uv"), strict=True))


def test_the_reference_survives_every_layout(golden, tmp_path):
    directory, tensors = golden
    model = SeqTexTransformer3DModel.from_pretrained(directory)
    assert (model.config["lora_rank"], model.config["lora_alpha"]) == (128, 64)
    assert golden_error(model, tensors) < 1e-5
    save_model(model, tmp_path / "ours", "100KB")
    export_released(model, tmp_path / "separate", max_shard_size="100KB")
    export_released(model, tmp_path / "merged", lora="merged")
    for layout, rank in (("ours", 128), ("separate", 128), ("merged", 0)):
        again = SeqTexTransformer3DModel.from_pretrained(tmp_path / layout)
        assert again.config["lora_rank"] == rank
        assert golden_error(again, tensors) < 1e-5, layout
        assert states_equal(model, again) == (rank > 0)
    for layout in ("separate", "merged"):
        config = json.loads((tmp_path / layout / "config.json").read_text())
        assert config["_class_name"] == RELEASED_CLASS
        assert config.keys().isdisjoint({"lora_rank", "lora_alpha", "geometry_attention", "uv_branch"})
    assert load_file(tmp_path / "merged" / WEIGHTS).keys() == {
        name.replace("base_layer.", "") for name in model.state_dict() if "lora_" not in name
    }


@pytest.mark.parametrize("lora", ["separate", "merged"])
def test_another_rank_and_alpha_are_exported_as_the_released_ones(tmp_path, lora):
    model = tiny_model(lora_rank=3, lora_alpha=5)
    export_released(model, tmp_path / "out", lora=lora)
    again = SeqTexTransformer3DModel.from_pretrained(tmp_path / "out")
    assert again.config["lora_rank"] == (128 if lora == "separate" else 0)
    with torch.no_grad():
        for found, expected in zip(again(*inputs()), model(*inputs()), strict=True):
            assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("changes", [{"uv_branch": "shared"}, {"geometry_attention": "mv"}, {"lora_rank": 129}])
def test_what_the_released_code_cannot_hold_is_not_exported(tmp_path, changes):
    with pytest.raises(UserError, match=r"released layout has .*; export it (merged|in the layout of a checkpoint)"):
        export_released(tiny_model(**changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_lora_alone_is_an_adapter_that_peft_puts_onto_wan(wan, tmp_path):
    from peft import PeftModel

    model = from_wan(wan, lora_rank=3, lora_alpha=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    save_lora(model, tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    mv, uv, timestep, text = inputs()
    timestep[:, :3] = timestep[:, :1]
    twin = WanTransformer3DModel(**TINY)
    twin.load_state_dict(wan.state_dict())
    with torch.no_grad():
        before = twin(mv[:, :4], timestep[:, 0], text).sample
        expected = PeftModel.from_pretrained(twin, tmp_path / "adapter")(mv[:, :4], timestep[:, 0], text).sample
        found = model(mv, uv, timestep, text)[0]
    assert relative_error(found, expected) < 1e-5
    assert relative_error(before, expected) > 1e-2
    other = from_wan(wan, lora_rank=3, lora_alpha=10, seed=8)
    load_lora(other, tmp_path / "adapter")
    with torch.no_grad():
        assert relative_error(other(mv, uv, timestep, text)[0], expected) < 1e-5
    with pytest.raises(UserError, match="of another shape"):
        load_lora(from_wan(wan, lora_rank=2), tmp_path / "adapter")
    with pytest.raises(UserError, match="no LoRA"):
        save_lora(from_wan(wan, lora_rank=0), tmp_path / "other")


def test_lora_alone_is_an_adapter_that_plain_diffusers_loads(wan, tmp_path):
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

    model = from_wan(wan, lora_rank=3, lora_alpha=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    save_lora(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as tensors:
        names = set(tensors.keys())
        metadata = json.loads(tensors.metadata()["lora_adapter_metadata"])
    own = {name for name in model.state_dict() if ".lora_" in name}
    assert names == {f"transformer.{name.replace('.default.', '.')}" for name in own}
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (3, 5)

    mv, uv, timestep, text = inputs()
    timestep[:, :3] = timestep[:, :1]
    plain, direct, in_pipeline = (WanTransformer3DModel(**TINY) for _ in range(3))
    for twin in (plain, direct, in_pipeline):
        twin.load_state_dict(wan.state_dict())
    direct.load_lora_adapter(tmp_path / "adapter", use_safetensors=True)
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=1),
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=in_pipeline,
    )  # fmt: skip
    pipeline.load_lora_weights(tmp_path / "adapter")
    with torch.no_grad():
        found = model(mv, uv, timestep, text)[0]
        before, *adapted = (twin(mv[:, :4], timestep[:, 0], text).sample for twin in (plain, direct, in_pipeline))
    ours = merged_state(model.state_dict(), 5 / 3)
    for twin, sample in zip((direct, in_pipeline), adapted, strict=True):
        merged = merged_weights(twin)
        assert max((merged[name] - ours[name]).abs().max().item() for name in merged) == 0.0
        assert relative_error(found, sample) < 1e-5
    assert torch.equal(*adapted) and relative_error(before, adapted[0]) > 1e-2
    pipeline.unload_lora_weights()
    with torch.no_grad():
        assert torch.equal(in_pipeline(mv[:, :4], timestep[:, 0], text).sample, before)


def merged_weights(model):
    """Weights of an adapted Wan transformer with its LoRA in them, as `merged_state` makes them."""
    (name,) = model.peft_config
    adapter = model.peft_config[name]
    state = {key.replace(f".{name}.", ".default."): tensor for key, tensor in model.state_dict().items()}
    return merged_state(state, adapter.lora_alpha / adapter.r)


def test_saving_replaces_a_model_but_nothing_else(tmp_path):
    first, second = tiny_model(), randomise(tiny_model(), seed=9)
    save_model(first, tmp_path / "model")
    save_model(second, tmp_path / "model")
    assert states_equal(SeqTexTransformer3DModel.from_pretrained(tmp_path / "model"), second)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="not a model directory"):
        save_model(first, tmp_path / "photos")


def test_what_a_kill_left_is_cleared_away_and_nothing_is_lost(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "model")
    for name in (".model.half", ".model.between", ".models"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".models"}
    (tmp_path / ".model.between").mkdir()
    (tmp_path / "model").rename(tmp_path / ".model.between" / "old")
    remove_leftovers(tmp_path / "model")
    assert states_equal(SeqTexTransformer3DModel.from_pretrained(tmp_path / "model"), model)
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".models"}


def test_a_merged_model_is_not_saved(tmp_path):
    model = tiny_model(lora_rank=2)
    merge_lora(model)
    with pytest.raises(ValueError, match="unmerge_lora"):
        save_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_low_precision_keeps_sensitive_parts_in_float32(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "model")
    half = SeqTexTransformer3DModel.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in half.named_parameters()}
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    parts = ("time_embedder", "scale_shift_table", "norm2", "normuv2", "norm_q", "norm_k")
    assert wide == {name for name in dtypes if any(part in name for part in parts)}
    with torch.no_grad():
        for found, expected in zip(half(*inputs()), model(*inputs()), strict=True):
            assert (found.float() - expected).norm() / expected.norm() < 0.1


def corrupt(directory, case):
    weights, config = directory / WEIGHTS, directory / "config.json"
    if case == "misfit":
        state = load_file(weights)
        state["extra"] = state.pop("proj_out.bias")
        save_file(state, weights)
    elif case == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif case == "pickle only":
        weights.rename(directory / "diffusion_pytorch_model.bin")
    elif case == "escaping shard":
        (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": f"../{WEIGHTS}"}}))
    elif case == "bad index":
        (directory / f"{WEIGHTS}.index.json").write_text("[]")
    elif case == "bad config":
        config.write_text("{")
    else:
        config.unlink()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("misfit", r"(?s)1 missing: proj_out.bias \[16\].*1 unexpected: extra \[16\]"),
        ("truncated", "cannot be read"),
        ("pickle only", "safetensors only"),
        ("escaping shard", r"\.\./.*not a file in the model directory"),
        ("bad index", "not a shard index"),
        ("bad config", "config.json is not valid JSON"),
        ("no config", "has no config.json"),
    ],
)
def test_damaged_models_are_refused_by_name(tmp_path, case, message):
    directory = tmp_path / "model"
    save_model(tiny_model(num_layers=1), directory)
    (tmp_path / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes())
    corrupt(directory, case)
    with pytest.raises(UserError, match=message) as caught:
        SeqTexTransformer3DModel.from_pretrained(directory)
    assert str(directory) in str(caught.value)


def test_from_pretrained_takes_the_arguments_of_diffusers(tmp_path):
    model = tiny_model(lora_rank=2)
    export_released(model, tmp_path / "pipeline" / "transformer")
    model.save_pretrained(tmp_path / "pipeline" / "ours", variant="fp16", max_shard_size="50KB")
    assert (tmp_path / "pipeline" / "ours" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    options = {"use_safetensors": True, "low_cpu_mem_usage": True, "local_files_only": True, "token": None,
               "cache_dir": tmp_path, "revision": None}  # fmt: skip
    load = SeqTexTransformer3DModel.from_pretrained
    expected = model(*inputs())
    for subfolder, variant, device_map in (
        ("transformer", None, "cpu"),
        ("ours", "fp16", "auto"),
        ("ours", "fp16", {"": "cpu"}),
    ):
        found = load(tmp_path / "pipeline", subfolder=subfolder, variant=variant, device_map=device_map, **options)
        assert max(relative_error(a, b) for a, b in zip(found(*inputs()), expected, strict=True)) < 1e-5
    narrow = load(tmp_path / "pipeline", subfolder="ours", variant="fp16", torch_dtype=torch.bfloat16)
    wide = {name for name, p in narrow.named_parameters() if p.dtype is torch.float32}
    assert any("norm2" in name for name in wide) and all("to_q" not in name for name in wide)
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.fp16.safetensors is not a file"):
        load(tmp_path / "pipeline", subfolder="transformer", variant="fp16")
    with pytest.raises(UserError, match="pickled weights are never read"):
        load(tmp_path / "pipeline", subfolder="ours", use_safetensors=False)
    with pytest.raises(UserError, match="the hub does not give"):
        load("owner/model", local_files_only=True, cache_dir=tmp_path / "empty")


def test_a_path_that_is_neither_directory_nor_repository_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        SeqTexTransformer3DModel.from_pretrained(tmp_path / "absent")


def test_released_training_split_has_the_released_sizes(golden_dir):
    reference = json.loads((golden_dir / "seqtex_1p3b_keys.json").read_text())
    with torch.device("meta"):
        model = SeqTexTransformer3DModel(**reference["config"], lora_rank=128)
    trained = mark_trained(model, "released")

    def millions(*words):
        return sum(p.numel() for name, p in trained.items() if any(word in name for word in words)) / 1e6

    lora, uv, geometry = millions("lora_"), millions("uv"), millions("geometry_caster", "pos_patch", "norm_patch")
    assert (round(lora, 1), round(uv, 1), round(geometry, 1)) == (127.8, 1109.8, 71.0)
    assert sum(parameter.numel() for parameter in trained.values()) / 1e6 == pytest.approx(lora + uv + geometry)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 2727.6


def test_training_split_freezes_the_rest_and_can_be_undone():
    model = tiny_model(lora_rank=2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    released = mark_trained(model, "released")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(released)
    assert "blocks.0.attn1.to_q.base_layer.weight" not in released
    assert "patch_embedding.weight" not in released
    mv_flow, uv_flow = model(*inputs())
    (mv_flow.square().mean() + uv_flow.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in released), name
    assert set(mark_trained(model, "all")) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("lora", ["separate", "merged", "alone"])
def test_the_weights_command(tmp_path, capsys, lora):
    model = tiny_model(lora_rank=2)
    save_model(model, tmp_path / "run")
    words = ["weights", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--lora", lora, "--log", "json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "out")
    if lora == "alone":
        twin = tiny_model(lora_rank=2)
        load_lora(twin, tmp_path / "out")
        assert states_equal(twin, model)
    else:
        again = SeqTexTransformer3DModel.from_pretrained(tmp_path / "out")
        with torch.no_grad():
            assert relative_error(again(*inputs())[0], model(*inputs())[0]) < 1e-5
    assert main(["weights", str(tmp_path / "run"), "--out", str(tmp_path / "run")]) == 2
    assert main(["weights", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs; the repository owner/model is the server's `folder`."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        files = {f"/owner/model/resolve/{COMMIT}/{file.name}": file for file in self.server.folder.iterdir()}
        if path.startswith("/api/models/owner/model/revision/"):
            siblings = [{"rfilename": file.name} for file in files.values()]
            content = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith("/api/models/owner/model/tree/"):
            content = json.dumps(
                [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files.values()]
            ).encode()
        elif path in files:
            content = files[path].read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


COMMIT = "0123456789" * 4

PUSHED = """
import sys, torch
from safetensors.torch import save_file
from training.model.seqtex import SeqTexTransformer3DModel
model = SeqTexTransformer3DModel.from_pretrained(sys.argv[1])
model.push_to_hub("studio/seqtex-tiny", private=True)
again = SeqTexTransformer3DModel.from_pretrained("studio/seqtex-tiny")
assert again.config["lora_alpha"] == 7
save_file({name: x.contiguous() for name, x in again.state_dict().items()}, sys.argv[2])
"""


def test_a_model_is_pushed_to_the_hub_and_comes_back(tmp_path):
    model = tiny_model(lora_rank=2, lora_alpha=7)
    save_model(model, tmp_path / "model")
    with serving(Server()) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
                            "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(REPO)}  # fmt: skip
        command = [sys.executable, "-c", PUSHED, str(tmp_path / "model"), str(tmp_path / "back.safetensors")]
        ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, ended.stderr
        repo = hub.repos["studio/seqtex-tiny"]
    assert repo.private and {"README.md", "config.json", "diffusion_pytorch_model.safetensors"} <= repo.files.keys()
    assert TOKEN in hub.tokens
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_a_hub_repository_is_downloaded_as_it_stands(tmp_path, monkeypatch):
    from huggingface_hub import constants

    model = tiny_model(lora_rank=2)
    export_released(model, tmp_path / "repository", max_shard_size="50KB")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder = tmp_path / "repository"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        loaded = SeqTexTransformer3DModel.from_pretrained("owner/model")
        with pytest.raises(UserError, match="the hub does not give"):
            SeqTexTransformer3DModel.from_pretrained("owner/other")
        server.shutdown()
    with torch.no_grad():
        assert relative_error(loaded(*inputs())[1], model(*inputs())[1]) < 1e-5
