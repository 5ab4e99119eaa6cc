"""The precision of training: what is chosen on which machine, and that nothing slow is left."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.overfit import as_batch, four_samples
from training.arithmetic import autocast_dtype, fast_dtype, float32_products
from training.config import preset
from training.model.optimizers import make_optimizer, orthogonalized, trained_parameters
from training.module import TextureModule

REPO = Path(__file__).resolve().parents[2]
COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one whose processor has these instructions."""
    fast_dtype.cache_clear()
    yield lambda names, level="AVX512": (
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True)),
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level),
    )
    fast_dtype.cache_clear()


@pytest.mark.parametrize(
    ("names", "level", "is_fast"),
    [
        (("avx512_f", "avx512_vnni"), "AVX512", False),
        (("avx2",), "AVX2", False),
        (("avx512_bf16",), "AVX512", True),
        (("amx_bf16",), "AVX512", True),
        (("amx_bf16",), "AVX2", False),  # held back by ATEN_CPU_CAPABILITY
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_fast(machine, names, level, is_fast):
    machine(names, level)
    assert fast_dtype("cpu") is (torch.bfloat16 if is_fast else torch.float32)
    assert float32_products("cpu") == ("medium" if is_fast else "highest")
    assert autocast_dtype("cpu", "bfloat16") is (torch.bfloat16 if is_fast else None)
    assert autocast_dtype("cpu", "float32") is None


def test_an_emulated_processor_is_seen_as_such():
    code = "from training.arithmetic import *; print(has_native_bfloat16(), fast_dtype('cpu'))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPO, capture_output=True, text=True)
    assert told.stdout.split() == ["False", "torch.float32"], told.stderr


class Dtypes(TorchDispatchMode):
    """Notes the dtypes that operations work on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, torch.Tensor)]
        self.seen |= {x.dtype for x in tensors if x.is_floating_point()}
        return result


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_a_step_does_nothing_in_bfloat16_where_that_is_slow(machine, name, tmp_path):
    """Model, codec, loss and optimiser of the presets for processors, in whatever precision they ask for."""
    machine(())
    cfg = preset(name)
    cfg = replace(cfg, model=replace(cfg.model, num_layers=1))
    module, batch = TextureModule.of(cfg), as_batch(four_samples(tmp_path), cfg.tasks, cfg.run.seed)
    optimizer = make_optimizer(cfg.optimizer, trained_parameters(module))
    with Dtypes() as dtypes:
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    assert dtypes.seen <= {torch.float32, torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_makes_orthonormal_rows_in_either_precision(dtype):
    matrices = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = torch.linalg.svdvals(orthogonalized(matrices, COEFFICIENTS, 5, 1e-7).float())
    assert found.min() > 0.65 and found.max() < 1.25
