"""Objaverse 1.0: assets chosen by annotation, downloaded when their job comes.

Files lie as the `objaverse` package 0.1.7 lays them out, under the same names on the server and in the cache:
`object-paths.json.gz` (uid -> `glbs/000-023/UID.glb`), `metadata/000-023.json.gz` (uid -> annotation),
`lvis-annotations.json.gz` (category -> uids). So one cache serves both."""

import gzip
import heapq
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.sources import objaverse_package
from pipeline.sources.download import DownloadConfig, DownloadError, download
from pipeline.sources.selection import LICENCES, SelectConfig, fits, rank, spdx
from pipeline.sources.tables.captions import Captions, read_captions
from pipeline.sources.tables.scores import Scores
from schemas.codec import UID_PATTERN
from schemas.errors import UsageError, UserError
from schemas.ledger import Reason, Rejected
from schemas.mesh import Attribution, MeshRef
from schemas.storage import file_sha256

BASE_URL = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
XL_URL = "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main"
TEXVERSE_URL = "https://huggingface.co/datasets/YiboZhang2001/TexVerse/resolve/main"
TEXVERSE_1K_URL = "https://huggingface.co/datasets/YiboZhang2001/TexVerse-1K/resolve/main"
SCHEME = "objaverse://"
"""Uris are this and the path on the server: the same plan for every mirror and cache."""
_CACHE_FOLDER = "hf-objaverse-v1"
_OBJECT_PATH = re.compile(r"glbs/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\.glb")
_CAPTION_TAGS = 8


def _default_base_url() -> str:
    return os.environ.get("SEQTEX_OBJAVERSE_URL") or BASE_URL


def _default_cache() -> str:
    return os.environ.get("SEQTEX_OBJAVERSE_CACHE") or "~/.objaverse"


@dataclass(frozen=True, kw_only=True)
class ObjaverseConfig(DownloadConfig):
    """Options of Objaverse's server and cache. Not recorded: the same assets come from any mirror."""

    base_url: str = field(default_factory=_default_base_url)
    """Server with Objaverse's layout; default $SEQTEX_OBJAVERSE_URL, else Hugging Face."""
    cache: str = field(default_factory=_default_cache)
    """Folder of what was downloaded, shared with the `objaverse` package and by all nodes that see it; default
    $SEQTEX_OBJAVERSE_CACHE, else ~/.objaverse."""
    xl_url: str = field(default_factory=lambda: os.environ.get("SEQTEX_OBJAVERSE_XL_URL") or XL_URL)
    """Server with Objaverse-XL's annotations; default $SEQTEX_OBJAVERSE_XL_URL, else Hugging Face."""
    texverse_url: str = field(default_factory=lambda: os.environ.get("SEQTEX_TEXVERSE_URL") or TEXVERSE_URL)
    """Server with TexVerse's layout; default $SEQTEX_TEXVERSE_URL, else Hugging Face."""
    texverse_1k_url: str = field(default_factory=lambda: os.environ.get("SEQTEX_TEXVERSE_1K_URL") or TEXVERSE_1K_URL)
    """The same for its assets with textures of 1024 pixels; default $SEQTEX_TEXVERSE_1K_URL, else Hugging Face."""
    github_url: str = "https://raw.githubusercontent.com"
    """Serves ORG/REPO/COMMIT/PATH."""
    github_lfs_url: str = "https://media.githubusercontent.com/media"
    """The same for files that a repository keeps in Git LFS."""
    smithsonian_url: str = "https://3d-api.si.edu"
    """Serves the Smithsonian's models."""
    thingiverse_url: str = "https://www.thingiverse.com"
    """Serves download:FILE."""
    package: bool = False
    """Annotations and LVIS categories are read by the installed `objaverse` package (extra `objaverse`), from this
    cache; files are downloaded as without it."""
    captions: str = ""
    """A .csv, .parquet, .jsonl or .json with `uid` and `caption`; name and tags where it has none."""
    caption_levels: tuple[str, ...] = ()
    """Columns of `captions` that samples keep by name, the best first: `short medium long`. The caption is the first
    that an asset has; empty: `caption` alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.caption_levels)) < len(self.caption_levels) or not all(self.caption_levels):
            raise UsageError(f"objaverse.caption_levels: {self.caption_levels}; give each column once, by its name")
        for name, value in vars(self).items():
            if name.endswith("_url") and not value.startswith(("http://", "https://")):
                raise UsageError(f"objaverse.{name} is {value!r}; give one that starts with https:// or http://")

    @property
    def root(self) -> Path:
        """Folder of the cache."""
        return Path(self.cache).expanduser().absolute()

    def path(self, name: str) -> Path:
        """Return the place in the cache of a file of Objaverse 1.0's server."""
        return self.root / _CACHE_FOLDER / name

    def url(self, name: str) -> str:
        return f"{self.base_url.rstrip('/')}/{name}"


def objaverse(
    which: str, select: SelectConfig, cfg: ObjaverseConfig, scores: Scores | None = None
) -> Iterator[MeshRef]:
    """The assets of `which` (`all`, `lvis`: those with an LVIS category, or a file of uids, one a line) that fit
    `select` and `scores`, by uid. Reads indexes alone.

    Raises UsageError on an unknown `which` or category, UserError where an index or a user's file cannot be had."""
    if unknown := sorted(set(select.licences) - LICENCES.keys()):
        raise UsageError(f"select.licences: {', '.join(unknown)} is none of {' '.join(LICENCES)}")
    listed = _read_uids(which) if which not in ("all", "lvis") else None
    captions = read_captions(cfg.captions, cfg.caption_levels)
    paths = read_paths(cfg)
    wanted = set(paths) if listed is None else listed
    if unknown := sorted(wanted - paths.keys()):
        raise UserError(f"{which}: {len(unknown)} uids are not in Objaverse 1.0, first {unknown[0]!r}; take them out")
    if which == "lvis" and not select.lvis:
        wanted &= with_lvis((), cfg)
    if scores is not None:
        wanted = {uid for uid in wanted if scores.take(uid)}
    chosen = annotated(wanted, paths, select, cfg)
    if select.sample is not None:
        chosen = iter(heapq.nsmallest(select.sample, chosen, key=lambda entry: rank(entry[0], select.seed)))
    refs = (ref_of(uid, SCHEME + paths[uid], annotation, captions) for uid, annotation in chosen)
    yield from sorted(refs, key=lambda ref: ref.uid)


def read_paths(cfg: ObjaverseConfig) -> dict[str, str]:
    """Return the path of every asset on the server, by uid."""
    return _read_index("object-paths.json.gz", cfg)


def annotated(
    wanted: Set[str], paths: dict[str, str], select: SelectConfig, cfg: ObjaverseConfig
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the assets of `wanted` that fit, with their annotations."""
    if select.lvis:
        wanted = wanted & with_lvis(select.lvis, cfg)
    folders: dict[str, list[str]] = {}
    for uid in wanted:
        if _OBJECT_PATH.fullmatch(paths[uid]):
            folders.setdefault(paths[uid].split("/")[1], []).append(uid)
    return _chosen(folders, select, cfg)


def _read_uids(which: str) -> set[str]:
    if which in ("xl", "objaverse-xl"):
        raise UsageError("objaverse:xl: Objaverse-XL is objaverse-xl:all; Objaverse 1.0 is objaverse:all")
    path = Path(which).expanduser()
    if not path.is_file():
        raise UsageError(f"objaverse:{which}: give `all`, `lvis`, or a file with one uid a line")
    return {line.removesuffix(".glb") for line in read_list(path)}


def read_list(path: Path) -> set[str]:
    """The lines of a user's file, what follows a # taken out."""
    try:
        lines = (re.split(r"(?:^|\s)#", line)[0].strip() for line in path.read_text().splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a text file with one asset a line") from error
    return {line for line in lines if line}


def with_lvis(categories: Sequence[str], cfg: ObjaverseConfig) -> set[str]:
    """Assets with one of these LVIS categories, with any where none is named."""
    known = _read_lvis(cfg)
    if unknown := [name for name in categories if name not in known]:
        raise UsageError(
            f"select.lvis: {unknown[0]!r} is no LVIS category of Objaverse, such as {', '.join([*known][:5])}"
        )
    return {uid for name in (categories or known) for uid in known[name]}


def _chosen(
    folders: Mapping[str, Sequence[str]], select: SelectConfig, cfg: ObjaverseConfig
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the assets of each folder that fit, with few files of annotations in memory at a time: together they take
    gigabytes."""
    names, step = sorted(folders), objaverse_package.FOLDERS if cfg.package else 1
    with ThreadPoolExecutor(cfg.concurrency) as pool:
        fetching = [pool.submit(_fetch_index, f"metadata/{name}.json.gz", cfg) for name in names]
        try:
            for start in range(0, len(names), step):
                some = names[start : start + step]
                for fetched in fetching[start : start + step]:
                    fetched.result()
                wanted = {uid for name in some for uid in folders[name]}
                for uid, annotation in _annotations(some, wanted, cfg).items():
                    if uid in wanted and UID_PATTERN.fullmatch(uid) and fits(annotation, select):
                        yield uid, annotation
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _annotations(names: Sequence[str], wanted: Set[str], cfg: ObjaverseConfig) -> dict[str, dict[str, Any]]:
    """The annotations of some folders, by our reader or the package's."""
    if cfg.package:
        return objaverse_package.load_annotations(cfg.path(""), sorted(wanted))
    return {uid: entry for name in names for uid, entry in _parse_index(cfg.path(f"metadata/{name}.json.gz")).items()}


def ref_of(
    uid: str,
    uri: str,
    annotation: dict[str, Any],
    captions: Captions,
    *names: str | None,
    collection: str = "Objaverse 1.0",
) -> MeshRef:
    """An asset of Sketchfab by its annotation. `names`: others that the captions may have it by."""
    user = annotation.get("user") or {}
    title = " ".join(str(annotation.get("name") or uid).split())
    author = str(user.get("displayName") or user.get("username") or "unknown")
    licence = str(annotation.get("license") or "")
    tags = [str(tag.get("name", "")) for tag in annotation.get("tags") or ()][:_CAPTION_TAGS]
    url = str(annotation.get("viewerUrl") or f"https://sketchfab.com/3d-models/{uid}")
    caption, levels = captions.of(uid, *names, otherwise=", ".join([title, *filter(None, tags)]))
    return MeshRef(
        uid=uid,
        uri=uri,
        source=Attribution(
            name=collection,
            licence=spdx(licence),
            attribution=f'"{title}" by {author}, {url}',
            title=title,
            author=author,
            url=url,
        ),
        caption=caption,
        captions=levels,
    )


# indexes


def _read_lvis(cfg: ObjaverseConfig) -> dict[str, list[str]]:
    if not cfg.package:
        return _read_index("lvis-annotations.json.gz", cfg)
    _fetch_index("lvis-annotations.json.gz", cfg)
    return objaverse_package.load_lvis_annotations(cfg.path(""))


def _fetch_index(name: str, cfg: ObjaverseConfig) -> None:
    try:
        download(cfg.url(name), cfg.path(name), cfg, _index_fault)
    except DownloadError as error:
        raise UserError(f"{error}; check the network and --objaverse.base_url, and build again") from error
    except OSError as error:
        raise UserError(f"{cfg.path(name)}: cannot be written ({error}); give another --objaverse.cache") from error


def _read_index(name: str, cfg: ObjaverseConfig) -> dict[str, Any]:
    _fetch_index(name, cfg)
    return _parse_index(cfg.path(name))


def _parse_index(path: Path) -> dict[str, Any]:
    try:
        with gzip.open(path, "rb") as file:
            entries = json.load(file)
        if not isinstance(entries, dict):
            raise ValueError("no JSON object")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path}: not one of Objaverse's indexes ({error}); check --objaverse.base_url") from error
    return entries


def _index_fault(path: Path) -> str | None:
    """gzip has length and checksum at its end."""
    try:
        with gzip.open(path, "rb") as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"damaged index ({error})"
    return None


# assets


def glb_fault(path: Path) -> str | None:
    """Return whether a .glb is as long as its header says: which no server reports, and which a caching proxy gets
    wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(12)
    if len(header) < 12 or header[:4] != b"glTF":
        return f"no .glb: {size} bytes that start with {header[:4]!r}"
    stated = struct.unpack("<I", header[8:])[0]
    return None if stated == size else f"{size} bytes where its header says {stated}"


def fetch_object(ref: MeshRef, cfg: ObjaverseConfig) -> MeshRef | Rejected:
    """An asset as a file of this machine, or why it cannot be had."""
    name = ref.uri.removeprefix(SCHEME)
    if not _OBJECT_PATH.fullmatch(name):
        return Rejected(reason=Reason.DOWNLOAD_FAILED, detail=f"{name[:200]!r} is no path of Objaverse")
    path = cfg.path(name)
    try:
        download(cfg.url(name), path, cfg, lambda file: glb_fault(file) or sha256_fault(file, ref.sha256))
        return replace(ref, uri=str(path), sha256=file_sha256(path))
    except (DownloadError, OSError) as error:
        return Rejected(reason=Reason.DOWNLOAD_FAILED, detail=str(error))


def sha256_fault(path: Path, expected: str | None) -> str | None:
    """Return whether a file is the one that was annotated, where that is known."""
    found = file_sha256(path) if expected is not None else None
    return None if found == expected else f"its sha256 is {str(found)[:12]}..., annotated is {str(expected)[:12]}..."
