"""Datasets of a few small samples, written as the pipeline writes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from geometry.cameras import seqtex4
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import commit
from pipeline.dataset.state import finish, settle, writable
from schemas.codec import SCHEMA_VERSION, cameras_json, encode
from schemas.dataset import DatasetInfo, dataset_json
from schemas.ledger import Measurements, Outcome, Status
from schemas.mesh import MeshRef, UvMesh
from schemas.plan import ShardJob
from schemas.sample import MaterialMaps, MaterialViews, Regime, TextureSample, UvMaps, Views
from schemas.storage import write_file
from tests.support.small_build import CFG

VIEW_SIZE = 32
UV_SIZE = 64


def small_sample(
    uid: str, regime: Regime, seed: int, view_size: int = VIEW_SIZE, uv_size: int = UV_SIZE
) -> TextureSample:
    """A smooth two-colour gradient over a wavy sheet, seen four times, and as a UV map."""
    rng = np.random.default_rng(seed)
    colors = rng.uniform(0.1, 0.9, (2, 3))
    frequency = rng.uniform(1.0, 3.0, 2)

    def maps(height: int, turn: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        y, x = np.meshgrid(*[np.linspace(-0.95, 0.95, height)] * 2, indexing="ij")
        x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        position = np.stack([x / 1.5, y / 1.5, 0.3 * np.sin(frequency[0] * x)], -1).astype(np.float32)
        angle = frequency[1] * (x + 0.5 * y)
        normal = np.stack([np.sin(angle), np.cos(angle), np.zeros_like(x)], -1).astype(np.float32)
        mask = x**2 + y**2 < 0.5
        share = 1 / (1 + np.exp(-3 * y))[..., None]
        rgb = np.round(255 * (share * colors[0] + (1 - share) * colors[1])).astype(np.uint8)
        return rgb, mask, position * mask[..., None], normal * mask[..., None]

    strips = [np.stack(group) for group in zip(*(maps(view_size, turn) for turn in (0.0, 0.5, 1.0, 1.5)), strict=True)]
    views = Views(
        rgb=strips[0] * strips[1][..., None],
        mask=strips[1],
        coverage=strips[1].astype(np.uint8) * np.uint8(255),
        position=strips[2],
        normal=strips[3],
    )
    uv, mesh = None, None
    if regime is Regime.TEXTURED:
        rgb, mask, position, normal = maps(uv_size, 0.0)
        uv = UvMaps(rgb=rgb, mask=mask, position=position, normal=normal)
        mesh = UvMesh(
            vertices=np.eye(3, dtype=np.float32),
            normals=np.eye(3, dtype=np.float32),
            uv=np.eye(3, 2, dtype=np.float32),
            faces=np.array([[0, 1, 2]], dtype=np.int32),
            layout="authored",
        )
    cameras = seqtex4(np.full(3, -1.0), np.full(3, 1.0))
    meta = {
        "uid": uid,
        "schema_version": SCHEMA_VERSION,
        "source": dict.fromkeys(("name", "uri", "licence", "attribution"), ""),
        "caption": f"sheet {seed}",
        "regime": str(regime),
        "cameras": cameras_json(cameras),
        "frame": {"center": [0.0, 0.0, 0.0], "scale": 1.0},
        "measurements": {"layout": "authored" if mesh else ""},
    }
    return TextureSample(uid=uid, regime=regime, views=views, cameras=cameras, uv=uv, mesh=mesh, meta=meta)


def write_dataset(
    out: Path, jobs: list[list[tuple[str, Regime]]], view_size: int = VIEW_SIZE, uv_size: int = UV_SIZE
) -> None:
    """One job per list of (uid, regime)."""
    write_samples(
        out,
        [
            [
                small_sample(uid, regime, seed=100 * number + index, view_size=view_size, uv_size=uv_size)
                for index, (uid, regime) in enumerate(entries)
            ]
            for number, entries in enumerate(jobs)
        ],
    )


def write_finished(out: Path, refs: list[MeshRef], assets_per_job: int) -> None:
    """A finished dataset, which `verify` accepts: one textured sample per asset."""
    jobs = plan_jobs(refs, assets_per_job)
    with writable(out):
        info = settle(out, jobs, CFG.recorded())
        for job in jobs:
            _commit_samples(out, job)
        finish(out, info, jobs, len(jobs))


def _commit_samples(out: Path, job: ShardJob) -> None:
    samples, outcomes = [], []
    for number, ref in enumerate(job.refs):
        fields = encode(small_sample(ref.uid, Regime.TEXTURED, seed=100 * job.index + number))
        folder = out / ".work" / "fields" / ref.uid
        folder.mkdir(parents=True)
        for extension, data in fields.items():
            (folder / extension).write_bytes(data)
        samples.append((ref.uid, [folder / extension for extension in fields]))
        outcome = Outcome(
            uid=ref.uid,
            uri=ref.uri,
            sha256=None,
            status=Status.ACCEPTED,
            regime=Regime.TEXTURED,
            reason=None,
            detail="",
            shard=f"textured-{job.index:06d}.tar",
            seconds=0.0,
            measurements=Measurements(),
        )
        outcomes.append(outcome)
    commit(out, job.index, outcomes, {Regime.TEXTURED: samples})


def with_materials(sample: TextureSample) -> TextureSample:
    """A sample whose metallic and roughness are two ramps, and whose normals and emitted light are those there are."""
    views, uv = sample.views, sample.uv
    seen = views.mask[..., None]
    levels = np.round(255 * (views.position[..., :2] + 1) / 2).astype(np.uint8) * seen
    of_views = MaterialViews(metallic_roughness=levels, normal_detail=views.normal, emissive=views.rgb)
    if uv is not None:
        x, y = np.meshgrid(*[np.linspace(0, 1, len(uv.mask))] * 2)
        uv = replace(
            uv,
            materials=MaterialMaps(
                metallic_roughness=np.round(255 * np.stack([x > 0.5, 0.2 + 0.6 * y], axis=-1)).astype(np.uint8),
                normal_detail=np.broadcast_to(np.float32([0, 0, 1]), uv.rgb.shape),
                normal_tangent=np.broadcast_to(np.float32([0.6, 0, 0.8]), uv.rgb.shape),
                emissive=uv.rgb // 2,
            ),
        )
    meta = sample.meta | {"materials": {"emissive_strength": 1.0}}
    return replace(sample, views=replace(views, materials=of_views), uv=uv, meta=meta)


def write_samples(out: Path, jobs: list[list[TextureSample]], config: dict[str, Any] | None = None) -> None:
    """One job per list of samples. config: of the build that the dataset names."""
    for name in ("shards", "ledger", "fields"):
        (out / name).mkdir(parents=True)
    info = DatasetInfo(config=config or {}, plan_sha256="", planned=sum(map(len, jobs)), jobs=len(jobs))
    write_file(out / "dataset.json", dataset_json(info))
    for number, job in enumerate(jobs):
        samples: dict[Regime, list[tuple[str, list[Path]]]] = {}
        outcomes = []
        for sample in job:
            fields = encode(sample)
            folder = out / "fields" / sample.uid
            folder.mkdir()
            for extension, data in fields.items():
                (folder / extension).write_bytes(data)
            samples.setdefault(sample.regime, []).append((sample.uid, [folder / extension for extension in fields]))
            outcomes.append(
                Outcome(
                    uid=sample.uid,
                    uri="",
                    sha256=None,
                    status=Status.ACCEPTED,
                    regime=sample.regime,
                    reason=None,
                    detail="",
                    shard=f"{sample.regime}-{number:06d}.tar",
                    seconds=0.0,
                    measurements=Measurements(),
                )
            )
        commit(out, number, outcomes, samples)
