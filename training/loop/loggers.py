"""Loggers for curves and pictures of a run: TensorBoard, Weights & Biases, or none."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning
import numpy as np
from jaxtyping import UInt8

from schemas.errors import UsageError
from training.config import TrainConfig, as_json
from training.loop.run_directory import write_record
from training.loop.throughput import RunningMeans

TENSORBOARD = "tensorboard"
"""Folder of the event files in a run's directory."""


@runtime_checkable
class Board(Protocol):
    """The logger of a run."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None: ...

    def close(self) -> None: ...


class NoBoard:
    """Shows nothing."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files. A resumed run hides what an earlier one wrote beyond the step that it resumes at."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        self._writer = SummaryWriter(str(directory), purge_step=first_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbBoard:
    """A run of Weights & Biases, as its environment variables say."""

    def __init__(self, cfg: TrainConfig) -> None:
        self._wandb = import_wandb()
        self._run = self._wandb.init(
            project="seqtex", name=cfg.run.directory.name, dir=str(cfg.run.directory), config=as_json(cfg)
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def import_wandb() -> Any:
    try:
        import wandb  # never installed by us
    except ImportError as error:
        raise UsageError("run.logger wandb: it is not installed; pip install wandb, or leave it out") from error
    return wandb


def open_board(cfg: TrainConfig, first_step: int) -> Board:
    """The board of a run that begins with this step. Rank 0 alone opens it."""
    if cfg.run.logger == "tensorboard":
        return TensorBoard(cfg.run.directory / TENSORBOARD, first_step)
    return WandbBoard(cfg) if cfg.run.logger == "wandb" else NoBoard()


EVERY = 10
"""Steps between two points of a curve."""
FIGURES = ("loss", "loss_mv", "loss_uv", "learning_rate", "samples_per_s", "tokens_per_s", "wait", "mfu")


class Curves(lightning.Callback):
    """Holds the board while training goes on; rank 0 has one that shows something."""

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.board: Board = NoBoard()
        self._means = RunningMeans()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._means = RunningMeans()
        if trainer.is_global_zero:
            write_record(self.cfg, pl_module.device)
            self.board = open_board(self.cfg, trainer.global_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """A row of the loss log."""
        self._means.add(row)
        if row["step"] % EVERY == 0:
            figures = {name: row[name] for name in FIGURES if row.get(name) is not None}
            self.board.scalars(row["step"], figures | self._means())

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        self.board.close()
        self.board = NoBoard()
