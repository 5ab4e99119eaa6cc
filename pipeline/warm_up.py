"""What a fork server does before its first child: with all kernels in memory, no asset's time is spent on compiling."""

import gc

from numba.core.caching import FunctionCache
from PIL import Image

from geometry.shading import split_sum_table
from pipeline.compile_kernels import compile_kernels, load_kernels


def warm_up() -> None:
    """Load every compiled kernel, and see to it that nothing compiled from here on is written to disk: what a child may
    write is not to be run by another one."""
    compile_kernels()
    load_kernels()
    Image.preinit()  # the decoders, which every child would import for itself
    split_sum_table()
    for cache in gc.get_objects():
        if isinstance(cache, FunctionCache):
            cache.disable()
