"""Networks whose features images are compared by. Weights come from a path or the hub; any callable of this shape may
take their place."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from schemas.errors import UsageError, UserError

CHUNK = 16
"""Images through a network at a time."""


@runtime_checkable
class ImageFeatures(Protocol):
    """8-bit sRGB images to one feature vector each."""

    name: str

    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]: ...


def load_features(spec: str, device: str) -> ImageFeatures:
    """`clip:PATH` or `inception:FILE`."""
    kind, _, path = spec.partition(":")
    if kind == "clip" and path:
        return ClipFeatures(path, device)
    if kind == "inception" and path:
        return InceptionFeatures(Path(path), device)
    raise UsageError(f"--features {spec}: give clip:PATH or inception:FILE")


class ClipFeatures:
    """Projected image embeddings of a CLIP model (transformers), for CLIP-FID (Kynkaanniemi 2023) and CMMD."""

    name = "clip"

    def __init__(self, path: str, device: str = "cpu") -> None:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection  # seconds to import

        try:
            self.processor = CLIPImageProcessor.from_pretrained(path)
            model = CLIPVisionModelWithProjection.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: holds no CLIP vision model ({error}); give its directory or hub name") from error
        self.device = device
        self.model: torch.nn.Module = model.eval().requires_grad_(False)
        self.model.to(device)

    @torch.no_grad()
    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        found = []
        for start in range(0, len(images), CHUNK):
            inputs = self.processor(images=list(images[start : start + CHUNK]), return_tensors="pt")
            embeds = self.model(inputs["pixel_values"].to(self.device)).image_embeds
            found.append(embeds.float().cpu().numpy())
        return np.concatenate(found)


class InceptionFeatures:
    """2048 pooled features of the Inception that FID is defined by, through torch-fidelity."""

    name = "inception"

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            remedy = "in this program's folder, pip install -c constraints.txt '.[metrics]'"
            raise UserError(f"inception features need torch-fidelity; {remedy}") from error
        if not weights.is_file():
            raise UserError(f"{weights}: no such file; give pt_inception-2015-12-05 weights as torch-fidelity has them")
        extractor = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
        self.device = device
        self.model: torch.nn.Module = extractor.eval().to(device)

    @torch.no_grad()
    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        found = []
        for start in range(0, len(images), CHUNK):
            batch = torch.from_numpy(images[start : start + CHUNK]).permute(0, 3, 1, 2).to(self.device)
            found.append(self.model(batch)[0].float().cpu().numpy())
        return np.concatenate(found)
