"""The full preset on one GPU in one command, without a download: `benchmarks/gpu.sh`.

Random weights of full size and made-up sheets. Parts, in this order: `raster` (nvdiffrast against the CPU's rasteriser,
where it is installed), `model` (forward, forward + backward and whole step by activation checkpointing policy, and with
and without the UV branch: time, MFU, peak memory), `sampling` (30 steps of the network, and the VAE), `latents`
(training from stored latents, killed after the first state and resumed), `pixels` (training from images). Writes
`gpu.json` after each part and `gpu.md`, the table, at the end. A part that would begin after `--minutes` is left out
and named. Takes 45 GB of disk in --work. MFU is operations that the model needs, without what checkpointing repeats, by
the device's peak: of its data sheet, or else of one large product measured here. `--small` runs every line on a CPU.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from diffusers import AutoencoderKLWan

from benchmarks.model import FULL, Case, build, inputs
from schemas.sample import Regime
from tests.support.small_dataset import small_sample, write_samples
from training.cost import count_flops, count_tokens
from training.data.mixture import ImageSizes
from training.diffusion.tasks import TASKS
from training.loop.callbacks import read_losses
from training.loop.throughput import peak_flops
from training.model.optimizers import OptimizerConfig, make_optimizer
from training.model.seqtex import Checkpointing
from training.model.weights import mark_trained, save_model

SMALL: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 48, "ffn_dim": 64,
                         "lora_rank": 4, "text_dim": 32, "freq_dim": 32}  # fmt: skip
SMALL_VAE: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
SECONDS = 900
"""Seconds after which a command counts as hanging."""
MESHES = 4
SAMPLING_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of everything that is measured."""

    work: Path
    small: bool
    device: str
    case: Case
    peak: float
    """Operations per second that utilisation is a share of."""
    rounds: int
    steps: int
    """Steps of a training run; the state is saved, and the process killed, half-way."""
    warm: int
    """Steps that do not count: blocks are compiled in the first ones."""

    @property
    def architecture(self) -> dict[str, Any]:
        """Options of `seqtex train` that make the network small."""
        return SMALL if self.small else {}


def seconds_of(run: Callable[[], object], device: str, rounds: int) -> float:
    """Time one call: the shortest of rounds after one to warm up; the device has finished each."""
    best = float("inf")
    for turn in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - start)
    return best


def matrix_peak(device: str, size: int, dtype: torch.dtype) -> float:
    """Measured FLOP/s of one large product in the type that the network computes in."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, 5)


def measure_raster(setting: Setting) -> dict[str, Any]:
    """The tests of the GPU rasteriser against the CPU's, which need nvdiffrast."""
    if find_spec("nvdiffrast") is None:
        return {"outcome": "nvdiffrast is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/geometry/test_raster_cuda.py", "-k", "gpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    return {"outcome": (ended.stdout.strip().splitlines() or [ended.stderr[-200:]])[-1]}


def measure_model(setting: Setting) -> dict[str, Any]:
    """Rows by checkpointing policy; those of views alone with the last one, without and with the UV branch run."""
    case, device, rows = setting.case, setting.device, list[dict[str, Any]]()
    model = build(case.model, device).train()
    if not setting.small:
        model.compile_repeated_blocks()
    optimizer = make_optimizer(OptimizerConfig(), mark_trained(model, case.model.trained))
    mv, uv, timestep, text = inputs(case, device)
    shapes: list[tuple[Checkpointing, str, torch.Tensor | None]] = [(p, "img2tex", uv) for p in get_args(Checkpointing)]
    for policy, task, uv_input in [*shapes, ("full", "geo2mv, UV run", uv), ("full", "geo2mv", None)]:
        model.checkpoint_blocks(policy)
        flops = count_flops(case.model, count_tokens(case.sizes, case.text_encoder, uv_input is not None))

        def loss(uv_input: torch.Tensor | None = uv_input, task: str = task) -> torch.Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=not setting.small):
                flows = model(mv, uv_input, timestep, text)
            used = flows if task == "img2tex" else flows[:1]
            return torch.stack([flow.float().square().mean() for flow in used if flow is not None]).sum()

        def forward(loss: Callable[[], torch.Tensor] = loss) -> None:
            with torch.no_grad():
                loss()

        def backward(loss: Callable[[], torch.Tensor] = loss) -> None:
            loss().backward()
            optimizer.zero_grad(set_to_none=True)

        def step(loss: Callable[[], torch.Tensor] = loss) -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = {"checkpointing": policy, "task": task}
        try:
            for name, run in {"forward": forward, "forward_backward": backward, "step": step}.items():
                row[f"{name}_s"] = seconds_of(run, device, setting.rounds)
        except torch.OutOfMemoryError as error:
            row["failed"] = str(error).partition(".")[0]
            optimizer.zero_grad(set_to_none=True)
        else:
            row["mfu"] = case.batch * (flops.forward + flops.backward) / row["forward_backward_s"] / setting.peak
        row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
        rows.append(row)
    return {"batch": case.batch, "rows": rows}


def measure_sampling(setting: Setting) -> dict[str, Any]:
    """The network's part of one texture, and the VAE on frames of the views' size, each on its own."""
    device, case = setting.device, replace(setting.case, batch=1)
    model, arguments = build(case.model, device).eval(), inputs(case, device)
    vae: Any = AutoencoderKLWan(**(SMALL_VAE if setting.small else {}))  # its type does not say that it is a module
    dtype = torch.float32 if setting.small else torch.bfloat16  # bfloat16 products are slow on most CPUs
    torch.nn.Module.to(vae, device, dtype)
    frame = torch.rand(1, 3, 1, *2 * [case.sizes.view_resolution], device=device, dtype=dtype)

    def sample() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=not setting.small):
            for _ in range(SAMPLING_STEPS):
                model(*arguments)

    with torch.no_grad():
        return {
            "texture_s": seconds_of(sample, device, 1),
            "vae_images_per_s": 1 / seconds_of(lambda: vae.encode(frame), device, setting.rounds),
        }


def prepare(setting: Setting) -> None:
    """Weights, VAE, dataset and latents; what is there is kept."""
    work, sizes = setting.work, setting.case.sizes
    if not (work / "weights").is_dir():
        save_model(build(setting.case.model), work / "weights")
    if not (work / "wan").is_dir():
        vae: Any = AutoencoderKLWan(**(SMALL_VAE if setting.small else {}))
        vae.save_pretrained(work / "wan" / "vae")
    if not (work / "data" / "dataset.json").is_file():
        assert sizes.uv_resolution
        samples = [
            small_sample(f"sheet-{seed}", Regime.TEXTURED, seed, sizes.view_resolution, sizes.uv_resolution)
            for seed in range(MESHES)
        ]
        write_samples(work / "data", [samples])
    if not (work / "data" / "latents").is_dir():
        carry_out(["encode", work / "data", "--codec_path", work / "wan", "--device", setting.device], work)


def carry_out(words: list[object], work: Path, until: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs a command of seqtex to its end, or kills it once `until` holds. Returns its last event of a step."""
    limit, output = time.monotonic() + SECONDS, work / "output.txt"
    command = [sys.executable, "-m", "seqtex.cli.main", *map(str, words), "--log", "json"]
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and not until():
            if time.monotonic() > limit:
                process.kill()
            time.sleep(0.05)
        is_over = process.poll() is not None
        process.kill()
        process.wait()
    text = output.read_text()
    if is_over and process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-4000:]}")
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return next((event for event in reversed(events) if event["event"] == "step"), {})


def train(setting: Setting, run: Path, latents: bool, until: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """A training run of the command line, as `carry_out`."""
    work, half = setting.work, setting.steps // 2
    options = {
        "preset": "full", "data.directory": work / "data", "data.batch_size": setting.case.batch,
        "data.mv_only_ratio": 0.0, "data.latents": str(latents).lower(), "data.workers": 0 if setting.small else 2,
        "model.start": "seqtex", "model.start_path": work / "weights", "latents.codec_path": work / "wan",
        "latents.text_encoder": "none", "validation.every": 0, "run.directory": run, "run.weights_every": 0,
        "run.max_steps": 10 * setting.steps if latents else half, "run.state_every": half, "run.logger": "none",
        "run.accelerator": "cpu" if setting.small else "gpu", "run.log_every": 1,  # a step's seconds are its own
    }  # fmt: skip
    options |= {f"model.{name}": value for name, value in setting.architecture.items()}
    options |= {"model.compile_blocks": "false", "run.threads": 1} if setting.small else {}
    return carry_out(
        ["train", *(word for name, value in options.items() for word in (f"--{name}", value))], work, until
    )


def rates(setting: Setting, run: Path, last: dict[str, Any]) -> dict[str, Any]:
    """Return, by task, the median of a run's steps once all is warm."""
    rows, laps = read_losses(run / "losses.jsonl"), dict[str, list[float]]()
    for before, row in zip(rows[setting.warm :], rows[setting.warm + 1 :], strict=False):
        if row["seconds"] > before["seconds"]:
            laps.setdefault(row["task"], []).append(row["seconds"] - before["seconds"])
    found: dict[str, Any] = {"memory_gb": last.get("memory_gb"), "tasks": {}}
    for task, seconds in sorted(laps.items()):
        flops = count_flops(setting.case.model, count_tokens(setting.case.sizes, "none", TASKS[task].needs_uv))
        rate = setting.case.batch / median(seconds)
        mfu = (flops.forward + flops.backward) * rate / setting.peak
        found["tasks"][task] = {"samples_per_s": rate, "mfu": mfu, "steps": len(seconds)}
    return found


def measure_latents(setting: Setting) -> dict[str, Any]:
    """Training from latents, killed after the first state and resumed; losses of the steps done again are compared."""
    prepare(setting)
    run, half = setting.work / "latents", setting.steps // 2
    shutil.rmtree(run, ignore_errors=True)

    def losses() -> dict[int, float]:
        return {row["step"]: row["loss"] for row in read_losses(run / "losses.jsonl")}

    train(setting, run, True, until=lambda: len(losses()) >= half + 2)
    before, start = losses(), time.monotonic()
    last = train(setting, run, True, until=lambda: max(losses(), default=0) >= setting.steps)
    resumed, after = time.monotonic() - start, losses()
    again = [step for step in before if step > half and step in after]
    gap = max((abs(before[step] - after[step]) / abs(before[step]) for step in again), default=None)
    found = rates(setting, run, last) | {"resumed_s": resumed, "steps_again": len(again), "loss_gap": gap}
    shutil.rmtree(run)  # states of 21 GB
    return found


def measure_pixels(setting: Setting) -> dict[str, Any]:
    """Training from images, encoded in every step."""
    prepare(setting)
    run = setting.work / "pixels"
    shutil.rmtree(run, ignore_errors=True)
    found = rates(setting, run, train(setting, run, False))
    shutil.rmtree(run)
    return found


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "raster": measure_raster,
    "model": measure_model,
    "sampling": measure_sampling,
    "latents": measure_latents,
    "pixels": measure_pixels,
}


def table(report: dict[str, Any]) -> str:
    """Lines for docs/benchmarks.md."""
    parts = report["parts"]
    lines = [
        f"{report['device']}, torch {report['torch']}, batch {report['batch']}, {report['seconds']:.0f} s in all.",
        "",
    ]
    lines += ["| | checkpointing | forward, ms | forward + backward, ms | step, ms | MFU | peak memory, GB |",
              "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in parts.get("model", {}).get("rows", []):
        if "failed" in row:
            lines.append(f"| {row['task']} | {row['checkpointing']} | {row['failed']} | | | | |")
            continue
        laps = " | ".join(f"{row[f'{name}_s'] * 1e3:.1f}" for name in ("forward", "forward_backward", "step"))
        lines.append(
            f"| {row['task']} | {row['checkpointing']} | {laps} | {row['mfu']:.1%} | {row['memory_gb'] or '-'} |"
        )
    for name in ("latents", "pixels"):
        for task, row in parts.get(name, {}).get("tasks", {}).items():
            rate = f"{row['samples_per_s']:.2f} samples/s"
            memory = parts[name]["memory_gb"] or "-"
            lines.append(f"| training from {name}, {task} | full | | | {rate} | {row['mfu']:.1%} | {memory} |")
    if "latents" in parts:
        one = parts["latents"]
        lines += ["", f"Killed and resumed: {one['steps_again']} steps done again, losses apart by {one['loss_gap']}."]
    if "sampling" in parts:
        one = parts["sampling"]
        lines += [
            "",
            f"{SAMPLING_STEPS} denoising steps: {one['texture_s']:.2f} s; VAE: {one['vae_images_per_s']:.1f} images/s.",
        ]
    lines += ["", f"nvdiffrast: {parts['raster']['outcome']}."] if "raster" in parts else []
    lines += ["", f"Left out, for lack of time: {', '.join(report['left_out'])}."] if report["left_out"] else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/gpu"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=7.0, help="no part begins after so long")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--small", action="store_true", help="two layers, 32-pixel views, on the CPU")
    options = parser.parse_args()
    small, work, start = options.small, options.work.resolve(), time.monotonic()
    if not small and not torch.cuda.is_available():
        parser.error("no CUDA device; --small runs every line on a CPU")
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "compiled"))  # for all processes, and the next run
    device = "cpu" if small else "cuda"
    name = "CPU" if small else torch.cuda.get_device_name()
    sizes = ImageSizes(views=4, view_resolution=32 if small else 512, uv_resolution=64 if small else 1024)
    model = replace(FULL, start="scratch", **(SMALL if small else {}))
    case = Case(
        name="full preset", model=model, sizes=sizes, text_encoder="none" if small else "umt5", batch=options.batch
    )
    product = (256, torch.float32) if small else (8192, torch.bfloat16)
    setting = Setting(
        work=work, small=small, device=device, case=case, rounds=1 if small else 3, steps=6 if small else 24,
        warm=1 if small else 6, peak=peak_flops(name, "bfloat16") or matrix_peak(device, *product),
    )  # fmt: skip
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "small": small, "batch": options.batch}
    report |= {"peak_flops": setting.peak, "model": asdict(model), "parts": {}, "left_out": []}
    for part in options.parts:
        began = time.monotonic()
        if began - start > 60 * options.minutes:
            report["left_out"].append(part)
            continue
        found = PARTS[part](setting)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        report["parts"][part] = found | {"seconds": time.monotonic() - began}
        report["seconds"] = time.monotonic() - start
        (work / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"{part}: {report['parts'][part]['seconds']:.0f} s", flush=True)
    (work / "gpu.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
