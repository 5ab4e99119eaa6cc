"""Every compiled kernel, once, before the first asset: what a process that has done this forks finds them in memory,
and need not compile within the limits of an asset."""

import gc
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numba.core.caching import FunctionCache

from geometry.frames import bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from geometry.rigs import RigConfig, rig_cameras
from pipeline.asset import process_asset
from pipeline.bake import BakeConfig
from pipeline.config import BuildConfig
from pipeline.glb import write_glb
from pipeline.judge import JudgeConfig
from pipeline.load import load_mesh
from pipeline.render import RenderConfig
from pipeline.shade import render_lit
from pipeline.unwrap.grow import grown_layout
from pipeline.weld import weld
from schemas.ledger import Rejected
from schemas.mesh import MeshRef, Shading, UvMesh

_ANYTHING = JudgeConfig(min_round_trip_db=0.0, min_color_std=0.0, min_distinct_colors=0)
_SMALL = BuildConfig(views=RenderConfig(resolution=16), uv=BakeConfig(resolution=32), judge=_ANYTHING)


def warm_up() -> None:
    """Take small assets all the way, and see to it that nothing compiled from here on is written to disk: what a child
    may write is not to be run by another one."""
    with tempfile.TemporaryDirectory(prefix="warm-up-") as name:
        path = Path(name) / "ball.glb"
        for turns in (1, 4):  # a layout to keep, and one that overlaps
            write_glb(path, _ball(turns), _checks(), None)
            process_asset(MeshRef(uid="warm-up", uri=str(path)), _SMALL)
            _light(path)
    warm_up_layouts()
    for cache in gc.get_objects():
        if isinstance(cache, FunctionCache):
            cache.disable()


def warm_up_layouts() -> None:
    """In this process: of assets, a child of theirs makes the new layouts, within limits of its own."""
    for points, faces in (_ribbon(), _bumpy_ball()):
        grown_layout(points, faces, 64, 2)


def _ball(turns: int) -> UvMesh:
    """`turns`: how often the layout goes over the unit square, in each direction."""
    up, around, faces = _grid(6, 8)
    points = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], axis=-1)
    uv = np.stack([around / (2 * np.pi), up / 3 + 0.5], axis=-1) * turns % 1.0
    flat = points.reshape(-1, 3).astype(np.float32)
    return UvMesh(
        vertices=flat, normals=flat, uv=uv.reshape(-1, 2).astype(np.float32), faces=faces.astype(np.int32), layout=""
    )


def _grid(
    rows: int, columns: int
) -> tuple[Float64[np.ndarray, "r c"], Float64[np.ndarray, "r c"], Int64[np.ndarray, "f 3"]]:
    """Latitude and longitude of points on a sphere without its poles, and the faces between them."""
    up, around = np.meshgrid(np.linspace(-1.5, 1.5, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij")
    first = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    quads = np.stack([first, first + 1, first + columns, first + columns + 1], axis=1)
    return up, around, np.concatenate([quads[:, [0, 1, 2]], quads[:, [1, 3, 2]]])


def _ribbon() -> tuple[Float64[np.ndarray, "w 3"], Int64[np.ndarray, "f 3"]]:
    """So long that its chart has to be halved."""
    x = np.linspace(0, 1, 41)
    points = np.stack([np.repeat(x, 2), np.tile([0, 1 / 40], 41), np.zeros(82)], axis=1)
    corners = np.array([[0, 2, 1], [1, 2, 3]]) + np.arange(0, 80, 2)[:, None, None]
    return points, corners.reshape(-1, 3)


def _bumpy_ball() -> tuple[Float64[np.ndarray, "w 3"], Int64[np.ndarray, "f 3"]]:
    """Of charts that can be sewn together."""
    up, around, faces = _grid(16, 24)
    radius = 0.4 * (1 + 0.2 * np.sin(5 * up) * np.sin(4 * around))
    points = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], axis=-1)
    rounded = (points * radius[..., None]).reshape(-1, 3).round(5).astype(np.float32)
    welded, corners = weld(rounded, faces.astype(np.int32))
    return welded.astype(np.float64), corners


def _checks() -> UInt8[np.ndarray, "32 32 3"]:
    squares = np.indices((8, 8)).sum(axis=0) % 2
    return np.kron(squares, np.full((4, 4), 255))[..., None].repeat(3, -1).astype(np.uint8)


def _light(path: Path) -> None:
    """As `views.lit: pbr` does, with every kind of texture."""
    loaded = load_mesh(path, shading=True)
    assert not isinstance(loaded, Rejected), loaded
    mesh, _ = normalise(loaded)
    every = Shading(metallic_roughness=0, emissive_texture=0, normal_map=0)
    mesh = replace(mesh, materials=tuple(replace(material, shading=every) for material in mesh.materials))
    cameras = rig_cameras(RigConfig(), *bounding_box(mesh.vertices, mesh.faces))
    render_lit(mesh, cameras, _SMALL.views, CpuRasterizer())
