"""The ledger: one row per planned asset, with the reason for whatever happened to it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import pyarrow as pa

from schemas.errors import storable
from schemas.sample import Regime

MAX_DETAIL_CHARS = 4000
"""Longest detail of a rejection, which may quote an asset, in characters; the rest is cut off."""


class Status(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    """The asset is damaged or unsuited."""
    FAILED = "failed"
    """We could not process the asset: crash, timeout, resource limit."""


class Reason(StrEnum):
    """Closed list. A rejected or failed row always has one; an accepted `mv_only` row has the reason why it has no UV
    texture."""

    # bytes (preflight)
    EMPTY_FILE = "empty_file"
    NOT_A_MESH = "not_a_mesh"
    TRUNCATED = "truncated"
    LENGTH_MISMATCH = "length_mismatch"
    INVALID_JSON = "invalid_json"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNSUPPORTED_EXTENSION = "unsupported_extension"
    INVALID_STRUCTURE = "invalid_structure"
    OUT_OF_BOUNDS = "out_of_bounds"
    INDEX_OUT_OF_RANGE = "index_out_of_range"
    NON_FINITE = "non_finite"
    UNSAFE_URI = "unsafe_uri"
    MISSING_FILE = "missing_file"
    TOO_LARGE = "too_large"
    BAD_IMAGE = "bad_image"
    INPUT_CHANGED = "input_changed"
    UNSUPPORTED_FORMAT = "unsupported_format"
    """A format that this version of Blender does not read."""
    NEEDS_BLENDER = "needs_blender"
    """A format that is read through Blender alone, which is off."""
    # loading
    LOAD_ERROR = "load_error"
    NO_GEOMETRY = "no_geometry"
    UNSUPPORTED_MATERIAL = "unsupported_material"
    """Base colour made by shader nodes that no texture can carry."""
    INCONSISTENT_VIEWS = "inconsistent_views"
    """Rendered images whose cameras, depths and normals do not describe one surface."""
    # judgement
    TOO_FEW_FACES = "too_few_faces"
    TOO_MANY_FACES = "too_many_faces"
    DEGENERATE = "degenerate"
    FLAT = "flat"
    """A sheet: nothing to see from most sides."""
    UNTEXTURED = "untextured"
    """One single colour, or none."""
    TRANSPARENT = "transparent"
    BARELY_VISIBLE = "barely_visible"
    DUPLICATE = "duplicate"
    """Another asset of the dataset has the same bytes, or the same shape and colours."""
    # why a sample is multi-view-only
    UNWRAP_BUDGET = "unwrap_budget"
    UNWRAP_FAILED = "unwrap_failed"
    UNWRAP_POOR = "unwrap_poor"
    """No layout worth baking: too many charts, too little of the map used, too much stretch."""
    ROUND_TRIP = "round_trip"
    """Views rendered from the baked map differ too much from views of the source."""
    NO_MESH = "no_mesh"
    """The asset came as rendered images."""
    # failures
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    CRASHED = "crashed"
    BLENDER_FAILED = "blender_failed"
    """Blender ended without a result that can be read."""
    DOWNLOAD_FAILED = "download_failed"
    """The asset's file could not be had from the source's server, however often it was asked for."""


FAILURES = frozenset(
    {Reason.TIMEOUT, Reason.MEMORY_LIMIT, Reason.CRASHED, Reason.BLENDER_FAILED, Reason.DOWNLOAD_FAILED}
)
"""Reasons that say more about us than about the asset: `Status.FAILED`."""

LAYOUT_FAULTS = frozenset({Reason.UNWRAP_BUDGET, Reason.UNWRAP_FAILED, Reason.UNWRAP_POOR, Reason.NO_MESH})
"""Reasons why an asset may have no UV layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The reason why an asset is not in the dataset, as a value."""

    reason: Reason
    detail: str = ""
    """For a person: names the value and the threshold. A rejection by `pipeline.filter.rules` starts with the name of
    its rule and a colon. Whatever it quotes, a ledger can hold it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", storable(self.detail[:MAX_DETAIL_CHARS]))


class NoteKind(StrEnum):
    """Closed list of what loading leaves out of an asset, or reads in another way than the file says."""

    PART_LEFT_OUT = "part_left_out"
    """A primitive, object or node that cannot be drawn."""
    FACES_LEFT_OUT = "faces_left_out"
    """Faces that cannot be drawn."""
    DATA_IGNORED = "data_ignored"
    """Damaged data that what is drawn does not need."""
    COORDINATES_MISSING = "coordinates_missing"
    """Faces of a textured material without texture coordinates: drawn with the texture's corner."""
    MATERIAL_MISSING = "material_missing"
    """A material that no library defines: drawn white, or with the only material there is."""
    FILE_MISSING = "file_missing"
    """A file that can be done without."""
    FILE_FOUND_ELSEWHERE = "file_found_elsewhere"
    """A reference followed by another name than it has: other case, other form, or beside the asset."""
    IMAGE_REPLACED = "image_replaced"
    """An image read in place of another."""
    VALUE_CORRECTED = "value_corrected"
    """A value outside the format, read as it must be meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One kind of thing that loading left out of an asset or read differently."""

    kind: NoteKind
    count: int
    """Number of faces, parts, files or values of this kind."""
    detail: str
    """The first of them, for a person."""


MATERIAL_MEASUREMENTS = frozenset(
    {
        "varied_materials",
        "constant_material_share",
        "metallic_mean",
        "roughness_mean",
        "roughness_std",
        "normal_strength_deg",
        "emissive_share",
        "metallic_psnr",
        "roughness_psnr",
        "emissive_psnr",
        "normal_error_deg",
    }
)
"""Measurements that assets have in datasets with materials alone."""

MAX_NOTE_CHARS = 300
"""Longest detail of a note, in characters; the rest is cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Measurements of an asset; None where one does not apply or the pipeline did not get that far. One ledger
    column each, never NaN. Shares lie in [0, 1]; those "of the surface" are weighted by area. Definitions are ours
    where no source is named."""

    # the file and its geometry, as loaded
    bytes: int | None = None
    """Size of the main file."""
    faces: int | None = None
    """Triangles, instances counted."""
    vertices: int | None = None
    """Vertices as stored: seams count twice."""
    parts: int | None = None
    """Connected components after merging vertices by position."""
    size_x: float | None = None
    """Side of the bounding box along the asset's own x axis, asset units."""
    size_y: float | None = None
    """The same along y, which points up in glTF."""
    size_z: float | None = None
    """The same along z."""
    flatness: float | None = None
    """Smallest over largest side of the bounding box."""
    boundary_edges: int | None = None
    """Edges of one face alone, after merging vertices by position."""
    nonmanifold_edges: int | None = None
    """Edges of three faces or more, after merging vertices by position."""
    degenerate_share: float | None = None
    """Share of faces with (nearly) no area."""

    # what the surface looks like
    materials: int | None = None
    textures: int | None = None
    """Images that serve as base colour or for shading."""
    texture_side_min: int | None = None
    """Shortest side of the base-colour textures, pixels; None without any."""
    texture_side_max: int | None = None
    """Longest side of the base-colour textures, pixels; 0 without any."""
    textured_share: float | None = None
    """Share of the surface that a base-colour texture covers: its material has one and its faces have coordinates."""
    transparent_share: float | None = None
    """Share of the surface that is not opaque."""
    distinct_colors: int | None = None
    """Distinct quantised surface colours (5 bits a channel), each on at least 0.1 % of the area."""
    color_std: float | None = None
    """Standard deviation of surface colour in sRGB, 0..1, area-weighted, mean of channels."""
    flat_share: float | None = None
    """Largest share of the opaque surface with one quantised colour (5 bits a channel)."""
    grey_share: float | None = None
    """Share of the opaque surface whose 8-bit sRGB channels differ by less than 8: greyish, untextured models."""
    texture_entropy: float | None = None
    """Bits: entropies of hue, saturation and value (256 bins each) of the opaque surface, their mean (MV-Painter takes
    it of two renders, background included)."""
    baked_light: float | None = None
    """Suspicion of light baked into the colours: share of the variance of log luminance, between places of one
    chromaticity, that a direction of light and the openness of the place explain (0..1). A flag, never a reason."""
    signature: str | None = None
    """Shape and colours in 36 numbers that stay when an asset is exported again (`pipeline.filter.signature`)."""

    # the texture coordinates as authored
    uv_faces_share: float | None = None
    """Share of faces that have texture coordinates; the rest of this group is about those faces."""
    uv_outside_share: float | None = None
    """Share of all faces with a corner outside [0, 1]^2."""
    uv_fill_authored: float | None = None
    """Share of the unit square's texels that a face covers, coordinates wrapped into it."""
    uv_overlap_share: float | None = None
    """Share of those texels that more than one face covers; None for layouts tiled thousandfold."""
    uv_mirrored_share: float | None = None
    """Share of the overlapping texels that faces of both orientations cover: mirrored halves."""
    uv_flipped_share: float | None = None
    """Share of the surface whose faces run clockwise in the layout."""
    uv_degenerate_share: float | None = None
    """Share of surface area on faces with (nearly) no area in the authored layout."""
    uv_charts: int | None = None
    """Charts: faces joined over edges whose two ends have the same coordinates on both sides."""
    uv_density_spread: float | None = None
    """95th over 5th percentile (of the surface) of the length in the layout that a length on the surface gets; 1 is
    even. None where less than 95 % of the surface has a place in the layout."""
    uv_score: float | None = None
    """1 - 0.5 * L1(share of the surface, share of the layout) over charts (Texture-Anything); 1 is even."""

    # the views
    visible_share_min: float | None = None
    """Smallest share of a view's pixels covered by the mesh, over the views."""
    visible_share_opposite: float | None = None
    """The smaller share of two opposite views, in the pair where it is largest (MV-Painter's alpha area of front and
    back); None for rigs without opposite views."""
    single_surface_share: float | None = None
    """Share of the pixels of opposite views that show a place which the other view shows from its other side: 0 for
    closed shapes, 1 for a sheet (Step1X compares coordinate maps of opposite views)."""
    edge_score: float | None = None
    """Mean Sobel magnitude (3 x 3, unnormalised) of 8-bit grey inside the views' masks (MV-Painter)."""
    texture_score: float | None = None
    """35 * `texture_entropy` + `edge_score` (MV-Painter's weights; it adds up two views and keeps the best assets)."""

    # the layout and the map made from it
    layout: str | None = None
    """`authored`, `grown` (our own charts) or `xatlas`."""
    layout_fault: str | None = None
    """Reason why there is no layout: one of `LAYOUT_FAULTS`."""
    uv_fill: float | None = None
    """Share of texels of the final layout covered by a face."""
    layout_charts: int | None = None
    """Charts of the final layout, counted as `uv_charts` over the faces that have an area in it."""
    layout_stretch: float | None = None
    """L2 stretch of the final layout (Sander et al. 2001) over the 99.9 % of the surface stretched least; 1 keeps every
    length."""
    layout_density: float | None = None
    """Median over the surface of texels of the map per dataset unit (half the largest side)."""
    layout_density_spread: float | None = None
    """`uv_density_spread` of the final layout."""
    round_trip_psnr: float | None = None
    """dB over covered pixels: views from source materials against views from the baked map."""
    round_trip_off_share: float | None = None
    """Share of covered pixels of which a channel is further off than 8 of 255 in that comparison."""

    # materials, where they are asked for
    varied_materials: int | None = None
    """Materials whose metallic-roughness texture holds more than one value."""
    constant_material_share: float | None = None
    """Share of the surface whose metallic and roughness are one value a material: without such a texture."""
    metallic_mean: float | None = None
    """Mean metallic over the covered pixels of the views, 0..1."""
    roughness_mean: float | None = None
    """The same of roughness."""
    roughness_std: float | None = None
    """Standard deviation of roughness over those pixels, 0..1."""
    normal_strength_deg: float | None = None
    """Mean angle over those pixels between the shading normal and the surface's; 0 without normal maps."""
    emissive_share: float | None = None
    """Share of those pixels that emit light."""
    metallic_psnr: float | None = None
    """dB over pixels that both cover: metallic in views of the source against views from the baked maps."""
    roughness_psnr: float | None = None
    """The same of roughness."""
    emissive_psnr: float | None = None
    """The same of emitted light, sRGB."""
    normal_error_deg: float | None = None
    """Mean angle over those pixels between the shading normals of both."""

    def json(self, materials: bool = False) -> dict[str, int | float | str]:
        """Return the measurements as a sample's JSON has them: every key, with -1 for a number and "" for a text that
        does not apply. (None of the numbers is ever below 0.) materials: with those of materials, which samples of
        datasets without them lack."""
        missing: dict[str, int | float | str] = {"int | None": -1, "float | None": -1.0, "str | None": ""}
        left_out = frozenset[str]() if materials else MATERIAL_MEASUREMENTS
        values = {f.name: (getattr(self, f.name), missing[str(f.type)]) for f in fields(self) if f.name not in left_out}
        return {name: default if value is None else type(default)(value) for name, (value, default) in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One ledger row."""

    uid: str
    uri: str
    sha256: str | None
    status: Status
    regime: Regime | None
    reason: Reason | None
    detail: str
    notes: tuple[Note, ...] = ()
    """Notes on what loading left out or read differently, at most one of a kind."""
    shard: str | None
    """File name of the shard that holds the sample."""
    seconds: float
    sandbox: str | None = None
    """Layers of isolation around its process, joined by `+` (`pipeline.sandbox.policy.Layer`); None where it had none:
    it was never opened."""
    measurements: Measurements

    def row(self) -> dict[str, Any]:
        """The row as flat columns, in the order of `LEDGER_SCHEMA`."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "measurements"}
        return flat | {"notes": [asdict(note) for note in self.notes]} | asdict(self.measurements)


def _arrow_type(annotation: Any) -> pa.DataType:
    return {"int | None": pa.int64(), "float | None": pa.float64(), "str | None": pa.string()}[str(annotation)]


LEDGER_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("regime", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("notes", pa.list_(pa.struct({"kind": pa.string(), "count": pa.int64(), "detail": pa.string()}))),
        pa.field("shard", pa.string()),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("sandbox", pa.string()),
    ]
    + [pa.field(f.name, _arrow_type(f.type)) for f in fields(Measurements)]
)
"""Columns of a ledger part: the outcome, then one column per measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Assets, by what became of them."""

    textured: int = 0
    mv_only: int = 0
    rejected: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.textured + self.mv_only + self.rejected + self.failed

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value - getattr(other, name) for name, value in asdict(self).items()})


def counts_of(outcomes: Iterable[Outcome]) -> Counts:
    """Every outcome in exactly one of the four."""
    count = dict.fromkeys(("textured", "mv_only", "rejected", "failed"), 0)
    for outcome in outcomes:
        count[str(outcome.regime if outcome.status is Status.ACCEPTED else outcome.status)] += 1
    return Counts(**count)
