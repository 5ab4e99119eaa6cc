"""The GPU half of `benchmarks.model`: the full model's training step, VAE encoding and sampling, in bfloat16."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.model import FULL, Case, build, inputs
from training.cost import count_flops, count_tokens
from training.data.mixture import ImageSizes
from training.model.seqtex import Checkpointing, SeqTexTransformer3DModel

FULL_CASE = Case(
    name="full preset, 4 x 512^2 + 1024^2",
    model=replace(FULL, start="scratch"),
    sizes=ImageSizes(views=4, view_resolution=512, uv_resolution=1024),
    text_encoder="umt5",
    batch=1,
)
SAMPLING_STEPS = 30


def seconds_of(run: Callable[[], object], device: str, rounds: int) -> float:
    """Of one call, the shortest of rounds after one to warm up; the device has finished each."""
    best = float("inf")
    for turn in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - start)
    return best


def matrix_peak(device: str, size: int, rounds: int) -> float:
    """Measured FLOP/s of one large bfloat16 product: what utilisation is a share of."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, rounds)


def report_training(case: Case, model: SeqTexTransformer3DModel, device: str, peak: float, rounds: int) -> None:
    """Step time, memory and utilisation: img2tex, then geo2mv with the UV branch run for nothing and skipped."""
    mv, uv, timestep, text = inputs(case, device)
    for task, uv_input, uv_in_loss in (("img2tex", uv, True), ("geo2mv, UV run", uv, False), ("geo2mv", None, False)):

        def step(uv_input: torch.Tensor | None = uv_input, uv_in_loss: bool = uv_in_loss) -> None:
            with torch.autocast(device, torch.bfloat16):
                flows = model(mv, uv_input, timestep, text)
            used = flows if uv_in_loss else flows[:1]
            sum(flow.float().square().mean() for flow in used if flow is not None).backward()
            model.zero_grad(set_to_none=True)

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of(step, device, rounds)
        memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
        flops = count_flops(case.model, count_tokens(case.sizes, case.text_encoder, uv_input is not None))
        used = case.batch * (flops.total if uv_in_loss or uv_input is None else flops.forward) / seconds
        note = "" if uv_in_loss or uv_input is None else " (forward counted alone)"
        print(
            f"{task:16} {seconds * 1e3:9.1f} ms/step  {memory:6.1f} GB  {used / 1e12:7.1f} TFLOP/s "
            f"= {used / peak:5.1%} of the measured peak{note}",
            flush=True,
        )


def report_inference(case: Case, model: SeqTexTransformer3DModel, device: str, rounds: int) -> None:
    """The network's part of sampling one texture."""
    arguments = inputs(replace(case, batch=1), device)

    def sample() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for _ in range(SAMPLING_STEPS):
                model(*arguments)

    print(f"sampling, {SAMPLING_STEPS} steps, one texture: {seconds_of(sample, device, rounds):.2f} s", flush=True)


def report_encoding(case: Case, vae: torch.nn.Module, device: str, rounds: int) -> None:
    """The Wan VAE on frames of the views' size, each encoded on its own; its weights are random."""
    size = case.sizes.view_resolution
    frames = torch.rand(4, 3, 1, size, size, device=device, dtype=next(vae.parameters()).dtype)

    def encode() -> None:
        with torch.no_grad():
            vae.encode(frames)  # type: ignore[operator]

    seconds = seconds_of(encode, device, rounds)
    print(f"VAE: {len(frames) / seconds:.1f} images/s of {size}^2", flush=True)


def on_gpu(
    batch: int,
    checkpointing: Checkpointing,
    *,
    case: Case = FULL_CASE,
    device: str = "cuda",
    compiled: bool = True,
    rounds: int = 5,
    peak_size: int = 8192,
    vae: torch.nn.Module | None = None,
) -> None:
    """The whole report. case, device and vae exist so that a machine without a GPU can run every line of it."""
    case = replace(case, batch=batch, model=replace(case.model, activation_checkpointing=checkpointing))
    model = build(case.model, device).train()
    model.checkpoint_blocks(checkpointing)
    if compiled:
        model.compile_repeated_blocks()
    peak = matrix_peak(device, peak_size, rounds)
    print(f"{case.name}, batch {batch}, bfloat16, checkpointing {checkpointing}, compiled {compiled}")
    print(f"measured peak of a {peak_size}^3 product: {peak / 1e12:.1f} TFLOP/s", flush=True)
    report_training(case, model, device, peak, rounds)
    report_inference(case, model, device, rounds)
    if vae is None:
        from diffusers import AutoencoderKLWan

        with torch.device(device):
            wan: Any = AutoencoderKLWan()  # its type does not say that it is a module
        vae = wan.to(device, torch.bfloat16)
    report_encoding(case, vae, device, rounds)
