"""TexVerse: Sketchfab's assets with high-resolution textures, chosen by metadata, downloaded when their job comes.

On the server `metadata.json` (uid -> annotation with `glb_paths`), `caption.json` (uid -> text, or texts by level),
`TexVerse_pbr_id_list.txt`, and `glbs/glbs_2k/000-041/UID_2048.glb`, each asset at every texture resolution up to its
own; those of 1024 lie in a repository of their own, TexVerse-1K. The cache has the same layout."""

import heapq
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.sources.download import DownloadError, download
from pipeline.sources.objaverse import ObjaverseConfig, glb_fault, read_list, ref_of, sha256_fault
from pipeline.sources.selection import LICENCES, SelectConfig, fits, rank
from pipeline.sources.tables.captions import read_captions
from pipeline.sources.tables.json_objects import json_entries
from pipeline.sources.tables.scores import Scores
from schemas.codec import UID_PATTERN
from schemas.errors import UsageError, UserError
from schemas.ledger import Reason, Rejected
from schemas.mesh import MeshRef
from schemas.storage import file_sha256

SCHEME = "texverse://"
"""Uris are this and the path on the server."""
METADATA, CAPTIONS, PBR = "metadata.json", "caption.json", "TexVerse_pbr_id_list.txt"
_OBJECT_PATH = re.compile(r"glbs/glbs_([1248])k/[A-Za-z0-9_-]+/[A-Za-z0-9-]+_(\d{4})\.glb")


def texverse(which: str, select: SelectConfig, cfg: ObjaverseConfig, scores: Scores | None = None) -> Iterator[MeshRef]:
    """The assets of `which` (`all`, `pbr`: those with materials for physically based rendering, or a file of uids, one
    a line) that fit `select` and `scores`, by uid, with textures of `select.texture_resolution`. Reads metadata alone.

    Raises UsageError on an unknown `which` or condition, UserError where metadata or a user's file cannot be had."""
    if unknown := sorted(set(select.licences) - LICENCES.keys()):
        raise UsageError(f"select.licences: {', '.join(unknown)} is none of {' '.join(LICENCES)}")
    if select.lvis:
        raise UsageError("select.lvis: TexVerse has no LVIS categories; leave it out, or give uids in a file")
    wanted, seen = _wanted(which, cfg), set[str]()
    chosen = _chosen(wanted, seen, select, cfg, scores)
    if select.sample is not None:
        chosen = iter(heapq.nsmallest(select.sample, chosen, key=lambda found: rank(found[0], select.seed)))
    found = sorted(chosen, key=lambda entry: entry[0])
    if wanted is not None and (absent := sorted(wanted - seen)):
        raise UserError(f"{which}: {len(absent)} uids are not in TexVerse, first {absent[0]!r}; take them out")
    table = cfg.captions or str(_index(CAPTIONS, cfg))
    captions = read_captions(table, cfg.caption_levels, only={uid for uid, _, _ in found})
    for uid, path, annotation in found:
        yield ref_of(uid, SCHEME + path, annotation, captions, collection="TexVerse")


def _wanted(which: str, cfg: ObjaverseConfig) -> set[str] | None:
    """The uids that a source names; None: all."""
    if which == "all":
        return None
    path = _index(PBR, cfg) if which == "pbr" else Path(which).expanduser()
    if not path.is_file():
        raise UsageError(f"texverse:{which}: give `all`, `pbr`, or a file with one uid a line")
    return read_list(path)


def _chosen(
    wanted: Set[str] | None, seen: set[str], select: SelectConfig, cfg: ObjaverseConfig, scores: Scores | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield uid, path and annotation of the assets that fit; `seen` gathers which of `wanted` there are."""
    path = _index(METADATA, cfg)
    try:
        for uid, entry in json_entries(path):
            if not (isinstance(entry, dict) and UID_PATTERN.fullmatch(uid)) or (
                wanted is not None and uid not in wanted
            ):
                continue
            if wanted is not None:
                seen.add(uid)
            if scores is not None and not scores.take(uid):
                continue
            variants = _variants(entry)
            large = select.min_texture_resolution is None or max(variants, default=0) >= select.min_texture_resolution
            annotation = _annotation(entry)
            if large and select.texture_resolution in variants and fits(annotation, select):
                yield uid, variants[select.texture_resolution], annotation
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no metadata of TexVerse can be read ({error}); delete it and build again") from error


def _variants(entry: Mapping[str, Any]) -> dict[int, str]:
    """The path of an asset at each resolution of its textures."""
    paths = entry.get("glb_paths")
    found = (_OBJECT_PATH.fullmatch(path) for path in paths if isinstance(path, str)) if isinstance(paths, list) else ()
    return {int(match[2]): match[0] for match in found if match}


def _annotation(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of an asset in the words of Objaverse's annotations. Every asset has image textures."""
    licence, user = entry.get("license"), entry.get("user")
    if isinstance(licence, dict):
        licence = licence.get("slug") or licence.get("label")
    return {
        "name": entry.get("name"),
        "license": licence,
        "faceCount": entry.get("faceCount"),
        "animationCount": entry.get("animationCount"),
        "archives": {"glb": {"textureCount": entry.get("textureCount") or 1}},
        "tags": _labels(entry.get("tags")),
        "categories": _labels(entry.get("categories")),
        "user": user if isinstance(user, dict) else {"displayName": user},
        "viewerUrl": entry.get("viewerUrl"),
    }


def _labels(stored: Any) -> list[dict[str, Any]]:
    """Tags or categories, which are names or objects with them."""
    found = stored if isinstance(stored, list) else []
    return [label if isinstance(label, dict) else {"name": str(label)} for label in found]


# files


def _index(name: str, cfg: ObjaverseConfig) -> Path:
    path = cfg.root / "texverse" / name
    try:
        download(f"{cfg.texverse_url.rstrip('/')}/{name}", path, cfg, _cut_off if name.endswith(".json") else _no_list)
    except DownloadError as error:
        raise UserError(f"{error}; check the network and --objaverse.texverse_url, and build again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another --objaverse.cache") from error
    return path


def _cut_off(path: Path) -> str | None:
    """Return whether a file begins and ends as a JSON object does; reading it finds the rest."""
    with path.open("rb") as file:
        first = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        file.seek(max(path.stat().st_size - 64, 0))
        last = file.read().rstrip()[-1:]
    return None if (first, last) == (b"{", b"}") else f"no JSON object: begins with {first!r}, ends with {last!r}"


def _no_list(path: Path) -> str | None:
    with path.open("rb") as file:
        line = file.readline(300).strip()
    return None if re.fullmatch(rb"[A-Za-z0-9_-]{1,200}", line) else f"no list of uids: begins with {line[:40]!r}"


def fetch_object(ref: MeshRef, cfg: ObjaverseConfig) -> MeshRef | Rejected:
    """An asset as a file of this machine, or why it cannot be had."""
    name = ref.uri.removeprefix(SCHEME)
    if not (found := _OBJECT_PATH.fullmatch(name)):
        return Rejected(reason=Reason.DOWNLOAD_FAILED, detail=f"{name[:200]!r} is no path of TexVerse")
    path, base = cfg.root / "texverse" / name, cfg.texverse_1k_url if found[1] == "1" else cfg.texverse_url
    try:
        download(
            f"{base.rstrip('/')}/{name}", path, cfg, lambda file: glb_fault(file) or sha256_fault(file, ref.sha256)
        )
        return replace(ref, uri=str(path), sha256=file_sha256(path))
    except (DownloadError, OSError) as error:
        return Rejected(reason=Reason.DOWNLOAD_FAILED, detail=str(error))
