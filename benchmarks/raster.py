"""Our rasteriser against Embree, in one run, one thread each: `python -m benchmarks.raster`.

Ours does the whole work of an asset's images: 4 views of 512^2 and one 1024^2 UV map, rasterised, position and normal
interpolated, base colour looked up in a 1024^2 texture. Embree only casts the rays for the same pixels (scene already
built, rays already made): no interpolation, no colour. Both keep memory that they have freed, as a build's workers do.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.embree import hits_only, layout_rays, scene_of, view_rays
from geometry.cameras import project, seqtex4
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import pack_surface, surface_color
from pipeline.render.uv_maps import BakeConfig, bake_uv, rasterize_layout
from pipeline.render.views import RenderConfig, interpolate_geometry, render_views, wear
from pipeline.sandbox.linux import keep_freed_memory
from schemas.mesh import TexturedMesh, UvMesh
from schemas.sample import Cameras

RASTERIZER = CpuRasterizer(threads=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    mesh: TexturedMesh
    uv_mesh: UvMesh
    cameras: Cameras


def bumpy_torus(faces: int, seed: int = 0) -> Case:
    """A closed, non-convex surface with one chart over the whole square and a random texture."""
    rows = int(np.sqrt(faces / 4))
    columns = faces // (2 * rows)
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    around, across = 2 * np.pi * u, 2 * np.pi * v
    tube = 0.3 + 0.05 * np.sin(9 * around) * np.cos(5 * across)
    ring = 0.65 + tube * np.cos(across)
    points = np.stack([ring * np.cos(around), ring * np.sin(around), 2 * tube * np.sin(across)], -1).reshape(-1, 3)
    direction = np.stack([np.cos(across) * np.cos(around), np.cos(across) * np.sin(around), np.sin(across)], -1)
    first = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1, 1)
    quads = first + np.array([[0, 1, columns + 2, 0, columns + 2, columns + 1]])
    uv_mesh = UvMesh(
        vertices=(points / np.abs(points).max()).astype(np.float32),
        normals=direction.reshape(-1, 3).astype(np.float32),
        uv=np.stack([u, v], -1).reshape(-1, 2).astype(np.float32),
        faces=quads.reshape(-1, 3).astype(np.int32),
        layout="authored",
    )
    image = np.random.default_rng(seed).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    lower, upper = uv_mesh.vertices.min(axis=0), uv_mesh.vertices.max(axis=0)
    return Case(mesh=wear(uv_mesh, image), uv_mesh=uv_mesh, cameras=seqtex4(lower, upper))


def one_sample(case: Case) -> None:
    """Rasterise, interpolate, shade, at the centres of the pixels that Embree gets."""
    surface = pack_surface(case.mesh)
    clip = project(case.mesh.vertices, case.cameras.world_to_clip)
    for fragments in (
        RASTERIZER.rasterize(clip, case.mesh.faces, 512, 512),
        rasterize_layout(case.uv_mesh, 1024, RASTERIZER),
    ):
        interpolate_geometry(fragments, case.mesh)
        surface_color(surface, fragments)


def whole(case: Case, supersample: int) -> None:
    """Render the views and bake the map of an asset, as the pipeline does."""
    render_views(case.mesh, case.cameras, RenderConfig(supersample=supersample), RASTERIZER)
    bake_uv(case.mesh, case.uv_mesh, BakeConfig(supersample=supersample), RASTERIZER)


def embree(case: Case) -> Callable[[], None]:
    """The ray casts alone."""
    scene = scene_of(case.uv_mesh.vertices, case.uv_mesh.faces)
    flat = scene_of(np.pad(case.uv_mesh.uv, ((0, 0), (0, 1))), case.uv_mesh.faces)
    rays = view_rays(case.cameras, 512)
    texels = layout_rays(1024)

    def cast() -> None:
        for view in rays:
            hits_only(scene, view)
        hits_only(flat, texels)

    return cast


def medians(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time. Contestants take turns, so that whatever else the machine does meets all."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            if turn:  # the first compiles and warms up
                times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed turns per contestant")
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    keep_freed_memory()
    print("milliseconds of processor time, median; 4 views of 512^2 + one 1024^2 UV map; one thread each")
    print(f"{'faces':>9} {'embree':>9} {'ours':>9} {'embree/ours':>12} {'whole, 1 sample':>16} {'whole, 2 x 2':>13}")
    for faces in options.faces:
        case = bumpy_torus(faces)
        result = medians(
            {
                "embree": embree(case),
                "ours": partial(one_sample, case),
                "single": partial(whole, case, 1),
                "double": partial(whole, case, 2),
            },
            options.rounds,
        )
        print(
            f"{len(case.mesh.faces):>9} {result['embree']:>9.0f} {result['ours']:>9.0f} "
            f"{result['embree'] / result['ours']:>12.2f} {result['single']:>16.0f} {result['double']:>13.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
