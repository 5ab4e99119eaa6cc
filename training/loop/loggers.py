"""Curves and pictures of a run, through Lightning's loggers for TensorBoard and Weights & Biases."""

from pathlib import Path
from textwrap import indent
from typing import Any
from uuid import uuid4

import lightning
import numpy as np
from jaxtyping import UInt8
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from geometry.frames import z_up_to_y_up
from schemas.errors import UsageError
from schemas.mesh import UvMesh
from schemas.sample import TextureSample
from schemas.storage import write_file
from training.config import TrainConfig, as_json
from training.loop.run_directory import write_record
from training.loop.throughput import RunningMeans

TENSORBOARD = "tensorboard"
"""Folder of the event files in a run's directory."""
WANDB_ID = "wandb_id.txt"
"""In a run's directory: the id of its run at Weights & Biases, which a resumed run goes on with."""


def make_logger(cfg: TrainConfig, first_step: int) -> Logger:
    """Make the logger of a run that begins with this step; rank 0 alone has one that shows something. TensorBoard hides
    what an earlier process wrote from that step on. Raises UsageError without the package wandb where it is asked for,
    since we never install it."""
    directory = cfg.run.directory
    if cfg.run.logger == "tensorboard":
        return TensorBoardLogger(directory, TENSORBOARD, version="", purge_step=first_step)
    if cfg.run.logger == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UsageError("run.logger wandb: it is not installed; pip install wandb, or leave it out") from error
        return WandbLogger(
            project="seqtex", name=directory.name, save_dir=directory, id=wandb_id(directory), resume="allow",
            config=as_json(cfg),
        )  # fmt: skip
    return DummyLogger()


def wandb_id(directory: Path) -> str:
    """Return the id of a run at Weights & Biases, drawn at its first start."""
    path = directory / WANDB_ID
    if not path.is_file():
        write_file(path, uuid4().hex[:8].encode())
    return path.read_text().strip()


def vertex_colors(mesh: UvMesh, texels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Return the colour of the texel at each vertex."""
    height, width = texels.shape[:2]
    u, v = mesh.uv.T
    rows = np.clip((1 - v) * height, 0, height - 1).astype(int)
    return texels[rows, np.clip(u * width, 0, width - 1).astype(int)]


EVERY = 10
"""Steps between two points of a curve."""
FIGURES = ("loss", "learning_rate", "gradient_norm", "samples_per_s", "tokens_per_s", "wait",
           "memory_gb", "mfu")  # fmt: skip


class Curves(lightning.Callback):
    """Holds the logger while training goes on; rank 0 has one that shows something."""

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.logger: Logger = DummyLogger()
        self._means = RunningMeans()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._means = RunningMeans()
        if trainer.is_global_zero:
            write_record(self.cfg, pl_module.device)
            self.logger = make_logger(self.cfg, trainer.global_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """A row of the loss log."""
        self._means.add(row)
        if row["step"] % EVERY == 0:
            named = [*FIGURES, *(name for name in row if name.startswith("loss_"))]
            figures = {name: row[name] for name in named if row.get(name) is not None}
            self.logger.log_metrics(figures | self._means(), row["step"])

    def show(
        self,
        step: int,
        stored: TextureSample,
        texels: UInt8[np.ndarray, "uv uv 3"],
        picture: UInt8[np.ndarray, "h w 3"],
    ) -> None:
        """Show a sample with a generated UV map: a picture, the caption, and in 3D its mesh, coloured at the vertices
        (TensorBoard), or every covered texel as a point (Weights & Biases)."""
        name, caption = f"samples/{stored.uid}", str(stored.meta.get("caption", ""))
        if isinstance(self.logger, TensorBoardLogger):
            board = self.logger.experiment
            board.add_image(name, picture, step, dataformats="HWC")
            board.add_text(name, indent(caption, "    "), step)  # as code: its Markdown could name images to load
            assert stored.mesh is not None
            colors = vertex_colors(stored.mesh, texels)
            vertices, faces = z_up_to_y_up(stored.mesh.vertices), stored.mesh.faces
            board.add_mesh(name, vertices[None], colors[None], faces[None], global_step=step)
        elif isinstance(self.logger, WandbLogger):
            import wandb

            self.logger.log_image(name, [picture], step, caption=[caption])
            assert stored.uv is not None
            points = np.concatenate([stored.uv.position, texels], axis=-1, dtype=np.float32)[stored.uv.mask]
            shown: dict[str, Any] = {f"{name}/3d": wandb.Object3D(points)}
            self.logger.log_metrics(shown, step)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._close(failed=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._close()

    def _close(self, failed: bool = False) -> None:
        self.logger.finalize("failed" if failed else "finished")
        if isinstance(self.logger, WandbLogger):
            self.logger.experiment.finish(exit_code=int(failed))
        self.logger = DummyLogger()
