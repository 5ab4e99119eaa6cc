"""The transformer against its description written out literally, in one run: `python -m benchmarks.model`.

CPU: forward, and forward + backward, of ours and of `benchmarks.literal`, at three sizes, taking turns; minima. "as
trained" is ours with the matrix products that `seqtex train` asks torch for (float32 matmul precision "medium"); the
last column is how far its outputs are from the literal ones. `benchmarks/gpu.sh` measures the full model on a GPU.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.literal import literal_forward
from training.config import PRESETS
from training.cost import count_tokens
from training.data.mixture import ImageSizes
from training.model.init import ModelConfig
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import mark_trained

FULL = PRESETS["full"].model


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the batch it gets."""

    name: str
    model: ModelConfig
    sizes: ImageSizes
    text_encoder: str
    batch: int


CASES = (
    Case(
        name="tiny preset, batch 8",
        model=PRESETS["tiny"].model,
        sizes=ImageSizes(views=4, view_resolution=64, uv_resolution=128),
        text_encoder="none",
        batch=8,
    ),
    Case(
        name="2 layers of 384, batch 1",
        model=replace(PRESETS["small"].model, num_layers=2),
        sizes=ImageSizes(views=4, view_resolution=256, uv_resolution=512),
        text_encoder="none",
        batch=1,
    ),
    Case(
        name="1 layer of the full preset, batch 1",
        model=replace(FULL, num_layers=1, start="scratch"),
        sizes=ImageSizes(views=4, view_resolution=256, uv_resolution=512),
        text_encoder="umt5",
        batch=1,
    ),
)


def build(cfg: ModelConfig, device: str = "cpu") -> SeqTexTransformer3DModel:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    with torch.device(device):
        model = SeqTexTransformer3DModel(**cfg.architecture())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    mark_trained(model, cfg.trained)
    return model


def inputs(case: Case, device: str = "cpu") -> list[Tensor]:
    """Latents of views and UV map, timesteps, text."""
    sizes, channels = case.sizes, 3 * case.model.latent_channels
    assert sizes.uv_resolution
    side, uv_side = sizes.view_resolution // 8, sizes.uv_resolution // 8
    text = count_tokens(sizes, case.text_encoder).text
    return [
        torch.randn(case.batch, channels, sizes.views, side, side, device=device),
        torch.randn(case.batch, channels, 1, uv_side, uv_side, device=device),
        torch.rand(case.batch, sizes.views + 1, device=device) * 1000,
        torch.randn(case.batch, text, case.model.text_dim, device=device),
    ]


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Torch's float32 matrix products for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def minima(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds. Contestants take turns, so that whatever else the machine does meets all of them."""
    best = dict.fromkeys(contestants, float("inf"))
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn:  # the first warms up
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest error of an output, relative to its largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


def compare(case: Case, rounds: int, compiled: bool) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """Rows of (pass, seconds by contestant, difference from the literal model by setting)."""
    model, arguments = build(case.model), inputs(case)
    state, config = dict(model.named_parameters()), dict(model.config)
    networks: dict[str, tuple[str, Callable[[], tuple[Tensor, Tensor]]]] = {
        "literal": ("highest", lambda: literal_forward(state, config, *arguments)),
        "literal, as trained": ("medium", lambda: literal_forward(state, config, *arguments)),
        "ours": ("highest", lambda: model(*arguments)),
        "ours, as trained": ("medium", lambda: model(*arguments)),
    }
    if compiled:
        twin = build(case.model)
        twin.compile_repeated_blocks()
        networks["ours, as trained, compiled"] = ("medium", lambda: twin(*arguments))

    def forward(precision: str, network: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        with products(precision), torch.no_grad():
            return network()

    def both(precision: str, network: Callable[[], tuple[Tensor, Tensor]]) -> None:
        with products(precision):
            torch.stack([flow.square().mean() for flow in network()]).sum().backward()

    expected = forward(*networks["literal"])
    errors = {key: difference(forward(*networks[key]), expected) for key in ("ours", "ours, as trained")}
    passes: dict[str, Callable[..., object]] = {"forward": forward, "forward + backward": both}
    return [
        (name, minima({key: partial(run, *of) for key, of in networks.items()}, rounds), errors)
        for name, run in passes.items()
    ]


def on_cpu(rounds: int, compiled: bool, cases: tuple[Case, ...] = CASES) -> None:
    print(f"milliseconds (share of the literal model's), minima of {rounds}; {torch.get_num_threads()} threads")
    for case in cases:
        tokens = count_tokens(case.sizes, case.text_encoder)
        print(f"\n{case.name}: {tokens.mv} + {tokens.uv} tokens, {tokens.text} of text", flush=True)
        for name, seconds, errors in compare(case, rounds, compiled):
            shares = "  ".join(
                f"{key} {value * 1e3:.1f} ({value / seconds['literal']:.2f})" for key, value in seconds.items()
            )
            told = ", ".join(f"{key} {error:.0e}" for key, error in errors.items())
            print(f"  {name:18}  {shares}  difference: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="timed turns per contestant")
    parser.add_argument("--compiled", action="store_true", help="time compiled blocks too (needs g++)")
    options = parser.parse_args()
    on_cpu(options.rounds, options.compiled)


if __name__ == "__main__":
    main()
