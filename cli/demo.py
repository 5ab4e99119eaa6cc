"""`seqtex demo`: the whole path on made-up meshes, from nothing to textured .glb files and a page to look at."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from cli.dataset import some_samples
from cli.progress import bar, build_progress, log_event, training_note
from cli.subject import Condition, Subject, TexturedSubject, open_subject, texture_subjects
from cli.table import print_table
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset
from pipeline.bake import BakeConfig
from pipeline.config import BuildConfig
from pipeline.glb import write_glb
from pipeline.render import RenderConfig, render_baked
from pipeline.report.images import data_uri, side_by_side
from pipeline.report.page import Figure, Section, loss_curve, render_page
from pipeline.run import build
from pipeline.shards import stored_samples
from pipeline.sources.procedural import procedural
from pipeline.unwrap.choose import UnwrapConfig
from pipeline.verify import verify
from schemas.dataset import read_ledger, write_file
from schemas.errors import UserError
from schemas.mesh import MeshRef
from schemas.sample import Regime, TextureSample
from training.checkpoints import Checkpoint, load_checkpoint
from training.fit import TrainResult, train
from training.metrics.images import mean_color_fill, psnr
from training.presets import preset
from training.sampler import SamplerConfig

HELD_OUT_SEED = 1
"""Of the procedural source; the training meshes have seed 0."""
MAX_STEPS = 20_000
"""Far more than the time allows."""
PICTURE = RenderConfig(resolution=256, supersample=2)
"""Renders on the page."""


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
    train_seconds: float = 420.0
    """Length of the training; the learning rate decays over this time."""
    sample_steps: int = 8
    """Denoising steps; few, because a small model gains nothing from more."""
    workers: int = 2
    """Processes that build, and threads that train."""

    def build_config(self) -> BuildConfig:
        return BuildConfig(
            assets_per_job=16,
            views=RenderConfig(resolution=self.view_resolution),
            uv=BakeConfig(resolution=self.uv_resolution),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One mesh textured from one image of it, beside the truth."""

    name: str
    sample: TextureSample
    """The truth."""
    subject: Subject
    result: TexturedSubject
    psnr_db: float
    """Generated UV map against the true one, over covered texels."""
    fill_db: float
    """The same for a map filled with the mean foreground colour of the image."""


def demo(cfg: DemoConfig, out: Path = Path("out/demo")) -> int:
    """Build a dataset of made-up meshes through Ray, verify it, train on it, texture a mesh of it and a mesh that it
    does not hold from one image each, and write the textured .glb files and a report.

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
        known = [
            run_trial(f"training mesh {sample.uid}", path, sample, network, cfg)
            for path, sample in known_meshes(dataset, cfg)
        ]
        unseen = [
            run_trial(f"held-out mesh {sample.uid}", path, sample, network, cfg)
            for path, sample in unseen_meshes(out, cfg)
        ]
        for trial, name in ((known[0], "training"), (unseen[0], "held-out")):
            write_results(trial, out, name)
    rows = [score(known[0]), score(unseen[0]), mean_score("training", known), mean_score("held-out", unseen)]
    with timed("report", seconds):
        write_report(out, dataset, trained, (known[0], unseen[0]), rows, seconds)
    print_table(("stage", "seconds"), list(seconds.items()), title="time")
    print_table(
        SCORE_COLUMNS, rows, title=f"texture from one image: UV PSNR over covered texels, dB ({out}/report.html)"
    )
    return 0


SCORE_COLUMNS = ("mesh", "generated", "mean-colour fill", "gain")


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
    tiny = preset("tiny")
    run = replace(
        tiny.run,
        directory=directory,
        max_steps=MAX_STEPS,
        max_seconds=cfg.train_seconds,
        threads=cfg.workers,
        logger="none",
    )
    with bar("training", 100, "%") as update:
        return train(
            replace(tiny, data=replace(tiny.data, directory=dataset), run=run),
            lambda row: update(int(100 * row["progress"]), training_note(row)),
        )


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


def run_trial(name: str, path: Path, sample: TextureSample, network: Checkpoint, cfg: DemoConfig) -> Trial:
    """Textures the mesh in `path` from the sample's front view, as `seqtex texture` does."""
    assert sample.uv is not None
    size = len(sample.uv.mask)
    subject = open_subject(path, UnwrapConfig(), network.card)
    front, mask = sample.views.rgb[0], sample.views.mask[0]
    condition, sampler = Condition(images={0: front}), SamplerConfig(steps=cfg.sample_steps)
    (result,) = texture_subjects([subject], [condition], network, sampler, seeds=[0])
    fill = mean_color_fill(front, mask, size, size)
    return Trial(
        name=name,
        sample=sample,
        subject=subject,
        result=result,
        psnr_db=psnr(result.uv_rgb, sample.uv.rgb, sample.uv.mask),
        fill_db=psnr(fill, sample.uv.rgb, sample.uv.mask),
    )


def score(trial: Trial) -> tuple[str, float, float, float]:
    return trial.name, trial.psnr_db, trial.fill_db, trial.psnr_db - trial.fill_db


def mean_score(name: str, trials: list[Trial]) -> tuple[str, float, float, float]:
    generated, fill = fmean(t.psnr_db for t in trials), fmean(t.fill_db for t in trials)
    return f"mean of {len(trials)} {name} meshes", generated, fill, generated - fill


def write_results(trial: Trial, out: Path, name: str) -> None:
    """The textured mesh, and the image it was textured from."""
    write_glb(out / f"{name}.glb", trial.subject.uv_mesh, trial.result.uv_rgb, trial.subject.frame)
    Image.fromarray(trial.sample.views.rgb[0]).save(out / f"{name}_image.png")


def write_report(
    out: Path,
    dataset: Path,
    trained: TrainResult,
    shown: tuple[Trial, ...],
    rows: list[tuple[str, float, float, float]],
    seconds: dict[str, float],
) -> None:
    table = Section(
        title="Texture from one image",
        text="UV map against the true one over covered texels, PSNR in dB. The fill has the mean foreground colour of "
        "the image. " + ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items()) + ".",
        columns=SCORE_COLUMNS,
        rows=[(name, *(f"{value:.1f}" for value in values)) for name, *values in rows],
    )
    rendered = [(trial, render_trial(trial)) for trial in shown]
    losses = [row["loss"] for row in trained.losses]
    curve = Section(
        title="Training loss",
        text=f"{trained.parameters / 1e6:.1f} M parameters, {len(losses)} steps in {trained.seconds:.0f} s; each step "
        "and the running mean, log scale.",
        svg=loss_curve([row["step"] for row in trained.losses], losses),
    )
    page = render_page(
        title="SeqTex Forge demo",
        summary="A dataset from made-up meshes, a model trained on it, and two meshes textured by that model.",
        rows=[outcome.row() for part in read_ledger(dataset) for outcome in part.outcomes],
        samples=some_samples(dataset, 15),
        sections=[table, *(trial_section(trial, pictures) for trial, pictures in rendered), curve],
    )
    rows_of_pictures = [overview(trial, pictures) for trial, pictures in rendered]
    Image.fromarray(np.concatenate(rows_of_pictures)).save(out / "picture.png", optimize=True)
    write_file(out / "report.html", page.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A trial from its four cameras, sRGB."""

    before: UInt8[np.ndarray, "views height width 3"]
    after: UInt8[np.ndarray, "views height width 3"]
    truth: UInt8[np.ndarray, "views height width 3"]


def render_trial(trial: Trial) -> Pictures:
    rasterizer, cameras = CpuRasterizer(threads=2), trial.subject.cameras
    assert trial.sample.uv is not None
    opacity = trial.sample.uv.opacity
    after = render_baked(trial.subject.uv_mesh, trial.result.uv_rgb, cameras, PICTURE, rasterizer, opacity)
    truth = render_baked(trial.subject.uv_mesh, trial.sample.uv.rgb, cameras, PICTURE, rasterizer, opacity)
    return Pictures(before=clay(after.normal), after=after.rgb, truth=truth.rgb)


def trial_section(trial: Trial, pictures: Pictures) -> Section:
    """Before, after and truth from the same four cameras; the UV maps side by side."""
    assert trial.sample.uv is not None
    shown = {
        "the image given": trial.sample.views.rgb[0],
        "before: the bare mesh": side_by_side(pictures.before),
        "after: the generated texture on the mesh": side_by_side(pictures.after),
        "truth": side_by_side(pictures.truth),
        "UV map, generated": trial.result.uv_rgb,
        "UV map, true": trial.sample.uv.rgb,
    }
    figures = [Figure(src=data_uri(picture), caption=caption) for caption, picture in shown.items()]
    return Section(title=trial.name[0].upper() + trial.name[1:], text=trial.sample.meta["caption"], figures=figures)


def overview(trial: Trial, pictures: Pictures) -> UInt8[np.ndarray, "height width 3"]:
    """In one row: the bare mesh, the image given, the textured mesh from four sides."""
    size = (PICTURE.resolution, PICTURE.resolution)
    given = Image.fromarray(trial.sample.views.rgb[0]).resize(size, Image.Resampling.BICUBIC)
    return side_by_side(np.stack([pictures.before[0], np.asarray(given), *pictures.after]))


def clay(normals: Float32[np.ndarray, "views height width 3"]) -> UInt8[np.ndarray, "views height width 3"]:
    """Grey under a wide lamp up front to the left; black where there is no surface."""
    lamp = np.array([-0.4, -0.7, 0.6], np.float32) / np.float32(np.sqrt(1.01))
    covered = (normals != 0).any(axis=-1)
    shade = covered * (60 + 170 * (normals @ lamp / 2 + 0.5))
    return np.repeat(shade[..., None], 3, axis=-1).astype(np.uint8)
