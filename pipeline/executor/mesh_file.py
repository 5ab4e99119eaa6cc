"""A mesh file as a mesh with a UV layout, opened by a sandboxed process: for those who texture meshes."""

import atexit
import functools
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from geometry.frames import Frame, normalise
from pipeline.asset import too_small
from pipeline.executor.job import WARM_UP
from pipeline.filter.measure_mesh import measure
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.preflight import UpAxis
from pipeline.sandbox.child import LimitsConfig, insist, stderr_tail
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sandbox.policy import folder_of
from pipeline.unwrap.unwrap import UnwrapConfig, unwrap
from schemas.ledger import Reason, Rejected
from schemas.mesh import LAYOUTS, MAX_MESH_BYTES, UvMesh, decode_mesh, encode_mesh

LIMITS = LimitsConfig(timeout_s=1200.0, memory_gb=8.0)
"""Longer and more than in a build: here someone waits for one mesh."""
_FRAME, _MESH, _MAX_FRAME_BYTES = "frame.json", "mesh.npz", 1 << 16


def open_mesh_file(
    path: Path, cfg: UnwrapConfig, uv_resolution: int, up_axis: UpAxis = "y"
) -> tuple[UvMesh, Frame] | Rejected:
    """Load, normalise and unwrap a mesh file; the frame is the way back to the file's, with Y up. `up_axis`: of formats
    that do not say it. Raises MachineError where no sandboxed process starts here."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as name:
        directory = Path(name)
        request = {"path": str(path.absolute()), "unwrap": asdict(cfg), "uv_resolution": uv_resolution}
        request |= {"up_axis": up_axis}
        readable = folder_of(path.absolute()) if path.is_file() else ()
        ended = insist(lambda: _server().run(request, directory, readable))
        if ended.reason is not None:
            return Rejected(reason=ended.reason, detail=ended.detail)
        try:
            return _read(directory)
        except (OSError, ValueError, KeyError, TypeError) as error:
            detail = f"its process left no mesh ({error}); {stderr_tail(directory)}".removesuffix("; ")
            return Rejected(reason=Reason.CRASHED, detail=detail)


def _read(directory: Path) -> tuple[UvMesh, Frame] | Rejected:
    """Read what `open_in_child` left. Raises ValueError, KeyError, TypeError or OSError where it is something else."""
    left = json.loads(_plain(directory / _FRAME, _MAX_FRAME_BYTES))
    if left["rejected"] is not None:
        return Rejected(reason=Reason(left["rejected"]["reason"]), detail=str(left["rejected"]["detail"]))
    center, scale = np.array(left["center"], np.float64), float(left["scale"])
    if left["layout"] not in LAYOUTS or center.shape != (3,) or not np.isfinite([*center, scale]).all() or scale <= 0:
        raise ValueError("no frame, or no layout")
    mesh = decode_mesh(_plain(directory / _MESH, MAX_MESH_BYTES), left["layout"])
    return mesh, Frame(center=center, scale=scale)


def _plain(path: Path, max_bytes: int) -> bytes:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > max_bytes:
        raise ValueError(f"{path.name} is no file of at most {max_bytes:,} bytes")
    return path.read_bytes()


def open_in_child(request: dict[str, Any], directory: Path) -> None:
    """The sandboxed side of `open_mesh_file`."""
    opened = _open(
        Path(request["path"]), UnwrapConfig(**request["unwrap"]), request["uv_resolution"], request["up_axis"]
    )
    left: dict[str, Any] = {"rejected": None}
    if isinstance(opened, Rejected):
        left["rejected"] = asdict(opened)
    else:
        mesh, frame = opened
        (directory / _MESH).write_bytes(encode_mesh(mesh))
        left |= {"layout": mesh.layout, "center": frame.center.tolist(), "scale": frame.scale}
    (directory / _FRAME).write_text(json.dumps(left))


def _open(path: Path, cfg: UnwrapConfig, uv_resolution: int, up_axis: UpAxis) -> tuple[UvMesh, Frame] | Rejected:
    loaded = load_mesh(path, up_axis=up_axis)
    if isinstance(loaded, Rejected):
        return loaded
    measurements = measure(loaded, None)
    if rejected := too_small(measurements):
        return rejected
    normalised, frame = normalise(loaded)
    mesh = unwrap(normalised, measurements, cfg, uv_resolution)
    return mesh if isinstance(mesh, Rejected) else (mesh, frame)


@functools.cache
def _server() -> ForkServer:
    """One for all meshes of this process: its imports cost a second."""
    directory = tempfile.TemporaryDirectory(prefix="seqtex-fork_server-", ignore_cleanup_errors=True)
    server = ForkServer(f"{__name__}:open_in_child", LIMITS, Path(directory.name), WARM_UP)
    atexit.register(directory.cleanup)
    atexit.register(server.stop)
    return server
