"""Codecs and text encoders: round trips on real textures, and agreement with scipy, diffusers and transformers."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.fft import dctn

from schemas.errors import UserError
from training.diffusion.encoders import (
    ZIGZAG,
    DctCodec,
    NullTextEncoder,
    Umt5Encoder,
    WanCodec,
    check_channels,
    frames_at_once,
)
from training.loop.checkpoints import load_checkpoint
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import export_released

REPO = Path(__file__).resolve().parents[3]
COMMIT = "0123456789" * 4
REAL_TEXTURES_DB = {
    "egyptian_cat_statue_webp": 27.4,
    "steampunk_robot_base_color_3mat": 28.4,
    "lumberjack_skinned_pbr": 29.9,
    "fox_skinned": 30.0,
    "exploding_barrel": 31.2,
    "water_bottle_pbr": 37.9,
}
"""Round trips of the prototype on 1024 x 1024 base-colour textures."""


def smooth_images(batch=2, frames=3, height=32, width=48, seed=0):
    """Low-frequency colour waves in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phase = torch.rand(batch, frames, 1, 1, 3, generator=generator) * 6
    return 0.5 + 0.45 * torch.sin(phase + 3 * x[..., None] + 2 * y[..., None])


def psnr(first, second):
    return -10 * torch.log10((first - second).square().mean()).item()


def base_color_texture(path):
    """The first base-colour texture of a GLB as [1, 1, 1024, 1024, 3] in [0, 1]."""
    for geometry in trimesh.load_scene(path).geometry.values():
        image = getattr(geometry.visual.material, "baseColorTexture", None)
        if image is not None:
            pixels = np.asarray(image.convert("RGB").resize((1024, 1024), Image.Resampling.LANCZOS))
            return torch.from_numpy(pixels / np.float32(255))[None, None]
    raise AssertionError(f"no texture in {path}")


@pytest.mark.assets
@pytest.mark.parametrize("name", REAL_TEXTURES_DB)
def test_real_textures_survive_the_dct_codec(assets_dir, name):
    codec, texture = DctCodec(), base_color_texture(assets_dir / f"{name}.glb")
    latents = codec.encode(texture)
    assert latents.shape == (1, 16, 1, 128, 128)
    assert psnr(codec.decode(latents).clamp(0, 1), texture) == pytest.approx(REAL_TEXTURES_DB[name], abs=0.5)


def test_dct_latents_are_the_coefficients_of_jpegs_components():
    codec, images = DctCodec(), torch.rand(1, 2, 16, 24, 3, dtype=torch.float64)
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (codec.MEAN, codec.STD))
    coefficients = (codec.encode(images) * std + mean)[0, :, 1, 1, 2]
    block = images[0, 1, 8:16, 16:24].numpy()
    red, green, blue = block[..., 0], block[..., 1], block[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    parts = (luma, (blue - luma) / 1.772, (red - luma) / 1.402)
    expected = [
        dctn(part, norm="ortho")[index]
        for part, count in zip(parts, (10, 3, 3), strict=True)
        for index in ZIGZAG[:count]
    ]
    np.testing.assert_allclose(coefficients.numpy(), expected, atol=2e-5)


def test_dct_round_trips():
    codec = DctCodec()
    smooth, latents = smooth_images(height=64, width=96), torch.randn(2, 16, 3, 4, 6, dtype=torch.float64)
    assert psnr(codec.decode(codec.encode(smooth)), smooth) > 45
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents)
    color = torch.tensor([0.2, 0.9, 0.4]).expand(1, 1, 8, 8, 3)
    torch.testing.assert_close(codec.decode(codec.encode(color)), color)


def test_dct_keeps_orientation_and_frames_apart():
    codec, images = DctCodec(), torch.zeros(1, 3, 16, 32, 3)
    images[0, 1, :8, 24:] = torch.tensor([1.0, 0.5, 0.0])
    empty = codec.encode(torch.zeros(1, 3, 16, 32, 3))
    changed = (codec.encode(images) != empty).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 0, 3]]
    torch.testing.assert_close(codec.decode(codec.encode(images)), images, atol=1e-5, rtol=0)


def test_dct_is_differentiable():
    codec = DctCodec()
    images = torch.rand(1, 1, 8, 8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(codec.encode, images)
    assert torch.autograd.gradcheck(codec.decode, torch.randn(1, 16, 1, 1, 1, dtype=torch.float64, requires_grad=True))


def test_equal_errors_in_dct_latents_are_equal_errors_in_brightness():
    codec = DctCodec()
    each = torch.eye(16).view(16, 16, 1, 1, 1)
    energy = (codec.decode(each) - codec.decode(torch.zeros_like(each))).square().sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(energy[:10], energy[:1].expand(10))
    assert (energy[10:] / energy[0] < 4).all()
    assert (energy[10:] / energy[0] > 0.25).all()


@pytest.mark.assets
def test_dct_latents_of_real_textures_have_the_scale_of_noise(assets_dir):
    """Brightness is the strongest channel; finer waves are weaker, as in every natural image."""
    latents = [DctCodec().encode(base_color_texture(assets_dir / f"{name}.glb")) for name in REAL_TEXTURES_DB]
    deviation = torch.cat(latents).transpose(0, 1).flatten(1).std(dim=1)
    assert 0.5 < deviation[0] < 3
    assert deviation[1:10].max() < deviation[0] / 3


def test_sizes_that_are_no_multiple_of_8_are_refused():
    with pytest.raises(ValueError, match="12 x 16"):
        DctCodec().encode(torch.rand(1, 1, 12, 16, 3))


@pytest.fixture(scope="module")
def vae_dir(tmp_path_factory):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    path = tmp_path_factory.mktemp("wan")
    vae.save_pretrained(path / "vae")
    return path


def test_wan_codec_encodes_each_frame_alone_as_the_vae_does(vae_dir):
    codec, images = WanCodec(vae_dir), smooth_images(batch=2, frames=3, height=16, width=24)
    latents = codec.encode(images)
    assert latents.shape == (2, 16, 3, 2, 3)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (codec.vae.config.latents_mean, codec.vae.config.latents_std)
    )
    frame = codec.vae.encode(images[1, 2].permute(2, 0, 1)[None, :, None]).latent_dist.mode()[0, :, 0]
    torch.testing.assert_close(latents[1, :, 2], (frame - mean) / std)
    torch.testing.assert_close(codec.encode(images[1:, 2:]), latents[1:, :, 2:])
    torch.testing.assert_close(WanCodec(vae_dir / "vae").encode(images), latents)
    assert torch.equal(codec.encode(images), latents), "the posterior's mean, not a sample"

    decoded = codec.decode(latents)
    assert decoded.shape == images.shape
    by_hand = codec.vae.decode((latents[1, :, 2] * std + mean)[None, :, None]).sample[0, :, 0].permute(1, 2, 0)
    torch.testing.assert_close(decoded[1, 2], by_hand)


def test_a_gpu_encodes_several_frames_at_once(vae_dir, monkeypatch):
    """Four views of 512^2, as many as take the memory of one UV map; a CPU one, to the same result."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [frames_at_once(gpu, side * side) for side in (256, 512, 1024, 2048)] == [16, 4, 1, 1]
    assert frames_at_once(cpu, 256 * 256) == 1
    codec, images, batches = WanCodec(vae_dir), smooth_images(batch=2, frames=3, height=16, width=24), []
    alone, real = codec.encode(images), codec.vae.encode
    monkeypatch.setattr("training.diffusion.encoders.frames_at_once", lambda device, pixels: 4)
    monkeypatch.setattr(codec.vae, "encode", lambda frames: batches.append(len(frames)) or real(frames))
    torch.testing.assert_close(codec.encode(images), alone)
    assert batches == [4, 2]


def test_another_vae_than_the_models_is_refused(tmp_path):
    from diffusers import AutoencoderKLWan

    AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                     latents_mean=[0.0] * 4, latents_std=[1.0] * 4).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="4 channels at 1/8, the model takes 16"):
        check_channels(WanCodec(tmp_path).layout, "wan", 16)


def test_posteriors_are_normal_distributions_of_normalised_latents(vae_dir):
    codec, images = WanCodec(vae_dir), smooth_images(batch=1, frames=2, height=16, width=24)
    posterior = codec.posterior(images)
    torch.testing.assert_close(posterior.mean, codec.encode(images), rtol=0, atol=0)
    raw = codec.vae.encode(images[0, 1].permute(2, 0, 1)[None, :, None]).latent_dist
    std = torch.tensor(codec.vae.config.latents_std)[:, None, None]
    torch.testing.assert_close(posterior.log_variance[0, :, 1], 2 * torch.log(raw.std[0, :, 0] / std))
    draws = torch.stack([posterior.draw(torch.Generator().manual_seed(seed)) for seed in range(400)])
    assert torch.equal(draws[3], posterior.draw(torch.Generator().manual_seed(3)))
    standardised = (draws - posterior.mean) / torch.exp(posterior.log_variance / 2)
    assert abs(standardised.mean().item()) < 0.01  # of 400 x 192 draws: 3 standard errors
    assert standardised.std().item() == pytest.approx(1, abs=0.01)


def test_dct_latents_are_certain():
    images = smooth_images()
    posterior = DctCodec().posterior(images)
    assert torch.equal(posterior.mean, DctCodec().encode(images))
    torch.testing.assert_close(posterior.draw(torch.Generator().manual_seed(0)), posterior.mean, atol=2e-6, rtol=0)


def test_tiles_of_the_vae_meet_without_a_seam(vae_dir):
    """320 pixels take two tiles each way. The blend is not the whole image's, but near it."""
    images = smooth_images(batch=1, frames=1, height=320, width=320)
    whole, tiled = WanCodec(vae_dir), WanCodec(vae_dir, tiling=True)
    latents = whole.encode(images)
    assert tiled.encode(images).shape == latents.shape == (1, 16, 1, 40, 40)
    assert not torch.equal(tiled.encode(images), latents), "it ran in tiles"
    assert (tiled.encode(images) - latents).abs().mean() < 0.05 * latents.std()
    image = whole.decode(latents)
    assert (tiled.decode(latents) - image).abs().mean() < 0.05 * image.std()


def test_precision_of_the_weights_is_chosen_and_latents_stay_float32(vae_dir, umt5_dir):
    codec, images = WanCodec(vae_dir, dtype=torch.bfloat16), smooth_images(height=16, width=16)
    assert {p.dtype for p in codec.vae.parameters()} == {torch.bfloat16}
    latents = codec.encode(images)
    assert latents.dtype == codec.decode(latents).dtype == torch.float32
    exact = WanCodec(vae_dir).encode(images)
    assert (latents - exact).abs().max() < 0.05 * exact.std()
    assert Umt5Encoder(umt5_dir, dtype=torch.bfloat16, length=8).encode(["a fox"]).dtype == torch.float32


def test_null_text_is_zeros():
    features = NullTextEncoder(text_dim=6, length=3).encode(["a red fox", ""])
    assert features.shape == (2, 3, 6)
    assert not features.any()


WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "&"]


@pytest.fixture(scope="module")
def umt5_dir(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    path = tmp_path_factory.mktemp("umt5")
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path / "tokenizer")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    return path


def test_umt5_features_are_the_encoders_and_zero_after_the_prompt(umt5_dir):
    encoder = Umt5Encoder(umt5_dir, length=12)
    features = encoder.encode(["a red fox", "", "  a\n red   fox "])
    assert features.shape == (3, 12, 16)
    assert encoder.text_dim == 16
    alone = encoder.encoder(torch.tensor([[3, 4, 5, 1]])).last_hidden_state[0]
    torch.testing.assert_close(features[0, :4], alone)
    assert not features[0, 4:].any()
    assert features[1, 0].any()
    assert not features[1, 1:].any()
    assert torch.equal(features[0], features[2])
    assert torch.equal(encoder.encode(["fox &amp;"]), encoder.encode(["fox &"]))


def test_umt5_runs_once_per_prompt_and_cuts_long_ones(umt5_dir):
    encoder, calls = Umt5Encoder(umt5_dir, length=8), []
    encoder.encoder.register_forward_hook(lambda *_: calls.append(1))
    first = encoder.encode(["a fox", "a red fox", "a fox"])
    assert len(calls) == 2
    assert torch.equal(encoder.encode(["a fox"])[0], first[2])
    assert len(calls) == 2
    assert encoder.encode(["fox " * 50])[0].any(dim=1).all()


def cached(parts, cache, repository):
    """A repository in the hub's cache, as `hf download` leaves it: snapshots are links to blobs named by their hash."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "blobs").mkdir()
    for part in parts:
        folder = place / "snapshots" / COMMIT / part.name
        folder.mkdir(parents=True)
        for file in part.iterdir():
            blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copyfile(file, blob)
            (folder / file.name).symlink_to(os.path.relpath(blob, folder))


OFFLINE = """
import sys, torch
from training.diffusion.encoders import Umt5Encoder, WanCodec
torch.save([Umt5Encoder("Wan-AI/tiny", length=8).encode(["a red fox"]),
            WanCodec("Wan-AI/tiny").encode(torch.full((1, 1, 16, 16, 3), 0.5))], sys.argv[1])
from schemas.errors import UserError
try:
    WanCodec("Wan-AI/other")
except UserError as error:
    print(error)
"""


def test_a_cache_filled_by_hf_download_works_offline(vae_dir, umt5_dir, tmp_path):
    parts = (vae_dir / "vae", umt5_dir / "text_encoder", umt5_dir / "tokenizer")
    cached(parts, tmp_path / "hub", "Wan-AI/tiny")
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "found.pt")]
    ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    text, latents = torch.load(tmp_path / "found.pt", weights_only=True)
    assert torch.equal(text, Umt5Encoder(umt5_dir, length=8).encode(["a red fox"]))
    assert torch.equal(latents, WanCodec(vae_dir).encode(torch.full((1, 1, 16, 16, 3), 0.5)))
    assert "Wan-AI/other: no such directory, and the hub does not give a repository of that name" in ended.stdout


def test_released_weights_have_no_card_and_take_wans_parts(vae_dir, umt5_dir, tmp_path):
    torch.manual_seed(0)
    model = SeqTexTransformer3DModel(
        num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32, text_dim=16, freq_dim=16
    )
    export_released(model, tmp_path / "released")
    wan = tmp_path / "wan"
    for part in (vae_dir / "vae", umt5_dir / "text_encoder", umt5_dir / "tokenizer"):
        shutil.copytree(part, wan / part.name)
    found = load_checkpoint(tmp_path / "released", wan=str(wan))
    card = found.card
    assert (card.views, card.view_resolution, card.uv_resolution, card.shift) == (4, 512, 1024, 5.0)
    assert isinstance(found.codec, WanCodec) and isinstance(found.text_encoder, Umt5Encoder)
    assert found.text_encoder.encode(["a fox"]).shape == (1, 512, 16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "elsewhere")
