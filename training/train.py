"""A training run from its configuration to a checkpoint that can be sampled."""

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import Strategy

from schemas.errors import UsageError, UserError
from schemas.storage import refuse_links
from training.arithmetic import arithmetic, attention, autocast_dtype, find_device
from training.config import TrainConfig
from training.cost import Cost, estimate
from training.data.datamodule import TextureDataModule
from training.data.mixture import (
    ImageSizes,
    built_sizes,
    check_materials,
    image_sizes,
    leading_dataset,
    open_datasets,
    stored_text,
)
from training.diffusion.encoders import LatentCodec, check_channels, codec_layout
from training.loop.callbacks import AveragedWeights, Clock, LossLog, OlderState, SavedStates, read_losses
from training.loop.checkpoints import CARD, CheckpointCard, latent_statistics, read_card
from training.loop.loggers import Curves
from training.loop.profile import Profile
from training.loop.run_directory import RunLock
from training.loop.signals import Diverged, FiniteGuard, StopSignals
from training.loop.snapshots import Snapshots
from training.loop.states import AtomicCheckpointIO, ShardedCheckpointIO, newest_state
from training.loop.strategies import (
    Choice,
    check_run,
    choose,
    is_first_process,
    make_strategy,
    memory_of,
    own_device,
)
from training.loop.threads import ThreadChoice
from training.loop.throughput import Meter, Work
from training.loop.validation import Pictures, Validation
from training.model.init import ModelConfig, with_architecture
from training.module import TextureModule, check_text

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The plan of one run."""

    cfg: TrainConfig
    """With the architecture of the weights that it starts from."""
    sizes: ImageSizes
    token: int
    """Pixels a side of one token."""
    cost: Cost
    strategy: Choice


def plan_run(cfg: TrainConfig, sizes: ImageSizes | None = None) -> RunPlan:
    """sizes: those of the images; None: as the dataset has them.

    Raises:
        UsageError: options contradict each other.
        UserError: there is no dataset, or it or the weights to start from do not fit.
    """
    check_run(cfg)
    cfg = replace(cfg, model=with_architecture(cfg.model))
    layout = codec_layout(cfg.latents.codec, cfg.latents.codec_path)
    check_channels(layout, cfg.latents.codec, cfg.model.latent_channels)
    if sizes is None:
        sizes = image_sizes(leading_dataset(cfg.data), layout.token)
        for files in open_datasets(cfg.data):
            check_materials(files, cfg.model.maps)
    check_grids(cfg.model, sizes, layout.token)
    cost = estimate(cfg, sizes)
    strategy = choose(cfg, cost, memory_of(own_device(cfg.run.accelerator)))
    return RunPlan(cfg=cfg, sizes=sizes, token=layout.token, cost=cost, strategy=strategy)


def check_grids(model: ModelConfig, sizes: ImageSizes, token: int) -> None:
    """Raise UsageError where images have more tokens a side, or are more, than the model has positions for.
    token: pixels a side of one."""
    longest = max(sizes.view_resolution // token, (sizes.uv_resolution or 0) // token, sizes.views + 1)
    if longest > model.rope_max_seq_len:
        raise UsageError(
            f"model.rope_max_seq_len is {model.rope_max_seq_len}; these views and maps need {longest} or more"
        )


MAX_ROLLBACKS = 3
"""Times that a run goes back to an older state before it gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The result of a run."""

    checkpoint: Path
    """Directory for `seqtex texture --checkpoint`."""
    losses: list[dict[str, Any]]
    """One row per step: step, seconds, loss, loss_mv, loss_uv (where there was a UV map), task, regime, learning
    rate."""
    parameters: int
    seconds: float


def train(
    cfg: TrainConfig,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    validation: Validation | None = None,
    plan: RunPlan | None = None,
) -> TrainResult:
    """Runs to the step or time limit, resuming what is in `run.directory`. `report` gets each step's row of the loss
    log with the share of the run that is done as `progress`, and the figures of `Meter`. `validation`: what is textured
    every `validation.every` steps. `plan`: the result of `plan_run(cfg)`, if it is there already.

    Raises:
        UsageError: options contradict each other.
        UserError: dataset, weights or trainer state are missing, damaged or do not fit; too many gradients were no
            numbers (`Diverged`); a signal stopped the run, which then saved its state (`Interrupted`).
    """
    find_device(cfg.run.accelerator)
    plan = plan or plan_run(cfg)
    device_type = own_device(plan.cfg.run.accelerator).type
    if cfg.run.precision == "bfloat16" and autocast_dtype(device_type, cfg.run.precision) is None:
        log.warning("run.precision bfloat16 is slow on this device: float32 is used, with more memory")
    cfg.run.directory.mkdir(parents=True, exist_ok=True)
    refuse_links(cfg.run.directory)
    with (
        closing(RunLock(cfg.run.directory)) as lock,
        arithmetic(cfg.run.threads, device_type),
        attention(cfg.run.attention, device_type),
    ):
        return train_as_planned(plan, lock, report, validation)


def train_as_planned(
    plan: RunPlan, lock: RunLock, report: Callable[[dict[str, Any]], None], validation: Validation | None
) -> TrainResult:
    cfg, device = plan.cfg, own_device(plan.cfg.run.accelerator)
    shown = validation if cfg.validation.every else None
    empty = plan.strategy.name == "fsdp" and not is_first_process()
    module = make_module(cfg, device, shows=shown is not None, empty=empty)
    data = TextureDataModule(cfg.data)
    clock = Clock(cfg.run.max_steps, cfg.run.max_seconds, cfg.run.pause_seconds)
    module.progress = clock.progress
    average, signals = AveragedWeights(cfg.optimizer.ema_decay), StopSignals()
    meter, curves = Meter(Work.of(cfg, plan.sizes, device)), Curves(cfg)
    guard = FiniteGuard(cfg.optimizer.skip_budget)

    def report_row(row: dict[str, Any]) -> None:
        with_figures = row | meter.figures()
        curves.write(with_figures)
        report(with_figures)

    saves = (cfg.run.state_every, cfg.run.weights_every)
    loss_log = LossLog(cfg.run.directory / "losses.jsonl", clock, guard, report_row, saves)
    states = SavedStates(cfg.run.directory / "states", cfg.run.state_every, meter)
    card_at = partial(make_card, cfg, module.codec, plan.sizes)
    snapshots = Snapshots(cfg.run, card_at, average, signals, shown, curves, meter)
    threads = [ThreadChoice(cfg.run.directory)] if cfg.run.threads == 0 else []
    pictures = [Pictures(cfg, shown, average, curves, meter)] if shown is not None else []
    profile = [Profile(cfg.run.directory, cfg.run.profiled, meter)] if cfg.run.profiled else []
    rollbacks = 0
    while True:
        callbacks = [lock, clock, average, guard, signals, curves, *threads, loss_log, snapshots, states, *pictures,
                     *profile, meter]  # fmt: skip
        strategy = make_strategy(plan.strategy.name, device, cfg.run.ranks, cfg.run.shard_size)
        trainer = make_trainer(cfg, strategy, callbacks)
        if trainer.is_global_zero:
            lock.take()
        state = states.newest()
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(state) if state else None, weights_only=True)
            break
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # which Lightning makes an exit with 1
                raise KeyboardInterrupt from end
            raise
        except OlderState:
            continue
        except Diverged as end:
            if rollbacks == MAX_ROLLBACKS or newest_state(states.directory) is None:
                raise
            rollbacks += 1
            data.skip_failed(end.step)
    if trainer.is_global_zero:  # alone, so that the exit code is that of one process
        signals.check(trainer)
        check_finished(snapshots.finished, trainer)
    return TrainResult(
        checkpoint=snapshots.finished,
        losses=loss_log.rows or read_losses(loss_log.path),  # of earlier parts, where nothing was left to do
        parameters=sum(p.numel() for p in module.model.parameters()),
        seconds=clock.seconds,
    )


def check_finished(checkpoint: Path, trainer: lightning.Trainer) -> None:
    """Raises UserError where a run with nothing left to do finds no checkpoint of at least the steps it came to."""
    steps = min(trainer.max_steps, trainer.global_step)
    if not (checkpoint / CARD).is_file() or read_card(checkpoint).steps < steps:
        raise UserError(
            f"{checkpoint}: no checkpoint of {steps} steps, and nothing left to train: the newest trainer state has "
            f"{trainer.global_step}; raise run.max_steps or run.max_seconds above its own, or give another "
            "run.directory"
        )


def make_module(cfg: TrainConfig, device: torch.device, shows: bool, empty: bool = False) -> TextureModule:
    """Make the module of a run on its device. shows: samples are textured on the way, whose captions must be encoded.
    empty: without weights, which come from rank 0.

    Raises:
        UserError: features of captions do not fit the model, or stored latents the run.
    """
    module = TextureModule.of(cfg, empty=empty)
    module.codec.to(device)
    with_latents = open_datasets(cfg.data) if cfg.data.latents else []
    stored = stored_text(with_latents, module.codec, cfg.latents.text_encoder)
    if stored is not None:
        check_text(cfg.latents.text_encoder, stored.text_dim, int(module.model.config["text_dim"]))
    if stored is None or shows:  # the captions of the samples that are shown are few: the CPU encodes them once
        module.text_encoder.to(device if stored is None else "cpu")
    return module


ORDER = (RunLock, Clock, AveragedWeights, FiniteGuard, StopSignals, Curves, ThreadChoice, LossLog, Snapshots,
         SavedStates, Pictures, Profile, Meter)  # fmt: skip
"""The order of the callbacks. The lock comes before anything is written. Clock and StopSignals decide whether a step is
the last one before Snapshots and SavedStates ask. AveragedWeights has averaged the step before both save. Curves has
its logger before LossLog writes to it. Snapshots writes the finished checkpoint before SavedStates saves the state of
that step: a run that finds that state has nothing left to write. Meter is last: the time between its hooks is the
loader's."""


def check_order(callbacks: Sequence[lightning.Callback]) -> None:
    """Raise ValueError naming two callbacks of ours that are not in `ORDER`."""
    ours = [callback for callback in callbacks if isinstance(callback, ORDER)]
    for first, second in pairwise(type(callback) for callback in ours):
        if ORDER.index(first) >= ORDER.index(second):
            raise ValueError(
                f"callbacks {first.__name__} and {second.__name__} must stand in the order of training.train.ORDER"
            )


def make_trainer(cfg: TrainConfig, strategy: Strategy, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning's, under torch 2.13
    narrow = autocast_dtype(own_device(cfg.run.accelerator).type, cfg.run.precision) is not None
    trainer = lightning.Trainer(
        default_root_dir=cfg.run.directory,
        strategy=strategy,
        accelerator=cfg.run.accelerator,
        devices=cfg.run.devices,
        num_nodes=cfg.run.nodes,
        precision="bf16-mixed" if narrow else "32-true",
        max_epochs=-1,
        max_steps=cfg.run.max_steps,
        accumulate_grad_batches=cfg.run.accumulate_grad_batches,
        gradient_clip_val=cfg.optimizer.gradient_clip,
        log_every_n_steps=cfg.run.log_every,
        callbacks=callbacks,
        plugins=[ShardedCheckpointIO() if cfg.run.state_format == "sharded" else AtomicCheckpointIO()],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    check_order(trainer.callbacks)  # type: ignore[attr-defined]
    return trainer


def make_card(cfg: TrainConfig, codec: LatentCodec, sizes: ImageSizes, steps: int) -> CheckpointCard:
    mean, std = latent_statistics(codec)
    return CheckpointCard(
        preset=cfg.preset,
        codec=cfg.latents.codec,
        codec_path=cfg.latents.codec_path,
        text_encoder=cfg.latents.text_encoder,
        text_encoder_path=cfg.latents.text_encoder_path,
        shift=cfg.flow.shift,
        image_dropout=cfg.flow.image_dropout,
        latent_mean=mean,
        latent_std=std,
        steps=steps,
        rig=built_sizes(leading_dataset(cfg.data)).get("rig", {}),
        **asdict(sizes),
    )
