"""Things to texture, by the noun that their caption uses.

Parts of an object may pass through each other, as in most real assets; the hidden texels get colours like all others.
"""

from collections.abc import Callable

from pipeline.sources.procedural import scenery, solids, vessels
from pipeline.sources.procedural.patches import Detail, Patch, Rng

BUILDERS: dict[str, Callable[[Rng, Detail], list[Patch]]] = {
    "block": solids.block,
    "ball": solids.ball,
    "ring": solids.ring,
    "column": solids.column,
    "star": solids.star,
    "horn": solids.horn,
    "arch": solids.arch,
    "spring": solids.spring,
    "drum": solids.drum,
    "vase": vessels.vase,
    "bottle": vessels.bottle,
    "bowl": vessels.bowl,
    "goblet": vessels.goblet,
    "pawn": vessels.pawn,
    "mug": vessels.mug,
    "teapot": vessels.teapot,
    "lamp": vessels.lamp,
    "lighthouse": vessels.lighthouse,
    "mushroom": scenery.mushroom,
    "table": scenery.table,
    "stool": scenery.stool,
    "chair": scenery.chair,
    "rocket": scenery.rocket,
    "house": scenery.house,
    "tree": scenery.tree,
    "pine": scenery.pine,
    "snowman": scenery.snowman,
    "cactus": scenery.cactus,
    "planet": scenery.planet,
}
"""Noun -> builder."""

HARD_EDGED = frozenset({"column", "star", "drum", "house"})
"""Nouns whose normals jump at edges: no place for colour that follows the normal."""
