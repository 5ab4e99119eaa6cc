"""One asset from (seed, index): shape, pattern, kind, bytes."""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from geometry.mesh import corner_vectors
from pipeline.mesh_io.write_glb import Map, Material, Primitive, encode_glb
from pipeline.sources.procedural.atlas import Cell, Part, layout, paint, part
from pipeline.sources.procedural.finishes import FINISHES, draw_finishes, finished
from pipeline.sources.procedural.objects import BUILDERS, HARD_EDGED
from pipeline.sources.procedural.patches import Detail, Patch, cells, faceted, rotation_z
from pipeline.sources.procedural.patterns import Pattern, contrast, draw_pattern
from schemas.mesh import Attribution, MeshRef
from schemas.storage import write_file

TEXTURE_SIZE = 256
DENSE_FACES = 48_000
"""Beyond what the pipeline unwraps by default (40 000)."""


class Kind(StrEnum):
    """The purpose of a procedural asset."""

    TEXTURED = "textured"
    """One material, one texture, clean authored UVs."""
    MATERIALS = "materials"
    """Two materials and textures on one shared layout without overlap."""
    OVERLAPPING = "overlapping"
    """Two materials and textures, each with a layout of its own over the whole UV square."""
    VERTEX_COLORS = "vertex_colors"
    FLAT_COLORS = "flat_colors"
    """A material of one colour for each group of faces; no UVs, no texture."""
    DENSE = "dense"
    """Vertex colours on more faces than are unwrapped: fit for views only."""
    GREY = "grey"
    """Clean UVs, no texture: to be rejected."""
    TRUNCATED = "truncated"
    BAD_MAGIC = "bad_magic"
    NAN_POSITIONS = "nan_positions"
    INDEX_RANGE = "index_range"
    INVALID_JSON = "invalid_json"


BROKEN = (Kind.TRUNCATED, Kind.BAD_MAGIC, Kind.NAN_POSITIONS, Kind.INDEX_RANGE, Kind.INVALID_JSON)
_TURNS: tuple[tuple[Kind, ...], ...] = (
    (Kind.TEXTURED,),
    (Kind.TEXTURED,),
    (Kind.MATERIALS, Kind.OVERLAPPING),
    (Kind.TEXTURED,),
    (Kind.VERTEX_COLORS, Kind.FLAT_COLORS),
    (Kind.TEXTURED,),
    (Kind.DENSE,),
    (Kind.TEXTURED,),
    (Kind.GREY, Kind.TEXTURED),
    BROKEN,
)
"""Kinds for index % 10, taken in turn by index // 10."""


def kind_of(index: int) -> Kind:
    """The kind of an asset in the mixed source: a function of its index alone."""
    turn = _TURNS[index % len(_TURNS)]
    return turn[index // len(_TURNS) % len(turn)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """An asset before it becomes bytes, in the normalised frame (Z up, centred, largest side 2)."""

    noun: str
    kind: Kind
    patches: tuple[Patch, ...]
    pattern: Pattern
    second_pattern: Pattern
    """Pattern of all patches but the first, where there are two materials."""
    caption: str
    node: dict[str, Any]
    """Transform of the glTF node."""
    offset: Float[np.ndarray, "3"]
    scale: float
    """Asset position = normalised position (turned to Y up) * scale + offset, then the node's transform."""
    finishes: Mapping[str, str] = field(default_factory=dict)
    """The finish of each colour by name; empty: everything is rough and no metal."""


def _samples(
    patches: Sequence[Patch],
) -> tuple[Float[np.ndarray, "f 3"], Float[np.ndarray, "f 3"], Float[np.ndarray, " f"]]:
    """Centre, vertex-normal mean and area of every face."""
    centers, normals, areas = [], [], []
    for patch in patches:
        faces = cells(patch)
        corners = patch.positions.reshape(-1, 3)[faces]
        mean = patch.normals.reshape(-1, 3)[faces].mean(axis=1)
        centers.append(corners.mean(axis=1))
        normals.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
        areas.append(np.linalg.norm(corner_vectors(corners), axis=1) / 2)
    return np.concatenate(centers), np.concatenate(normals), np.concatenate(areas)


def normalised(patches: Sequence[Patch]) -> list[Patch]:
    """Bounding box centred at the origin, largest side 2."""
    points = np.concatenate([p.positions.reshape(-1, 3)[np.unique(cells(p))] for p in patches])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 2.0 / (high - low).max()
    return [Patch(positions=(p.positions - (low + high) / 2) * scale, normals=p.normals) for p in patches]


def _shape(noun: str, seed: Sequence[int], detail: float) -> list[Patch]:
    """The patches of an object; the same proportions whatever the detail."""
    rng = np.random.default_rng([*seed, 1])
    patches = BUILDERS[noun](rng, Detail(detail))
    turn = rotation_z(float(rng.uniform(-0.6, 0.6)))
    return normalised([p.turned(turn) for p in patches])


def caption_of(noun: str, pattern: Pattern, finishes: Mapping[str, str]) -> str:
    """Return a caption: "a striped vase in teal and orange", with finishes "in teal chrome and orange rubber"."""
    names = [f"{color} {finishes[color]}" if finishes else color for color in pattern.palette.names]
    listed = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
    article = "an" if pattern.word[0] in "aeiou" else "a"
    return f"{article} {pattern.word} {noun} in {listed}"


def _second(patches: Sequence[Patch], pattern: Pattern) -> Pattern:
    """Colours in reverse, unless that would leave the asset with hardly more than one colour."""
    positions, normals, areas = _samples(patches)
    first = len(cells(patches[0]))
    rgb = pattern.swapped()(positions, normals)
    rgb[:first] = pattern(positions[:first], normals[:first])
    return pattern.swapped() if contrast(rgb, areas) >= 0.25 else pattern


def design(seed: int, index: int, kind: Kind, *, materials: bool = False) -> Design:
    """Draws an asset; a function of the arguments alone. `materials`: with finishes, shape and colours unchanged."""
    rng = np.random.default_rng([seed, index])
    key = (seed, index)
    nouns = list(BUILDERS)
    noun = nouns[int(rng.integers(len(nouns)))]
    detail = float(rng.uniform(0.75, 1.35))
    patches = _shape(noun, key, detail)
    while kind in (Kind.MATERIALS, Kind.OVERLAPPING) and len(patches) < 2:
        noun = nouns[int(rng.integers(len(nouns)))]
        patches = _shape(noun, key, detail)
    if kind is Kind.DENSE:
        count = sum(len(cells(p)) for p in patches)
        patches = _shape(noun, key, detail * float(np.sqrt(1.1 * DENSE_FACES / count)))
    flat = bool(rng.random() < 0.15) and kind is not Kind.DENSE
    if flat:
        patches = [faceted(p) for p in patches]
    pattern = draw_pattern(rng, *_samples(patches), smooth=not flat and noun not in HARD_EDGED)
    offset, scale = rng.uniform(-2.0, 2.0, 3), float(np.exp(rng.uniform(-2.0, 2.0)))
    node: dict[str, Any] = {}
    if rng.random() < 0.5:
        node = {"translation": [round(float(v), 6) for v in offset], "scale": [round(scale, 6)] * 3}
        offset, scale = np.zeros(3), 1.0
    finishes = draw_finishes(np.random.default_rng([*key, 2]), pattern.palette.names) if materials else {}
    caption = f"a plain grey {noun}" if kind is Kind.GREY else caption_of(noun, pattern, finishes)
    return Design(
        noun=noun,
        kind=kind,
        patches=tuple(patches),
        pattern=pattern,
        second_pattern=_second(patches, pattern),
        caption=caption,
        node=node,
        offset=offset * scale,
        scale=scale,
        finishes=finishes,
    )


def linear(srgb: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """sRGB to linear (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _y_up(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return np.column_stack([points[:, 0], points[:, 2], -points[:, 1]])


def _merged(design: Design, parts: Sequence[Part], *, material: int | None, uv: bool, colored: bool) -> Primitive:
    """Parts as one primitive in the asset's frame."""
    starts = np.cumsum([0] + [len(p.positions) for p in parts])
    positions, normals = np.concatenate([p.positions for p in parts]), np.concatenate([p.normals for p in parts])
    colors = None
    if colored:
        colors = np.column_stack([linear(design.pattern(positions, normals)), np.ones(len(positions))])
    return Primitive(
        positions=_y_up(positions) * design.scale + design.offset,
        normals=_y_up(normals),
        faces=np.concatenate([p.faces + start for p, start in zip(parts, starts, strict=False)]),
        material=material,
        uv=np.concatenate([p.uv for p in parts]) if uv else None,
        colors=colors,
    )


def _parts(patches: Sequence[Patch], arrangement: Sequence[Cell]) -> list[Part]:
    return [part(p, c) for p, c in zip(patches, arrangement, strict=True)]


def _one_layout(design: Design) -> tuple[list[Primitive], list[Material]]:
    """Textured, or untextured grey, on one layout."""
    arrangement = layout(design.patches)
    primitive = _merged(design, _parts(design.patches, arrangement), material=0, uv=True, colored=False)
    if design.kind is Kind.GREY:
        return [primitive], [Material(base_color=(0.5, 0.5, 0.5))]
    return [primitive], [_painted(design, design.patches, arrangement, design.pattern)]


def _painted(design: Design, patches: Sequence[Patch], arrangement: Sequence[Cell], surface: Pattern) -> Material:
    """A material with a texture of its colours, and one of its finishes if there are any."""
    material = Material(image=paint(patches, arrangement, surface, TEXTURE_SIZE))
    if not design.finishes:
        return material
    rough = Map(image=paint(patches, arrangement, finished(surface, design.finishes), TEXTURE_SIZE))
    return replace(material, metallic=1.0, roughness=1.0, metallic_roughness=rough)


def _two_materials(design: Design) -> tuple[list[Primitive], list[Material]]:
    """First patch and the others."""
    groups = (design.patches[:1], design.patches[1:])
    if design.kind is Kind.OVERLAPPING:
        arrangements = [layout(g) for g in groups]
    else:
        shared = layout(design.patches)
        arrangements = [shared[:1], shared[1:]]
    primitives, materials = [], []
    for number, (group, arrangement) in enumerate(zip(groups, arrangements, strict=True)):
        surface = design.pattern if number == 0 else design.second_pattern
        parts = _parts(group, arrangement)
        primitives.append(_merged(design, parts, material=number, uv=True, colored=False))
        materials.append(_painted(design, group, arrangement, surface))
    return primitives, materials


def _without_texture(design: Design) -> tuple[list[Primitive], list[Material]]:
    """Vertex colours; or faces grouped by the palette colour that is nearest at their centre."""
    parts = _parts(design.patches, layout(design.patches))
    names, flat = design.pattern.palette.names, design.kind is Kind.FLAT_COLORS
    number = 0 if design.finishes and not flat else None
    whole = _merged(design, parts, material=number, uv=False, colored=not flat)
    if not flat:
        return [whole], [] if number is None else [_constant(design, names[0], np.ones(3))]
    centers, normals, _ = _samples(design.patches)
    palette = design.pattern.palette.rgb
    nearest = np.linalg.norm(design.pattern(centers, normals)[:, None] - palette, axis=2).argmin(axis=1)
    primitives, materials = list[Primitive](), list[Material]()
    for color in np.unique(nearest):
        used, faces = np.unique(whole.faces[nearest == color], return_inverse=True)
        primitives.append(
            Primitive(
                positions=whole.positions[used],
                normals=whole.normals[used],
                faces=faces.reshape(-1, 3),
                material=len(materials),
            )
        )
        materials.append(_constant(design, names[color], linear(palette[color])))
    return primitives, materials


def _constant(design: Design, name: str, color: Float[np.ndarray, "3"]) -> Material:
    """A material of one linear colour, with the finish of the palette's colour `name` if there is one."""
    base_color = (float(color[0]), float(color[1]), float(color[2]))
    if not design.finishes:
        return Material(base_color=base_color)
    finish = FINISHES[design.finishes[name]]
    return Material(base_color=base_color, metallic=finish.metallic, roughness=finish.roughness)


def _broken(kind: Kind, primitives: list[Primitive], materials: list[Material], node: dict[str, Any]) -> bytes:
    """A valid asset with one fault."""
    first = primitives[0]
    if kind is Kind.NAN_POSITIONS:
        first.positions[::7] = np.nan
    if kind is Kind.INDEX_RANGE:
        faces: Int[np.ndarray, "f 3"] = first.faces
        faces[len(faces) // 2] += len(first.positions)
    data = encode_glb(primitives, materials, node)
    if kind is Kind.TRUNCATED:
        return data[: len(data) * 2 // 3]
    if kind is Kind.BAD_MAGIC:
        return b"glTX" + data[4:]
    if kind is Kind.INVALID_JSON:
        (length,) = struct.unpack_from("<I", data, 12)
        return data[:20] + data[20 : 20 + length].replace(b'"scene":0', b'"scene":,') + data[20 + length :]
    return data


def asset_bytes(design: Design) -> bytes:
    """The .glb file."""
    if design.kind in (Kind.MATERIALS, Kind.OVERLAPPING):
        primitives, materials = _two_materials(design)
    elif design.kind in (Kind.VERTEX_COLORS, Kind.FLAT_COLORS, Kind.DENSE):
        primitives, materials = _without_texture(design)
    else:
        primitives, materials = _one_layout(design)
    if design.kind in BROKEN:
        return _broken(design.kind, primitives, materials, design.node)
    return encode_glb(primitives, materials, design.node)


ATTRIBUTION = Attribution(name="procedural", licence="CC0-1.0", attribution="SeqTex Forge procedural source")


def procedural(
    count: int, directory: Path, seed: int = 0, *, clean: bool = False, materials: bool = False
) -> Iterator[MeshRef]:
    """`count` assets of all kinds (`kind_of`), one broken in ten; `clean`: only textured ones with good UVs;
    `materials`: metallic and roughness follow from position too, all else unchanged.

    The bytes of an asset depend on (seed, index, clean, materials) alone. A file that already holds them is left alone.
    """
    if count < 0:
        raise ValueError(f"procedural source: count is {count}; give 0 or more")
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        plan = design(seed, index, Kind.TEXTURED if clean else kind_of(index), materials=materials)
        uid = f"procedural-{'clean-' if clean else ''}{'materials-' if materials else ''}{index:06d}"
        data = asset_bytes(plan)
        path = directory / f"{uid}.glb"
        if not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            write_file(path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        yield MeshRef(uid=uid, uri=str(path), sha256=sha256, source=ATTRIBUTION, caption=plan.caption)
