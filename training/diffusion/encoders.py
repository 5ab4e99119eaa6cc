"""Images to latents and prompts to features: the Wan VAE and UMT5, and embedded stand-ins that need no download."""

import html
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from schemas.errors import UserError, explained
from training.model.backbones.backbone import LatentLayout
from training.model.backbones.find import layout_of, vae_layout
from training.model.files import part_directory

MIN_LOG_VARIANCE = -30.0
"""Bound at which diffusers clamps the log-variance of a posterior."""
MAX_CACHED_PROMPTS = 4096
PIXELS_AT_ONCE = 1024 * 1024
"""Pixels of the frames that a GPU encodes together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """Distribution of the latents of images: a normal one for every element, normalised."""

    mean: Float[Tensor, "b z f lat_h lat_w"]
    log_variance: Float[Tensor, "b z f lat_h lat_w"]

    def draw(self, generator: torch.Generator) -> Float[Tensor, "b z f lat_h lat_w"]:
        """Draw latents; equal generators give equal ones on every device."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + torch.exp(self.log_variance / 2) * noise


class LatentCodec(ABC):
    """A codec of single frames: images [b, f, h, w, 3] in [0, 1] to normalised latents [b, z, f, h / d, w / d], of
    z channels and d pixels a side of one, as its layout says (16 at 1/8, or 48 at 1/16).

    Position and normal maps in [-1, 1] enter as (x + 1) / 2. Decoded images are not clamped.
    """

    name: str
    layout: LatentLayout

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.layout.channels

    @property
    def downscale(self) -> int:
        """Pixels a side of one latent pixel."""
        return self.layout.downscale

    def check_size(self, images: Float[Tensor, "b f h w 3"]) -> None:
        """Raise ValueError if images are no whole latent pixels."""
        height, width = images.shape[2:4]
        if height % self.downscale or width % self.downscale:
            raise ValueError(
                f"images are {height} x {width}; both sides must be multiples of {self.downscale}: resize or pad them"
            )

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move the weights, if there are any."""

    @abstractmethod
    def posterior(self, images: Float[Tensor, "b f h w 3"]) -> Posterior:
        """Return the distribution of the latents of images."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b f h w 3"]) -> Float[Tensor, "b z f lat_h lat_w"]:
        """Return the mean of the posterior."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b z f lat_h lat_w"]) -> Float[Tensor, "b f h w 3"]:
        """Return the images of latents."""


class TextEncoder(ABC):
    """An encoder of prompts: features [b, length, text_dim], zero after each prompt's last token."""

    name: str
    text_dim: int

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move the weights, if there are any."""

    @abstractmethod
    def encode(self, prompts: list[str]) -> Float[Tensor, "b l d"]:
        """Return the features of prompts."""


# Rec. 601 full range (JPEG): RGB to Y, Cb, Cr, the last two centred on 0.
RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# (row frequency, column frequency) in JPEG's zig-zag order.
ZIGZAG = ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0))
KEPT = (10, 3, 3)
"""Numbers of coefficients kept of Y, Cb and Cr."""
BLOCK = 8
"""Pixels a side of one transformed block."""


def _basis_blocks(colors: Float[np.ndarray, "3 rgb"]) -> Float[np.ndarray, "16 192"]:
    """Return blocks (row, column, rgb) of the kept waves of the orthonormal DCT-II, in their components' colours."""
    places = np.arange(BLOCK)
    waves = np.cos(np.pi * np.outer(places, places + 0.5) / BLOCK) * np.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    blocks = [
        np.einsum("r,c,k->rck", waves[row], waves[column], color).ravel()
        for color, count in zip(colors, KEPT, strict=True)
        for row, column in ZIGZAG[:count]
    ]
    return np.stack(blocks)


class DctCodec(LatentCodec):
    """The lowest 8 x 8 DCT coefficients of an image as its latent: 16 channels at 1/8 resolution, with no weights.

    Channels 0-9 are Y, 10-12 Cb, 13-15 Cr, each (coefficient - MEAN) / STD. Linear and differentiable; dropped
    coefficients decode as zero. Real 1024 x 1024 textures come back at 27 to 38 dB.
    """

    name = "dct"
    layout = LatentLayout(channels=sum(KEPT), downscale=BLOCK)

    MEAN = (3.4, *(0.0,) * 15)
    STD = (1.2,) * 16
    """MEAN of brightness over colour, position and normal maps of 31 real and 24 procedural assets. STD is one for all
    channels, two thirds of what brightness has there: an error then weighs in the loss about as it does in the image
    (1.0 dB more after 400 equal steps than with unit variance in every channel)."""

    def __init__(self) -> None:
        rgb_to_ycbcr = np.array(RGB_TO_YCBCR)
        mean, std = np.array(self.MEAN), np.array(self.STD)
        analysis, synthesis = _basis_blocks(rgb_to_ycbcr), _basis_blocks(np.linalg.inv(rgb_to_ycbcr).T)
        self._encode_weight = torch.from_numpy(analysis / std[:, None])
        self._encode_bias = torch.from_numpy(-mean / std)
        self._decode_weight = torch.from_numpy(np.ascontiguousarray((synthesis * std[:, None]).T))
        self._decode_bias = torch.from_numpy(mean @ synthesis)

    def to(self, device: torch.device | str) -> None:
        """Do nothing: the matrix follows its input."""

    def posterior(self, images: Float[Tensor, "b f h w 3"]) -> Posterior:
        """Return a posterior with the smallest variance that diffusers' have."""
        mean = self.encode(images)
        return Posterior(mean=mean, log_variance=torch.full_like(mean, MIN_LOG_VARIANCE))

    def encode(self, images: Float[Tensor, "b f h w 3"]) -> Float[Tensor, "b z f lat_h lat_w"]:
        self.check_size(images)
        blocks = rearrange(images, "b f (h p) (w q) c -> b f h w (p q c)", p=BLOCK, q=BLOCK)
        latents = F.linear(blocks, self._encode_weight.to(images), self._encode_bias.to(images))
        return rearrange(latents, "b f h w z -> b z f h w")

    def decode(self, latents: Float[Tensor, "b z f lat_h lat_w"]) -> Float[Tensor, "b f h w 3"]:
        blocks = rearrange(latents, "b z f h w -> b f h w z")
        blocks = F.linear(blocks, self._decode_weight.to(latents), self._decode_bias.to(latents))
        return rearrange(blocks, "b f h w (p q c) -> b f (h p) (w q) c", p=BLOCK, q=BLOCK)


def frames_at_once(device: torch.device, pixels: int) -> int:
    """Return how many frames of so many pixels a VAE encodes together: on a GPU, which one small frame leaves idle, as
    many as take the memory of one UV map of 1024^2."""
    return max(1, PIXELS_AT_ONCE // pixels) if device.type == "cuda" else 1


class WanCodec(LatentCodec):
    """A Wan VAE of diffusers (2.1's, or that of 2.2-TI2V-5B), each frame encoded as a first frame (no compression in
    time), mean of the posterior.

    Images in [0, 1] enter as they are, not rescaled to [-1, 1]: so the released weights were trained.
    """

    name = "wan"

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tiling: bool = False,
    ) -> None:
        """path: a directory or hub repository with the VAE at its root or in its folder "vae". tiling: images above
        256 pixels in overlapping tiles, blended: a fraction of the memory, small differences."""
        from diffusers import AutoencoderKLWan  # seconds to import, and the embedded codec does without

        self.vae = AutoencoderKLWan.from_pretrained(part_directory(path, "vae"), torch_dtype=dtype).to(device)
        self.vae.requires_grad_(False).eval()
        if tiling:
            self.vae.enable_tiling()
        self.layout = layout_of(self.vae.config, sum(p.numel() for p in self.vae.parameters()))
        statistics = (self.vae.config.latents_mean, self.vae.config.latents_std)
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in statistics)

    def to(self, device: torch.device | str) -> None:
        self.vae.to(device)

    def posterior(self, images: Float[Tensor, "b f h w 3"]) -> Posterior:
        self.check_size(images)
        frames = rearrange(images, "b f h w c -> (b f) c 1 h w").to(self.vae.dtype)
        # A few frames at a time bound the memory at any batch size.
        parts = frames.split(frames_at_once(frames.device, images.shape[2] * images.shape[3]))
        found = [self.vae.encode(part).latent_dist for part in parts]
        mean, std = (values.to(images.device, non_blocking=True) for values in (self._mean, self._std))
        means = (torch.cat([each.mean for each in found]).float() - mean) / std
        log_variances = torch.cat([each.logvar for each in found]).float() - 2 * std.log()
        mean, spread = (rearrange(part, "(b f) z 1 h w -> b z f h w", b=len(images)) for part in (means, log_variances))
        return Posterior(mean=mean, log_variance=spread)

    def encode(self, images: Float[Tensor, "b f h w 3"]) -> Float[Tensor, "b z f lat_h lat_w"]:
        return self.posterior(images).mean

    def decode(self, latents: Float[Tensor, "b z f lat_h lat_w"]) -> Float[Tensor, "b f h w 3"]:
        mean, std = self._mean.to(latents.device), self._std.to(latents.device)
        frames = rearrange(latents, "b z f h w -> (b f) z 1 h w") * std + mean
        images = [self.vae.decode(frame).sample for frame in frames.to(self.vae.dtype).split(1)]
        return rearrange(torch.cat(images).float(), "(b f) c 1 h w -> b f h w c", b=latents.shape[0])


class NullTextEncoder(TextEncoder):
    """Zeros for every prompt. Equal tokens attend like one, so length 1 conditions exactly as Wan's 512 would."""

    name = "none"

    def __init__(self, text_dim: int, length: int = 1) -> None:
        self.text_dim = text_dim
        self.length = length

    def to(self, device: torch.device | str) -> None:
        """Do nothing: there are no weights."""

    def encode(self, prompts: list[str]) -> Float[Tensor, "b l d"]:
        return torch.zeros(len(prompts), self.length, self.text_dim)


class Umt5Encoder(TextEncoder):
    """Wan's text encoder: UMT5 features of up to `length` tokens, zeros after the prompt's end.

    Features of prompts already seen are remembered (on the CPU, without the zeros).
    """

    name = "umt5"

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        length: int = 512,
    ) -> None:
        """path: a directory or hub repository, both parts at its root or in "text_encoder" and "tokenizer"."""
        from transformers import AutoTokenizer, UMT5EncoderModel  # seconds to import, and only prompts need it

        with explained(
            path, "no text encoder can be read there", "give Wan's folder, or set latents.text_encoder none"
        ):
            encoder = UMT5EncoderModel.from_pretrained(part_directory(path, "text_encoder"), dtype=dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(part_directory(path, "tokenizer"))
        self.encoder: torch.nn.Module = encoder.requires_grad_(False).eval()
        self.encoder.to(device)
        self.device = torch.device(device)
        self.text_dim = encoder.config.d_model
        self.length = length
        self._features = lru_cache(MAX_CACHED_PROMPTS)(self._encode_one)

    def to(self, device: torch.device | str) -> None:
        self.encoder.to(device)
        self.device = torch.device(device)

    def encode(self, prompts: list[str]) -> Float[Tensor, "b l d"]:
        features = torch.zeros(len(prompts), self.length, self.text_dim, device=self.device)
        for row, prompt in zip(features, prompts, strict=True):
            known = self._features(_clean(prompt))
            row[: len(known)] = known.to(row)
        return features

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> Float[Tensor, "n d"]:
        tokens = self.tokenizer(
            [prompt], padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.device)
        features = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        return features[: int(tokens.attention_mask.sum())].cpu()


def _clean(prompt: str) -> str:
    """Resolve character entities and make runs of white space one, as Wan's pipeline does."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def codec_layout(name: str, path: str) -> LatentLayout:
    """Return the latents of a codec, before it is made. Arguments and errors: see `make_codec`."""
    return DctCodec.layout if name == "dct" else vae_layout(path)


def check_channels(layout: LatentLayout, name: str, wanted: int) -> None:
    """Raise UserError if a codec has other latents than the model takes."""
    if layout.channels != wanted:
        raise UserError(
            f"latents of codec {name} have {layout.channels} channels at 1/{layout.downscale}, the model takes "
            f"{wanted}: set latents.codec_path to the VAE of the weights that it starts from, as presets full-14b "
            "and full-5b do"
        )


def make_codec(
    name: str, path: str, device: str, *, dtype: torch.dtype = torch.float32, tiling: bool = False
) -> LatentCodec:
    """Make the codec of a name. path: directory or hub repository of a Wan VAE."""
    if name == "dct":
        return DctCodec()
    if name == "wan":
        return WanCodec(path, device, dtype, tiling)
    raise UserError(f"{name!r} is no latent codec; there are dct and wan")


def make_text_encoder(
    name: str, path: str, text_dim: int, device: str, *, dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """Make the text encoder of a name. text_dim: features that the model takes, for `none`."""
    if name == "none":
        return NullTextEncoder(text_dim)
    if name == "umt5":
        return Umt5Encoder(path, device, dtype)
    raise UserError(f"{name!r} is no text encoder; there are none and umt5")
