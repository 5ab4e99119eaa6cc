"""A run that goes back to an older state takes nothing of the steps that it undoes with it."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.training.test_training import broken_at, small_config
from training.config import TrainConfig
from training.loop.signals import Diverged
from training.train import train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    return out


def unforgiving(cfg: TrainConfig, budget: int = 0) -> TrainConfig:
    return replace(cfg, optimizer=replace(cfg.optimizer, skip_budget=budget))


def test_the_parts_of_the_batch_that_failed_are_not_in_the_next_row(dataset, tmp_path, monkeypatch):
    broken_at(monkeypatch, {2})
    rows = [
        train(
            unforgiving(
                small_config(dataset, tmp_path / str(parts), max_steps=4, state_every=1, accumulate_grad_batches=parts)
            )
        )
        for parts in (1, 2)
    ]
    whole, in_parts = ([row["loss"] for row in result.losses] for result in rows)
    assert in_parts == pytest.approx(whole, rel=1e-4)


def test_a_run_that_ends_in_an_error_has_written_its_curves(dataset, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    broken_at(monkeypatch, range(12, 1000))
    before = set(threading.enumerate())
    with pytest.raises(Diverged):
        train(unforgiving(small_config(dataset, tmp_path, max_steps=40, state_every=11)))
    writers = [thread for thread in set(threading.enumerate()) - before if "Writer" in type(thread).__name__]
    assert not writers, "the event files are closed"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10]
