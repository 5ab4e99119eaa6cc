"""Shards and ledger: equal bytes for equal samples, nothing half-written counts, all damage is found and located."""

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from pipeline.dataset.attribution import FILE as ATTRIBUTION
from pipeline.dataset.attribution import attribution_parquet
from pipeline.dataset.plan import plan_bytes, plan_difference, plan_jobs, read_plan
from pipeline.dataset.shards import commit, committed, remove_leftovers
from pipeline.dataset.verify import verify
from schemas.codec import SCHEMA_VERSION, encode
from schemas.dataset import (
    DatasetInfo,
    dataset_json,
    index_json,
    part_path,
    read_dataset_json,
    read_ledger_part,
    shard_path,
)
from schemas.errors import UserError
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import Attribution, MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.shards import read_samples, read_shard, stored_samples
from tests.schemas.test_codec import make_sample

REGIMES = {"a": Regime.TEXTURED, "b": None, "c": Regime.MV_ONLY, "d": Regime.TEXTURED}
"""uid and what becomes of it; None: rejected."""


def field_files(folder: Path, uid: str, regime: Regime) -> list[Path]:
    sample = make_sample(regime, seed=ord(uid), views=2, side=8)
    (folder / uid).mkdir(parents=True, exist_ok=True)
    for name, data in encode(replace(sample, uid=uid, meta=sample.meta | {"uid": uid})).items():
        (folder / uid / name).write_bytes(data)
    return list((folder / uid).iterdir())


def outcome(uid: str, regime: Regime | None) -> Outcome:
    return Outcome(
        uid=uid,
        uri=f"/assets/{uid}.glb",
        sha256=None,
        status=Status.ACCEPTED if regime else Status.REJECTED,
        regime=regime,
        reason=None if regime else Reason.UNTEXTURED,
        detail="",
        shard=f"{regime}-000000.tar" if regime else None,
        seconds=0.5,
        measurements=Measurements(faces=12),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small dataset of one job, written with the functions that a build uses."""
    out = tmp_path_factory.mktemp("whole")
    for name in ("shards", "ledger"):
        (out / name).mkdir()
    jobs = plan_jobs([MeshRef(uid=uid, uri=f"/assets/{uid}.glb") for uid in REGIMES], 64)
    files: dict[Regime, list[tuple[str, list[Path]]]] = {}
    for uid, regime in REGIMES.items():
        if regime:
            files.setdefault(regime, []).append((uid, field_files(out / "fields", uid, regime)))
    part = commit(out, 0, [outcome(uid, regime) for uid, regime in REGIMES.items()], files)
    shutil.rmtree(out / "fields")
    plan = plan_bytes(jobs)
    (out / "plan.parquet").write_bytes(plan)
    info = DatasetInfo(config={"x": 1}, plan_sha256=hashlib.sha256(plan).hexdigest(), planned=4, jobs=1)
    (out / "dataset.json").write_bytes(dataset_json(info))
    (out / "index.json").write_bytes(index_json(out, [part]))
    (out / ATTRIBUTION).write_bytes(attribution_parquet(jobs, [part]))
    return out


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def test_a_whole_dataset_has_no_problems(whole):
    assert verify(whole) == []


def test_the_bytes_of_a_shard_depend_on_its_samples_alone(whole, tmp_path):
    for name in ("shards", "ledger"):
        (tmp_path / name).mkdir()
    samples = []
    for uid in ("a", "d"):
        files = field_files(tmp_path / "fields", uid, Regime.TEXTURED)
        for file in files:
            os.utime(file, (1, 1))
            file.chmod(0o600)
        samples.append((uid, files[::-1]))
    part = commit(tmp_path, 0, [outcome(uid, Regime.TEXTURED) for uid, _ in samples], {Regime.TEXTURED: samples})
    assert part.shards == read_ledger_part(part_path(whole, 0)).shards[:1]
    name = part.shards[0].name
    assert shard_path(tmp_path, name).read_bytes() == shard_path(whole, name).read_bytes()


def test_webdataset_reads_what_we_read(whole):
    """An independent reader of the format sees the same samples."""
    path = shard_path(whole, "textured-000000.tar")
    theirs = list(wds.WebDataset(str(path), shardshuffle=False, empty_check=False))
    ours = list(read_shard(path))
    assert [sample["__key__"] for sample in theirs] == [uid for uid, _ in ours] == ["a", "d"]
    for sample, (_, fields) in zip(theirs, ours, strict=True):
        assert {key: value for key, value in sample.items() if not key.startswith("__")} == fields


def test_every_cut_is_found(dataset):
    """A tar that is cut at a block boundary often reads as a whole one."""
    path = shard_path(dataset, "textured-000000.tar")
    data = path.read_bytes()
    job = ShardJob(index=0, refs=tuple(MeshRef(uid=uid, uri="") for uid in REGIMES))
    assert committed(dataset, job) is not None
    for cut in range(0, len(data), 512):
        path.write_bytes(data[:cut])
        assert [problem for problem in verify(dataset) if problem.startswith(f"{path}: {cut} bytes")]
        assert committed(dataset, job) is None


def test_a_reader_of_a_shard_ends_at_its_end_alone(dataset):
    """Cut anywhere, or with a header that is no header."""
    path = shard_path(dataset, "textured-000000.tar")
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
        end = tar.offset
    for cut in range(0, end + 1024, 512):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"whole|header"):
            list(read_shard(path))
    for header in headers:
        path.write_bytes(data[: header + 100] + bytes([data[header + 100] ^ 1]) + data[header + 101 :])
        with pytest.raises(ValueError, match=r"whole|header"):
            list(read_shard(path))


def test_what_is_read_is_what_the_ledger_vouches_for(dataset):
    """Also where the damage is none that a tar or an image could tell."""
    shard = next(s for s in read_ledger_part(part_path(dataset, 0)).shards if s.regime is Regime.TEXTURED)
    path = shard_path(dataset, shard.name)
    data = path.read_bytes()
    assert [uid for uid, _ in read_samples(dataset, shard)] == ["a", "d"]
    assert [sample.uid for sample in stored_samples(dataset, Regime.MV_ONLY, Regime.TEXTURED)] == ["a", "d", "c"]
    flipped = bytearray(data)
    with tarfile.open(path) as tar:
        flipped[tar.getmember("d.rgb.webp").offset_data + 60] ^= 1
    for damaged in (data[:-512], bytes(flipped), None):
        path.write_bytes(damaged) if damaged else path.unlink()
        with pytest.raises(UserError, match=f"{path}: .*; run `seqtex repair {dataset}`"):
            next(read_samples(dataset, shard))
        with pytest.raises(UserError, match=f"{path}: .*; run `seqtex repair {dataset}`"):
            list(stored_samples(dataset, Regime.TEXTURED))
    path.write_bytes(data)
    with pytest.raises(UserError, match="2 samples, 3 are recorded"):
        list(read_samples(dataset, replace(shard, count=3)))


def test_every_flipped_bit_is_found_in_its_file(dataset):
    rng = np.random.default_rng(0)
    names = ["shards/textured-000000.tar", "shards/mv_only-000000.tar", "ledger/000000.parquet", "index.json"]
    for name in [*names, "dataset.json", "plan.parquet"]:
        path = dataset / name
        data = path.read_bytes()
        for position in rng.integers(0, len(data) * 8, 60):
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << (position % 8)
            path.write_bytes(damaged)
            problems = verify(dataset)
            assert any(problem.startswith(f"{path}: ") for problem in problems), f"bit {position} of {name}"
        path.write_bytes(data)
    assert verify(dataset) == []


@pytest.mark.parametrize("name", ["shards/textured-000000.tar", "ledger/000000.parquet", "index.json", "plan.parquet"])
def test_a_missing_file_is_named(dataset, name):
    (dataset / name).unlink()
    assert any(problem.startswith(f"{dataset / name}: ") for problem in verify(dataset))


@pytest.mark.parametrize("name", ["shards/textured-000001.tar", "ledger/000001.parquet", "shards/.x.tmp"])
def test_a_file_that_nobody_vouches_for_is_named(dataset, name):
    shutil.copy(shard_path(dataset, "textured-000000.tar"), dataset / name)
    assert any(problem.startswith(f"{dataset / name}: ") and "`seqtex repair" in problem for problem in verify(dataset))
    remove_leftovers(dataset, jobs=1)
    assert verify(dataset) == []


@pytest.mark.parametrize("name", ["shards/foreign.tar", "ledger/notes.parquet", "shards/textured-000001.tar/"])
def test_what_repair_leaves_is_to_be_deleted(dataset, name):
    """Files of others, and folders, which no build makes there."""
    (dataset / name).mkdir() if name.endswith("/") else (dataset / name).touch()
    (problem,) = verify(dataset)
    assert problem.startswith(f"{dataset / name}: ") and "delete it, or move it out" in problem
    assert "`seqtex repair" not in problem


def test_a_row_that_contradicts_its_shard_is_named(dataset):
    part = read_ledger_part(part_path(dataset, 0))
    rows = list(part.outcomes)
    rows[0], rows[3] = rows[3], rows[0]
    commit(dataset, 0, rows, {})
    problems = verify(dataset)
    assert any("are not the 4 planned assets" in problem for problem in problems)
    assert any("the commit record does not" in problem for problem in problems)


def test_no_dataset_is_an_error_not_a_result(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        verify(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"dataset\.json"):
        verify(tmp_path)


def test_the_same_results_again_change_no_byte(dataset, tmp_path):
    """Not even the times in the ledger: who does a job again leaves what is there. Damage is fixed."""
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in dataset.glob("*/*") if path.is_file()}
    files: dict[Regime, list[tuple[str, list[Path]]]] = {}
    for uid, regime in REGIMES.items():
        if regime:
            files.setdefault(regime, []).append((uid, field_files(tmp_path / "fields", uid, regime)))
    later = [replace(outcome(uid, regime), seconds=9.0) for uid, regime in REGIMES.items()]
    commit(dataset, 0, later, files)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    assert {path for path in dataset.glob("*/*") if path.is_file()} == before.keys()
    shard = shard_path(dataset, "textured-000000.tar")
    shard.write_bytes(b"damaged")
    commit(dataset, 0, later, files)
    assert shard.read_bytes() == before[shard][0]
    assert [row.seconds for row in read_ledger_part(part_path(dataset, 0)).outcomes] == [9.0] * 4


@pytest.mark.parametrize("step", ["add", "fsync", "replace"])
def test_a_failure_anywhere_leaves_no_file_that_counts(dataset, tmp_path, monkeypatch, step):
    """Also when the disk is full: the message says so. What was committed before stays until all is written, and is
    withdrawn before names change."""

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "the disk")

    files = {Regime.TEXTURED: [("a", field_files(tmp_path / "fields", "a", Regime.TEXTURED))]}
    before = {path: path.read_bytes() for path in dataset.glob("*/*")}
    owner, name = {"add": (tarfile.TarFile, "addfile"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[step]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(UserError, match=r"the disk: cannot write job 0 \(No space left on device\)"):
        commit(dataset, 0, [outcome("a", Regime.TEXTURED)], files)
    after = {path: path.read_bytes() for path in dataset.glob("*/*")}
    if step == "replace":
        assert after.items() < before.items() and not list((dataset / "ledger").iterdir())
    else:
        assert after == before and verify(dataset) == []


def hostile_tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../a.json")],
        [member("/etc/a.json")],
        [member("a")],
        [member(".json")],
        [member("a.json", tarfile.SYMTYPE)],
        [member("a.json", tarfile.CHRTYPE)],
        [member("a.json"), member("a.json")],
        [member("a.json"), member("b.json"), member("a.rgb.webp")],
    ],
)
def test_a_hostile_shard_is_refused(tmp_path, members):
    with pytest.raises(ValueError, match=r"member"):
        list(read_shard(hostile_tar(tmp_path / "x.tar", *members)))


def test_a_declared_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(member("a.json", size=1 << 30).tobuf() + bytes(1024))
    with pytest.raises(ValueError, match="1073741824 bytes"):
        list(read_shard(path))


def test_another_schema_is_named_before_what_it_has_more(dataset):
    path = dataset / "dataset.json"
    entries = json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1, "one_more": 3}
    path.write_text(json.dumps(entries))
    wanted = rf"schema version {SCHEMA_VERSION + 1}, {SCHEMA_VERSION} is needed here; `seqtex upgrade"
    with pytest.raises(UserError, match=wanted):
        read_dataset_json(dataset)


# the plan


def refs(count: int) -> list[MeshRef]:
    source = Attribution(name="s", licence="CC-BY-4.0", attribution="someone")
    return [MeshRef(uid=f"u{i:03d}", uri=f"/x/{i}.glb", sha256=f"{i:064d}", source=source) for i in range(count)]


def test_a_plan_depends_on_the_assets_alone(tmp_path):
    jobs = plan_jobs(refs(10), 4)
    assert [len(job.refs) for job in jobs] == [4, 4, 2]
    assert plan_jobs(refs(10)[::-1], 4) == jobs
    (tmp_path / "plan.parquet").write_bytes(plan_bytes(jobs))
    assert read_plan(tmp_path / "plan.parquet") == jobs
    assert plan_bytes(jobs) == plan_bytes(plan_jobs(iter(refs(10)), 4))


@pytest.mark.parametrize(
    ("assets", "jobs", "largest"), [(1, 1, 1), (47, 47, 1), (64, 64, 1), (65, 33, 2), (1000, 63, 16), (9000, 141, 64)]
)
def test_jobs_are_small_where_there_are_few_assets(assets, jobs, largest):
    """By the number of assets alone: up to 16 workers have four jobs each. A size that is given counts."""
    planned = plan_jobs(refs(assets), None)
    assert (len(planned), max(len(job.refs) for job in planned)) == (jobs, largest)
    assert plan_bytes(planned) == plan_bytes(plan_jobs(refs(assets)[::-1], None))
    assert len(plan_jobs(refs(assets), 64)) == -(-assets // 64)


def test_a_plan_holds_texts_that_no_file_can_hold(tmp_path):
    """Annotations are JSON, which may bring lone surrogates."""
    bad = "a\ud800b"
    source = Attribution(name=bad, licence=bad, attribution=bad, title=bad, author=bad, url=bad)
    jobs = plan_jobs([MeshRef(uid="u", uri=f"/x/{bad}.glb", caption=bad, source=source)], 4)
    (tmp_path / "plan.parquet").write_bytes(plan_bytes(jobs))
    assert read_plan(tmp_path / "plan.parquet") == jobs
    assert jobs[0].refs[0].source.title == jobs[0].refs[0].caption == "a?b"


def test_a_plan_refuses_what_cannot_be_keyed():
    with pytest.raises(UserError, match=r"/x/3\.glb and /y\.glb share the uid 'u003'"):
        plan_jobs([*refs(5), MeshRef(uid="u003", uri="/y.glb")], 4)
    with pytest.raises(UserError, match="is no uid"):
        plan_jobs([MeshRef(uid="../x", uri="/y.glb")], 4)
    with pytest.raises(UserError, match="no assets"):
        plan_jobs([], 4)


def test_differences_between_plans_are_named():
    jobs = plan_jobs(refs(5), 4)
    changed = [replace(ref, sha256="f" * 64) if ref.uid == "u002" else ref for ref in refs(5)]
    assert plan_difference(jobs, jobs) is None
    assert "sha256 of asset u002" in str(plan_difference(jobs, plan_jobs(changed, 4)))
    assert "1 assets are new in the source, first /x/5.glb" in str(plan_difference(jobs, plan_jobs(refs(6), 4)))
    assert "1 planned assets are gone from the source, first /x/4.glb" in str(
        plan_difference(jobs, plan_jobs(refs(4), 4))
    )
