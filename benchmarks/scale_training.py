"""Training on 8 to 1,024 GPUs, simulated: `python -m benchmarks.scale_training`.

Parts are inputs, each measured or reckoned beforehand: operations and bytes of a preset are those of `training.cost`,
rates are options. A step of a rank is its work at `--mfu` of the peak, the part of communication that does not fit
beside it, and the waits of the slowest rank. Fully sharded weights (FSDP2) are gathered for forward and backward and
gradients reduced, as bytes over the slower of the two networks; `--mesh hybrid` shards within a node and reduces
between nodes. `--state_writers` ranks write a state. GPUs fail at random (`--hours_to_failure` of one); each failure
costs the work since the last state, the reading of a state and a start. `--staging 20e9` is for states that are written
while training goes on (`run.state_format sharded`): a step waits for a copy to the memory of the host, and for what is
not written by the next state. Prints a row for each number of GPUs, and the
part that breaks first: the first, by growing number, whose share of the time passes a tenth, or whose rate passes what
the store gives.
"""

import argparse
import math
from dataclasses import dataclass, fields, replace

import numpy as np

from training.config import PRESETS
from training.cost import attention_flops, block_activations, block_products, count_tokens, estimate, mean_flops
from training.data.mixture import ImageSizes
from training.diffusion.encoders import codec_layout
from training.model.init import make_model

GPUS = (8, 64, 512, 1024)
LIMIT = 0.1
"""Share of the time from which a part counts as broken."""
SIZES = ImageSizes(views=4, view_resolution=512, uv_resolution=1024)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Measured and assumed inputs. Bytes and operations without a unit in their name are absolute."""

    flops: float
    """Operations of one sample, repeated ones included."""
    parameters: float
    trained: float
    outside: float = 0.0
    """Parameters outside of the blocks, which are gathered in float32."""
    peak: float = 989e12
    """Peak of one GPU: dense bfloat16 of an H100 (data sheet)."""
    memory: float = 3.35e12
    """Bytes a second of its memory (data sheet)."""
    mfu: float = 0.4
    """Assumed: not measured on a GPU yet."""
    samples_per_gpu: int = 2
    gpus_per_node: int = 8
    link: float = 300e9
    """Bytes a second of one GPU to the others of its node: two thirds of NVLink 4's 450 GB/s each way."""
    network: float = 35e9
    """Bytes a second of one GPU to other nodes: 400 Gbit/s each at 70 %."""
    latency: float = 20e-6
    """Seconds of each hop of a ring, for each collective."""
    collectives: int = 31
    """Blocks, and what is outside of them."""
    parameter_bytes: int = 2
    """Bytes of a gathered parameter of a block: bfloat16; 4 with `run.precision` float32."""
    gradient_bytes: int = 4
    overlap: float = 0.8
    """Share of the work that communication runs beside."""
    jitter: float = 0.03
    """Standard deviation of a rank's time by its mean; a step waits for the slowest rank."""
    sample_bytes: float = 6.5e6
    """Read for a sample: 1.4 MB of images (docs/benchmarks.md, Planning), or 6.5 MB of bfloat16 latents with mean and
    log-variance."""
    reads_per_node: float = 1.0
    """Times that a node fetches each shard in an epoch: once for all its ranks and workers. Ranks share samples, not
    shards, so every node needs all of them."""
    dataset_samples: float = 1e6
    store: float = 50e9
    """Bytes a second that the object store gives to all nodes."""
    state_writers: int = 1
    """Ranks that write a state: 1 gathers it; as many as GPUs with sharded states."""
    disk: float = 2e9
    """Bytes a second of one writer."""
    staging: float = 0.0
    """Bytes a second from one GPU to its host; 0: training waits until a state is written."""
    state_every: int = 1000
    start_seconds: float = 300.0
    """Seconds from a failure to the first step: scheduling, imports, compilation."""
    hours_to_failure: float = 50_000.0
    """Hours between failures of one GPU with its share of the node (published: 16,384 GPUs, one failure in 3 hours)."""

    @property
    def state_bytes(self) -> float:
        """Trained weights, two moments and the average, float32."""
        return 16 * self.trained


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of GPUs. Seconds are those of a step, shares those of the whole time."""

    gpus: int
    batch: int
    compute: float
    communication: float
    """Beyond what runs beside the work."""
    slowest: float
    """Wait for the slowest rank."""
    state: float
    """Share of the time in which states are written."""
    failures: float
    """Share that failures cost."""
    egress: float
    """Bytes a second that nodes fetch together, until their caches hold the dataset."""
    epoch_hours: float
    efficiency: float
    """Samples a second by those of as many GPUs that only compute."""


def ring(ranks: int, data: float, rate: float, latency: float) -> float:
    """Seconds of an all-gather or reduce-scatter of so many bytes over ranks in a ring."""
    return 0.0 if ranks == 1 else (ranks - 1) / ranks * data / rate + (ranks - 1) * latency


def communication(parts: Parts, gpus: int, hybrid: bool) -> float:
    """Seconds of all collectives of a step: two gathers of all parameters, one reduction of the gradients."""
    node = min(gpus, parts.gpus_per_node)
    gathered = (parts.parameters - parts.outside) * parts.parameter_bytes + parts.outside * 4
    gradients, hops = parts.trained * parts.gradient_bytes, parts.collectives * parts.latency
    inside, shards = gpus <= parts.gpus_per_node, node if hybrid else gpus
    rate = parts.link if inside or hybrid else parts.network
    seconds = 2 * ring(shards, gathered, rate, hops) + ring(shards, gradients, rate, hops)
    nodes = math.ceil(gpus / node)
    if hybrid and nodes > 1:  # each rank's own shard of the gradients, summed up and handed out again
        seconds += 2 * ring(nodes, gradients / node, parts.network, hops)
    return seconds


def simulate(parts: Parts, gpus: int, *, hybrid: bool, steps: int = 100_000, seed: int = 0) -> Row:
    """A run of so many steps with random rank times and failures; equal seeds give equal rows."""
    random = np.random.default_rng(seed)
    compute = parts.samples_per_gpu * parts.flops / (parts.peak * parts.mfu)
    exposed = max(0.0, communication(parts, gpus, hybrid) - parts.overlap * compute)
    times = random.normal(1.0, parts.jitter, (200, gpus)).clip(min=1.0 - 2 * parts.jitter)
    slowest = compute * (float(times.max(axis=1).mean()) - 1.0)
    step = compute + exposed + slowest
    writers = min(parts.state_writers, gpus)
    writing = parts.state_bytes / (parts.disk * writers)
    if parts.staging:
        copying = parts.state_bytes / (parts.staging * writers)
        writing = copying + max(0.0, writing - parts.state_every * step)
    between = parts.state_every * step + writing
    read = parts.state_bytes / parts.disk
    useful = steps * step + steps / parts.state_every * writing
    failed = random.poisson(useful / 3600 * gpus / parts.hours_to_failure)
    lost = failed * (parts.start_seconds + read) + float(random.uniform(0, between, failed).sum())
    total, batch = useful + lost, gpus * parts.samples_per_gpu
    nodes = math.ceil(gpus / parts.gpus_per_node)
    epoch = parts.dataset_samples / batch * step
    return Row(
        gpus=gpus, batch=batch, compute=compute, communication=exposed, slowest=slowest,
        state=steps / parts.state_every * writing / total, failures=lost / total,
        egress=nodes * parts.reads_per_node * parts.dataset_samples * parts.sample_bytes / epoch,
        epoch_hours=epoch / 3600, efficiency=steps * compute / total,
    )  # fmt: skip


def breaks_first(parts: Parts, rows: list[Row]) -> str:
    """Name the first part that takes more than its limit, by growing number of GPUs; of several the largest."""
    for row in rows:
        step = row.compute + row.communication + row.slowest
        shares = {
            "communication": row.communication / step / LIMIT,
            "waiting for the slowest rank": row.slowest / step / LIMIT,
            "writing states": row.state / LIMIT,
            "failures": row.failures / LIMIT,
            "egress of the store": row.egress / parts.store,
        }
        worst = max(shares, key=lambda name: shares[name])
        if shares[worst] > 1:
            return f"{worst}, at {row.gpus} GPUs"
    return f"nothing up to {rows[-1].gpus} GPUs"


def roofline(preset: str, samples: int, parts: Parts) -> list[tuple[str, float, float]]:
    """(part, operations, bytes moved) of a step of so many samples on one GPU, blocks only, without what checkpointing
    repeats. Products and attention move each operand once, in bfloat16; what is between them moves what a compiled
    block keeps, written and read in both passes."""
    cfg, token = PRESETS[preset].model, codec_layout("wan", PRESETS[preset].latents.codec_path).token
    tokens, layers = count_tokens(SIZES, "umt5", token=token), cfg.num_layers
    dim, n, m = cfg.num_attention_heads * cfg.attention_head_dim, tokens.mv, tokens.uv
    sums = {"linear layers": [0.0, 0.0], "LoRA": [0.0, 0.0]}
    for product in block_products(cfg, tokens, first=False):
        name = "LoRA" if cfg.lora_rank in (product.inner, product.outer) else "linear layers"
        passes = 1 + product.weight_trains + product.input_trains
        moved = samples * product.rows * (product.inner + product.outer) + product.inner * product.outer
        sums[name][0] += samples * (product.forward + product.backward)
        sums[name][1] += 2 * passes * moved
    among, to_text = attention_flops(cfg, tokens)
    rows = 2 * n + 2 * (n + m) + 2 * m  # queries, outputs, keys and values of both branches
    found = [(name, layers * flops, layers * moved) for name, (flops, moved) in sums.items()]
    found.append(
        ("attention", layers * samples * (3.0 * among + 2.0 * to_text), layers * samples * 3.0 * 2 * dim * rows)
    )
    between = block_activations(cfg, tokens, 2)["all"] / 2
    found.append(("norms, rotations, modulation", 0.0, layers * samples * 4.0 * between))
    return [*found, ("optimiser and average", 0.0, 2 * parts.state_bytes + 4 * parts.trained)]


def parts_of(preset: str) -> Parts:
    """The parts that follow from a preset, at 4 x 512^2 and 1024^2."""
    cfg = PRESETS[preset]
    cost = estimate(cfg, SIZES)
    total, trained = (sum(column) for column in zip(*cost.parameters.values(), strict=True))
    blocks = sum(p.numel() for p in make_model(cfg.model, seed=0, empty=True).blocks.parameters())
    return Parts(
        flops=mean_flops(cfg, cost.flops), parameters=total, trained=trained, outside=total - blocks,
        collectives=cfg.model.num_layers + 1,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="full", choices=["full", "full-14b", "full-5b"])
    parser.add_argument("--mesh", default="sharded", choices=["sharded", "hybrid"])
    parser.add_argument("--roofline", action="store_true", help="the parts of a step on one GPU instead")
    for field in fields(Parts):
        parser.add_argument(f"--{field.name}", type=float)
    options = parser.parse_args()
    given = {f.name: value for f in fields(Parts) if (value := getattr(options, f.name)) is not None}
    whole = {name: int(given[name]) for name in ("samples_per_gpu", "gpus_per_node", "state_writers") if name in given}
    parts = replace(parts_of(options.preset), **given | whole)
    if options.roofline:
        print("| part | TFLOP | GB moved | ms by operations | ms by bytes | bound by |\n|---|---:|---:|---:|---:|---|")
        for name, flops, moved in roofline(options.preset, parts.samples_per_gpu, parts):
            work, traffic = flops / parts.peak * 1e3, moved / parts.memory * 1e3
            bound = "operations" if work > traffic else "bytes"
            print(f"| {name} | {flops / 1e12:.1f} | {moved / 1e9:.0f} | {work:.0f} | {traffic:.0f} | {bound} |")
        return
    rows = [simulate(parts, gpus, hybrid=options.mesh == "hybrid") for gpus in GPUS]
    print("| GPUs | batch | work, s | network, s | slowest, s | states | failures | store, GB/s | epoch, h | useful |")
    print("|" + 10 * "---:|")
    for row in rows:
        step = f"{row.compute:.2f} | {row.communication:.2f} | {row.slowest:.3f}"
        shares = f"{row.state:.1%} | {row.failures:.1%} | {row.egress / 1e9:.1f} | {row.epoch_hours:.2f}"
        print(f"| {row.gpus:,} | {row.batch:,} | {step} | {shares} | {row.efficiency:.0%} |")
    print(f"\n{options.preset}, {options.mesh}: first to break is {breaks_first(parts, rows)}.")


if __name__ == "__main__":
    main()
