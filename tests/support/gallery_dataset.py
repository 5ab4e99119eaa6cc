"""A dataset of many small samples, written with the functions of a build, for tests of the gallery."""

import dataclasses
import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_bytes, plan_jobs
from pipeline.dataset.shards import commit
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.codec import encode
from schemas.dataset import DatasetInfo, code_version, dataset_json, index_json
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import Attribution, MeshRef
from schemas.sample import Regime, TextureSample
from tests.pipeline.render.test_materials import coded, flat, halves, sample_of, square, tilted

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    '"><img src=x onerror="window.broken = 1">',
    "two\nlines\u2028and 'three' `ticks` ${window.broken = 1} \\",
    "| a | table |\n---\n- [link](javascript:window.broken=1) <b>",
)
"""Names that a page or a card must show as text."""
CONFIG = BuildConfig(views=RenderConfig(resolution=48), uv=BakeConfig(resolution=96))
OUTCOMES = (
    (Status.ACCEPTED, Regime.TEXTURED, None, ""),
    (Status.ACCEPTED, Regime.TEXTURED, None, ""),
    (Status.ACCEPTED, Regime.TEXTURED, None, ""),
    (Status.ACCEPTED, Regime.MV_ONLY, Reason.ROUND_TRIP, "min_round_trip_db: 12 dB, at least 30 dB"),
    (Status.REJECTED, None, Reason.UNTEXTURED, HOSTILE[0]),
    (Status.FAILED, None, Reason.TIMEOUT, HOSTILE[1]),
)
"""Outcomes of the assets, in turn."""


def outcome_of(number: int) -> tuple[Status, Regime | None, Reason | None, str]:
    return OUTCOMES[number % len(OUTCOMES)]


def synthetic_ref(number: int) -> MeshRef:
    source = Attribution(name="synthetic", licence=("CC0-1.0", "CC-BY-4.0")[number % 2], attribution=HOSTILE[2])
    caption = HOSTILE[number] if number < len(HOSTILE) else f"thing {number}"
    return MeshRef(uid=f"asset-{number:06d}", uri=f"/assets/{number}.glb", source=source, caption=caption)


def synthetic_outcome(number: int, job: int) -> Outcome:
    """Faces are 100 + number; the round trip runs from 30 to 60 dB."""
    status, regime, reason, detail = outcome_of(number)
    measured = Measurements(faces=100 + number) if status is not Status.FAILED else Measurements()
    if regime is Regime.TEXTURED:
        measured = dataclasses.replace(measured, round_trip_psnr=30.0 + number % 31, round_trip_off_share=0.01)
    ref = synthetic_ref(number)
    return Outcome(
        uid=ref.uid,
        uri=ref.uri,
        sha256=None,
        status=status,
        regime=regime,
        reason=reason,
        detail=detail,
        shard=f"{regime}-{job:06d}.tar" if regime else None,
        seconds=0.1 + number % 7,
        measurements=measured,
    )


def write_dataset(
    out: Path, assets: int, assets_per_job: int = 64, sample: TextureSample | None = None, **measured: float
) -> Path:
    """`assets` assets in `out`; all samples of a regime have one set of pictures, `sample`'s. `measured`: further
    measurements of all assets."""
    for name in ("shards", "ledger", "fields"):
        (out / name).mkdir(parents=True)
    jobs = plan_jobs((synthetic_ref(number) for number in range(assets)), assets_per_job)
    shared = {regime: _common_fields(out / "fields" / regime, regime, sample or real_sample()) for regime in Regime}
    number, parts = 0, []
    for job in jobs:
        outcomes, samples = [], dict[Regime, list[tuple[str, list[Path]]]]()
        for ref in job.refs:
            outcome = synthetic_outcome(number, job.index)
            outcome = dataclasses.replace(outcome, measurements=dataclasses.replace(outcome.measurements, **measured))
            outcomes.append(outcome)
            if outcome.regime:
                own = _own_json(out / "fields", ref, outcome.regime)
                samples.setdefault(outcome.regime, []).append((ref.uid, [own, *shared[outcome.regime]]))
            number += 1
        parts.append(commit(out, job.index, outcomes, samples))
    plan = plan_bytes(jobs)
    (out / "plan.parquet").write_bytes(plan)
    info = DatasetInfo(
        config=dataclasses.replace(CONFIG, assets_per_job=assets_per_job).recorded(),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        planned=assets,
        jobs=len(jobs),
        code_version=code_version(),
    )
    (out / "dataset.json").write_bytes(dataset_json(info))
    (out / "index.json").write_bytes(index_json(out, parts))
    return out


@cache
def real_sample() -> TextureSample:
    """A small textured sample, as a build makes it."""
    with tempfile.TemporaryDirectory() as name:
        (ref,) = procedural(1, Path(name), clean=True)
        result = process_asset(ref, CONFIG).result
    assert isinstance(result, TextureSample)
    return result


def _common_fields(folder: Path, regime: Regime, sample: TextureSample) -> list[Path]:
    folder.mkdir()
    if regime is Regime.MV_ONLY:
        sample = dataclasses.replace(
            sample, regime=regime, uv=None, mesh=None, meta=sample.meta | {"regime": str(regime)}
        )
    fields = encode(sample)
    for name, data in fields.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in fields if name != "json"]


def _own_json(folder: Path, ref: MeshRef, regime: Regime) -> Path:
    source = dataclasses.asdict(ref.source) | {"uri": ref.uri}
    common = json.loads((folder / regime / "json").read_text())
    path = folder / ref.uid / "json"
    path.parent.mkdir()
    path.write_text(json.dumps(common | {"uid": ref.uid, "caption": ref.caption, "source": source}))
    return path


def glowing_square(directory: Path) -> TextureSample:
    """A square with every map of a material, each of two halves, whose asset is written to a folder."""
    rough = halves((0, 40, 255), (0, 230, 0))
    bumps = np.concatenate([flat(coded(tilted((1, 0)))), flat(coded(tilted((-1, 0.5))))], axis=1)
    material = {
        "pbrMetallicRoughness": {"metallicRoughnessTexture": {"index": 1}},
        "normalTexture": {"index": 2},
        "emissiveTexture": {"index": 3},
        "emissiveFactor": [0.5, 0.5, 0.5],
    }
    return sample_of(directory, square(material, [rough, bumps, halves((0, 0, 0), (255, 90, 0))]))
