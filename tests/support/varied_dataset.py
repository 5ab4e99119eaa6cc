"""A small dataset whose samples differ in all that a sample may lack, for readers that infer types from a few."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import commit
from pipeline.dataset.state import finish, settle, writable
from schemas.codec import encode
from schemas.dataset import code_version
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import LAYOUTS, Attribution, MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime, TextureSample
from tests.support.small_build import CFG
from tests.support.small_dataset import small_sample

PER_REGIME = 7
"""Samples of each regime in a job."""
JOBS = 2
LATE = 10
"""Samples from this number on have measurements, and faces not seen from behind, that no earlier one has: five of each
regime come first."""
SOURCES = (
    Attribution(),
    Attribution(name="Objaverse", licence="CC-BY-4.0", attribution='"Chair" by Zoë', title="Chair", author="Zoë"),
    Attribution(name="folder", licence="CC0-1.0", url="https://example.org/1"),
    Attribution(name="mine", licence="", title='=HYPERLINK("http://example.org")', author="@sum, or\nso"),
    Attribution(name="x", licence="MIT", attribution="+1", title="-2+3", author="\tA", url="\rB"),
)
CAPTIONS = ("", "a chair", 'two\nlines, "quoted", ünïcode \u2028', "0", "=1+1")
MEASURED = (
    Measurements(),
    Measurements(bytes=1, faces=12, flatness=0.5, signature="00ff", layout_fault="unwrap_failed"),
    Measurements(size_x=1e-9, uv_charts=3, uv_score=1.0, round_trip_psnr=41.5, texture_side_max=0),
    Measurements(faces=2**40, texture_entropy=7.25, baked_light=0.0),
    Measurements(uv_fill_authored=1.0, edge_score=12.0, textured_share=0.125),
)


def varied_sample(number: int, regime: Regime, longest_uid: int) -> TextureSample:
    """The sample of a number: every fifth has the same choice of what is there and what is missing."""
    turn = number % len(SOURCES)
    uid = f"{number:03d}-{regime}"[:5]
    sample = small_sample(uid.ljust(longest_uid, "x") if turn == 2 else uid, regime, seed=number)
    measured, uv, mesh = MEASURED[turn], sample.uv, sample.mesh
    if uv is not None and mesh is not None:
        mesh = replace(mesh, layout=LAYOUTS[turn % len(LAYOUTS)])
        opacity = np.full(uv.mask.shape, 255, np.uint8)
        opacity[: 8 * turn] = 51 * turn
        uv = replace(uv, opacity=opacity if turn in (1, 4) else None)
        measured = replace(measured, layout=mesh.layout)
    if number >= LATE:
        measured = replace(measured, uv_mirrored_share=0.25, distinct_colors=7)
        if mesh is not None and turn % 2:
            mesh = replace(mesh, single_sided=np.ones(len(mesh.faces), bool))
    meta = sample.meta | {
        "source": asdict(SOURCES[turn]) | {"uri": f"{number}.glb"},
        "caption": CAPTIONS[turn],
        "measurements": measured.json(),
        "frame": {"center": [0.5 * turn, 0.0, -1e7 * turn], "scale": 2.0**-turn},
        "versions": {"seqtex-forge": code_version()},
    }
    return replace(sample, uv=uv, mesh=mesh, meta=meta)


def write_varied_dataset(
    out: Path, regimes: Sequence[Regime] = tuple(Regime), longest_uid: int = 200
) -> dict[str, TextureSample]:
    """Write a finished dataset, which `verify` accepts, in two jobs; return its samples by uid. (A name of more than
    100 characters, uid and extension, needs a header of its own in a tar.)"""
    count = len(regimes) * PER_REGIME * JOBS
    made = [varied_sample(number, regimes[number % len(regimes)], longest_uid) for number in range(count)]
    samples = {sample.uid: sample for sample in made}
    jobs = plan_jobs(map(_ref, made), count // JOBS)
    with writable(out):
        info = settle(out, jobs, CFG.recorded())
        for job in jobs:
            _commit(out, job, samples)
        finish(out, info, jobs, len(jobs))
    return samples


def _ref(sample: TextureSample) -> MeshRef:
    source: dict[str, Any] = {key: value for key, value in sample.meta["source"].items() if key != "uri"}
    uri = sample.meta["source"]["uri"]
    return MeshRef(uid=sample.uid, uri=uri, source=Attribution(**source), caption=sample.meta["caption"])


def _commit(out: Path, job: ShardJob, samples: dict[str, TextureSample]) -> None:
    stored: dict[Regime, list[tuple[str, list[Path]]]] = {}
    outcomes = []
    for ref in job.refs:
        sample = samples[ref.uid]
        folder = out / ".work" / ref.uid
        folder.mkdir(parents=True)
        for extension, data in encode(sample).items():
            (folder / extension).write_bytes(data)
        stored.setdefault(sample.regime, []).append((ref.uid, sorted(folder.iterdir())))
        outcomes.append(_outcome(ref, sample.regime, job.index))
    commit(out, job.index, outcomes, stored)


def _outcome(ref: MeshRef, regime: Regime, job: int) -> Outcome:
    """Every third lacks what a ledger may lack."""
    number = int(ref.uri.partition(".")[0])
    return Outcome(
        uid=ref.uid,
        uri=ref.uri,
        sha256=None if number % 3 else "0" * 64,
        status=Status.ACCEPTED,
        regime=regime,
        reason=None if regime is Regime.TEXTURED else Reason.UNWRAP_POOR,
        detail="" if number % 3 else "ünïcode",
        shard=f"{regime}-{job:06d}.tar",
        seconds=0.5,
        measurements=MEASURED[number % len(MEASURED)],
    )
