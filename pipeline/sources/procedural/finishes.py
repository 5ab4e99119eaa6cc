"""Finish of a surface: how metallic and how rough it is, divided over an asset as its colours are.

Each colour of a pattern gets a finish of its own: where colours meet, finishes do, and one view of both shows which
belong together. They are drawn with random numbers of their own, so that an asset with finishes has the shape and the
colours of the one without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.sources.procedural.patterns import Palette, Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A material beside its colour, as glTF has it."""

    metallic: float
    roughness: float


FINISHES = {
    "chrome": Finish(metallic=1.0, roughness=0.12),
    "brushed steel": Finish(metallic=1.0, roughness=0.45),
    "cast iron": Finish(metallic=1.0, roughness=0.82),
    "lacquer": Finish(metallic=0.0, roughness=0.1),
    "plastic": Finish(metallic=0.0, roughness=0.4),
    "rubber": Finish(metallic=0.0, roughness=0.92),
}
"""Named finishes; two of them differ by at least 0.3 in roughness, or in being metal."""


def draw_finishes(rng: np.random.Generator, colors: Sequence[str]) -> dict[str, str]:
    """The names of different finishes, one for each colour."""
    names = list(FINISHES)
    chosen = rng.permutation(len(names))[: len(colors)]
    return {color: names[int(index)] for color, index in zip(colors, chosen, strict=True)}


def finished(pattern: Pattern, finishes: Mapping[str, str]) -> Pattern:
    """The finish behind every point of a pattern in place of its colour: (0, roughness, metallic), which are the
    channels of a metallic-roughness texture."""
    names = tuple(finishes[color] for color in pattern.palette.names)
    values = [(0.0, FINISHES[name].roughness, FINISHES[name].metallic) for name in names]
    return replace(pattern, palette=Palette(names=names, rgb=np.array(values)))
