"""Augment samples. What is done is drawn once per sample from its number in the stream, the same for all its images."""

import io
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from schemas.codec import cameras_json
from schemas.errors import UsageError, require_between
from schemas.sample import Cameras, MaterialViews, TextureSample, Views

BACKGROUNDS = {"black": 0, "grey": 128, "white": 255}
STREAM = 7
"""Keeps these draws apart from others by (seed, sample number)."""
CAPTION_STREAM = 13
"""The same for captions."""
Arrays = TypeVar("Arrays", Views, Cameras, MaterialViews)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Probabilities per sample; all off by default (all ours). Changes to the given view concern only the image that
    enters as condition, never what is to be generated."""

    rotate_views: float = 0.0
    """Shift the order of the views, cameras and geometry with them, by a random number: any view may be the first."""
    background: Literal["black", "grey", "white", "random"] = "black"
    """Background of the given view (released code: black, as in `seqtex texture`)."""
    lit: float = 0.0
    """Use the lit view as the given one, if the sample has lit views."""
    jpeg: float = 0.0
    """Compress the given view as JPEG."""
    jpeg_quality: tuple[int, int] = (40, 95)
    blur: float = 0.0
    """Blur the given view."""
    blur_sigma: tuple[float, float] = (0.3, 1.5)
    """Pixels of a view 512 pixels wide."""
    exposure: float = 0.0
    """Brighten or darken the given view in linear light."""
    exposure_stops: float = 0.5
    """Largest change, either way."""
    captions: bool = False
    """Draw the caption among the levels that a sample has (`seqtex build --objaverse.caption_levels`)."""

    def __post_init__(self) -> None:
        for name in ("rotate_views", "lit", "jpeg", "blur", "exposure"):
            require_between(f"augment.{name}", getattr(self, name), 0, 1)
        require_between("augment.exposure_stops", self.exposure_stops, 0, 8)
        for name, lowest, highest in (("jpeg_quality", 1, 100), ("blur_sigma", 0, 64)):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise UsageError(f"augment.{name} is {low}, {high}; give two of {lowest} to {highest}, smaller first")

    @property
    def condition(self) -> bool:
        """Return whether the given view may differ from the true one."""
        return self.background != "black" or max(self.lit, self.jpeg, self.blur, self.exposure) > 0

    @property
    def renews(self) -> bool:
        """Return whether a sample may have another given view or caption every time."""
        return self.condition or self.captions


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Changes drawn for one sample; None: unchanged."""

    shift: int
    """View i becomes view (i + shift) modulo their number."""
    background: tuple[int, int, int]
    """sRGB."""
    lit: bool
    jpeg_quality: int | None
    blur_sigma: float | None
    stops: float | None


def draw_augmentation(cfg: AugmentConfig, views: int, seed: int, sample: int) -> Augmentation:
    """Draw the changes of a sample. Switching one augmentation on or off changes no other's draws."""
    rng = np.random.default_rng((seed, sample, STREAM))
    rotated, lit, jpeg, blurred, exposed = rng.random(5) < (cfg.rotate_views, cfg.lit, cfg.jpeg, cfg.blur, cfg.exposure)
    shift, quality, sigma, stops, red, green, blue = rng.random(7)
    low, high = cfg.jpeg_quality
    grey, random = BACKGROUNDS.get(cfg.background, 0), cfg.background == "random"
    return Augmentation(
        shift=int(shift * views) if rotated else 0,
        background=(int(256 * red), int(256 * green), int(256 * blue)) if random else (grey, grey, grey),
        lit=bool(lit),
        jpeg_quality=low + int(quality * (high - low + 1)) if jpeg else None,
        blur_sigma=cfg.blur_sigma[0] + float(sigma) * (cfg.blur_sigma[1] - cfg.blur_sigma[0]) if blurred else None,
        stops=float(2 * stops - 1) * cfg.exposure_stops if exposed else None,
    )


def rotate_views(sample: TextureSample, shift: int) -> TextureSample:
    """Change the order of a sample's views: view i becomes view (i + shift) modulo their number."""
    if shift == 0:
        return sample
    rotated = rolled(sample.views, shift)
    cameras = rolled(sample.cameras, shift)
    return replace(sample, views=rotated, cameras=cameras, meta=sample.meta | {"cameras": cameras_json(cameras)})


def draw_caption(cfg: AugmentConfig, sample: TextureSample, seed: int, number: int) -> TextureSample:
    """Give a sample the caption of one of its levels if `cfg` asks for it, each that has a text with the same
    probability; one without levels keeps its own."""
    levels = sample.meta.get("captions") if cfg.captions else None
    texts = [text for text in levels.values() if isinstance(text, str) and text] if isinstance(levels, dict) else []
    if not texts:
        return sample
    chosen = np.random.default_rng((seed, number, CAPTION_STREAM)).integers(len(texts))
    return replace(sample, meta=sample.meta | {"caption": texts[chosen]})


def rolled(arrays: Arrays, shift: int) -> Arrays:
    """Roll each array along its first axis, those of materials too."""
    found = {f.name: value for f in fields(arrays) if (value := getattr(arrays, f.name)) is not None}
    return replace(
        arrays,
        **{
            name: rolled(value, shift) if isinstance(value, MaterialViews) else np.roll(value, shift, axis=0)
            for name, value in found.items()
        },
    )


def condition_images(views: Views, drawn: Augmentation) -> UInt8[np.ndarray, "views height width 3"]:
    """Return the views as they enter if they are given: as pictures that users might have."""
    images = views.lit if drawn.lit and views.lit is not None else views.rgb
    if drawn.stops is not None:
        images = _exposure(drawn.stops)[images]
    if any(drawn.background):
        behind = 255 - views.coverage.astype(np.uint16)[..., None]
        images = (images + (behind * np.array(drawn.background, np.uint16) + 127) // 255).clip(max=255).astype(np.uint8)
    if drawn.blur_sigma is None and drawn.jpeg_quality is None:
        return images
    return np.stack([_degraded(image, drawn) for image in images])


def _exposure(stops: float) -> UInt8[np.ndarray, "256"]:
    """Return a table from sRGB byte to sRGB byte after so many stops in linear light."""
    from geometry.texture import linear_to_srgb, srgb_to_linear  # compiles kernels, which training else does without

    linear = srgb_to_linear(np.arange(256, dtype=np.float32) / 255) * np.float32(2**stops)
    return np.rint(255 * linear_to_srgb(linear.clip(0, 1))).astype(np.uint8)


def _degraded(image: UInt8[np.ndarray, "height width 3"], drawn: Augmentation) -> UInt8[np.ndarray, "height width 3"]:
    picture = Image.fromarray(image)
    if drawn.blur_sigma is not None:
        picture = picture.filter(ImageFilter.GaussianBlur(drawn.blur_sigma * picture.width / 512))
    if drawn.jpeg_quality is not None:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=drawn.jpeg_quality)
        picture = Image.open(data)
    return np.array(picture)
