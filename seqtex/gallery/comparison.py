"""Pages about generated textures: figures, and pictures of each mesh beside the true ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.report.images import cut_out, error_colors, side_by_side
from pipeline.report.pages import Section, store_picture, write_alone
from schemas.errors import explained
from schemas.sample import TextureSample, UvMaps
from training.maps import MATERIAL_MAPS

METRICS = {
    "uv_psnr": "UV map, PSNR over covered texels, dB",
    "uv_ssim": "UV map, SSIM over covered texels",
    "uv_lpips": "UV map, LPIPS over covered texels",
    "fill_psnr": "UV map filled with the mean colour, PSNR, dB",
    "nearest_psnr": "UV map of the nearest visible pixel's colour, PSNR, dB",
    "unseen_psnr": "UV map, PSNR over texels that no view sees, dB",
    "view_psnr": "generated views, PSNR over covered pixels, dB",
    "view_ssim": "generated views, SSIM",
    "view_lpips": "generated views, LPIPS over covered pixels",
    "render_psnr": "renders of the texture against the true views, PSNR, dB",
    "metallic_psnr": "metallic, PSNR over covered texels, dB",
    "roughness_psnr": "roughness, PSNR over covered texels, dB",
    "normal_tangent_psnr": "normals in tangent space, PSNR over covered texels, dB",
    "emissive_psnr": "emitted light, PSNR over covered texels, dB",
    "view_to_uv_psnr": "generated views against renders of the texture, PSNR, dB",
    "cross_view_step": "colour step of a point between two views",
    "true_cross_view_step": "colour step of a point between two true views",
    "seam_step": "colour step across chart borders",
    "true_seam_step": "colour step across chart borders of the true map",
    "unseen_share": "share of texels that no view sees",
}
"""Titles of an evaluation's figures by name."""
FIRST_FIGURES = (
    "uv_psnr", "fill_psnr", "nearest_psnr", "render_psnr", "view_psnr", "seam_step", "unseen_share",
    "metallic_psnr", "roughness_psnr", "normal_tangent_psnr", "emissive_psnr",
)  # fmt: skip
"""Columns of a table of meshes, as far as they have them."""
MAP_TITLES = {
    "metallic": "metallic", "roughness": "roughness", "normal_tangent": "normal map", "emissive": "emitted light",
}  # fmt: skip
"""Captions of what generated material maps hold, by the names of `MaterialMap.figures`."""
SIDE = 256
"""Least height of a picture, about, pixels."""
Interval = tuple[float, float, float]
"""Mean, and the ends of its 95 % interval."""


def evaluation_sections(
    summary: Mapping[str, Interval], meshes: Sequence[Mapping[str, Any]], links: str
) -> list[Section]:
    """Show the means of an evaluation, and its meshes, the worst first. links: of a mesh (`Section.links`)."""
    means = [
        (METRICS.get(name, name), f"{value:#.4g}", f"{low:#.4g} to {high:#.4g}")
        for name, (value, low, high) in summary.items()
    ]
    names = [name for name in FIRST_FIGURES if any(name in row for row in meshes)]
    ordered = sorted(meshes, key=lambda row: row.get("uv_psnr", 0.0))
    rows = [[str(row["uid"]), *(f"{row[name]:#.4g}" if name in row else "" for name in names)] for row in ordered]
    legend = "; ".join(f"{name}: {METRICS[name]}" for name in names)
    return [
        Section(title="Means", columns=("metric", "mean", "95 % interval"), rows=means),
        Section(title="Meshes", text=f"The worst first. {legend}.", columns=["uid", *names], rows=rows, links=links),
    ]


def compared(
    sample: TextureSample,
    given: UInt8[np.ndarray, "given height width 3"],
    views: UInt8[np.ndarray, "views height width 3"],
    uv: UInt8[np.ndarray, "uv uv 3"],
    renders: UInt8[np.ndarray, "views h w 3"],
    maps: Mapping[str, UInt8[np.ndarray, "uv uv 3"]] = MappingProxyType({}),
) -> dict[str, UInt8[np.ndarray, "rows columns c"]]:
    """Draw a generated texture beside the true one, by caption: what was given, both UV maps, both sets of views, the
    mesh with the generated map, and the errors of map and mesh. renders: of the mesh with the generated map, from the
    cameras of the sample; of any size, without their error if it is not that of the views. maps: generated material
    maps (`MeshTexture.maps`), drawn by what their channels hold."""
    assert sample.uv is not None
    true, mask = sample.views, sample.uv.mask
    pictures = {
        "given": side_by_side(enlarged(given)) if len(given) else None,
        "UV map, generated": enlarged(cut_out(uv, mask)[None])[0],
        "UV map, true": enlarged(cut_out(sample.uv.rgb, mask)[None])[0],
        "UV map, error": _error(uv, sample.uv.rgb, mask),
        **_compared_maps(maps, sample.uv),
        "views, generated": side_by_side(enlarged(views)),
        "views, true": side_by_side(enlarged(true.rgb)),
        "the mesh with the generated map": side_by_side(enlarged(renders)),
    }
    if renders.shape == true.rgb.shape:
        errors = [_error(*one) for one in zip(renders, true.rgb, true.mask, strict=True)]
        pictures["its error against the true views"] = side_by_side(np.stack(errors))
    return {caption: picture for caption, picture in pictures.items() if picture is not None}


def _compared_maps(
    maps: Mapping[str, UInt8[np.ndarray, "uv uv 3"]], true: UvMaps
) -> dict[str, UInt8[np.ndarray, "rows columns c"]]:
    """Draw generated material maps, grey where they are one channel, beside the true ones where there are some."""
    pictures = {}
    for name, image in maps.items():
        for figure, channels in MATERIAL_MAPS[name].figures.items():
            wide = list(channels) if len(channels) == 3 else [channels[0]] * 3
            made, title = image[..., wide], MAP_TITLES[figure]
            pictures[f"{title}, generated"] = enlarged(cut_out(made, true.mask)[None])[0]
            if true.materials is not None:
                truth = MATERIAL_MAPS[name].pack(true.materials)[..., wide]
                pictures[f"{title}, true"] = enlarged(cut_out(truth, true.mask)[None])[0]
                pictures[f"{title}, error"] = _error(made, truth, true.mask)
    return pictures


def _error(
    image: UInt8[np.ndarray, "height width 3"],
    true: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "rows columns 4"]:
    error = np.abs(image.astype(np.int16) - true).max(axis=-1).astype(np.uint8)
    return enlarged(error_colors(error, mask, SIDE)[None])[0]


def enlarged(images: UInt8[np.ndarray, "count height width c"]) -> UInt8[np.ndarray, "count rows columns c"]:
    """Repeat the pixels of small images, so that each can be seen."""
    factor = max(1, SIDE // images.shape[1])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPage:
    """A page about an evaluation, in a folder of its own that a browser opens from disk. Pictures are written mesh by
    mesh."""

    folder: Path
    meshes: list[tuple[dict[str, Any], Section]] = field(default_factory=list)
    """Figures of each mesh, with its uid, and its section."""

    def add(
        self, sample: TextureSample, figures: Mapping[str, float], pictures: Mapping[str, UInt8[np.ndarray, "h w c"]]
    ) -> None:
        """Write the pictures of a mesh (`compared`). Raises UserError where the folder cannot be written."""
        number = len(self.meshes)
        with explained(self.folder, "the page cannot be written", "fix that or give another --report"):
            stored = {
                caption: store_picture(self.folder, f"{number:05d}-{index}", picture)
                for index, (caption, picture) in enumerate(pictures.items())
            }
        text = "; ".join(f"{name} {figures[name]:#.4g}" for name in FIRST_FIGURES if name in figures)
        caption = str(sample.meta.get("caption", ""))
        section = Section(title=sample.uid, anchor=sample.uid, text=f"{caption}. {text}".lstrip(". "), pictures=stored)
        self.meshes.append(({"uid": sample.uid} | dict(figures), section))

    def write(self, title: str, summary: str, means: Mapping[str, Interval]) -> Path:
        """Write `index.html`, the worst mesh first."""
        table, worst = [row for row, _ in self.meshes], sorted(self.meshes, key=lambda mesh: mesh[0]["uv_psnr"])
        first, second = evaluation_sections(means, table, "#")
        with explained(self.folder, "the page cannot be written", "fix that or give another --report"):
            sections = [first, replace(second, legend=True), *(section for _, section in worst)]
            return write_alone(self.folder, title, summary, sections)
