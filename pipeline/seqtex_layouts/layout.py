"""Paths of SeqTex's data layouts: `<2 hex>/<id>/` below a root, and a list of the ids beside them.

| layout | files of an item |
|---|---|
| 3D data | `model.glb` (one mesh, one UV map), `model.jpeg` (its texture, row 0 at v = 1) |
| image data | `meta.json` (cameras), per view `color_0000.webp`, `depth_0000.exr`, `normal_0000.webp` |

The list is a `.jsonl` in the root, one object a line; we write and read `id`, `caption`, `name`, `licence`,
`attribution`, `title`, `author`, `url`."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from schemas.codec import UID_PATTERN
from schemas.errors import UserError
from schemas.mesh import Attribution

MODEL, JPEG, META = "model.glb", "model.jpeg", "meta.json"
PREFIX = re.compile(r"[0-9a-f]{2}")
SOURCE_FIELDS = tuple(f.name for f in fields(Attribution))
MAX_LINE_BYTES = 1 << 20


class Layout(StrEnum):
    MODELS = "seqtex-3d"
    IMAGES = "seqtex-images"

    @property
    def main_file(self) -> str:
        """The file of an item that its others lie beside."""
        return MODEL if self is Layout.MODELS else META


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A line of the list."""

    id: str
    caption: str = ""
    source: Attribution = field(default_factory=Attribution)

    def line(self) -> bytes:
        entry = {"id": self.id, "path": f"{prefix(self.id)}/{self.id}", "caption": self.caption} | asdict(self.source)
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def require_new_folder(folder: Path) -> None:
    """Raise UserError where there is anything already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder; give a new one, or delete it")


def prefix(item: str) -> str:
    """The folder of an id: its first two characters where these are hex digits, as in Objaverse's ids, else two hex
    digits of its hash."""
    return item[:2] if PREFIX.fullmatch(item[:2]) else hashlib.sha256(item.encode()).hexdigest()[:2]


def item_folder(root: Path, item: str) -> Path:
    return root / prefix(item) / item


def items(root: Path, layout: Layout) -> Iterator[tuple[Listed, Path]]:
    """Every item of a layout with its main file: those of the list, or where there is no list, those that are there.

    Raises UserError where the list cannot be read or there is nothing at all."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob(f"[0-9a-f][0-9a-f]/*/{layout.main_file}")):
        if path.parent.name in found:
            raise UserError(f"{path} and {found[path.parent.name]} share an id; rename or delete one of the folders")
        found[path.parent.name] = path
    listed = [entry for path in sorted(root.glob("*.jsonl")) for entry in _read_list(path)]
    if not found and not listed:
        raise UserError(
            f"{root}: no <2 hex>/<id>/{layout.main_file} and no .jsonl; give the folder that holds them, or another "
            f"--layout than {layout}"
        )
    for entry in listed or [Listed(id=name) for name in found]:
        yield entry, found.get(entry.id, item_folder(root, entry.id) / layout.main_file)


def _read_list(path: Path) -> Iterator[Listed]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes; shorten its texts")
            if line.strip():
                yield _read_line(line, f"{path}:{number}")


def _read_line(line: bytes, where: str) -> Listed:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error}); fix the line or delete it") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not a JSON object; fix the line or delete it")
    item = _text(entry, "id", where)
    if not UID_PATTERN.fullmatch(item):
        raise UserError(f"{where}: 'id' is {item[:80]!r}; it names the item's folder and is {UID_PATTERN.pattern}")
    source = Attribution(**{name: _text(entry, name, where) for name in SOURCE_FIELDS})
    return Listed(id=item, caption=_text(entry, "caption", where), source=source)


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {str(value)[:80]!r}, expected text")
    return value
