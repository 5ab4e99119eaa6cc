"""Precision and threads of training: what is chosen on which machine, and that nothing slow is left."""

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
from tests.support.overfit import as_batch, four_samples
from training.arithmetic import (
    RECENT,
    TIMED,
    TRIAL,
    UNTIMED,
    ThreadChoice,
    autocast_dtype,
    fast_dtype,
    float32_products,
)
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


MODULE = Mock(spec=lightning.LightningModule, device=torch.device("cpu"))


def trainer_at(step: int, ranks: int = 1) -> Mock:
    return Mock(spec=lightning.Trainer, global_step=step, world_size=ranks)


class Steps:
    """Trains: tells a callback of steps that take `seconds(threads)`, on a clock of its own."""

    def __init__(self, monkeypatch, directory: Path, at: int = 0) -> None:
        self.now, self.step, self.threads = 0.0, at, list[int]()
        monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: self.now)
        self.choice = ThreadChoice(directory)
        self.choice.on_train_start(trainer_at(at), MODULE)

    def __call__(self, count: int, seconds) -> list[int]:
        """Threads of each of the next steps."""
        used = []
        for _ in range(count):
            self.choice.on_train_batch_start(trainer_at(self.step), MODULE, None, 0)
            used.append(torch.get_num_threads())
            self.now += seconds(used[-1])
            self.step += 1
            self.choice.on_step(trainer_at(self.step), MODULE, None)
        return used


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


IDLE, BUSY = (lambda threads: 0.4 / threads), (lambda threads: 0.4 if threads == 1 else 6.0)
TRIED = [2] * (UNTIMED + TIMED) + [1] * TIMED


def test_an_idle_machine_trains_with_all_threads(two_threads, monkeypatch, tmp_path):
    assert Steps(monkeypatch, tmp_path)(60, IDLE) == TRIED + [2] * (60 - TRIAL)


def test_beside_a_busy_core_one_thread_is_chosen_within_the_first_steps(two_threads, monkeypatch, tmp_path):
    assert Steps(monkeypatch, tmp_path)(30, BUSY) == TRIED + [1] * (30 - TRIAL)


def test_a_core_that_gets_busy_later_is_noticed(two_threads, monkeypatch, tmp_path, caplog):
    run = Steps(monkeypatch, tmp_path)
    run(100, IDLE)
    assert run(10, BUSY) == [2] * (RECENT // 2 + 1) + [1] * (9 - RECENT // 2) and "one thread" in caplog.text
    assert run(50, IDLE) == [1] * 50, "no going to and fro"


@pytest.mark.parametrize("saved_at", [0, 3, 6, 7, 20, 101, 140])
def test_a_resumed_run_has_the_threads_of_the_run_it_resumes(two_threads, monkeypatch, tmp_path, saved_at):
    """Whatever the machine does the second time: what was computed is computed again."""
    run = Steps(monkeypatch, tmp_path)
    first = run(100, IDLE) + run(50, BUSY)
    two_threads()
    assert Steps(monkeypatch, tmp_path, at=saved_at)(150 - saved_at, BUSY) == first[saved_at:]


def test_a_run_that_was_killed_in_its_trial_tries_again(two_threads, monkeypatch, tmp_path):
    Steps(monkeypatch, tmp_path)(UNTIMED + TIMED, IDLE)
    two_threads()
    resumed = Steps(monkeypatch, tmp_path, at=UNTIMED + TIMED)
    assert resumed(TIMED + TRIAL + 20, IDLE) == [1] * TIMED + TRIED + [2] * 20


def test_another_machine_chooses_for_itself(two_threads, monkeypatch, tmp_path):
    Steps(monkeypatch, tmp_path)(20, BUSY)
    torch.set_num_threads(3)
    assert Steps(monkeypatch, tmp_path, at=20)(TRIAL, IDLE)[:UNTIMED] == [3] * UNTIMED


@pytest.mark.parametrize(("ranks", "device"), [(2, "cpu"), (1, "cuda")])
def test_ranks_and_gpus_do_not_choose(two_threads, monkeypatch, tmp_path, ranks, device):
    (tmp_path / "other").mkdir()
    run = Steps(monkeypatch, tmp_path / "other")
    run.choice = ThreadChoice(tmp_path)
    run.choice.on_train_start(trainer_at(0, ranks), Mock(spec=lightning.LightningModule, device=torch.device(device)))
    assert run(50, BUSY) == [2] * 50 and not list(tmp_path.glob("*.json"))
