"""The fault matrix of a build: rival builders, changed inputs, one row for every asset."""

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.lock import lock
from pipeline.dataset.plan import plan_jobs, read_plan
from pipeline.dataset.state import finish, settle, writable
from pipeline.dataset.verify import verify
from pipeline.executor.job import process_job
from pipeline.maintain.failures import chosen_assets
from pipeline.sandbox.fork_server import ForkServer
from pipeline.sources.folder import folder
from schemas.dataset import dataset_json, read_dataset_json, read_ledger, shard_path
from schemas.errors import UserError
from schemas.ledger import FAILURES, Reason, Status
from schemas.mesh import Attribution, MeshRef
from schemas.sample import Regime
from schemas.shards import read_shard
from schemas.storage import write_file
from tests.support.build_without_assets import CFG, Material, content, write_fields
from tests.trust.trust import Trust

# 12: two builders


@pytest.mark.trust(12)
def test_of_several_builders_at_once_one_builds(trust: Trust, material: Material, whole: Path, tmp_path: Path) -> None:
    """Three that start at the same moment: the others are refused by name, or come after it and find all done."""
    runs, held = trust.count(full=100, short=5), 0
    context = multiprocessing.get_context("fork")
    for run in range(runs):
        out = tmp_path / f"{run}"
        start, told = context.Barrier(3), context.SimpleQueue()
        builders = [context.Process(target=build_at, args=(material, out, start, told)) for _ in range(3)]
        for builder in builders:
            builder.start()
        answers = [told.get() for _ in builders]
        for builder in builders:
            builder.join()
        refused = [answer for answer in answers if answer]
        right = all("another build (process" in answer for answer in refused) and len(refused) < 3
        held += right and content(out) == content(whole) and verify(out) == []
        shutil.rmtree(out)
    trust.held(held, runs)
    assert held == runs


def build_at(material: Material, out: Path, start: Any, told: Any) -> None:
    start.wait()
    try:
        material.build(out)
        told.put("")
    except UserError as error:
        told.put(str(error))
    except BaseException as error:
        told.put(f"unexpected: {error!r}")


# 13: changed configuration or input


def leaves(entries: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def with_leaf(entries: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    name, _, rest = dotted.partition(".")
    return entries | {name: with_leaf(entries[name], rest, value) if rest else value}


@pytest.mark.trust(13)
def test_any_other_setting_is_refused_by_its_name(trust: Trust, material: Material, dataset: Path) -> None:
    info = read_dataset_json(dataset)
    before = content(dataset)
    settings = list(leaves(info.config))
    held = 0
    for name, value in settings:
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "another"
        changed = replace(info, config=with_leaf(info.config, name, other))
        write_file(dataset / "dataset.json", dataset_json(changed))
        try:
            material.build(dataset)
        except UserError as error:
            held += f"built with {name}={other!r}, now it is" in str(error)
        write_file(dataset / "dataset.json", before["dataset.json"])
    assert len(settings) > 50 and content(dataset) == before
    trust.held(held, len(settings))
    assert held == len(settings)


@pytest.mark.trust(13)
def test_any_other_input_is_refused_by_its_name(trust: Trust, tmp_path: Path) -> None:
    source = Attribution(name="s", licence="CC0-1.0", attribution="someone")
    refs = [MeshRef(uid=f"u{i}", uri=f"/x/{i}.glb", sha256=f"{i:064d}", source=source, caption="c") for i in range(5)]
    with writable(tmp_path):
        settle(tmp_path, plan_jobs(refs, 2), CFG.recorded())
    other = {"uri": "/y.glb", "sha256": "f" * 64, "caption": "d"}
    cases = [(name, [replace(refs[0], **{name: value}), *refs[1:]]) for name, value in other.items()]
    cases += [
        (name, [*refs[:4], replace(refs[4], source=replace(source, **{name: "other"}))]) for name in asdict(source)
    ]
    told = [(f"{name} of asset u", changed) for name, changed in cases]
    told += [("1 planned assets are gone", refs[1:]), ("1 assets are new", [*refs, replace(refs[0], uid="u9")])]
    held = 0
    for message, changed in told:
        with pytest.raises(UserError) as error:
            settle(tmp_path, plan_jobs(changed, 2), CFG.recorded())
        held += message in str(error.value) and "the input has changed" in str(error.value)
    trust.held(held, len(told))
    assert held == len(told)


@pytest.mark.trust(13)
def test_a_changed_side_file_is_refused(trust: Trust, tmp_path: Path) -> None:
    assets, out = tmp_path / "assets", tmp_path / "out"
    assets.mkdir()
    texts = {
        "a.gltf": '{"buffers": [{"uri": "a.bin"}], "images": [{"uri": "a.png"}]}',
        "b.obj": "mtllib b.mtl\n",
        "b.mtl": "newmtl m\nmap_Kd b.png\n",
    } | dict.fromkeys(("a.bin", "a.png", "b.png"), "x")
    for name, text in texts.items():
        (assets / name).write_text(text)
    with writable(out):
        settle(out, plan_jobs(folder(assets), 2), CFG.recorded())
    held = 0
    for name, text in texts.items():
        (assets / name).write_text(text + "\n")
        with pytest.raises(UserError, match="the input has changed: sha256 of asset"):
            settle(out, plan_jobs(folder(assets), 2), CFG.recorded())
        held += 1
        (assets / name).write_text(text)
    settle(out, plan_jobs(folder(assets), 2), CFG.recorded())
    trust.held(held, len(texts))


# 14: one row each


STAGED = """
import json, os
from pathlib import Path
from pipeline.executor.asset_result import write_asset_result
from schemas.ledger import Measurements, Reason, Rejected
from schemas.sample import Regime

def run(request, directory):
    told = json.loads(request["ref"]["caption"])
    if told["reason"] == "crashed":
        os._exit(3)
    regime = Regime(told["regime"]) if told["regime"] else None
    rejected = Rejected(reason=Reason(told["reason"]), detail="") if told["reason"] else None
    files = sorted((Path(request["ref"]["uri"]).parent / regime).iterdir()) if regime else []
    sample = {file.name: file.read_bytes() for file in files}
    write_asset_result(directory, regime, rejected, (), Measurements(), 0.0, sample)

def cured(request, directory):
    told = json.loads(request["ref"]["caption"])
    request["ref"]["caption"] = json.dumps(told | {"reason": None, "regime": "textured"})
    run(request, directory)
"""
ENDS = [None, Reason.CRASHED, Reason.MEMORY_LIMIT, Reason.UNTEXTURED, Reason.TRUNCATED, Reason.UNWRAP_POOR]
"""Outcomes of an asset: accepted, failed, rejected, or kept for its views."""


@pytest.mark.trust(14)
def test_every_asset_has_one_row_and_a_retry_touches_its_reason_alone(trust: Trust, tmp_path: Path) -> None:
    rng, count = trust.rng(), trust.count(full=200, short=16)
    (tmp_path / "staged.py").write_text(STAGED)
    refs = [staged_ref(tmp_path, number, ENDS[rng.integers(len(ENDS))]) for number in range(count)]
    jobs, out = plan_jobs(refs, 8), tmp_path / "out"
    with writable(out), lock(out):
        info = settle(out, jobs, CFG.recorded())
        with ForkServer("staged:run", CFG.limits, tmp_path, python_path=(tmp_path,)) as fork_server:
            for job in jobs:
                process_job(job, out, CFG, fork_server=fork_server)
        finish(out, info, jobs, len(jobs))
    assert verify(out) == []
    rows = {outcome.uid: outcome for part in read_ledger(out) for outcome in part.outcomes}
    ends = Counter(outcome.status for outcome in rows.values())
    held = len(rows) if list(rows) == [ref.uid for ref in refs] and ends.total() == count else 0
    runs = count
    for reason in filter(None, ENDS):
        chosen = chosen_assets(out, read_plan(out / "plan.parquet"), reasons={reason})
        before, bytes_before = dict(rows), samples_of(out)
        with ForkServer("staged:cured", CFG.limits, tmp_path, python_path=(tmp_path,)) as fork_server:
            for job in chosen:
                process_job(job, out, CFG, fork_server=fork_server)
        rows = {outcome.uid: outcome for part in read_ledger(out) for outcome in part.outcomes}
        bytes_now = samples_of(out)
        for uid, row in rows.items():
            runs += 1
            if before[uid].reason is reason:
                held += row.status is Status.ACCEPTED and row.regime is Regime.TEXTURED
            else:
                held += row == before[uid] and bytes_now.get(uid) == bytes_before.get(uid)
    trust.held(held, runs)
    assert held == runs and all(row.reason is None for row in rows.values())


def staged_ref(folder: Path, number: int, reason: Reason | None) -> MeshRef:
    uid = f"staged-{number:04d}"
    regime = None if reason in {*FAILURES, Reason.UNTEXTURED, Reason.TRUNCATED} else "textured"
    regime = "mv_only" if reason is Reason.UNWRAP_POOR else regime
    for kind in Regime:
        write_fields(folder / "fields" / uid / kind, uid, kind)
    main = folder / "fields" / uid / "asset.obj"
    main.touch()
    return MeshRef(uid=uid, uri=str(main), caption=json.dumps({"reason": reason, "regime": regime}))


def samples_of(out: Path) -> dict[str, str]:
    """A hash of every sample, by uid."""
    found = {}
    for part in read_ledger(out):
        for shard in part.shards:
            for uid, fields in read_shard(shard_path(out, shard.name)):
                found[uid] = hashlib.sha256(
                    b"".join(name.encode() + fields[name] for name in sorted(fields))
                ).hexdigest()
    return found
