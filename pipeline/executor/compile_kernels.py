"""Compile the kernels of a build once per machine, in parallel: `python -m pipeline.executor.compile_kernels`.

Numba caches machine code on disk, beside the sources or in NUMBA_CACHE_DIR. Whoever finds that something is missing
there takes a lock, compiles it in as many processes as there are processors, and lets those go on that wait."""

import contextlib
import gc
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numba import typeof, types
from numba.core.caching import FunctionCache
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature
from PIL import Image

from geometry.shading import split_sum_table
from geometry.texture import SRGB_DECODE, PackedSurface
from pipeline.filter.signature import layout_patterns
from pipeline.filter.surface_samples import weights_within
from pipeline.sandbox.fork_server import clean_environment
from pipeline.sandbox.linux import die_with_parent, keep_freed_memory
from pipeline.sandbox.policy import REPO

KERNELS: dict[str, tuple[tuple[str, str], ...]] = {
    "geometry.kernels.texel": (
        (
            "texel_rows",
            "surface, i4[:,::1], f4[:,:,::1], i4[:,::1], i8, f4[:,::1], i4[:,::1], f8[::1], f8[::1], f4[:,:,::1], "
            "b1[:,::1], b1[::1]",
        ),
    ),
    "geometry.kernels.color": (
        ("pixel_rows", "surface, i4[:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], i8, f8[::1], f4[:,:,::1]"),
        ("color_rows", "surface, i4[:,::1], f4[:,:,::1], f4[:,::1], f8[::1], f4[:,:,::1]"),
        ("point_rows", "surface, i4[:,::1], f4[:,:,::1], f8[::1], f8[::1], u8[::1], f4[::1], f4[:,:,::1]"),
    ),
    "schemas.png_kernels": (
        ("position_rows", "f4[:,:,::1], b1[:,::1], u1[:,::1]"),
        ("normal_rows", "f4[:,:,::1], b1[:,::1], u1[:,::1]"),
    ),
    "pipeline.unwrap.kernels.stitch": (
        (
            "sew",
            "i8[::1], i8[::1], i8[::1], i8[:,::1], i8[:,::1], f8[:,:,::1], f8[:,::1], f8[:,::1], f8[::1], i8[::1], f8, "
            "f8, f8",
        ),
    ),
    "pipeline.unwrap.kernels.flatten": (
        ("relax_all", "i8[::1], i8[::1], i8[::1], i8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], i8, i8"),
    ),
    "pipeline.unwrap.kernels.stretch": (
        ("box_sides", "f8[:,::1]"),
        ("face_stretch", "i8[:,::1], f8[:,::1], f8[:,::1]"),
        ("sound_charts", "i8[::1], i8[::1], i8[::1], i8[:,::1], f8[:,::1], f8"),
    ),
    "pipeline.unwrap.kernels.pack": (
        ("chart_runs", "f8[:,::1], i8[:,::1], i8[::1], i8[::1]"),
        ("pack_at", "i8[::1], i8[:,::1], i8[:,::1], i8[::1], u2[:,::1], u2[:,::1], i8, i8"),
        ("place_vertices", "i8[::1], f8[:,::1], i8[:,::1], i8[::1], i8[:,::1]"),
        ("turn_charts", "i8[::1], f8[:,::1]"),
    ),
    "geometry.kernels.raster": (
        (
            "rasterize_rows",
            "f4[:,::1], u4[:,::1], b1[::1], i4[:,::1], f4[::1], u1[::1], i8, i8, i4[:,::1], f4[:,::1], b1, i4[:,::1], "
            "f4[:,::1]",
        ),
    ),
    "geometry.kernels.clip": (
        ("project_points", "f4[::1], f8[:,:,::1], f4[:,::1]"),
        ("snap_vertices", "f4[::1], i8, i8, i4[::1], f4[::1], u1[::1]"),
    ),
    "pipeline.unwrap.kernels.chart": (
        ("connected_pieces", "i8[::1], i8[::1]"),
        ("join_corners", "i8[::1]"),
        (
            "merge_round",
            "i8[::1], i8[::1], i8[::1], f8[::1], f8[:,::1], f8, i8[::1], f8[:,::1], f8[::1], f8[::1], i8[::1], i8[::1]",
        ),
        ("pair_edges", "i8[::1], i8[::1], b1[::1], f8[:,::1]"),
    ),
    "geometry.kernels.measure": (
        ("count_bits", "u1[:,::1]"),
        ("count_components", "i8[:,::1], i8"),
        (
            "count_sheet_pixels",
            "f4[:,:,::1], f4[:,:,::1], b1[:,::1], f4[:,:,::1], b1[:,::1], f8[::1], f8[::1], f8[:,::1], i8, f8, f8",
        ),
        ("cover_layout", "f8[:,::1], i4[:,::1], b1[::1], i8"),
        ("edge_keys", "i8[:,::1], i8"),
        ("sum_differences", "u1[:,::1], u1[:,::1], b1[::1], i8"),
        ("sum_gradients", "u1[:,:,::1], b1[:,::1]"),
        ("walk_edges", "i8[::1], i8[::1], i8[:,::1], i4[:,::1], f4[:,::1]"),
    ),
    "geometry.kernels.shading": (
        ("halve", "u1[:,:,::1], f4[::1], f4[::1]"),
        (
            "shade_rows",
            "i4[:,::1], f4[:,:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], f4[:,::1], f4[:,::1], i4[::1], b1[::1], "
            "f4[:,::1], i8[:,::1], i8[:,::1], i8[:,::1], u1[:,::1], f4[::1], f4[::1], f4[:,::1], f4[::1], f8[::1], "
            "f8[:,::1], f4[:,:,::1], f4[::1], f4[:,:,::1]",
        ),
    ),
    "geometry.kernels.interpolate": (
        ("resolve_rows", "i4[:,::1], f4[:,::1], u4[:,::1], i8, i8, i4[:,::1], f4[:,:,::1], f4[:,::1]"),
        ("interpolate_rows", "i4[:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], f4[:,:,::1], i8, i8"),
        (
            "surface_rows",
            "i4[:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], f4[:,::1], f8, f4[:,:,::1], f4[:,:,::1], b1[:,::1]",
        ),
        (
            "bend_rows",
            "i4[:,::1], f4[:,:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], f4[:,:,::1], i4[::1], f4[::1], f8, f8[:,::1], "
            "f4[:,:,::1]",
        ),
        (
            "tangent_rows",
            "i4[:,::1], f4[:,:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], f4[:,:,::1], f8[:,::1], f4[:,:,::1]",
        ),
        ("unit_rows", "f4[:,:,::1], b1[:,::1], f8"),
    ),
    "geometry.kernels.samples": (
        ("box_around", "f4[:,::1], i4[:,::1], f8[::1], f8[::1]"),
        ("column_sums", "f8[:,::1], f8[::1]"),
        ("count_colors", "u1[:,::1], i8, i8[::1], i8[::1], i8[::1], i8[::1]"),
        (
            "gather_layout",
            "f8[:,::1], f4[:,::1], f4[:,::1], i4[:,::1], b1[::1], i4[::1], f4[:,::1], f8[:,::1], f8[:,:,::1], "
            "f8[:,:,::1]",
        ),
        ("gather_shells", "f8[::1], u1[:,::1], b1[::1], f8[::1], f8[:,::1]"),
        ("lengths_between", "f8[:,::1], i8[::1], i8, f8[::1]"),
        ("points_on_faces", "f4[:,::1], i4[:,::1], i4[::1], f4[:,::1], f8[:,::1]"),
        ("weighted_corners", "f4[:,::1], f8[::1], f8, i4[:,::1], i4[::1], f4[:,::1], f8[:,::1]"),
    ),
    "geometry.gutter": (
        ("grow", "f4[:,:,::1], b1[:,::1], i8"),
        ("pull", "f4[:,:,::1], b1[:,::1]"),
        ("push", "f4[:,:,::1], b1[:,::1], f4[:,:,::1]"),
    ),
    "geometry.mips": (
        ("halve", "f4[:,:,::1], f4[::1], b1, b1, f4[:,:,::1]"),
        ("halve", "u1[:,:,::1], f4[::1], b1, b1, f4[:,:,::1]"),
        ("quarter", "f4[:,:,::1], f4[::1], b1, b1, f4[:,:,::1]"),
        ("quarter", "u1[:,:,::1], f4[::1], b1, b1, f4[:,:,::1]"),
        ("to_fractions", "f4[:,:,::1], u2[:,:,::1]"),
    ),
    "geometry.kernels.average": (
        ("average_rows", "f4[:,:,::1], b1[:,::1], i8, f4[:,:,::1], b1[:,::1]"),
        ("coverage_rows", "i4[:,::1], b1[:,::1], i8, u1[::1], u1[:,::1]"),
        ("encode_pixels", "f4[:,::1], b1[::1], f4[::1], u1[::1], u1[:,::1]"),
        ("encode_rows", "f4[::1], f4[::1], u1[::1], u1[::1]"),
    ),
}
"""Every kernel that Python calls in a build, by module, with the types that it is called with (numba's notation;
`surface` is a `PackedSurface`). Those that kernels call are compiled with them.
`tests/pipeline/executor/test_warm_up.py` finds what is missing here."""

LAYOUTS = (
    *(f"pipeline.unwrap.kernels.{name}" for name in ("stitch", "flatten", "stretch", "pack", "chart")),
    "geometry.kernels.measure",
)
"""Modules that make new layouts."""

GROUPS = (
    ("geometry.kernels.texel", "geometry.kernels.color"),
    LAYOUTS[:3],
    LAYOUTS[3:4],
    ("geometry.kernels.raster", "geometry.kernels.clip"),
    LAYOUTS[4:],
    ("geometry.kernels.shading",),
    ("geometry.gutter", "schemas.png_kernels"),
    ("geometry.mips", "geometry.kernels.average", "geometry.kernels.interpolate", "geometry.kernels.samples"),
)
"""Modules that one process compiles, since they share inner kernels; the longest first."""


def kernels_of(modules: Collection[str]) -> Iterator[tuple[CPUDispatcher, tuple[types.Type, ...]]]:
    """The kernels of some modules, with the types of their arguments."""
    for module in modules:
        for name, signature in KERNELS[module]:
            plain, _ = normalize_signature(f"({signature.removeprefix('surface, ')},)")
            arguments = (_surface(), *plain) if signature.startswith("surface") else plain
            yield getattr(importlib.import_module(module), name), arguments


def _surface() -> types.Type:
    return typeof(
        PackedSurface(
            faces=np.zeros((0, 3), np.int32),
            uv=np.zeros((0, 2), np.float32),
            colors=np.zeros((0, 4), np.float32),
            has_colors=False,
            face_material=np.zeros(0, np.int32),
            face_has_uv=np.zeros(0, bool),
            single_sided=np.zeros(0, bool),
            factors=np.zeros((0, 4), np.float32),
            cutoffs=np.zeros(0, np.float32),
            material_sampler=np.zeros(0, np.int64),
            samplers=np.zeros((0, 8), np.int64),
            texels=np.zeros((0, 4), np.uint8),
            levels=np.zeros((0, 3), np.int64),
            mips=np.zeros((0, 4), np.uint16),
            decode=SRGB_DECODE,
        )
    )


def load_kernels(modules: Collection[str] = tuple(KERNELS)) -> None:
    """Have the kernels of some modules ready in this process: from the cache, or compiled where they are not there."""
    for kernel, arguments in kernels_of(modules):
        kernel.compile(arguments)


def uncached_groups() -> list[tuple[str, ...]]:
    """Groups with a kernel that this machine's cache does not have."""
    return [group for group in GROUPS if not all(_is_cached(*kernel) for kernel in kernels_of(group))]


def _is_cached(kernel: Any, arguments: tuple[types.Type, ...]) -> bool:
    """Look a kernel up in numba's cache, for which there is no public function, without loading its machine code."""
    cache = kernel._cache
    return cache._cache_file.load(cache._index_key(arguments, kernel.targetctx.codegen())) is not None


def compile_kernels() -> None:
    """Fill the cache with what it lacks. Processes that ask for it at once wait for the first one."""
    if not uncached_groups():
        return
    with _only_one():
        if groups := uncached_groups():
            _compile_in_parallel(groups)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Let one process at a time work on a cache. The kernel releases the lock when its holder ends, however that
    happens. On a file system without locks each compiles for itself."""
    kernel, _ = next(kernels_of(GROUPS[0]))
    folder = Path(str(kernel.stats.cache_path))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(FileLock(folder / "kernels.lock", fallback_to_soft=False))
        yield


def processes_for(groups: Collection[tuple[str, ...]]) -> int:
    """Count the processes to compile in: one a processor, and no more than groups."""
    return min(len(os.sched_getaffinity(0)), len(groups))


def _compile_in_parallel(groups: Collection[tuple[str, ...]]) -> None:
    """Forked processes take the next group, by its number in a pipe, until there is none left."""
    reader, writer = os.pipe()
    os.write(writer, bytes(GROUPS.index(group) for group in groups))
    os.close(writer)
    fork = multiprocessing.get_context("fork")
    arguments = (reader, os.getpid())
    processes = [fork.Process(target=_compile_next, args=arguments, daemon=True) for _ in range(processes_for(groups))]
    for process in processes:
        process.start()
    os.close(reader)
    for process in processes:
        process.join()


def _compile_next(reader: int, parent: int) -> None:
    die_with_parent(parent)
    gc.disable()  # a tenth of the time goes into looking for garbage, and this process is a short one
    while number := os.read(reader, 1):
        load_kernels(GROUPS[number[0]])


@contextlib.contextmanager
def compiling(report: Callable[[str], None]) -> Iterator[None]:
    """Compile what is missing on this machine in the background, in a process of its own: this one may have threads.
    `report` is called with a message if there is anything to do."""
    groups = uncached_groups()
    if not groups:
        yield
        return
    report(f"compiling kernels, once on this machine, in {processes_for(groups)} processes")
    command = [sys.executable, "-P", "-m", "pipeline.executor.compile_kernels", str(os.getpid())]
    process = subprocess.Popen(
        command, env=clean_environment((REPO,)), stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    compile_kernels()


def warm_up() -> None:
    """Load every compiled kernel, and see to it that nothing compiled from here on is written to disk: what a child may
    write is not to be run by another one."""
    compile_kernels()
    load_kernels()
    keep_freed_memory()
    Image.preinit()  # the decoders, which every child would import for itself
    split_sum_table()
    layout_patterns()
    weights_within()
    for cache in gc.get_objects():
        if isinstance(cache, FunctionCache):
            cache.disable()
