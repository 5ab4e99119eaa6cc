"""Datasets that grow: by new assets, and by being put together. What was there stays as it was."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.lock import lock
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.state import finish, planned_jobs, replan, settle, writable
from pipeline.dataset.verify import verify
from pipeline.executor.build import added, build, extend
from pipeline.executor.job import process_job
from pipeline.maintain.merge import carry_over, plan_merge
from pipeline.maintain.status import status
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sandbox.child import LimitsConfig
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.dataset import read_dataset_json, read_ledger, read_parquet, shard_path
from schemas.errors import UsageError, UserError
from schemas.ledger import Outcome, Reason, Status
from schemas.shards import read_shard
from seqtex.cli.main import main
from tests.pipeline.filter.test_duplicates import exported_again
from training.data.datamodule import BatchStream
from training.data.mixture import DataConfig

CFG = BuildConfig(assets_per_job=2, views=RenderConfig(resolution=48), uv=BakeConfig(resolution=64))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Path]:
    return [Path(ref.uri) for ref in procedural(4, tmp_path_factory.mktemp("made"), clean=True)]


@pytest.fixture(scope="module")
def first_assets(made, tmp_path_factory) -> Path:
    return filled(tmp_path_factory.mktemp("first"), {"b": made[0], "c": made[1], "d": made[2]})


@pytest.fixture(scope="module")
def first(first_assets, tmp_path_factory) -> Path:
    """Two jobs, of two assets and one."""
    return dataset(first_assets, tmp_path_factory.mktemp("datasets") / "first")


@pytest.fixture(scope="module")
def second(made, tmp_path_factory) -> Path:
    """An asset that the first has under the same uid, one that it has under another, and one of its own."""
    root = filled(tmp_path_factory.mktemp("second"), {"c": made[1], "z": made[3]})
    (root / "again.glb").write_bytes(exported_again(made[0]))
    return dataset(root, tmp_path_factory.mktemp("datasets") / "second")


def filled(root: Path, files: dict[str, Path]) -> Path:
    for name, path in files.items():
        (root / f"{name}.glb").write_bytes(path.read_bytes())
    return root


def dataset(assets: Path, out: Path, cfg: BuildConfig = CFG) -> Path:
    """Make a dataset as a build without duplicates does."""
    with writable(out), lock(out):
        jobs = plan_jobs(folder(assets), cfg.assets_per_job)
        info = settle(out, jobs, cfg.recorded())
        (out / ".work").mkdir(exist_ok=True)
        for job in jobs:
            process_job(job, out, cfg)
        finish(out, info, jobs, len(jobs))
    assert verify(out) == []
    return out


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def files(out: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every shard and ledger part."""
    paths = [path for name in ("shards", "ledger") for path in sorted((out / name).iterdir())]
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in paths}


def rows(out: Path) -> dict[str, Outcome]:
    found = {row.uid.partition("-")[0]: row for part in read_ledger(out) for row in part.outcomes}
    assert len(found) == sum(len(part.outcomes) for part in read_ledger(out))
    return found


def stored(out: Path) -> set[str]:
    shards = [shard for part in read_ledger(out) for shard in part.shards]
    return {uid.partition("-")[0] for shard in shards for uid, _ in read_shard(shard_path(out, shard.name))}


def assert_trains(out: Path) -> None:
    """Training meets every sample, and no other."""
    stream = BatchStream(DataConfig(directory=out, batch_size=2), seed=1)
    for number in range(3):
        assert len(stream[number].samples) == 2
    kept = [row for row in rows(out).values() if row.status is Status.ACCEPTED]
    assert stored(out) == {row.uid.partition("-")[0] for row in kept}
    assert {row["uid"] for row in read_parquet(out / "attribution.parquet").to_pylist()} == {row.uid for row in kept}


def test_an_extension_leaves_what_was_there_and_goes_on_when_it_was_stopped(first, first_assets, made, tmp_path, capfd):
    """A copy of an old asset that sorts before it gives way: the old one is there already."""
    out, more = copied(first, tmp_path / "out"), copied(first_assets, tmp_path / "more")
    before = files(out)
    filled(more, {"a": made[0], "e": made[3]})
    info, jobs = read_dataset_json(out), planned_jobs(out, read_dataset_json(out))
    addition = added(jobs, folder(more), CFG.assets_per_job)
    assert (addition.assets, addition.present, addition.changed) == (2, 3, 0)
    text = (out / "dataset.json").read_bytes()
    replan(out, info, [*jobs, *addition.jobs], {"step": "extended"})
    (out / "dataset.json").write_bytes(text)  # as if killed between the plan and the record that names it
    assert planned_jobs(out, info) == jobs
    assert verify(out) == [] and status(out, 0, 0.0).planned == 3, "it is as it was before"
    words = ["extend", str(out), "--source", f"folder:{more}", "--log", "json"]
    assert main(words) == 0
    reported = json.loads(next(line for line in capfd.readouterr().out.splitlines() if '"extended"' in line))
    assert (reported["added"], reported["present"], reported["planned"], reported["rejected"]) == (2, 3, 5, 1)
    after = files(out)
    assert before.items() <= after.items() and len(after) > len(before)
    assert rows(out)["a"].reason is Reason.DUPLICATE and rows(out)["a"].detail == f"same bytes as {rows(out)['b'].uid}"
    assert stored(out) == {"b", "c", "d", "e"} and verify(out) == []
    (step,) = read_dataset_json(out).history
    assert (step["step"], step["source"], step["first_job"], step["assets"]) == ("extended", "folder:more", 2, 2)
    assert_trains(out)
    assert main(words) == 0
    assert files(out) == after and len(read_dataset_json(out).history) == 1, "nothing new, nothing done"


def test_an_extension_by_another_configuration_is_refused_by_name(first, first_assets):
    before = files(first)
    with pytest.raises(UserError, match=r"built with views\.resolution=48, now it is 32; extend it as it was built"):
        extend(f"folder:{first_assets}", first, replace(CFG, views=RenderConfig(resolution=32)))
    with pytest.raises(UserError, match="is not a folder"):
        extend("folder:/nowhere", first, CFG)
    assert files(first) == before and read_dataset_json(first).history == []


def test_a_dataset_may_be_called_as_a_command_is(first, second, tmp_path, monkeypatch, capsys):
    """The meaning of a word on the command line depends on its place."""
    monkeypatch.chdir(tmp_path)
    copied(first, tmp_path / "extend")
    assert main(["merge", "extend", "nowhere", "--out", "both"]) == 1
    assert "nowhere/dataset.json: no such file" in capsys.readouterr().err
    other = copied(second, tmp_path / "merge")
    replan(other, replace(read_dataset_json(other), config=replace(CFG, assets_per_job=3).recorded()),
           planned_jobs(other, read_dataset_json(other)), {"step": "merged"})  # fmt: skip
    assert main(["extend", "--address", "ray://nobody:1", "--source", "folder:/nowhere", "merge"]) == 2
    assert "/nowhere is not a folder" in capsys.readouterr().err


def test_an_address_is_refused_where_only_a_folder_can_be(first, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["export", str(first), "--layout", "seqtex-3d", "--out", "s3://bucket/x"],
        ["demo", "--out", "s3://bucket/x"],
    ):
        assert main(words) == 2
        assert "s3://bucket/x: a URL cannot be given here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_cannot_be_read_is_not_taken_for_an_unwritable_dataset(first, tmp_path):
    (tmp_path / "data" / "list.jsonl").mkdir(parents=True)
    for out in (tmp_path / "new", copied(first, tmp_path / "old")):
        with pytest.raises(UserError, match=r"list\.jsonl: the assets of .* cannot be listed \(Is a directory"):
            (build if out.name == "new" else extend)(f"seqtex-3d:{tmp_path / 'data'}", out, CFG)


def test_datasets_are_put_together_and_keep_their_shards(first, second, tmp_path, capfd):
    out = tmp_path / "both"
    whole = {path: files(path) for path in (first, second)}
    assert main(["merge", str(first), str(second), "--out", str(out), "--log", "json"]) == 0
    reported = json.loads(next(line for line in capfd.readouterr().out.splitlines() if '"merged"' in line))
    assert (reported["planned"], reported["same_uid"], reported["rejected"], reported["failed"]) == (5, 1, 1, 0)
    assert {path: files(path) for path in (first, second)} == whole, "they stay as they are"
    found = rows(out)
    assert found["again"].reason is Reason.DUPLICATE and found["b"].uid in found["again"].detail
    assert stored(out) == {"b", "c", "d", "z"} and verify(out) == []
    for name, (sha256, _) in whole[first].items():
        if name.endswith(".tar"):
            assert files(out)[name][0] == sha256
            assert (out / "shards" / name).samefile(first / "shards" / name)
    (step,) = read_dataset_json(out).history
    assert [(entry["dataset"], entry["first_job"], entry["assets"], entry["skipped"]) for entry in step["of"]] == [
        ("first", 0, 3, 0), ("second", 2, 2, 1)]  # fmt: skip
    assert_trains(out)


def test_a_merge_goes_on_when_it_was_stopped_and_does_not_mix(first, second, tmp_path):
    plan, out = plan_merge([first, second]), tmp_path / "both"
    with writable(out), lock(out):
        carry_over(plan, out)
        before = files(out)
        next((out / "ledger").iterdir()).unlink()
        carry_over(plan, out)
        assert {name: sha for name, (sha, _) in files(out).items()} == {name: sha for name, (sha, _) in before.items()}
        with pytest.raises(UserError, match="holds another dataset"):
            carry_over(plan_merge([second, first]), out)


def test_what_cannot_be_merged_is_named(first, second, tmp_path):
    with pytest.raises(UsageError, match="two datasets or more"):
        plan_merge([first, first])
    other = copied(second, tmp_path / "other")
    info = read_dataset_json(other)
    jobs = planned_jobs(other, info)
    settings = BuildConfig(**{**vars(CFG), "uv": BakeConfig(resolution=32)}).recorded()
    replan(other, replace(info, config=settings), jobs, {"step": "extended"})
    with pytest.raises(UserError, match=rf"other: built with uv\.resolution=32, {first} with 64"):
        plan_merge([first, other])
    alike = copied(second, tmp_path / "alike")
    patient = BuildConfig(**{**vars(CFG), "limits": LimitsConfig(timeout_s=77.0), "assets_per_job": 9}).recorded()
    replan(alike, replace(info, config=patient), jobs, {"step": "extended"})
    assert plan_merge([first, alike]).info.config == read_dataset_json(first).config, "no sample differs"
    older = copied(second, tmp_path / "older")
    replan(older, replace(info, code_version="0.0.1"), jobs, {"step": "extended"})
    with pytest.raises(UserError, match=r"older: built by version 0\.0\.1, this is"):
        plan_merge([older, first])
    broken = copied(second, tmp_path / "broken")
    (broken / "ledger" / "000000.parquet").unlink()
    with pytest.raises(UserError, match="broken: job 0 is unfinished or damaged; run `seqtex repair"):
        plan_merge([first, broken])
