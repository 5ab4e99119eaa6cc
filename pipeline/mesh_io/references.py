"""Files that an asset refers to: data URIs, and paths that stay in its own folder or in one around it."""

import base64
import binascii
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from pipeline.mesh_io.problems import AssetError, Notes
from schemas.ledger import NoteKind, Reason

_SCHEME = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:", re.IGNORECASE)
"""Scheme of a URL; one letter before the colon is a drive, and `file:` an absolute path."""
_ABSOLUTE = re.compile(r"/|[A-Za-z]:|file:", re.IGNORECASE)
_MAX_ENDS = 4
"""Folders and name of the longest end of a path that is looked for elsewhere."""
_BLANKS = str.maketrans("", "", "\t\n\r\f ")


def is_data_uri(uri: str) -> bool:
    return uri.lstrip()[:5].lower() == "data:"


def decode_data_uri(uri: str, where: str, max_bytes: int) -> bytes:
    """The bytes of a `data:` URI, at most `max_bytes`. Base64 is read as browsers read it (WHATWG, forgiving-base64):
    percent escapes, blanks and line breaks within, padding or none."""
    if len(uri) > 4 * max_bytes:
        raise AssetError(Reason.TOO_LARGE, f"{where}: data URI has {len(uri):,} characters, limit {4 * max_bytes:,}")
    header, comma, payload = uri.partition(",")
    if not comma:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: data URI has no comma")
    kind, _, last = header.rpartition(";")
    if not kind or last.strip().lower() != "base64":
        return unquote_to_bytes(payload)
    text = unquote(payload).translate(_BLANKS)
    text = text if len(text) % 4 else text.removesuffix("=").removesuffix("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: data URI is not base64 ({error})") from error


class Folders:
    """The folder of an asset's main file, and the one around it (or itself) that no reference may leave."""

    def __init__(self, path: Path, root: Path | None, notes: Notes) -> None:
        """`path`: the main file; `root`: None for its own folder."""
        self.own, self.notes = path.parent.resolve(), notes
        around = self.own if root is None else root.resolve()
        self.root = around if self.own.is_relative_to(around) else self.own
        self._found: dict[tuple[tuple[str, ...], bool, Path | None], Path] = {}

    def find(self, names: Sequence[str], where: str, *, encoded: bool = False, first: Path | None = None) -> Path:
        """The file that a reference names, links resolved; the one that it should be where there is none.

        A path leads from the folder `first` (of an MTL), else from the asset's own; where nothing is there, another
        letter case or Unicode form will do if just one file has it, then the end of the path, at last the file's name
        alone, in these two folders. Either is noted. `\\` is `/`. Of an absolute path only its end counts. `names`: the
        readings of a reference, the likeliest first. `encoded`: they are URIs with percent escapes (glTF). Raises
        AssetError for what leads, or can lead, out of the root.
        """
        key = tuple(names), encoded, first
        if key not in self._found:
            self._found[key] = self._find(names, where, encoded, first)
        return self._found[key]

    def _find(self, names: Sequence[str], where: str, encoded: bool, first: Path | None) -> Path:
        paths, alone = self.candidates(names, where, encoded=encoded, first=first)
        looks: list[Callable[[Path, str], Path | None]] = [self._exact, self._similar]
        for group in (paths, alone):
            for look in looks:
                for target in group:
                    found = look(target, where)
                    if found is None:
                        continue
                    if group is alone or look == self._similar:
                        told = os.path.relpath(found, self.own)
                        self.notes.add(
                            NoteKind.FILE_FOUND_ELSEWHERE, f"{where}: {names[0][:80]!r} is read from {told!r}"
                        )
                    return found
        if not paths:
            raise AssetError(Reason.UNSAFE_URI, f"{where}: {names[0][:80]!r} leads out of the asset's folder")
        return paths[0]

    def candidates(
        self, names: Sequence[str], where: str, *, encoded: bool = False, first: Path | None = None
    ) -> tuple[list[Path], list[Path]]:
        """List where a reference may lie, without a look at the disk: by its path, and by the end of it."""
        folders = list(dict.fromkeys([first or self.own, self.own]))
        plain = [_plain(name, where, encoded) for name in names]
        paths = [posixpath.normpath(folder / name) for name in plain if not _ABSOLUTE.match(name) for folder in folders]
        alone = [folder / end for name in plain for end in _ends(name) for folder in folders]
        inside = [path for path in map(Path, paths) if path.is_relative_to(self.root)]
        return list(dict.fromkeys(inside)), [path for path in dict.fromkeys(alone) if path not in inside]

    def _exact(self, target: Path, where: str) -> Path | None:
        try:
            real = target.resolve()
            if real.is_relative_to(self.root):
                return real if real.is_file() else None
        except (OSError, RuntimeError, ValueError) as error:
            raise AssetError(
                Reason.UNSAFE_URI, f"{where}: {target.name[:80]!r} cannot be resolved ({error})"
            ) from error
        raise AssetError(
            Reason.UNSAFE_URI, f"{where}: {target.name[:80]!r} leads out of the asset's folder through a link"
        )

    def _similar(self, target: Path, where: str) -> Path | None:
        place = self.root
        try:
            for part in target.relative_to(self.root).parts:
                if not (place / part).exists():
                    same = [entry.name for entry in place.iterdir() if folded(entry.name) == folded(part)]
                    if len(same) != 1:
                        return None
                    part = same[0]
                place = (place / part).resolve()
                if not place.is_relative_to(self.root):
                    return None
            return place if place.is_file() else None
        except (OSError, RuntimeError, ValueError):
            return None  # the exact path has been tried


def folded(name: str) -> str:
    """A name without letter case, Unicode form and, where it is none of Unicode, encoding."""
    text = unicodedata.normalize("NFC", plain_text(os.fsencode(name)))
    return unicodedata.normalize("NFC", text.casefold())


def plain_text(data: bytes) -> str:
    """A text of any program: UTF-8 with or without its mark, else what Windows writes in Western Europe."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding).replace("\ufeff", "")
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _ends(name: str) -> list[str]:
    """Ends of a path, the longest first: `/home/me/chair/maps/t.png` may be `maps/t.png` beside the asset."""
    parts = [part for part in name.split("/") if part.strip(".") and not _ABSOLUTE.match(part)]
    return ["/".join(parts[-count:]) for count in range(min(len(parts), _MAX_ENDS), 0, -1)]


def _plain(name: str, where: str, encoded: bool) -> str:
    plain = (unquote(name) if encoded else name).replace("\\", "/")
    if "\0" in plain or _SCHEME.match(name) or _SCHEME.match(plain):
        raise AssetError(Reason.UNSAFE_URI, f"{where}: {name[:80]!r} is not a path")
    return plain


def read_limited(path: Path, where: str, max_bytes: int) -> bytes:
    """The bytes of a regular file, at most `max_bytes`."""
    try:
        if not path.is_file():
            raise AssetError(Reason.MISSING_FILE, f"{where}: file {path.name!r} does not exist")
        size = path.stat().st_size
        if size > max_bytes:
            raise AssetError(Reason.TOO_LARGE, f"{where}: {path.name!r} has {size:,} bytes, limit {max_bytes:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise AssetError(Reason.MISSING_FILE, f"{where}: file {path.name[:80]!r} cannot be read ({error})") from error
