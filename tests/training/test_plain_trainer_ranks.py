"""Two processes (gloo) with a plain `lightning.Trainer` and Lightning's own strategies."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.support.training_process import SERVER, SIZE, ended, free_port, minute_config
from training.data.datamodule import TextureDataModule
from training.loop.callbacks import AveragedWeights
from training.model.fsdp import whole_model
from training.module import TextureModule

RANKS, STEPS = 2, 4
HELD_OUT = 3
"""Samples of each regime: no equal share for two ranks."""
QUIET: dict[str, Any] = {"enable_model_summary": False, "enable_progress_bar": False, "logger": False}


class Described(TextureModule):
    """Every caption has two features."""

    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        return torch.full((len(prompts), 2, self.model.config["text_dim"]), 0.5)


def parts(dataset: Path) -> tuple[TextureModule, TextureDataModule]:
    cfg = minute_config(dataset, dataset)
    # Lightning's shards resume once every weight has had a gradient: all batches make UV maps and have text.
    cfg = replace(cfg, data=replace(cfg.data, batch_size=4, mv_only_ratio=0.0))
    cfg = replace(cfg, tasks=replace(cfg.tasks, textured={"img2tex": 1.0}), flow=replace(cfg.flow, text_dropout=0.0))
    optimizer = replace(cfg.optimizer, muon_learning_rate=None, final_share=1.0, warmup_steps=2)
    module = Described.of(replace(cfg, optimizer=optimizer))
    return module, TextureDataModule(cfg.data, held_out=dataset, held_out_samples=HELD_OUT)


def trained(dataset: Path, folder: Path, stops: list[int], strategy: Any, devices: int) -> dict[str, Any]:
    """The losses of the last steps, and every figure of a validation, of runs that stop at these steps."""
    for steps in stops:
        module, data = parts(dataset)
        saves = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2, save_top_k=0)
        trainer = lightning.Trainer(
            max_steps=steps, strategy=strategy(), devices=devices, accelerator="cpu", limit_val_batches=0,
            callbacks=[saves, AveragedWeights(0.5)], **QUIET,
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path="last", weights_only=True)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.limit_val_batches = 1.0
    (held_out,) = trainer.validate(module, data, verbose=False)
    weights = torch.cat([p.detach().flatten() for p in whole_model(module.model).parameters()])
    return {"figures": figures, "held_out": held_out, "norm": float(weights.norm()) if not weights.is_meta else None}


def shards() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=RANKS, tensor_parallel_size=1)


def copies() -> DDPStrategy:
    return DDPStrategy(find_unused_parameters=True)


def both(dataset: Path, folder: Path, env: dict[str, str]) -> None:
    """Do what each rank does."""
    os.environ.update(env)
    torch.set_num_threads(1)
    found = {
        "shards": trained(dataset, folder / "shards", [2, STEPS], shards, RANKS),
        "copies": trained(dataset, folder / "copies", [2, STEPS], copies, RANKS),
    }
    (folder / f"rank{env['LOCAL_RANK']}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    entries = [(f"t{i}", Regime.TEXTURED) for i in range(4)] + [(f"m{i}", Regime.MV_ONLY) for i in range(4)]
    write_dataset(out, [entries], SIZE, SIZE)
    return out


@pytest.fixture(scope="module")
def ranks(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(RANKS), "NODE_RANK": "0"}
    processes = [
        SERVER.Process(target=both, args=(dataset, folder, shared | {"LOCAL_RANK": str(rank)})) for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    assert ended(*processes) == [0] * RANKS
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(dataset, tmp_path_factory.mktemp("alone"), [STEPS], lambda: "auto", 1)


@pytest.mark.parametrize("name", ["shards", "copies"])
def test_two_ranks_resume_and_validate_as_one_process_does(alone, ranks, name):
    found = [rank[name] for rank in ranks]
    assert found[0]["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    assert found[0]["figures"]["gradient_norm"] == pytest.approx(alone["figures"]["gradient_norm"], rel=1e-3)
    assert found[0]["held_out"].keys() == found[1]["held_out"].keys() == alone["held_out"].keys()
    assert any("geo2mv" in key for key in alone["held_out"]) and any("img2tex" in key for key in alone["held_out"])
    for rank in found:
        assert rank["held_out"] == pytest.approx(alone["held_out"], rel=1e-3), "each sample counts once"
