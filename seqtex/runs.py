"""Build a dataset and train on one, from Python: `seqtex.build` and `seqtex.train`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from schemas.errors import UsageError
from schemas.mesh import MeshRef
from schemas.storage import location

if TYPE_CHECKING:
    from pipeline.dataset.state import BuildReport
    from pipeline.executor.progress import BuildEvent
    from training.train import TrainResult

Config = TypeVar("Config")
Options = Mapping[str, Any]
"""Fields of one section, e.g. `views={"resolution": 64}`; those that are missing keep their defaults."""


class BuildOptions(TypedDict, total=False):
    """Options of a build, as `seqtex build --help` explains them: `views={"resolution": 64}` is
    `--views.resolution 64`."""

    assets_per_job: int | None
    up_axis: Literal["y", "z"]
    preflight: Options
    filter: Options
    duplicates: Options
    unwrap: Options
    rig: Options
    views: Options
    rasterizer: Literal["cpu", "cuda"]
    uv: Options
    materials: bool
    renders: Options
    limits: Options
    blender: Options
    select: Options
    objaverse: Options


class TrainOptions(TypedDict, total=False):
    """Options of a training run, as `seqtex train --help` explains them."""

    data: Options
    model: Options
    latents: Options
    flow: Options
    tasks: Options
    optimizer: Options
    validation: Options
    run: Options


def build(
    source: str | Iterable[MeshRef],
    out: str | Path,
    *,
    workers: int = 1,
    address: str | None = None,
    run: Options | None = None,
    notify: "Callable[[BuildEvent], None] | None" = None,
    **options: Unpack[BuildOptions],
) -> "BuildReport":
    """Build the dataset of `source` in `out`, or finish one that was interrupted, and return its counts.

    source: `folder:PATH`, `procedural:N`, ... as for `seqtex build --source`, or the assets themselves. out: folder, or
    URL of an object store. workers: processes on this machine. address: join this Ray cluster instead. run: options of
    `--run.*`. notify: gets an event whenever a job ends. Raises UserError as `seqtex build` does."""
    from geometry.raster_cuda import require_cuda
    from pipeline.blender.host import tried
    from pipeline.config import BuildConfig
    from pipeline.executor.build import build as build_dataset
    from pipeline.executor.scheduler import RunConfig

    cfg = changed(BuildConfig(), options)
    cfg = replace(cfg, blender=tried(cfg.blender))
    if cfg.rasterizer == "cuda" and address is None:
        require_cuda()
    return build_dataset(source, location(out), cfg, workers, notify, address, changed(RunConfig(), run or {}, "run."))


def train(
    dataset: str | Path,
    directory: str | Path,
    *,
    preset: str = "tiny",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    **options: Unpack[TrainOptions],
) -> "TrainResult":
    """Train SeqTex on a dataset, or resume the run in `directory`, and return its checkpoint and losses.

    dataset: folder or URL that `seqtex build` wrote to. preset: `tiny` (CPU), `small` (one GPU) or `full`
    (Wan2.1-1.3B), the defaults of all other options. report: gets the loss and speed of every step. Raises UserError as
    `seqtex train` does."""
    from training.config import preset as named_preset
    from training.train import train as run_training

    place = location(dataset).expanduser()
    data = {"directory": place} if isinstance(place, Path) else {"directories": {str(place): 1.0}}
    where = {"data": data, "run": {"directory": Path(directory)}}
    return run_training(changed(changed(named_preset(preset), options), where), report)


def changed(config: Config, options: Mapping[str, Any], prefix: str = "") -> Config:
    """Return a copy of a configuration with some fields changed; a mapping changes fields of the section it names.

    Raises UsageError when there is no such field."""
    assert is_dataclass(config) and not isinstance(config, type)
    names = [field.name for field in fields(config)]
    values = {}
    for name, value in options.items():
        if name not in names:
            raise UsageError(f"{prefix}{name}: no such option; give one of {', '.join(names)}")
        section = getattr(config, name)
        nested = is_dataclass(section) and isinstance(value, Mapping)
        values[name] = changed(section, value, f"{prefix}{name}.") if nested else value
    return replace(config, **values)
