"""Checkpoints for tests of what comes after training."""

from pathlib import Path

import torch
from torch import Tensor

from schemas.sample import TextureSample
from training.data.batch import encode_batch, to_model
from training.diffusion.encoders import DctCodec
from training.loop.checkpoints import Card, latent_statistics, save_checkpoint
from training.maps import RELEASED_MAPS
from training.model.seqtex import SeqTexTransformer3DModel

VIEW, UV = 64, 128
"""Pixels and texels a side."""


def write_checkpoint(
    directory: Path, text_encoder: str = "none", image_dropout: float = 0.0, maps: tuple[str, ...] | None = None
) -> Path:
    """Untrained weights that answer to text, geometry and images alike."""
    torch.manual_seed(0)
    model = SeqTexTransformer3DModel(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        ffn_dim=32,
        text_dim=8,
        freq_dim=16,
        maps=maps,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mean, std = latent_statistics(DctCodec())
    card = Card(
        preset="test", codec="dct", views=4, view_resolution=VIEW, uv_resolution=UV, shift=5.0, steps=0,
        latent_mean=mean, latent_std=std, text_encoder=text_encoder, image_dropout=image_dropout,
    )  # fmt: skip
    save_checkpoint(directory, model, card)
    return directory


class TrueFlow:
    """Output of a network that knows the answer."""

    def __init__(self, sample: TextureSample, maps: tuple[str, ...] = RELEASED_MAPS) -> None:
        self.latents = encode_batch(to_model(sample, maps=maps), DctCodec())

    def __call__(self, mv: Tensor, uv: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        assert self.latents.uv is not None
        sigma, views = (timestep / 1000)[:, None, :, None, None], mv.shape[2]
        return (
            (mv[:, :16] - self.latents.mv.rgb) / sigma[:, :, :views],
            (uv[:, :16] - self.latents.uv.rgb) / sigma[:, :, views:],
        )
