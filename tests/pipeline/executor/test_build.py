"""Builds over Ray: the same bytes however they come about, and nothing lost when they are stopped."""

import dataclasses
import fcntl
import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.plan import read_plan
from pipeline.dataset.shards import committed
from pipeline.dataset.state import BuildReport
from pipeline.dataset.verify import verify
from pipeline.executor import ray_executor
from pipeline.executor.build import build
from pipeline.executor.job import process_job
from pipeline.executor.progress import BuildEvent
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from pipeline.sources.registry import open_source
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import read_ledger, read_parquet, shard_path
from schemas.errors import UsageError, UserError
from schemas.ledger import Counts, Reason
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.storage import file_sha256
from seqtex.cli.main import main

CFG = BuildConfig(
    assets_per_job=3,
    views=RenderConfig(resolution=64),
    uv=BakeConfig(resolution=128),
    filter=FilterConfig(min_round_trip_db=15.0),
    unwrap=UnwrapConfig(max_faces=40_000),  # so that the dense assets end as views alone
)
COUNT = 10
SEED = 5
REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def refs(tmp_path_factory) -> list[MeshRef]:
    return list(procedural(COUNT, tmp_path_factory.mktemp("assets")))


@dataclasses.dataclass(frozen=True)
class Built:
    out: Path
    report: BuildReport
    events: list[BuildEvent]


@pytest.fixture(scope="module")
def built(refs, tmp_path_factory) -> Built:
    """A build by two workers, shared by the tests, which leave it as it was."""
    out, events = tmp_path_factory.mktemp("built") / "out", list[BuildEvent]()
    report = build(refs, out, CFG, 2, events.append)
    return Built(out, report, events)


def shards(out: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted((out / "shards").iterdir())}


def test_every_asset_is_accounted_for(built):
    report = built.report
    assert report.planned == COUNT == report.textured + report.mv_only + report.rejected + report.failed
    assert report.textured >= 5
    assert report.mv_only >= 1
    assert report.rejected >= 1
    assert report.failed == 0
    assert verify(built.out) == []


def test_progress_is_told_job_by_job(built):
    events = [event for event in built.events if event.event not in ("assets", "starting", "compiling")]
    assert [event.event for event in events] == [
        "planned", "started", "job", "job", "job", "job", "finishing", "done"
    ]  # fmt: skip
    assert [event.jobs_done for event in events] == [0, 0, 1, 2, 3, 4, 4, 4]
    last, report = events[-1], built.report
    assert last.assets_done == COUNT and last.eta_s == 0 and last.running_at_once == 2
    assert (last.textured, last.mv_only) == (report.textured, report.mv_only)
    assert (last.rejected, last.failed) == (report.rejected, report.failed)
    for event in events[2:-2]:  # the stages are part of the job
        assert 0 < event.stage_seconds < event.job_seconds


def process_as_it_is_seen(job: ShardJob, out: Path, cfg: BuildConfig, *, tell: Callable[[Counts], None], **rest: Any):
    """Process a job, but let an asset begin only once the counts of those before it have reached the driver."""

    def tell_until_seen(counts: Counts) -> None:
        seen, begun = out.parent / f"seen-{counts.total}", time.monotonic()
        while not seen.exists() and time.monotonic() - begun < 60:
            tell(counts)
            time.sleep(0.05)

    return process_job(job, out, cfg, tell=tell_until_seen, **rest)


def test_assets_of_a_running_job_are_counted(refs, tmp_path, monkeypatch):
    """All assets in one job: each of them is counted before it ends."""
    monkeypatch.setattr(ray_executor, "run_jobs", functools.partial(ray_executor.run_jobs, do=process_as_it_is_seen))
    events: list[BuildEvent] = []

    def note(event: BuildEvent) -> None:
        events.append(event)
        (tmp_path / f"seen-{event.assets_done}").touch()

    build(refs[:3], tmp_path / "out", dataclasses.replace(CFG, assets_per_job=3), 1, note)
    within = events[: [event.event for event in events].index("job")]
    assert sorted({event.assets_done for event in within}) == [0, 1, 2, 3]
    done = [event.assets_done for event in events]
    assert done == sorted(done)
    assert all(event.jobs_done == 0 for event in within)


def test_the_card_and_the_index_speak_of_what_is_there(built):
    card = (built.out / "README.md").read_text()
    assert f"`textured`: {built.report.textured} samples" in card
    index = json.loads((built.out / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1"
    assert sum(entry["nsamples"] for entry in index["shardlist"]) == built.report.textured + built.report.mv_only
    assert {Path(entry["url"]).name for entry in index["shardlist"]} == shards(built.out).keys()


def test_one_worker_and_another_order_give_the_same_bytes(built, refs, tmp_path):
    shuffled = random.Random(SEED).sample(refs, len(refs))
    report = build(shuffled, tmp_path / "out", CFG, 1)
    assert shards(tmp_path / "out") == shards(built.out)
    assert (tmp_path / "out" / "plan.parquet").read_bytes() == (built.out / "plan.parquet").read_bytes()
    assert report == dataclasses.replace(built.report)


def test_a_second_build_finds_nothing_to_do(built, refs):
    before = {path: path.stat().st_mtime_ns for path in built.out.rglob("*.*") if path.is_file()}
    events: list[BuildEvent] = []
    report = build(refs, built.out, CFG, 2, events.append)
    assert report == dataclasses.replace(built.report, jobs_run=0)
    assert events[0].detail == "nothing to do"
    after = {path: path.stat().st_mtime_ns for path in built.out.rglob("*.*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }


def test_another_configuration_is_refused_by_name(built, refs):
    other = dataclasses.replace(CFG, views=RenderConfig(resolution=32))
    with pytest.raises(UserError, match=r"built with views\.resolution=64, now it is 32"):
        build(refs, built.out, other)


def test_another_input_is_refused_by_name(built, refs):
    with pytest.raises(UserError, match="1 planned assets are gone"):
        build(refs[1:], built.out, CFG)
    changed = [dataclasses.replace(refs[0], sha256="0" * 64), *refs[1:]]
    with pytest.raises(UserError, match=f"sha256 of asset {refs[0].uid}"):
        build(changed, built.out, CFG)
    assert verify(built.out) == []


def test_a_second_builder_is_refused(built, refs):
    with (built.out / ".lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another build \(process \d+\) is at work"):
            build(refs, built.out, CFG)


def test_an_output_that_cannot_be_written_is_named(refs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: the dataset cannot be read or written \(Not a directory\)"):
        build(refs, tmp_path / "file" / "out", CFG)


def test_sources_are_named_by_kind(tmp_path, monkeypatch):
    assert len(list(open_source("procedural:2", tmp_path / "made"))) == 2
    assert [ref.uri for ref in open_source(f"folder:{tmp_path / 'made'}", tmp_path)] == [
        str(path) for path in sorted((tmp_path / "made").glob("*.glb"))
    ]
    named = [ref.uid for ref in open_source(f"folder:{tmp_path / 'made'}", tmp_path)]
    assert [ref.uid for ref in open_source(str(tmp_path / "made"), tmp_path)] == named
    monkeypatch.chdir(tmp_path)
    assert [ref.uid for ref in open_source("made", tmp_path)] == named, "a bare path is a folder"
    for spec in ("folder:", f"folder:{tmp_path / 'none'}", "procedural:x", "procedural:0", "other:1", ""):
        with pytest.raises(UsageError, match="folder:PATH"):
            open_source(spec, tmp_path)


SCRIPT = """
import sys
from pathlib import Path
from pipeline.executor import ray_executor
from pipeline.executor.build import build
from pipeline.executor.job import process_job
from pipeline.sources.procedural import procedural
from tests.pipeline.executor.test_build import CFG, COUNT
build(procedural(COUNT, Path(sys.argv[1])), Path(sys.argv[2]), CFG, 2, lambda event: print(event.event, flush=True))
"""


def test_a_killed_and_damaged_build_is_finished_to_the_same_bytes(built, refs, tmp_path):
    """SIGKILL on the driver, a random moment after the plan and again after the second job; then a shard is lost."""
    rng = random.Random(SEED)
    out, assets = tmp_path / "out", Path(refs[0].uri).parent
    for wanted in (["planned"], ["planned", "job", "job"]):
        command = [sys.executable, "-c", SCRIPT, str(assets), str(out)]
        driver = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        for event in wanted:
            assert any(line.strip() == event for line in driver.stdout)
        time.sleep(rng.uniform(0, 1))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        driver.stdout.close()
    sorted((out / "shards").glob("*.tar"))[0].unlink()
    report = build(refs, out, CFG, 2)
    assert 1 <= report.jobs_run < report.jobs  # what was finished is kept
    assert shards(out) == shards(built.out)
    assert verify(out) == []


def test_what_lost_workers_leave_half_written_is_gone_when_the_build_is_done(refs, tmp_path):
    out = tmp_path / "out"

    def lose(event: BuildEvent) -> None:
        if event.event == "job":
            for name in ("ledger/.000000.parquet.1.tmp", "shards/.textured-000000.tar.1.tmp"):
                (out / name).write_bytes(b"half")

    build(refs[:1], out, CFG, 1, lose)
    assert verify(out) == []


def test_a_shard_of_another_size_is_not_taken_for_finished(built, tmp_path):
    out = Path(shutil.copytree(built.out, tmp_path / "out"))
    job = read_plan(out / "plan.parquet")[0]
    part = committed(out, job)
    assert part is not None
    with shard_path(out, part.shards[0].name).open("r+b") as file:
        file.truncate(1024)
    assert committed(out, job) is None


# other thresholds on what was built


def judged(capsys, *arguments: str) -> tuple[list[dict], dict]:
    """Return the output of `seqtex what-if`: the changes, then the summary."""
    capsys.readouterr()
    assert main(["what-if", *arguments, "--log", "json"]) == 0
    *lines, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return lines, summary


def test_the_thresholds_of_the_build_change_nothing(built, capsys):
    before = {path: path.read_bytes() for path in built.out.rglob("*") if path.is_file()}
    found, summary = judged(capsys, str(built.out))
    assert found == [] and summary["assets"] == COUNT and summary["changes"] == 0
    assert before == {path: path.read_bytes() for path in built.out.rglob("*") if path.is_file()}


def test_a_stricter_threshold_changes_exactly_the_assets_that_cross_it(built, capsys, tmp_path):
    outcomes = [outcome for part in read_ledger(built.out) for outcome in part.outcomes]
    accepted = [outcome for outcome in outcomes if outcome.regime is not None]
    threshold = sorted(outcome.measurements.texture_score for outcome in accepted)[len(accepted) // 2]
    below = {outcome.uid for outcome in accepted if outcome.measurements.texture_score < threshold}
    found, summary = judged(
        capsys,
        str(built.out),
        "--filter.min_texture_score",
        repr(threshold),
        "--out",
        str(tmp_path / "changes.parquet"),
    )
    assert below and {change["uid"] for change in found} == below
    assert {change["kind"] for change in found} == {"accepted -> rejected"}
    assert {change["rule"] for change in found} == {"min_texture_score"} and summary["changes"] == len(below)
    table = read_parquet(tmp_path / "changes.parquet").to_pylist()
    assert [(row["uid"], row["after"]) for row in table] == [(change["uid"], change["after"]) for change in found]


def test_a_stricter_proof_costs_textures_and_a_milder_judge_asks_for_a_rebuild(built, capsys, tmp_path):
    outcomes = [outcome for part in read_ledger(built.out) for outcome in part.outcomes]
    (tmp_path / "new.yaml").write_text(
        "filter:\n  min_round_trip_db: 99.0\n  min_distinct_colors: 1\n  min_color_std: 0\n"
    )
    found, _ = judged(capsys, str(built.out), "--config", str(tmp_path / "new.yaml"))
    kinds = {change["uid"]: change["kind"] for change in found}
    for outcome in outcomes:
        proof = outcome.measurements.round_trip_psnr
        if outcome.regime is Regime.TEXTURED:
            assert kinds.pop(outcome.uid, None) == ("textured -> mv_only" if proof < 99 else None)
        elif outcome.reason is Reason.UNTEXTURED:
            assert kinds.pop(outcome.uid) == "rejected -> accepted"
    assert not kinds and any(change["needs_rebuild"] for change in found)
