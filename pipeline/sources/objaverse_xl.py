"""Objaverse-XL: assets of four origins chosen by annotation, downloaded when their job comes.

The annotations lie as the `objaverse` package 0.1.7 lays them out: `ORIGIN/ORIGIN.parquet` with the columns
`fileIdentifier license fileType sha256 metadata`, on the server and in the cache."""

import heapq
import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.blender.host import SUFFIXES as BLENDER_SUFFIXES
from pipeline.mesh_io.preflight import SUFFIXES
from pipeline.sources import objaverse_package
from pipeline.sources.download import DownloadError, download
from pipeline.sources.objaverse import SCHEME as OBJAVERSE
from pipeline.sources.objaverse import ObjaverseConfig, annotated, read_list, read_paths, ref_of
from pipeline.sources.selection import ORIGINS, SelectConfig, fits, licence_fits, rank, spdx
from pipeline.sources.tables.captions import Captions, read_captions
from pipeline.sources.tables.scores import Scores
from pipeline.sources.xl_fetch import SCHEME, key_of, uri_of
from schemas.codec import UID_PATTERN
from schemas.errors import UsageError, UserError
from schemas.mesh import Attribution, MeshRef

_COLUMNS = ["fileIdentifier", "license", "fileType", "sha256", "metadata"]
_BATCH_ROWS = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the annotations."""

    origin: str
    identifier: str
    """Address of the file, or of the asset's page."""
    licence: str
    file_type: str
    sha256: str | None
    metadata: dict[str, Any]

    @property
    def uid(self) -> str:
        """Sketchfab's, which are those of Objaverse 1.0; of other origins the `objaverse` package's key."""
        return self.identifier.rpartition("/")[2] if self.origin == "sketchfab" else key_of(self.identifier)

    @property
    def names(self) -> set[str]:
        """Return the names that a user's list may have for an asset."""
        return {self.uid, self.identifier, *filter(None, [self.sha256])}


def objaverse_xl(
    which: str, select: SelectConfig, cfg: ObjaverseConfig, blender: bool = False, scores: Scores | None = None
) -> Iterator[MeshRef]:
    """The assets of `which` (`all`, or a file of uids, sha256s or file identifiers, one a line) that fit `select` and
    `scores`, whose table may name them in any of these ways, by uid. Reads annotations alone. `blender`: whether what
    only Blender reads counts as readable.

    Raises UsageError on an unknown `which`, UserError where annotations or a user's file cannot be had."""
    wanted = None if which == "all" else _read_names(which)
    captions = read_captions(cfg.captions, cfg.caption_levels)
    types = {name.lower().lstrip(".") for name in select.file_types or _readable(blender)}
    found: set[str] = set()
    refs = _candidates(wanted, found, types, select, cfg, captions, scores)
    if select.sample is not None:
        refs = iter(heapq.nsmallest(select.sample, refs, key=lambda ref: rank(ref.uid, select.seed)))
    chosen = {ref.uid: ref for ref in sorted(refs, key=lambda ref: (ref.uid, ref.uri), reverse=True)}
    if unknown := sorted((wanted or set()) - found):
        asked = ", ".join(select.origins or ORIGINS)
        raise UserError(f"{which}: {len(unknown)} lines are not in {asked}, first {unknown[0]!r}; take them out")
    yield from (chosen[uid] for uid in sorted(chosen))


def _read_names(which: str) -> set[str]:
    path = Path(which).expanduser()
    if not path.is_file():
        raise UsageError(f"objaverse-xl:{which}: give `all`, or a file with one uid, sha256 or file identifier a line")
    return read_list(path)


def _readable(blender: bool) -> tuple[str, ...]:
    """Formats that can hold colours: of millions of STL files none could become a sample."""
    readable = SUFFIXES + BLENDER_SUFFIXES if blender else SUFFIXES
    return tuple(suffix for suffix in readable if suffix != ".stl")


def _candidates(
    wanted: Set[str] | None,
    found: set[str],
    types: Set[str],
    select: SelectConfig,
    cfg: ObjaverseConfig,
    captions: Captions,
    scores: Scores | None,
) -> Iterator[MeshRef]:
    """Yield the assets that fit, origin by origin; `found` gathers which of `wanted` are there at all. Of faces, tags
    and the like only Sketchfab's annotations have: where a condition asks for them, others do not fit."""
    asks_no_more = not select.lvis and fits({}, replace(select, licences=()))
    for origin in select.origins or ORIGINS:
        entries = {}
        for entry in _entries(origin, cfg):
            if wanted is not None:
                found |= entry.names & wanted
            listed = wanted is None or entry.names & wanted
            if not (listed and entry.file_type in types and UID_PATTERN.fullmatch(entry.uid)):
                continue
            if scores is not None and not scores.take(entry.uid, entry.sha256, entry.identifier):
                continue
            if origin == "sketchfab":
                entries[entry.uid] = entry
            elif asks_no_more and licence_fits(entry.licence, select):
                yield _ref(entry, captions)
        if entries:
            paths = read_paths(cfg)
            yield from _from_sketchfab(entries, paths, select, cfg, captions)
            gone = (entries[uid] for uid in sorted(entries.keys() - paths.keys()))
            yield from (_ref(entry, captions) for entry in gone if asks_no_more and licence_fits(entry.licence, select))


def _from_sketchfab(
    entries: dict[str, Entry],
    paths: dict[str, str],
    select: SelectConfig,
    cfg: ObjaverseConfig,
    captions: Captions,
) -> Iterator[MeshRef]:
    """Assets of Objaverse 1.0: its annotations have what the others lack, its server has the files."""
    for uid, annotation in annotated(entries.keys() & paths.keys(), paths, select, cfg):
        entry = entries[uid]
        ref = ref_of(uid, OBJAVERSE + paths[uid], annotation, captions, entry.sha256, entry.identifier)
        yield replace(ref, sha256=entry.sha256)


def _ref(entry: Entry, captions: Captions) -> MeshRef:
    uri = uri_of(entry.origin, entry.identifier)
    path = PurePosixPath(uri.removeprefix(SCHEME))
    stem = unquote(path.stem) if entry.origin == "smithsonian" else path.stem
    title = " ".join(str(entry.metadata.get("title") or entry.metadata.get("name") or stem).split())
    known = "Smithsonian Institution" if entry.origin == "smithsonian" else "unknown"
    owner = path.parts[1] if entry.origin == "github" and len(path.parts) > 2 else known
    author = str(entry.metadata.get("author") or owner)
    caption, levels = captions.of(entry.uid, entry.sha256, entry.identifier, otherwise=title)
    return MeshRef(
        uid=entry.uid,
        uri=uri,
        sha256=entry.sha256,
        source=Attribution(
            name=f"Objaverse-XL, {entry.origin}",
            licence=spdx(entry.licence),
            attribution=f'"{title}" by {author}, {entry.identifier}',
            title=title,
            author=author,
            url=entry.identifier,
        ),
        caption=caption,
        captions=levels,
    )


# annotations


def _entries(origin: str, cfg: ObjaverseConfig) -> Iterator[Entry]:
    """The rows of an origin, some at a time: all together have ten million."""
    name = f"{origin}/{origin}.parquet"
    path = cfg.root / name
    try:
        download(f"{cfg.xl_url.rstrip('/')}/{name}", path, cfg, _table_fault)
        rows = objaverse_package.load_xl_annotations(cfg.root, origin, _BATCH_ROWS) if cfg.package else _rows(path)
        for row in rows:
            yield _entry(origin, row)
    except DownloadError as error:
        raise UserError(f"{error}; check the network and --objaverse.xl_url, and build again") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: no annotations can be read ({error}); delete it and build again") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=_known(file), use_threads=False):
            yield from batch.to_pylist()


def _known(file: pq.ParquetFile) -> list[str]:
    """The package adds `metadata` itself where a file has none."""
    return [name for name in _COLUMNS if name in file.schema_arrow.names]


def _entry(origin: str, row: dict[str, Any]) -> Entry:
    metadata = row.get("metadata")
    try:
        known = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        known = None
    return Entry(
        origin=origin,
        identifier=str(row["fileIdentifier"]),
        licence=str(row["license"] or ""),
        file_type=str(row["fileType"] or "").lower().lstrip("."),
        sha256=row["sha256"] or None,
        metadata=known if isinstance(known, dict) else {},
    )


def _table_fault(path: Path) -> str | None:
    """A Parquet file has its index at its end."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            missing = set(_COLUMNS[:4]) - set(file.schema_arrow.names)
    except (OSError, pa.ArrowException) as error:
        return f"damaged annotations ({error})"
    return f"annotations without {', '.join(sorted(missing))}" if missing else None
