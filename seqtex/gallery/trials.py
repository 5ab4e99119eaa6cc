"""Textures of the demo: pictures of single ones, and a page with all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from geometry.raster_cpu import CpuRasterizer
from pipeline.render.views import RenderConfig, render_baked
from pipeline.report.images import side_by_side
from pipeline.report.pages import Section, write_page
from schemas.sample import TextureSample
from seqtex.gallery.comparison import compared
from seqtex.texturing import MeshTexture

PICTURE = RenderConfig(resolution=256, supersample=2)
"""Renders on the page."""
LABEL = 26
"""Height of a line of words in the picture, pixels."""
INK, PAPER = (235, 238, 244), (24, 28, 36)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One mesh textured from one image of it, compared with its true texture."""

    sample: TextureSample
    """The mesh with its true texture."""
    result: MeshTexture
    psnr_db: float
    """PSNR of the generated UV map over covered texels."""
    nearest_db: float
    """PSNR of a map whose texels copy the nearest pixel of the image."""
    fill_db: float
    """PSNR of a map filled with the mean foreground colour of the image."""

    def line(self) -> str:
        """Return its figures in words."""
        return f"{self.psnr_db:.1f} dB; nearest pixel {self.nearest_db:.1f}, fill {self.fill_db:.1f}"


def write_textures(dataset: Path, trials: Mapping[str, Sequence[Trial]]) -> Path:
    """Write a page with every texture, by kind of mesh, beside the true one."""
    sections = list[Section]()
    for kind, some in trials.items():
        for trial in some:
            views, uv = trial.sample.views, trial.sample.uv
            assert trial.sample.mesh is not None and uv is not None
            render = RenderConfig(resolution=views.mask.shape[1])
            cameras, made = trial.sample.cameras, trial.result
            renders = render_baked(trial.sample.mesh, made.uv, cameras, render, CpuRasterizer(threads=2), uv.opacity)
            pictures = compared(trial.sample, views.rgb[:1], made.views, made.uv, renders.rgb)
            title = f"{trial.sample.meta['caption']} ({kind})"
            sections.append(Section(title=title, text=trial.line(), pictures=pictures, legend=not sections))
    summary = (
        "Every mesh that was textured from one image, beside its true texture. PSNR over covered texels of the map."
    )
    return write_page(dataset, "demo-textures", "SeqTex Forge demo: textures", summary, sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renders:
    """A trial from its four cameras, sRGB: without texture, with the generated one, with the true one."""

    before: UInt8[np.ndarray, "views height width 3"]
    after: UInt8[np.ndarray, "views height width 3"]
    truth: UInt8[np.ndarray, "views height width 3"]


def render_trial(trial: Trial) -> Renders:
    """Render a trial's mesh."""
    rasterizer, cameras = CpuRasterizer(threads=2), trial.result.cameras
    assert trial.sample.uv is not None
    opacity = trial.sample.uv.opacity
    after = render_baked(trial.result.mesh, trial.result.uv, cameras, PICTURE, rasterizer, opacity)
    truth = render_baked(trial.result.mesh, trial.sample.uv.rgb, cameras, PICTURE, rasterizer, opacity)
    return Renders(before=clay(after.normal), after=after.rgb, truth=truth.rgb)


def trial_section(title: str, trial: Trial, renders: Renders) -> Section:
    """Show before, after and truth from the same four cameras, and the UV maps."""
    assert trial.sample.uv is not None
    pictures = {
        "the image given": enlarged(trial.sample.views.rgb[0]),
        "UV map, generated": enlarged(trial.result.uv),
        "UV map, true": enlarged(trial.sample.uv.rgb),
        "before: the bare mesh": side_by_side(renders.before),
        "after: the generated texture on the mesh": side_by_side(renders.after),
        "truth": side_by_side(renders.truth),
    }
    return Section(title=title, text=f"{trial.sample.meta['caption']}: {trial.line()}", pictures=pictures)


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
    """Shade a surface grey under a wide lamp up front to the left; black where there is no surface."""
    lamp = np.array([-0.4, -0.7, 0.6], np.float32) / np.float32(np.sqrt(1.01))
    covered = (normals != 0).any(axis=-1)
    shade = covered * (60 + 170 * (normals @ lamp / 2 + 0.5))
    return np.repeat(shade[..., None], 3, axis=-1).astype(np.uint8)
