"""`seqtex train`: a dataset in, a checkpoint out."""

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from cli.progress import bar, log_event
from training.fit import train as run_training
from training.presets import TrainConfig
from training.presets import preset as named_preset

LOG_EVERY = 50
"""Steps between two lines of the log."""


def default_config(arguments: Sequence[str]) -> TrainConfig:
    """The preset that the command line asks for: its values are the defaults of all other options."""
    finder = ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default="tiny")
    return named_preset(finder.parse_known_args(arguments)[0].preset)


def train(cfg: TrainConfig) -> int:
    """Train on the dataset in data.directory; run.directory receives the loss log, trainer states and the checkpoint.
    A run that was interrupted goes on where it stopped.

    The preset decides the defaults of all other options: tiny (CPU), small (one GPU), full (Wan2.1-1.3B).
    """
    with bar("training", 100, "%") as update:

        def report(row: dict[str, Any]) -> None:
            update(int(100 * row["progress"]), f"step {row['step']}, loss {row['loss']:.3f}")
            if row["step"] % LOG_EVERY == 0:
                log_event("step", **row)

        result = run_training(cfg, report)
    log_event("trained", checkpoint=str(result.checkpoint), steps=len(result.losses), seconds=round(result.seconds, 1))
    return 0
