"""New UV layouts, ours against plain xatlas, and uvunwrap where it is installed (`pip install uvunwrap`), in one run on
one thread each: `python -m benchmarks.unwrap`.

Bumpy tori of several sizes with random texels, and with `--assets DIR` every mesh of that folder given by `--names`.
Processor seconds are of the whole step as the pipeline takes it: welding, a child process, the layout, the checks.
Seam: length of the edges cut, over the root of the surface's area. No texel: share of the surface on faces that cover
no texel's centre. dB: views of the source against views from the baked map.
"""

import argparse
import contextlib
import importlib.util
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.raster import bumpy_torus
from benchmarks.seams import seam_length
from geometry.cameras import seqtex4
from geometry.frames import bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.executor.compile_kernels import warm_up
from pipeline.filter.measure_mesh import topology
from pipeline.mesh_io.load import load_mesh
from pipeline.render.uv_maps import BakeConfig, bake_uv, rasterize_layout, round_trip
from pipeline.render.views import RenderConfig, render_views
from pipeline.unwrap.unwrap import UnwrapConfig, new_layout
from pipeline.unwrap.uv_metrics import coverage, density_spread, layout_stretch, signed_areas
from schemas.ledger import Rejected
from schemas.mesh import GROWN, XATLAS, TexturedMesh, UvMesh

RASTERIZER = CpuRasterizer(threads=1)
MAP = 1024
UVUNWRAP = "uvunwrap"


def uvunwrap_layout(points: np.ndarray, faces: np.ndarray, resolution: int, padding: int) -> dict[str, np.ndarray]:
    """A layout by the package `uvunwrap` with its defaults, as `pipeline.unwrap.unwrap.xatlas_layout` gives one."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    import uvunwrap

    mesh = uvunwrap.Mesh(points.astype(np.float32).reshape(-1).tolist(), faces.reshape(-1).tolist())
    atlas = uvunwrap.generate([mesh], page_size=resolution, padding=padding)
    found = atlas.meshes[0]
    return {
        "uv": np.array(found.uv, np.float32).reshape(-1, 2),
        "faces": np.array(found.indices, np.int64).reshape(-1, 3),
        "origin": np.array(found.xref, np.int64),
        "charts": np.array(atlas.chart_count),
    }


def subjects(sizes: list[int], assets: Path, names: list[str]) -> Iterator[tuple[str, TexturedMesh]]:
    """Names and meshes in the dataset frame."""
    for faces in sizes:
        yield f"torus {faces:,}", bumpy_torus(faces).mesh
    for name in names:
        mesh = load_mesh(assets / name)
        if isinstance(mesh, Rejected):
            raise SystemExit(f"{name}: {mesh.detail}")
        yield Path(name).stem, normalise(mesh)[0]


def quality(mesh: TexturedMesh, uv_mesh: UvMesh) -> str:
    """The columns that tell what a layout is worth."""
    front = rasterize_layout(uv_mesh, MAP, RASTERIZER)
    covered = coverage(uv_mesh.uv, uv_mesh.faces, np.ones(len(uv_mesh.faces), bool))
    assert covered  # within the unit square
    corners = uv_mesh.vertices[uv_mesh.faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    texels = np.bincount(front.face[front.face >= 0], minlength=len(areas))
    lost = areas[texels == 0].sum() / areas.sum()
    uv_areas = signed_areas(uv_mesh.uv, uv_mesh.faces)
    charts = len(np.unique(topology(uv_mesh).chart[uv_areas != 0]))
    _, spread = density_spread(uv_areas, areas)
    cameras = seqtex4(*bounding_box(mesh.vertices, mesh.faces))
    views = render_views(mesh, cameras, RenderConfig(), RASTERIZER)
    proof = round_trip(
        views, uv_mesh, bake_uv(mesh, uv_mesh, BakeConfig(), RASTERIZER), cameras, RenderConfig(), RASTERIZER
    )
    stretch = layout_stretch(uv_mesh.vertices, uv_mesh.faces, uv_mesh.uv)
    return (
        f"{charts:>6} {seam_length(uv_mesh):>6.1f} {covered.fill:>6.3f} "
        f"{covered.overlap_share:>8.5f} {stretch or 0:>8.3f} {spread or 0:>8.2f} {lost:>8.2%} "
        f"{proof.psnr_db:>6.1f}"
    )


def cpu_seconds() -> float:
    """Return the processor seconds of this process and its ended children, one thread each: what others do on the
    machine does not count."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def contest(name: str, mesh: TexturedMesh, limit_s: float, rounds: int) -> None:
    """One line per maker; the least time of `rounds` turns that the makers take after one another."""
    cfg = UnwrapConfig(timeout_s=limit_s, memory_gb=8.0, min_fill=0.0, max_stretch=1e9, max_overlap_share=1.0)
    makers = [XATLAS, GROWN] + [UVUNWRAP] * (importlib.util.find_spec(UVUNWRAP) is not None)
    seconds: dict[str, float] = dict.fromkeys(makers, np.inf)
    found: dict[str, UvMesh | Rejected] = {}
    for _ in range(rounds):
        for maker in seconds:
            if isinstance(found.get(maker), Rejected):
                continue
            start = cpu_seconds()
            with contextlib.ExitStack() as held:
                if maker == UVUNWRAP:
                    held.enter_context(mock.patch("pipeline.unwrap.unwrap.xatlas_layout", uvunwrap_layout))
                found[maker] = new_layout(mesh, (XATLAS if maker == UVUNWRAP else maker,), cfg, MAP)
            seconds[maker] = min(seconds[maker], cpu_seconds() - start)
    for maker, layout in found.items():
        head = f"{name:<28.28} {len(mesh.faces):>8,} {maker:<8}"
        if isinstance(layout, Rejected):
            print(f"{head} {layout.detail}", flush=True)
        else:
            print(f"{head} {seconds[maker]:>7.2f} {quality(mesh, layout)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="*", default=[2_000, 10_000, 50_000, 100_000, 200_000])
    parser.add_argument("--assets", type=Path, default=Path(), help="folder of meshes")
    parser.add_argument("--names", nargs="*", default=[], help="meshes in it")
    parser.add_argument("--limit_s", type=float, default=70.0, help="seconds after which a maker is stopped")
    parser.add_argument("--rounds", type=int, default=2, help="timed turns per maker")
    options = parser.parse_args()
    warm_up()
    print(
        f"{'mesh':<28} {'faces':>8} {'maker':<8} {'CPU s':>7} {'charts':>6} {'seam':>6} {'fill':>6} {'overlap':>8} "
        f"{'stretch':>8} {'p95/p5':>8} {'no texel':>8} {'dB':>6}"
    )
    for name, mesh in subjects(options.faces, options.assets, options.names):
        contest(name, mesh, options.limit_s, options.rounds)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"largest child process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
