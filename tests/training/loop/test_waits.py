"""A training step does not wait for its device: nothing that is computed there is read before it is time to."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from schemas.sample import Regime
from tests.support.small_dataset import small_sample, write_dataset
from tests.training.test_training import broken_at, small_config, weights
from training.config import PRESETS, TrainConfig
from training.data.batch import LatentBatch, mapped, to_model
from training.diffusion import flow
from training.diffusion.flow import CPU
from training.loop.callbacks import AveragedWeights, Clock, LossLog, read_losses
from training.loop.signals import Diverged, FiniteGuard
from training.model.optimizers import make_optimizer, trained_parameters
from training.module import TextureModule
from training.train import TrainResult, train

READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")
"""Operators that make a processor wait until a device has come to a number."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    return out


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that are no numbers are skipped as on a GPU, on whatever device it is."""
    monkeypatch.setattr(FiniteGuard, "leaves_to_device", lambda self, device: True)


def guarded(cfg: TrainConfig, log_every: int, budget: int = 10) -> TrainConfig:
    run, optimizer = replace(cfg.run, log_every=log_every), replace(cfg.optimizer, skip_budget=budget)
    return replace(cfg, run=run, optimizer=optimizer)


@pytest.mark.parametrize("regime", list(Regime))
def test_a_step_on_a_device_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regime: Regime
) -> None:
    """On `meta` a tensor has no numbers: forward, backward, guard, clipping, optimisers, average and the log of losses
    ask for none until it is time to."""
    real = flow.seeded
    monkeypatch.setattr(flow, "seeded", lambda *numbers, device=CPU: real(*numbers) if device.type == "cpu" else None)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *rest, **options: autocast("cpu", *rest, **options))
    optimizers = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    cfg = small_config(tmp_path, tmp_path)
    module = TextureModule.of(cfg).to("meta")
    module.log = lambda name, value: None  # type: ignore[assignment]
    optimizer = make_optimizer(cfg.optimizer, trained_parameters(module))
    images = mapped(to_model(small_sample("a", regime, 1), images=module.extras.images), lambda x: x.to("meta"))
    clock, guard, average = Clock(10, None), FiniteGuard(0), AveragedWeights()
    log = LossLog(tmp_path / "losses.jsonl", clock, guard, lambda row: None, saves=(1000, 0))
    trainer = trainer_of(log_every_n_steps=3, max_steps=10)
    average.on_train_start(trainer, module)

    def step(number: int) -> None:
        trainer.global_step = number - 1
        outputs = module.training_step(replace(images, number=number, samples=(number,)), 0)
        optimizer.zero_grad()
        outputs["loss"].backward()
        guard.on_before_optimizer_step(trainer, module, optimizer)
        log.on_before_optimizer_step(trainer, module, optimizer)
        module.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
        trainer.global_step = number
        average.on_step(trainer, module, None)
        log.on_train_batch_end(trainer, module, outputs, None, 0)

    step(1)
    step(2)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(3)


def trainer_of(**options: Any) -> Any:
    """A trainer of one batch a step."""
    trainer = Mock(spec=lightning.Trainer, accumulate_grad_batches=1, should_stop=False, is_global_zero=True, **options)
    trainer.strategy, trainer.fit_loop = Mock(reduce=lambda value: value), Mock()
    trainer.fit_loop.epoch_loop.batch_progress.current.ready = 1
    return trainer


class Reads(TorchDispatchMode):
    """Records, by step, from where numbers of tensors are read."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.places: dict[int, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(READS):
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        frame = sys._getframe(1)
        while not frame.f_globals.get("__name__", "").startswith("training.") and frame.f_back:
            frame = frame.f_back
        self.places.setdefault(self.step, set()).add(frame.f_code.co_name)


def test_a_run_reads_numbers_every_few_steps_alone(
    dataset: Path, tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Lightning, too. What draws and decides on the CPU, before a batch is at work, reads numbers that are there:
    `flow_losses` and the reading of the data."""
    reads, real = Reads(), TextureModule.training_step

    def counted(self: TextureModule, batch: LatentBatch, batch_idx: int) -> dict[str, Any]:
        reads.step += 1
        return real(self, batch, batch_idx)

    def listed(self: torch.Tensor) -> Any:
        reads.note()
        return tolist(self)

    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", listed)  # which no operator does
    monkeypatch.setattr(TextureModule, "training_step", counted)
    with reads:
        train(guarded(small_config(dataset, tmp_path, max_steps=9, threads=1), log_every=4))
    on_the_cpu = {"flow_losses", "views_given"}
    late = {step: places - on_the_cpu for step, places in reads.places.items()}
    assert [step for step in range(2, 9) if late.get(step)] == [4, 8], late
    assert {"_write", "settle"} <= late[4]


def both_ways(run: Callable[[int], TrainResult], monkeypatch: pytest.MonkeyPatch) -> list[TrainResult]:
    """Run with gradients that are asked for at once, then as on a GPU, read in every step and in every third."""
    results = [run(1)]
    monkeypatch.setattr(FiniteGuard, "leaves_to_device", lambda self, device: True)
    return [*results, run(1), run(3)]


def without_times(result: TrainResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.losses]


def test_what_the_device_skips_is_what_the_processor_would_have(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, {3, 4})
    names = iter("abc")
    results = both_ways(
        lambda every: train(
            guarded(small_config(dataset, tmp_path / next(names), max_steps=7, state_every=5, threads=1), every)
        ),
        monkeypatch,
    )
    assert [row["gradient_norm"] for row in results[0].losses][3:5] == [0, 0]
    for other in results[1:]:
        assert without_times(other) == without_times(results[0])
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(results[0]).items())


def test_a_run_goes_back_behind_the_same_batch(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the broken budget is noticed: batches 4 to 6 are bad, one may be skipped."""
    broken_at(monkeypatch, range(4, 7))
    names = iter("abc")
    results = both_ways(
        lambda every: train(
            guarded(small_config(dataset, tmp_path / next(names), max_steps=9, state_every=4, threads=1), every, 1)
        ),
        monkeypatch,
    )
    for other in results[1:]:
        assert without_times(other) == without_times(results[0])
    assert [row["step"] for row in results[0].losses] == list(range(1, 10))


def test_the_rows_before_the_end_are_written(
    dataset: Path, tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, range(3, 1000))
    with pytest.raises(Diverged, match="in step 4, more than"):
        train(guarded(small_config(dataset, tmp_path, max_steps=40, state_every=1000), 7, budget=0))
    assert [row["step"] for row in read_losses(tmp_path / "losses.jsonl")] == [1, 2, 3]


def test_presets_for_a_gpu_read_every_ten_steps() -> None:
    assert {name: cfg.run.log_every for name, cfg in PRESETS.items()} == dict.fromkeys(PRESETS, 10) | {"tiny": 1}
