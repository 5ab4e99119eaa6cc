"""Our views and bake against Blender's, in one run, one thread each: `python -m benchmarks.blender`.

The same textured mesh, cameras and layout on both sides. Blender: Cycles emission, 4 views of 512^2 at 16 samples, and
an emission bake of 1024^2 (at 16 samples, and at the single one that would do). Its interpreter is warm and the mesh is
in its scene before the clock starts: start-up and scene are told apart. Ours: `render_views` and `bake_uv` as the
pipeline calls them; they also make position, normal, mask and coverage, which Blender is not asked for.

Processor time, so that the ratio holds on a machine that does other things as well.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geometry.cameras import seqtex4
from geometry.frames import bounding_box, normalise
from geometry.image_metrics import capped_psnr
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import pack_surface
from pipeline.blender.host import REMEDY, BlenderConfig, run_worker
from pipeline.filter.measure_mesh import measure
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.render.cycles import describe, read_views, scene
from pipeline.render.uv_maps import BakeConfig, bake_uv
from pipeline.render.views import RenderConfig, render_views
from pipeline.unwrap.unwrap import UnwrapConfig, unwrap
from schemas.ledger import Rejected
from schemas.mesh import TexturedMesh, UvMesh
from schemas.sample import Cameras

REPO = Path(__file__).resolve().parents[1]
RASTERIZER = CpuRasterizer(threads=1)
ASSETS = (
    "cannon_palette_texture.glb",
    "fox_skinned.glb",
    "egyptian_cat_statue_webp.glb",
    "steampunk_robot_base_color_3mat.glb",
    "water_bottle_pbr.glb",
    "flight_helmet_95k_multi_material.glb",
    "cloth_115k_textured.glb",
)
VIEWS, MAP = RenderConfig(), BakeConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    mesh: TexturedMesh
    uv_mesh: UvMesh
    cameras: Cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Processor seconds, the best of all rounds."""

    name: str
    faces: int
    ours: float
    views: float
    bake: float
    bake_single: float
    """At 1 sample."""
    start: float
    scene: float
    psnr: float
    """dB between both sides' views, over pixels that both cover."""

    @property
    def ratio(self) -> float:
        return (self.views + self.bake) / self.ours

    @property
    def ratio_single(self) -> float:
        return (self.views + self.bake_single) / self.ours


def open_case(path: Path) -> Case | Rejected:
    opened = load_asset(path, PreflightConfig())
    if isinstance(opened, Rejected):
        return opened
    facts, loaded = opened
    if isinstance(loaded, Rejected):
        return loaded
    measurements = measure(loaded, facts)
    mesh, _ = normalise(loaded)
    uv_mesh = unwrap(mesh, measurements, UnwrapConfig(), MAP.resolution)
    if isinstance(uv_mesh, Rejected):
        return uv_mesh
    return Case(mesh=mesh, uv_mesh=uv_mesh, cameras=seqtex4(*bounding_box(mesh.vertices, mesh.faces)))


def requests(case: Case, directory: Path) -> list[dict[str, Any]]:
    """Views, bake at 16 samples, bake at 1 sample, all of it twice: the first time warms the interpreter."""
    told = scene(case.mesh, directory / "mesh.npz", "emission", case.uv_mesh.uv[case.uv_mesh.faces])
    told |= {"samples": 16, "seed": 0}
    views = {"command": "render", "directory": str(directory), "cameras": describe(case.cameras)}
    bake = {"command": "bake", "path": str(directory / "map.png"), "resolution": MAP.resolution}
    once = [told | views | {"resolution": VIEWS.resolution}, told | bake, told | bake | {"samples": 1}]
    return once + once


def seconds_of(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(path: Path, cfg: BlenderConfig, rounds: int) -> Row | Rejected:
    """Both sides in turns."""
    case = open_case(path)
    if isinstance(case, Rejected):
        return case

    def ours() -> None:
        surface = pack_surface(case.mesh)
        render_views(case.mesh, case.cameras, VIEWS, RASTERIZER, surface)
        bake_uv(case.mesh, case.uv_mesh, MAP, RASTERIZER, surface)

    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        commands = requests(case, Path(name))
        ours()  # compiles
        for _ in range(rounds):
            answer = run_worker(commands, cfg)
            if isinstance(answer, Rejected):
                return answer
            single = [{"single": stages["bake"]} for stages in answer.seconds[2::3]]
            told = [*answer.seconds[0::3], *answer.seconds[1::3], *single, {"start": answer.start_s}]
            for stages in [*told, *({"ours": seconds_of(ours)} for _ in range(3))]:
                best |= {stage: min(value, best.get(stage, np.inf)) for stage, value in stages.items()}
        pixels = read_views(Path(name), len(case.cameras.projection), VIEWS.resolution)
    if isinstance(pixels, Rejected):
        return pixels
    views = render_views(case.mesh, case.cameras, VIEWS, RASTERIZER)
    return Row(
        name=path.stem,
        faces=len(case.mesh.faces),
        ours=best["ours"],
        views=best["views"],
        bake=best["bake"],
        bake_single=best["single"],
        start=best["start"],
        scene=best["scene"],
        psnr=capped_psnr(pixels[..., :3], views.rgb, views.mask & (pixels[..., 3] == 255)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("SEQTEX_BLENDER", str(REPO / ".venv-blender/bin/python")))
    parser.add_argument("--assets", type=Path, default=Path(os.environ.get("SEQTEX_ASSETS", REPO / "../shared/assets")))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    paths = [options.assets / name for name in ASSETS if (options.assets / name).is_file()]
    if not os.access(options.python, os.X_OK) or not paths:
        lack = f"assets in {options.assets} (SEQTEX_ASSETS)" if not paths else f"Blender: {REMEDY}"
        print(f"against Blender: nothing measured for want of {lack}")
        return
    cfg = BlenderConfig(python=options.python, timeout_s=900, memory_gb=16, threads=1)
    print("processor seconds, best of all rounds; x: (views + bake) / ours, in brackets with the bake at 1 sample")
    print("| asset | faces | ours | Blender views | bake | bake, 1 sample | x | start | scene | views agree, dB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for path in paths:
        row = compare(path, cfg, options.rounds)
        if isinstance(row, Rejected):
            print(f"| {path.stem} | {row.reason}: {row.detail}")
            continue
        rows.append(row)
        print(
            f"| {row.name} | {row.faces:,} | {row.ours:.3f} | {row.views:.2f} | {row.bake:.2f} | {row.bake_single:.2f} "
            f"| {row.ratio:.0f} ({row.ratio_single:.0f}) | {row.start:.2f} | {row.scene:.2f} | {row.psnr:.1f} |",
            flush=True,
        )
    for what, ratios in (("", [row.ratio for row in rows]), (", bake at 1 sample", [row.ratio_single for row in rows])):
        print(f"x{what}: median {statistics.median(ratios):.0f}, least {min(ratios):.0f}, most {max(ratios):.0f}")


if __name__ == "__main__":
    main()
