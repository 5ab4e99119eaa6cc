"""A dataset in operation: what `status` and `failures` tell, and that `retry` and `repair` touch nothing else."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs, read_plan
from pipeline.dataset.state import finish, settle
from pipeline.dataset.verify import verify
from pipeline.executor.job import process_job
from pipeline.filter.rules import FilterConfig
from pipeline.maintain.failures import chosen_assets, damaged, process_alone
from pipeline.maintain.status import Stage, status
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.dataset import part_path, read_ledger, read_ledger_part, shard_path
from schemas.errors import UserError
from schemas.ledger import Reason, Status
from schemas.plan import ShardJob
from schemas.shards import read_shard
from schemas.storage import file_sha256
from seqtex.cli.main import main

REPO = Path(__file__).resolve().parents[3]
CFG = BuildConfig(
    assets_per_job=2,
    views=RenderConfig(resolution=64),
    uv=BakeConfig(resolution=128),
    filter=FilterConfig(min_round_trip_db=15.0),
)
POISON = """
import os, sys
from pipeline.executor.job import process_in_child

def run(request, directory):
    kind = request["ref"]["caption"]
    if kind == "crash":
        sys.stderr.write("the reader met \\x1b[31mits end\\n")
        os._exit(3)
    if kind == "memory":
        bytes(1 << 40)
    process_in_child(request, directory)
"""
CRASHED, STARVED, GONE = 1, 2, 5
"""Assets of the plan that the child fails on, and the one whose file is not there."""


@dataclasses.dataclass(frozen=True)
class Built:
    out: Path
    jobs: list[ShardJob]
    poison: Path

    def uid(self, number: int) -> str:
        return [ref.uid for job in self.jobs for ref in job.refs][number]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Three jobs of two assets: a crash in the first, a lack of memory in the second, a missing file in the third."""
    folder = tmp_path_factory.mktemp("operate")
    (folder / "poison.py").write_text(POISON)
    refs = sorted(procedural(6, folder / "assets", clean=True), key=lambda ref: ref.uid)
    refs[CRASHED] = dataclasses.replace(refs[CRASHED], caption="crash")
    refs[STARVED] = dataclasses.replace(refs[STARVED], caption="memory")
    refs[GONE] = dataclasses.replace(refs[GONE], uri=str(folder / "assets" / "gone.glb"), sha256=None)
    jobs, out = plan_jobs(refs, CFG.assets_per_job), folder / "out"
    for name in ("shards", "ledger", ".work"):
        (out / name).mkdir(parents=True)
    info = settle(out, jobs, CFG.recorded())
    for job in jobs:
        process_job(job, out, CFG, "poison:run", (folder,))
    finish(out, info, jobs, len(jobs))
    assert verify(out) == []
    return Built(out, jobs, folder)


@pytest.fixture
def dataset(built, tmp_path) -> Path:
    """A copy that may be changed."""
    out = Path(shutil.copytree(built.out, tmp_path / "out"))
    (out / ".work").mkdir()
    return out


def told(capsys, *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert main([*arguments, "--log", "json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def stamps(out: Path, jobs: set[int]) -> dict[str, tuple[int, str]]:
    """Time and hash of every shard and ledger part of some jobs."""
    paths = [path for path in out.glob("*/*") if int(re.sub(r"\D", "", path.stem)) in jobs]
    return {path.name: (path.stat().st_mtime_ns, file_sha256(path)) for path in paths}


# status


def test_status_agrees_with_the_ledger(built, capsys):
    (report,) = told(capsys, "status", str(built.out), "--slowest", "2")
    outcomes = [outcome for part in read_ledger(built.out) for outcome in part.outcomes]
    assert (report["planned"], report["done"], report["jobs_done"]) == (6, 6, 3)
    assert report["textured"] + report["mv_only"] == 3 and (report["rejected"], report["failed"]) == (1, 2)
    assert [step["lost"] for step in report["funnel"]][:2] == [{"crashed": 1, "memory_limit": 1}, {"missing_file": 1}]
    assert [(step["entered"], step["left"]) for step in report["funnel"]][:2] == [(6, 4), (4, 3)]
    assert report["funnel"][-1]["left"] == report["textured"]
    assert [slow["seconds"] for slow in report["slowest"]] == sorted((o.seconds for o in outcomes), reverse=True)[:2]
    stored = sum(path.stat().st_size for path in (built.out / "shards").iterdir())
    assert sum(entry["total_bytes"] for entry in report["shards"]) == stored
    assert not report["running"] and report["assets_per_s"] is None and report["unreadable"] == []


def test_status_of_a_build_at_work_tells_its_rate(dataset):
    """One job stood before this run began, one was finished 10 s into it, and one is to come."""
    part_path(dataset, 2).unlink()
    with (dataset / ".lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for path, at in ((dataset / ".lock", 1000), (part_path(dataset, 0), 900), (part_path(dataset, 1), 1010)):
            os.utime(path, (at, at))
        report = status(dataset, 0, now=1020.0)
    assert report.running and (report.done, report.planned) == (4, 6)
    assert report.assets_per_s == pytest.approx(2 / 20) and report.eta_s == pytest.approx(20)
    assert status(dataset, 0, now=1020.0).eta_s is None


def test_a_damaged_ledger_part_does_not_hide_the_rest(dataset):
    part_path(dataset, 1).write_bytes(b"no parquet")
    report = status(dataset, 3, time.time())
    assert report.unreadable == (str(part_path(dataset, 1)),) and report.done == 4


def test_status_needs_no_ray(built):
    script = (
        "from seqtex.cli.main import main; import sys; "
        f"main(['status', {str(built.out)!r}]); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True, capture_output=True)


def test_the_stages_come_in_order(built):
    steps = status(built.out, 0, 0.0).funnel
    assert [step.stage for step in steps] == list(Stage)
    assert all(step.entered - sum(step.lost.values()) == step.left for step in steps)


# failures


def test_failures_tell_stderr_and_how_to_reproduce(built, capsys):
    *rows, summary = told(capsys, "failures", str(built.out))
    assert {row["uid"]: row["reason"] for row in rows} == {
        built.uid(CRASHED): "crashed",
        built.uid(STARVED): "memory_limit",
    }
    crash = next(row for row in rows if row["reason"] == "crashed")
    assert "exit code 3" in crash["detail"] and "the reader met" in crash["detail"]
    assert crash["reproduce"] == f"seqtex inspect {built.out} --uid {built.uid(CRASHED)}" and summary["listed"] == 2
    *rows, _ = told(capsys, "failures", str(built.out), "--rejected")
    assert [row["status"] for row in rows].count("rejected") == 1 and len(rows) == 3


def test_nothing_from_outside_steers_the_terminal(built, capsys):
    assert main(["failures", str(built.out)]) == 0
    text = capsys.readouterr().out
    assert "the reader met ?[31mits end" in text and "\x1b" not in text


def test_one_asset_alone_ends_as_in_the_ledger(built, capsys):
    before = {path: path.read_bytes() for path in built.out.rglob("*") if path.is_file()}
    crash = process_alone(built.out, built.uid(CRASHED), target="poison:run", python_path=(built.poison,))
    assert (crash.status, crash.reason) == (Status.FAILED, Reason.CRASHED) and "the reader met" in crash.detail
    (row,) = told(capsys, "inspect", str(built.out), "--uid", built.uid(0))
    kept = read_ledger_part(part_path(built.out, 0)).outcomes[0]
    assert row["as_in_ledger"] and row["status"] == "accepted" and row["detail"] == kept.detail
    assert {name: row[name] for name in dataclasses.asdict(kept.measurements)} == dataclasses.asdict(kept.measurements)
    assert before == {path: path.read_bytes() for path in built.out.rglob("*") if path.is_file()}
    assert main(["inspect", str(built.out), "--uid", "nobody"]) == 2
    assert "plan.parquet" in capsys.readouterr().err


# retry


def test_a_retry_changes_the_rows_of_its_reason_alone(built, dataset, tmp_path):
    """The crash is over: the asset is accepted, and the whole job is what it would have been without the crash."""
    others = stamps(dataset, {1, 2})
    before = read_ledger_part(part_path(dataset, 0)).outcomes
    samples = {uid: f for shard in read_ledger_part(part_path(dataset, 0)).shards
               for uid, f in read_shard(shard_path(dataset, shard.name))}  # fmt: skip
    assert main(["retry", str(dataset), "--reason", "crashed", "--reason=timeout"]) == 0
    part = read_ledger_part(part_path(dataset, 0))
    assert part.outcomes[0] == before[0] and part.outcomes[1].status is Status.ACCEPTED
    now = {uid: f for shard in part.shards for uid, f in read_shard(shard_path(dataset, shard.name))}
    assert samples and samples.items() <= now.items() and len(now) == 2
    assert stamps(dataset, {1, 2}) == others and verify(dataset) == []
    rows = [outcome for entry in read_ledger(dataset) for outcome in entry.outcomes]
    assert len(rows) == 6 == sum(sum(row.status is kind for row in rows) for kind in Status)
    for name in ("shards", "ledger", ".work"):
        (tmp_path / "fresh" / name).mkdir(parents=True)
    process_job(built.jobs[0], tmp_path / "fresh", CFG)
    assert read_ledger_part(part_path(tmp_path / "fresh", 0)).shards == part.shards


def test_a_retry_that_cannot_be_written_leaves_what_was(built, dataset, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "the disk")

    (job,) = chosen_assets(dataset, read_plan(dataset / "plan.parquet"), reasons={Reason.CRASHED})
    assert job.index == 0 and job.only == {built.uid(CRASHED)}
    before = stamps(dataset, {0, 1, 2})
    monkeypatch.setattr("pipeline.dataset.shards.write_tar", fail)
    with pytest.raises(UserError, match="No space left"):
        process_job(job, dataset, CFG, "poison:run", (built.poison,))
    assert stamps(dataset, {0, 1, 2}) == before and verify(dataset) == []


def test_a_retry_refuses_what_it_cannot_keep(built, dataset, capsys):
    job = chosen_assets(dataset, read_plan(dataset / "plan.parquet"), reasons={Reason.CRASHED})[0]
    path = shard_path(dataset, read_ledger_part(part_path(dataset, 0)).shards[0].name)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    before = stamps(dataset, {0})
    with pytest.raises(UserError, match="seqtex repair"):
        process_job(job, dataset, CFG)
    assert stamps(dataset, {0}) == before
    part_path(dataset, 1).unlink()
    assert main(["retry", str(dataset), "--reason", "crashed"]) == 1
    assert f"job 1 is unfinished or damaged; run `seqtex repair {dataset}`" in capsys.readouterr().err
    assert main(["retry", str(dataset), "--reason", "tired"]) == 2
    assert "memory_limit" in capsys.readouterr().err


# repair


def test_a_repair_redoes_the_damaged_jobs_alone(dataset, capsys):
    """A ledger part and a shard, each of its own job. The shard comes back with the bytes it had."""
    shards = {path.name: file_sha256(path) for path in (dataset / "shards").glob("*2.tar")}
    part_path(dataset, 1).write_bytes(part_path(dataset, 1).read_bytes()[:-9])
    path = shard_path(dataset, read_ledger_part(part_path(dataset, 2)).shards[0].name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [job.index for job in damaged(dataset, read_plan(dataset / "plan.parquet"))] == [1, 2]
    untouched = stamps(dataset, {0})
    *_, repaired, verified = told(capsys, "repair", str(dataset))
    assert repaired["jobs_run"] == 2 and verified["problems"] == 0
    assert stamps(dataset, {0}) == untouched
    assert shards == {path.name: file_sha256(path) for path in (dataset / "shards").glob("*2.tar")} and shards
    rows = read_ledger_part(part_path(dataset, 1)).outcomes
    assert [row.status for row in rows] == [Status.ACCEPTED] * 2, "nothing kills the process this time"
    whole = stamps(dataset, {0, 1, 2})
    assert told(capsys, "repair", str(dataset))[-2]["jobs_run"] == 0
    assert stamps(dataset, {0, 1, 2}) == whole


def test_a_verification_shows_how_far_it_is(dataset, capsys):
    assert main(["verify", str(dataset)]) == 0
    first, *_, end = (line.partition("  ")[2] for line in capsys.readouterr().out.splitlines())
    assert re.fullmatch(r"verifying  0 of \d+ jobs \(0%\)", first) and end == f"verified  {dataset}: no problems"


@pytest.mark.parametrize("command", ["status", "failures", "repair"])
def test_a_folder_that_is_no_dataset(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 1
    assert "seqtex build" in capsys.readouterr().err and not list(tmp_path.iterdir())


# questions to the ledger


def test_the_questions_of_the_docs_are_answered(built, monkeypatch):
    pages = "".join((REPO / "docs" / name).read_text() for name in ("reliability.md", "operating.md"))
    queries = re.findall(r"```sql\n(.*?)```", pages, flags=re.DOTALL)
    monkeypatch.chdir(built.out)
    (of_notes,) = (query for query in queries if "unnest(notes)" in query)
    assert duckdb.sql(of_notes).fetchall() == [], "loading left nothing out"
    answers = [duckdb.sql(query).fetchall() for query in queries if query != of_notes]
    outcomes = [outcome for part in read_ledger(built.out) for outcome in part.outcomes]
    accepted = sorted(outcome.uid for outcome in outcomes if outcome.status is Status.ACCEPTED)
    assert len(answers) == 6
    isolation, ends, slowest, types, poorest, licences = answers
    assert sorted(isolation) == sorted(Counter(outcome.sandbox for outcome in outcomes).items())
    assert sum(row[-1] for row in ends) == 6 and ("failed", None, "crashed", 1) in ends
    assert [row[0] for row in slowest] == [o.uid for o in sorted(outcomes, key=lambda o: -o.seconds)]
    assert types == [(".glb", 6, 0.5)]
    assert {row[0] for row in poorest} <= set(accepted) and [row[1] for row in poorest] == sorted(r[1] for r in poorest)
    assert licences == [("CC0-1.0", len(accepted))]
