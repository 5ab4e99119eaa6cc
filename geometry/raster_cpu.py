"""The rasteriser for machines without a GPU: watertight, clipped, the same bits for any number of threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt32

from geometry.kernels.clip import snap_vertices
from geometry.kernels.interpolate import interpolate_rows, resolve_rows
from geometry.kernels.raster import rasterize_rows
from geometry.raster import Fragments


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRasterizer:
    """Implements `geometry.raster.Rasterizer` with numba kernels on plain threads (workers may fork freely)."""

    threads: int = 1

    def rasterize(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        height: int,
        width: int,
        behind: Fragments | None = None,
        single_sided: Bool[np.ndarray, " faces"] | None = None,
    ) -> Fragments:
        """Coverage has 8 subpixel bits and the top-left rule; on equal depth the lowest face wins; faces are cut at the
        near plane (z >= -w) and those with a non-finite vertex are dropped. Both sides of a face are drawn unless it
        is single-sided."""
        check_indices(faces, clip.shape[1])
        side = np.empty((len(clip), height, width), np.int32)
        depth = np.empty(side.shape, np.float32)
        bary = np.empty((*side.shape, 2), np.float32)
        corners, one_sided = for_kernels(faces, single_sided)

        def draw(image: int, first: int, last: int) -> None:
            hidden = None if behind is None else (behind.face[image], behind.depth[image])
            draw_sides(clip[image], corners, one_sided, first, last, side[image], depth[image], hidden)
            resolve_rows(side[image], clip[image], corners, first, last, side[image], bary[image], depth[image])

        self._run(draw, len(clip), height)
        return Fragments(face=side, bary=bary, depth=depth)

    def sides(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        height: int,
        width: int,
        single_sided: Bool[np.ndarray, " faces"] | None = None,
    ) -> Int32[np.ndarray, "images height width"]:
        """Find what `rasterize` finds, without working out weights and depth."""
        check_indices(faces, clip.shape[1])
        side = np.empty((len(clip), height, width), np.int32)
        corners, one_sided = for_kernels(faces, single_sided)

        def draw(image: int, first: int, last: int) -> None:
            near = np.empty((height, width), np.float32)
            draw_sides(clip[image], corners, one_sided, first, last, side[image], near, None)

        self._run(draw, len(clip), height)
        return side

    def interpolate(
        self,
        fragments: Fragments,
        faces: Int32[np.ndarray, "faces 3"],
        attributes: Float32[np.ndarray, "vertices channels"],
    ) -> Float32[np.ndarray, "images height width channels"]:
        check_indices(faces, len(attributes))
        images, height, _ = fragments.face.shape
        out = np.empty((*fragments.face.shape, attributes.shape[1]), np.float32)

        def fill(image: int, first: int, last: int) -> None:
            interpolate_rows(fragments.face[image], fragments.bary[image], faces, attributes, out[image], first, last)

        self._run(fill, images, height)
        return out

    def _run(self, task: Callable[[int, int, int], None], images: int, rows: int) -> None:
        """`task(image, first, last)` over bands of every image; bands are disjoint, so their order does not matter."""
        bands = list(split(images, rows, self.threads))
        if self.threads == 1:
            for band in bands:
                task(*band)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(lambda band: task(*band), bands))


def for_kernels(
    faces: Int32[np.ndarray, "faces 3"], single_sided: Bool[np.ndarray, " faces"] | None
) -> tuple[UInt32[np.ndarray, "faces 3"], Bool[np.ndarray, " faces"]]:
    """Corners as indices without a sign, which numba would look at each time, and the faces that are single-sided."""
    return faces.view(np.uint32), np.zeros(len(faces), bool) if single_sided is None else single_sided


def draw_sides(
    clip: Float32[np.ndarray, "vertices 4"],
    corners: UInt32[np.ndarray, "faces 3"],
    single_sided: Bool[np.ndarray, " faces"],
    first: int,
    last: int,
    side: Int32[np.ndarray, "height width"],
    near: Float32[np.ndarray, "height width"],
    behind: tuple[Int32[np.ndarray, "height width"], Float32[np.ndarray, "height width"]] | None,
) -> None:
    """Write the sides in front to rows `first:last` of an image, and to `near` their rough depth. `behind`: face and
    depth of the layer to look behind. Vertices are snapped image by image, and so still lie in the processor's cache
    when the faces are drawn: threads that share an image each snap all of them."""
    snapped = np.empty((len(clip), 2), np.int32)
    depths, outcode = np.empty(len(clip), np.float32), np.empty(len(clip), np.uint8)
    snap_vertices(clip.reshape(-1), *side.shape, snapped.reshape(-1), depths, outcode)
    hidden_face, hidden_depth = (side, near) if behind is None else behind
    rasterize_rows(
        clip, corners, single_sided, snapped, depths, outcode, first, last, side, near, behind is not None,
        hidden_face, hidden_depth,
    )  # fmt: skip


def split(images: int, rows: int, threads: int) -> Iterator[tuple[int, int, int]]:
    """Bands (image, first row, last row): whole images where they keep every thread busy, since each band walks over
    all faces."""
    per_image = 1 if images % threads == 0 else threads
    for image in range(images):
        for band in range(per_image):
            yield image, rows * band // per_image, rows * (band + 1) // per_image


def check_indices(faces: Int32[np.ndarray, "faces 3"], vertices: int) -> None:
    """Compiled loops do not check bounds: a wrong index would read foreign memory."""
    if faces.size and faces.view(np.uint32).max() >= vertices:  # less than 0 is more than any
        raise ValueError(f"face indices span [{faces.min()}, {faces.max()}] but there are {vertices} vertices")
