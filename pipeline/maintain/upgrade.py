"""Write a dataset of schema version 2 anew as version 3: no asset is read, nothing is rendered."""

import json
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int8, Int16

from pipeline.dataset.lock import lock
from pipeline.dataset.shards import commit, committed, require_committed
from pipeline.dataset.state import BuildReport, finish, planned_jobs, replan, writable
from schemas.codec import OPACITY, SCHEMA_VERSION, decode
from schemas.dataset import DatasetInfo, code_version, read_dataset_json
from schemas.errors import UserError
from schemas.images import check_size, decode_image, encode_grey, encode_png
from schemas.ledger import Measurements
from schemas.mesh import decode_mesh, encode_mesh
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.shards import read_samples
from schemas.storage import Location, working_folder

OLD_VERSION = 2
STEP = {"step": "upgraded", "schema_version": OLD_VERSION}
"""The entry in the history of the new dataset."""
_HEADER = struct.Struct("<4sBBHII")


def upgrade(dataset: Location, out: Location, on_job: Callable[[int, int], None]) -> BuildReport:
    """Write a dataset of version 2 to `out` as version 3; jobs that are there already stay. Colours, masks and the
    stored values of positions and normals are kept as they are. `on_job` gets the numbers of finished jobs and of all.

    Raises UserError where `dataset` is of another version, unfinished or damaged, or `out` holds another dataset."""
    info = read_dataset_json(dataset, OLD_VERSION)
    jobs = planned_jobs(dataset, info)
    parts = [require_committed(dataset, job) for job in jobs]
    with writable(out), lock(out):
        new, done = _begun(out, info, jobs), 0
        for job, part in zip(jobs, parts, strict=True):
            if committed(out, job) is None:
                _rewrite(dataset, out, job)
                done += 1
            on_job(part.job + 1, len(jobs))
        return finish(out, new, jobs, done)


def _begun(out: Location, info: DatasetInfo, jobs: list[ShardJob]) -> DatasetInfo:
    """Write plan and `dataset.json` of the new dataset, unless an upgrade that was stopped has."""
    if not (out / "dataset.json").exists():
        new = replace(info, schema_version=SCHEMA_VERSION, code_version=code_version())
        return replan(out, new, jobs, STEP)
    found = read_dataset_json(out)
    if (found.history, found.config, found.plan_sha256) != ([*info.history, STEP], info.config, info.plan_sha256):
        raise UserError(f"{out}: holds another dataset; give another --out, or delete it")
    return found


def _rewrite(dataset: Location, out: Location, job: ShardJob) -> None:
    part = require_committed(dataset, job)
    samples: dict[Regime, list[tuple[str, list[Path]]]] = {}
    with tempfile.TemporaryDirectory(prefix="upgrade-", dir=working_folder(out)) as name:
        for shard in part.shards:
            for uid, old in read_samples(dataset, shard):
                fields = _upgraded_sample(f"{dataset}: {shard.name}: sample {uid}", old)
                (folder := Path(name, uid)).mkdir()
                for extension, data in fields.items():
                    (folder / extension).write_bytes(data)
                samples.setdefault(shard.regime, []).append((uid, [folder / field for field in sorted(fields)]))
        commit(out, job.index, list(part.outcomes), samples)


def _upgraded_sample(place: str, old: Mapping[str, bytes]) -> dict[str, bytes]:
    try:
        fields = upgraded(old)
        decode(fields)
    except ValueError as error:
        raise UserError(f"{place}: {error}; run `seqtex verify` of the program version that built it") from error
    return fields


def upgraded(old: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the fields of a sample of version 2 as version 3 has them. Raises ValueError where one is damaged."""
    fields = {name: data for name, data in old.items() if not name.endswith(".dz")}
    fields["json"], layout = _json(old)
    for prefix in ("", "uv_") if "mesh.npz" in old else ("",):
        mask = decode_image(old, f"{prefix}mask.png", "PNG", "1")
        check_size(f"{prefix}position.dz", *mask.shape)
        fields |= {f"{prefix}mask.png": encode_grey(mask), f"{prefix}position.png": _positions(old, prefix, mask)}
        fields[f"{prefix}normal.png"] = _normals(old, prefix, mask)
        if prefix:
            opaque = np.full(mask.shape, 255, np.uint8)
            fields[OPACITY] = encode_grey(decode_image(old, OPACITY, "PNG", "L") if OPACITY in old else opaque)
            fields["mesh.npz"] = encode_mesh(decode_mesh(old["mesh.npz"], layout))
    fields["coverage.png"] = encode_grey(decode_image(old, "coverage.png", "PNG", "L"))
    return fields


def _json(old: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Return the JSON with typed values, and the name of the layout."""
    meta: dict[str, Any] = json.loads(old["json"])
    measurements = Measurements(**meta["measurements"]).json()
    versions = {name: version or "" for name, version in meta["versions"].items()}
    meta |= {"schema_version": SCHEMA_VERSION, "measurements": measurements, "versions": versions}
    text = json.dumps(meta, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.encode(), str(measurements["layout"])


def _positions(old: Mapping[str, bytes], prefix: str, mask: Bool[np.ndarray, "height width"]) -> bytes:
    steps = row_differences(old, f"{prefix}position.dz", mask.shape, np.dtype("<i2"))
    values = (steps.astype(np.int32) + 32_768).astype(">u2") * mask[..., None]
    planes = np.ascontiguousarray(values.transpose(2, 0, 1).astype(">u2")).view(np.uint8)
    return encode_png(planes.reshape(3 * len(mask), -1), mask.shape[1], depth=16)


def _normals(old: Mapping[str, bytes], prefix: str, mask: Bool[np.ndarray, "height width"]) -> bytes:
    steps = row_differences(old, f"{prefix}normal.dz", mask.shape, np.dtype("i1"))
    pixels = (steps.astype(np.int16) + 128).astype(np.uint8) * mask[..., None]
    return encode_png(pixels.reshape(len(mask), -1), mask.shape[1], depth=8, rgb=True)


def row_differences(
    old: Mapping[str, bytes], name: str, size: tuple[int, ...], kind: np.dtype[Any]
) -> Int16[np.ndarray, "height width 3"] | Int8[np.ndarray, "height width 3"]:
    """Decode an array of version 2: differences between rows, bytes of equal significance together, zstd."""
    data, (height, width) = old[name], size
    if data[: _HEADER.size] != _HEADER.pack(b"SFDZ", kind.itemsize, 3, 0, height, width):
        raise ValueError(f"field {name!r} is not an array of {height} x {width} pixels")
    raw_bytes = height * width * 3 * kind.itemsize
    try:
        raw = pa.Codec("zstd").decompress(memoryview(data)[_HEADER.size :], decompressed_size=raw_bytes, asbytes=True)
    except OSError as error:
        raise ValueError(f"field {name!r} does not hold {height} x {width} pixels: {error}") from error
    planes = np.frombuffer(raw, np.uint8).reshape(kind.itemsize, -1)
    deltas = np.ascontiguousarray(planes.T).view(kind).reshape(height, width, 3)
    return np.cumsum(deltas, axis=0, dtype=kind)
