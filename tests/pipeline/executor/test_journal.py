"""Assets that were done in a job that was killed are kept: taken as they are, and nothing but them."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.verify import verify
from pipeline.executor.asset_result import AssetResult
from pipeline.executor.build import build
from pipeline.executor.job import _run_asset as run_asset
from pipeline.executor.job import process_job
from pipeline.executor.journal import Journal, counts_ahead
from pipeline.executor.progress import BuildEvent
from pipeline.sources.procedural import procedural
from schemas.dataset import part_path
from schemas.ledger import Counts, Reason, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.storage import Location, ObjectPath, working_folder
from tests.support.build_without_assets import CFG as SMALL
from tests.support.build_without_assets import REPO, Material, material, shards

__all__ = ["material"]
CFG = dataclasses.replace(SMALL, assets_per_job=6)
KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.executor import ray_executor
from pipeline.executor.build import build
from pipeline.executor.job import _run_asset as run_asset
from pipeline.executor.job import process_job
from pipeline.sources.procedural import procedural
from tests.pipeline.executor.test_journal import CFG

def run_jobs(todo, out, cfg, run, workers, address, progress, then):
    def tell(counts):
        if counts.total == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    for job in todo:
        process_job(job, out, cfg, tell=tell)

ray_executor.run_jobs = run_jobs
build(list(procedural(6, Path(sys.argv[1]))), Path(sys.argv[2]), CFG)
"""


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> list[MeshRef]:
    return list(procedural(6, tmp_path_factory.mktemp("assets")))


@pytest.fixture(scope="module")
def unbroken(refs: list[MeshRef], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    for name in ("shards", "ledger"):
        (out / name).mkdir()
    process_job(plan_jobs(refs, 6, Path(refs[0].uri).parent)[0], out, CFG)
    return out


def killed_build(refs: list[MeshRef], out: Path, done: int) -> None:
    """A build whose process is killed, with SIGKILL, when it has done some assets."""
    command = [sys.executable, "-c", KILLED, str(Path(refs[0].uri).parent), str(out), str(done)]
    assert subprocess.run(command, cwd=REPO).returncode == -signal.SIGKILL


def run_here(monkeypatch: pytest.MonkeyPatch, told: list[Counts]) -> None:
    """Jobs are done in this process, and report as a worker does."""

    def run_jobs(todo, out, cfg, run, workers, address, progress, then) -> None:
        for job in todo:

            def tell(counts: Counts, job: ShardJob = job) -> None:
                told.append(counts)
                progress.at_work(job.index, counts)
                progress.tick()

            process_job(job, out, cfg, tell=tell)

    monkeypatch.setattr("pipeline.executor.ray_executor.run_jobs", run_jobs)


def processed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the uid of every asset that is processed from now on."""
    uids: list[str] = []

    def run(children, job, ref, *rest):
        uids.append(ref.uid)
        return run_asset(children, job, ref, *rest)

    monkeypatch.setattr("pipeline.executor.job._run_asset", run)
    return uids


def test_a_build_that_is_killed_twice_processes_no_asset_again(refs, unbroken, tmp_path, monkeypatch):
    """Its counts go on where they were, never back; shards are those of a build that nobody killed."""
    out, events, told = tmp_path / "out", list[BuildEvent](), list[Counts]()
    killed_build(refs, out, 2)
    killed_build(refs, out, 4)
    assert not list((out / "ledger").iterdir()) and not list((out / "shards").iterdir())
    run_here(monkeypatch, told)
    again = processed(monkeypatch)
    build(refs, out, CFG, on_event=events.append)
    assert again == [ref.uid for ref in refs[4:]]
    done = [event.assets_done for event in events]
    assert done[0] == 4 and done[-1] == 6 and done == sorted(done)
    assert [counts.total for counts in told] == [1, 2, 3, 4, 5, 6]
    assert shards(out) == shards(unbroken) and verify(out) == []
    assert not working_folder(out).exists()


def test_a_finished_job_that_is_done_again_takes_nothing_from_before(refs, tmp_path, monkeypatch):
    """A kill between commit and clean-up leaves a journal: a later retry processes its assets all the same."""
    out = tmp_path / "out"
    job = plan_jobs(refs[:2], 6, Path(refs[0].uri).parent)[0]
    for name in ("shards", "ledger"):
        (out / name).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        process_job(job, out, CFG)
    assert len(list(working_folder(out).iterdir())) == 1
    again = processed(monkeypatch)
    process_job(dataclasses.replace(job, only=frozenset({refs[0].uid})), out, CFG)
    assert again == [refs[0].uid]
    assert not list(working_folder(out).iterdir())


def test_a_failure_is_not_kept(refs, tmp_path, monkeypatch):
    """An asset that is killed together with its job looks like one that crashes."""
    out = tmp_path / "out"
    job = plan_jobs(refs[:3], 6, Path(refs[0].uri).parent)[0]
    for name in ("shards", "ledger"):
        (out / name).mkdir(parents=True)

    def run(children, number, ref, *rest):
        if ref.uid == refs[2].uid:
            raise KeyboardInterrupt
        result = run_asset(children, number, ref, *rest)
        failed = dataclasses.replace(result.outcome, status=Status.FAILED, regime=None, reason=Reason.CRASHED)
        return AssetResult(outcome=failed) if ref.uid == refs[1].uid else result

    monkeypatch.setattr("pipeline.executor.job._run_asset", run)
    with pytest.raises(KeyboardInterrupt):
        process_job(job, out, CFG)
    with Journal(out, job, CFG) as journal:
        assert set(journal.results(tmp_path / "kept")) == {refs[0].uid}


# records


def written(out: Location, material: Material, count: int = 4) -> tuple[Path, list[AssetResult]]:
    """A journal with some assets of a job: its file, and what it holds."""
    job, results = material.jobs[0], list[AssetResult]()
    working_folder(out).mkdir(parents=True)
    with Journal(out, job, CFG) as journal:
        for outcome in material.outcomes(job)[:count]:
            picture = b"" if outcome.status is Status.ACCEPTED else b"picture"
            files = tuple(material.files[outcome.uid])
            results.append(AssetResult(outcome=outcome, files=files, stage_seconds=0.25, picture=picture))
            journal.append(results[-1])
    return next(working_folder(out).iterdir()), results


def content(results: dict[str, AssetResult]) -> dict[str, tuple[object, ...]]:
    """Results without the folders that their files lie in."""
    return {
        uid: (one.outcome, one.stage_seconds, one.picture, {file.name: file.read_bytes() for file in one.files})
        for uid, one in results.items()
    }


def test_a_journal_gives_back_what_it_was_given_up_to_where_it_is_whole(material, tmp_path):
    """Cut at every record's border, and around it; a bit flipped anywhere ends it there."""
    out = tmp_path / "out"
    path, results = written(out, material)
    expected = list(content({one.outcome.uid: one for one in results}).items())
    whole, ends = path.read_bytes(), list[int]()

    def found(data: bytes, folder: str) -> list[tuple[str, tuple[object, ...]]]:
        path.write_bytes(data)
        return list(content(Journal(out, material.jobs[0], CFG).results(tmp_path / folder)).items())

    assert found(whole, "whole") == expected
    for count in range(1, 5):
        other = tmp_path / f"{count}"
        ends.append(len(written(other, material, count)[0].read_bytes()))
    assert ends[-1] == len(whole)
    for number, end in enumerate(ends):
        assert found(whole[:end], f"to-{end}") == expected[: number + 1]
        assert found(whole[: end - 1], f"before-{end}") == expected[:number]
        assert found(whole[: end + 1], f"behind-{end}") == expected[: number + 1]
        assert sum(counts.total for _, counts in counts_ahead(out, material.jobs, CFG)) == number + 1
    for at in range(0, len(whole), 997):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        before = sum(end <= at for end in ends)
        assert found(bytes(damaged), f"flipped-{at}")[:before] == expected[:before]
        assert len(found(bytes(damaged), f"again-{at}")) in range(before, 4)


def test_a_journal_counts_for_the_same_assets_and_configuration_alone(material, tmp_path):
    out = tmp_path / "out"
    written(out, material)
    job = material.jobs[0]
    other = dataclasses.replace(CFG, rig=dataclasses.replace(CFG.rig, elevation_deg=11.0))
    assert Journal(out, job, other).results(tmp_path / "other") == {}
    assert Journal(out, material.jobs[1], CFG).results(tmp_path / "job") == {}
    changed = dataclasses.replace(job.refs[0], sha256="0" * 64)
    renewed = dataclasses.replace(job, refs=(changed, *job.refs[1:]))
    assert list(Journal(out, renewed, CFG).results(tmp_path / "renewed")) == [ref.uid for ref in job.refs[1:]]


def test_jobs_that_other_machines_have_finished_leave_no_journal_here(material, tmp_path, monkeypatch):
    """Into an object store each machine works on a disk of its own."""
    monkeypatch.setenv("SEQTEX_SCRATCH", str(tmp_path / "scratch"))
    out = ObjectPath(f"memory://{tmp_path.name}/forge")
    first, second = material.jobs
    path, _ = written(out, material)
    Journal(out, second, CFG).results(tmp_path / "one")
    assert path.exists(), "unfinished"
    part_path(out, first.index).write_bytes(b"committed elsewhere")
    Journal(out, second, CFG).results(tmp_path / "two")
    assert not path.exists()


def test_a_journal_keeps_no_password(material, tmp_path):
    out, job = tmp_path / "out", material.jobs[0]
    working_folder(out).mkdir(parents=True)
    row = dataclasses.replace(material.outcomes(job)[3], detail="no answer of https://me:secret@host/x")
    with Journal(out, job, CFG) as journal:
        journal.append(AssetResult(outcome=row))
        kept = journal.results(tmp_path / "kept")[row.uid].outcome
    assert b"secret" not in next(working_folder(out).iterdir()).read_bytes()
    assert kept == dataclasses.replace(row, detail="no answer of https://***@host/x")
