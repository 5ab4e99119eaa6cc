"""A mesh file as a mesh with a UV layout, opened by a sandboxed process: for those who texture meshes."""

import atexit
import functools
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geometry.frames import Frame, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import too_small
from pipeline.executor.job import WARM_UP
from pipeline.filter.measure_mesh import measure
from pipeline.mesh_io.kept_file import MAX_KEPT_BYTES, decode_kept, encode_kept
from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import PreflightConfig, UpAxis
from pipeline.mesh_io.write_glb import KeptMaterials, plain_materials
from pipeline.render.keep_materials import keep_materials
from pipeline.render.uv_maps import BakeConfig
from pipeline.sandbox.child import LimitsConfig, insist, stderr_tail
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sandbox.policy import folder_of
from pipeline.unwrap.unwrap import UnwrapConfig, unwrap
from schemas.ledger import NoteKind, Reason, Rejected
from schemas.mesh import LAYOUTS, MAX_MESH_BYTES, TexturedMesh, UvMesh, decode_mesh, encode_mesh

LIMITS = LimitsConfig(timeout_s=1200.0, memory_gb=8.0)
"""Longer and more than in a build: here someone waits for one mesh."""
_FRAME, _MESH, _KEPT, _MAX_FRAME_BYTES = "frame.json", "mesh.npz", "kept.safetensors", 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedMesh:
    """A mesh file, ready to be textured."""

    mesh: UvMesh
    """Dataset frame."""
    frame: Frame
    """The way back to the frame of the file, with Y up."""
    kept: KeptMaterials
    """Materials of the file beside the base colour."""


def open_mesh_file(path: Path, cfg: UnwrapConfig, uv_resolution: int, up_axis: UpAxis = "y") -> OpenedMesh | Rejected:
    """Load, normalise and unwrap a mesh file; maps of a new layout get `uv_resolution` texels a side. `up_axis`: of
    formats that do not say it. Raises MachineError where no sandboxed process starts here."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as name:
        directory = Path(name)
        request = {"path": str(path.absolute()), "unwrap": asdict(cfg), "uv_resolution": uv_resolution}
        request |= {"up_axis": up_axis}
        readable = folder_of(path.absolute()) if path.is_file() else ()
        ended = insist(lambda: _server().run(request, directory, readable))
        if ended.reason is not None:
            return Rejected(reason=ended.reason, detail=ended.detail)
        try:
            return _read(directory, uv_resolution)
        except (OSError, ValueError, KeyError, TypeError) as error:
            detail = f"its process left no mesh ({error}); {stderr_tail(directory)}".removesuffix("; ")
            return Rejected(reason=Reason.CRASHED, detail=detail)


def _read(directory: Path, uv_resolution: int) -> OpenedMesh | Rejected:
    """Read what `open_in_child` left. Raises ValueError, KeyError, TypeError or OSError where it is something else."""
    left = json.loads(_plain(directory / _FRAME, _MAX_FRAME_BYTES))
    if left["rejected"] is not None:
        return Rejected(reason=Reason(left["rejected"]["reason"]), detail=str(left["rejected"]["detail"]))
    center, scale = np.array(left["center"], np.float64), float(left["scale"])
    if left["layout"] not in LAYOUTS or center.shape != (3,) or not np.isfinite([*center, scale]).all() or scale <= 0:
        raise ValueError("no frame, or no layout")
    mesh = decode_mesh(_plain(directory / _MESH, MAX_MESH_BYTES), left["layout"])
    kept = decode_kept(_plain(directory / _KEPT, MAX_KEPT_BYTES), mesh, uv_resolution)
    return OpenedMesh(mesh=mesh, frame=Frame(center=center, scale=scale), kept=kept)


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
        (directory / _MESH).write_bytes(encode_mesh(opened.mesh))
        (directory / _KEPT).write_bytes(encode_kept(opened.kept))
        left |= {"layout": opened.mesh.layout, "center": opened.frame.center.tolist(), "scale": opened.frame.scale}
    (directory / _FRAME).write_text(json.dumps(left))


def _open(path: Path, cfg: UnwrapConfig, uv_resolution: int, up_axis: UpAxis) -> OpenedMesh | Rejected:
    loaded, skipped = _load(path, up_axis)
    if isinstance(loaded, Rejected):
        return loaded
    measurements = measure(loaded, None)
    if rejected := too_small(measurements):
        return rejected
    normalised, frame = normalise(loaded)
    mesh = unwrap(normalised, measurements, cfg, uv_resolution)
    if isinstance(mesh, Rejected):
        return mesh
    if normalised.layers is None:
        return OpenedMesh(mesh=mesh, frame=frame, kept=replace(plain_materials(mesh), skipped=skipped))
    kept = keep_materials(normalised, mesh, BakeConfig(resolution=uv_resolution), CpuRasterizer(), skipped)
    return OpenedMesh(mesh=mesh, frame=frame, kept=kept)


def _load(path: Path, up_axis: UpAxis) -> tuple[TexturedMesh | Rejected, tuple[str, ...]]:
    """Load a mesh with its materials, or without them where their images are too large; also what was skipped."""
    cfg = PreflightConfig()
    found = load_asset(path, cfg, path.parent, originals=True, up_axis=up_axis)
    if not isinstance(found, Rejected):
        facts, mesh = found
        if not (isinstance(mesh, Rejected) and mesh.reason is Reason.TOO_LARGE):
            notes = [note for note in facts.notes if note.kind is NoteKind.DATA_IGNORED]
            more = [f" and {note.count - 1} more" if note.count > 1 else "" for note in notes]
            return mesh, tuple(f"{note.detail}{rest}" for note, rest in zip(notes, more, strict=True))
        bare = load_mesh(path, cfg, up_axis=up_axis)
        return bare, (f"all maps but the base colour: {mesh.detail}",)
    return found, ()


@functools.cache
def _server() -> ForkServer:
    """One for all meshes of this process: its imports cost a second."""
    directory = tempfile.TemporaryDirectory(prefix="seqtex-fork_server-", ignore_cleanup_errors=True)
    server = ForkServer(f"{__name__}:open_in_child", LIMITS, Path(directory.name), WARM_UP)
    atexit.register(directory.cleanup)
    atexit.register(server.stop)
    return server
