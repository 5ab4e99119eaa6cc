"""UV layout of patches, and the surface point behind every texel.

UV here is in the file's sense: origin at the top left, v pointing down, texel (row, column) centred at
((column + 0.5) / size, (row + 0.5) / size).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from pipeline.sources.procedural.patches import Patch, cells, unit

MARGIN = 2.0 / 128.0
"""Free border around each chart; two charts are twice that apart: 4 texels of a 128 map."""
SNAP = 16
"""Charts share cell borders on a 1/16 grid, so that no 8 x 8 block of a 128 map holds two charts."""

Surface = Callable[[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]]
"""(positions, unit normals) -> sRGB in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The rectangle of one chart, border included, in units of 1 / SNAP."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One patch as an indexed mesh."""

    positions: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    uv: Float[np.ndarray, "n 2"]
    faces: Int[np.ndarray, "f 3"]


def _chord(patch: Patch, axis: int) -> Float[np.ndarray, " n"]:
    """Mean chord length along an axis, from 0: the chart's coordinate on that axis before scaling."""
    steps = np.linalg.norm(np.diff(patch.positions, axis=axis), axis=2).mean(axis=1 - axis)
    return np.concatenate([[0.0], np.cumsum(steps)])


def surface_area(patch: Patch) -> float:
    p = patch.positions.reshape(-1, 3)[cells(patch)]
    return float(np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1).sum() / 2)


def arrange(weights: Sequence[float]) -> list[Cell]:
    """Divides the unit square among charts: halves of about equal weight, cut across the longer side."""
    result: dict[int, Cell] = {}

    def divide(items: list[int], cell: Cell) -> None:
        if len(items) == 1:
            result[items[0]] = cell
            return
        total = np.cumsum([weights[i] for i in items])
        cut = int(np.argmin(np.abs(total[:-1] - total[-1] / 2))) + 1
        share = total[cut - 1] / total[-1]
        long = max(cell.width, cell.height)
        least = 2 if long >= 4 else 1
        at = min(max(round(long * share), least), long - least)
        if cell.width >= cell.height:
            first = Cell(left=cell.left, top=cell.top, width=at, height=cell.height)
            rest = Cell(left=cell.left + at, top=cell.top, width=cell.width - at, height=cell.height)
        else:
            first = Cell(left=cell.left, top=cell.top, width=cell.width, height=at)
            rest = Cell(left=cell.left, top=cell.top + at, width=cell.width, height=cell.height - at)
        divide(items[:cut], first)
        divide(items[cut:], rest)

    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    divide(order, Cell(left=0, top=0, width=SNAP, height=SNAP))
    return [result[i] for i in range(len(weights))]


def layout(patches: Sequence[Patch]) -> list[Cell]:
    """A cell for each patch; small patches get somewhat more than their share of the area."""
    return arrange([surface_area(p) ** 0.8 for p in patches])


def _turned(patch: Patch, cell: Cell) -> bool:
    """Return whether t runs along u, so that the long side of the patch lies along the long side of its cell."""
    return bool(_chord(patch, 0)[-1] > _chord(patch, 1)[-1]) != (cell.width >= cell.height)


def _inner(start: int, length: int) -> tuple[float, float]:
    return start / SNAP + MARGIN, (start + length) / SNAP - MARGIN


def part(patch: Patch, cell: Cell) -> Part:
    """The patch as a mesh with its chart in the cell; vertices without a face are dropped."""
    s, t = _chord(patch, 0), _chord(patch, 1)
    s, t = np.meshgrid(s / s[-1], t / t[-1], indexing="ij")
    across, down = (t, s) if _turned(patch, cell) else (s, 1.0 - t)
    (u0, u1), (v0, v1) = _inner(cell.left, cell.width), _inner(cell.top, cell.height)
    uv = np.stack([u0 + (u1 - u0) * across, v0 + (v1 - v0) * down], axis=-1).reshape(-1, 2)
    used, faces = np.unique(cells(patch), return_inverse=True)
    return Part(
        positions=patch.positions.reshape(-1, 3)[used],
        normals=patch.normals.reshape(-1, 3)[used],
        uv=uv[used],
        faces=faces.reshape(-1, 3),
    )


def _locate(knots: Float[np.ndarray, " k"], at: Float[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
    """Interval and fraction within it; never an interval of zero length."""
    index = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    return index, (at - knots[index]) / np.maximum(knots[index + 1] - knots[index], 1e-12)


def texels(patch: Patch, cell: Cell, size: int) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 3"]]:
    """Position and unit normal of the triangle under each texel centre of the whole cell; in the border, of the nearest
    point of the chart."""
    step = size // SNAP
    u = (np.arange(cell.left * step, (cell.left + cell.width) * step) + 0.5) / size
    v = (np.arange(cell.top * step, (cell.top + cell.height) * step) + 0.5) / size
    (u0, u1), (v0, v1) = _inner(cell.left, cell.width), _inner(cell.top, cell.height)
    across, down = np.clip((u - u0) / (u1 - u0), 0, 1), np.clip((v - v0) / (v1 - v0), 0, 1)
    turned = _turned(patch, cell)
    s, t = (down, across) if turned else (across, 1.0 - down)
    knots_s, knots_t = _chord(patch, 0), _chord(patch, 1)
    i, x = _locate(knots_s, s * knots_s[-1])
    j, y = _locate(knots_t, t * knots_t[-1])
    x, y = x[:, None, None], y[None, :, None]

    def at_triangle(grid: Float[np.ndarray, "s t 3"]) -> Float[np.ndarray, "a b 3"]:
        rows, next_rows = grid[i], grid[i + 1]
        a, b, c, d = rows[:, j], next_rows[:, j], next_rows[:, j + 1], rows[:, j + 1]
        return np.where(x >= y, a + x * (b - a) + y * (c - b), a + y * (d - a) + x * (c - d))

    positions, normals = at_triangle(patch.positions), unit(at_triangle(patch.normals))
    # With t along u, grid axis 0 already runs down the image.
    return (positions, normals) if turned else (positions.swapaxes(0, 1), normals.swapaxes(0, 1))


def paint(
    patches: Sequence[Patch], cells_: Sequence[Cell], surface: Surface, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The texture: `surface` at every texel's surface point, borders filled from the nearest chart point."""
    image = np.zeros((size, size, 3), np.uint8)
    step = size // SNAP
    for patch, cell in zip(patches, cells_, strict=True):
        positions, normals = texels(patch, cell, size)
        rgb = surface(positions.reshape(-1, 3), normals.reshape(-1, 3)).reshape(positions.shape)
        rows = slice(cell.top * step, (cell.top + cell.height) * step)
        columns = slice(cell.left * step, (cell.left + cell.width) * step)
        image[rows, columns] = np.rint(rgb * 255.0).astype(np.uint8)
    return image
