"""The files around the shards: `dataset.json` (configuration and plan), ledger parts (the outcome of every asset, and
the shards that count), `index.json` (the list of shards). A shard counts only if a ledger part names it."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.codec import SCHEMA_VERSION, UPGRADE
from schemas.errors import UserError, redacted
from schemas.ledger import LEDGER_SCHEMA, Measurements, Note, NoteKind, Outcome, Reason, Status
from schemas.sample import Regime
from schemas.storage import Location, write_file

Place = TypeVar("Place", bound=Location)
SHARD_NAME = re.compile(r"(textured|mv_only)-(\d{6,})\.tar")
PART_NAME = re.compile(r"(\d{6,})\.parquet")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RecursionError, pa.ArrowException)
"""Errors of reading a ledger part; OSError: pyarrow's, for damage."""
_COMMIT_KEY = b"seqtex.commit"
"""Key of the commit record in a ledger part's Parquet metadata: JSON {job, planned, shards}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """A shard as a ledger part records it."""

    name: str
    regime: Regime
    sha256: str
    bytes: int
    count: int
    """Samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPart:
    """The ledger of one job: the outcome of each of its assets, and its shards."""

    job: int
    outcomes: tuple[Outcome, ...]
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """The content of `dataset.json`."""

    config: dict[str, Any]
    """The resolved build configuration."""
    plan_sha256: str
    """The sha256 of `plan.parquet`."""
    planned: int
    """Assets."""
    jobs: int
    schema_version: int = SCHEMA_VERSION
    code_version: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Changes of the plan since it was first made, oldest first: `step` (`extended`, `merged`) and its sources. Without
    times and paths: equal steps give equal datasets."""


def code_version() -> str:
    """Return the installed version of this program."""
    return metadata.version("seqtex-forge")


def canonical_json(value: Any) -> bytes:
    """Encode a value as JSON; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def config_hash(config: dict[str, Any]) -> str:
    """Hash everything that decides the bytes of a dataset, inputs aside."""
    return hashlib.sha256(canonical_json(config)).hexdigest()


def recipe(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without programs of a machine: whether Blender was there decides the bytes of a dataset,
    where it lay does not. Nobody who reads a dataset gets a program to start from it."""
    blender = config.get("blender")
    if not isinstance(blender, dict):
        return config
    return config | {"blender": blender | {"python": bool(blender.get("python"))}}


def shard_name(regime: Regime, job: int) -> str:
    """Return the name of a shard, as `SHARD_NAME` matches it."""
    return f"{regime}-{job:06d}.tar"


def shard_path(out: Place, name: str) -> Place:
    return out / "shards" / name


def part_path(out: Place, job: int) -> Place:
    return out / "ledger" / f"{job:06d}.parquet"


def by_repair(out: Location) -> str:
    """Name the remedy for damage, for an error message."""
    return f"run `seqtex repair {out}`"


# dataset.json


def dataset_json(info: DatasetInfo) -> bytes:
    """Encode `dataset.json`, with a hash of the configuration and one of everything."""
    entries = asdict(info) | {"config_sha256": config_hash(info.config)}
    if not info.history:
        del entries["history"]
    entries["sha256"] = hashlib.sha256(canonical_json(entries)).hexdigest()
    return json.dumps(entries, sort_keys=True, allow_nan=False, indent=2).encode() + b"\n"


def read_dataset_json(out: Location, schema_version: int = SCHEMA_VERSION) -> DatasetInfo:
    """Read `dataset.json`, its configuration as `recipe`. Raises UserError where it is absent, damaged, or of another
    schema version."""
    path = out / "dataset.json"
    try:
        data = path.read_bytes()
        entries = json.loads(data)
        version = entries.get("schema_version", SCHEMA_VERSION)
        if version != schema_version:  # first: another version may have other entries
            remedy = "it needs no upgrade" if version == SCHEMA_VERSION else UPGRADE
            raise UserError(f"{path}: schema version {version}, {schema_version} is needed here; {remedy}")
        info = DatasetInfo(**{key: value for key, value in entries.items() if key not in ("sha256", "config_sha256")})
        damaged = dataset_json(info) != data
        info = replace(info, config=recipe(info.config))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the folder that `seqtex build` wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it or build into a new folder") from error
    if damaged:
        raise UserError(f"{path}: damaged, its text is not what was written; restore it or build into a new folder")
    return info


# ledger


def write_ledger_part(out: Location, part: LedgerPart) -> None:
    """Write the commit record of a job, atomically: once this file is there, its shards count."""
    rows = [outcome.row() | {"detail": redacted(outcome.detail)} for outcome in part.outcomes]
    table = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
    record = {"job": part.job, "planned": len(part.outcomes), "shards": [asdict(shard) for shard in part.shards]}
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({_COMMIT_KEY: canonical_json(record)})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_file(part_path(out, part.job), sink.getvalue().to_pybytes())


def read_parquet(path: Location) -> pa.Table:
    """Read a Parquet file as `parquet_table`."""
    return parquet_table(path.read_bytes())


def parquet_table(data: bytes) -> pa.Table:
    """Read the bytes of a Parquet file and verify its page checksums, in this thread alone: with pyarrow's own threads,
    which `pq.read_table` always starts, about one process in twenty aborts at its exit (pyarrow 26)."""
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False) as file:
        return file.read(use_threads=False)


def read_ledger_part(path: Location, sha256: str | None = None) -> LedgerPart:
    """Read the ledger of a job. Raises UserError where the file is absent, damaged, or not of the given sha256; OSError
    where it cannot be read now, although it may be whole."""
    remedy = by_repair(path.parent.parent)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such ledger part; {remedy}") from error
    try:
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("its sha256 is not the one in index.json")
        table = parquet_table(data)
        record = json.loads((table.schema.metadata or {})[_COMMIT_KEY])
        table = _with_every_column(table)
        _check_finite(table)
        outcomes = tuple(outcome_of(row) for row in table.to_pylist())
        shards = tuple(ShardRecord(**(entry | {"regime": Regime(entry["regime"])})) for entry in record["shards"])
        if len(outcomes) != record["planned"]:
            raise ValueError(f"{len(outcomes)} rows, {record['planned']} were written")
        if bad := [shard.name for shard in shards if not SHARD_NAME.fullmatch(shard.name)]:
            raise ValueError(f"{bad[0]!r} is no shard name")
        return LedgerPart(job=int(record["job"]), outcomes=outcomes, shards=shards)
    except UNREADABLE as error:
        raise UserError(f"{path}: no readable ledger part ({error}); {remedy}") from error


def _with_every_column(table: pa.Table) -> pa.Table:
    """The ledger with the columns of this program; those that came after it was written are null. Raises ValueError for
    other columns, and where one is lacking that cannot be null."""
    for column in LEDGER_SCHEMA:
        if column.name not in table.column_names and column.nullable:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    if sorted(table.column_names) == sorted(LEDGER_SCHEMA.names):
        table = table.select(LEDGER_SCHEMA.names)
    if not table.schema.equals(LEDGER_SCHEMA, check_metadata=False):
        raise ValueError("its columns are not those of this program's ledger")
    return table


def _check_finite(table: pa.Table) -> None:
    """Raise ValueError naming a column that holds a number which is none: no chart and no sum bears it."""
    for column in LEDGER_SCHEMA:
        if pa.types.is_floating(column.type) and pc.all(pc.is_finite(table[column.name])).as_py() is False:
            raise ValueError(f"{column.name} holds a number that is not finite")


def outcome_of(row: dict[str, Any]) -> Outcome:
    """Return the outcome that `Outcome.row` has made flat. Raises one of `UNREADABLE` for any other dictionary."""
    head = {name: row.pop(name) for name in LEDGER_SCHEMA.names if name in Outcome.__dataclass_fields__}
    head["status"] = Status(head["status"])
    head["regime"] = Regime(head["regime"]) if head["regime"] is not None else None
    head["reason"] = Reason(head["reason"]) if head["reason"] is not None else None
    head["notes"] = tuple(Note(**(note | {"kind": NoteKind(note["kind"])})) for note in head["notes"] or ())
    return Outcome(**head, measurements=Measurements(**row))


def part_paths(out: Place) -> list[Place]:
    """List the ledger parts of a dataset, by job."""
    folder = out / "ledger"
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if PART_NAME.fullmatch(path.name)), key=lambda path: int(path.stem)
    )


def read_ledger(out: Location) -> list[LedgerPart]:
    """Read the ledger of every committed job, in order. Raises UserError naming the first damaged part."""
    return [read_ledger_part(path) for path in part_paths(out)]


# index.json


def index_json(out: Location, parts: Iterable[LedgerPart]) -> bytes:
    """Encode the shard index (wids-shard-index-v1). Beside the format's own entries it holds the regime of every shard,
    and size and sha256 of every ledger part, so that damage to a commit record itself is found."""
    shards, ledger = [], []
    for part in parts:
        for s in part.shards:
            entry = {"url": f"shards/{s.name}", "nsamples": s.count, "filesize": s.bytes, "sha256": s.sha256}
            shards.append(entry | {"regime": s.regime})
        path = part_path(out, part.job)
        data = path.read_bytes()
        entry = {"url": f"ledger/{path.name}", "filesize": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        ledger.append(entry)
    entries = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards, "ledger": ledger}
    return json.dumps(entries, indent=1).encode() + b"\n"


def indexed_parts(data: bytes) -> dict[str, str]:
    """Return the sha256 of every ledger part that an `index.json` lists, by file name; empty if the text is damaged."""
    try:
        return {str(entry["url"]).rpartition("/")[2]: str(entry["sha256"]) for entry in json.loads(data)["ledger"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
