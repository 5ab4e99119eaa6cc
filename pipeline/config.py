"""The whole configuration of a build."""

from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_type_hints

from geometry.cameras import RigConfig
from pipeline.blender.host import REMEDY, BlenderConfig, BlenderProgram, tried
from pipeline.filter.duplicates import DuplicatesConfig
from pipeline.filter.rules import FilterConfig
from pipeline.mesh_io.preflight import PreflightConfig, UpAxis
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, require_views_fit
from pipeline.sandbox.child import LimitsConfig
from pipeline.seqtex_layouts.renders import RendersConfig
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.selection import SelectConfig
from pipeline.sources.tables.scores import recorded as recorded_scores
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import DatasetInfo, recipe
from schemas.errors import UsageError, UserError
from schemas.storage import Location

Config = TypeVar("Config")

LATER_OPTIONS: dict[str, Any] = {
    "up_axis": "y",
    "materials": False,
    "filter": {
        "min_metallic_db": 0.0,
        "min_roughness_db": 0.0,
        "min_emissive_db": 0.0,
        "max_normal_error_deg": 180.0,
        "max_constant_material_share": 1.0,
    },
    "select": {"scores": "", "where": "", "texture_resolution": 1024, "min_texture_resolution": None},
}
"""Options that datasets of earlier versions lack: recorded where they differ from this default."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Everything that decides what a dataset holds, its assets aside."""

    assets_per_job: int | None = None
    """Assets in one job, the unit of work and of resume; by default a 64th of the source's, at most 64 (ours)."""
    up_axis: UpAxis = "y"
    """The axis that points up in OBJ, OFF, PLY and STL files, which do not say it; all other formats do."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """Checks before an asset is opened."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Thresholds that an accepted asset meets."""
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    """Assets that are in already."""
    unwrap: UnwrapConfig = field(default_factory=UnwrapConfig)
    """UV layouts."""
    rig: RigConfig = field(default_factory=RigConfig)
    """Placement of the cameras."""
    views: RenderConfig = field(default_factory=RenderConfig)
    """Multi-view images."""
    materials: bool = False
    """Store metallic, roughness, shading normals and emitted light too, in views and UV maps."""
    rasterizer: Literal["cpu", "cuda"] = "cpu"
    """Rasteriser of views and maps: `cuda` is nvdiffrast (extra `gpu`), whose edges differ by fractions of a pixel."""
    uv: BakeConfig = field(default_factory=BakeConfig)
    """Texture-space maps."""
    renders: RendersConfig = field(default_factory=RendersConfig)
    """Assets that come as images."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """Resources that one asset may use."""
    blender: BlenderConfig = field(default_factory=BlenderConfig)
    """For formats that only Blender reads, and for lit views by Cycles."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """Selection of assets by scores or annotations."""
    objaverse: ObjaverseConfig = field(default_factory=ObjaverseConfig)
    """Servers and cache of Objaverse's assets."""

    def __post_init__(self) -> None:
        require_views_fit(self.rig.view_count, self.views.resolution)
        if self.views.lit == "cycles" and not self.blender.python:
            raise UsageError(f"views.lit is cycles, which needs Blender: {REMEDY}")

    def recorded(self) -> dict[str, Any]:
        """Return the part of the configuration that `dataset.json` records: what decides a dataset's bytes. Mirror,
        cache and patience may change between two runs of one build, Blender and the table of scores may lie
        elsewhere. Raises UserError where that table cannot be read."""
        scored = replace(self, select=replace(self.select, scores=recorded_scores(self.select.scores)))
        entries = {name: entry for name, entry in asdict(scored).items() if name != "objaverse"}
        return recipe(_without_defaults(entries, LATER_OPTIONS))


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Programs, folders and servers of this machine, which a dataset does not record, and the most that it may use."""

    blender: BlenderProgram = field(default_factory=BlenderProgram)
    """For a dataset that was built with Blender."""
    objaverse: ObjaverseConfig = field(default_factory=ObjaverseConfig)
    """Servers and cache of Objaverse's assets."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """The most that one asset may use: a dataset that was built with more is refused."""
    folder: str = ""
    """Folder of the assets, where it is another one than in the build (default: `folders.json` of the dataset)."""


def _without_defaults(entries: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Leave out the entries that have these defaults, in sections too."""
    inner = {name: _without_defaults(entries[name], own) for name, own in defaults.items() if isinstance(own, dict)}
    return {
        name: inner.get(name, entry) for name, entry in entries.items() if entry != defaults.get(name, NotImplemented)
    }


def config_from_dict(kind: type[Config], entries: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict` for a configuration that went through JSON."""
    hints, values = get_type_hints(kind), dict(entries)
    for name, value in values.items():
        if is_dataclass(hints[name]):
            values[name] = config_from_dict(hints[name], value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return kind(**values)


def recorded_config(out: Location, info: DatasetInfo, python: str) -> BuildConfig:
    """The configuration in `dataset.json`, with `python` for Blender if the dataset was built with it. Raises UserError
    where it is another version's."""
    try:
        blender = info.config["blender"]
        program = {"python": python if blender["python"] else ""}
        return config_from_dict(BuildConfig, info.config | {"blender": blender | program})
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{out / 'dataset.json'}: the configuration of another version of this program ({error}); use that one, "
            "or build into a new folder"
        ) from error


def built_config(out: Location, info: DatasetInfo, machine: MachineConfig | None = None) -> BuildConfig:
    """The configuration in `dataset.json`, with the programs and servers of this machine. Raises UserError as
    `recorded_config`, where it lets an asset use more than this machine allows, and where Blender is needed but not
    given, or does not start."""
    machine = machine or MachineConfig()
    cfg = recorded_config(out, info, machine.blender.python)
    require_blender(out, info, machine.blender)
    for name, most in asdict(machine.limits).items():
        if (asked := getattr(cfg.limits, name)) > most:
            raise UserError(
                f"{out}: built with limits.{name}={asked:g}, more than the {most:g} that an asset may use here; "
                f"give --limits.{name} {asked:g} if you trust this dataset with it"
            )
    return replace(cfg, blender=tried(cfg.blender), objaverse=machine.objaverse)


def require_blender(out: Location, info: DatasetInfo, program: BlenderProgram) -> None:
    """Raise UserError where a dataset was built with Blender and none is given: it is not taken from the dataset."""
    if info.config["blender"]["python"] and not program.python:
        raise UserError(f"{out}: built with Blender, whose program a dataset does not name; {REMEDY}")
