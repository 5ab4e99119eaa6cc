"""Training configurations: every option of a run in one frozen record, and the presets."""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from schemas.errors import UsageError, redacted_values, require_between
from training.arithmetic import Attention
from training.data.mixture import DataConfig
from training.diffusion.flow import FlowConfig
from training.diffusion.tasks import OFFICIAL_TASKS, TaskConfig
from training.model.backbones.backbone import Backbone
from training.model.backbones.wan import WAN21_1P3B, WAN21_14B, WAN22_5B
from training.model.init import ModelConfig
from training.model.optimizers import OptimizerConfig

MOST_STEPS = 10**9
MOST_PROFILED = 100
"""Steps whose recording memory holds."""


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The encoders of images and captions."""

    codec: Literal["dct", "wan"] = "wan"
    """`dct` is built in; `wan` is the VAE that the released weights use."""
    codec_path: str = WAN21_1P3B.hub
    """Directory or hub repository of the Wan VAE, that of the weights that the model starts from."""
    text_encoder: Literal["none", "umt5"] = "umt5"
    text_encoder_path: str = WAN21_1P3B.hub

    def __post_init__(self) -> None:
        for name, value, path in (
            ("codec wan", self.codec == "wan", self.codec_path),
            ("text_encoder umt5", self.text_encoder == "umt5", self.text_encoder_path),
        ):
            if value and not path:
                raise UsageError(
                    f"latents.{name} needs latents.{name.partition(' ')[0]}_path: give a directory, or a hub repository"
                )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, place and machine of a run."""

    directory: Path = Path("run")
    """Receives `config.json`, `environment.json`, `losses.jsonl`, `states/`, `checkpoints/`, `tensorboard/`,
    `pictures/` and, at the end, `checkpoint/`. A run goes on from the newest trainer state in it that verifies."""
    max_steps: int = 100_000
    max_seconds: float | None = None
    """Ends the run even before `max_steps`; the learning rate decays with whichever is nearer. None: no limit."""
    pause_seconds: float | None = None
    """Ends this start of the run after so long, with a state and a checkpoint; the same command goes on. The learning
    rate takes no notice. None: no limit."""
    state_every: int = 1000
    """Steps between trainer states."""
    weights_every: int = 5000
    """Steps between checkpoints of the averaged weights in `directory`/checkpoints; 0: none before the end."""
    weights_kept: int = 2
    """The newest of them that are kept."""
    weights_best: int = 1
    """Kept besides: so many with the lowest validation loss (none with `validation.every` 0)."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model's matrix products (autocast); weights and everything else stay float32 (but see
    `model.frozen_dtype`). On a device without fast
    bfloat16 products, `bfloat16` means float32 too: `environment.json` says what was decided."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    """GPUs (or processes, on a CPU) of each node."""
    nodes: int = 1
    strategy: Literal["auto", "single", "ddp", "fsdp"] = "auto"
    """`ddp`: a copy of everything per device. `fsdp`: weights, gradients and optimiser state sharded over all of them.
    `auto`: one device alone; several with ddp where a GPU holds it, else fsdp."""
    shard_size: int = 0
    """With `fsdp`: devices that hold one copy of the model together, such as those of a node; groups of so many average
    their gradients. 0: all devices, which sends most and takes least memory."""
    state_format: Literal["one_file", "sharded"] = "one_file"
    """Trainer states: `one_file`, which rank 0 writes while all wait, or `sharded`: folders, of which each rank writes
    its part while training goes on. Either resumes from the other."""
    accumulate_grad_batches: int = 1
    """Parts that a device's share of a batch is worked through in, for batches that memory does not hold: equal steps,
    less memory."""
    log_every: int = 1
    """Steps between two times that losses are read from the device, for `losses.jsonl` (still a line per step), the
    curves and the terminal. Between, no step waits for its GPU; more than 1 gains nothing on a CPU."""
    logger: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Curves and pictures: events in `directory`/tensorboard, or Weights & Biases (its package must be installed)."""
    profile_steps: str = ""
    """Steps that are recorded, such as 10:13: a trace of operators and kernels and, on a GPU, a memory snapshot, in
    `directory`/profile. Empty: none."""
    attention: Attention = "auto"
    """Kernel of the attentions: torch's choice (`auto`), or this one alone; `math` is the slow and exact one."""
    threads: int = 0
    """CPU threads of torch; 0: all of them or one, whichever is faster, watched while training goes on."""

    def __post_init__(self) -> None:
        require_between("run.max_steps", self.max_steps, 1, MOST_STEPS)
        require_between("run.state_every", self.state_every, 1, MOST_STEPS)
        require_between("run.weights_every", self.weights_every, 0, MOST_STEPS)
        require_between("run.weights_kept", self.weights_kept, 1, 1000)
        require_between("run.weights_best", self.weights_best, 0, 1000)
        require_between("run.accumulate_grad_batches", self.accumulate_grad_batches, 1, MOST_STEPS)
        require_between("run.devices", self.devices, 1, 1024)
        require_between("run.shard_size", self.shard_size, 0, MOST_STEPS)
        require_between("run.nodes", self.nodes, 1, 100_000)
        require_between("run.log_every", self.log_every, 1, 1000)
        require_between("run.threads", self.threads, 0, 4096)
        for name in ("max_seconds", "pause_seconds"):
            if getattr(self, name) is not None:
                require_between(f"run.{name}", getattr(self, name), 1e-3, 1e9)

        if self.profile_steps and self.profiled is None:
            raise UsageError(
                f"run.profile_steps is {self.profile_steps!r}; give the first and the last of at most "
                f"{MOST_PROFILED} steps, such as 10:13"
            )

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step that are recorded; None: there are none, or they are not named as they should be."""
        found = re.fullmatch(r"([1-9]\d{0,9}):([1-9]\d{0,9})", self.profile_steps)
        first, last = map(int, found.groups()) if found else (0, 0)
        return (first, last) if found and first <= last < first + MOST_PROFILED else None

    @property
    def ranks(self) -> int:
        """Processes that train, one a device."""
        return self.devices * self.nodes


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Pictures and PSNR of some samples while training goes on."""

    every: int = 1000
    """Steps between two validations; 0: none."""
    directory: Path | None = None
    """A dataset of meshes that are not trained on; None: the first samples of the training data."""
    samples: int = 4
    """Textured samples that are shown."""
    steps: int = 8
    """Denoising steps."""

    def __post_init__(self) -> None:
        require_between("validation.every", self.every, 0, MOST_STEPS)
        require_between("validation.samples", self.samples, 1, 1000)
        require_between("validation.steps", self.steps, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run. Defaults: `full` without the settings of its machines, which `preset`
    adds."""

    preset: str = "full"
    """Name under which the run is recorded."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    run: RunConfig = field(default_factory=RunConfig)


BUILT_IN = LatentConfig(codec="dct", codec_path="", text_encoder="none", text_encoder_path="")

LOG_EVERY = 10
"""`run.log_every` of the presets that are made for a GPU."""

FULL = TrainConfig(
    model=ModelConfig(activation_checkpointing="full", compile_blocks=True, frozen_dtype="bfloat16"),
    data=DataConfig(batch_size=16, workers=4),
    run=RunConfig(precision="bfloat16", log_every=LOG_EVERY),
)


def from_backbone(name: str, backbone: Backbone) -> TrainConfig:
    """Return the full preset from other weights, with their own VAE."""
    sizes: dict[str, Any] = {
        size: number for size, number in backbone.transformer.items() if not size.endswith("_channels")
    }
    model = replace(FULL.model, start_path=backbone.hub, latent_channels=backbone.vae.channels, **sizes)
    latents = replace(FULL.latents, codec_path=backbone.hub, text_encoder_path=backbone.hub)
    return replace(FULL, preset=name, model=model, latents=latents)


PRESETS = {
    "tiny": TrainConfig(
        preset="tiny",
        data=DataConfig(batch_size=8, mv_only_ratio=0.1, keep_latents=True),
        model=ModelConfig(
            num_layers=4,
            num_attention_heads=3,
            attention_head_dim=64,
            ffn_dim=512,
            text_dim=32,
            freq_dim=128,
            lora_rank=0,
            start="scratch",
            start_path="",
            trained="all",
            view_hint=True,
            position_rope=True,
        ),
        latents=BUILT_IN,
        flow=FlowConfig(uv_weight=6.0),
        tasks=TaskConfig(textured={"img2tex": 0.9, "geo2mv": 0.1}, mv_only={"geo2mv": 1.0}),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            muon_learning_rate=0.03,
            muon_iterations=3,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            warmup_steps=50,
            final_share=0.02,
            ema_decay=0.998,
        ),
        run=RunConfig(max_steps=2400, state_every=600, accelerator="cpu"),
    ),
    "small": TrainConfig(
        preset="small",
        data=DataConfig(batch_size=32, workers=4),
        model=ModelConfig(
            num_layers=12,
            num_attention_heads=6,
            attention_head_dim=64,
            ffn_dim=1536,
            text_dim=32,
            lora_rank=0,
            start="scratch",
            start_path="",
            trained="all",
            view_hint=True,
            position_rope=True,
        ),
        latents=BUILT_IN,
        optimizer=OptimizerConfig(
            learning_rate=5e-4, muon_learning_rate=0.01, warmup_steps=500, final_share=0.02, ema_decay=0.999
        ),
        run=RunConfig(max_steps=50_000, precision="bfloat16", log_every=LOG_EVERY),
    ),
    "full": FULL,
    "full-14b": from_backbone("full-14b", WAN21_14B),
    "full-5b": from_backbone("full-5b", WAN22_5B),
    "official": replace(FULL, preset="official", tasks=OFFICIAL_TASKS),
}
"""tiny: 3.9 M parameters, two CPU cores, 64-pixel views, 128-texel UV maps (ours). small: 53 M, one GPU (ours). full:
Wan2.1-1.3B with LoRA (paper; its optimiser is not public: TEXGen's); full-14b, full-5b: the same from Wan2.1-14B and
Wan2.2-TI2V-5B. official: full with the
two tasks of the released training."""


def preset(name: str) -> TrainConfig:
    if name not in PRESETS:
        raise UsageError(f"{name!r} is no preset; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def as_json(cfg: Any) -> dict[str, Any]:
    """A configuration, or a section of one, as plain values, for a record beside the run; without passwords of URLs."""
    return {name: redacted_values(_plain(value)) for name, value in asdict(cfg).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return str(value) if isinstance(value, Path) else value
