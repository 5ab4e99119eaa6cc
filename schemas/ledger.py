"""The ledger: one row per planned asset, with the reason for whatever happened to it."""

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import pyarrow as pa

from schemas.sample import Regime


class Status(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    """The asset is at fault or unsuited."""
    FAILED = "failed"
    """We were not able to tell: crash, timeout, resource limit."""


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
    # loading
    LOAD_ERROR = "load_error"
    NO_GEOMETRY = "no_geometry"
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
    # why a sample is multi-view-only
    UNWRAP_BUDGET = "unwrap_budget"
    UNWRAP_FAILED = "unwrap_failed"
    ROUND_TRIP = "round_trip"
    """Views rendered from the baked map differ too much from views of the source."""
    # failures
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A verdict as a value: why an asset is not in the dataset."""

    reason: Reason
    detail: str = ""
    """For a person: names the value and the threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What was measured on an asset; None where the pipeline did not get that far. One ledger column each."""

    bytes: int | None = None
    faces: int | None = None
    vertices: int | None = None
    parts: int | None = None
    """Connected components after merging vertices by position."""
    materials: int | None = None
    textures: int | None = None
    texture_side_max: int | None = None
    """Longest side of the largest base-colour texture, pixels."""
    degenerate_share: float | None = None
    """Share of faces with (nearly) no area."""
    flatness: float | None = None
    """Smallest over largest side of the bounding box."""
    transparent_share: float | None = None
    """Share of surface area that is not opaque."""
    distinct_colors: int | None = None
    """Distinct quantised surface colours (5 bits a channel), each on at least 0.1 % of the area."""
    color_std: float | None = None
    """Standard deviation of surface colour in sRGB, 0..1, area-weighted, mean of channels."""
    uv_faces_share: float | None = None
    """Share of faces that have texture coordinates."""
    uv_outside_share: float | None = None
    """Share of faces with a corner outside [0, 1]^2."""
    uv_overlap_share: float | None = None
    """Share of used texels that more than one face covers."""
    uv_degenerate_share: float | None = None
    """Share of surface area on faces with (nearly) no area in the authored layout."""
    uv_fill: float | None = None
    """Share of texels of the final layout covered by a face."""
    layout: str | None = None
    """`authored` or `xatlas`."""
    visible_share_min: float | None = None
    """Smallest share of a view's pixels covered by the mesh, over the views."""
    round_trip_psnr: float | None = None
    """dB over covered pixels: views from source materials against views from the baked map."""


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
    shard: str | None
    """File name of the shard that holds the sample."""
    seconds: float
    measurements: Measurements

    def row(self) -> dict[str, Any]:
        """The row as flat columns, in the order of `LEDGER_SCHEMA`."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "measurements"}
        return flat | asdict(self.measurements)


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
        pa.field("shard", pa.string()),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
    + [pa.field(f.name, _arrow_type(f.type)) for f in fields(Measurements)]
)
"""Columns of a ledger part: the outcome, then one column per measurement."""
