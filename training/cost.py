"""Cost of a training run, from its configuration alone: parameters, tokens, floating-point operations, memory.

No weight is made or read: the full preset takes a second. Operations are those of matrix products and attention, two
per multiplication with its addition; everything else is small. A product of [n, i] by [i, o] costs 2 n i o, its
backward pass as much again for each of the two gradients that is needed. Attention of n queries to m keys costs
4 n m d, twice that backward, once where keys and values are of a frozen text (what fused kernels do beyond is not
counted).
"""

from dataclasses import asdict, dataclass
from typing import Any

from schemas.sample import Regime
from training.config import TrainConfig
from training.data.mixture import TOKEN, ImageSizes
from training.diffusion.encoders import codec_layout
from training.diffusion.tasks import TASKS
from training.model.backbones.backbone import PATCH
from training.model.init import ModelConfig
from training.model.optimizers import is_block_matrix, part_of
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import frozen_matrices, mark_trained

TEXT_TOKENS = {"none": 1, "umt5": 512}
TEXT_PARAMETERS = {"none": 0, "umt5": 5_680_910_336}
"""Parameters of the frozen text encoder, which shares the GPU with the VAE, both in float32."""
MFU = 0.4
"""Share of a GPU's peak that a run is reckoned to reach."""
H100_TFLOPS = 989.0
"""Dense bfloat16, NVIDIA's data sheet: what hours are reckoned with where there is no GPU to ask."""
GPU_GB = (24, 40, 48, 80, 96, 141, 180)
"""Memory of common GPUs."""
USABLE = 0.92
"""Share of it that tensors may take: the rest is the driver's, the libraries' and lost between blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of one sample."""

    frames: int
    """Views and UV maps."""
    mv: int
    uv: int
    """0 where the UV branch is skipped."""
    text: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One linear layer of one sample: [rows, inner] by [inner, outer]."""

    rows: int
    inner: int
    outer: int
    weight_trains: bool
    input_trains: bool = True
    """True if a gradient flows on to the layer's input."""

    @property
    def forward(self) -> int:
        return 2 * self.rows * self.inner * self.outer

    @property
    def backward(self) -> int:
        return self.forward * (self.weight_trains + self.input_trains)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of training on one sample."""

    forward: int
    backward: int
    recomputed: int
    """By checkpointing."""

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    """float32, and the copies that autocast makes of matrices; of frozen ones, where they are narrow, the copies
    alone."""
    gradients: int
    optimizer: int
    """Its state, and the averaged weights."""
    encoders: int
    activations_per_sample: int

    @property
    def fixed(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.encoders


def count_tokens(
    sizes: ImageSizes, text_encoder: str, needs_uv: bool = True, token: int = TOKEN, maps: int = 1
) -> Tokens:
    """token: pixels a side of one token, by the codec's layout. maps: that the UV branch generates."""
    uv = maps * (sizes.uv_resolution // token) ** 2 if needs_uv and sizes.uv_resolution else 0
    mv = sizes.views * (sizes.view_resolution // token) ** 2
    return Tokens(frames=sizes.views + maps, mv=mv, uv=uv, text=TEXT_TOKENS[text_encoder])


def tokens_by_task(cfg: TrainConfig, sizes: ImageSizes) -> dict[str, Tokens]:
    """Count the tokens of a sample of each task that a run has."""
    token, maps = codec_layout(cfg.latents.codec, cfg.latents.codec_path).token, len(cfg.model.maps)
    names = dict.fromkeys([*cfg.tasks.textured, *cfg.tasks.mv_only])
    return {name: count_tokens(sizes, cfg.latents.text_encoder, TASKS[name].needs_uv, token, maps) for name in names}


def block_products(cfg: ModelConfig, tokens: Tokens, first: bool) -> list[Product]:
    """Linear layers of one block. first: nothing before it trains, unless everything does."""
    dim, ffn, everything = cfg.num_attention_heads * cfg.attention_head_dim, cfg.ffn_dim, cfg.trained == "all"
    shared = cfg.uv_branch == "shared"
    n, m, uv_trains = tokens.mv, tokens.uv, everything or not shared
    reads_keys = everything and tokens.text > 1

    def linear(
        rows: int, inner: int, outer: int, trains: bool = everything, input_trains: bool = True, lora: bool = False
    ) -> list[Product]:
        parts = [Product(rows=rows, inner=inner, outer=outer, weight_trains=trains, input_trains=input_trains)]
        if lora and cfg.lora_rank:
            parts += [
                Product(rows=rows, inner=inner, outer=cfg.lora_rank, weight_trains=True, input_trains=input_trains),
                Product(rows=rows, inner=cfg.lora_rank, outer=outer, weight_trains=True),
            ]
        return parts

    def cross(rows: int) -> list[Product]:
        if tokens.text == 1:  # one key: every query reads the same value
            return linear(1, dim, dim, input_trains=everything)
        return 2 * linear(rows, dim, dim)

    products = linear(tokens.text, dim, dim, input_trains=everything)  # values of the text, then its keys
    products += linear(tokens.text, dim, dim, trains=reads_keys, input_trains=reads_keys)
    with_geometry = {"off": 0, "mv": n, "mv_uv": n + m}[cfg.geometry_attention]
    products += linear(with_geometry, dim, dim, trains=True)
    products += 3 * linear(n, dim, dim, input_trains=everything or not first, lora=True)
    products += linear(n, dim, dim, lora=True) + cross(n)
    products += linear(n, dim, ffn, lora=True) + linear(n, ffn, dim, lora=True)
    if m:
        keys = m if shared else n + m
        early = uv_trains or not first
        products += linear(m, dim, dim, trains=uv_trains, input_trains=early, lora=shared)
        products += 2 * linear(keys, dim, dim, trains=uv_trains, input_trains=early, lora=shared)
        products += linear(m, dim, dim, trains=uv_trains, lora=shared) + cross(m)
        products += linear(m, dim, ffn, trains=uv_trains, lora=shared)
        products += linear(m, ffn, dim, trains=uv_trains, lora=shared)
    return products


def outer_products(cfg: ModelConfig, tokens: Tokens) -> list[Product]:
    """Linear layers before and after the blocks."""
    dim, everything = cfg.num_attention_heads * cfg.attention_head_dim, cfg.trained == "all"
    n, m, patch = tokens.mv, tokens.uv, cfg.latent_channels * PATCH**2
    with_geometry = {"off": 0, "mv": n, "mv_uv": n + m}[cfg.geometry_attention]

    def linear(rows: int, inner: int, outer: int, trains: bool, input_trains: bool) -> Product:
        return Product(rows=rows, inner=inner, outer=outer, weight_trains=trains, input_trains=input_trains)

    return [
        linear(n + m, patch, dim, everything, False),
        linear(2 * with_geometry, patch, dim, True, False),
        linear((n + m) * cfg.view_hint, patch + PATCH**2, dim, True, False),
        *(linear(n + m, size * PATCH**2, dim, True, False) for size in (cfg.condition_channels or {}).values() if size),
        linear(tokens.frames, cfg.freq_dim, dim, everything, False),
        linear(tokens.frames, dim, dim, everything, everything),
        linear(tokens.frames, dim, 6 * dim, everything, everything),
        linear(tokens.text, cfg.text_dim, dim, everything, False),
        linear(tokens.text, dim, dim, everything, everything),
        linear(n + m, dim, patch, everything, True),
    ]


def attention_flops(cfg: ModelConfig, tokens: Tokens) -> tuple[int, int]:
    """Forward, of one block: views to views and UV map to all; both to the text."""
    dim, n, m = cfg.num_attention_heads * cfg.attention_head_dim, tokens.mv, tokens.uv
    text = tokens.text if tokens.text > 1 else 0
    return 4 * dim * (n * n + m * (n + m)), 4 * dim * (n + m) * text


def count_flops(cfg: ModelConfig, tokens: Tokens) -> Flops:
    first, rest = block_products(cfg, tokens, first=True), block_products(cfg, tokens, first=False)
    outer, (among, to_text) = outer_products(cfg, tokens), attention_flops(cfg, tokens)
    attention, later = among + to_text, cfg.num_layers - 1
    attention_backward = 2 * among + (2 if cfg.trained == "all" else 1) * to_text
    block_forward = sum(product.forward for product in rest)
    forward = sum(product.forward for product in outer) + cfg.num_layers * (block_forward + attention)
    backward = sum(product.backward for product in outer + first) + later * sum(product.backward for product in rest)
    checkpointed = -(-cfg.num_layers // cfg.activation_checkpoint_every)
    again = {"none": 0, "selective": block_forward, "full": block_forward + attention}[cfg.activation_checkpointing]
    backward += cfg.num_layers * attention_backward
    return Flops(forward=forward, backward=backward, recomputed=checkpointed * again)


def block_activations(cfg: ModelConfig, tokens: Tokens, compute_bytes: int) -> dict[str, int]:
    """Bytes that one block keeps for its backward pass, per sample: `all` uncompiled (compiled blocks keep about half),
    `attention` the share that `selective` keeps, `input` what `full` keeps.

    Norms, modulated streams and rotated queries and keys are kept in float32, inputs of products in compute_bytes.
    """
    dim, ffn = cfg.num_attention_heads * cfg.attention_head_dim, cfg.ffn_dim
    n, m, text = tokens.mv, tokens.uv, tokens.text if tokens.text > 1 else 0
    copies = 1 if compute_bytes < 4 else 0  # inputs of norms are copied to float32 where they are not yet
    keys = m if cfg.uv_branch == "shared" else n + m

    def stream(rows: int, keys: int) -> int:
        """Self-attention, cross-attention and feed-forward of one branch; keys: rows of its keys and values."""
        wide = rows * (2 + 1 + 2 + 1 + copies) * dim  # two modulated norms: input and normed; update; ffn update
        wide += (rows + keys) * dim * (1 + copies)  # queries and keys before their norm and after their rotation
        narrow = (rows * 2 + keys * 2) * dim + rows * 2 * ffn  # modulated, attended; context, values; feed-forward
        if text:
            wide += rows * 2 * dim
            narrow += rows * 3 * dim + text * 3 * dim
        else:
            wide += rows * dim
        lora = rows * cfg.lora_rank * 6
        return 4 * wide + compute_bytes * (narrow + lora)

    everything = stream(n, n) + (stream(m, keys) if m else 0)
    attention = compute_bytes * dim * (n + m) * (2 if text else 1)
    return {"all": everything, "attention": attention, "input": compute_bytes * dim * (n + m)}


def activation_bytes(cfg: ModelConfig, tokens: Tokens, compute_bytes: int) -> int:
    """Per sample, at the peak: what all blocks keep, and one block in full while it is computed again."""
    kept = block_activations(cfg, tokens, compute_bytes)
    if cfg.activation_checkpointing == "none":
        return cfg.num_layers * kept["all"]
    checkpointed = -(-cfg.num_layers // cfg.activation_checkpoint_every)
    each = kept["input"] + (kept["attention"] if cfg.activation_checkpointing == "selective" else 0)
    return checkpointed * each + (cfg.num_layers - checkpointed) * kept["all"] + kept["all"]


def count_parameters(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """Parameters and those that train, by part of the model."""
    model = SeqTexTransformer3DModel.empty(cfg.architecture())
    trained = mark_trained(model, cfg.trained)
    counts = dict.fromkeys(("view branch", "LoRA", "UV branch", "geometry", "embeddings and output"), (0, 0))
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if part == "rest":
            part = "view branch" if name.startswith("blocks.") else "embeddings and output"
        total, training = counts[part]
        counts[part] = total + parameter.numel(), training + parameter.numel() * (name in trained)
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Everything that `seqtex train --dry_run` says."""

    sizes: ImageSizes
    parameters: dict[str, tuple[int, int]]
    tokens: Tokens
    flops: dict[str, Flops]
    """By task."""
    memory: dict[str, Memory]
    """By checkpointing policy."""
    batch_per_gpu: int
    total_flops: float
    """Operations of the whole run: `run.max_steps` batches, tasks and regimes by their shares; what activation
    checkpointing repeats included."""

    def hours(self, flops_per_second: float) -> float:
        """Return how long the run takes at a speed of all devices together."""
        return self.total_flops / flops_per_second / 3600

    def bytes_needed(self, policy: str, shards: int = 1) -> int:
        """Bytes that a GPU takes for its share of the batch; with FSDP, weights, gradients and optimiser are spread
        over so many GPUs (shards)."""
        memory = self.memory[policy]
        fixed = (memory.fixed - memory.encoders) // shards + memory.encoders
        return fixed + self.batch_per_gpu * memory.activations_per_sample

    def gpu_needed(self, policy: str, shards: int = 1) -> int | None:
        """Memory in GB of the smallest common GPU that holds the run. None: smaller batches are needed."""
        needed = self.bytes_needed(policy, shards)
        return next((size for size in GPU_GB if size * 1e9 * USABLE >= needed), None)

    def largest_batch(self, policy: str, gpu_gb: int) -> int:
        """Samples that fit on one GPU."""
        memory = self.memory[policy]
        return max(0, int((gpu_gb * 1e9 * USABLE - memory.fixed) // memory.activations_per_sample))

    def as_json(self) -> dict[str, Any]:
        totals = {name: {**asdict(flops), "total": flops.total} for name, flops in self.flops.items()}
        memory = {
            name: {
                **asdict(entry),
                "gpu_gb": self.gpu_needed(name),
                "gpu_gb_fsdp_8": self.gpu_needed(name, 8),
                "largest_batch": {str(size): self.largest_batch(name, size) for size in GPU_GB},
            }
            for name, entry in self.memory.items()
        }
        return {
            "sizes": asdict(self.sizes),
            "parameters": {name: {"all": a, "trained": t} for name, (a, t) in self.parameters.items()},
            "tokens": asdict(self.tokens),
            "flops_per_sample": totals,
            "memory": memory,
            "batch_per_gpu": self.batch_per_gpu,
            "total_flops": self.total_flops,
        }


def estimate(cfg: TrainConfig, sizes: ImageSizes) -> Cost:
    """The cost of a run on samples of these sizes."""
    layout = codec_layout(cfg.latents.codec, cfg.latents.codec_path)
    tokens = count_tokens(sizes, cfg.latents.text_encoder, token=layout.token, maps=len(cfg.model.maps))
    flops = {name: count_flops(cfg.model, counted) for name, counted in tokens_by_task(cfg, sizes).items()}
    parameters, state = count_parameters(cfg.model), optimizer_bytes(cfg)
    return Cost(
        sizes=sizes,
        parameters=parameters,
        tokens=tokens,
        flops=flops,
        memory={
            policy: _memory(cfg, parameters, tokens, policy, layout.parameters, state)
            for policy in ("none", "selective", "full")
        },
        batch_per_gpu=-(-cfg.data.batch_size // (cfg.run.ranks * cfg.run.accumulate_grad_batches)),
        total_flops=mean_flops(cfg, flops) * cfg.data.batch_size * cfg.run.max_steps,
    )


def mean_flops(cfg: TrainConfig, flops: dict[str, Flops]) -> float:
    """Average the operations of a sample over regimes and tasks, by the shares that the configuration asks for."""
    shares = {Regime.MV_ONLY: cfg.data.mv_only_ratio, Regime.TEXTURED: 1 - cfg.data.mv_only_ratio}
    mean = 0.0
    for regime, share in shares.items():
        weights = cfg.tasks.weights(regime)
        if share:
            mean += share * sum(weight * flops[name].total for name, weight in weights.items()) / sum(weights.values())
    return mean


def optimizer_bytes(cfg: TrainConfig) -> int:
    """Count the bytes of the optimiser's state: two moments of each weight that AdamW trains, in float32 or 8 bits, and
    the one, float32, of each that Muon trains."""
    trained = mark_trained(SeqTexTransformer3DModel.empty(cfg.model.architecture()), cfg.model.trained)
    has_muon = cfg.optimizer.muon_learning_rate is not None
    by_muon = sum(p.numel() for name, p in trained.items() if has_muon and is_block_matrix(name, p))
    by_adamw = sum(p.numel() for p in trained.values()) - by_muon
    return 4 * by_muon + (2 if cfg.optimizer.eight_bit else 8) * by_adamw


def narrow_parameters(cfg: ModelConfig) -> int:
    """Count the parameters that are kept in bfloat16 where products are made in it."""
    if cfg.frozen_dtype == "float32":
        return 0
    model = SeqTexTransformer3DModel.empty(cfg.architecture())
    mark_trained(model, cfg.trained)
    return sum(parameter.numel() for parameter in frozen_matrices(model).values())


def _memory(
    cfg: TrainConfig, parameters: dict[str, tuple[int, int]], tokens: Tokens, policy: str, codec: int, state: int
) -> Memory:
    total, trained = (sum(column) for column in zip(*parameters.values(), strict=True))
    half = cfg.run.precision == "bfloat16"
    model = ModelConfig(**{**asdict(cfg.model), "activation_checkpointing": policy})
    # stored captions need no encoder, and those of the validation samples are encoded on the CPU
    text_encoder = "none" if cfg.data.latents else cfg.latents.text_encoder
    encoders = codec + TEXT_PARAMETERS[text_encoder]
    return Memory(
        weights=total * (6 if half else 4) - 4 * (narrow_parameters(cfg.model) if half else 0),
        gradients=4 * trained,
        optimizer=state + 4 * trained,
        encoders=4 * encoders,
        activations_per_sample=activation_bytes(model, tokens, 2 if half else 4),
    )
