"""A file that was put right is taken in, by `retry` and by the build itself, row by row; nothing else moves."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline.dataset.plan import plan_jobs, read_plan
from pipeline.dataset.state import finish, planned_jobs, settle
from pipeline.dataset.verify import verify
from pipeline.executor.build import build, rework
from pipeline.executor.job import process_job
from pipeline.executor.renew import renew, stale
from pipeline.maintain.failures import chosen_assets
from pipeline.sources.folder import folder
from schemas.dataset import part_path, read_dataset_json, read_ledger, read_ledger_part
from schemas.errors import UsageError, UserError
from schemas.ledger import Outcome, Reason, Status
from tests.support.small_build import CFG

CUBE = """mtllib {name}.mtl
usemtl m
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
f 4/1 3/2 2/3 1/4
f 5/1 6/2 7/3 8/4
f 1/1 2/2 6/3 5/4
f 2/1 3/2 7/3 6/4
f 3/1 4/2 8/3 7/4
f 4/1 1/2 5/3 8/4
"""
MISSING = partial(chosen_assets, reasons=frozenset({Reason.MISSING_FILE}))


def picture(path: Path, color: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (8, 8), color)
    image.paste((250, 250, 20), (0, 0, 4, 8))
    image.save(path)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A folder of three cubes, the second without its texture, and the dataset of it: two jobs."""
    root = tmp_path_factory.mktemp("renew")
    (root / "assets").mkdir()
    for index, name in enumerate("abc"):
        (root / "assets" / f"{name}.obj").write_text(CUBE.format(name=name) + f"# {name}\n")
        (root / "assets" / f"{name}.mtl").write_text(f"newmtl m\nmap_Kd {name}.png\n")
        if name != "b":
            picture(root / "assets" / f"{name}.png", (200, 40 * index, 30))
    out = root / "out"
    for part in ("shards", "ledger", ".work"):
        (out / part).mkdir(parents=True)
    jobs = plan_jobs(folder(root / "assets"), CFG.assets_per_job, root / "assets")
    info = settle(out, jobs, CFG.recorded())
    for job in jobs:
        process_job(job, out, CFG)
    finish(out, info, jobs, len(jobs))
    return root


@pytest.fixture
def place(first, tmp_path) -> Path:
    """A copy of the dataset beside the same assets, at the place where they were planned."""
    shutil.copytree(first / "out", tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir(exist_ok=True)
    yield tmp_path
    (first / "assets" / "b.png").unlink(missing_ok=True)
    picture(first / "assets" / "a.png", (200, 0, 30))


def rows(out: Path) -> dict[str, Outcome]:
    return {row.uid[0]: row for part in read_ledger(out) for row in part.outcomes}


def hashes(out: Path) -> dict[str, str | None]:
    return {ref.uid[0]: ref.sha256 for job in read_plan(out / "plan.parquet") for ref in job.refs}


def test_a_texture_that_was_missing_is_taken_in_by_retry(first, place, without_ray):
    out = place / "out"
    before, planned = rows(out), hashes(out)
    assert before["b"].reason is Reason.MISSING_FILE and before["a"].status is before["c"].status is Status.ACCEPTED
    picture(first / "assets" / "b.png", (20, 90, 200))
    rework(out, MISSING, take_in=True)
    now = rows(out)
    assert now["b"].status is Status.ACCEPTED and now["b"].sha256 == hashes(out)["b"] != planned["b"]
    assert (now["a"], now["c"]) == (before["a"], before["c"]) and hashes(out)["a"] == planned["a"]
    (step,) = read_dataset_json(out).history
    assert step == {"step": "renewed", "sha256": {now["b"].uid: [planned["b"], now["b"].sha256]}}
    assert verify(out) == []
    assert build(f"folder:{first / 'assets'}", out, CFG).jobs_run == 0, "the source is what the dataset has"


def test_a_build_again_takes_in_what_had_no_sample(first, place, without_ray):
    out = place / "out"
    picture(first / "assets" / "b.png", (20, 90, 200))
    report = build(f"folder:{first / 'assets'}", out, CFG)
    assert (report.jobs_run, report.rejected) == (1, 0) and rows(out)["b"].status is Status.ACCEPTED
    assert verify(out) == []


def test_a_sample_whose_file_changed_is_replaced_only_when_asked_for(first, place, without_ray):
    out = place / "out"
    before = rows(out)
    picture(first / "assets" / "a.png", (20, 200, 90))
    with pytest.raises(UserError, match=r"sha256 of asset a.*seqtex retry DATASET --uid"):
        build(f"folder:{first / 'assets'}", out, CFG)
    assert rows(out) == before and read_dataset_json(out).history == []
    with pytest.raises(UsageError, match="no asset 'nobody'"):
        rework(out, partial(chosen_assets, uids=frozenset({"nobody"})), take_in=True)
    rework(out, partial(chosen_assets, uids=frozenset({before["a"].uid})), take_in=True)
    assert rows(out)["a"].sha256 != before["a"].sha256 and rows(out)["c"] == before["c"]
    assert verify(out) == []


def test_an_interruption_after_the_plan_leaves_nothing_undone(first, place, without_ray):
    """The plan names the new file, its row is still of the old one: the next build processes that asset alone."""
    out = place / "out"
    info = read_dataset_json(out)
    jobs = planned_jobs(out, info)
    picture(first / "assets" / "b.png", (20, 90, 200))
    uid = rows(out)["b"].uid
    info, jobs = renew(out, info, jobs, {uid}, 1 << 20)
    (job,) = stale(out, info, jobs)
    assert job.only == {uid} and rows(out)["b"].reason is Reason.MISSING_FILE
    kept = read_ledger_part(part_path(out, 1))
    assert build(f"folder:{first / 'assets'}", out, CFG).jobs_run == 1
    assert rows(out)["b"].status is Status.ACCEPTED and read_ledger_part(part_path(out, 1)) == kept
    assert list(stale(out, info, jobs)) == []


def test_a_retry_without_a_change_keeps_plan_and_history(place, without_ray):
    out = place / "out"
    before = (out / "dataset.json").read_bytes(), (out / "plan.parquet").read_bytes()
    rework(out, MISSING, take_in=True)
    assert ((out / "dataset.json").read_bytes(), (out / "plan.parquet").read_bytes()) == before
    assert rows(out)["b"].reason is Reason.MISSING_FILE
