"""`seqtex train`: a dataset in, a checkpoint out."""

import json as json_format
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from geometry.cameras import RigConfig, rig_cameras
from geometry.frames import bounding_box
from geometry.raster_cpu import CpuRasterizer
from pipeline.render.views import RenderConfig, render_baked
from schemas.errors import UsageError, require_between
from schemas.sample import Cameras, Regime, TextureSample
from seqtex.cli.options import leaves
from seqtex.cli.terminal.console import log, log_event, logs_json, print_table, training_progress
from training.config import TrainConfig
from training.config import preset as named_preset
from training.cost import GPU_GB, H100_TFLOPS, MFU, count_tokens
from training.data.mixture import ImageSizes, open_datasets, readable_samples
from training.loop.strategies import is_first_process, own_device
from training.loop.throughput import Work, peak_flops
from training.loop.validation import Validation
from training.train import RunPlan, plan_run
from training.train import train as run_training

NOTABLE = 1.5
"""Multiple of the tokens that a preset is made for above which a warning is given."""
TWO_CORES = 8e10
"""Operations per second that they reach in the training of `seqtex demo` (docs/benchmarks.md)."""
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, ""))


def defaults(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The preset that the command line asks for: its values are the defaults of all other options."""
    finder = ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default="tiny")
    return dict(leaves(named_preset(finder.parse_known_args(arguments)[0].preset)))


def train(cfg: TrainConfig, dry_run: bool = False, json: bool = False, tflops: float | None = None) -> int:
    """Train on the dataset in data.directory; run.directory receives the loss log, trainer states and the checkpoint.
    A run that was interrupted goes on where it stopped.

    The preset decides the defaults of all other options: tiny (CPU), small (one GPU), full (Wan2.1-1.3B),
    full-14b, full-5b (other backbones), official (the released tasks).

    Args:
        dry_run: train nothing, but print parameters, tokens, operations, memory and hours of this configuration
        json: with dry_run, print one line of JSON instead of tables, as --log json does
        tflops: with dry_run, the 10^12 operations per second that a device is reckoned to do; default: 40 % of the peak
            of this machine's GPUs, or of an H100
    """
    log.working_on("starting  reading the dataset's size", None)
    has_data = bool(cfg.data.directories) or (cfg.data.directory / "dataset.json").is_file()
    plan = plan_run(cfg, own_sizes(cfg.preset) if dry_run and not has_data else None)
    if dry_run:
        return show_cost(plan, json or logs_json(), reckoned_speed(plan.cfg, tflops))
    speaks, warning = is_first_process(), size_warning(plan)
    if speaks:
        log_event("strategy", **asdict(plan.strategy))
    if speaks and warning:
        log_event("warning", detail=warning)
    log.progress("starting  reading the samples to show", None)
    validation = validation_of(cfg)
    steps = None if cfg.run.max_seconds else cfg.run.max_steps
    with training_progress(steps) if speaks else nullcontext(lambda row: None) as report:
        result = run_training(cfg, report, validation, plan)
    if speaks:
        log_event(
            "trained", checkpoint=str(result.checkpoint), steps=len(result.losses), seconds=round(result.seconds, 1)
        )
    return 0


def own_sizes(preset: str) -> ImageSizes:
    """Return the image sizes that a preset is made for."""
    if preset == "tiny":
        return ImageSizes(views=4, view_resolution=64, uv_resolution=128)
    return ImageSizes(views=4, view_resolution=512, uv_resolution=1024)


def size_warning(plan: RunPlan) -> str | None:
    """Warn where samples have far more tokens than the preset is made for: how many, how long that takes, what to
    do."""
    cfg, own = plan.cfg, own_sizes(plan.cfg.preset)
    meant, found = count_tokens(own, cfg.latents.text_encoder, token=plan.token), plan.cost.tokens
    times = (found.mv + found.uv) / (meant.mv + meant.uv)
    if times <= NOTABLE:
        return None
    flops = max(task.total for task in plan.cost.flops.values()) * cfg.data.batch_size * cfg.run.max_steps
    peak = Work.of(cfg, plan.sizes, own_device(cfg.run.accelerator)).peak
    speed, of = (MFU * peak, f"{MFU:.0%} of what these GPUs can do") if peak else (TWO_CORES, "what two cores do")
    return (
        f"a sample of this dataset has {found.mv + found.uv} tokens, {times:.3g} times those that preset {cfg.preset} "
        f"is made for (views of {own.view_resolution}^2, a UV map of {own.uv_resolution}^2): run.max_steps "
        f"{cfg.run.max_steps} takes up to {flops / 1e15:.3g} PFLOP, {flops / speed / 3600:.3g} hours at "
        f"{speed / 1e12:.3g} TFLOP/s ({of}); build the dataset with --views.resolution {own.view_resolution} "
        f"--uv.resolution {own.uv_resolution}, or take another preset (seqtex train --dry_run says what it needs)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A speed of one device that hours are reckoned with."""

    flops: float
    """Operations per second."""
    source: str


def reckoned_speed(cfg: TrainConfig, tflops: float | None) -> Speed:
    """Return the speed that was given, or a share of what a device can do."""
    if tflops is not None:
        require_between("tflops", tflops, 1e-6, 1e6)
        return Speed(flops=tflops * 1e12, source="as given")
    device = own_device(cfg.run.accelerator)
    if cfg.run.accelerator == "cpu":
        return Speed(flops=TWO_CORES, source="what two cores do in the demo")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if peak := peak_flops(name, cfg.run.precision):
        return Speed(flops=MFU * peak, source=f"{MFU:.0%} of the peak of {name}")
    half = 1.0 if cfg.run.precision == "bfloat16" else 0.5
    return Speed(flops=MFU * H100_TFLOPS * 1e12 * half, source=f"{MFU:.0%} of the peak of an H100, assumed")


def prefixed(largest: float) -> tuple[float, str]:
    """Return the decimal prefix in which a column's largest figure is at least 1, and its factor."""
    return next((factor, prefix) for factor, prefix in PREFIXES if largest >= factor or factor == 1.0)


def length_words(plan: RunPlan, speed: Speed) -> str:
    """One line on how long the run takes."""
    cfg, ranks, total = plan.cfg, plan.cfg.run.ranks, plan.cost.total_flops
    hours, devices = plan.cost.hours(speed.flops * ranks), f"{ranks} device{'s' if ranks > 1 else ''}"
    factor, prefix = prefixed(total)
    return (
        f"run.max_steps {cfg.run.max_steps} of {cfg.data.batch_size}: {total / factor:.3g} {prefix}FLOP, about "
        f"{f'{hours:.3g} hours' if hours >= 1 else f'{60 * hours:.2g} minutes'} on {devices} at "
        f"{speed.flops / 1e12:.3g} TFLOP/s each (reckoned, not measured: {speed.source})"
    )


def show_cost(plan: RunPlan, json: bool, speed: Speed) -> int:
    """One line of JSON, or tables of parameters, operations by task, memory by checkpointing policy, and hours."""
    cfg, cost, warning = plan.cfg, plan.cost, size_warning(plan)
    if json:
        row = {"event": "dry_run", "preset": cfg.preset} | cost.as_json() | {"strategy": asdict(plan.strategy)}
        row |= {"hours": cost.hours(speed.flops * cfg.run.ranks), "speed": asdict(speed)}
        row |= {"warning": warning} if warning else {}
        sys.stdout.write(json_format.dumps(row) + "\n")
        return 0
    counts = [(name, everything / 1e6, trained / 1e6) for name, (everything, trained) in cost.parameters.items()]
    totals = ("all", sum(row[1] for row in counts), sum(row[2] for row in counts))
    print_table(("part", "parameters", "trained"), [*counts, totals], f"Preset {cfg.preset}: millions of parameters")
    tokens, sizes = cost.tokens, cost.sizes
    factor, prefix = prefixed(max(f.total for f in cost.flops.values()))
    title = (
        f"A sample of {sizes.views} views of {sizes.view_resolution}^2 and a UV map of {sizes.uv_resolution}^2: "
        f"{tokens.mv} + {tokens.uv} tokens, {tokens.text} of text. {prefix}FLOP, "
        f"activation checkpointing {cfg.model.activation_checkpointing}"
    )
    rows = [
        (name, f.forward / factor, f.backward / factor, f.recomputed / factor, f.total / factor)
        for name, f in cost.flops.items()
    ]
    print_table(("task", "forward", "backward", "recomputed", "together"), rows, title)
    memory = {
        policy: (m.weights, m.gradients, m.optimizer, m.encoders, m.activations_per_sample)
        for policy, m in cost.memory.items()
    }
    factor, prefix = prefixed(max(max(row) for row in memory.values()))
    columns = ("checkpointing", "weights", "gradients", "optimiser", "encoders", "a sample")
    print_table(
        columns,
        [(policy, *(size / factor for size in row)) for policy, row in memory.items()],
        f"{prefix}B of one GPU, uncompiled; each GPU of a data-parallel run holds all of it",
    )
    fitting = [
        (policy, *(cost.largest_batch(policy, size) for size in GPU_GB),
         cost.gpu_needed(policy) or "-", cost.gpu_needed(policy, 8) or "-")
        for policy in cost.memory
    ]  # fmt: skip
    batch = f"GB for {cost.batch_per_gpu}"
    by_gpu = ("checkpointing", *(f"{size}" for size in GPU_GB), batch, f"{batch}, FSDP over 8")
    print_table(by_gpu, fitting, "Samples that fit on a GPU of so many GB, and the GPU that this batch needs")
    sys.stdout.write(f"{plan.strategy.words}\n{length_words(plan, speed)}\n" + (f"{warning}\n" if warning else ""))
    return 0


NEW_VIEWPOINT = RigConfig(name="turntable", elevation_deg=30.0)
"""Rig whose second camera is the new viewpoint: between the front and the right of the released rig, and higher."""


def validation_of(cfg: TrainConfig) -> Validation | None:
    """The samples to show; None where there are none or nobody wants any. Raises UsageError where the dataset that was
    named has none."""
    if not cfg.validation.every:
        return None
    chosen = cfg.validation.directory
    data = replace(cfg.data, directory=chosen, directories={}) if chosen else cfg.data
    materials = len(cfg.model.maps) > 1
    textured = (readable_samples(files, Regime.TEXTURED, materials) for files in open_datasets(data))
    samples = list(islice(chain.from_iterable(textured), cfg.validation.samples))
    if chosen and not samples:
        raise UsageError(f"validation.directory {chosen}: no textured sample; name another dataset or leave it out")
    return Validation(samples=samples, render=render_turned) if samples else None


def render_turned(
    sample: TextureSample, rgb: UInt8[np.ndarray, "uv uv 3"]
) -> UInt8[np.ndarray, "resolution resolution 3"]:
    """The sample's mesh with this UV map on it, from where no camera of the training data stands."""
    assert sample.mesh is not None
    rig = rig_cameras(NEW_VIEWPOINT, *bounding_box(sample.mesh.vertices, sample.mesh.faces))
    camera = Cameras(world_to_cam=rig.world_to_cam[1:2], projection=rig.projection[1:2])
    cfg = RenderConfig(resolution=sample.views.mask.shape[1])
    return render_baked(sample.mesh, rgb, camera, cfg, CpuRasterizer(threads=1)).rgb[0]
