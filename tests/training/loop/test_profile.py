"""Steps of a run are recorded without a trace in what it computes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.training.test_training import small_config
from training.config import RunConfig
from training.train import train


def test_the_steps_that_are_named_are_recorded(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED)]])
    cfg = small_config(tmp_path / "data", tmp_path / "run", max_steps=4, threads=1)
    plain = train(replace(cfg, run=replace(cfg.run, directory=tmp_path / "plain")))
    recorded = train(replace(cfg, run=replace(cfg.run, profile_steps="2:3")))
    assert [row["loss"] for row in recorded.losses] == [row["loss"] for row in plain.losses]
    assert not (tmp_path / "plain" / "profile").exists()
    (path,) = (tmp_path / "run" / "profile").iterdir()
    assert path.name == "steps-2-3-rank-0.json"
    events = [event for event in json.loads(path.read_text())["traceEvents"] if "dur" in event]
    names = [event["name"] for event in events]
    assert sum(name.startswith("Optimizer.step#MuonAdamW") for name in names) == 2
    assert "aten::linear" in names and any("Backward" in name for name in names)


def test_a_recording_ends_with_a_run_that_fails(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED)]])

    def fail(row: dict[str, Any]) -> None:
        assert torch.autograd._profiler_enabled()
        raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        train(small_config(tmp_path / "data", tmp_path / "run", max_steps=4, profile_steps="1:3"), fail)
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("steps", ["10", "3:2", "0:1", "a:b", "1:500", "1:2:3"])
def test_other_steps_are_refused(steps: str) -> None:
    with pytest.raises(UsageError, match=r"run\.profile_steps is .*10:13"):
        RunConfig(profile_steps=steps)
