"""Backbones: small random models that diffusers saves in each layout give diffusers' own output, and their VAEs its own
latents; what cannot be started from is refused by name."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from schemas.errors import UserError
from seqtex.cli.main import main
from training.config import PRESETS, LatentConfig
from training.cost import estimate
from training.data.mixture import ImageSizes
from training.diffusion.encoders import WanCodec, codec_layout
from training.model.backbones.find import KNOWN, vae_layout
from training.model.backbones.wan import WAN21_1P3B, WAN21_14B, WAN22_5B
from training.model.init import ModelConfig, make_model, with_architecture
from training.model.weights import save_model
from training.module import TextureModule

WAN21_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WAN22_VAE = WAN21_VAE | {
    "decoder_base_dim": 8, "z_dim": 48, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
    "scale_factor_spatial": 16, "latents_mean": [0.1 * i for i in range(48)],
    "latents_std": [1.0 + i for i in range(48)],
}  # fmt: skip
SMALL = {
    WAN21_1P3B: ({"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40}, WAN21_VAE),
    WAN21_14B: ({"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 12, "ffn_dim": 72}, WAN21_VAE),
    WAN22_5B: ({"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 12, "ffn_dim": 64}, WAN22_VAE),
}
"""Fewer and narrower layers; channels, patches and VAE structure are the backbone's."""
BACKBONES = pytest.mark.parametrize("backbone", SMALL, ids=lambda each: each.hub.partition("/")[2])


def randomise(module, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return module


def pipeline(backbone, path, max_shard_size="5GB"):
    """A repository of the backbone's layout, as diffusers saves it."""
    sizes, vae = SMALL[backbone]
    channels = backbone.vae.channels
    transformer = randomise(
        WanTransformer3DModel(**sizes, in_channels=channels, out_channels=channels, text_dim=8, freq_dim=8)
    )
    transformer.save_pretrained(path / "transformer", max_shard_size=max_shard_size)
    AutoencoderKLWan(**vae).save_pretrained(path / "vae")
    return transformer.eval()


@BACKBONES
@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
def test_view_output_at_initialisation_is_diffusers_own(backbone, tmp_path, max_shard_size):
    wan = pipeline(backbone, tmp_path, max_shard_size)
    shards = list((tmp_path / "transformer").glob("*.safetensors"))
    assert (len(shards) > 1) == (max_shard_size != "5GB")
    cfg = with_architecture(ModelConfig(start_path=str(tmp_path), lora_rank=3))
    assert cfg.latent_channels == backbone.vae.channels
    model = make_model(cfg, seed=0)
    torch.manual_seed(1)
    channels = backbone.vae.channels
    mv, uv = torch.randn(2, 3 * channels, 3, 4, 6), torch.randn(2, 3 * channels, 1, 8, 8)
    timestep, text = torch.rand(2, 4) * 1000, torch.randn(2, 5, 8)
    with torch.no_grad():
        found, of_uv = model(mv, uv, timestep, text)
        expected = wan(mv[:, :channels], timestep[:, :3].repeat_interleave(2 * 3, dim=1), text).sample
    assert of_uv.shape == (2, channels, 1, 8, 8)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5


@BACKBONES
def test_latents_are_the_vaes_own_and_its_layout_is_known_before_it_is_loaded(backbone, tmp_path):
    pipeline(backbone, tmp_path)
    codec, images = WanCodec(tmp_path), torch.rand(1, 2, 32, 48, 3)
    layout, known = codec_layout("wan", str(tmp_path)), codec_layout("wan", backbone.hub)
    assert codec.layout == layout == replace(known, parameters=layout.parameters)
    assert layout.parameters == sum(p.numel() for p in codec.vae.parameters())
    assert vae_layout(str(tmp_path / "vae")) == layout
    latents, config = codec.encode(images), codec.vae.config
    cell = known.downscale
    assert latents.shape == (1, known.channels, 2, 32 // cell, 48 // cell)
    with torch.no_grad():
        frame = codec.vae.encode(images[0, 1].permute(2, 0, 1)[None, :, None]).latent_dist.mode()[0, :, 0]
        decoded = codec.decode(latents)
        by_hand = codec.vae.decode(frame[None, :, None]).sample[0, :, 0].permute(1, 2, 0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(latents[0, :, 1], (frame - mean) / std)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded[0, 1], by_hand, atol=1e-5, rtol=1e-4)


@BACKBONES
def test_sizes_on_record_are_those_of_the_architecture(backbone):
    """The number of parameters of diffusers' own models of these sizes, on the meta device."""
    billions = {WAN21_1P3B: 1.42, WAN21_14B: 14.29, WAN22_5B: 5.00}
    full = {} if backbone.vae.downscale == 8 else WAN22_VAE | {
        "base_dim": 160, "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2
    }  # fmt: skip
    with torch.device("meta"):
        transformer, vae = WanTransformer3DModel(**backbone.transformer), AutoencoderKLWan(**full)
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e9, 2) == billions[backbone]
    assert sum(p.numel() for p in vae.parameters()) == backbone.vae.parameters


def test_dry_runs_know_every_backbone(capsys, tmp_path):
    found = {}
    for name in ("full", "full-14b", "full-5b"):
        assert main(["train", "--preset", name, "--dry_run", "--json", "--data.directory", str(tmp_path)]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert {name: (row["tokens"]["mv"], row["tokens"]["uv"]) for name, row in found.items()} == {
        "full": (4096, 4096), "full-14b": (4096, 4096), "full-5b": (1024, 1024),
    }  # fmt: skip
    views = {name: row["parameters"]["view branch"]["all"] for name, row in found.items()}
    assert views["full"] < views["full-5b"] < views["full-14b"]
    teraflop = {name: row["flops_per_sample"]["img2tex"]["forward"] / 1e12 for name, row in found.items()}
    assert teraflop["full-5b"] < teraflop["full"] < teraflop["full-14b"] / 5


def test_a_preset_has_the_sizes_of_its_weights():
    for name in ("full", "full-14b", "full-5b"):
        cfg = PRESETS[name]
        assert with_architecture(cfg.model) == cfg.model
        assert cfg.latents.codec_path == cfg.model.start_path
        sizes = ImageSizes(views=4, view_resolution=512, uv_resolution=1024)
        assert estimate(cfg, sizes).tokens.mv == 4 * (512 // KNOWN[cfg.model.start_path].vae.token) ** 2


def test_a_vae_with_other_latents_than_the_model_is_refused_before_training(capsys, tmp_path):
    words = ["train", "--preset", "full", "--dry_run", "--data.directory", str(tmp_path)]
    assert main([*words, "--model.start_path", WAN22_5B.hub]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "latents of codec wan have 16 channels at 1/8, the model takes 48" in message and "full-5b" in message
    pipeline(WAN22_5B, tmp_path)
    with pytest.raises(UserError, match="codec dct have 16 channels at 1/8, the model takes 48"):
        TextureModule(ModelConfig(start_path=str(tmp_path), lora_rank=3), LatentConfig(codec="dct"))


def test_two_experts_are_refused_by_name_with_the_reason(tmp_path):
    for path in ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"):
        with pytest.raises(UserError, match=rf"{path}.*two experts.*noise levels.*Wan2.1-T2V-14B"):
            with_architecture(ModelConfig(start_path=path))
    pipeline(WAN21_14B, tmp_path)
    (tmp_path / "transformer_2").mkdir()
    for refuse in (with_architecture, lambda cfg: make_model(cfg, 0)):
        with pytest.raises(UserError, match="two experts"):
            refuse(ModelConfig(start_path=str(tmp_path)))


def test_ranks_without_weights_make_the_model_that_rank_0_loads(tmp_path):
    pipeline(WAN21_1P3B, tmp_path / "wan")
    wan = with_architecture(ModelConfig(start_path=str(tmp_path / "wan"), lora_rank=3))
    save_model(make_model(wan, seed=0), tmp_path / "seqtex")
    added = {"view_hint": True, "condition_images": ("mask",), "maps": ("base_color", "emissive")}
    for start, path in (("wan", "wan"), ("seqtex", "seqtex"), ("scratch", "")):
        cfg = with_architecture(replace(wan, start=start, start_path=str(tmp_path / path), **added))
        empty, whole = make_model(cfg, 0, empty=True), make_model(cfg, 0)
        described = [
            {name: (tensor.shape, tensor.requires_grad) for name, tensor in model.named_parameters()}
            for model in (empty, whole)
        ]
        assert described[0] == described[1] and all(parameter.is_meta for parameter in empty.parameters())
        assert {"hint_patch_embedding.weight", "uv_map_embeddings.emissive"} < described[0].keys()
