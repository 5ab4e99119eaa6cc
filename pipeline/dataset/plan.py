"""Plan a build: divide the assets of a source into jobs. Written to `plan.parquet` before any work starts."""

import itertools
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.folders import within
from schemas.codec import UID_PATTERN
from schemas.dataset import parquet_table
from schemas.errors import UsageError, UserError, storable
from schemas.mesh import Attribution, MeshRef
from schemas.plan import LATER_COLUMNS, PLAN_SCHEMA, ShardJob, plan_ref, plan_row
from schemas.storage import Location

_ROWS_AT_ONCE = 1 << 14
"""Rows that exist as Python objects at one time: a plan may have millions."""


def plan_jobs(refs: Iterable[MeshRef], assets_per_job: int, folder: Path | None = None) -> list[ShardJob]:
    """Divide assets, ordered by uid, into jobs of `assets_per_job`: the order in which a source lists them does not
    matter. Their paths are relative to `folder`, as far as they lie in it. In their texts, which come from strangers,
    characters that no file can hold are replaced.

    Raises UserError where there is no asset, or two have one uid, or a uid cannot be a key."""
    if assets_per_job < 1:
        raise UsageError(f"assets_per_job is {assets_per_job}; give 1 or more")
    ordered = sorted((_storable(within(ref, folder)) for ref in refs), key=lambda ref: ref.uid)
    if not ordered:
        raise UserError(
            "the source has no assets, or none is selected; give one with .glb, .gltf, .obj or other files of meshes, "
            "or loosen --select.*"
        )
    for ref in ordered:
        if not UID_PATTERN.fullmatch(ref.uid):
            raise UserError(f"{ref.uri}: {ref.uid!r} is no uid, which is {UID_PATTERN.pattern}")
    for first, second in itertools.pairwise(ordered):
        if first.uid == second.uid:
            raise UserError(f"{first.uri} and {second.uri} share the uid {first.uid!r}; give one of them another name")
    starts = range(0, len(ordered), assets_per_job)
    where = None if folder is None else str(folder)
    return [
        ShardJob(index=i, refs=tuple(ordered[start : start + assets_per_job]), folder=where)
        for i, start in enumerate(starts)
    ]


def _storable(ref: MeshRef) -> MeshRef:
    source = Attribution(**{f.name: storable(getattr(ref.source, f.name)) for f in fields(Attribution)})
    captions = {storable(level): storable(text) for level, text in ref.captions.items()}
    return replace(ref, uri=storable(ref.uri), caption=storable(ref.caption), captions=captions, source=source)


def plan_bytes(jobs: list[ShardJob]) -> bytes:
    """Encode a plan as Parquet; equal plans give equal bytes. Raises UserError where assets have captions of different
    levels: all samples of a dataset have the same keys."""
    if len(levels := dict.fromkeys(tuple(ref.captions) for job in jobs for ref in job.refs)) > 1:
        named = " and ".join(" ".join(found) or "none" for found in list(levels)[:2])
        raise UserError(f"assets have captions of different levels ({named}); give the same --objaverse.caption_levels")
    schema = PLAN_SCHEMA
    if not any(levels):
        schema = schema.remove(schema.get_field_index("captions"))
    rows = (plan_row(ref, job.index) for job in jobs for ref in job.refs)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=schema))
    return sink.getvalue().to_pybytes()


def read_plan(path: Location) -> list[ShardJob]:
    """Read a plan. Raises UserError where the file is absent or damaged."""
    remedy = "restore it or build into a new folder"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such plan; {remedy}") from error
    try:
        table = parquet_table(data)
        stored = pa.schema(
            [field for field in PLAN_SCHEMA if field.name in table.column_names or field.name not in LATER_COLUMNS]
        )
        if not table.schema.equals(stored, check_metadata=False):
            raise ValueError("its columns are not those of this program's plan")
        refs: dict[int, list[MeshRef]] = {}
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                refs.setdefault(row.pop("job"), []).append(_inside(plan_ref(row)))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # OSError: pyarrow's, for damage
        raise UserError(f"{path}: no readable plan ({error}); {remedy}") from error
    return [ShardJob(index=index, refs=tuple(refs[index])) for index in sorted(refs)]


def _inside(ref: MeshRef) -> MeshRef:
    """Raise ValueError where a relative path leads out of the folder that it begins in."""
    for path in (ref.uri, ref.root or ""):
        if "://" not in path and ".." in path.split("/"):
            raise ValueError(f"{path!r} leads out of its folder")
    return ref


def plan_difference(before: list[ShardJob], now: list[ShardJob]) -> str | None:
    """Describe how an earlier plan and a new one differ; None where they are the same."""
    old = {ref.uid: (job.index, ref) for job in before for ref in job.refs}
    new = {ref.uid: (job.index, ref) for job in now for ref in job.refs}
    if gone := sorted(old.keys() - new.keys()):
        return f"{len(gone)} planned assets are gone from the source, first {old[gone[0]][1].uri}"
    if added := sorted(new.keys() - old.keys()):
        return f"{len(added)} assets are new in the source, first {new[added[0]][1].uri}"
    for uid, entry in old.items():
        if entry != new[uid]:
            was, is_now = plan_row(entry[1], entry[0]), plan_row(new[uid][1], new[uid][0])
            name = next(name for name in was if was[name] != is_now[name])
            return f"{name} of asset {uid} was {was[name]!r} and is now {is_now[name]!r}"
    return None
