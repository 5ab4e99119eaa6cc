"""Processor time of every stage of the pipeline on real assets, one core: `python -m benchmarks.stages`.

Assets: the folder in $SEQTEX_ASSETS, else ../shared/assets, else procedural ones. Each is processed in this process
as a job's child does it, several times; the least processor time of every stage counts.
"""

import argparse
import os
import resource
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import asset as stages
from pipeline.asset import BuildConfig, process_asset
from pipeline.executor.compile_kernels import warm_up
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.codec import encode
from schemas.mesh import MeshRef
from schemas.sample import TextureSample

STAGES = {
    "load": ("load_asset", "normalise"),
    "measure": ("measure", "measure_views", "measure_map"),
    "views": ("see", "render_views"),
    "unwrap": ("unwrap",),
    "bake": ("bake_uv",),
    "round trip": ("round_trip",),
}
"""Functions of `pipeline.asset` that make up each stage."""


def now() -> float:
    """Processor seconds of this process and its children: other work on the machine hardly counts."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Seconds by stage, of whatever is processed meanwhile."""
    seconds: dict[str, float] = defaultdict(float)
    originals = {name: getattr(stages, name) for names in STAGES.values() for name in names}

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = now()
            try:
                return function(*arguments, **options)
            finally:
                seconds[stage] += now() - start

        return run

    for stage, names in STAGES.items():
        for name in names:
            setattr(stages, name, timed(stage, originals[name]))
    try:
        yield seconds
    finally:
        for name, function in originals.items():
            setattr(stages, name, function)


def measure_asset(ref: MeshRef, cfg: BuildConfig) -> tuple[str, dict[str, float]]:
    """Process an asset; return the kind of its result and processor seconds by stage, encoding and whole included."""
    start = now()
    with clocks() as seconds:
        processed = process_asset(ref, cfg)
        kind = "rejected"
        if isinstance(processed.result, TextureSample):
            kind = f"textured, {processed.measurements.layout}" if processed.result.uv is not None else "mv_only"
            begun = now()
            encode(processed.result)
            seconds["encode"] = now() - begun
    seconds["whole"] = now() - start
    return kind, dict(seconds)


def assets(directory: Path) -> list[MeshRef]:
    found = Path(os.environ.get("SEQTEX_ASSETS", "../shared/assets"))
    return list(folder(found)) if found.is_dir() else list(procedural(40, directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each asset is processed")
    parser.add_argument("--each", action="store_true", help="also print every asset")
    parser.add_argument("--materials", action="store_true", help="compare with datasets that hold materials instead")
    options = parser.parse_args()
    warm_up()
    if options.materials:
        compare_materials(options.rounds)
        return
    cfg, groups = BuildConfig(), defaultdict[str, list[dict[str, float]]](list)
    with tempfile.TemporaryDirectory() as directory:
        for ref in assets(Path(directory)):
            rounds = [measure_asset(ref, cfg) for _ in range(options.rounds)]
            kind = rounds[0][0]
            best = {stage: min(times.get(stage, 0.0) for _, times in rounds) for stage in rounds[0][1]}
            groups[kind].append(best)
            if options.each:
                print(f"{ref.uid[:48]:<48} {kind:<20} {best['whole']:6.2f} s", flush=True)
    accepted = [best for kind, rows in groups.items() if kind != "rejected" for best in rows]
    table("accepted", accepted)
    for kind, rows in sorted(groups.items()):
        table(kind, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of the process that did all of them: {peak:,.0f} MB")


PROOFS = ("metallic_psnr", "roughness_psnr", "emissive_psnr", "normal_error_deg")


def compare_materials(rounds: int) -> None:
    """Processor time of every accepted asset with and without materials, and the proofs of its maps."""
    plain, times, proofs = BuildConfig(), list[tuple[float, float]](), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as directory:
        for ref in assets(Path(directory)):
            costs = []
            for cfg in (plain, replace(plain, materials=True)):
                seconds = []
                for _ in range(rounds):
                    start = now()
                    processed = process_asset(ref, cfg)
                    if isinstance(processed.result, TextureSample):
                        encode(processed.result)
                    seconds.append(now() - start)
                costs.append(min(seconds))
            if isinstance(processed.result, TextureSample):
                times.append((costs[0], costs[1]))
                for name in PROOFS:
                    if (value := getattr(processed.measurements, name)) is not None:
                        proofs[name].append(value)
    without, with_them = np.array(times).T
    print(f"{len(times)} accepted assets; seconds without: median {np.median(without):.2f}, all {without.sum():.1f}")
    print(f"with materials: median {np.median(with_them):.2f}, all {with_them.sum():.1f}")
    print(f"ratio: median {np.median(with_them / without):.2f}, of all {with_them.sum() / without.sum():.2f}")
    for name, values in proofs.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        print(f"{name}: {len(values)} maps, p5 {low:.2f}, median {middle:.2f}, p95 {high:.2f}")


def table(title: str, rows: list[dict[str, float]]) -> None:
    if not rows:
        return
    names = [*STAGES, "encode", "whole"]
    print(f"\n{title}: {len(rows)} assets, milliseconds, one core")
    print("".join(f"{name:>12}" for name in ["", *names]))
    for label, share in (("median", 50), ("p95", 95)):
        values = [1e3 * np.percentile([row.get(name, 0.0) for row in rows], share) for name in names]
        print(f"{label:>12}" + "".join(f"{value:12.0f}" for value in values))


if __name__ == "__main__":
    main()
