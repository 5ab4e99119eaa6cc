"""`seqtex train`: a dataset in, a checkpoint out."""

import json as json_format
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from cli.progress import bar, log_event, training_note
from cli.table import print_table
from cli.validation import validation_of
from training.cost import GPU_GB, Cost, estimate
from training.data import leading_dataset
from training.fit import train as run_training
from training.presets import TrainConfig
from training.presets import preset as named_preset
from training.sources import ImageSizes, image_sizes
from training.strategies import Choice, check_run, choose, is_first_process, memory_of, own_device

LOG_EVERY = 50
"""Steps between two lines of the log."""


def default_config(command: str, arguments: Sequence[str]) -> TrainConfig:
    """The preset that the command line asks for: its values are the defaults of all other options."""
    finder = ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default="tiny")
    return named_preset(finder.parse_known_args(arguments)[0].preset)


def train(cfg: TrainConfig, dry_run: bool = False, json: bool = False) -> int:
    """Train on the dataset in data.directory; run.directory receives the loss log, trainer states and the checkpoint.
    A run that was interrupted goes on where it stopped.

    The preset decides the defaults of all other options: tiny (CPU), small (one GPU), full (Wan2.1-1.3B).

    Args:
        dry_run: train nothing, but print parameters, tokens, operations and memory of this configuration
        json: with dry_run, print one line of JSON instead of tables (as without a terminal)
    """
    check_run(cfg)
    cost = estimate(cfg, sizes_of_samples(cfg))
    strategy = choose(cfg, cost, memory_of(own_device(cfg.run.accelerator)))
    if dry_run:
        return show_cost(cost, strategy, cfg, json or not sys.stdout.isatty())
    speaks = is_first_process()
    if speaks:
        log_event("strategy", **asdict(strategy))
    with bar("training", 100, "%") if speaks else nullcontext(lambda done, note: None) as update:

        def report(row: dict[str, Any]) -> None:
            update(int(100 * row["progress"]), training_note(row))
            if row["step"] % LOG_EVERY == 0:
                log_event("step", **row)

        result = run_training(cfg, report, validation_of(cfg))
    if speaks:
        log_event(
            "trained", checkpoint=str(result.checkpoint), steps=len(result.losses), seconds=round(result.seconds, 1)
        )
    return 0


def sizes_of_samples(cfg: TrainConfig) -> ImageSizes:
    """Those of the data, or the preset's own where there is none yet."""
    if cfg.data.directories or (cfg.data.directory / "dataset.json").is_file():
        return image_sizes(leading_dataset(cfg.data))
    if cfg.preset == "tiny":
        return ImageSizes(views=4, view_resolution=64, uv_resolution=128)
    return ImageSizes(views=4, view_resolution=512, uv_resolution=1024)


def show_cost(cost: Cost, strategy: Choice, cfg: TrainConfig, json: bool) -> int:
    """One line of JSON, or tables of parameters, operations by task, and memory by checkpointing policy."""
    if json:
        told = {"event": "dry_run", "preset": cfg.preset} | cost.as_json() | {"strategy": asdict(strategy)}
        sys.stdout.write(json_format.dumps(told) + "\n")
        return 0
    counts = [(name, everything / 1e6, trained / 1e6) for name, (everything, trained) in cost.parameters.items()]
    totals = ("all", sum(row[1] for row in counts), sum(row[2] for row in counts))
    print_table(("part", "parameters", "trained"), [*counts, totals], f"Preset {cfg.preset}: millions of parameters")
    tokens, sizes = cost.tokens, cost.sizes
    title = (
        f"A sample of {sizes.views} views of {sizes.view_resolution}^2 and a UV map of {sizes.uv_resolution}^2: "
        f"{tokens.mv} + {tokens.uv} tokens, {tokens.text} of text. TFLOP, checkpointing {cfg.model.checkpointing}"
    )
    rows = [
        (name, f.forward / 1e12, f.backward / 1e12, f.recomputed / 1e12, f.total / 1e12)
        for name, f in cost.flops.items()
    ]
    print_table(("task", "forward", "backward", "recomputed", "together"), rows, title)
    memory = [
        (
            policy,
            m.weights / 1e9,
            m.gradients / 1e9,
            m.optimizer / 1e9,
            m.encoders / 1e9,
            m.activations_per_sample / 1e9,
        )
        for policy, m in cost.memory.items()
    ]
    columns = ("checkpointing", "weights", "gradients", "optimiser", "encoders", "a sample")
    print_table(columns, memory, "GB of one GPU, uncompiled; each GPU of a data-parallel run holds all of it")
    fitting = [
        (policy, *(cost.largest_batch(policy, size) for size in GPU_GB),
         cost.gpu_needed(policy) or "-", cost.gpu_needed(policy, 8) or "-")
        for policy in cost.memory
    ]  # fmt: skip
    batch = f"GB for {cost.batch_per_gpu}"
    by_gpu = ("checkpointing", *(f"{size}" for size in GPU_GB), batch, f"{batch}, FSDP over 8")
    print_table(by_gpu, fitting, "Samples that fit on a GPU of so many GB, and the GPU that this batch needs")
    sys.stdout.write(f"{strategy.words}\n")
    return 0
