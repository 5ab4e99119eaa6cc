"""LPIPS (Zhang 2018) with AlexNet, over covered pixels. The backbone's weights come from torchvision's file
(`alexnet-owt-7be5be79.pth`); the linear weights on top are those that torchmetrics ships. torchvision itself is not
needed."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torchmetrics
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from schemas.errors import UserError

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Divisors of colours in [-1, 1], before the backbone (lpips 0.1)."""
CHANNELS = (64, 192, 384, 256, 256)
EPSILON = 1e-10
SMALLEST = 32
"""Pixels a side that the backbone needs."""


@runtime_checkable
class PerceptualDistance(Protocol):
    """Measure how different two pictures look over the pixels of a mask; 0 for equal ones."""

    def __call__(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        truth: UInt8[np.ndarray, "height width 3"],
        mask: Bool[np.ndarray, "height width"],
    ) -> float: ...


class AlexFeatures(nn.Module):
    """AlexNet's convolutions, with torchvision's parameter names; gives what follows each of its five ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool,
            nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), pool,
            nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, image: Float[Tensor, "batch 3 h w"]) -> list[Float[Tensor, "batch _ _ _"]]:
        found = []
        for layer in self.features:
            image = layer(image)
            if isinstance(layer, nn.ReLU):
                found.append(image)
        return found


class Lpips:
    """LPIPS 0.1, "alex"."""

    def __init__(self, backbone: Path, device: str = "cpu", linear: Path | None = None) -> None:
        """backbone: torchvision's AlexNet weights. linear: those of the lpips package; None: those in torchmetrics.
        Raises UserError where a file is none of that."""
        linear = linear or Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
        weights = {name: value for name, value in read_weights(backbone).items() if name.startswith("features.")}
        self.device = device
        self.network = AlexFeatures()
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{backbone}: no AlexNet weights of torchvision; give alexnet-owt-7be5be79.pth") from error
        self.network.eval().requires_grad_(False).to(device)
        found = read_weights(linear)
        names = [f"lin{layer}.model.1.weight" for layer in range(len(CHANNELS))]
        if [found[name].shape if name in found else None for name in names] != [(1, c, 1, 1) for c in CHANNELS]:
            raise UserError(f"{linear}: no linear weights of LPIPS; give the lpips package's alex.pth")
        self.linear = [found[name].to(device) for name in names]

    @torch.no_grad()
    def __call__(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        truth: UInt8[np.ndarray, "height width 3"],
        mask: Bool[np.ndarray, "height width"],
    ) -> float:
        """Mean over the mask of the distance at every pixel; outside the mask both count as black, so that only what is
        covered differs. Raises ValueError where the mask is empty or the picture too small."""
        if not mask.any() or min(mask.shape) < SMALLEST:
            raise ValueError(f"LPIPS over {int(mask.sum())} pixels of {mask.shape}")
        first, second = (self._features(picture * mask[..., None]) for picture in (image, truth))
        total = torch.zeros(1, 1, *mask.shape, device=self.device)
        for a, b, weight in zip(first, second, self.linear, strict=True):
            step = nn.functional.conv2d((unit(a) - unit(b)).square(), weight)
            total += nn.functional.interpolate(step, mask.shape, mode="bilinear", align_corners=False)
        return float(total[0, 0].cpu().numpy()[mask].mean())

    def _features(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Tensor]:
        colors = torch.from_numpy(picture).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        shift, scale = (torch.tensor(each, device=self.device).view(1, 3, 1, 1) for each in (SHIFT, SCALE))
        return self.network((colors - shift) / scale)


def unit(features: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    """Scale features to length 1 at every place."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Raises UserError where the file is missing or holds anything but tensors by name. Nothing is unpickled."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged part of the file leads to
        raise UserError(f"{path}: cannot be read as weights ({error})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds no weights by name")
    return weights
