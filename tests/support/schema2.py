"""Datasets of schema version 2, made from those of the present version by what version 2 wrote."""

import io
import json
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.dataset.plan import read_plan
from pipeline.dataset.shards import commit, require_committed
from pipeline.dataset.state import writable
from schemas.codec import OPACITY, decode
from schemas.dataset import dataset_json, read_dataset_json
from schemas.images import encode_image
from schemas.sample import Regime, UvMaps, Views
from schemas.shards import read_samples


def downgraded(fields: dict[str, bytes]) -> dict[str, bytes]:
    """The fields of a sample as version 2 had them: `.dz` arrays, a stored mesh, no opacity where there are no holes,
    nulls in the JSON."""
    sample = decode(fields)
    old = {name: data for name, data in fields.items() if "position" not in name and "normal" not in name}
    maps: dict[str, tuple[Views | UvMaps, int]] = {"": (sample.views, sample.views.mask.shape[-1])}
    if sample.uv is not None and sample.mesh is not None:
        maps["uv_"] = (sample.uv, sample.uv.mask.shape[-1])
        mesh = io.BytesIO()
        names = ("vertices", "normals", "uv", "faces", "single_sided")
        np.savez(mesh, **{name: value for name in names if (value := getattr(sample.mesh, name)) is not None})
        old["mesh.npz"] = mesh.getvalue()
        if sample.uv.opacity is None:
            del old[OPACITY]
    for prefix, (group, width) in maps.items():
        old[f"{prefix}position.dz"] = dz(np.rint(group.position * 32767.0).astype("<i2").reshape(-1, width, 3))
        old[f"{prefix}normal.dz"] = dz(_stored_normals(fields[f"{prefix}normal.png"]).reshape(-1, width, 3))
        old[f"{prefix}mask.png"] = encode_image(group.mask.reshape(-1, width), "PNG", compress_level=6)
    meta = json.loads(fields["json"])
    nulls = {name: None if value in (-1, "") else value for name, value in meta["measurements"].items()}
    old["json"] = json.dumps(meta | {"schema_version": 2, "measurements": nulls}).encode()
    return old


def _stored_normals(data: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(np.int16)
    return np.where(pixels.any(-1, keepdims=True), pixels - 128, 0).astype(np.int8)


def arrays_of_version_2(position: np.ndarray, normal: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and normals as the numbers that version 2 stored."""
    steps = np.rint(position * 32767.0).astype("<i2") * mask[..., None]
    return steps, np.rint(normal * 127.0).astype(np.int8) * mask[..., None]


def dz(array: np.ndarray) -> bytes:
    """An array as differences between rows, bytes of equal significance together, zstd."""
    deltas = array.copy()
    deltas[1:] -= array[:-1]
    planes = deltas.view(np.uint8).reshape(-1, array.itemsize).T
    header = struct.pack("<4sBBHII", b"SFDZ", array.itemsize, 3, 0, *array.shape[:2])
    return header + pa.Codec("zstd", compression_level=9).compress(planes.tobytes(), asbytes=True)


def write_schema2(dataset: Path, out: Path) -> None:
    """Write a finished dataset as version 2 wrote it."""
    info, jobs = read_dataset_json(dataset), read_plan(dataset / "plan.parquet")
    with writable(out):
        shutil.copy(dataset / "plan.parquet", out)
        (out / "dataset.json").write_bytes(dataset_json(replace(info, schema_version=2)))
        for job in jobs:
            part, samples = require_committed(dataset, job), dict[Regime, list[tuple[str, list[Path]]]]()
            with tempfile.TemporaryDirectory() as name:
                for shard in part.shards:
                    for uid, fields in read_samples(dataset, shard):
                        (folder := Path(name, uid)).mkdir()
                        old = downgraded(fields)
                        for field, data in old.items():
                            (folder / field).write_bytes(data)
                        samples.setdefault(shard.regime, []).append((uid, [folder / field for field in sorted(old)]))
                commit(out, job.index, list(part.outcomes), samples)
