"""Checkpoints that a run writes on its way, and weights from trainer states."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from seqtex.cli.export import weights
from seqtex.cli.train import validation_of
from tests.support.small_dataset import small_sample, write_dataset
from tests.support.training_process import same
from tests.training.test_training import small_config
from training.config import TrainConfig
from training.data.datamodule import TextureDataModule
from training.data.mixture import ImageSizes
from training.loop.callbacks import AveragedWeights
from training.loop.checkpoints import CARD, card_entries, load_checkpoint, load_weights, read_card
from training.loop.loggers import Curves
from training.loop.signals import StopSignals
from training.loop.snapshots import Snapshots
from training.loop.states import sum_path
from training.loop.throughput import Meter, Work
from training.loop.validation import Validation
from training.module import TextureModule
from training.train import train

REPO = Path(__file__).resolve().parents[3]
ENTRIES = [(f"t{i}", Regime.TEXTURED) for i in range(3)] + [(f"m{i}", Regime.MV_ONLY) for i in range(2)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [ENTRIES])
    return out


def snapshot_config(dataset: Path, run: Path, **options: object) -> TrainConfig:
    kept = {"weights_every": 2, "weights_kept": 1, "weights_best": 1, "state_every": 2, "logger": "none"}
    cfg = small_config(dataset, run, **{"max_steps": 8} | kept | options)
    return replace(cfg, validation=replace(cfg.validation, every=100, samples=1))


def shown(cfg: TrainConfig) -> Validation:
    sample = small_sample("seen", Regime.TEXTURED, seed=5)
    return Validation(samples=[sample], render=lambda sample, rgb: np.zeros((8, 8, 3), np.uint8))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints on its way."""
    out = tmp_path_factory.mktemp("run")
    cfg = snapshot_config(dataset, out, weights_kept=4)
    train(cfg, validation=shown(cfg))
    return out


def test_the_newest_and_the_best_checkpoints_are_kept(dataset: Path, run: Path, tmp_path: Path) -> None:
    assert names(run) == [f"step-0000000{step}" for step in (2, 4, 6, 8)]
    cards = [read_card(run / "checkpoints" / name) for name in names(run)]
    losses = [card.validation_loss for card in cards]
    assert [card.steps for card in cards] == [2, 4, 6, 8] and len(set(losses)) == 4 and all(0 < x < 10 for x in losses)
    network = load_checkpoint(run / "checkpoints" / "step-00000008")
    final = load_checkpoint(run / "checkpoint")
    assert same(dict(network.model.state_dict()), dict(final.model.state_dict()))
    module = TextureModule.of(snapshot_config(dataset, run))
    module.model.load_state_dict(network.model.state_dict())
    measured = module.held_out_losses(shown(snapshot_config(dataset, run)).samples[0], 0)
    assert np.mean([task["loss"] for task in measured.values()]) == pytest.approx(losses[-1], rel=1e-5)

    cfg = snapshot_config(dataset, tmp_path)
    train(cfg, validation=shown(cfg))
    best = min(range(4), key=lambda number: losses[number])
    assert names(tmp_path) == sorted({f"step-0000000{2 * best + 2}", "step-00000008"})


def test_the_best_are_those_with_the_lowest_loss(dataset: Path, run: Path, tmp_path: Path) -> None:
    cfg = snapshot_config(dataset, tmp_path, weights_kept=1, weights_best=2)
    card = read_card(run / "checkpoint")
    for step, loss in ((2, 0.3), (4, 0.1), (6, None), (8, 0.2), (10, 0.4)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / CARD).write_text(json.dumps(card_entries(replace(card, steps=step, validation_loss=loss))))
    curves = Curves(cfg)
    meter = Meter(Work.of(cfg, ImageSizes(views=4, view_resolution=32, uv_resolution=64), torch.device("cpu")))
    Snapshots(cfg.run, lambda step: card, AveragedWeights(), StopSignals(), shown(cfg), curves, meter).delete_others()
    assert names(tmp_path) == ["step-00000004", "step-00000008", "step-00000010"]


def test_writing_them_changes_nothing_in_training(dataset: Path, run: Path, tmp_path: Path) -> None:
    train(snapshot_config(dataset, tmp_path, weights_every=0))
    assert not (tmp_path / "checkpoints").exists()
    rows = [[json.loads(line)["loss"] for line in (r / "losses.jsonl").open()] for r in (run, tmp_path)]
    assert rows[0] == rows[1] and len(rows[0]) == 8
    final = [dict(load_checkpoint(r / "checkpoint").model.state_dict()) for r in (run, tmp_path)]
    assert same(*final)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.loop.test_snapshots import shown, snapshot_config
from training.loop import snapshots
from training.train import train
write = snapshots.save_checkpoint
def cut(directory, model, card):
    if card.steps == 6 and directory.name.startswith("step-"):
        (directory.parent / ".step-00000006.cut" / "fresh").mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGKILL)
    write(directory, model, card)
snapshots.save_checkpoint = cut
cfg = snapshot_config(Path(sys.argv[1]), Path(sys.argv[2]), weights_kept=4, state_every=2)
train(cfg, validation=shown(cfg))
"""


def test_a_run_killed_while_it_writes_one_resumes_to_the_same_ones(dataset: Path, run: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", KILLED, str(dataset), str(tmp_path)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert names(tmp_path) == [".step-00000006.cut", "step-00000002", "step-00000004"]
    shutil.copytree(run / "checkpoints" / "step-00000008", tmp_path / "checkpoints" / "step-00000008")
    cfg = snapshot_config(dataset, tmp_path, weights_kept=4)
    train(cfg, validation=shown(cfg))
    assert names(tmp_path) == names(run)
    for name in names(run):
        assert read_card(tmp_path / "checkpoints" / name) == read_card(run / "checkpoints" / name)


def test_without_validation_none_is_the_best(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = snapshot_config(dataset, tmp_path, max_steps=4)
    cfg = replace(cfg, validation=replace(cfg.validation, every=0))
    assert validation_of(cfg) is None
    train(cfg, validation=None)
    assert names(tmp_path) == ["step-00000004"]
    assert "none is kept as the best" in caplog.text
    assert read_card(tmp_path / "checkpoints" / "step-00000004").validation_loss is None


def test_a_trainer_state_is_as_good_as_its_checkpoint(run: Path, tmp_path: Path) -> None:
    state = run / "states" / "step-00000006.ckpt"
    found, wanted = load_checkpoint(state), load_checkpoint(run / "checkpoints" / "step-00000006")
    assert same(dict(found.model.state_dict()), dict(wanted.model.state_dict()))
    assert replace(wanted.card, validation_loss=None, weights_sha256={}) == found.card
    narrow = load_checkpoint(state, dtype=torch.bfloat16).model
    assert narrow.blocks[0].attn1.to_q.weight.dtype is torch.bfloat16
    assert weights(str(state), tmp_path / "exported", layout="checkpoint") == 0
    exported = load_checkpoint(tmp_path / "exported")
    assert same(dict(exported.model.state_dict()), dict(wanted.model.state_dict()))
    assert exported.card == replace(wanted.card, validation_loss=None)
    with pytest.raises(UserError, match="view_hint=False alone"):
        weights(str(state), tmp_path / "released")
    with pytest.raises(UsageError, match="keeps LoRA separate"):
        weights(str(state), tmp_path / "x", lora="merged", layout="checkpoint")


def test_weights_that_are_not_as_written_are_refused(run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(run / "checkpoint", tmp_path / "checkpoint")
    (file,) = damaged.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"safetensors: damaged, or changed since it was written"):
        load_checkpoint(damaged)
    state = tmp_path / "step-00000006.ckpt"
    shutil.copy(run / "states" / state.name, state)
    shutil.copy(sum_path(run / "states" / state.name), sum_path(state))
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"step-00000006.ckpt: damaged"):
        load_checkpoint(state)
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UserError, match=r"plain.ckpt: no trainer state of plain tensors"):
        load_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="no trainer state of a TextureModule"):
        load_checkpoint(file)
    torch.save({"epoch": 3}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no trainer state of a TextureModule"):
        load_checkpoint(tmp_path / "other.ckpt")
    torch.save({"hyper_parameters": {"model": {"size": 3}, "seed": 0}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="damaged, or of another version"):
        load_weights(tmp_path / "other.ckpt", with_card=False)


def test_a_state_of_anyone_s_trainer_has_weights_but_no_sizes(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path)
    average = AveragedWeights(0.5)
    trainer = lightning.Trainer(
        max_steps=2, callbacks=[ModelCheckpoint(tmp_path, "own"), average], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(TextureModule.of(cfg), TextureDataModule(cfg.data))
    model, card = load_weights(tmp_path / "own.ckpt", with_card=False)
    assert card is None
    assert same({f"model.{name}": p for name, p in model.state_dict().items()}, average.state_dict())
    with pytest.raises(UserError, match="lacks the sizes of views and UV map"):
        load_checkpoint(tmp_path / "own.ckpt")
    assert not (tmp_path / CARD).exists()
