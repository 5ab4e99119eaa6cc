"""Assets whose files were put right after they were planned: the plan takes the new files in, row by row."""

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

from pipeline.dataset.folders import located
from pipeline.dataset.shards import committed
from pipeline.dataset.state import planned_jobs, replan
from pipeline.sources.fingerprint import fingerprints
from schemas.dataset import DatasetInfo
from schemas.ledger import Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.storage import Location

STEP = "renewed"


def renew(
    out: Location, info: DatasetInfo, jobs: Sequence[ShardJob], uids: Set[str], max_bytes: int
) -> tuple[DatasetInfo, list[ShardJob]]:
    """Take in the files that some assets have now: the dataset with a plan that names them, and its jobs. Assets that
    come from a server are fetched by the hash that is planned, and stay. Only for the holder of the build lock."""
    local = [(job, ref) for job in jobs for ref in job.refs if ref.uid in uids and "://" not in ref.uri]
    now: dict[str, MeshRef] = {}
    for folder, root in dict.fromkeys((job.folder, ref.root) for job, ref in local):
        refs = [ref for job, ref in local if (job.folder, ref.root) == (folder, root)]
        here = [located(ref, folder) for ref in refs]
        hashes = fingerprints([Path(ref.uri) for ref in here], Path(here[0].root) if here[0].root else None, max_bytes)
        now |= {ref.uid: replace(ref, sha256=sha256) for ref, (sha256, _) in zip(refs, hashes, strict=True) if sha256}
    return _with(out, info, jobs, now)


def renewed_by_source(out: Location, before: DatasetInfo, jobs: Sequence[ShardJob]) -> None:
    """Take in the files of a source that is built again, where nothing else has changed: only the hashes of assets that
    have no sample. Everything else is left for `pipeline.dataset.state.settle` to refuse."""
    planned = planned_jobs(out, before)
    old = {ref.uid: (job.index, ref) for job in planned for ref in job.refs}
    now: dict[str, MeshRef] = {}
    for job in jobs:
        for ref in job.refs:
            index, was = old.get(ref.uid, (-1, ref))
            if index != job.index or replace(ref, sha256=was.sha256, root=was.root) != was:
                return
            if ref != was:
                now[ref.uid] = ref
    if len(old) == sum(len(job.refs) for job in jobs) and not now.keys() & _accepted(out, planned, now.keys()):
        _with(out, before, planned, now)


def stale(out: Location, info: DatasetInfo, jobs: Sequence[ShardJob]) -> Iterator[ShardJob]:
    """Yield the jobs with rows of other files than are planned, to process those assets alone: what an interruption has
    left of a renewal."""
    if all(step["step"] != STEP for step in info.history):
        return
    for job in jobs:
        part = committed(out, job)
        rows = zip(job.refs, part.outcomes if part else (), strict=False)
        if only := frozenset(ref.uid for ref, row in rows if ref.sha256 and row.sha256 != ref.sha256):
            yield replace(job, only=only)


def _accepted(out: Location, jobs: Sequence[ShardJob], uids: Collection[str]) -> set[str]:
    """Return the assets among `uids` that have a sample."""
    concerned = [job for job in jobs if any(ref.uid in uids for ref in job.refs)]
    parts = filter(None, (committed(out, job) for job in concerned))
    return {row.uid for part in parts for row in part.outcomes if row.status is Status.ACCEPTED}


def _with(
    out: Location, info: DatasetInfo, jobs: Sequence[ShardJob], now: dict[str, MeshRef]
) -> tuple[DatasetInfo, list[ShardJob]]:
    """Write the plan with other references for some assets, and a step that names them and both hashes."""
    changed = {ref.uid: (ref, now[ref.uid]) for job in jobs for ref in job.refs if now.get(ref.uid, ref) != ref}
    if not changed:
        return info, list(jobs)
    found = [replace(job, refs=tuple(now.get(ref.uid, ref) for ref in job.refs)) for job in jobs]
    hashes = {uid: [was.sha256, new.sha256] for uid, (was, new) in changed.items()}
    return replan(out, info, found, {"step": STEP, "sha256": hashes}), found
