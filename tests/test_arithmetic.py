"""Precision and threads of training: what is chosen on which machine, and that nothing slow is left."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import training.arithmetic as arithmetic
from tests.overfit import as_batch, four_samples
from training.arithmetic import RECENT, TIMED, UNTIMED, ThreadChoice, autocast_dtype, fast_dtype, float32_products
from training.fit import make_module
from training.latents import DctCodec
from training.optimizers import orthogonalized
from training.presets import preset

REPO = Path(__file__).resolve().parents[1]
COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one whose processor can and measures what is said."""
    fast_dtype.cache_clear()
    yield lambda names, gain, level="AVX512": (
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True)),
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level),
        monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: gain),
    )
    fast_dtype.cache_clear()


@pytest.mark.parametrize(
    ("names", "gain", "level", "is_fast"),
    [
        ((), 9.0, "AVX512", False),  # no instructions: a laptop, whatever a lucky measurement says
        (("avx512_bf16",), 2.0, "AVX512", True),
        (("amx_bf16",), 8.0, "AVX512", True),
        (("amx_bf16",), 0.03, "AVX512", False),  # there, but held back by something unknown
        (("amx_bf16",), 8.0, "AVX2", False),  # held back by ATEN_CPU_CAPABILITY
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_fast(machine, names, gain, level, is_fast):
    machine(names, gain, level)
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
    machine((), 1.0)
    cfg = preset(name)
    cfg = replace(cfg, model=replace(cfg.model, num_layers=1))
    module, batch = make_module(cfg, DctCodec(), "cpu"), as_batch(four_samples(tmp_path), cfg.tasks, cfg.run.seed)
    optimizer = module.configure_optimizers()
    with Dtypes() as dtypes:
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    assert dtypes.seen <= {torch.float32, torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_makes_orthonormal_rows_in_either_precision(dtype):
    matrices = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = torch.linalg.svdvals(orthogonalized(matrices, COEFFICIENTS, 5, 1e-7).float())
    assert found.min() > 0.65 and found.max() < 1.25


MODULE = Mock(spec=lightning.LightningModule, device=torch.device("cpu"))


def trainer_at(step: int, ranks: int = 1) -> Mock:
    return Mock(spec=lightning.Trainer, global_step=step, world_size=ranks)


class Steps:
    """Trains: tells a callback of steps that take `seconds(threads)`, on a clock of its own."""

    def __init__(self, monkeypatch, choice: ThreadChoice) -> None:
        self.now, self.step, self.choice = 0.0, 0, choice
        monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: self.now)

    def __call__(self, count: int, seconds) -> None:
        for _ in range(count):
            self.step += 1
            trainer = trainer_at(self.step)
            self.choice.on_train_batch_start(trainer, MODULE, None, 0)
            self.now += seconds(torch.get_num_threads())
            self.choice.on_step(trainer, MODULE, None)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


IDLE, BUSY = (lambda threads: 0.4 / threads), (lambda threads: 0.4 if threads == 1 else 6.0)
COMPARED = UNTIMED + 2 * TIMED


def test_an_idle_machine_trains_with_all_threads(two_threads, monkeypatch):
    run = Steps(monkeypatch, ThreadChoice())
    run(COMPARED, IDLE)
    assert torch.get_num_threads() == 2
    run(50, IDLE)
    assert torch.get_num_threads() == 2


def test_beside_a_busy_core_one_thread_is_chosen_within_the_first_steps(two_threads, monkeypatch):
    Steps(monkeypatch, ThreadChoice())(COMPARED, BUSY)
    assert torch.get_num_threads() == 1


def test_a_core_that_gets_busy_later_is_noticed(two_threads, monkeypatch, caplog):
    run = Steps(monkeypatch, ThreadChoice())
    run(100, IDLE)
    run(RECENT, BUSY)
    assert torch.get_num_threads() == 1 and "one thread" in caplog.text
    run(50, IDLE)
    assert torch.get_num_threads() == 1, "no going to and fro"


def test_a_resumed_run_keeps_the_choice(two_threads, monkeypatch):
    first = ThreadChoice()
    Steps(monkeypatch, first)(COMPARED, BUSY)
    torch.set_num_threads(2)
    resumed = ThreadChoice()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.on_train_start(trainer_at(8), MODULE)
    Steps(monkeypatch, resumed)(50, IDLE)
    assert torch.get_num_threads() == 1


def test_ranks_that_train_together_do_not_choose_each_for_itself(two_threads, monkeypatch):
    choice = ThreadChoice()
    choice.on_train_start(trainer_at(0, ranks=2), MODULE)
    Steps(monkeypatch, choice)(50, BUSY)
    assert torch.get_num_threads() == 2
