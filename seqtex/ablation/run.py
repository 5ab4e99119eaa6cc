"""`seqtex ablate`: what each idea of the model is worth, measured on made-up meshes that were not trained on."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pipeline.config import BuildConfig
from pipeline.executor.build import build
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.errors import UsageError, UserError, require_between
from schemas.mesh import MeshRef
from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from schemas.storage import write_file
from seqtex.ablation.materials import FIGURES as MATERIALS
from seqtex.ablation.materials import compare, mean_material
from seqtex.ablation.table import COMPARED, Outcome, write_results
from seqtex.cli.evaluate import Measured, measure_group
from seqtex.cli.terminal.console import bar, build_progress, log_event, training_note
from training.config import TrainConfig, preset
from training.diffusion.latents import Extensions
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, load_checkpoint
from training.maps import RELEASED_MAPS
from training.objective import HeldOutModel, flow_errors
from training.train import train

HELD_OUT_SEED = 1
"""Seed of the procedural source for held-out meshes; the training meshes have seed 0."""
TRIAL_STEPS = 60
"""Steps of the run that measures how fast this machine trains."""
TRAINING_SHARE = 0.75
"""Share of the time for training; the rest is for loading and measuring."""
TASK = "img2tex"
BATCH = 4
"""Meshes textured together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One variant; its defaults are the tiny preset's."""

    geometry_attention: Literal["off", "mv", "mv_uv"] = "mv_uv"
    uv_branch: Literal["decoupled", "shared"] = "decoupled"
    uv_divisor: int = 1
    """The UV map has so many times fewer texels a side."""
    mv_only_ratio: float = 0.3
    view_hint: bool = True
    position_rope: bool = True
    maps: tuple[str, ...] = RELEASED_MAPS


CELLS = {
    "base": Cell(),
    "hint-off": Cell(view_hint=False),
    "rope-grid": Cell(position_rope=False),
    "paper": Cell(view_hint=False, position_rope=False),
    "geometry-off": Cell(geometry_attention="off"),
    "geometry-mv": Cell(geometry_attention="mv"),
    "uv-half": Cell(uv_divisor=2),
    "uv-shared": Cell(uv_branch="shared"),
    "mv_only-0": Cell(mv_only_ratio=0.0),
    "mv_only-0.6": Cell(mv_only_ratio=0.6),
    "materials": Cell(maps=(*RELEASED_MAPS, "metallic_roughness")),
}
"""The base, and what differs from it in one thing; `paper`: in both that are ours. `materials` is for assets that have
them."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Size of the comparison."""

    cells: list[str] = field(default_factory=lambda: [name for name in CELLS if name != "materials"])
    """Variants to train, `base` among them."""
    seeds: int = 3
    """Runs of each variant: other weights at the start, another order of the data."""
    steps: int | None = None
    """Steps of each run; None: as many as the time allows, the same for all."""
    mixed_assets: int = 80
    """Training meshes of every kind, some of which have views alone."""
    clean_assets: int = 120
    """Training meshes with a texture and good UVs."""
    held_out_meshes: int = 16
    """Meshes that are textured and measured, none of them trained on."""
    view_resolution: int = 64
    """Pixels a side of a view."""
    uv_resolution: int = 128
    """Texels a side of a UV map."""
    sample_steps: int = 8
    """Denoising steps."""
    workers: int = 2
    """Processes that build."""
    materials: bool = False
    """Assets whose metallic and roughness follow from position, with given views under light, which shows both."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.cells if name not in CELLS]:
            raise UsageError(f"cells: there is no {unknown[0]!r}; there are {', '.join(CELLS)}")
        if "base" not in self.cells:
            raise UsageError("cells: base is missing, which the others are compared with")
        if "materials" in self.cells and not self.materials:
            raise UsageError("cells: materials needs assets that have them; give --materials true")
        require_between("seeds", self.seeds, 1, 100)


def ablate(cfg: AblateConfig, out: Path = Path("out/ablation"), minutes: float = 30.0) -> int:
    """Train the variants on one procedural dataset, equal steps each, and compare them on held-out meshes: by the loss
    of training at fixed noise levels, and by the textures that they make. Finished runs are kept: the same command goes
    on where time ran out. Writes table.md, table.json and plot.svg.

    For a sure answer to one question ask it alone, with more seeds: --cells '[base, geometry-off]' --seeds 8.

    Args:
        out: folder for everything that is made
        minutes: time for all of it; no run begins after that
    """
    start = time.monotonic()
    cfg = agreed(cfg, out)
    for divisor in dict.fromkeys(CELLS[name].uv_divisor for name in cfg.cells):
        build_data(cfg, out, divisor)
    steps = steps_of(cfg, out, 60 * minutes - (time.monotonic() - start))
    runs = [(name, seed) for seed in range(cfg.seeds) for name in cfg.cells]
    outcomes = []
    for number, (name, seed) in enumerate(runs):
        done = out / "runs" / f"{name}-{seed}" / "result.json"
        if not done.is_file():
            if time.monotonic() - start > 60 * minutes:
                log_event("out_of_time", runs_left=len(runs) - number, remedy="run the same command again")
                break
            run_cell(cfg, out, name, seed, steps, f"run {number + 1} of {len(runs)}, {name}")
        outcomes.append(Outcome(**json.loads(done.read_text())))
    if not any(outcome.cell == "base" for outcome in outcomes):
        raise UserError(f"{out}: no run was finished in {minutes:g} minutes; raise --minutes, or lower --steps")
    write_results(out, outcomes, asdict(cfg) | {"steps": steps})
    return 0


def agreed(cfg: AblateConfig, out: Path) -> AblateConfig:
    """The configuration, once it is seen to be that of the runs which are there. Seeds and variants may be added."""
    path = out / "config.json"
    entries = json.loads(json.dumps(asdict(cfg)))
    if path.is_file():
        before = json.loads(path.read_text())
        for name in before.keys() - {"cells", "seeds", "workers"}:
            if before[name] != entries[name]:
                raise UserError(
                    f"{out}: made with {name}={before[name]}, now {entries[name]}; give that, or another --out"
                )
    out.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(entries, indent=1).encode() + b"\n")
    return cfg


def build_data(cfg: AblateConfig, out: Path, divisor: int) -> None:
    """The training set and the held-out set at one resolution of the UV map; nothing where they are finished."""
    uv = cfg.uv_resolution // divisor
    views = RenderConfig(resolution=cfg.view_resolution, lit="pbr" if cfg.materials else "none")
    build_cfg = BuildConfig(assets_per_job=16, views=views, uv=BakeConfig(resolution=uv), materials=cfg.materials)
    assets, source = out / "assets", partial(procedural, materials=cfg.materials)

    def training() -> Iterator[MeshRef]:
        return chain(source(cfg.mixed_assets, assets), source(cfg.clean_assets, assets, clean=True))

    def held_out() -> Iterator[MeshRef]:
        return source(2 * cfg.held_out_meshes, assets / "held_out", seed=HELD_OUT_SEED, clean=True)

    for name, refs in (("training", training()), ("held_out", held_out())):
        with build_progress() as notify:
            build(refs, dataset(out, name, divisor), build_cfg, cfg.workers, notify)


def dataset(out: Path, name: str, divisor: int) -> Path:
    return out / "data" / f"{name}-{divisor}"


def steps_of(cfg: AblateConfig, out: Path, seconds: float) -> int:
    """Steps of every run; once decided, they stay."""
    path = out / "steps.json"
    if path.is_file():
        return int(json.loads(path.read_text())["steps"])
    steps = cfg.steps
    if steps is None:
        rates: list[float] = []
        trial = out / "trial"
        train(
            cell_config(cfg, out, CELLS["base"], trial, 0, TRIAL_STEPS),
            lambda row: rates.append(row.get("samples_per_s", 0.0)),
        )
        shutil.rmtree(trial)
        per_second = rates[-1] / preset("tiny").data.batch_size
        steps = max(TRIAL_STEPS, int(TRAINING_SHARE * seconds / (cfg.seeds * len(cfg.cells)) * per_second))
        log_event("steps", steps=steps, steps_per_second=round(per_second, 2))
    write_file(path, json.dumps({"steps": steps}).encode() + b"\n")
    return steps


def cell_config(cfg: AblateConfig, out: Path, cell: Cell, directory: Path, seed: int, steps: int) -> TrainConfig:
    """The tiny preset with one thing changed."""
    tiny = preset("tiny")
    data = replace(
        tiny.data,
        directory=dataset(out, "training", cell.uv_divisor),
        mv_only_ratio=cell.mv_only_ratio,
        augment=replace(tiny.data.augment, lit=float(cfg.materials)),
    )
    return replace(
        tiny,
        data=data,
        model=replace(
            tiny.model,
            geometry_attention=cell.geometry_attention,
            uv_branch=cell.uv_branch,
            view_hint=cell.view_hint,
            position_rope=cell.position_rope,
            maps=cell.maps,
        ),
        run=replace(
            tiny.run,
            directory=directory,
            seed=seed,
            max_steps=steps,
            state_every=500,
            logger="none",
        ),
    )


def run_cell(cfg: AblateConfig, out: Path, name: str, seed: int, steps: int, title: str) -> None:
    """Trains and measures one variant; `result.json`, written last, says that it is done."""
    directory, cell = out / "runs" / f"{name}-{seed}", CELLS[name]
    with bar(title, 100, "%") as update:
        trained = train(
            cell_config(cfg, out, cell, directory, seed, steps),
            lambda row: update(int(100 * row["progress"]), training_note(row)),
        )
    meshes = measure(cfg, out, cell, trained.checkpoint)
    names = dict.fromkeys(figure for row in meshes for figure in row if figure != "uid")
    figures = {figure: fmean(row[figure] for row in meshes if figure in row) for figure in names}
    losses = [row["loss"] for row in trained.losses[-len(trained.losses) // 10 :] if row["loss"] is not None]
    outcome = Outcome(cell=name, seed=seed, loss=fmean(losses), seconds=trained.seconds, figures=figures, meshes=meshes)
    shutil.rmtree(directory / "states")
    write_file(directory / "result.json", json.dumps(asdict(outcome), indent=1).encode() + b"\n")
    rounded = {figure: round(figures[figure], 4) for figure in COMPARED}
    log_event("run", cell=name, seed=seed, **rounded, seconds=round(trained.seconds))


def measure(cfg: AblateConfig, out: Path, cell: Cell, checkpoint: Path) -> list[dict[str, Any]]:
    """Figures of each held-out mesh, textured from its front view; mesh i with noise i, whatever the variant. Beside
    them the loss of training, at the same noise levels and with the same noise for all variants and seeds."""
    network = load_checkpoint(checkpoint)
    held_out, training = (dataset(out, name, cell.uv_divisor) for name in ("held_out", "training"))
    samples = list(islice(stored_samples(held_out, Regime.TEXTURED), cfg.held_out_meshes))
    rows = [{"uid": one.uid} | one.figures for one in textured(cfg, network, samples, cfg.materials)]
    losses = held_out_losses(network, samples, TASK, cfg.materials)
    if len(cell.maps) > 1:
        constant = mean_material(training)
        for row, sample, unlit in zip(rows, samples, textured(cfg, network, samples, False), strict=True):
            row |= compare(sample, constant, network.codec)
            row |= {f"unlit_{name}": unlit.figures[name] for name in MATERIALS}
    # the figure of the base colour, beside one that has nothing else
    return [row | loss | {"flow_uv": loss.get("flow_base_color", loss["flow_uv"])}
            for row, loss in zip(rows, losses, strict=True)]  # fmt: skip


def textured(cfg: AblateConfig, network: Checkpoint, samples: Sequence[TextureSample], lit: bool) -> Iterator[Measured]:
    """Texture samples from their front view and measure the results; sample i with noise i. lit: under light."""
    for first in range(0, len(samples), BATCH):
        group = list(samples[first : first + BATCH])
        seeds = [first + place for place in range(len(group))]
        yield from measure_group(group, network, SamplerConfig(steps=cfg.sample_steps), TASK, seeds, "cpu", lit=lit)


def held_out_losses(
    network: Checkpoint, samples: Sequence[TextureSample], task: str, lit: bool = False
) -> list[dict[str, float]]:
    """Return `flow_errors` of each sample by a finished checkpoint."""
    parts = HeldOutModel(
        model=network.model,
        codec=network.codec,
        encode_text=network.text_encoder.encode,
        extras=Extensions.of(network.model.config),
        shift=network.card.shift,
        device=next(network.model.parameters()).device,
    )
    return [flow_errors(parts, sample, number, task, lit=lit) for number, sample in enumerate(samples)]
