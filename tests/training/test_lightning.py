"""`TextureModule` and `TextureDataModule` in a plain `lightning.Trainer`, with Lightning's callbacks and loggers."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.tuner import Tuner

from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.support.training_process import same
from tests.training.test_training import small_config
from training.__main__ import exit_code, main
from training.config import as_json
from training.data.datamodule import BatchStream, TextureDataModule
from training.data.mixture import DataConfig
from training.diffusion.flow import FlowConfig
from training.loop.callbacks import AveragedWeights, Clock
from training.loop.signals import FiniteGuard, StopSignals
from training.model.optimizers import OptimizerConfig, make_optimizer, trained_parameters
from training.model.schedule import WarmupCosine
from training.module import TextureModule
from training.train import check_order

REPO = Path(__file__).resolve().parents[2]
ENTRIES = [(f"t{i}", Regime.TEXTURED) for i in range(3)] + [(f"m{i}", Regime.MV_ONLY) for i in range(2)]
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [ENTRIES])
    return out


def parts(dataset: Path, **options: Any) -> tuple[TextureModule, TextureDataModule]:
    cfg = small_config(dataset, dataset)
    return TextureModule.of(cfg), TextureDataModule(cfg.data, held_out=dataset, held_out_samples=1, **options)


class Seen(lightning.Callback):
    """Numbers of the batches that were trained on; fails before step `fail_at`."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.numbers: list[int] = []
        self.fail_at = fail_at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.fail_at:
            raise RuntimeError("power cut")
        self.numbers.append(batch.number)


def trained(folder: Path, dataset: Path, fail_at: int | None = None, steps: int = 6, **options: Any) -> dict[str, Any]:
    """The last state of a run that goes on from what is in its folder."""
    saves = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)
    callbacks = [saves, AveragedWeights(0.9), Seen(fail_at)]
    trainer = lightning.Trainer(
        max_steps=steps, callbacks=callbacks, logger=False, gradient_clip_val=1.0, **QUIET | options
    )
    trainer.fit(*parts(dataset), ckpt_path="last", weights_only=True)
    state = torch.load(folder / "last.ckpt", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "TextureDataModule")
    return {name: state[name] for name in names} | {"average": state["callbacks"]["AveragedWeights"]}


@pytest.mark.parametrize(("parts_of_batch", "limit"), [(1, None), (2, None), (1, 4)])
def test_a_plain_model_checkpoint_resumes_within_an_epoch_bit_for_bit(
    dataset: Path, tmp_path: Path, parts_of_batch: int, limit: int | None
) -> None:
    options = {"accumulate_grad_batches": parts_of_batch, "limit_train_batches": limit, "limit_val_batches": 0}
    straight = trained(tmp_path / "straight", dataset, **options)
    with pytest.raises(RuntimeError, match="power cut"):
        trained(tmp_path / "cut", dataset, fail_at=3, **options)
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert same(trained(tmp_path / "cut", dataset, **options), straight)
    assert straight["TextureDataModule"] == {"consumed_samples": 12}


class Epochs(lightning.Callback):
    """Epoch, place in it and step of each batch; fails after step `fail_at`, before its state is saved."""

    def __init__(self, fail_at: int | None) -> None:
        self.rows: list[tuple[int, int, int]] = []
        self.fail_at = fail_at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        within = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self.rows.append((trainer.current_epoch, within, trainer.global_step))
        if trainer.global_step == self.fail_at:
            raise RuntimeError("power cut")


@pytest.mark.parametrize(("cuts", "accumulated"), [((3, 5), 1), ((2, 5), 2)])
def test_epochs_are_counted_right_after_two_resumes(
    dataset: Path, tmp_path: Path, cuts: tuple[int, int], accumulated: int
) -> None:
    """Two steps an epoch, a state after every step: cut behind one at the end of an epoch, or within one."""

    def run(folder: Path, fail_at: int | None) -> list[tuple[int, int, int]]:
        epochs = Epochs(fail_at)
        trainer = lightning.Trainer(
            max_steps=6, callbacks=[epochs, ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)],
            logger=False, limit_val_batches=0, limit_train_batches=2 * accumulated,
            accumulate_grad_batches=accumulated, **QUIET,
        )  # fmt: skip
        with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="power cut"):
            trainer.fit(*parts(dataset), ckpt_path="last", weights_only=True)
        return epochs.rows

    straight = run(tmp_path / "straight", None)
    assert straight[-1] == (2, 2 * accumulated, 6) and len(straight) == 6 * accumulated
    resumed = list[tuple[int, int, int]]()
    for cut in (*cuts, None):
        resumed += run(tmp_path / "cut", cut)
        saved = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"]
        assert saved == (cut - 1 if cut else 6)
        resumed = resumed[: saved * accumulated]
    assert resumed == straight


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_epochs_whose_steps_become_longer_are_counted_right_after_a_resume(
    dataset: Path, tmp_path: Path, cut: int
) -> None:
    """Two batches an epoch, from the second one on in one step; a state after every step."""

    def run(folder: Path, steps: int) -> tuple[list[tuple[int, int, int]], int]:
        epochs = Epochs(None)
        trainer = lightning.Trainer(
            max_steps=steps, logger=False, limit_val_batches=0, limit_train_batches=2, **QUIET,
            callbacks=[epochs, GradientAccumulationScheduler({1: 2}),
                       ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)],
        )  # fmt: skip
        module, data = parts(dataset)
        trainer.fit(module, data, ckpt_path="last", weights_only=True)
        return epochs.rows, data.position()

    straight, position = run(tmp_path / "straight", 5)
    assert straight[1:4] == [(0, 2, 2), (1, 1, 2), (1, 2, 3)] and straight[-1] == (3, 2, 5) and position == 16
    done, _ = run(tmp_path / "cut", cut)
    rest, position = run(tmp_path / "cut", 5)
    assert done + rest == straight and position == 16


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_epoch_that_ends_within_a_step_is_refused(dataset: Path, scheduled: bool) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2}
    if scheduled:
        options = {"callbacks": [GradientAccumulationScheduler({1: 2})]}
    trainer = lightning.Trainer(
        max_steps=4, limit_train_batches=3, logger=False, enable_checkpointing=False, limit_val_batches=0,
        **QUIET | options,
    )  # fmt: skip
    with pytest.raises(UserError, match="limit_train_batches 3 is no multiple of accumulate_grad_batches 2"):
        trainer.fit(*parts(dataset))


def test_precision_is_that_of_each_trainer_anew(dataset: Path) -> None:
    module, data = parts(dataset)
    options = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **QUIET}
    for precision, dtype in (("bf16-mixed", torch.bfloat16), ("32-true", None)):
        lightning.Trainer(max_steps=1, precision=precision, **options).fit(module, data)
        assert module.autocast is dtype


def test_a_state_saved_in_the_middle_of_a_step_counts_that_step_s_batch_as_new(dataset: Path, tmp_path: Path) -> None:
    class Save(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    trainer = lightning.Trainer(
        max_steps=3, callbacks=[Save()], logger=False, enable_checkpointing=False, limit_val_batches=0, **QUIET
    )
    trainer.fit(*parts(dataset))
    state = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert (state["global_step"], state["TextureDataModule"]) == (2, {"consumed_samples": 4})


def test_epochs_go_on_in_the_stream_and_overfitting_stays_at_its_batches(dataset: Path) -> None:
    for options, numbers in (
        ({"limit_train_batches": 2, "max_steps": 5}, [0, 1, 2, 3, 4]),
        ({"overfit_batches": 2, "max_steps": 5, "limit_val_batches": 0}, [0, 1, 0, 1, 0]),
    ):
        seen = Seen()
        trainer = lightning.Trainer(callbacks=[seen], logger=False, enable_checkpointing=False, **QUIET | options)
        trainer.fit(*parts(dataset))
        assert seen.numbers == numbers


def test_lightning_s_callbacks_and_loggers_get_every_curve(dataset: Path, tmp_path: Path) -> None:
    stopping = EarlyStopping("validation/loss", patience=1, min_delta=1e9)  # never enough better
    trainer = lightning.Trainer(
        max_steps=20,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        callbacks=[
            stopping,
            RichProgressBar(),
            LearningRateMonitor(),
            ModelCheckpoint(tmp_path, "best", "validation/loss"),
        ],
        logger=[CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")],
        accelerator="cpu",
        gradient_clip_val=1.0,
    )
    trainer.fit(*parts(dataset))
    assert trainer.global_step == 4, "stopped at the second validation"
    assert (tmp_path / "best.ckpt").is_file() and list((tmp_path / "board").rglob("events.*"))
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    wanted = {"loss", "loss_mv", "loss_uv", "gradient_norm", "loss/task img2tex", "loss_uv/regime textured"}
    assert wanted | {"validation/loss", "validation/flow_uv/task img2tex", "lr-MuonAdamW/pg1"} <= logged
    rates = [float(row["lr-MuonAdamW/pg1"]) for row in rows if row.get("lr-MuonAdamW/pg1")]
    assert rates == sorted(rates) and rates[0] < rates[-1], "it warms up"


def test_validation_is_deterministic_and_sees_the_averaged_weights(dataset: Path) -> None:
    module, data = parts(dataset)
    average = AveragedWeights(0.5)
    trainer = lightning.Trainer(
        max_steps=2, callbacks=[average], logger=False, enable_checkpointing=False, limit_val_batches=0, **QUIET
    )
    trainer.fit(module, data)
    with torch.no_grad():
        for parameter in module.parameters():  # an average that differs from the weights
            parameter.add_(0.01)
    before = {name: p.clone() for name, p in module.named_parameters()}
    trainer = lightning.Trainer(callbacks=[average], logger=False, **QUIET)
    first, second = trainer.validate(module, data), trainer.validate(module, data)
    assert first == second and first[0]["validation/loss"] > 0
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    (tested,) = trainer.test(module, data)
    assert tested["test/loss"] == first[0]["validation/loss"]
    (raw,) = lightning.Trainer(logger=False, **QUIET).validate(module, data)
    assert raw["validation/loss"] != first[0]["validation/loss"]
    with pytest.raises(UsageError, match="no dataset to validate on"):
        lightning.Trainer(logger=False, **QUIET).validate(module, TextureDataModule(data.cfg))


def test_a_module_comes_back_from_its_checkpoint_alone(dataset: Path, tmp_path: Path) -> None:
    trained(tmp_path, dataset, steps=2, limit_val_batches=0)
    module = TextureModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(dict(module.state_dict()), state["state_dict"])
    fresh = TextureModule.of(small_config(dataset, tmp_path))
    assert (module.flow, module.tasks, module.optimizer_cfg) == (fresh.flow, fresh.tasks, fresh.optimizer_cfg)
    other = replace(small_config(dataset, tmp_path).model, num_layers=1)
    with pytest.raises(UserError, match="of another model"):
        TextureModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, model=as_json(other))


def test_sections_of_a_checkpoint_are_replaced_as_it_is_loaded(dataset: Path, tmp_path: Path) -> None:
    trained(tmp_path, dataset, steps=2, limit_val_batches=0)
    flow, optimizer = FlowConfig(shift=3.0), OptimizerConfig(learning_rate=1e-5)
    path = str(tmp_path / "last.ckpt")
    module = TextureModule.load_from_checkpoint(path, weights_only=True, flow=flow, optimizer=optimizer, seed=7)
    assert (module.flow, module.optimizer_cfg, module.seed) == (flow, optimizer, 7)
    assert module.tasks == small_config(dataset, tmp_path).tasks
    assert module.hparams["flow"]["shift"] == 3.0
    assert same(dict(module.state_dict()), torch.load(path, weights_only=True)["state_dict"])


def test_lightning_finds_learning_rate_and_batch_size_and_leaves_all_else(dataset: Path) -> None:
    cfg = small_config(dataset, dataset)
    module = TextureModule.of(replace(cfg, optimizer=OptimizerConfig(warmup_steps=0)))
    data, before = TextureDataModule(cfg.data), {name: p.clone() for name, p in module.named_parameters()}
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "max_steps": 2} | QUIET
    trainer = lightning.Trainer(**options)
    Tuner(trainer).scale_batch_size(module, data, max_trials=2, steps_per_trial=1, init_val=1)
    assert data.cfg.batch_size == 2
    found = Tuner(trainer).lr_find(module, data, num_training=20, early_stop_threshold=None)
    assert found is not None and module.optimizer_cfg.learning_rate == found.suggestion() != 2e-4
    assert module.hparams["optimizer"]["learning_rate"] == found.suggestion()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters()) and data.position() == 0
    seen = Seen()
    trainer.callbacks.append(seen)
    trainer.fit(module, data)
    assert seen.numbers == [0, 1] and data.position() == 4
    with pytest.raises(UsageError, match=r"leave optimizer\.muon_learning_rate out"):
        TextureModule.of(cfg).learning_rate = 1e-3


def test_a_loader_without_its_data_module_is_named(dataset: Path) -> None:
    module, data = parts(dataset)
    trainer = lightning.Trainer(max_steps=1, logger=False, enable_checkpointing=False, limit_val_batches=0, **QUIET)
    with pytest.raises(UserError, match=r"the model takes hint, .* give a trainer the TextureDataModule itself"):
        trainer.fit(module, data.train_dataloader())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_trainer_s_precision_is_that_of_the_model_s_products(
    dataset: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = parts(dataset)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    encode = type(module.codec).encode
    dtypes = []
    monkeypatch.setattr(type(module.codec), "encode", lambda codec, x: dtypes.append(x.dtype) or encode(codec, x))
    module.model.blocks[0].attn1.to_q.register_forward_hook(
        lambda layer, x, y: seen.append((layer.weight.dtype, y.dtype))
    )
    trainer = lightning.Trainer(
        max_steps=2, precision=precision, callbacks=[AveragedWeights(0.9)], logger=False, enable_checkpointing=False,
        **QUIET,
    )  # fmt: skip
    trainer.fit(module, data)
    weights = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert set(seen) == {(weights, torch.bfloat16)}
    (row,) = trainer.validate(module, data)
    assert 0 < row["validation/loss"] < 20


TINY = str(REPO / "docs" / "examples" / "tiny.yaml")
SMALL = ["--model.model.num_layers", "1", "--model.model.num_attention_heads", "2", "--model.model.attention_head_dim",
         "16", "--model.model.ffn_dim", "32", "--trainer.enable_progress_bar", "false"]  # fmt: skip


class Doubled(TextureModule):
    """A subclass with an option of its own."""

    def __init__(self, factor: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor


def test_the_plain_lightning_command_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--data.cfg.directory", str(dataset), "--data.held_out", str(dataset), "--data.held_out_samples", "1",
             "--trainer.default_root_dir", str(tmp_path)]  # fmt: skip
    cli = main(["fit", "--config", TINY, *SMALL, *place, "--trainer.max_steps", "20", "--data.cfg.batch_size", "1"])
    assert cli.trainer.global_step == 20
    (state,) = tmp_path.rglob("*.ckpt")
    assert TextureModule.load_from_checkpoint(state, weights_only=True).extras.images == ("hint",)
    cli = main(["validate", "--config", TINY, *SMALL, *place])
    assert "validation/loss" in cli.trainer.callback_metrics
    path = [f"--model={__name__}.Doubled", "--model.factor", "3"]
    cli = main(["test", *path, "--config", TINY, *SMALL, *place, *path])
    assert type(cli.model).__name__ == "Doubled" and cli.model.factor == 3.0
    with pytest.raises(SystemExit):
        main(["fit", "--config", TINY, "--print_config"])
    shown = capsys.readouterr().out
    assert "class_path: training.module.TextureModule" in shown and "muon_learning_rate: 0.03" in shown


def test_an_optimiser_of_the_command_line_resumes(dataset: Path, tmp_path: Path) -> None:
    """Without a logger, so that both starts write their configuration to one place."""
    options = ["fit", "--config", TINY, *SMALL, "--data.cfg.directory", str(dataset), "--data.cfg.batch_size", "1",
               "--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--optimizer", "SGD",
               "--optimizer.lr", "0.1"]  # fmt: skip
    main([*options, "--trainer.max_steps", "2"])
    (state,) = tmp_path.rglob("*.ckpt")
    cli = main([*options, "--trainer.max_steps", "3", "--ckpt_path", str(state)])
    assert cli.trainer.global_step == 3 and isinstance(cli.trainer.optimizers[0], torch.optim.SGD)
    assert "max_steps: 3" in (tmp_path / "config.yaml").read_text()


def test_a_schedule_without_an_optimiser_is_refused(dataset: Path) -> None:
    given = ["fit", "--config", TINY, *SMALL, "--data.cfg.directory", str(dataset), "--trainer.max_steps", "1"]
    with pytest.raises(UsageError, match="--lr_scheduler takes effect with --optimizer alone"):
        main([*given, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "5"])


def test_wrong_options_of_lightning_are_one_sentence(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", TINY, *SMALL, "--data.cfg.directory", str(dataset), "--trainer.limit_train_batches", "0.5"]
    monkeypatch.setattr("sys.argv", ["training", "fit", *given, "--trainer.default_root_dir", str(tmp_path)])
    assert exit_code() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m training: When using an `IterableDataset`")


class Plain(TextureModule):
    """A subclass with an optimiser of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def test_a_subclass_with_an_optimiser_of_its_own_resumes(dataset: Path, tmp_path: Path) -> None:
    for steps in (2, 4):
        cfg = small_config(dataset, tmp_path)
        assert cfg.optimizer.muon_learning_rate is not None
        saves = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
        trainer = lightning.Trainer(max_steps=steps, callbacks=[saves], logger=False, limit_val_batches=0, **QUIET)
        trainer.fit(Plain.of(cfg), TextureDataModule(cfg.data), ckpt_path="last", weights_only=True)
    assert trainer.global_step == 4


class Counting(TextureModule):
    """A subclass with a buffer, which freezes a layer that has trained."""

    def __init__(self, *sections: Any, **options: Any) -> None:
        super().__init__(*sections, **options)
        self.register_buffer("batches", torch.zeros(2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches += 1
        self.model.proj_out.requires_grad_(self.global_step < 2)
        return super().training_step(batch, batch_idx)


def test_a_checkpoint_holds_buffers_and_weights_that_were_frozen_later(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path)
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, warmup_steps=0))
    module = Counting.of(cfg)
    saves = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=4)
    trainer = lightning.Trainer(max_steps=4, callbacks=[saves], logger=False, limit_val_batches=0, **QUIET)
    trainer.fit(module, TextureDataModule(cfg.data))
    assert not module.model.proj_out.weight.requires_grad and module.model.proj_out.weight.any()
    loaded = Counting.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(loaded.batches, torch.full((2,), 4.0))
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
    again = lightning.Trainer(max_steps=5, callbacks=[saves], logger=False, limit_val_batches=0, **QUIET)
    resumed = Counting.of(cfg)
    again.fit(resumed, TextureDataModule(cfg.data), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(resumed.batches, torch.full((2,), 5.0))
    assert torch.equal(resumed.model.proj_out.weight, module.model.proj_out.weight), "frozen"


def test_the_first_rate_after_a_resume_counts_the_time_before() -> None:
    """The scheduler is restored before training starts, right after the clock."""
    cfg, weight = OptimizerConfig(learning_rate=1.0, warmup_steps=1, final_share=0.0), torch.nn.Parameter(torch.ones(1))
    clock = Clock(max_steps=100, max_seconds=1000.0)
    schedule = WarmupCosine(torch.optim.SGD([weight], lr=1.0), cfg, clock.progress)
    clock.load_state_dict({"seconds": 900.0})
    schedule.load_state_dict({"steps": 10})
    assert schedule.get_last_lr() == [pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)]


SCRIPT = re.search(r"## A trainer of your own.*?```python\n(.*?)```", (REPO / "docs" / "training.md").read_text(), re.S)
POWER_CUT = """
import os, signal
from training.loop.callbacks import AveragedWeights, Clock
average = AveragedWeights.on_step
def cut(self, trainer, pl_module, batch):
    average(self, trainer, pl_module, batch)
    if trainer.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
AveragedWeights.on_step = cut
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_of_the_guide_trains_is_killed_and_resumes_to_equal_weights(dataset: Path, tmp_path: Path) -> None:
    assert SCRIPT is not None and len(SCRIPT[1].splitlines()) <= 36
    ends = []
    for name, starts in (("straight", [0]), ("killed", [-signal.SIGKILL, 0])):
        (tmp_path / name / "out").mkdir(parents=True)
        for link in ("forge", "held_out"):
            (tmp_path / name / "out" / link).symlink_to(dataset)
        for code in starts:
            text = (POWER_CUT if code else "") + SCRIPT[1]
            env = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(
                [sys.executable, "-c", text], cwd=tmp_path / name, env=env, capture_output=True, text=True, timeout=290
            )
            assert ended.returncode == code, ended.stderr
        ends.append(torch.load(tmp_path / name / "out" / "states" / "last.ckpt", weights_only=True))
        assert len(list((tmp_path / name / "out" / "logs").rglob("metrics.csv"))) == len(starts)
    names = ("state_dict", "optimizer_states", "global_step", "TextureDataModule")
    assert all(same(ends[0][name], ends[1][name]) for name in names) and ends[0]["global_step"] == 6
    assert same(*(end["callbacks"]["AveragedWeights"] for end in ends))


def test_a_module_alone_is_quiet(dataset: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Its step is plain torch: outside a trainer it has nothing to log to, and does not complain."""
    module, data = parts(dataset)
    data.follow(module.seed, module.codec, module.tasks, module.extras.images)
    batch = next(iter(data.train_dataloader()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "log", lambda *args, **options: pytest.fail("logged"))
        module.training_step(batch, 0)["loss"].backward()
    assert not [warning for warning in recwarn if "self.log" in str(warning.message)]


def test_weights_and_biases_logs_a_plain_trainer_s_curves(dataset: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="seqtex", save_dir=tmp_path, offline=True)
    trainer = lightning.Trainer(
        max_steps=2, logger=logger, log_every_n_steps=1, enable_checkpointing=False, limit_val_batches=0, **QUIET
    )
    trainer.fit(*parts(dataset))
    logger.experiment.finish()
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    names = (b"gradient_norm", b"loss_mv", b"trainer/global_step", b"muon_learning_rate")
    deadline = time.monotonic() + 60
    while not all(name in (data := record.read_bytes()) for name in names):
        assert time.monotonic() < deadline, len(data)  # its service writes the last of it after `finish` has returned
        time.sleep(0.2)


def test_the_order_of_the_callbacks_is_checked() -> None:
    guard, signals, average = FiniteGuard(1), StopSignals(), AveragedWeights()
    check_order([average, RichProgressBar(), guard, signals])
    with pytest.raises(ValueError, match="callbacks StopSignals and FiniteGuard must stand in the order"):
        check_order([average, signals, guard])


@pytest.mark.parametrize("muon", [None, 0.01])
def test_weight_decay_pulls_at_matrices_alone(dataset: Path, muon: float | None) -> None:
    cfg = small_config(dataset, dataset)
    options = replace(cfg.optimizer, muon_learning_rate=muon, weight_decay=0.1)
    named = trained_parameters(TextureModule.of(replace(cfg, model=replace(cfg.model, lora_rank=4))))
    optimizer = make_optimizer(options, named)
    names = {id(p): name for name, p in named.items()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == named.keys()
    for part in ("norm", ".bias", "scale_shift_table", ".lora_"):
        found = {decay[name] for name in named if part in name and "norm_patch" not in name}
        assert found == {0.0}, part
    assert decay["model.blocks.0.attnuv.to_q.weight"] == decay["model.patch_embedding.weight"] == 0.1


def test_a_regime_without_samples_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, entries, words in (
        ("t", ENTRIES[:2], "no mv_only sample; data.mv_only_ratio is 0 instead of 0.3, and the tasks of tasks.mv_only"),
        (
            "m",
            ENTRIES[3:],
            "no textured sample; data.mv_only_ratio is 1 instead of 0.3, and the tasks of tasks.textured",
        ),
    ):
        write_dataset(tmp_path / name, [entries])
        caplog.clear()
        BatchStream(DataConfig(directory=tmp_path / name, batch_size=1), seed=0)
        assert [words in record.message for record in caplog.records] == [True]
        BatchStream(DataConfig(directory=tmp_path / name, batch_size=1, mv_only_ratio=float(name == "m")), seed=0)
        assert len(caplog.records) == 1


def test_a_task_that_generates_no_view_has_no_loss_of_views(dataset: Path) -> None:
    cfg = small_config(dataset, dataset)
    module = TextureModule.of(replace(cfg, tasks=replace(cfg.tasks, textured={"mv2tex": 1.0})))
    stream = BatchStream(cfg.data, seed=0, tasks=module.tasks, images=("hint",))
    batch = next(batch for batch in map(stream.__getitem__, range(20)) if batch.regime is Regime.TEXTURED)
    losses = module.training_step(batch, 0)
    assert "loss_mv" not in losses and float(losses["loss"]) == pytest.approx(
        cfg.flow.uv_weight * losses["loss_uv"].item()
    )
