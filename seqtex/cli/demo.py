"""`seqtex demo`: every step on procedural meshes, from nothing to textured .glb files and a page of the gallery."""

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

import numpy as np
from PIL import Image
from rich.console import Console

from geometry.image_metrics import psnr
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.dataset.folders import located
from pipeline.dataset.state import planned_jobs
from pipeline.dataset.verify import verify
from pipeline.executor.build import build
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.report.charts import loss_curve
from pipeline.report.gallery import write_gallery
from pipeline.report.pages import Section, write_page
from pipeline.sources.procedural import procedural
from schemas.dataset import read_dataset_json
from schemas.errors import UserError, require_between
from schemas.mesh import MeshRef
from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from schemas.storage import write_file
from seqtex.cli.terminal.console import bar, build_progress, log_event, logs_json, print_table, training_progress
from seqtex.cli.train import validation_of
from seqtex.gallery.pages import write_run_page
from seqtex.gallery.trials import Trial, overview, render_trial, trial_section, write_textures
from seqtex.texturing import prepare_mesh, texture_meshes
from training.config import preset
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, load_checkpoint
from training.metrics.images import baselines
from training.train import TrainResult, train

HELD_OUT_SEED = 1
"""Seed of the held-out meshes; the training meshes have seed 0."""
ESTIMATED_AFTER, RECENT = 30, 15
"""Steps after which the length of the training is estimated, and how many of them, the last ones, are measured."""
PICTURES_A_RUN = 4
"""Validation pictures on the page of the training run."""
SCORE_COLUMNS = ("mean over", "this model", "copying the nearest visible pixel", "filling with the mean colour")


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
        """Return the options of the build."""
        return BuildConfig(
            assets_per_job=16,
            views=RenderConfig(resolution=self.view_resolution),
            uv=BakeConfig(resolution=self.uv_resolution),
        )


Score = tuple[str, float, float, float]
"""Name of some meshes, and the means of their trials' three PSNRs in dB."""


def demo(cfg: DemoConfig, out: Path = Path("out/demo")) -> int:
    """Build a dataset of procedural meshes through Ray, verify it, train on it, texture meshes of it and held-out
    meshes from one image each, and write two textured .glb files, summary.json and the gallery of the dataset with a
    page about the results. Ends with 1 if the textures are no better than a fill with the image's mean colour. Run
    again, it resumes a training that was paused, or finds it done.

    Args:
        out: folder for all results
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
            trial.result.save(out / f"{name}.glb")
            Image.fromarray(trial.sample.views.rgb[0]).save(out / f"{name}_image.png")
    scores = [score("training", known), score("held-out", unseen)]
    summary = summarise(scores, len(trained.losses), cfg)
    with timed("report", seconds):
        page = write_report(out, cfg, trained, known, unseen, scores, summary["result"])
    summary["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
    write_file(out / "summary.json", json.dumps(summary, indent=1).encode() + b"\n")
    if logs_json():
        log_event("demo", **summary, page=str(page))
    else:
        print_table(SCORE_COLUMNS, scores, title="texture from one image: PSNR of the UV map over covered texels, dB")
        show_result(summary, out, page)
    return exit_code(summary)


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Measure and log the time that a stage takes."""
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
    log_event("stage", stage=stage, seconds=round(seconds[stage], 1))


def build_dataset(dataset: Path, cfg: DemoConfig) -> None:
    """Build the training data."""
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

        shown = replace(tiny.validation, every=max(1, cfg.steps // PICTURES_A_RUN), samples=1, steps=cfg.sample_steps)
        whole = replace(tiny, data=replace(tiny.data, directory=dataset), run=run, validation=shown)
        return train(whole, report, validation_of(whole))


def known_meshes(dataset: Path, cfg: DemoConfig) -> Iterator[tuple[Path, TextureSample]]:
    """Yield files of the dataset with authored UVs, with their samples."""
    jobs = planned_jobs(dataset, read_dataset_json(dataset))
    paths = {ref.uid: Path(located(ref, job.folder).uri) for job in jobs for ref in job.refs}
    authored = (
        s for s in stored_samples(dataset, Regime.TEXTURED) if s.mesh is not None and s.mesh.layout == "authored"
    )
    for sample in islice(authored, cfg.measured_meshes):
        yield paths[sample.uid], sample


def unseen_meshes(out: Path, cfg: DemoConfig) -> Iterator[tuple[Path, TextureSample]]:
    """Yield files of another seed, with the samples that the same pipeline makes of them."""

    def samples(refs: Iterator[MeshRef]) -> Iterator[tuple[Path, TextureSample]]:
        for ref in refs:
            result = process_asset(ref, cfg.build_config()).result
            if isinstance(result, TextureSample) and result.uv is not None:
                yield Path(ref.uri), result

    refs = procedural(2 * cfg.measured_meshes, out / "held_out", seed=HELD_OUT_SEED, clean=True)
    return islice(samples(refs), cfg.measured_meshes)


def run_trial(path: Path, sample: TextureSample, network: Checkpoint, cfg: DemoConfig) -> Trial:
    """Texture the mesh in `path` from the sample's front view, as `seqtex texture` does."""
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


# results


def score(kind: str, trials: Sequence[Trial]) -> Score:
    """Average the figures of some trials on meshes of a kind."""
    return (
        f"{len(trials)} {kind} mesh{'es' if len(trials) > 1 else ''}",
        fmean(t.psnr_db for t in trials),
        fmean(t.nearest_db for t in trials),
        fmean(t.fill_db for t in trials),
    )


def summarise(scores: Sequence[Score], steps: int, cfg: DemoConfig) -> dict[str, Any]:
    """Return `summary.json`: the scores of training and held-out meshes in dB, the steps, and the result."""
    figures: dict[str, float] = {}
    for name, (_, *values) in zip(("training", "held_out"), scores, strict=True):
        keys = (f"{name}_db", f"{name}_nearest_db", f"{name}_fill_db")
        figures |= zip(keys, (round(value, 2) for value in values), strict=True)
    beats_fill = all(own > fill for _, own, _, fill in scores)
    result = ("passed" if steps >= cfg.steps else "undertrained") if beats_fill else "failed"
    return {"result": result, "steps": steps, "planned_steps": cfg.steps} | figures


def exit_code(summary: dict[str, Any]) -> int:
    """Return 1 if the demo failed, else 0."""
    return int(summary["result"] == "failed")


def show_result(summary: dict[str, Any], out: Path, page: Path) -> None:
    """Print the result in a sentence, what to look at and what to do next."""
    steps, planned = f"{summary['steps']:,}", f"{summary['planned_steps']:,}"
    gain = {name: summary["held_out_db"] - summary[f"held_out_{name}_db"] for name in ("nearest", "fill")}
    held_out = f"on held-out meshes {gain['nearest']:+.1f} dB to copied pixels, {gain['fill']:+.1f} dB to a fill"
    words = {
        "passed": f"passed: {held_out}",
        "undertrained": f"undertrained: {steps} of {planned} steps; run again to go on ({held_out})",
        "failed": f"failed: no better than a fill with the mean colour, after {steps} of {planned} steps"
        + ("; run again to go on" if summary["steps"] < summary["planned_steps"] else ""),
    }
    color = {"passed": "green", "undertrained": "yellow", "failed": "red"}[summary["result"]]
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(words[summary["result"]], style=f"bold {color}", markup=False)
    console.print(f"report: {page}\ntextured mesh: {out / 'held-out.glb'}", markup=False)


def write_report(
    out: Path,
    cfg: DemoConfig,
    trained: TrainResult,
    known: Sequence[Trial],
    unseen: Sequence[Trial],
    scores: Sequence[Score],
    result: str,
) -> Path:
    """Write `picture.png` and the dataset's gallery with pages about the results, the training run and every texture;
    return the first. known: training meshes; unseen: held-out ones; the first of each is shown large."""
    titles, shown, dataset = ("A training mesh", "A held-out mesh"), (known[0], unseen[0]), out / "dataset"
    textures = write_textures(dataset, {"training": known, "held-out": unseen})
    run_page = write_run_page(dataset, out / "run")
    renders = [render_trial(trial) for trial in shown]
    losses = [row["loss"] for row in trained.losses]
    sections = [
        Section(
            title=f"Texture from one image: {result}",
            text="PSNR of the generated UV map in dB over covered texels; higher is better. Two baselines need no "
            "learning: each texel copies the nearest pixel of the image, or all take its mean colour.",
            columns=SCORE_COLUMNS,
            rows=[(name, *(f"{value:.1f}" for value in values)) for name, *values in scores],
            more={"All textures beside the true ones": textures.name, "The training run": run_page.name},
        ),
        *map(trial_section, titles, shown, renders),
        Section(
            title="Training loss",
            text=f"{trained.parameters / 1e6:.1f} M parameters, {len(losses):,} steps in {trained.seconds:.0f} s; each "
            "step and the running mean, log scale.",
            svg=loss_curve([row["step"] for row in trained.losses], losses),
        ),
    ]
    Image.fromarray(np.concatenate(list(map(overview, titles, shown, renders)))).save(out / "picture.png")
    summary = "A model trained on a dataset of procedural meshes, and two meshes that it textured from one image each."
    page = write_page(dataset, "demo", "SeqTex Forge demo", summary, sections)
    with bar("drawing", None, "shards") as update:
        write_gallery(
            dataset, cfg.build_config().filter, 10_000, cfg.workers, lambda done, total: update(done, "", total=total)
        )
    return page
