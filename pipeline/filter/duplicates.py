"""Assets that are in the dataset already: the same bytes, or the same shape and colours. The first in the plan is kept,
which within one build is the lowest uid. A pure function of plan and ledger, taken when every job has its ledger part:
it does not depend on who worked when, and on a dataset that is settled it changes nothing."""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy.spatial import cKDTree

from pipeline.filter.signature import GENERAL, differences, is_signature, numbers_of
from schemas.dataset import LedgerPart
from schemas.errors import require_between
from schemas.ledger import Outcome, Reason, Rejected, Status
from schemas.mesh import AssetKind, MeshRef
from schemas.plan import ShardJob

_HASHED_WHOLE = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".3mf", ".dae")
"""Local files whose hash is one of all the files that they refer to (`pipeline.mesh_io.side_files`)."""


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """Options of rejecting assets that the dataset has already."""

    exact: bool = True
    """Reject assets with the bytes of an earlier one, side files included (.glb anywhere, other formats on a disk)."""
    max_distance: float = 0.019
    """Largest difference from the signature of an earlier asset, in any number that counts, at which an asset is
    rejected; 0: off (ours)."""

    def __post_init__(self) -> None:
        require_between("duplicates.max_distance", self.max_distance, 0, 1)


def known_ahead(jobs: Sequence[ShardJob], todo: Sequence[ShardJob], cfg: DuplicatesConfig) -> list[ShardJob]:
    """`todo` with what the plan's own hashes give away, which then is neither fetched nor processed."""
    first: dict[str, str] = {}
    rejected: dict[str, Rejected] = {}
    for ref in (ref for job in jobs for ref in job.refs):
        key = _whole(ref, ref.sha256) if cfg.exact else None
        if key is not None and first.setdefault(key, ref.uid) != ref.uid:
            rejected[ref.uid] = _same_bytes(first[key])
    return [_with_duplicates(job, rejected, rejected.keys() if job.only is None else job.only) for job in todo]


def unsettled(jobs: Sequence[ShardJob], parts: Iterable[LedgerPart], cfg: DuplicatesConfig) -> list[ShardJob]:
    """The jobs that hold a duplicate as a sample, or the other way round: an asset skipped for one that has come to
    nothing since. All else in them is to be kept as it is. `parts`: of every job, in order; read once and let go."""
    rows = [[row_of(*pair) for pair in zip(job.refs, part.outcomes, strict=True)]
            for job, part in zip(jobs, parts, strict=True)]  # fmt: skip
    rejected = duplicates([row for of_job in rows for row in of_job], cfg)
    found = []
    for job, of_job in zip(jobs, rows, strict=True):
        again = {row.uid for row in of_job if row.duplicate_of and row.uid not in rejected}
        late = {row.uid for row in of_job if row.uid in rejected and row.duplicate_of != rejected[row.uid].detail}
        if again or late:
            found.append(_with_duplicates(replace(job, only=frozenset(again)), rejected, late))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The columns of a ledger row that duplicates depend on; a plan may have millions of rows."""

    uid: str
    key: str | None
    """Hash of the asset's bytes, where it is one of them all."""
    failed: bool
    competes: bool
    """A sample, or what would be one were it no duplicate."""
    duplicate_of: str
    """The detail of a duplicate; empty for all others."""
    signature: bytes | None
    """None for those of an older program too, which cannot be compared."""


def row_of(ref: MeshRef, outcome: Outcome) -> Row:
    duplicate, signature = outcome.reason is Reason.DUPLICATE, outcome.measurements.signature
    return Row(
        uid=ref.uid,  # the plan's own string, not one more
        key=_whole(ref, outcome.sha256),
        failed=outcome.status is Status.FAILED,
        competes=outcome.status is Status.ACCEPTED or duplicate,
        duplicate_of=outcome.detail if duplicate else "",
        signature=bytes.fromhex(signature) if signature and is_signature(signature) else None,
    )


def _with_duplicates(job: ShardJob, rejected: dict[str, Rejected], uids: Set[str]) -> ShardJob:
    """Return the job with the duplicates among `uids`, as far as they are of this job."""
    known = [ref.uid for ref in job.refs if ref.uid in uids and ref.uid in rejected]
    return replace(job, duplicates={uid: rejected[uid] for uid in known})


def duplicates(rows: Sequence[Row], cfg: DuplicatesConfig) -> dict[str, Rejected]:
    """Assets that another one stands for, by uid. `rows`: all of the dataset's, in the order of its plan."""
    exact = dict(_exact(rows)) if cfg.exact else {}
    shown = [row for row in rows if row.competes and row.uid not in exact]
    near = dict(_near(shown, cfg.max_distance)) if cfg.max_distance > 0 else {}
    rejected = {uid: _same_bytes(first, near.get(first, ("", 0.0))[0]) for uid, first in exact.items()}
    for uid, (kept, distance) in near.items():
        detail = f"looks like {kept}: signatures differ by {distance:.4f}, at most {cfg.max_distance:g}"
        rejected[uid] = Rejected(reason=Reason.DUPLICATE, detail=detail)
    return rejected


def _exact(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """uid, and that of the first asset with these bytes. One that failed stands for no other: the next is tried."""
    first: dict[str, str] = {}
    for row in rows:
        if row.key is not None and not row.failed and first.setdefault(row.key, row.uid) != row.uid and row.competes:
            yield row.uid, first[row.key]


def _whole(ref: MeshRef, sha256: str | None) -> str | None:
    """The hash of an asset, where it is one of all its bytes."""
    suffixes = (".glb",) if "://" in ref.uri else _HASHED_WHOLE
    return sha256 if ref.kind is AssetKind.MESH and ref.uri.lower().endswith(suffixes) else None


def _same_bytes(first: str, kept: str = "") -> Rejected:
    detail = f"same bytes as {first}" + (f", which looks like {kept}" if kept else "")
    return Rejected(reason=Reason.DUPLICATE, detail=detail)


def _near(shown: Sequence[Row], max_distance: float) -> Iterator[tuple[str, tuple[str, float]]]:
    """uid, the first kept asset near it, and how near. A skipped one stands for no other."""
    known = [row for row in shown if row.signature is not None]
    if not known:
        return
    general = np.empty((len(known), GENERAL))
    for index, row in enumerate(known):
        general[index] = _numbers([row])[0, :GENERAL]
    tree, out = cKDTree(general), np.zeros(len(known), bool)
    for index, kept in enumerate(known):
        if out[index]:
            continue
        near = np.array(sorted(tree.query_ball_point(general[index], max_distance, p=np.inf)))
        near = near[(near > index) & ~out[near]]
        if not len(near):
            continue
        apart = differences(_numbers([kept])[0], _numbers([known[other] for other in near]))
        for other, distance in zip(near[apart <= max_distance], apart[apart <= max_distance], strict=True):
            out[other] = True
            yield known[other].uid, (kept.uid, float(distance))


def _numbers(rows: Sequence[Row]) -> Float64[np.ndarray, "rows numbers"]:
    return numbers_of(b"".join(row.signature or b"" for row in rows)).reshape(len(rows), -1)
