"""One training step of SeqTex, as the paper's algorithm box: encode, draw the task, interpolate, predict, loss, log."""

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import cached_property
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from schemas.errors import UsageError, UserError
from schemas.sample import TextureSample
from training.config import LatentConfig, TrainConfig, as_json
from training.data.batch import Batch, LatentBatch, encode_batch, widened
from training.data.datamodule import TextureDataModule
from training.data.held_out import HeldOutSample
from training.diffusion.encoders import TextEncoder, check_channels, make_codec, make_text_encoder
from training.diffusion.flow import FlowConfig
from training.diffusion.latents import Extensions
from training.diffusion.tasks import TaskConfig, draw_task
from training.model.fsdp import check_whole, shard, whole_model
from training.model.init import ModelConfig, make_model
from training.model.optimizers import (
    OptimizerConfig,
    gradient_norm,
    make_optimizer,
    trained_parameters,
)
from training.model.schedule import WarmupCosine
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import FINGERPRINT, check_frozen, frozen_fingerprint, narrow_frozen
from training.objective import HeldOutModel, flow_errors, flow_losses
from training.steps import check_epochs, count_batches_anew


class TextureModule(lightning.LightningModule):
    """The model in training, for any `lightning.Trainer`. Its trained parameters are those that require a gradient; a
    checkpoint holds them alone, and the sha256 of the frozen ones."""

    def __init__(
        self,
        model: ModelConfig = ModelConfig(),
        latents: LatentConfig = LatentConfig(),
        flow: FlowConfig = FlowConfig(),
        tasks: TaskConfig = TaskConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        seed: int = 0,
        *,
        empty: bool = False,
    ) -> None:
        """The sections of a `TrainConfig`. seed: of the weights from scratch, of tasks, noise and noise levels. empty:
        on the meta device, without weights, which a sharded run then brings from rank 0.

        Raises:
            UserError: weights to start from are missing, damaged or of another architecture.
        """
        super().__init__()
        sections = {"model": model, "latents": latents, "flow": flow, "tasks": tasks, "optimizer": optimizer}
        plain = {name: as_json(section) for name, section in sections.items()} | {"seed": seed}
        self.save_hyperparameters(plain | {"_instantiator": "lightning.pytorch.cli.instantiate_module"})
        self.strict_loading = False
        self.latents, self.flow, self.tasks, self.optimizer_cfg, self.seed = latents, flow, tasks, optimizer, seed
        self.model, self.frozen_dtype = make_model(model, seed, empty=empty), model.frozen_dtype
        self.extras = Extensions.of(self.model.config)
        self.codec = make_codec(latents.codec, latents.codec_path, "cpu")
        check_channels(self.codec.layout, latents.codec, self.model.config["in_channels"])
        trained = trained_parameters(self).keys()
        self._frozen_names = self.state_dict().keys() - trained
        self.frozen = "" if empty else frozen_fingerprint(self.model)  # of what is loaded, before any is narrowed
        self._loaded: dict[str, Tensor] = {}
        """Frozen weights as they were loaded, in main memory, where the model has them narrow: for checkpoints."""
        self.autocast: torch.dtype | None = None
        """Type of the model's products, by the trainer's precision; None: that of the weights."""
        self.progress: Callable[[int], float] = self._progress_by_steps
        """Share of the run that is done after so many steps, which the learning rate decays with."""
        self.gradient_norm: Tensor | None = None
        """Norm of this step's gradients before they are clipped; 0 where they are skipped. A guard sets it first."""
        self._counts_anew = False
        self._logs = False
        """True while a trainer is there to log to."""

    @classmethod
    def of(cls, cfg: TrainConfig, *, empty: bool = False) -> "TextureModule":
        """Make the module of a run. empty: see `__init__`."""
        return cls(cfg.model, cfg.latents, cfg.flow, cfg.tasks, cfg.optimizer, cfg.run.seed, empty=empty)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> "TextureModule":
        """Make a module from a checkpoint, as Lightning does. options: also sections that replace the saved ones, as
        objects or as plain values."""
        plain: dict[str, Any] = {
            name: as_json(value) if is_dataclass(value) else value for name, value in options.items()
        }
        return super().load_from_checkpoint(*args, **plain)

    @property
    def learning_rate(self) -> float:
        """Peak of AdamW's learning rate, which Lightning's finder sets.
        Setting it raises UsageError with Muon, which has a rate of its own."""
        return self.optimizer_cfg.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        if self.optimizer_cfg.muon_learning_rate is not None:
            raise UsageError(
                "one learning rate for Muon and AdamW cannot be found: leave optimizer.muon_learning_rate out, or the "
                "finder"
            )
        self.optimizer_cfg = replace(self.optimizer_cfg, learning_rate=rate)
        self.hparams["optimizer"] = as_json(self.optimizer_cfg)

    def setup(self, stage: str) -> None:
        """Take precision and device from the trainer, and give the DataModule what it encodes and draws with."""
        self._logs = True
        plugin = self.trainer.precision_plugin
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        self.autocast = mixed.get(plugin.precision) if isinstance(plugin, MixedPrecision) else None
        if self.frozen_dtype == "bfloat16" and self.autocast == torch.bfloat16:
            wide = {} if self._loaded else narrow_frozen(self.model, torch.bfloat16)
            self._loaded |= wide if self.trainer.is_global_zero else {}
        self.codec.to(self.trainer.strategy.root_device)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, TextureDataModule):
            data.follow(self.seed, self.codec, self.tasks, self.extras.images, self.extras.maps)

    def teardown(self, stage: str) -> None:
        """Log no more."""
        self._logs = False

    def training_step(self, batch: Batch | LatentBatch, batch_idx: int) -> dict[str, Any]:
        """Return the losses of a batch, and log them under a trainer: `loss`, `loss_mv` and `loss_uv` where views, or
        UV maps, are generated, `loss_NAME` of each of several maps; with its task and regime."""
        task = draw_task(self.tasks, batch.regime, self.seed, batch.number)
        with torch.autocast(self.device.type, enabled=False):  # `predict_flow` alone is narrow
            latents = encode_batch(batch, self.codec, task.needs_uv) if isinstance(batch, Batch) else widened(batch)
            losses = flow_losses(
                latents, task, self.predict_flow, self.encode_text, flow=self.flow, extras=self.extras, seed=self.seed
            )
        record = {"loss": losses.loss.detach()} | losses.parts()
        groups = (f"task {task.name}", f"regime {latents.regime}")
        grouped = {f"{name}/{group}": value for name, value in record.items() for group in groups}
        if self._logs:
            has_bar = self.trainer.progress_bar_callback is not None  # whose numbers Lightning reads in every step
            self.log_dict(record, prog_bar=has_bar, batch_size=len(latents.uids))
            self.log_dict(grouped, batch_size=len(latents.uids))
        return record | {"loss": losses.loss, "task": task.name, "regime": str(latents.regime)}

    def validation_step(self, batch: HeldOutSample, batch_idx: int) -> None:
        """Log the errors of the flow on a held-out sample, by task, at fixed noise levels with fixed noise."""
        self._log_held_out(batch, "validation")

    def test_step(self, batch: HeldOutSample, batch_idx: int) -> None:
        """Do as `validation_step`, under `test/`."""
        self._log_held_out(batch, "test")

    def _log_held_out(self, held_out: HeldOutSample, stage: str) -> None:
        options: Any = {"on_epoch": True, "sync_dist": True, "batch_size": held_out.weight}
        for task, losses in self.held_out_losses(held_out.sample, held_out.number).items():
            named = {f"{stage}/{name}/task {task}": value for name, value in losses.items() if name != "loss"}
            self.log_dict(named, **options)
            self.log(f"{stage}/loss", losses["loss"], prog_bar=True, **options)

    def held_out_losses(self, sample: TextureSample, number: int) -> dict[str, dict[str, float]]:
        """Measure a sample that is not trained on, at fixed noise levels. number: its own, which seeds the noise.
        Returns for each task `flow_mv` and `flow_uv`, where it generates them, and the `loss` that they make."""
        parts = HeldOutModel(
            model=self.predict_flow,
            codec=self.codec,
            encode_text=self.encode_text,
            extras=self.extras,
            shift=self.flow.shift,
            device=self.device,
        )
        found: dict[str, dict[str, float]] = {}
        with torch.autocast(self.device.type, enabled=False):
            for task in self.tasks.weights(sample.regime):
                errors = flow_errors(parts, sample, number, task)
                loss = errors.get("flow_mv", 0.0) + self.flow.uv_weight * errors.get("flow_uv", 0.0)
                found[task] = errors | {"loss": loss}
        return found

    def predict_flow(
        self,
        mv: Float[Tensor, "b c views h w"],
        uv: Float[Tensor, "b c maps uv_h uv_w"] | None,
        timestep: Float[Tensor, "b frames"],
        text: Float[Tensor, "b l d"],
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the flow of both branches, in the precision of the trainer."""
        # A narrow copy of every weight, kept for the whole pass, would undo what sharding saves.
        keep = self.device_mesh is None
        with torch.autocast(self.device.type, self.autocast, self.autocast is not None, cache_enabled=keep):
            flows: tuple[Tensor, Tensor | None] = self.model(mv, uv, timestep, text)
        return flows

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The encoder of captions, made at its first use: never, where all of them come encoded."""
        latents, text_dim = self.latents, int(self.model.config["text_dim"])
        encoder = make_text_encoder(latents.text_encoder, latents.text_encoder_path, text_dim, str(self.device))
        check_text(latents.text_encoder, encoder.text_dim, text_dim)
        return encoder

    def encode_text(self, prompts: list[str]) -> Float[Tensor, "batch length dim"]:
        """Return the features of prompts."""
        return self.text_encoder.encode(prompts)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer of the trained parameters, and the schedule of its learning rates."""
        optimizer = make_optimizer(self.optimizer_cfg, trained_parameters(self))
        schedule = WarmupCosine(optimizer, self.optimizer_cfg, lambda step: self.progress(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _progress_by_steps(self, step: int) -> float:
        steps = self.trainer.max_steps
        return min(1.0, step / steps) if steps > 0 else 0.0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told, and log the norm of the gradients before."""
        norm = gradient_norm(self) if self.gradient_norm is None else self.gradient_norm
        self.log("gradient_norm", norm)
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(trained_parameters(self).values(), gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_model(self) -> None:
        """Shard the model, if the strategy does, from the weights of rank 0."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh, self.autocast)
            self.frozen = self.trainer.strategy.broadcast(self.frozen)

    def on_train_start(self) -> None:
        """Refuse epochs that end within a step, and let the first batch correct Lightning's counts."""
        check_epochs(self.trainer)
        self._counts_anew, self.gradient_norm = True, None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Correct the counts of batches and epochs after a resume."""
        if self._counts_anew:
            count_batches_anew(self.trainer)
            self._counts_anew = False

    def finished_model(self) -> SeqTexTransformer3DModel:
        """Return the model with all of its weights, the frozen ones as they were loaded; shares memory with the one
        that trains. On rank 0 alone, if it is sharded: every rank calls this."""
        model = whole_model(self.model)
        if not self._loaded:
            return model
        finished = SeqTexTransformer3DModel.empty(model.config)
        finished.load_state_dict(model.state_dict() | self._loaded, assign=True)
        return finished

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, by name, sharded or not: all but those that its fingerprint stands for,
        which were frozen from the start and are still."""
        known = self._frozen_names - trained_parameters(self).keys()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in known}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out of a checkpoint, and add their fingerprint."""
        saved = self.saved_tensors().keys()
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in saved}
        checkpoint[FINGERPRINT] = self.frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if a checkpoint belongs to other weights."""
        check_frozen(checkpoint, self.frozen)
        if "state_dict" in checkpoint:  # Lightning's own strategy of shards has loaded it before
            check_whole(self.saved_tensors(), checkpoint["state_dict"])


def check_text(name: str, found: int, wanted: int) -> None:
    """Raise UserError if the features of captions have another width than the model takes."""
    if found != wanted:
        raise UserError(
            f"features of {name} have {found} dimensions, the model takes {wanted}; "
            f"set model.text_dim {found}, start from other weights, or set latents.text_encoder none"
        )
