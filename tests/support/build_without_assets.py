"""Small datasets without processing any asset: a build of synthetic results."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.lock import lock
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import commit, remove_leftovers
from pipeline.dataset.state import finish, finished, settle, writable
from pipeline.dataset.verify import verify
from pipeline.executor.job import process_job
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from schemas.codec import encode
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.storage import file_sha256
from tests.support.small_dataset import small_sample

REPO = Path(__file__).resolve().parents[2]
CFG = BuildConfig(
    assets_per_job=4,
    views=RenderConfig(resolution=32),
    uv=BakeConfig(resolution=64),
    filter=FilterConfig(min_round_trip_db=10.0),
)


# small datasets, without processing any asset


@dataclass(frozen=True)
class Material:
    """The input of a build of synthetic results: the plan, and the fields of each asset."""

    jobs: list[ShardJob]
    files: dict[str, list[Path]]
    """Fields by uid; none for a rejected asset."""

    def outcomes(self, job: ShardJob) -> list[Outcome]:
        return [outcome_of(ref, job.index, bool(self.files[ref.uid])) for ref in job.refs]

    def commit(self, out: Path, job: ShardJob) -> None:
        samples: dict[Regime, list[tuple[str, list[Path]]]] = {}
        for outcome in self.outcomes(job):
            if outcome.regime is not None:
                samples.setdefault(outcome.regime, []).append((outcome.uid, self.files[outcome.uid]))
        commit(out, job.index, self.outcomes(job), samples)

    def build(self, out: Path) -> None:
        """All of a build but the assets' processing; what is done is kept."""
        with writable(out), lock(out):
            info = settle(out, self.jobs, CFG.recorded())
            remove_leftovers(out, len(self.jobs))
            done = finished(out, self.jobs)
            for job in self.jobs:
                if job.index not in done:
                    self.commit(out, job)
            finish(out, info, self.jobs, len(self.jobs) - len(done))


def regime_of(uid: str) -> Regime:
    return Regime.MV_ONLY if uid.endswith("2") else Regime.TEXTURED


def outcome_of(ref: MeshRef, job: int, accepted: bool) -> Outcome:
    regime = regime_of(ref.uid) if accepted else None
    return Outcome(
        uid=ref.uid,
        uri=ref.uri,
        sha256=ref.sha256,
        status=Status.ACCEPTED if accepted else Status.REJECTED,
        regime=regime,
        reason=None if accepted else Reason.UNTEXTURED,
        detail="",
        shard=f"{regime}-{job:06d}.tar" if regime else None,
        seconds=1.0,
        measurements=Measurements(faces=12),
    )


def write_fields(directory: Path, uid: str, regime: Regime) -> list[Path]:
    directory.mkdir(parents=True)
    for name, data in encode(small_sample(uid, regime, seed=len(uid), view_size=16, uv_size=16)).items():
        (directory / name).write_bytes(data)
    return sorted(directory.iterdir())


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two jobs of four assets: textured, textured, mv_only, rejected."""
    root = tmp_path_factory.mktemp("material")
    refs = [
        MeshRef(uid=f"a{job}{number}", uri=f"/assets/a{job}{number}.glb") for job in range(2) for number in range(4)
    ]
    files = {
        ref.uid: [] if ref.uid.endswith("3") else write_fields(root / ref.uid, ref.uid, regime_of(ref.uid))
        for ref in refs
    }
    return Material(plan_jobs(refs, 4), files)


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    material.build(out)
    assert verify(out) == []
    return out


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are done here, one after the other."""

    def run_jobs(todo, out, cfg, run, workers, address, progress, then) -> None:
        while todo:
            for job in todo:
                process_job(job, out, cfg)
            todo = then()

    monkeypatch.setattr("pipeline.executor.ray_executor.run_jobs", run_jobs)


def content(out: Path) -> dict[str, bytes]:
    """Every file that a reader of the dataset may see."""
    paths = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if ".work" not in path.parts}


def shards(out: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in (out / "shards").glob("[!.]*")}


def no_partial_shard(out: Path, expected: dict[str, str]) -> bool:
    """Whatever lies under a shard's final name is the whole shard."""
    return not (out / "shards").is_dir() or shards(out).items() <= expected.items()
