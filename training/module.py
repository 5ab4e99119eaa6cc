"""One training step of SeqTex, as the paper's algorithm box: encode, draw the task, interpolate, predict, loss, log."""

from typing import Any

import lightning
import torch
from jaxtyping import Float
from torch import Tensor

from training.data.batch import Batch, LatentBatch, encode_batch
from training.diffusion.encoders import LatentCodec, TextEncoder
from training.diffusion.flow import FlowConfig, draw, interpolate, masked_mse, velocity
from training.diffusion.latents import Extras
from training.diffusion.tasks import TaskConfig, draw_task, given_views, plan_frames
from training.model.fsdp import shard
from training.model.optimizers import OptimizerConfig, check_optimizer, make_optimizer, trained_parameters
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import KEY, check_frozen, frozen_fingerprint


class TextureModule(lightning.LightningModule):
    """The model in training. Its trained parameters are those that require a gradient."""

    def __init__(
        self,
        model: SeqTexTransformer3DModel,
        codec: LatentCodec,
        text_encoder: TextEncoder | None,
        *,
        flow: FlowConfig,
        tasks: TaskConfig,
        optimizer: OptimizerConfig,
        seed: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        """text_encoder: None if all captions come encoded."""
        super().__init__()
        self.model = model
        self.codec = codec
        self.text_encoder = text_encoder
        self.flow = flow
        self.tasks = tasks
        self.optimizer_cfg = optimizer
        self.seed = seed
        self.autocast = autocast
        self.extras = Extras.of(model.config)
        self.frozen = frozen_fingerprint(model)

    def training_step(self, batch: Batch | LatentBatch, batch_idx: int) -> dict[str, Any]:
        """Return the losses of a batch (`loss`, `loss_mv`, `loss_uv` if the task has a UV map), its task and regime."""
        latents = encode_batch(batch, self.codec) if isinstance(batch, Batch) else batch
        task = draw_task(self.tasks, latents.regime, self.seed, latents.number)
        branches = [latents.mv, latents.uv] if task.needs_uv and latents.uv else [latents.mv]
        draws = draw(self.seed, latents.samples, [branch.rgb.shape[1:] for branch in branches]).to(self.device)
        plan = plan_frames(task, given_views(task, draws.view_order), self.flow.sigma(draws.level))
        views = latents.mv.rgb.shape[2]
        branches[0] = latents.given(plan.condition[:, :views]).mv
        frames = [slice(0, views), slice(views, None)]

        inputs = [
            torch.cat([interpolate(branch.rgb, noise, plan.sigma[:, at]), branch.conditions(self.extras)], dim=1)
            for branch, noise, at in zip(branches, draws.noise, frames, strict=False)
        ]
        text = self.embed_text(latents, draws.drop_text)
        predicted = self.predict(inputs[0], inputs[1] if len(inputs) == 2 else None, plan.timestep, text)
        flows = [flow for flow in predicted if flow is not None]
        losses = [
            masked_mse(flow, velocity(branch.rgb, noise), plan.generated[:, at])
            for flow, branch, noise, at in zip(flows, branches, draws.noise, frames, strict=False)
        ]
        loss = sum(weight * part for weight, part in zip((1.0, self.flow.uv_weight), losses, strict=False))
        record = {name: part.detach() for name, part in zip(("loss_mv", "loss_uv"), losses, strict=False)}
        return {"loss": loss} | record | {"task": task.name, "regime": str(latents.regime)}

    def predict(
        self,
        mv: Float[Tensor, "b c views h w"],
        uv: Float[Tensor, "b c 1 uv_h uv_w"] | None,
        timestep: Float[Tensor, "b frames"],
        text: Float[Tensor, "b l d"],
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the flow of both branches, in the precision of the run."""
        # A narrow copy of every weight, kept for the whole pass, would undo what sharding saves.
        keep = self.device_mesh is None
        with torch.autocast(self.device.type, self.autocast, self.autocast is not None, cache_enabled=keep):
            flows: tuple[Tensor, Tensor | None] = self.model(mv, uv, timestep, text)
        return flows

    def embed_text(self, latents: LatentBatch, drop: Float[Tensor, " batch"]) -> Float[Tensor, "batch l d"]:
        """Return features of the captions; those whose number `drop` is below the dropout rate are replaced by ""."""
        kept = [d >= self.flow.text_dropout for d in drop.tolist()]
        if latents.text is not None:
            return latents.text.tokens(kept).to(self.device)
        assert self.text_encoder is not None
        prompts = [caption if keep else "" for caption, keep in zip(latents.captions, kept, strict=True)]
        return self.text_encoder.encode(prompts).to(self.device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of the trained parameters."""
        return make_optimizer(self.optimizer_cfg, trained_parameters(self))

    def configure_model(self) -> None:
        """Shard the model, if the strategy does."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the fingerprint of the frozen weights to a trainer state."""
        checkpoint[KEY] = self.frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if a trainer state belongs to other frozen weights or another optimizer."""
        check_frozen(checkpoint, self.frozen)
        check_optimizer(self.optimizer_cfg, checkpoint["optimizer_states"][0])
