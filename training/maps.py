"""Maps that the UV branch generates: the base colour, and materials as further frames beside it. Each is an image for
the same codec, packed as glTF packs its textures, so that what is generated can be used as a texture as it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from geometry.image_metrics import capped_psnr
from schemas.errors import UsageError, UserError
from schemas.images import with_empty_red
from schemas.sample import MaterialMaps, TextureSample, UvMaps

BASE_COLOR = "base_color"
"""The map that every model generates, the first frame of its UV branch."""
RELEASED_MAPS = (BASE_COLOR,)
"""Maps of the released model."""
Texels = UInt8[np.ndarray, "height width 3"]
"""A packed map, in image orientation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialMap:
    """A map beside the base colour."""

    pack: Callable[[MaterialMaps], Texels]
    """Makes the image that the codec encodes."""
    figures: Mapping[str, Sequence[int]]
    """Channels of the image that are compared with the truth, by the name of what they hold."""


MATERIAL_MAPS = {
    "metallic_roughness": MaterialMap(
        pack=lambda maps: with_empty_red(maps.metallic_roughness), figures={"roughness": (1,), "metallic": (2,)}
    ),
    "normal_tangent": MaterialMap(
        pack=lambda maps: np.rint(127.5 * (maps.normal_tangent + 1)).astype(np.uint8),
        figures={"normal_tangent": (0, 1, 2)},
    ),
    "emissive": MaterialMap(pack=lambda maps: maps.emissive, figures={"emissive": (0, 1, 2)}),
}
"""By their names in `model.maps`: (0, roughness, metallic), linear; normals of the mesh's tangent space from [-1, 1] to
[0, 255]; emitted light, sRGB, without its strength."""


def check_maps(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of generated maps. Raises UsageError if the base colour is not the first, or one is unknown or
    named twice."""
    known = [BASE_COLOR, *MATERIAL_MAPS]
    if [*names[:1]] != [BASE_COLOR] or len(set(names)) < len(names) or not set(names) <= set(known):
        raise UsageError(f"model.maps is {list(names)}; give {BASE_COLOR} first, then any of {', '.join(known[1:])}")
    return tuple(names)


def packed(sample: TextureSample, names: Sequence[str]) -> list[Texels]:
    """Return the maps of a textured sample. Raises UserError if it has no materials."""
    uv = sample.uv
    assert uv is not None
    if len(names) > 1 and uv.materials is None:
        raise without_materials(f"sample {sample.uid}", names)
    return [uv.rgb if uv.materials is None or name == BASE_COLOR else MATERIAL_MAPS[name].pack(uv.materials)
            for name in names]  # fmt: skip


def without_materials(place: str, names: Sequence[str]) -> UserError:
    """Make the error of samples or a dataset without the maps that a model generates."""
    return UserError(
        f"{place} has no materials, and the model generates {', '.join(names[1:])}; build the dataset with "
        "--materials true, or set model.maps '[base_color]'"
    )


def without_noise(name: str, image: Texels) -> Texels:
    """Return a generated map with zeros in channels that hold nothing."""
    used = [channel for channels in MATERIAL_MAPS[name].figures.values() for channel in channels]
    return image * np.isin(np.arange(3), used).astype(np.uint8)


def map_psnr(made: Mapping[str, Texels], uv: UvMaps) -> dict[str, float]:
    """Return `metallic_psnr`, `roughness_psnr`, ... of generated material maps in dB over covered texels; nothing where
    the truth has no materials."""
    found = {}
    for name, image in made.items():
        if uv.materials is None:
            break
        truth = MATERIAL_MAPS[name].pack(uv.materials)
        for figure, channels in MATERIAL_MAPS[name].figures.items():
            found[f"{figure}_psnr"] = capped_psnr(image[..., channels], truth[..., channels], uv.mask)
    return found
