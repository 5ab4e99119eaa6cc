"""Do renders describe one surface? What a file says about itself is not enough: with another meaning of depth, another
camera axis or another space of normals, every image still looks right."""

import numpy as np
from jaxtyping import Bool, Float32
from scipy.ndimage import minimum_filter

from geometry.cameras import project, view_depth
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason
from schemas.sample import Cameras

MAX_CONTRADICTED = 0.05
"""Share of points that the next view must see and does not, mean over views. Solid objects have up to 0.003 (29 real
assets), loose sheets seen edge-on up to 0.04; renders of the public renderer 0.001, and 0.29 where they are read as
distance along the ray instead of the camera's axis."""
DEPTH_TOLERANCE = 0.02
"""Dataset units: 1 % of the largest side."""
MIN_AGREEMENT = 0.7
"""Median cosine (either sign) between stored normals and those of the surface that the positions describe; noise has
0.5, coarse facets under smooth normals 0.9."""
MIN_COMPARED = 64
"""Pixels from which on either figure says something."""


def check_depths(position: Float32[np.ndarray, "v h w 3"], mask: Bool[np.ndarray, "v h w"], cameras: Cameras) -> None:
    """Raises `AssetError` where points of a view would stand in front of what the next view sees."""
    depth = view_depth(position, mask, cameras.world_to_cam)
    nearest = minimum_filter(np.where(mask, depth, np.inf), size=(1, 3, 3))
    shares = [
        _contradicted_share(position[number][mask[number]], nearest[other], cameras, other)
        for number, other in zip(range(len(mask)), np.roll(range(len(mask)), -1).tolist(), strict=True)
        if number != other and mask[number].sum() >= MIN_COMPARED
    ]
    if shares and (share := float(np.mean(shares))) > MAX_CONTRADICTED:
        detail = f"{share:.1%} of a view's points are not where the next view sees the surface, at most "
        detail += (
            f"{MAX_CONTRADICTED:.0%}: depth is expected along the camera's axis, transform_matrix in Blender's axes"
        )
        raise AssetError(Reason.INCONSISTENT_VIEWS, detail)


def _contradicted_share(
    points: Float32[np.ndarray, "n 3"], nearest: Float32[np.ndarray, "h w"], cameras: Cameras, other: int
) -> float:
    """Share of points inside another view's frame that lie in front of all that it sees near there (`nearest`: least
    depth of the pixels around), or where it sees nothing."""
    height, width = nearest.shape
    clip = project(points, cameras.world_to_clip[other][None])[0]
    in_front = clip[:, 3] > 0
    across, down = (clip[in_front, :2] / clip[in_front, 3:] + 1).T / 2
    inside = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
    if not inside.any():
        return 0.0
    row, column = (down[inside] * height).astype(np.int64), (across[inside] * width).astype(np.int64)
    axis, offset = cameras.world_to_cam[other, 2, :3], cameras.world_to_cam[other, 2, 3]
    own = -(points[in_front][inside] @ axis + offset)
    seen = nearest[row, column]
    return float((np.isinf(seen) | (own < seen - DEPTH_TOLERANCE)).mean())


def world_normals(
    stored: Float32[np.ndarray, "v h w 3"],
    position: Float32[np.ndarray, "v h w 3"],
    mask: Bool[np.ndarray, "v h w"],
    cameras: Cameras,
) -> Float32[np.ndarray, "v h w 3"]:
    """Stored normals in world space. Newer renders hold them so, older ones in the camera's axes; which, is found by
    holding them against the surface that the positions describe. Raises `AssetError` where neither fits."""
    turned = np.einsum("vhwc,vcd->vhwd", stored, cameras.world_to_cam[:, :3, :3])
    surfaces = [_surface_normals(*view) for view in zip(position, mask, strict=True)]
    scores = [[_agreement(n, *s) for n, s in zip(kind, surfaces, strict=True)] for kind in (stored, turned)]
    totals = [np.nansum(row) for row in scores]
    best = int(totals[1] > totals[0])
    for view, score in enumerate(scores[best]):
        if score < MIN_AGREEMENT:
            detail = f"normals of view {view} do not follow the surface: median cosine {score:.2f}, at least "
            detail += f"{MIN_AGREEMENT}, in world space {scores[0][view]:.2f}, in the camera's {scores[1][view]:.2f}"
            raise AssetError(Reason.INCONSISTENT_VIEWS, detail)
    return (stored, turned)[best]


def _surface_normals(
    points: Float32[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> tuple[Float32[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
    """Directions across neighbouring points, and where they mean something; the last row and column are left out."""
    across, down = points[:-1, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, :-1]
    normal = np.cross(across, down)
    length = np.linalg.norm(normal, axis=-1)
    known = mask[:-1, :-1] & mask[:-1, 1:] & mask[1:, :-1] & (length > 0)
    return normal / np.maximum(length, 1e-30)[..., None], known


def _agreement(
    normal: Float32[np.ndarray, "h w 3"],
    surface: Float32[np.ndarray, "h2 w2 3"],
    known: Bool[np.ndarray, "h2 w2"],
) -> float:
    """Median cosine, either sign; NaN where there is too little to compare."""
    if known.sum() < MIN_COMPARED:
        return float("nan")
    return float(np.median(np.abs((normal[:-1, :-1][known] * surface[known]).sum(axis=-1))))
