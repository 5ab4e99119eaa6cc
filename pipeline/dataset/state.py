"""State of a dataset under construction: its plan and configuration, its finished jobs, the files of the whole."""

import contextlib
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.dataset.attribution import FILE as ATTRIBUTION
from pipeline.dataset.attribution import attribution_parquet
from pipeline.dataset.card import CardFacts, dataset_card
from pipeline.dataset.croissant import croissant_json
from pipeline.dataset.folders import with_folders, write_folders
from pipeline.dataset.plan import plan_bytes, plan_difference, read_plan
from pipeline.dataset.shards import committed
from schemas.dataset import (
    DatasetInfo,
    LedgerPart,
    code_version,
    dataset_json,
    index_json,
    indexed_parts,
    part_path,
    part_paths,
    read_dataset_json,
    read_ledger_part,
)
from schemas.errors import UserError, explained
from schemas.ledger import Counts, counts_of
from schemas.plan import ShardJob
from schemas.storage import Location, file_sha256, refuse_links, working_folder, write_file

_REMEDY = "give another --out, or build as before"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """The dataset after a build."""

    planned: int
    textured: int
    mv_only: int
    rejected: int
    failed: int
    jobs: int
    jobs_run: int
    """0 if there was nothing to do."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Assets without a sample by reason, the most frequent first."""


@contextlib.contextmanager
def writable(out: Location) -> Iterator[None]:
    """Make the folders of a dataset, and turn errors of the file system or the object store into messages that say what
    to fix. Errors of other files, such as the source's, are to be caught within."""
    refuse_links(out)
    remedy = "fix permissions or space and run the same command again, or build with another --out"
    with explained(out, "the dataset cannot be read or written", remedy):
        for folder in (out, out / "shards", out / "ledger", working_folder(out)):
            folder.mkdir(parents=True, exist_ok=True)
        yield


def settle(out: Location, jobs: list[ShardJob], config: dict[str, Any]) -> DatasetInfo:
    """Write plan and `dataset.json` of a build with the recorded `config`; refuse where `out` holds another dataset."""
    plan = plan_bytes(jobs)
    info = DatasetInfo(
        config=config,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        planned=sum(len(job.refs) for job in jobs),
        jobs=len(jobs),
        code_version=code_version(),
    )
    path = out / "dataset.json"
    if known := path.exists():
        before = read_dataset_json(out)
        require_same(out, before, info.config)
        if before.plan_sha256 != info.plan_sha256:
            difference = plan_difference(planned_jobs(out, before), jobs)
            more = ""
            if difference and "are new" in difference:
                more = ", or seqtex extend to add assets"
            elif difference and difference.startswith("sha256 of asset"):
                more = ", or take in a new file of an asset that has a sample by `seqtex retry DATASET --uid UID`"
            raise UserError(f"{out}: the input has changed: {difference}; {_REMEDY}{more}")
        info = replace(info, history=before.history)
    elif any((out / "ledger").iterdir()):
        raise UserError(f"{out}: has a ledger but no dataset.json; restore that, or give another --out")
    plan_path = out / "plan.parquet"
    if not plan_path.is_file() or plan_path.read_bytes() != plan:
        write_file(plan_path, plan)
    write_folders(out, jobs)
    text = dataset_json(info)
    if not known or path.read_bytes() != text:
        write_file(path, text)
    return info


def require_version(out: Location, info: DatasetInfo) -> None:
    """Raise UserError where another version of this program has built a dataset: a dataset is the work of one."""
    if info.code_version != code_version():
        raise UserError(
            f"{out}: built by version {info.code_version}, this is {code_version()}; use that version, or build a "
            "dataset of this one"
        )


def require_same(
    out: Location, before: DatasetInfo, config: dict[str, Any], remedy: str = _REMEDY, but: str | None = None
) -> None:
    """Raise UserError naming a setting that differs, outside the section `but`, or as `require_version`."""
    require_version(out, before)
    for name, was, is_now in differences(before.config, config):
        if name.partition(".")[0] != but:
            raise UserError(f"{out}: built with {name}={was!r}, now it is {is_now!r}; {remedy}")


def planned_jobs(out: Location, info: DatasetInfo) -> list[ShardJob]:
    """Read the plan that `dataset.json` names, and where its assets lie on this machine. A stopped extension leaves a
    longer plan, which begins with it.

    Raises UserError where that plan is not there."""
    path = out / "plan.parquet"
    jobs = with_folders(out, read_plan(path))
    if file_sha256(path) == info.plan_sha256:
        return jobs
    first = jobs[: info.jobs]
    if hashlib.sha256(plan_bytes(first)).hexdigest() == info.plan_sha256:
        return first
    remedy = "restore it from a copy" if info.history else "build as before, which writes it anew"
    raise UserError(f"{path}: not the plan that dataset.json names; {remedy}")


def replan(out: Location, info: DatasetInfo, jobs: list[ShardJob], step: dict[str, Any]) -> DatasetInfo:
    """Write another plan for a dataset, and the step that led to it. `dataset.json`, which counts, is written last."""
    plan = plan_bytes(jobs)
    info = replace(
        info,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        planned=sum(len(job.refs) for job in jobs),
        jobs=len(jobs),
        history=[*info.history, step],
    )
    write_file(out / "plan.parquet", plan)
    write_folders(out, jobs)
    write_file(out / "dataset.json", dataset_json(info))
    return info


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that differ: dotted name, old and new value."""
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from differences(was, is_now, f"{prefix}{name}.")
        elif was != (list(is_now) if isinstance(is_now, tuple) else is_now):
            yield f"{prefix}{name}", was, is_now


def finished(out: Location, jobs: list[ShardJob]) -> dict[int, Counts]:
    """Count the assets of each finished job, by its number. A job is finished if it is committed, with the hash that an
    earlier index has for it."""
    index = out / "index.json"
    known = indexed_parts(index.read_bytes()) if index.is_file() else {}
    parts = ((job.index, committed(out, job, known.get(part_path(out, job.index).name))) for job in jobs)
    return {index: counts_of(part.outcomes) for index, part in parts if part is not None}


def finish(out: Location, info: DatasetInfo, jobs: list[ShardJob], jobs_run: int) -> BuildReport:
    """Write the files of the whole dataset once every job is committed: index, attribution, card, Croissant
    metadata."""
    shards, facts = list[LedgerPart](), CardFacts()

    def parts() -> Iterator[LedgerPart]:
        """Read every row once and let it go: a plan may have millions."""
        for job in jobs:
            part = read_ledger_part(part_path(out, job.index))
            assert [outcome.uid for outcome in part.outcomes] == [ref.uid for ref in job.refs]
            facts.add(job, part)
            shards.append(replace(part, outcomes=()))
            yield part

    attribution = attribution_parquet(jobs, parts())
    assert len(part_paths(out)) == len(jobs)
    written = {ATTRIBUTION: attribution, "index.json": index_json(out, shards)}
    hashed = written | {"dataset.json": dataset_json(info)}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in hashed.items()}
    sha256["plan.parquet"] = info.plan_sha256
    written |= {
        "README.md": dataset_card(info, facts).encode(),
        "croissant.json": croissant_json(info, facts, [shard for part in shards for shard in part.shards], sha256),
    }
    for name, data in written.items():
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            write_file(out / name, data)
    shutil.rmtree(working_folder(out), ignore_errors=True)
    reasons = Counter({reason: count for (_, regime, reason), count in sorted(facts.reasons.items()) if not regime})
    return BuildReport(
        planned=info.planned,
        **asdict(facts.counts),
        jobs=len(jobs),
        jobs_run=jobs_run,
        reasons=dict(reasons.most_common()),
    )
