"""The model of a run: its configuration, and the weights that it starts from."""

import logging
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from schemas.errors import UsageError, UserError, require_between
from training.conditions.images import HINT, find_image
from training.maps import RELEASED_MAPS, check_maps
from training.model.backbones.find import FOLDER, check_fixed, known, transformer_config
from training.model.backbones.wan import WAN21_1P3B
from training.model.files import find_directory, read_architecture
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import from_wan, mark_trained

log = logging.getLogger(__name__)

CHANNELS = "latent_channels"
SIZES = (
    CHANNELS,
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "ffn_dim",
    "text_dim",
    "freq_dim",
)
LORA = ("lora_rank", "lora_alpha")
POSITIONS = "position_rope"
MOST = 10**6
"""Largest number that is taken for a size of a model, not for a slip of the keyboard."""


NOT_ARCHITECTURE = {
    "start",
    "start_path",
    "trained",
    "activation_checkpointing",
    "activation_checkpoint_every",
    "compile_blocks",
    "condition_images",
    "maps",
    "frozen_dtype",
}
"""Fields of `ModelConfig` that do not describe the network."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size of the transformer and what it starts from. Defaults: Wan2.1-T2V-1.3B with the released LoRA."""

    num_layers: int = 30
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    ffn_dim: int = 8960
    text_dim: int = 4096
    freq_dim: int = 256
    """Width of the timestep's sinusoidal embedding."""
    latent_channels: int = 16
    """Channels of the codec: 16, or 48 of Wan2.2-TI2V-5B's."""
    lora_rank: int = 128
    """Rank of the view branch's adapters; 0: none (released code)."""
    lora_alpha: int = 64
    """Released code."""
    start: Literal["scratch", "wan", "seqtex"] = "wan"
    """Random weights, a Wan transformer, or a SeqTex checkpoint."""
    start_path: str = WAN21_1P3B.hub
    """Directory or hub repository of the weights to start from."""
    trained: Literal["released", "all"] = "released"
    """`released`: LoRA, UV branch and geometry (paper); `all`: every weight."""
    geometry_attention: Literal["off", "mv", "mv_uv"] = "mv_uv"
    """Ablation: tokens whose queries and keys carry the geometry embedding; `mv_uv`: all (released weights)."""
    uv_branch: Literal["decoupled", "shared"] = "decoupled"
    """Ablation: UV tokens have weights of their own (paper), or go through the view branch with its LoRA."""
    view_hint: bool = False
    """The network also gets the given views' colours, carried over the surface to every image (ours). Off in the
    released weights, which can be fine-tuned with it: its layer starts at zero."""
    condition_images: tuple[str, ...] = ()
    """Further images that the network gets beside every view and the UV map, by name, such as `mask` (ours;
    `training.conditions.images`). Layers that are added to weights start at zero."""
    maps: tuple[str, ...] = RELEASED_MAPS
    """Maps that the UV branch generates, `base_color` first; of datasets with materials also `metallic_roughness`,
    `normal_tangent` and `emissive` (ours; `training.maps`)."""
    position_rope: bool = False
    """Tokens turn with their mean 3D position instead of their place in the image (ours; off in the released
    weights)."""
    rope_max_seq_len: int = 1024
    """Longest side of a token grid, and most frames (Wan)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Parts that the backward pass computes again to save memory: none, a block except its attention, or all of it."""
    activation_checkpoint_every: int = 1
    """Successive blocks of which one is computed again."""
    compile_blocks: bool = False
    """torch.compile for each block: faster steps after some minutes; needs a C++ compiler on a CPU."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of frozen matrices on the device that trains. `bfloat16` takes effect where products are made in it
    (`run.precision`): the same losses in less memory. What trains stays float32; do not unfreeze weights later."""

    def __post_init__(self) -> None:
        require_between("model.activation_checkpoint_every", self.activation_checkpoint_every, 1, 1000)
        require_between("model.lora_rank", self.lora_rank, 0, MOST)
        for name in (*SIZES, "lora_alpha", "rope_max_seq_len"):
            require_between(f"model.{name}", getattr(self, name), 1, MOST)
        if self.attention_head_dim < 6 or self.attention_head_dim % 2 or self.freq_dim % 2:
            raise UsageError(
                f"model.attention_head_dim is {self.attention_head_dim}, model.freq_dim {self.freq_dim}; give even "
                "numbers, the former at least 6"
            )
        if len(set(self.condition_images)) < len(self.condition_images):
            raise UsageError(f"model.condition_images is {list(self.condition_images)}; name each once")
        check_maps(self.maps)
        if self.start != "scratch" and not self.start_path:
            raise UsageError(f"model.start {self.start} needs model.start_path: give a directory, or a hub repository")
        for name in self.condition_images:
            if find_image(name) is HINT:
                raise UsageError(f"model.condition_images names {name!r}; set model.view_hint true instead")

    @property
    def condition_channels(self) -> dict[str, int] | None:
        """Channels that each of `condition_images` adds to the input; None: there are none."""
        return {name: find_image(name).latent_channels(self.latent_channels) for name in self.condition_images} or None

    @property
    def further_maps(self) -> tuple[str, ...]:
        """Return all maps where there are several, nothing for the base colour alone, as weights record it."""
        return self.maps if len(self.maps) > 1 else ()

    def architecture(self) -> dict[str, Any]:
        """Arguments of `SeqTexTransformer3DModel`."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_ARCHITECTURE}
        channels = settings.pop(CHANNELS)
        return settings | {
            "in_channels": channels,
            "out_channels": channels,
            "condition_channels": self.condition_channels,
            "maps": list(self.further_maps) or None,
        }


def with_architecture(cfg: ModelConfig) -> ModelConfig:
    """Take over sizes and positions of the weights that it starts from, whatever the options say; a view hint,
    condition images and maps may be added to them. Those of known backbones are known; any other hub repository is
    fetched for it."""
    if cfg.start == "scratch":
        return cfg
    found = {**asdict(ModelConfig(lora_rank=0)), **WAN21_1P3B.transformer}
    if cfg.start == "seqtex":
        found |= read_architecture(find_directory(cfg.start_path))
        check_fixed(cfg.start_path, found)
    else:
        found |= transformer_config(cfg.start_path)
    found[CHANNELS] = found["out_channels"]
    names = (*SIZES, *LORA, POSITIONS) if cfg.start == "seqtex" else (*SIZES, POSITIONS)
    if cfg.position_rope and not found[POSITIONS]:
        log.warning("%s turns with rows and columns: model.position_rope is for models from scratch", cfg.start_path)
    images = tuple(dict.fromkeys([*(found.get("condition_channels") or {}), *cfg.condition_images]))
    maps = tuple(dict.fromkeys([*(found.get("maps") or ()), *cfg.maps]))
    kept = {name: found[name] for name in names}
    return replace(cfg, view_hint=cfg.view_hint or found["view_hint"], condition_images=images, maps=maps, **kept)


def make_model(cfg: ModelConfig, seed: int, *, empty: bool = False) -> SeqTexTransformer3DModel:
    """The model at the start of training, with the parameters that train marked. From scratch, `seed` draws it. empty:
    on the meta device, of which no file of weights is opened."""
    if empty:
        model = empty_model(cfg)
    elif cfg.start == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SeqTexTransformer3DModel(**cfg.architecture())
    elif cfg.start == "wan":
        known(cfg.start_path)
        if cfg.position_rope:
            raise UsageError(f"{cfg.start_path} turns with rows and columns; leave out model.position_rope")
        model = from_wan(
            cfg.start_path,
            subfolder=FOLDER,
            lora_rank=cfg.lora_rank,
            lora_alpha=cfg.lora_alpha,
            geometry_attention=cfg.geometry_attention,
            uv_branch=cfg.uv_branch,
            rope_max_seq_len=cfg.rope_max_seq_len,
            view_hint=cfg.view_hint,
            condition_channels=cfg.condition_channels,
            maps=cfg.further_maps,
            seed=seed,
        )
    else:
        model = SeqTexTransformer3DModel.from_pretrained(
            cfg.start_path,
            add_view_hint=cfg.view_hint,
            add_condition_channels=cfg.condition_channels,
            add_maps=cfg.further_maps,
        )
    if cfg.start == "seqtex":
        check_switches(model, cfg)
    mark_trained(model, cfg.trained)
    model.checkpoint_blocks(cfg.activation_checkpointing, cfg.activation_checkpoint_every)
    if cfg.compile_blocks:
        model.compile_repeated_blocks()
    return model.train()


def empty_model(cfg: ModelConfig) -> SeqTexTransformer3DModel:
    """Make the model at the start of training on the meta device, from files of settings alone. cfg: as
    `with_architecture` returns it."""
    if cfg.start == "seqtex":
        found = SeqTexTransformer3DModel.empty(read_architecture(find_directory(cfg.start_path)))
        return found.with_inputs(cfg.view_hint, cfg.condition_channels or {}, cfg.further_maps)
    others = transformer_config(cfg.start_path) if cfg.start == "wan" else {}
    return SeqTexTransformer3DModel.empty({**others, **cfg.architecture()})


def check_switches(model: SeqTexTransformer3DModel, cfg: ModelConfig) -> None:
    """A checkpoint has its own switches; one that was asked for must not be ignored."""
    if others := set(model.config["condition_channels"] or {}) - set(cfg.condition_images):
        raise UserError(
            f"{cfg.start_path} takes the condition images {', '.join(sorted(others))}; name them in "
            "model.condition_images, or start from wan"
        )
    if tuple(model.config["maps"] or RELEASED_MAPS) != cfg.maps:
        raise UserError(
            f"{cfg.start_path} generates {', '.join(model.config['maps'])}; set model.maps so, with others behind "
            "them, or start from wan"
        )
    for name in ("geometry_attention", "uv_branch", "view_hint", "position_rope"):
        if model.config[name] != getattr(cfg, name):
            raise UserError(
                f"{cfg.start_path} was made with {name}={model.config[name]}; set model.{name} so, or start from wan"
            )
