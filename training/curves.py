"""The curves of a run: what goes to its board, and when; and the record of what it was made with."""

from typing import Any

import lightning

from training.boards import Board, NoBoard, open_board
from training.meters import RunningMeans
from training.presets import TrainConfig
from training.record import write_record

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

    def tell(self, row: dict[str, Any]) -> None:
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
