"""The full preset on one GPU in one command: `python -m benchmarks.train_gpu --work DIR`.

Random weights of full size and made-up meshes, so that nothing is downloaded: 50 steps from latents, killed after the
first saved state and resumed, then 50 steps from pixels. Prints samples a second, MFU and peak memory of each, and how
far the losses of the resumed steps are from those before the kill. Takes about 45 GB of disk in DIR: there is never
more than one trainer state, so the resumed run is ended by a kill, too. Captions are left out: no text encoder is at
hand. `--small` runs every line of it on a CPU with a network of two layers.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from benchmarks.model import FULL, build
from pipeline.config import BuildConfig
from pipeline.executor.job import process_asset
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.sample import TextureSample
from tests.support.small_dataset import write_samples
from training.cost import count_flops, count_tokens
from training.data.mixture import ImageSizes
from training.loop.callbacks import read_losses
from training.loop.throughput import peak_flops
from training.model.init import ModelConfig
from training.model.weights import save_model

SMALL = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 48, "ffn_dim": 64, "lora_rank": 4}
STEPS, STATE_AT, WARM = 50, 30, 10
"""Steps of a run; where the one that is killed saves; steps that do not count, in which blocks are compiled."""
SECONDS = 900
"""After which a command counts as hanging."""
MESHES = 6


def prepare(work: Path, model: ModelConfig, sizes: ImageSizes, small: bool) -> None:
    """Weights, VAE and dataset; what is there is kept."""
    if not (work / "weights").is_dir():
        save_model(build(model), work / "weights")
    if not (work / "wan").is_dir():
        narrow: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if small else {}
        vae: Any = AutoencoderKLWan(**narrow)  # its type does not say that it can be saved
        vae.save_pretrained(work / "wan" / "vae")
    if not (work / "data" / "dataset.json").is_file():
        assert sizes.uv_resolution
        cfg = BuildConfig(
            views=RenderConfig(resolution=sizes.view_resolution), uv=BakeConfig(resolution=sizes.uv_resolution)
        )
        found = (process_asset(ref, cfg).result for ref in procedural(3 * MESHES, work / "assets", clean=True))
        textured = [each for each in found if isinstance(each, TextureSample) and each.uv is not None]
        write_samples(work / "data", [textured[:MESHES]])


def command(work: Path, run: Path, batch: int, device: str, latents: bool, architecture: dict[str, Any]) -> list[str]:
    options = {
        "preset": "full", "data.directory": work / "data", "data.batch_size": batch, "data.mv_only_ratio": 0.0,
        "data.latents": str(latents).lower(), "data.workers": 2, "model.start": "seqtex",
        "model.start_path": work / "weights", "latents.codec_path": work / "wan", "latents.text_encoder": "none",
        "validation.every": 0, "run.directory": run, "run.max_steps": 2 * STEPS if latents else STEPS,
        "run.state_every": STATE_AT if latents else STEPS, "run.logger": "none", "run.accelerator": device,
    }  # fmt: skip
    options |= {f"model.{name}": value for name, value in architecture.items()}
    if device == "cpu":
        options |= {"model.compile_blocks": "false", "run.threads": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "seqtex.cli.main", "train", "--log", "json", *words]


def carry_out(arguments: list[str], output: Path, until: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs a command to its end, or kills it once `until` holds; the last line of its output that tells of a step."""
    limit = time.monotonic() + SECONDS
    with output.open("w") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and not until():
            if time.monotonic() > limit:
                process.kill()
            time.sleep(0.2)
        is_over = process.poll() is not None
        process.kill()
        process.wait()
    text = output.read_text()
    if is_over and process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}:\n{text[-4000:]}")
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return next((event for event in reversed(events) if event["event"] == "step"), {})


def report(title: str, run: Path, last: dict[str, Any], model: ModelConfig, sizes: ImageSizes, batch: int) -> None:
    """By task: the median of its steps once all is warm."""
    rows = read_losses(run / "losses.jsonl")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = peak_flops(name, "bfloat16")
    print(f"{title}: {len(rows)} steps of {batch} samples on {name}, peak memory {last.get('memory_gb', 'unknown')} GB")
    seconds: dict[str, list[float]] = {}
    for before, row in zip(rows[WARM:], rows[WARM + 1 :], strict=False):
        if row["seconds"] > before["seconds"]:
            seconds.setdefault(row["task"], []).append(row["seconds"] - before["seconds"])
    for task, laps in sorted(seconds.items()):
        needs_uv = task not in ("geo2mv", "img2mv")
        flops = count_flops(model, count_tokens(sizes, "none", needs_uv))
        rate = batch / median(laps)
        used = f", MFU {(flops.forward + flops.backward) * rate / peak:.1%}" if peak else ""
        print(f"  {task:10} {median(laps):8.3f} s/step  {rate:7.3f} samples/s{used}  ({len(laps)} steps)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/train_gpu"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="two layers, 32-pixel views, on the CPU")
    options = parser.parse_args()
    work, small, batch = options.work.resolve(), options.small, options.batch
    architecture: dict[str, Any] = SMALL if small else {}
    model = ModelConfig(**({"start": "scratch", "activation_checkpointing": "full"} | architecture))
    sizes = ImageSizes(views=4, view_resolution=32 if small else 512, uv_resolution=64 if small else 1024)
    device, start = ("cpu" if small else "gpu"), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, ModelConfig(**(vars(FULL) | {"start": "scratch"} | architecture)), sizes, small)
    print(f"prepared after {time.monotonic() - start:.0f} s", flush=True)
    encode = ["encode", work / "data", "--codec_path", work / "wan", "--device", "cpu" if small else "cuda"]
    output = work / "output.txt"
    carry_out([sys.executable, "-m", "seqtex.cli.main", *map(str, encode)], output)
    print(f"encoded after {time.monotonic() - start:.0f} s", flush=True)

    def steps() -> int:
        return len(read_losses(run / "losses.jsonl"))

    run = work / "latents"
    shutil.rmtree(run, ignore_errors=True)
    arguments = command(work, run, batch, device, True, architecture)
    carry_out(arguments, output, until=lambda: steps() >= STATE_AT + 5)
    before = {row["step"]: row["loss"] for row in read_losses(run / "losses.jsonl")}
    last = carry_out(arguments, output, until=lambda: steps() > STEPS)
    report("from latents", run, last, model, sizes, batch)
    after = {row["step"]: row["loss"] for row in read_losses(run / "losses.jsonl")}
    again = [step for step in before if step > STATE_AT and step in after]
    gap = max((abs(before[step] - after[step]) / abs(before[step]) for step in again), default=float("nan"))
    print(f"killed and resumed: {len(again)} steps done again, their losses apart by at most {gap:.1e}", flush=True)
    shutil.rmtree(run)  # states of 21 GB

    run = work / "pixels"
    shutil.rmtree(run, ignore_errors=True)
    last = carry_out(command(work, run, batch, device, False, architecture), output)
    report("from pixels", run, last, model, sizes, batch)
    print(f"all of it: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
