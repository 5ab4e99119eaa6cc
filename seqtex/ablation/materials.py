"""Generated metallic and roughness of held-out meshes, beside what needs no learning and what the codec keeps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from training.diffusion.encoders import LatentCodec
from training.diffusion.latents import uv_to_image, uv_to_model
from training.maps import MATERIAL_MAPS, map_psnr
from training.metrics.distribution import Interval, bootstrap

NAME = "metallic_roughness"
FIGURES = ("metallic_psnr", "roughness_psnr")
OTHERS = {
    "constant": "the mean of the training meshes",
    "unlit": "the same network, given the view without light",
    "codec": "the true map through the codec",
}
"""Prefixes of figures that generated maps are compared with."""
COLORS = {"uv_psnr": "Base colour over covered texels, dB", "flow_uv": "Flow loss of the base colour"}


def true_map(sample: TextureSample) -> UInt8[np.ndarray, "height width 3"]:
    """Return metallic and roughness of a sample, packed."""
    assert sample.uv is not None and sample.uv.materials is not None
    return MATERIAL_MAPS[NAME].pack(sample.uv.materials)


def mean_material(dataset: Path) -> UInt8[np.ndarray, "3"]:
    """Average the packed map over covered texels, then over the meshes of a dataset: the best constant guess."""

    def means() -> Iterator[np.ndarray]:
        for sample in stored_samples(dataset, Regime.TEXTURED):
            assert sample.uv is not None
            yield true_map(sample)[sample.uv.mask].mean(axis=0)

    return np.rint(np.mean(list(means()), axis=0)).astype(np.uint8)


@torch.no_grad()
def compare(sample: TextureSample, constant: UInt8[np.ndarray, "3"], codec: LatentCodec) -> dict[str, float]:
    """Measure what needs no network on a mesh: a constant, and the true map as the codec keeps it."""
    assert sample.uv is not None
    image = true_map(sample)
    kept = uv_to_image(codec.decode(codec.encode(uv_to_model(image)[None]))[0])
    found = {"constant": np.broadcast_to(constant, image.shape), "codec": kept}
    figures = {name: map_psnr({NAME: each}, sample.uv) for name, each in found.items()}
    return {f"{name}_{figure}": value for name, each in figures.items() for figure, value in each.items()}


def over_meshes(runs: Sequence[Sequence[dict[str, Any]]], figure: str, less: str | None = None) -> Interval:
    """Average a figure of the same meshes over seeds, then over meshes, with a bootstrap interval over meshes. less:
    the figure that is taken from it, mesh by mesh."""
    rows = [[row[figure] - (row[less] if less else 0.0) for row in meshes] for meshes in runs]
    return bootstrap(np.mean(rows, axis=0))


def material_lines(runs: Sequence[Sequence[dict[str, Any]]], alone: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Write a table in Markdown of runs, each the figures of its meshes. alone: runs of the same seeds without further
    maps."""
    both = [
        [row | {f"alone_{name}": other[name] for name in COLORS} for row, other in zip(*pair, strict=True)]
        for pair in zip(runs, alone, strict=True)
    ]

    def words(interval: Interval, sign: str = "") -> str:
        return f"{interval.value:{sign}.3g} [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]"

    lines = [
        f"Metallic and roughness over covered texels, PSNR in dB, means over {len(runs)} seeds and {len(runs[0])} "
        "meshes with 95 % bootstrap intervals over meshes; differences mesh by mesh.",
        "",
        "| map | generated | " + " | ".join(f"{title} | generated, against it" for title in OTHERS.values()) + " |",
        "|" + " --- |" * (2 + 2 * len(OTHERS)),
    ]
    for figure in FIGURES:
        cells = [figure.removesuffix("_psnr"), words(over_meshes(runs, figure))]
        for prefix in OTHERS:
            cells += [words(over_meshes(runs, f"{prefix}_{figure}")),
                      words(over_meshes(runs, figure, f"{prefix}_{figure}"), "+")]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    for name, title in COLORS.items():
        found = [words(over_meshes(both, each)) for each in (name, f"alone_{name}")]
        gap = words(over_meshes(both, name, f"alone_{name}"), "+")
        lines += ["", f"{title}: {found[0]} with metallic and roughness beside it, {found[1]} alone, difference {gap}."]
    return [*lines, ""]
