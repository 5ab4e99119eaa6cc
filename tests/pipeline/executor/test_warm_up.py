"""After the warm-up nothing is compiled or loaded: an asset's limits of time are spent on the asset."""

import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, gc, sys, tempfile
from pathlib import Path

from numba.core.registry import CPUDispatcher

import pipeline.unwrap.unwrap as choose
from geometry.cameras import RigConfig
from pipeline.asset import process_asset
from pipeline.render.uv_maps import BakeConfig
from pipeline.config import BuildConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from pipeline.executor.compile_kernels import warm_up
from schemas.codec import encode
from schemas.sample import TextureSample

def compiled():
    # of our own kernels: each with the types that it has machine code for
    kernels = [one for one in gc.get_objects() if isinstance(one, CPUDispatcher)]
    return {(k.py_func.__module__, k.py_func.__qualname__, str(s)) for k in kernels for s in k.signatures}

choose.run_limited = lambda make, **limits: make()  # new layouts in this process, where compiling is seen
warm_up()
before = compiled()
assert len(before) > 20, before
plain = BuildConfig(views=RenderConfig(resolution=32), uv=BakeConfig(resolution=64))
lit = dataclasses.replace(plain, views=RenderConfig(resolution=32, lit="pbr"))
materials = dataclasses.replace(plain, materials=True)
around = dataclasses.replace(plain, rig=RigConfig(name="ortho6"), views=RenderConfig(resolution=32, supersample=1))
layouts = set()
with tempfile.TemporaryDirectory() as name:
    for number, ref in enumerate(procedural(20, Path(name))):
        for cfg in (plain, (lit, around, materials)[number % 3]):
            processed = process_asset(ref, cfg)
            layouts.add(processed.measurements.layout)
            if isinstance(processed.result, TextureSample):
                encode(processed.result)
assert layouts >= {"authored", "grown"}, layouts
late = compiled() - before
assert not late, late
"""


@pytest.mark.slow
def test_no_kernel_is_compiled_once_assets_are_at_work() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
