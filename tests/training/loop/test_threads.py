"""Threads of training: as many as help, chosen by time, kept by runs that resume."""

from pathlib import Path
from unittest.mock import Mock

import lightning
import pytest
import torch

import training.loop.threads as threads
from training.loop.threads import RECENT, TIMED, TRIAL, UNTIMED, ThreadChoice

MODULE = Mock(spec=lightning.LightningModule, device=torch.device("cpu"))


def trainer_at(step: int, ranks: int = 1) -> Mock:
    return Mock(spec=lightning.Trainer, global_step=step, world_size=ranks)


class Steps:
    """Trains: tells a callback of steps that take `seconds(threads)`, on a clock of its own."""

    def __init__(self, monkeypatch, directory: Path, at: int = 0) -> None:
        self.now, self.step, self.threads = 0.0, at, list[int]()
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
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
