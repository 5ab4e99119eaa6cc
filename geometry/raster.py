"""The rasteriser's interface. Two backends: `geometry.raster_cpu` (numba) and, on a GPU, nvdiffrast."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragments:
    """For every pixel centre of every image: which face is in front, and where on it."""

    face: Int32[np.ndarray, "images height width"]
    """Face index; -1 where nothing is."""
    bary: Float32[np.ndarray, "images height width 2"]
    """Perspective-correct weights of corners 0 and 1 (corner 2 has the rest); 0 where nothing is."""
    depth: Float32[np.ndarray, "images height width"]
    """z / w in clip space; +inf where nothing is."""


@runtime_checkable
class Rasterizer(Protocol):
    """Clip-space triangles to fragments. Row 0 of an image is clip y = -1, column 0 is clip x = -1."""

    def rasterize(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        height: int,
        width: int,
        behind: Fragments | None = None,
        single_sided: Bool[np.ndarray, " faces"] | None = None,
    ) -> Fragments:
        """The front fragments, or with `behind` the next ones: those that follow these in (depth, face) order. Pixels
        whose `behind.depth` is +inf get nothing. `single_sided`: faces that are drawn only where their corners run
        clockwise in clip space as drawn (y up): the front in views, whose clip y points down. None: all are drawn from
        both sides."""
        ...

    def sides(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        height: int,
        width: int,
        single_sided: Bool[np.ndarray, " faces"] | None = None,
    ) -> Int32[np.ndarray, "images height width"]:
        """The front faces alone, as 2 x face, plus 1 where its corners run clockwise in clip space as drawn (y up), -1
        where nothing is: all that it takes to work out the rest of a fragment later."""
        ...

    def interpolate(
        self,
        fragments: Fragments,
        faces: Int32[np.ndarray, "faces 3"],
        attributes: Float32[np.ndarray, "vertices channels"],
    ) -> Float32[np.ndarray, "images height width channels"]:
        """Vertex attributes at every fragment; 0 where nothing is."""
        ...
