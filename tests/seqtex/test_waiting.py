"""Output for a person who waits: why nothing ends, no lines of a command that serves others, no pause at the end."""

import gc
import sys
import tomllib
from pathlib import Path

from pipeline.executor.progress import Progress
from schemas.ledger import Counts
from seqtex.cli.main import program
from seqtex.cli.terminal.console import begin_log, build_progress, log, training_progress

REPO = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_build_says_what_keeps_its_first_asset_waiting(capsys):
    begin_log("plain", clock := Clock())
    with build_progress() as notify:
        progress = Progress(jobs=4, planned=4, notify=notify, clock=clock)
        progress.report("planned")
        clock.now = 1
        progress.begin(1, None)
        for seconds in (6, 11):
            clock.now = seconds
            progress.tick()
        progress.compiles("compiling kernels, in 2 processes")
        clock.now = 16
        progress.tick()
        progress.done(0, Counts(textured=1))
        clock.now = 21
        progress.tick()
    loading = "building  0 of 4 assets (0%); the processes load what they need"
    assert capsys.readouterr().out.splitlines() == [
        "00:00  planned  4 assets in 4 jobs",
        "00:01  started  room for 1 job at once",
        f"00:06  {loading}",
        f"00:11  {loading}",
        "00:11  compiling  kernels, in 2 processes",
        "00:16  building  0 of 4 assets (0%); compiling kernels, in 2 processes",
        "00:21  building  1 of 4 assets (25%), 3/min; 1 textured",
    ]


def test_a_training_run_says_what_it_does_before_its_first_step(capsys):
    begin_log("plain", Clock())
    with training_progress(10):
        log.repeat()
    assert capsys.readouterr().out.splitlines() == ["00:00  training  making the model and the first step"]


def test_a_command_that_waits_for_others_writes_nothing(capsys):
    begin_log("plain", clock := Clock())
    log.working_on("starting  loading PyTorch", None)
    log.repeat()
    log.at_rest()
    clock.now = 60
    log.repeat()
    assert capsys.readouterr().out.splitlines() == ["00:00  starting  loading PyTorch"]


def test_a_process_ends_without_a_look_for_garbage(monkeypatch, tmp_path, capsys):
    """Garbage collection takes seconds once PyTorch and Lightning are loaded: a command that says it is done has to
    end."""
    monkeypatch.setattr(sys, "argv", ["seqtex", "status", str(tmp_path)])
    try:
        assert gc.get_freeze_count() == 0 and program() == 1
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["seqtex"] == f"{program.__module__}:{program.__name__}"
