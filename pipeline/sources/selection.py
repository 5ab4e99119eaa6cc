"""Select assets of a collection by their annotations alone, before anything is downloaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.sources.tables.conditions import parse
from schemas.errors import UsageError

ORIGINS = ("github", "sketchfab", "smithsonian", "thingiverse")
"""Sites on which Objaverse-XL's assets lie."""
TEXTURES = (1024, 2048, 4096, 8192)
"""Sides of TexVerse's textures, pixels."""
LICENCES = {
    "by": "CC-BY-4.0",
    "by-sa": "CC-BY-SA-4.0",
    "by-nd": "CC-BY-ND-4.0",
    "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0",
    "by-nc-nd": "CC-BY-NC-ND-4.0",
    "cc0": "CC0-1.0",
}
"""SPDX identifiers of the licences in Objaverse's annotations, versions as its dataset card states them."""
_NAMES = {
    "cc attribution": "CC-BY-4.0",
    "cc attribution-sharealike": "CC-BY-SA-4.0",
    "cc attribution-noderivs": "CC-BY-ND-4.0",
    "cc attribution-noncommercial": "CC-BY-NC-4.0",
    "cc attribution-noncommercial-sharealike": "CC-BY-NC-SA-4.0",
    "cc attribution-noncommercial-noderivs": "CC-BY-NC-ND-4.0",
    "cc0 public domain": "CC0-1.0",
    "mit license": "MIT",
    "apache license 2.0": "Apache-2.0",
    "the unlicense": "Unlicense",
    "creative commons zero v1.0 universal": "CC0-1.0",
    "creative commons attribution 4.0 international": "CC-BY-4.0",
    "creative commons attribution share alike 4.0 international": "CC-BY-SA-4.0",
    "gnu general public license v3.0": "GPL-3.0",
    "gnu general public license v2.0": "GPL-2.0",
    "mozilla public license 2.0": "MPL-2.0",
}
"""SPDX identifiers of what Sketchfab and GitHub call licences."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Conditions on assets; every one must hold. `scores` and `where` are for any source, the others for collections
    with annotations (Objaverse)."""

    scores: str = ""
    """A .parquet or .csv with a column `uid` (Objaverse++ or aesthetic scores, say), or a .txt with one uid a line, for
    any source: assets that it does not list are not selected. Recorded by its sha256."""
    where: str = ""
    """A condition on the columns of `scores`: `score >= 4 and style in ('realistic', 'scanned')`. It may have
    `= != < <= > >= in`, `and`, `or`, `not` and parentheses. A missing value meets none."""
    licences: tuple[str, ...] = ()
    """Allowed ones: `by by-sa by-nd by-nc by-nc-sa by-nc-nd cc0`, for Objaverse-XL also SPDX identifiers (`MIT`) or the
    words of the annotation; empty: any."""
    origins: tuple[str, ...] = ()
    """Sites of Objaverse-XL: `github sketchfab smithsonian thingiverse`; empty: all."""
    file_types: tuple[str, ...] = ()
    """File types of Objaverse-XL, such as `glb`; empty: those that can be read, with `--blender.python` also through
    Blender."""
    min_faces: int | None = None
    """Smallest number of faces in the annotation."""
    max_faces: int | None = None
    """Largest number of faces in the annotation."""
    textured: bool | None = None
    """true: only with image textures; false: only without."""
    animated: bool | None = None
    """true: only with animations; false: only without."""
    tags: tuple[str, ...] = ()
    """At least one of these tags, upper and lower case alike; empty: any."""
    categories: tuple[str, ...] = ()
    """At least one of these Sketchfab categories, by name (`Furniture & Home`) or slug (`furniture-home`)."""
    lvis: tuple[str, ...] = ()
    """At least one of these LVIS categories (`chair`)."""
    texture_resolution: int = 1024
    """Side of the textures that assets of TexVerse are downloaded with, `1024 2048 4096 8192`; an asset without them
    is not selected."""
    min_texture_resolution: int | None = None
    """Assets of TexVerse that exist with textures of this side or more, whatever they are downloaded with."""
    sample: int | None = None
    """Number of assets drawn by `seed` from those that fit."""
    seed: int = 0
    """Seed of the draw: the same assets whatever their order, and a larger sample holds a smaller one."""

    def __post_init__(self) -> None:
        if self.where:
            parse(self.where)
            if not self.scores:
                raise UsageError("select.where is about the columns of a table; name it by --select.scores")
        if unknown := sorted(set(self.origins) - set(ORIGINS)):
            raise UsageError(f"select.origins: {', '.join(unknown)} is none of {' '.join(ORIGINS)}")
        for name in ("texture_resolution", "min_texture_resolution"):
            if (side := getattr(self, name)) not in (None, *TEXTURES):
                raise UsageError(f"select.{name} is {side}; give one of {' '.join(map(str, TEXTURES))}")
        for name in ("min_faces", "max_faces", "sample"):
            value = getattr(self, name)
            if value is not None and value < (1 if name == "sample" else 0):
                raise UsageError(f"select.{name} is {value}; give {'1' if name == 'sample' else '0'} or more")
        if self.min_faces is not None and self.max_faces is not None and self.min_faces > self.max_faces:
            raise UsageError(f"select.min_faces is {self.min_faces}, above select.max_faces {self.max_faces}")


def fits(annotation: Mapping[str, Any], cfg: SelectConfig) -> bool:
    """Return whether an annotation meets every condition but `lvis` and `sample`. What it does not say does not fit."""
    archive = (annotation.get("archives") or {}).get("glb") or {}
    faces, textures = annotation.get("faceCount"), archive.get("textureCount")
    animations = annotation.get("animationCount")
    return (
        licence_fits(annotation.get("license"), cfg)
        and (cfg.min_faces is None or (faces is not None and faces >= cfg.min_faces))
        and (cfg.max_faces is None or (faces is not None and faces <= cfg.max_faces))
        and (cfg.textured is None or (textures is not None and (textures > 0) is cfg.textured))
        and (cfg.animated is None or (animations is not None and (animations > 0) is cfg.animated))
        and (not cfg.tags or _shared(cfg.tags, annotation.get("tags")))
        and (not cfg.categories or _shared(cfg.categories, annotation.get("categories")))
    )


def licence_fits(licence: str | None, cfg: SelectConfig) -> bool:
    """Return whether the allow-list has a licence by its name or its SPDX identifier."""
    allowed = {form.lower() for word in cfg.licences for form in (word, spdx(word))}
    return not cfg.licences or not allowed.isdisjoint({(licence or "").lower(), spdx(licence or "").lower()} - {""})


def spdx(licence: str) -> str:
    """The SPDX identifier of a licence in an annotation; its own words where it has none that is known."""
    return LICENCES.get(licence) or _NAMES.get(licence.lower()) or licence


def _shared(wanted: tuple[str, ...], labels: list[dict[str, Any]] | None) -> bool:
    known = {str(label.get(key, "")).lower() for label in labels or () for key in ("name", "slug")}
    return any(word.lower() in known for word in wanted)


def rank(uid: str, seed: int) -> bytes:
    """A sample holds the assets of lowest rank."""
    return hashlib.sha256(f"{seed}:{uid}".encode()).digest()
