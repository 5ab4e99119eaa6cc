"""Write the results of `seqtex demo`: textured meshes, a picture and an HTML report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from geometry.raster_cpu import CpuRasterizer
from pipeline.render.views import RenderConfig, render_baked
from pipeline.report.images import data_uri, side_by_side
from pipeline.report.page import Figure, Section, loss_curve, render_page
from schemas.dataset import read_ledger, write_file
from schemas.sample import TextureSample
from seqtex.texturing import MeshTexture
from training.train import TrainResult

PICTURE = RenderConfig(resolution=256, supersample=2)
"""Renders on the page."""
LABEL = 26
"""Pixels of a line of words in the picture."""
INK, PAPER = (235, 238, 244), (24, 28, 36)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One mesh textured from one image of it, beside the truth."""

    sample: TextureSample
    """The truth."""
    result: MeshTexture
    psnr_db: float
    """Generated UV map against the true one, over covered texels."""
    nearest_db: float
    """The same where each texel copies the nearest pixel of the image."""
    fill_db: float
    """The same for a map filled with the mean foreground colour of the image."""

    def line(self) -> str:
        """Write its figures in words."""
        return f"{self.psnr_db:.1f} dB; nearest pixel {self.nearest_db:.1f}, fill {self.fill_db:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renders:
    """A trial from its four cameras, sRGB."""

    before: UInt8[np.ndarray, "views height width 3"]
    after: UInt8[np.ndarray, "views height width 3"]
    truth: UInt8[np.ndarray, "views height width 3"]


def write_results(trial: Trial, out: Path, name: str) -> None:
    """Write the textured mesh, and the image it was textured from."""
    trial.result.save(out / f"{name}.glb")
    Image.fromarray(trial.sample.views.rgb[0]).save(out / f"{name}_image.png")


def write_report(
    out: Path,
    dataset: Path,
    samples: Sequence[TextureSample],
    trained: TrainResult,
    shown: tuple[Trial, Trial],
    table: tuple[Sequence[str], Sequence[tuple[str, float, float, float]]],
    verdict: str,
) -> None:
    """Write `report.html` and `picture.png`. shown: a training mesh and a held-out one. table: columns and rows."""
    columns, rows = table
    titles = ("A mesh it was trained on", "A mesh it never saw")
    renders = [render_trial(trial) for trial in shown]
    scores = Section(
        title=f"Texture from one image: {verdict}",
        text="How near the generated UV map is to the true one, PSNR in dB over covered texels; higher is better. "
        "Without any learning, a texel can copy the nearest pixel of the image, or all take its mean colour.",
        columns=columns,
        rows=[(name, *(f"{value:.1f}" for value in values)) for name, *values in rows],
    )
    losses = [row["loss"] for row in trained.losses]
    curve = Section(
        title="Training loss",
        text=f"{trained.parameters / 1e6:.1f} M parameters, {len(losses):,} steps in {trained.seconds:.0f} s; each "
        "step and the running mean, log scale.",
        svg=loss_curve([row["step"] for row in trained.losses], losses),
    )
    page = render_page(
        title="SeqTex Forge demo",
        summary="A dataset from procedural meshes, a model trained on it, and two meshes textured by that model.",
        rows=[outcome.row() for part in read_ledger(dataset) for outcome in part.outcomes],
        samples=samples,
        sections=[scores, *map(trial_section, titles, shown, renders), curve],
    )
    parts = [overview(title, trial, each) for title, trial, each in zip(titles, shown, renders, strict=True)]
    Image.fromarray(np.concatenate(parts)).save(out / "picture.png", optimize=True)
    write_file(out / "report.html", page.encode())


def render_trial(trial: Trial) -> Renders:
    rasterizer, cameras = CpuRasterizer(threads=2), trial.result.cameras
    assert trial.sample.uv is not None
    opacity = trial.sample.uv.opacity
    after = render_baked(trial.result.mesh, trial.result.uv, cameras, PICTURE, rasterizer, opacity)
    truth = render_baked(trial.result.mesh, trial.sample.uv.rgb, cameras, PICTURE, rasterizer, opacity)
    return Renders(before=clay(after.normal), after=after.rgb, truth=truth.rgb)


def trial_section(title: str, trial: Trial, renders: Renders) -> Section:
    """Show before, after and truth from the same four cameras, and the UV maps side by side."""
    assert trial.sample.uv is not None
    pictures = {
        "the image given": enlarged(trial.sample.views.rgb[0]),
        "before: the bare mesh": side_by_side(renders.before),
        "after: the generated texture on the mesh": side_by_side(renders.after),
        "truth": side_by_side(renders.truth),
        "UV map, generated": trial.result.uv,
        "UV map, true": trial.sample.uv.rgb,
    }
    figures = [Figure(src=data_uri(picture), caption=caption) for caption, picture in pictures.items()]
    return Section(title=title, text=f"{trial.sample.meta['caption']}: {trial.line()}", figures=figures)


def overview(title: str, trial: Trial, renders: Renders) -> UInt8[np.ndarray, "height width 3"]:
    """Join the image given and the textured mesh from four sides; below, the bare mesh and the truth."""
    cells = np.stack([enlarged(trial.sample.views.rgb[0]), *renders.after])
    below = np.stack([renders.before[0], *renders.truth])
    width = cells.shape[2] * len(cells)
    rows = [
        words(f"{title}: {trial.line()}. The image given, then the mesh with the generated texture", width),
        side_by_side(cells),
        words("The bare mesh, then the true texture", width),
        side_by_side(below),
    ]
    return np.concatenate(rows)


def enlarged(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Resize an image to the size of the renders."""
    size = (PICTURE.resolution, PICTURE.resolution)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def words(text: str, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a line of text as a strip of the picture."""
    strip = Image.new("RGB", (width, LABEL), PAPER)
    ImageDraw.Draw(strip).text((8, 4), text, fill=INK, font=ImageFont.load_default(15))
    return np.asarray(strip)


def clay(normals: Float32[np.ndarray, "views height width 3"]) -> UInt8[np.ndarray, "views height width 3"]:
    """Grey under a wide lamp up front to the left; black where there is no surface."""
    lamp = np.array([-0.4, -0.7, 0.6], np.float32) / np.float32(np.sqrt(1.01))
    covered = (normals != 0).any(axis=-1)
    shade = covered * (60 + 170 * (normals @ lamp / 2 + 0.5))
    return np.repeat(shade[..., None], 3, axis=-1).astype(np.uint8)
