"""All sources of assets, each one word on the command line: list them and fetch their files."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.mesh_io.side_files import MAX_HASHED_BYTES
from pipeline.seqtex_layouts.layout import Layout, items
from pipeline.sources import objaverse as objaverse_source
from pipeline.sources import texverse as texverse_source
from pipeline.sources import xl_fetch
from pipeline.sources.fingerprint import fingerprints
from pipeline.sources.folder import folder, passed_over, uid_of
from pipeline.sources.objaverse import ObjaverseConfig, objaverse
from pipeline.sources.objaverse_xl import objaverse_xl
from pipeline.sources.procedural import procedural
from pipeline.sources.selection import SelectConfig
from pipeline.sources.tables.scores import Scores, read_scores
from pipeline.sources.texverse import texverse
from schemas.codec import UID_PATTERN
from schemas.errors import UsageError
from schemas.ledger import Rejected
from schemas.mesh import AssetKind, MeshRef

_KINDS = {Layout.MODELS: AssetKind.OFFICIAL_MODEL, Layout.IMAGES: AssetKind.OFFICIAL_RENDERS}


def official(root: Path, layout: Layout, max_bytes: int = MAX_HASHED_BYTES) -> Iterator[MeshRef]:
    """The listed items, keyed by their ids, with the captions and terms of the list. The main file alone is hashed."""
    listed = list(items(root.resolve(), layout))
    hashes = fingerprints([path for _, path in listed], None, max_bytes)
    for (entry, path), (sha256, _) in zip(listed, hashes, strict=True):
        yield MeshRef(
            uid=entry.id if UID_PATTERN.fullmatch(entry.id) else uid_of(entry.id),
            uri=str(path),
            sha256=sha256,
            source=entry.source,
            caption=entry.caption,
            kind=_KINDS[layout],
        )


_FETCHERS: dict[str, Callable[[MeshRef, ObjaverseConfig], MeshRef | Rejected]] = {
    objaverse_source.SCHEME: objaverse_source.fetch_object,
    xl_fetch.SCHEME: xl_fetch.fetch_object,
    texverse_source.SCHEME: texverse_source.fetch_object,
}


@contextlib.contextmanager
def fetched(refs: Iterable[MeshRef], cfg: ObjaverseConfig) -> Iterator[Iterator[MeshRef | Rejected]]:
    """Each asset as a file of this machine, or why it cannot be had; downloads run ahead of whoever reads."""
    with ThreadPoolExecutor(cfg.concurrency) as pool:
        running: list[Future[MeshRef | Rejected] | MeshRef] = []
        for ref in refs:
            fetch = next((fetch for scheme, fetch in _FETCHERS.items() if ref.uri.startswith(scheme)), None)
            running.append(pool.submit(fetch, ref, cfg) if fetch else ref)
        try:
            yield (entry.result() if isinstance(entry, Future) else entry for entry in running)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


USAGE = (
    "folder:PATH or PATH (every .glb, .gltf and .obj below PATH; more with --blender.python), procedural:N (N made-up "
    "assets) or procedural:N,materials (with metallic and roughness), "
    "objaverse:all, objaverse:lvis or objaverse:FILE (uids, one a line), objaverse-xl:all or objaverse-xl:FILE (uids, "
    "sha256s or file identifiers, one a line), texverse:all, texverse:pbr or texverse:FILE (uids, one a line), which "
    "--select.* narrows down, "
    "seqtex-3d:PATH or seqtex-images:PATH (SeqTex's own data layouts)"
)


def open_source(
    spec: str,
    assets_dir: Path,
    blender: bool = False,
    select: SelectConfig | None = None,
    mirror: ObjaverseConfig | None = None,
    max_bytes: int = MAX_HASHED_BYTES,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[MeshRef]:
    """The assets that `spec` names and `select` takes.

    Args:
        spec: one of `USAGE`
        assets_dir: where procedural assets are written
        blender: list what only Blender reads
        select: conditions
        mirror: where collections are downloaded from
        max_bytes: of a file that is hashed
        report: gets one line on a selection by `select.scores` once all assets were listed

    Raises UsageError on a bad spec, UserError where `select.scores` cannot be used."""
    select = select or SelectConfig()
    scores = read_scores(select)
    refs = _opened(spec, assets_dir, blender, select, mirror or ObjaverseConfig(), max_bytes, scores)
    return refs if scores is None else _reported(refs, scores, report)


def _reported(refs: Iterator[MeshRef], scores: Scores, report: Callable[[str], None]) -> Iterator[MeshRef]:
    yield from refs
    report(scores.summary())


def _opened(
    spec: str,
    assets_dir: Path,
    blender: bool,
    select: SelectConfig,
    mirror: ObjaverseConfig,
    max_bytes: int,
    scores: Scores | None,
) -> Iterator[MeshRef]:
    kind, rest = kind_of(spec)
    if kind == "objaverse" and rest:
        return objaverse(rest, select, mirror, scores)
    if kind == "texverse" and rest:
        return texverse(rest, select, mirror, scores)
    if kind == "objaverse-xl" and rest:
        return objaverse_xl(rest, select, mirror, blender, scores)
    refs = _local(spec, assets_dir, blender, max_bytes)
    return refs if scores is None else scores.taken(refs)


def _local(spec: str, assets_dir: Path, blender: bool, max_bytes: int) -> Iterator[MeshRef]:
    """The assets of a source of this machine."""
    kind, rest = kind_of(spec)
    if kind in ("folder", *Layout) and rest:
        path = Path(rest).expanduser().resolve()
        if not path.is_dir():
            raise UsageError(f"source {spec!r}: {path} is not a folder; sources are {USAGE}")
        return folder(path, blender, max_bytes) if kind == "folder" else official(path, Layout(kind), max_bytes)
    number, comma, option = rest.partition(",")
    sound = number.isascii() and number.isdigit() and int(number) > 0 and option == ("materials" if comma else "")
    if kind == "procedural" and sound:
        return procedural(int(number), assets_dir, materials=bool(comma))
    raise UsageError(f"source {spec!r} is not understood; sources are {USAGE}")


def source_folder(spec: str, assets_dir: Path) -> Path | None:
    """Return the folder at which the paths of a source's assets begin; None where they are URLs."""
    kind, rest = kind_of(spec)
    if kind in ("folder", *Layout):
        return Path(rest).expanduser().resolve()
    return assets_dir if kind == "procedural" else None


def kind_of(spec: str) -> tuple[str, str]:
    """Split a source into its kind and what follows: a bare path is that of a folder."""
    if spec.startswith(("/", "./", "../", "~")) or (spec and Path(spec).is_dir()):
        return "folder", spec
    kind, _, rest = spec.partition(":")
    return kind, rest


def skipped_files(spec: str, blender: bool = False) -> str:
    """One line on meshes that `spec` does not list; empty where there are none."""
    kind, rest = kind_of(spec)
    return passed_over(Path(rest).expanduser().resolve(), blender) if kind == "folder" and rest else ""
