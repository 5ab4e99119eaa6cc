"""Objaverse-XL's assets from where they lie: one file each, and from GitHub the files that it names.

A repository is never cloned or unpacked: files are asked for one by one, at the commit of the annotation, under paths
that are checked. Files lie where the `objaverse` package 0.1.7 puts them (`smithsonian/objects`, `thingiverse`); those
of GitHub in `github/commits/ORG/REPO/COMMIT`, since a part of a repository in the package's `github/repos` would look
whole to it. A repository that the package has put there as files is used."""

import itertools
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from pipeline.mesh_io.exchange.pieces import names_of
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, is_data_uri, read_limited
from pipeline.mesh_io.side_files import library_lines, names_in_text
from pipeline.mesh_io.wavefront.mtl import MapUse, library_names, read_mtl
from pipeline.mesh_io.wavefront.physical import all_maps
from pipeline.sources.download import DownloadError, download
from pipeline.sources.fingerprint import side_files_of
from pipeline.sources.objaverse import ObjaverseConfig, glb_fault, sha256_fault
from schemas.ledger import Reason, Rejected
from schemas.mesh import MeshRef
from schemas.storage import file_sha256

SCHEME = "objaverse-xl://"
"""Uris are this, the origin, and the path there."""
SMITHSONIAN = "https://3d-api.si.edu/"
"""Start of the Smithsonian's URLs in the annotations, whatever mirror is asked."""
_GITHUB = re.compile(r"https://github\.com/([^/]+)/([^/]+)/blob/(.+)", re.DOTALL)
_THING = re.compile(r"https://www\.thingiverse\.com/thing:(\d+)/.*[?&]fileId=(\d+)")
_THING_FILE = re.compile(r"thing-\d+-file-(\d+)\.stl")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMITHSONIAN_PATH = re.compile(r"[A-Za-z0-9_.:/%()~+,-]+\.glb")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_TEXT_BYTES = 2**20
"""Most bytes of JSON or of a material library that is parsed here: it takes up to eighty times as much memory."""
_MAX_SEARCHED_BYTES = 2**25
"""Suffix of COLLADA, in which file names are searched for: nothing is parsed."""
_MAX_COMPANIONS = 512
"""Files that one asset may name; the preflight misses the others."""


def key_of(identifier: str) -> str:
    """The `objaverse` package's own key for a file identifier."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, identifier))


def uri_of(origin: str, identifier: str) -> str:
    """Return the place of an annotated file; one that is no URL of its origin is kept, and reported when it is
    fetched."""
    tail = identifier
    if origin == "github" and (found := _GITHUB.fullmatch(identifier)):
        tail = "/".join(found.groups())
    elif origin == "thingiverse" and (found := _THING.fullmatch(identifier)):
        tail = f"thing-{found[1]}-file-{found[2]}.stl"
    elif origin == "smithsonian":
        tail = identifier.removeprefix(SMITHSONIAN)
    return f"{SCHEME}{origin}/{tail}"


def fetch_object(ref: MeshRef, cfg: ObjaverseConfig) -> MeshRef | Rejected:
    """An asset as a file of this machine, or why it cannot be had."""
    origin, _, tail = ref.uri.removeprefix(SCHEME).partition("/")
    fetch = {"github": _from_github, "smithsonian": _from_smithsonian, "thingiverse": _from_thingiverse}.get(origin)
    try:
        path = fetch(tail, ref.sha256, cfg) if fetch else None
        if path is not None:
            return replace(ref, uri=str(path), sha256=file_sha256(path))
        detail = f"{tail[:200]!r} is no address of {origin}"
    except (DownloadError, OSError, ValueError) as error:
        detail = str(error)
    return Rejected(reason=Reason.DOWNLOAD_FAILED, detail=detail)


def _from_smithsonian(tail: str, sha256: str | None, cfg: ObjaverseConfig) -> Path | None:
    if not _SMITHSONIAN_PATH.fullmatch(tail) or not _plain(tail.split("/")):
        return None
    path = cfg.root / "smithsonian" / "objects" / f"{key_of(SMITHSONIAN + tail)}.glb"
    url = f"{cfg.smithsonian_url.rstrip('/')}/{tail}"
    download(url, path, cfg, lambda file: glb_fault(file) or sha256_fault(file, sha256))
    return path


def _from_thingiverse(tail: str, sha256: str | None, cfg: ObjaverseConfig) -> Path | None:
    if not (found := _THING_FILE.fullmatch(tail)):
        return None
    path = cfg.root / "thingiverse" / tail
    url = f"{cfg.thingiverse_url.rstrip('/')}/download:{found[1]}"
    download(url, path, cfg, lambda file: sha256_fault(file, sha256))
    return path


# GitHub


def _from_github(tail: str, sha256: str | None, cfg: ObjaverseConfig) -> Path | None:
    """The file at its commit, and beside it what it names."""
    parts = tail.split("/")
    named = len(parts) > 3 and all(map(_NAME.fullmatch, parts[:2])) and _COMMIT.fullmatch(parts[2])
    if not (named and _plain(parts)):
        return None
    if (cloned := _cloned(parts, sha256, cfg)) is not None:
        return cloned
    path = _github_file(parts, sha256, cfg)
    folders, left = Folders(path, None, Notes()), itertools.count(1)

    def bring(names: Sequence[str], encoded: bool = False, first: Path | None = None) -> Path | None:
        """The first place at which the repository has a file that the asset names, in its own folder or below."""
        try:
            places = [place for group in folders.candidates(names, "", encoded=encoded, first=first) for place in group]
        except AssetError:
            return None  # the preflight refuses it
        for place in places:
            inside = place.relative_to(folders.own).parts
            if inside and next(left) <= _MAX_COMPANIONS and _is_there([*parts[:-1], *inside], cfg):
                return place
        return None

    suffix = path.suffix.lower()
    if suffix == ".gltf":
        large = path.stat().st_size > _MAX_TEXT_BYTES
        for uri in _names_in_large(path) if large else _gltf_uris(path):
            bring((uri,), encoded=not large)
    elif suffix in (".dae", ".ply"):
        for name in names_in_text(path, _MAX_SEARCHED_BYTES)[:_MAX_COMPANIONS]:
            bring(names_of(name))
    elif suffix == ".obj":
        for names in dict.fromkeys(n for argument, _ in library_lines(path) for n in library_names(argument)):
            library = bring(names)
            for use in _maps(library) if library else ():
                bring(use.names, first=use.folder)
    return path


def _is_there(parts: list[str], cfg: ObjaverseConfig) -> bool:
    """Fetch a file of a repository, and return whether it has it."""
    try:
        _github_file(parts, None, cfg)
    except DownloadError as error:
        if not error.absent:
            raise
        return False  # the preflight says which file is missing
    return True


def _plain(parts: list[str]) -> bool:
    """Return whether a path goes down, step by step."""
    return all(part not in ("", ".", "..") and not set(part) & set("\\\0") for part in parts)


def _cloned(parts: list[str], sha256: str | None, cfg: ObjaverseConfig) -> Path | None:
    """The file in a repository that the `objaverse` package has stored, if it is the annotated one and no link."""
    org, repo, _, *inside = parts
    root = (cfg.root / "github" / "repos" / org / repo).resolve()
    path = root.joinpath(*inside)
    sound = sha256 is not None and path.is_file() and path.resolve() == path and file_sha256(path) == sha256
    return path if sound else None


def _github_file(parts: list[str], sha256: str | None, cfg: ObjaverseConfig) -> Path:
    path = (cfg.root / "github" / "commits").joinpath(*parts)
    name = "/".join(quote(part, safe="") for part in parts)

    def problem(file: Path) -> str | None:
        return "a pointer of Git LFS" if _is_pointer(file) else sha256_fault(file, sha256)

    url = f"{cfg.github_url.rstrip('/')}/{name}"
    download(url, path, cfg, lambda file: None if _is_pointer(file) else sha256_fault(file, sha256))
    if _is_pointer(path):
        download(f"{cfg.github_lfs_url.rstrip('/')}/{name}", path, cfg, problem)
    return path


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _names_in_large(path: Path) -> list[str]:
    """The files in its own folder that a .gltf names, found by a process with limits."""
    own = path.parent.resolve()
    return [other.relative_to(own).as_posix() for other in side_files_of([path])[path] if other.is_relative_to(own)]


def _gltf_uris(path: Path) -> list[str]:
    try:
        tree = json.loads(read_limited(path, path.name, _MAX_TEXT_BYTES))
        entries = [entry for group in ("buffers", "images") for entry in tree.get(group, [])]
        uris = [entry["uri"] for entry in entries if isinstance(entry.get("uri"), str)]
    except (AssetError, ValueError, RecursionError, AttributeError, TypeError):
        return []  # the preflight says what is wrong with it
    return [uri for uri in uris if not is_data_uri(uri)]


def _maps(library: Path) -> list[MapUse]:
    """The maps that the materials of a library name."""
    try:
        materials = read_mtl(library, library.name, _MAX_TEXT_BYTES, Notes()).values()
    except AssetError:
        return []
    return list(dict.fromkeys(use for material in materials for use in all_maps(material)))
