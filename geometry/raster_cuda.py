"""The rasteriser for machines with a GPU: nvdiffrast (0.4) behind `geometry.raster.Rasterizer`, all views in one batch.

Its conventions, from its documentation: row 0 of an image is clip y = -1, as here, so nothing is turned over; a pixel
holds (u, v, z / w, face + 1), u and v the perspective-correct weights of corners 0 and 1, and zeros where nothing is;
both sides of a face are drawn, so those that are not seen from behind are taken out of an image beforehand. What
differs from the CPU's fragments:

- Edges: 4 subpixel bits where the CPU has 8, so pixels within 1/32 pixel of an edge may go to a neighbour.
- Faces are cut at all six planes of the frustum, the CPU's at the near plane alone.
- Among equal depths the face drawn last wins (as of 0.4.0; not documented): faces are drawn from the last to the first,
  so that the lowest one wins, in UV layouts too. Depths there are 32-bit integers: nearly equal ones count as equal.
- Layers behind: peeling skips surfaces that coincide with one already seen.

torch and nvdiffrast are imported when the first image is drawn, never before: a process that forks must not have used
CUDA."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from geometry.raster import Fragments
from geometry.raster_cpu import CpuRasterizer, check_indices
from schemas.errors import UserError

MAX_FACES = (1 << 24) - 4096
"""Most faces of one image: 2^24 is nvdiffrast's limit on faces after clipping, and up to there a float32 holds their
number."""
MAX_PIXELS = 1 << 26
"""Most pixels of one image: nearly 3 GB on the device, by the sizes of its buffers (40 bytes a pixel, 81 a face)."""
BATCH_PIXELS = 1 << 24
"""Pixels drawn at once, over all images, where there are several: 0.7 GB."""
BATCH_FACES = 1 << 23
"""Likewise faces: 0.7 GB."""
INSTALL = "pip install setuptools wheel ninja, then pip install --no-build-isolation -e '.[gpu]'"

_CONTEXTS: dict[tuple[int, str], Any] = {}
"""nvdiffrast's state, by process and device."""


@dataclass(frozen=True, kw_only=True)
class CudaRasterizer:
    """Implements `geometry.raster.Rasterizer`. Raises UserError where nvdiffrast or the device is missing, and for
    images and meshes beyond what fits."""

    device: str = "cuda:0"

    def rasterize(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        height: int,
        width: int,
        behind: Fragments | None = None,
        single_sided: Bool[np.ndarray, " faces"] | None = None,
    ) -> Fragments:
        """`behind` must be fragments that this rasteriser made of the same clip coordinates and faces."""
        check_indices(faces, clip.shape[1])
        torch, nvdiffrast = _modules()
        context = _context(nvdiffrast, self.device)
        out = no_fragments(len(clip), height, width)
        for batch, order in draws(clip, faces, height * width, single_sided):
            triangles = torch.from_numpy(np.ascontiguousarray(faces[order])).to(self.device)
            corners = torch.from_numpy(np.ascontiguousarray(clip[batch])).to(self.device)
            scene = (context, corners, triangles, (height, width))
            if behind is None:
                raster, _ = nvdiffrast.rasterize(*scene, grad_db=False)
                layer = to_fragments(raster.cpu().numpy(), order)
                _copy(layer, layer.face >= 0, out, batch)
                continue
            with nvdiffrast.DepthPeeler(*scene, grad_db=False) as peeler:
                layers = _layers(peeler, order)
                for layer, found in next_layers(layers, behind.face[batch], np.isfinite(behind.depth[batch])):
                    _copy(layer, found, out, batch)
        return out

    def sides(
        self,
        clip: Float32[np.ndarray, "images vertices 4"],
        faces: Int32[np.ndarray, "faces 3"],
        height: int,
        width: int,
        single_sided: Bool[np.ndarray, " faces"] | None = None,
    ) -> Int32[np.ndarray, "images height width"]:
        face = self.rasterize(clip, faces, height, width, single_sided=single_sided).face
        turned = np.stack([runs_clockwise(corners, faces) for corners in clip])
        images = np.arange(len(face))[:, None, None]
        return np.where(face < 0, np.int32(-1), 2 * face + turned[images, face])

    def interpolate(
        self,
        fragments: Fragments,
        faces: Int32[np.ndarray, "faces 3"],
        attributes: Float32[np.ndarray, "vertices channels"],
    ) -> Float32[np.ndarray, "images height width channels"]:
        """Interpolate on the host, where the fragments are: carrying them to the device and back would take longer."""
        return CpuRasterizer().interpolate(fragments, faces, attributes)


def require_cuda() -> None:
    """Raises UserError, which names the remedy, where this machine cannot draw: before a build, not once per asset."""
    _modules()


def drawing_order(
    clip: Float32[np.ndarray, "images vertices 4"], faces: Int32[np.ndarray, "faces 3"]
) -> Int64[np.ndarray, " drawn"]:
    """Faces in the order in which they are drawn: the last one first, without those that have a corner that is not
    finite in some image."""
    finite = np.isfinite(clip).all(axis=(0, 2))
    order = np.flatnonzero(finite[faces].all(axis=1))[::-1]
    if len(order) > MAX_FACES:
        raise UserError(f"{len(order)} faces are more than nvdiffrast's {MAX_FACES}; use the rasteriser `cpu`")
    return order


def draws(
    clip: Float32[np.ndarray, "images vertices 4"],
    faces: Int32[np.ndarray, "faces 3"],
    pixels: int,
    single_sided: Bool[np.ndarray, " faces"] | None,
) -> Iterator[tuple[slice, Int64[np.ndarray, " drawn"]]]:
    """Images that are drawn together, and their faces in order; one by one where some are not seen from behind, which
    are other ones in every image."""
    order = drawing_order(clip, faces)
    if not len(order):
        return
    if single_sided is None or not single_sided.any():
        yield from ((batch, order) for batch in batches(len(clip), len(order), pixels))
        return
    for image in range(len(clip)):
        seen = order[(runs_clockwise(clip[image], faces)[order] == 1) | ~single_sided[order]]
        if len(seen):
            for batch in batches(1, len(seen), pixels):
                yield slice(batch.start + image, batch.stop + image), seen


def runs_clockwise(
    clip: Float32[np.ndarray, "vertices 4"], faces: Int32[np.ndarray, "faces 3"]
) -> Int32[np.ndarray, " faces"]:
    """1 for each face whose corners run clockwise in the image, y up; 0 for the others."""
    with np.errstate(invalid="ignore", over="ignore"):
        return (np.linalg.det(clip.astype(np.float64)[:, [0, 1, 3]][faces]) < 0).astype(np.int32)


def batches(images: int, faces: int, pixels: int) -> Iterator[slice]:
    """Images that are drawn together: as many as the device holds, one at least."""
    if pixels > MAX_PIXELS:
        raise UserError(
            f"an image of {pixels} pixels is beyond the rasteriser's {MAX_PIXELS}: lower the resolution or supersample,"
            " or use the rasteriser `cpu`"
        )
    step = max(1, min(BATCH_PIXELS // pixels, BATCH_FACES // faces))
    for first in range(0, images, step):
        yield slice(first, min(first + step, images))


def to_fragments(raster: Float32[np.ndarray, "images height width 4"], order: Int64[np.ndarray, " drawn"]) -> Fragments:
    """nvdiffrast's (u, v, z / w, number drawn + 1) as fragments."""
    number = raster[..., 3].astype(np.int64)
    there = number > 0
    return Fragments(
        face=np.where(there, order[np.maximum(number - 1, 0)], -1).astype(np.int32),
        bary=np.where(there[..., None], raster[..., :2], np.float32(0.0)),
        depth=np.where(there, raster[..., 2], np.float32(np.inf)),
    )


def next_layers(
    layers: Iterator[Fragments],
    front: Int32[np.ndarray, "images height width"],
    wanted: Bool[np.ndarray, "images height width"],
) -> Iterator[tuple[Fragments, Bool[np.ndarray, "images height width"]]]:
    """Layers from front to back, each with the pixels for which it is the one that follows face `front`; ends when
    every wanted pixel has got one, or has no further layer. Layers are distinguished by their faces, not by depth: the
    depth that is reported is rounded otherwise than the one that is compared."""
    passed = np.zeros_like(wanted)
    for layer in layers:
        there = layer.face >= 0
        found = wanted & passed & there
        yield layer, found
        wanted = wanted & there & ~found
        if not wanted.any():
            return
        passed |= layer.face == front


def no_fragments(images: int, height: int, width: int) -> Fragments:
    return Fragments(
        face=np.full((images, height, width), -1, np.int32),
        bary=np.zeros((images, height, width, 2), np.float32),
        depth=np.full((images, height, width), np.inf, np.float32),
    )


def _layers(peeler: Any, order: Int64[np.ndarray, " drawn"]) -> Iterator[Fragments]:
    while True:
        raster, _ = peeler.rasterize_next_layer()
        yield to_fragments(raster.cpu().numpy(), order)


def _copy(layer: Fragments, pixels: Bool[np.ndarray, "images height width"], out: Fragments, batch: slice) -> None:
    out.face[batch][pixels] = layer.face[pixels]
    out.bary[batch][pixels] = layer.bary[pixels]
    out.depth[batch][pixels] = layer.depth[pixels]


def _modules() -> tuple[Any, Any]:
    """torch and nvdiffrast."""
    try:
        import nvdiffrast.torch
        import torch
    except ImportError as error:
        raise UserError(f"the rasteriser `cuda` needs nvdiffrast ({error}): {INSTALL}; or use `cpu`") from error
    if not torch.cuda.is_available():
        raise UserError("the rasteriser `cuda` needs a CUDA device and there is none; use the rasteriser `cpu`")
    return torch, nvdiffrast.torch


def _context(nvdiffrast: Any, device: str) -> Any:
    """Return this process's rasteriser context, made when it is first needed."""
    key = (os.getpid(), device)
    if any(process != os.getpid() for process, _ in _CONTEXTS):
        raise UserError("CUDA was used before this process was forked and cannot be used after; start a new process")
    if key not in _CONTEXTS:
        _CONTEXTS[key] = nvdiffrast.RasterizeCudaContext(device=device)
    return _CONTEXTS[key]
