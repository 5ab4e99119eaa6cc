"""What the model of a run starts from: its architecture, known before a weight is read, and the model itself."""

import logging
from dataclasses import asdict, replace

import torch

from schemas.errors import UserError
from training.config import ModelConfig
from training.model.files import find_directory, read_config
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import from_wan, load_model, read_architecture, trainable_parameters

log = logging.getLogger(__name__)

WAN_FOLDER = "transformer"
"""Of Wan's pipelines."""
SIZES = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "text_dim", "freq_dim")
LORA = ("lora_rank", "lora_alpha")
POSITIONS = "position_rope"


def with_architecture(cfg: ModelConfig) -> ModelConfig:
    """Take over sizes and positions of the weights that it starts from, whatever the options say; a view hint may be
    added to them. Of Wan2.1-1.3B the defaults are known; any other hub repository is fetched for it."""
    if cfg.start == "scratch":
        return cfg
    default = ModelConfig(lora_rank=0)
    found = asdict(default)
    if cfg.start == "seqtex":
        found |= read_architecture(find_directory(cfg.start_path))
    elif cfg.start_path != default.start_path:
        found |= read_config(find_directory(cfg.start_path, WAN_FOLDER))
    names = (*SIZES, *LORA, POSITIONS) if cfg.start == "seqtex" else (*SIZES, POSITIONS)
    if cfg.position_rope and not found[POSITIONS]:
        log.warning("%s turns with rows and columns: model.position_rope is for models from scratch", cfg.start_path)
    return replace(cfg, view_hint=cfg.view_hint or found["view_hint"], **{name: found[name] for name in names})


def make_model(cfg: ModelConfig, seed: int) -> SeqTexTransformer3DModel:
    """The model at the start of training, with the parameters that train marked. From scratch, `seed` draws it."""
    if cfg.start == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SeqTexTransformer3DModel(**cfg.architecture())
    elif cfg.start == "wan":
        model = from_wan(
            cfg.start_path,
            subfolder=WAN_FOLDER,
            lora_rank=cfg.lora_rank,
            lora_alpha=cfg.lora_alpha,
            geometry_attention=cfg.geometry_attention,
            uv_branch=cfg.uv_branch,
            rope_max_seq_len=cfg.rope_max_seq_len,
            view_hint=cfg.view_hint,
            seed=seed,
        )
    else:
        model = load_model(cfg.start_path, add_view_hint=cfg.view_hint)
        check_switches(model, cfg)
    trainable_parameters(model, cfg.trained)
    model.checkpoint_blocks(cfg.checkpointing, cfg.checkpoint_every)
    if cfg.compile_blocks:
        model.compile_repeated_blocks()
    return model.train()


def check_switches(model: SeqTexTransformer3DModel, cfg: ModelConfig) -> None:
    """A checkpoint has its own switches; one that was asked for must not be ignored."""
    for name in ("geometry_attention", "uv_branch", "view_hint", "position_rope"):
        if model.config[name] != getattr(cfg, name):
            raise UserError(
                f"{cfg.start_path} was made with {name}={model.config[name]}; set model.{name} so, or start from wan"
            )
