"""Answer of an MTL's materials to light: Pr, Pm, Ke, their maps, normal maps and heights.

Read: Pr, Pm, Ke, map_Pr, map_Pm, map_Ke, norm (map_Kn), map_Bump (bump), with -s, -o, -clamp, -imfchan and -bm. A map
replaces the value, as a colour's does. Ke is sRGB-encoded, as three.js has it; beyond 1 it is so many times as strong.
Normal maps are glTF's: green points up. What cannot be read is noted and counts as absent: colour and shape are sound
without it.
"""

import contextlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from geometry.texture import srgb_to_linear
from pipeline.mesh_io.images import CHANNELS, TextureStore, alike
from pipeline.mesh_io.parts import Part
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders
from pipeline.mesh_io.wavefront.mtl import MapUse, ObjMaterial, is_number, read_map
from schemas.ledger import NoteKind, Reason
from schemas.mesh import Shading, Texture, Wrap

_MAPS = ("map_pr", "map_pm", "map_ke", "norm", "map_bump")
_UNIT_LENGTH, _MOST, _BLUE = 0.15, 0.95, 16.0
"""A picture is a normal map where so large a share of its vectors is so nearly of length 1, and blue exceeds red by so
many levels on average (ours)."""


def all_maps(material: ObjMaterial) -> list[MapUse]:
    """The maps that a material names, whether they are read or not."""
    return [*(use for use in (material.image, material.mask) if use), *_physical_maps(material).values()]


def _physical_maps(material: ObjMaterial) -> dict[str, MapUse]:
    found = {}
    for keyword in (keyword for keyword in _MAPS if keyword in material.physical):
        with contextlib.suppress(AssetError):
            found[keyword] = read_map(material.physical[keyword], Notes())
    return found


@dataclass(slots=True)
class PhysicalReader:
    """The shadings of an OBJ's materials, and the textures that these need, as they are read."""

    part: Part
    """Has the file's own coordinates as `map_uv`; they become those of each map."""
    folders: Folders
    store: TextureStore[Path]
    notes: Notes
    first: int
    """Number of the first texture."""
    textures: list[Texture] = field(default_factory=list)
    names: dict[Path, str] = field(default_factory=dict)
    """The keyword of each file that was looked for, for messages."""
    _slots: dict[tuple[object, ...], int] = field(default_factory=dict)

    def read(self, number: int, material: ObjMaterial) -> Shading:
        """The shading of material `number` of the part."""
        assert self.part.map_uv is not None
        vertices = np.unique(self.part.faces[self.part.face_material == number])
        mapped = bool(np.isfinite(self.part.map_uv[0, vertices]).all())
        maps = {keyword: use for keyword in _MAPS if (use := self._map(material, keyword, mapped))}
        rough, metal = self._aligned(maps.get("map_pr"), maps.get("map_pm"))
        normal, glow = maps.get("norm") or maps.get("map_bump"), maps.get("map_ke")
        for layer, use in enumerate((rough or metal, normal, glow)):
            if use is not None:
                self.part.map_uv[layer, vertices] *= use.scale
                self.part.map_uv[layer, vertices] += use.offset
        texture, scale = (None, 1.0) if normal is None else self._normals(normal, is_height="norm" not in maps)
        red, green, blue = (1.0, 1.0, 1.0) if glow else self._emissive(material)
        return Shading(
            metallic=1.0 if metal else min(max(self._number(material, "pm", 0.0), 0.0), 1.0),
            roughness=1.0 if rough else min(max(self._number(material, "pr", material.roughness), 0.0), 1.0),
            metallic_roughness=self._metallic_roughness(rough, metal),
            emissive=(red, green, blue),
            emissive_texture=None if glow is None else self._slot(glow, self._pixels(glow)),
            normal_map=texture,
            normal_scale=scale,
        )

    def _map(self, material: ObjMaterial, keyword: str, mapped: bool) -> MapUse | None:
        """A map whose image can be had, on a surface that has coordinates."""
        statement = material.physical.get(keyword)
        if statement is None:
            return None
        with self.notes.in_place_of_an_error(NoteKind.DATA_IGNORED):
            if not mapped:
                raise AssetError(Reason.INVALID_STRUCTURE, f"{statement.where}: {keyword} on faces without vt")
            use = read_map(statement, self.notes).found(self.folders)
            assert use.path is not None
            self.names.setdefault(use.path, keyword)
            self._pixels(use)
            return use
        return None

    def _aligned(self, rough: MapUse | None, metal: MapUse | None) -> tuple[MapUse | None, MapUse | None]:
        """Both maps, of which one texture is made; the second is noted and left out where it lies elsewhere."""
        if rough and metal and _place(rough) != _place(metal):
            detail = f"{metal.where}: map_Pm has another -s, -o or -clamp than map_Pr: ignored"
            self.notes.add(NoteKind.DATA_IGNORED, detail)
            return rough, None
        return rough, metal

    def _metallic_roughness(self, rough: MapUse | None, metal: MapUse | None) -> int | None:
        """A texture with roughness in G and metallic in B. One file for both has these channels already."""
        use = rough or metal
        if use is None:
            return None
        packed = rough is not None and metal is not None and rough.path == metal.path
        planes = [
            self._plane(rough) if rough else np.full((1, 1), 255, np.uint8),
            self._plane(metal, "b" if packed else "g") if metal else np.full((1, 1), 255, np.uint8),
        ]
        green, blue = alike(planes)
        image = np.dstack([np.full_like(green, 255), green, blue, np.full_like(green, 255)])
        return self._slot(use, image, metal and metal.path, metal and metal.channel)

    def _normals(self, use: MapUse, is_height: bool) -> tuple[int, float]:
        """A normal map and its scale. -bm is a factor of the slope of either kind of picture."""
        pixels = self._pixels(use)
        if is_height and _is_normal_map(pixels):
            self.notes.add(NoteKind.VALUE_CORRECTED, f"{use.where}: map_Bump is a normal map: read as one")
            is_height = False
        if not is_height:
            return self._slot(use, pixels), use.strength
        return self._slot(use, normals_of(self._plane(use), use.strength, use.clamp), use.strength), 1.0

    def _slot(self, use: MapUse, image: UInt8[np.ndarray, "height width 4"], *rest: object) -> int:
        key = (self.names[use.path] if use.path else "", use.path, use.channel, use.clamp, *rest)
        if key not in self._slots:
            wrap = Wrap.CLAMP if use.clamp else Wrap.REPEAT
            self.textures.append(Texture(image=image, wrap_u=wrap, wrap_v=wrap))
            self._slots[key] = self.first + len(self.textures) - 1
        return self._slots[key]

    def _pixels(self, use: MapUse) -> UInt8[np.ndarray, "height width 4"]:
        assert use.path is not None
        return self.store.pixels(use.path)

    def _plane(self, use: MapUse, default: str = "g") -> UInt8[np.ndarray, "height width"]:
        return self._pixels(use)[..., CHANNELS.get(use.channel, CHANNELS[default])]

    def _number(self, material: ObjMaterial, keyword: str, default: float) -> float:
        found = self._numbers(material, keyword)
        return found[0] if found else default

    def _emissive(self, material: ObjMaterial) -> tuple[float, float, float]:
        """Linear light of Ke, one number (grey) to three."""
        found = [max(number, 0.0) for number in self._numbers(material, "ke")[:3]]
        if not found:
            return 0.0, 0.0, 0.0
        strength = max(*found, 1.0)
        linear = srgb_to_linear(np.array(found, np.float32) / np.float32(strength)) * strength
        red, green, blue = (*linear.tolist(), *linear.tolist()[:1] * 2)[:3]
        return red, green, blue

    def _numbers(self, material: ObjMaterial, keyword: str) -> list[float]:
        """The numbers behind a keyword; none where there is something else."""
        statement = material.physical.get(keyword)
        words = statement.argument.split("#", 1)[0].split() if statement else []
        if statement and not (words and all(is_number(word) and math.isfinite(float(word)) for word in words)):
            detail = f"{statement.where}: {keyword.capitalize()} {statement.argument[:40]!r} is ignored"
            self.notes.add(NoteKind.DATA_IGNORED, detail)
            return []
        return [float(word) for word in words]


def without_elsewhere(shading: Shading, material: ObjMaterial) -> Shading:
    """A shading without textures that lie on other coordinates than the base colour's (`schemas.mesh.Shading`)."""
    base = material.image or material.mask
    here = (base.scale, base.offset) if base else ((1.0, 1.0), (0.0, 0.0))
    away = {keyword for keyword, use in _physical_maps(material).items() if (use.scale, use.offset) != here}
    return replace(
        shading,
        metallic_roughness=None if away & {"map_pr", "map_pm"} else shading.metallic_roughness,
        emissive_texture=None if "map_ke" in away else shading.emissive_texture,
        normal_map=None if away & {"norm", "map_bump"} else shading.normal_map,
    )


def _place(use: MapUse) -> tuple[object, ...]:
    return use.scale, use.offset, use.clamp


def _is_normal_map(pixels: UInt8[np.ndarray, "height width 4"]) -> bool:
    """Return whether a picture holds unit vectors that look out of it: some exporters write normal maps as map_Bump."""
    vectors: Float64[np.ndarray, "height width 3"] = pixels[..., :3] / 127.5 - 1.0
    unit = np.abs(np.linalg.norm(vectors, axis=2) - 1.0) < _UNIT_LENGTH
    blue = float((pixels[..., 2].astype(float) - pixels[..., 0]).mean())
    return float((unit & (vectors[..., 2] > 0)).mean()) > _MOST and blue > _BLUE


def normals_of(
    heights: UInt8[np.ndarray, "height width"], strength: float, clamp: bool
) -> UInt8[np.ndarray, "height width 4"]:
    """The normal map of a picture of heights, by central differences: black to white is a rise of `strength` texels
    (ours: MTL states no unit, and this one depends on no size)."""
    padded = np.pad(heights / 255.0 * strength, 1, mode="edge" if clamp else "wrap")
    right, up = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[:-2, 1:-1] - padded[2:, 1:-1]) / 2
    vectors = np.dstack([-right, -up, np.ones_like(right)])
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    opaque = np.full((*heights.shape, 1), 255, np.uint8)
    return np.concatenate([np.rint((vectors + 1.0) * 127.5).astype(np.uint8), opaque], axis=2)
