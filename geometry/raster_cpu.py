"""The rasteriser for machines without a GPU: watertight, clipped, the same bits for any number of threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32

from geometry.kernels.clip import snap_vertices
from geometry.kernels.interpolate import interpolate_rows
from geometry.kernels.raster import rasterize_rows, resolve_rows
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
        depth = np.empty((len(clip), height, width), np.float32)
        side = self._draw(clip, faces, depth, behind, single_sided)
        bary = np.empty((*side.shape, 2), np.float32)
        corners = faces.view(np.uint32)

        def resolve(image: int, first: int, last: int) -> None:
            resolve_rows(side[image], clip[image], corners, first, last, side[image], bary[image], depth[image])

        self._run(resolve, len(clip), height)
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
        scratch = np.empty((len(clip) if self.threads > 1 else min(len(clip), 1), height, width), np.float32)
        return self._draw(clip, faces, scratch, None, single_sided)

    def _draw(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        near: Float32[np.ndarray, "some height width"],
        behind: Fragments | None,
        single_sided: Bool[np.ndarray, " faces"] | None,
    ) -> Int32[np.ndarray, "images height width"]:
        """Return the sides in front; `near` is overwritten, by image after image where there is only one of it."""
        images, vertices = clip.shape[:2]
        check_indices(faces, vertices)
        height, width = near.shape[1:]
        side = np.empty((images, height, width), np.int32)
        snapped = np.empty((images, vertices, 2), np.int32)
        depths = np.empty((images, vertices), np.float32)
        outcode = np.empty((images, vertices), np.uint8)
        corners = faces.view(np.uint32)  # as an index without a sign, which numba would look at each time
        one_sided = np.zeros(len(faces), bool) if single_sided is None else single_sided
        hidden_face, hidden_depth = (side, near) if behind is None else (behind.face, behind.depth)

        def project(image: int, first: int, last: int) -> None:
            snap_vertices(clip[image], height, width, snapped[image], depths[image], outcode[image], first, last)

        def draw(image: int, first: int, last: int) -> None:
            rasterize_rows(
                clip[image], corners, one_sided, snapped[image], depths[image], outcode[image], first, last,
                side[image], near[image % len(near)], behind is not None, hidden_face[image],
                hidden_depth[image % len(hidden_depth)],
            )  # fmt: skip

        self._run(project, images, vertices)
        self._run(draw, images, height)
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


def split(images: int, rows: int, threads: int) -> Iterator[tuple[int, int, int]]:
    """Bands (image, first row, last row): whole images where they keep every thread busy, since each band walks over
    all faces."""
    per_image = 1 if images % threads == 0 else threads
    for image in range(images):
        for band in range(per_image):
            yield image, rows * band // per_image, rows * (band + 1) // per_image


def check_indices(faces: Int32[np.ndarray, "faces 3"], vertices: int) -> None:
    """Compiled loops do not check bounds: a wrong index would read foreign memory."""
    if faces.size and (faces.min() < 0 or faces.max() >= vertices):
        raise ValueError(f"face indices span [{faces.min()}, {faces.max()}] but there are {vertices} vertices")
