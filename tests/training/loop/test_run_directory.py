"""A second run in a directory is refused, whoever it belongs to; one that was killed keeps nobody out."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.support.training_process import (
    SIZE,
    ended,
    last_state,
    minute_config,
    run_to_end,
    same,
    start,
    start_ranks,
    steps_done,
    told,
    wait_until,
)
from training.config import TrainConfig
from training.loop.checkpoints import CARD
from training.loop.run_directory import RunLock
from training.train import train

STEPS = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[(f"t{i}", Regime.TEXTURED) for i in range(4)]], SIZE, SIZE)
    return out


def config(dataset: Path, run: Path, **options: Any) -> TrainConfig:
    return minute_config(dataset, run, **({"max_steps": STEPS, "state_every": 3} | options))


def test_a_second_run_is_refused_and_the_first_goes_on_unharmed(dataset: Path, tmp_path: Path) -> None:
    """One process, then two that train together: all of them end, and none touches a file."""
    cfg = config(dataset, tmp_path / "run")
    first = start(cfg)
    try:
        assert wait_until(lambda: steps_done(cfg.run.directory) >= 2, first), told(cfg.run.directory)
        os.kill(first.pid, signal.SIGSTOP)
        refusal = f"{cfg.run.directory}: another run (process {first.pid} on {socket.gethostname()}) trains here; wait"
        assert ended(start(cfg)) == [1]
        assert refusal in told(cfg.run.directory)
        assert ended(*start_ranks(config(dataset, tmp_path / "run", devices=2), 2)) == [1, 1]
        assert all(told(cfg.run.directory, rank).splitlines()[-1].startswith(refusal) for rank in range(2))
        os.kill(first.pid, signal.SIGCONT)
    finally:
        assert ended(first) == [0]
    run_to_end(config(dataset, tmp_path / "alone"))
    assert same(last_state(tmp_path / "run"), last_state(tmp_path / "alone"))


def test_a_run_that_was_killed_is_started_again_at_once(dataset: Path, tmp_path: Path) -> None:
    """Its readers may still live."""
    cfg = config(dataset, tmp_path / "run", workers=2)
    process = start(cfg)
    assert wait_until(lambda: steps_done(cfg.run.directory) >= 4, process), told(cfg.run.directory)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    run_to_end(cfg)
    assert steps_done(cfg.run.directory) == STEPS


def test_ranks_that_see_other_states_are_refused_together(dataset: Path, tmp_path: Path) -> None:
    """A run directory on each machine's own disk, one of which has a state."""
    train(config(dataset, tmp_path / "here", max_steps=2))
    (tmp_path / "there").mkdir()
    places = [config(dataset, tmp_path / name, devices=2) for name in ("here", "there")]
    assert ended(*start_ranks(places[0], 2, places)) == [1, 1]
    said = [told(cfg.run.directory, rank) for rank, cfg in enumerate(places)]
    assert all("do not find the same trainer states" in words for words in said)


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    lock = RunLock(tmp_path)
    lock.take()
    lock.close()
    assert "no lock (No locks available)" in caplog.text


def test_one_process_may_train_several_times(dataset: Path, tmp_path: Path) -> None:
    """Also after an error."""
    first = train(config(dataset, tmp_path, max_steps=2))
    (first.checkpoint / CARD).unlink()
    with pytest.raises(UserError, match="no checkpoint of 2 steps"):
        train(config(dataset, tmp_path, max_steps=2))
    assert len(train(config(dataset, tmp_path, max_steps=3)).losses) == 3
