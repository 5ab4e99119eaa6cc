"""`seqtex demo`: the whole path on procedural meshes, from nothing to textured .glb files, a verdict and a report."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.dataset.shards import stored_samples
from pipeline.dataset.verify import verify
from pipeline.executor.build import build
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.dataset import read_ledger, write_file
from schemas.errors import UserError, require_between
from schemas.mesh import MeshRef
from schemas.sample import Regime, TextureSample
from seqtex.cli.build import some_samples
from seqtex.cli.console import build_progress, log_event, logs_json, print_table, training_progress
from seqtex.cli.demo_report import Trial, write_report, write_results
from seqtex.texturing import prepare_mesh, texture_meshes
from training.config import preset
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, load_checkpoint
from training.metrics.images import baselines, psnr
from training.train import TrainResult, train

HELD_OUT_SEED = 1
"""Of the procedural source; the training meshes have seed 0."""
ESTIMATED_AFTER, RECENT = 30, 15
"""Steps after which the length of the training can be said, and of those the last ones, by which it is."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Size of the demo."""

    mixed_assets: int = 40
    """Assets of every kind, usable and not: flat colours, dense, grey, broken, ..."""
    clean_assets: int = 184
    """Assets with a texture and good UVs: most of what there is to learn from."""
    measured_meshes: int = 8
    """Training meshes, and as many held-out ones, whose generated texture is measured; the first of each is shown."""
    view_resolution: int = 64
    """Pixels a side of a view."""
    uv_resolution: int = 128
    """Texels a side of a UV map."""
    steps: int = 1300
    """Training steps. How well the model does depends on them, not on the computer."""
    most_train_seconds: float = 600.0
    """Training pauses after so long, on a slow computer; the same command goes on from there."""
    sample_steps: int = 3
    """Denoising steps; few, because those of a small model stay nearer to the mean of what is plausible."""
    workers: int = 2
    """Processes that build."""

    def __post_init__(self) -> None:
        require_between("steps", self.steps, 1, 10**6)
        require_between("measured_meshes", self.measured_meshes, 1, 1000)

    def build_config(self) -> BuildConfig:
        return BuildConfig(
            assets_per_job=16,
            views=RenderConfig(resolution=self.view_resolution),
            uv=BakeConfig(resolution=self.uv_resolution),
        )


def demo(cfg: DemoConfig, out: Path = Path("out/demo")) -> int:
    """Build a dataset of procedural meshes through Ray, verify it, train on it, texture meshes of it and meshes that it
    does not hold from one image each, and write two textured .glb files, summary.json and a report. Ends with 1 where
    the textures are no better than a fill with the image's mean colour. Run again, it goes on with the training where
    that was paused, or finds it done.

    Args:
        out: folder for everything that is made
    """
    seconds: dict[str, float] = {}
    dataset = out / "dataset"
    with timed("build", seconds):
        build_dataset(dataset, cfg)
    with timed("verify", seconds):
        if problems := verify(dataset):
            raise UserError(f"{dataset}: {len(problems)} problems, the first: {problems[0]}")
    with timed("train", seconds):
        trained = train_tiny(dataset, out / "run", cfg)
    with timed("texture", seconds):
        network = load_checkpoint(trained.checkpoint)
        known = [run_trial(path, sample, network, cfg) for path, sample in known_meshes(dataset, cfg)]
        unseen = [run_trial(path, sample, network, cfg) for path, sample in unseen_meshes(out, cfg)]
        for trial, name in ((known[0], "training"), (unseen[0], "held-out")):
            write_results(trial, out, name)
    summary = summarise(known, unseen, len(trained.losses), cfg)
    rows = [
        mean_row(f"{len(known)} training meshes", known),
        mean_row(f"{len(unseen)} meshes it never saw", unseen),
    ]
    with timed("report", seconds):
        samples = some_samples(dataset, 15)
        write_report(out, dataset, samples, trained, (known[0], unseen[0]), (SCORE_COLUMNS, rows), summary["verdict"])
    summary["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
    write_file(out / "summary.json", json.dumps(summary, indent=1).encode() + b"\n")
    if logs_json():
        log_event("demo", **summary)
        return exit_code(summary)
    print_table(SCORE_COLUMNS, rows, title="texture from one image: PSNR of the UV map over covered texels, dB")
    show_verdict(summary, out)
    return exit_code(summary)


SCORE_COLUMNS = ("mean over", "this model", "copying the nearest visible pixel", "filling with the mean colour")


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
    log_event("stage", stage=stage, seconds=round(seconds[stage], 1))


def build_dataset(dataset: Path, cfg: DemoConfig) -> None:
    assets = dataset / "assets"
    refs = chain(procedural(cfg.mixed_assets, assets), procedural(cfg.clean_assets, assets, clean=True))
    with build_progress() as notify:
        build(refs, dataset, cfg.build_config(), cfg.workers, notify)


def train_tiny(dataset: Path, directory: Path, cfg: DemoConfig) -> TrainResult:
    """Train to the planned step or the pause, and report the time that is left once it can be estimated."""
    tiny = preset("tiny")
    run = replace(
        tiny.run,
        directory=directory,
        max_steps=cfg.steps,
        pause_seconds=cfg.most_train_seconds,
        state_every=200,
        logger="none",
    )
    times: list[float] = []
    with training_progress(cfg.steps) as show:

        def report(row: dict[str, Any]) -> None:
            show(row)
            times.append(row["seconds"])
            if len(times) == ESTIMATED_AFTER and row["step"] < cfg.steps:
                recent = times[-RECENT:]
                a_step = (recent[-1] - recent[0]) / (RECENT - 1) * (1 - row.get("wait", 0.0))  # data is soon in memory
                left = a_step * (cfg.steps - row["step"])
                log_event("estimate", steps=cfg.steps, seconds_left=round(left))

        return train(replace(tiny, data=replace(tiny.data, directory=dataset), run=run), report)


def known_meshes(dataset: Path, cfg: DemoConfig) -> Iterator[tuple[Path, TextureSample]]:
    """Meshes of the dataset with authored UVs, with their samples."""
    paths = {outcome.uid: Path(outcome.uri) for part in read_ledger(dataset) for outcome in part.outcomes}
    authored = (
        s for s in stored_samples(dataset, Regime.TEXTURED) if s.mesh is not None and s.mesh.layout == "authored"
    )
    for sample in islice(authored, cfg.measured_meshes):
        yield paths[sample.uid], sample


def unseen_meshes(out: Path, cfg: DemoConfig) -> Iterator[tuple[Path, TextureSample]]:
    """Meshes of another seed, put through the same pipeline to have the truth."""

    def samples(refs: Iterator[MeshRef]) -> Iterator[tuple[Path, TextureSample]]:
        for ref in refs:
            result = process_asset(ref, cfg.build_config()).result
            if isinstance(result, TextureSample) and result.uv is not None:
                yield Path(ref.uri), result

    refs = procedural(2 * cfg.measured_meshes, out / "held_out", seed=HELD_OUT_SEED, clean=True)
    return islice(samples(refs), cfg.measured_meshes)


def run_trial(path: Path, sample: TextureSample, network: Checkpoint, cfg: DemoConfig) -> Trial:
    """Textures the mesh in `path` from the sample's front view, as `seqtex texture` does."""
    assert sample.uv is not None
    prepared = prepare_mesh(path, network.card, pictures={0: sample.views.rgb[0]})
    (result,) = texture_meshes([prepared], network, SamplerConfig(steps=cfg.sample_steps))
    base = baselines(sample.views.rgb[:1], sample)
    return Trial(
        sample=sample,
        result=result,
        psnr_db=psnr(result.uv, sample.uv.rgb, sample.uv.mask),
        nearest_db=psnr(base["nearest"], sample.uv.rgb, sample.uv.mask),
        fill_db=psnr(base["fill"], sample.uv.rgb, sample.uv.mask),
    )


def mean_row(name: str, trials: Sequence[Trial]) -> tuple[str, float, float, float]:
    return (
        name,
        fmean(t.psnr_db for t in trials),
        fmean(t.nearest_db for t in trials),
        fmean(t.fill_db for t in trials),
    )


def summarise(known: Sequence[Trial], unseen: Sequence[Trial], steps: int, cfg: DemoConfig) -> dict[str, Any]:
    """Summarise both sets of meshes for `summary.json`: means in dB, the steps, and the verdict."""
    figures = {}
    for name, trials in (("training", known), ("held_out", unseen)):
        _, figures[f"{name}_db"], figures[f"{name}_nearest_db"], figures[f"{name}_fill_db"] = mean_row("", trials)
    beats_fill = all(figures[f"{name}_db"] > figures[f"{name}_fill_db"] for name in ("training", "held_out"))
    verdict = "passed" if beats_fill else "failed"
    if beats_fill and steps < cfg.steps:
        verdict = "undertrained"
    rounded = {name: round(value, 2) for name, value in figures.items()}
    return {"verdict": verdict, "steps": steps, "planned_steps": cfg.steps} | rounded


def exit_code(summary: dict[str, Any]) -> int:
    """Return 1 where the demo failed at its purpose, else 0."""
    return int(summary["verdict"] == "failed")


def show_verdict(summary: dict[str, Any], out: Path) -> None:
    """Print in a sentence how it went, and what to do next."""
    steps, planned = f"{summary['steps']:,}", f"{summary['planned_steps']:,}"
    gain = {name: summary["held_out_db"] - summary[f"held_out_{name}_db"] for name in ("nearest", "fill")}
    held_out = f"on meshes it never saw {gain['nearest']:+.1f} dB to copied pixels, {gain['fill']:+.1f} dB to a fill"
    words = {
        "passed": f"passed: {held_out}; see {out}/report.html and {out}/held-out.glb",
        "undertrained": f"undertrained: {steps} of {planned} steps; run again to go on ({held_out})",
        "failed": f"failed: no better than a fill with the mean colour, after {steps} of {planned} steps"
        + ("; run again to go on" if summary["steps"] < summary["planned_steps"] else ""),
    }
    color = {"passed": "green", "undertrained": "yellow", "failed": "red"}[summary["verdict"]]
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(words[summary["verdict"]], style=f"bold {color}", markup=False)
