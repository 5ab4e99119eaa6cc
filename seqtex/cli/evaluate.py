"""`seqtex evaluate`: measure the textures of a checkpoint on the meshes of a dataset."""

import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from geometry.image_metrics import capped_psnr
from geometry.raster_cpu import CpuRasterizer
from pipeline.executor.compile_kernels import compiling
from pipeline.render.views import RenderConfig, render_baked
from schemas.errors import UserError
from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from schemas.storage import Location, write_file
from seqtex.cli.terminal.console import bar, compiles, log, log_event, logs_json, print_table
from seqtex.gallery.comparison import METRICS, EvaluationPage, compared
from seqtex.texturing import (
    MeshTexture,
    prepare_mesh,
    require_image_dropout,
    require_text_encoder,
    texture_meshes,
)
from training.arithmetic import find_device
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, CheckpointCard, load_checkpoint
from training.maps import map_psnr
from training.metrics.distribution import Interval, bootstrap, frechet_distance, pooled
from training.metrics.features import ImageFeatures, load_features
from training.metrics.images import baselines, ssim
from training.metrics.kernels import FEWEST, cubic, gaussian, kernel_distance_by_mesh
from training.metrics.lpips import SMALLEST, Lpips, PerceptualDistance
from training.metrics.surface import Seen, cross_view_consistency, seam_step, visible_texels

GIVEN = {"img2tex": 1, "mv2tex": None, "geo2mvtex": 0}
"""Number of views given, the front first; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of one mesh, and the pictures that distributions are made of."""

    uid: str
    figures: dict[str, float]
    """Figures by the names of `METRICS`; a figure that does not exist for this mesh is absent."""
    renders: UInt8[np.ndarray, "views h w 3"]
    true_views: UInt8[np.ndarray, "views h w 3"]


def evaluate(
    dataset: Location,
    checkpoint: Path,
    out: Path | None = None,
    report: Path | None = None,
    meshes: int = 64,
    task: Literal["img2tex", "mv2tex", "geo2mvtex"] = "img2tex",
    steps: int = 30,
    solver: Literal["euler", "adams"] = "euler",
    guidance: float = 1.0,
    image_guidance: float = 1.0,
    lit: bool = False,
    seed: int = 0,
    batch_size: int = 4,
    device: str = "auto",
    features: str = "",
    lpips: Path | None = None,
) -> int:
    """Texture the meshes of a dataset that was not trained on, and compare with the truth. Figures are means over
    meshes with 95 % bootstrap intervals.

    Args:
        dataset: folder that `seqtex build` wrote, or its URL, with textured samples of the checkpoint's resolution
        checkpoint: folder `checkpoint` of a training run, or a trainer state of one (states/step-00001000.ckpt)
        out: also write every mesh's figures to this file (.json)
        report: also write a page with the pictures of every mesh into this folder; a browser opens its index.html from
            disk
        meshes: how many meshes, from the first
        task: what is given: the front view, all views, or geometry and caption alone
        steps: denoising steps
        solver: euler or adams
        guidance: classifier-free guidance; 1 is off
        image_guidance: the same over the given views, for checkpoints trained with flow.image_dropout; 1 is off
        lit: give the views under light, as photos are, for checkpoints trained with data.augment.lit
        seed: of the noise; mesh i has seed + i
        batch_size: meshes sampled together
        device: cpu, cuda, or auto
        features: network for FID, KID and, with clip, CMMD of renders against true views: clip:PATH (directory or hub
            repository) or inception:FILE (weights of the original Inception, needs the `metrics` extra); empty: none
        lpips: torchvision's AlexNet weights (alexnet-owt-7be5be79.pth), for LPIPS; default: no LPIPS
    """
    device = find_device(device)
    log.progress(f"starting  loading the checkpoint {checkpoint}", None)
    network = load_checkpoint(checkpoint, device)
    require_text_encoder(network.card, guidance=guidance)
    require_image_dropout(network.card, image_guidance, task != "geo2mvtex")
    extractor = load_features(features, device) if features else None
    perceptual = Lpips(lpips, device) if lpips else None
    samples = islice(stored_samples(dataset, Regime.TEXTURED), meshes)
    cfg = SamplerConfig(steps=steps, solver=solver, guidance=guidance, image_guidance=image_guidance)
    measured, page = list[Measured](), EvaluationPage(folder=report) if report else None
    with compiling(compiles), bar("evaluating", meshes, "meshes") as update:
        update(0, "")
        while group := list(islice(samples, batch_size)):
            seeds = [seed + len(measured) + i for i in range(len(group))]
            measured += measure_group(group, network, cfg, task, seeds, device, perceptual, page, lit)
            update(len(measured), group[-1].uid)
    if not measured:
        raise UserError(f"{dataset}: no textured sample; build a dataset with textured meshes")
    summary = summarise(measured) | (compare_sets(measured, extractor) if extractor else {})
    show(summary, len(measured), task)
    if out is not None:
        rows = [{"uid": one.uid} | one.figures for one in measured]
        text = json.dumps({"summary": {name: asdict(i) for name, i in summary.items()}, "meshes": rows}, indent=1)
        write_file(out, text.encode() + b"\n")
    if page is not None:
        means = {name: (i.value, i.low, i.high) for name, i in summary.items()}
        about = f"{len(measured):,} meshes, task {task}, {steps} steps."
        log_event("page", path=str(page.write(f"Evaluation of {checkpoint}", about, means)))
    return 0


def measure_group(
    samples: list[TextureSample],
    network: Checkpoint,
    cfg: SamplerConfig,
    task: str,
    seeds: list[int],
    device: str,
    perceptual: PerceptualDistance | None = None,
    page: EvaluationPage | None = None,
    lit: bool = False,
) -> list[Measured]:
    """Texture samples together, measure the results, and add their pictures to a page."""
    meshes = []
    for sample, seed in zip(samples, seeds, strict=True):
        check_size(sample, network.card)
        assert sample.mesh is not None
        caption, given = str(sample.meta.get("caption", "")), dict(enumerate(given_views(sample, task, lit)))
        meshes.append(
            prepare_mesh(sample.mesh, network.card, cameras=sample.cameras, pictures=given, prompt=caption, seed=seed)
        )
    results = texture_meshes(meshes, network, cfg, device=device)
    measured = []
    for sample, result in zip(samples, results, strict=True):
        measured.append(measure_result(sample, result, task, perceptual))
        if page is not None:
            shown, renders = given_views(sample, task, lit), measured[-1].renders
            pictures = compared(sample, shown, result.views, result.uv, renders, result.maps)
            page.add(sample, measured[-1].figures, pictures)
    return measured


def given_views(sample: TextureSample, task: str, lit: bool) -> UInt8[np.ndarray, "given h w 3"]:
    """Return the pictures that a task gives. Raises UserError if they are to be lit and the sample has none."""
    pictures = sample.views.lit if lit else sample.views.rgb
    if pictures is None:
        raise UserError(
            f"sample {sample.uid} has no lit views; build its dataset with --views.lit pbr, or leave out lit"
        )
    return pictures[: GIVEN[task]]


def check_size(sample: TextureSample, card: CheckpointCard) -> None:
    """Raise UserError if a sample does not have the sizes of the checkpoint."""
    assert sample.uv is not None
    found = (len(sample.views.mask), sample.views.mask.shape[1], len(sample.uv.mask))
    wanted = (card.views, card.view_resolution, card.uv_resolution)
    if found != wanted:
        raise UserError(
            f"sample {sample.uid}: views, pixels and texels are {found}, the checkpoint's {wanted}; build the dataset "
            f"with --views.resolution {card.view_resolution} --uv.resolution {card.uv_resolution}"
        )


def measure_result(
    sample: TextureSample, result: MeshTexture, task: str, perceptual: PerceptualDistance | None = None
) -> Measured:
    """Compare a generated texture and its views with the true ones."""
    assert sample.uv is not None and sample.mesh is not None
    views, uv = sample.views, sample.uv
    render = RenderConfig(resolution=views.mask.shape[1])
    renders = render_baked(sample.mesh, result.uv, sample.cameras, render, CpuRasterizer(), uv.opacity).rgb
    seen = Seen(position=views.position, normal=views.normal, mask=views.mask, cameras=sample.cameras)
    unseen = uv.mask & ~visible_texels(uv.position, uv.normal, uv.mask, seen)
    given = GIVEN[task]
    base = baselines(views.rgb[: None if given is None else max(1, given)], sample)
    figures = {
        "uv_psnr": capped_psnr(result.uv, uv.rgb, uv.mask),
        "uv_ssim": ssim(result.uv, uv.rgb, uv.mask),
        "fill_psnr": capped_psnr(base["fill"], uv.rgb, uv.mask),
        "nearest_psnr": capped_psnr(base["nearest"], uv.rgb, uv.mask),
        "render_psnr": capped_psnr(renders, views.rgb, views.mask),
        "view_to_uv_psnr": capped_psnr(result.views, renders, views.mask),
        "cross_view_step": cross_view_consistency(result.views, seen).step,
        "true_cross_view_step": cross_view_consistency(views.rgb, seen).step,
        "seam_step": seam_step(sample.mesh, result.uv),
        "true_seam_step": seam_step(sample.mesh, uv.rgb),
        "unseen_share": float(unseen.sum() / uv.mask.sum()),
    }
    figures |= map_psnr(result.maps, uv)
    if unseen.any():
        figures["unseen_psnr"] = capped_psnr(result.uv, uv.rgb, unseen)
    if perceptual and min(uv.mask.shape) >= SMALLEST:
        figures["uv_lpips"] = perceptual(result.uv, uv.rgb, uv.mask)
    made = slice(given, None) if given is not None else slice(0)
    if len(views.mask[made]):
        pairs = list(zip(result.views[made], views.rgb[made], views.mask[made], strict=True))
        figures["view_psnr"] = capped_psnr(result.views[made], views.rgb[made], views.mask[made])
        figures["view_ssim"] = float(np.mean([ssim(*pair) for pair in pairs]))
        if perceptual and min(views.mask.shape[1:]) >= SMALLEST:
            figures["view_lpips"] = float(np.mean([perceptual(*pair) for pair in pairs]))
    return Measured(uid=sample.uid, figures=figures, renders=renders, true_views=views.rgb)


def summarise(measured: list[Measured]) -> dict[str, Interval]:
    """Average figures over the meshes that have them."""
    summary = {}
    for name in METRICS:
        values = np.array([one.figures[name] for one in measured if name in one.figures])
        if len(values):
            summary[name] = bootstrap(values)
    return summary


def compare_sets(measured: list[Measured], extractor: ImageFeatures) -> dict[str, Interval]:
    """Measure FID, KID and CMMD (the last two times 1000, as published) of all renders against all true views; FID is
    bootstrapped over meshes, the others have the jackknife's interval."""
    made = [extractor(one.renders) for one in measured]
    true = [extractor(one.true_views) for one in measured]

    def fid(rows: np.ndarray) -> float:
        return frechet_distance(pooled(made[i] for i in rows), pooled(true[i] for i in rows))

    name = extractor.name
    found = {f"fid ({name})": bootstrap(np.arange(len(measured)), fid, resamples=20)}
    if len(measured) >= FEWEST:
        found[f"kid x 1000 ({name})"] = thousandfold(kernel_distance_by_mesh(made, true, cubic))
        if name == "clip":
            found["cmmd (clip)"] = thousandfold(kernel_distance_by_mesh(made, true, gaussian))
    return found


def thousandfold(interval: Interval) -> Interval:
    """Multiply an interval by 1000."""
    return Interval(value=1000 * interval.value, low=1000 * interval.low, high=1000 * interval.high)


def show(summary: dict[str, Interval], count: int, task: str) -> None:
    """Print the summary as a table, and log it."""
    log_event("evaluated", meshes=count, task=task, **{name: round(i.value, 5) for name, i in summary.items()})
    rows = [(METRICS.get(name, name), f"{i.value:.4g}", f"{i.low:.4g} to {i.high:.4g}") for name, i in summary.items()]
    if not logs_json():
        print_table(("metric", "mean", "95 % interval"), rows, title=f"{task}, {count} meshes")
