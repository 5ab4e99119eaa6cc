"""Wavefront MTL: the materials of an OBJ.

Read: Kd, d, Tr, Ns, map_Kd, map_d, with -s, -o, -clamp and -imfchan. A map replaces the value, as in Blender (exporters
leave arbitrary ones next to a map). Kd is sRGB-encoded, as three.js has it. Tr is 1 - d, as viewers have it, where d is
absent; Tr 1 is opaque, because exporters that take Tr for d write it everywhere, and nobody exports the invisible.
Lines on the answer to light are kept as they stand, for datasets with materials (`physical`).
"""

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, folded, plain_text, read_limited
from schemas.ledger import NoteKind, Reason

_MAP_OPTIONS = {"-s": 3, "-o": 3, "-t": 3, "-mm": 2} | {
    option: 1 for option in ["-bm", "-blendu", "-blendv", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"]
}
"""Options of a map and how many words follow each (at most)."""
_IGNORED = {"-t": (0.0, 0.0, 0.0), "-mm": (0.0, 1.0)}
"""Options that change a picture and that no viewer follows, with the values that change nothing."""
LARGEST_UNIT = 16.0
"""Colours beyond are counted to 255 and not to 1 (ours)."""
PHYSICAL = {keyword: keyword for keyword in ("pr", "pm", "ke", "map_pr", "map_pm", "map_ke", "norm", "map_bump")} | {
    "map_kn": "norm",
    "bump": "map_bump",
}
"""Keywords on the answer to light, and the one that each of them is another name for."""
_COMMENT = re.compile(r"\s#")
_MAX_LIBRARIES = 1000
"""Most material libraries of an OBJ."""


@dataclass(frozen=True, slots=True)
class MapUse:
    """A texture map as a material uses it."""

    names: tuple[str, ...]
    """Readings of its file's name, the likeliest first: a name may hold what looks like a comment."""
    where: str
    folder: Path
    """Folder of the MTL."""
    scale: tuple[float, float] = (1.0, 1.0)
    """-s: a coordinate is multiplied by it, and `offset` (-o) added, as in three.js and Blender; v up."""
    offset: tuple[float, float] = (0.0, 0.0)
    clamp: bool = False
    channel: str = ""
    """-imfchan."""
    strength: float = 1.0
    """-bm."""
    path: Path | None = None
    """The file, once it has been looked for."""

    def found(self, folders: Folders) -> "MapUse":
        """The same with its file. Raises AssetError where the name leads out of the root."""
        return replace(self, path=folders.find(self.names, self.where, first=self.folder))


@dataclass(frozen=True, slots=True)
class Statement:
    """A line of an MTL behind its keyword, not yet understood."""

    argument: str
    where: str
    folder: Path
    """Folder of the MTL."""


@dataclass(frozen=True, slots=True)
class ObjMaterial:
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Kd, sRGB-encoded."""
    opacity: float = 1.0
    image: MapUse | None = None
    """map_Kd."""
    mask: MapUse | None = None
    """map_d."""
    roughness: float = 1.0
    """Roughness of the microfacet lobe as wide as the Blinn-Phong one of exponent Ns: sqrt(2 / (Ns + 2)) (Walter et al.
    2007)."""
    physical: Mapping[str, Statement] = field(default_factory=dict, hash=False)
    """The last line of each keyword of `PHYSICAL`."""


@dataclass(slots=True)
class _Reader:
    """The materials of one library, as its lines are read."""

    path: Path
    notes: Notes
    materials: dict[str, ObjMaterial] = field(default_factory=dict)
    name: str | None = None
    has_d: bool = False

    def line(self, number: int, line: str) -> None:
        words = line.split(None, 1)
        if len(words) < 2:
            return
        kind, argument = words[0].lower(), words[1].strip()
        if kind == "newmtl":
            self.name, self.has_d = argument, False
            self.materials[argument] = ObjMaterial()
        elif self.name is not None:
            place = f"{self.path.name} line {number}"
            self.materials[self.name] = self._with(self.materials[self.name], kind, argument, place)

    def _with(self, material: ObjMaterial, kind: str, argument: str, place: str) -> ObjMaterial:
        if kind in ("map_kd", "map_d"):
            use = read_map(Statement(argument, place, self.path.parent), self.notes)
            return replace(material, image=use) if kind == "map_kd" else replace(material, mask=use)
        if kind in PHYSICAL:
            statement = Statement(argument, place, self.path.parent)
            return replace(material, physical={**material.physical, PHYSICAL[kind]: statement})
        if kind not in ("kd", "d", "tr", "ns"):
            return material
        words = argument.split("#", 1)[0].split()
        if kind == "kd" and words and not is_number(words[0]):  # `spectral` and `xyz`, which no viewer reads
            self.notes.add(NoteKind.DATA_IGNORED, f"{place}: Kd {argument[:40]!r} is ignored")
        elif kind == "kd" and words:
            return replace(material, color=self._color(words[:3], place))
        elif kind == "d" and words:
            self.has_d = True
            return replace(material, opacity=_unit(_number(words[-1], place)))
        elif kind == "tr" and words and not self.has_d:
            return replace(material, opacity=self._opacity(_unit(_number(words[-1], place)), place))
        elif kind == "ns" and words:
            exponent = max(_number(words[0], place), 0.0)
            return replace(material, roughness=min(math.sqrt(2.0 / (exponent + 2.0)), 1.0))
        return material

    def _color(self, words: list[str], place: str) -> tuple[float, float, float]:
        """Read a colour of one number (grey) to three."""
        numbers = [_number(word, place) for word in words]
        red, green, blue = (*numbers, *numbers[:1] * 2)[:3]
        if LARGEST_UNIT < max(numbers) <= 255.0:
            self.notes.add(NoteKind.VALUE_CORRECTED, f"{place}: Kd {' '.join(words)[:40]} is counted to 255")
            red, green, blue = red / 255.0, green / 255.0, blue / 255.0
        return _unit(red), _unit(green), _unit(blue)

    def _opacity(self, transparency: float, place: str) -> float:
        if transparency == 1.0:
            self.notes.add(NoteKind.VALUE_CORRECTED, f"{place}: Tr 1 without d is read as opaque")
            return 1.0
        return 1.0 - transparency


def read_mtl(path: Path, where: str, max_bytes: int, notes: Notes) -> dict[str, ObjMaterial]:
    """The materials of a library by name."""
    reader = _Reader(path, notes)
    text = plain_text(read_limited(path, f"{where} (mtllib)", max_bytes))
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        reader.line(number, line)
    return reader.materials


def read_map(statement: Statement, notes: Notes) -> MapUse:
    """Read a map: the name of a file (spaces allowed) behind any options."""
    argument, place = statement.argument, statement.where
    found: dict[str, list[str]] = {}
    words = [(word[0], word.start()) for word in re.finditer(r"\S+", argument)]
    at = 0
    while at < len(words) and (option := words[at][0].lower()) in _MAP_OPTIONS:
        at, found[option] = at + 1, []
        for _ in range(_MAP_OPTIONS[option]):
            if at + 1 >= len(words) or (_MAP_OPTIONS[option] > 1 and not is_number(words[at][0])):
                break
            found[option].append(words[at][0])
            at += 1
    argument = argument[words[at][1] :] if at < len(words) else ""
    strength = [float(word) for word in found.get("-bm", []) if is_number(word) and math.isfinite(float(word))]
    values = {option: tuple(map(float, found.get(option, []))) for option in ("-s", "-o", "-t", "-mm")}
    for option, nothing in _IGNORED.items():
        if values[option] != nothing[: len(values[option])]:
            notes.add(NoteKind.DATA_IGNORED, f"{place}: {option} is ignored, as viewers do")
    scale, offset = (*values["-s"], 1.0, 1.0), (*values["-o"], 0.0, 0.0)
    if not all(map(math.isfinite, scale + offset)):
        raise AssetError(Reason.INVALID_STRUCTURE, f"{place}: -s or -o is not finite")
    return MapUse(
        names=readings(argument),
        where=place,
        folder=statement.folder,
        scale=(scale[0], scale[1]),
        offset=(offset[0], offset[1]),
        clamp=found.get("-clamp") == ["on"],
        channel=" ".join(found.get("-imfchan", [])),
        strength=(*strength, 1.0)[0],
    )


def readings(argument: str) -> tuple[str, ...]:
    """Return what a name behind a keyword can mean: in quotes, as it stands, or up to a comment."""
    argument = argument.strip()
    if argument[:1] == '"' and (end := argument.find('"', 1)) > 1:
        return (argument[1:end],)
    comment = _COMMENT.search(argument)
    return (argument, argument[: comment.start()]) if comment else (argument,)


def materials_of(
    names: list[tuple[int, str, str]],
    drawn: Int64[np.ndarray, " d"],
    folders: Folders,
    max_bytes: int,
    *,
    plain: bool,
    mapped: bool,
) -> tuple[list[ObjMaterial], Int64[np.ndarray, " changes"]]:
    """The materials of an OBJ, those that faces have with their files, and the number of the one that faces have before
    the first `usemtl` and after each. 0 is white.

    Args:
        names: the `usemtl` and `mtllib` lines of the file: line, keyword, argument
        drawn: which of these changes faces follow
        folders: where the libraries are, which count for the whole file wherever it names them
        max_bytes: of a library
        plain: there are no vertex colours, which can do without materials
        mapped: there are texture coordinates
    """
    arguments = [
        (argument, f"line {line + 1}") for line, keyword, argument in names if keyword == "mtllib" and argument
    ]
    library, missing = _library(arguments, folders, max_bytes)
    wanted = ["", *(argument for _, keyword, argument in names if keyword == "usemtl")]
    used = list(dict.fromkeys(wanted[change] for change in drawn.tolist()))
    alike: dict[str, list[str]] = {}
    for name in library:
        alike.setdefault(folded(name), []).append(name)
    chosen = {name: _chosen(name, library, alike, folders.notes) for name in used if name}
    unknown = [name for name, found in chosen.items() if found is None]
    if missing and plain and (unknown or not library):
        raise missing[0]
    if missing:
        folders.notes.add(NoteKind.FILE_MISSING, missing[0].rejected.detail, len(missing))
    only = next(iter(library)) if len(library) == 1 and plain and len(used) == 1 else None
    if only and (unknown or len(wanted) == 1) and (mapped or library[only].image is None):
        chosen[used[0]] = only
    if (unknown or chosen.get("")) and (library or not missing):
        how = f"drawn with {only!r}, the only one there is" if only and chosen[used[0]] else "drawn white"
        told = f"usemtl {unknown[0][:80]!r} is in no library" if unknown else "no usemtl"
        folders.notes.add(NoteKind.MATERIAL_MISSING, f"{told}: {how}", max(len(unknown), 1))
    placed = list(dict.fromkeys(name for name in chosen.values() if name is not None))
    number = {name: 1 + index for index, name in enumerate(placed)}
    materials = [ObjMaterial(), *(_with_files(library[name], folders) for name in placed)]
    return materials, np.array([number.get(chosen.get(name) or "", 0) for name in wanted], np.int64)


def _library(
    arguments: list[tuple[str, str]], folders: Folders, max_bytes: int
) -> tuple[dict[str, ObjMaterial], list[AssetError]]:
    """The materials of all libraries by name, and what is wrong with those that are not there."""
    found: dict[str, ObjMaterial] = {}
    missing = []
    for path, where in libraries(arguments, folders).items():
        try:
            found |= read_mtl(path, where, max_bytes, folders.notes)
        except AssetError as error:
            if error.rejected.reason is not Reason.MISSING_FILE:
                raise
            missing.append(error)
    return found, missing


def _chosen(name: str, library: dict[str, ObjMaterial], alike: dict[str, list[str]], notes: Notes) -> str | None:
    """The material that `usemtl` means: of that name, or the only one of that name in other letters."""
    for reading in readings(name):
        if reading in library:
            return reading
        same = alike.get(folded(reading), [])
        if len(same) == 1:
            notes.add(NoteKind.MATERIAL_MISSING, f"usemtl {name[:80]!r} is read as {same[0][:80]!r}")
            return same[0]
    return None


def _with_files(material: ObjMaterial, folders: Folders) -> ObjMaterial:
    image, mask = material.image, material.mask
    return replace(material, image=image and image.found(folders), mask=mask and mask.found(folders))


def libraries(arguments: list[tuple[str, str]], folders: Folders) -> dict[Path, str]:
    """The files that `mtllib` lines name, there or not, each with its place; an argument comes with its own. A line
    holds one name, spaces and all, or several that end in `.mtl`. Raises AssetError for what leads out of the root."""
    found: dict[Path, str] = {}
    for argument, where in arguments:
        whole, *several = library_names(argument)
        paths = [] if several else [folders.find(whole, f"{where} (mtllib)")]
        with contextlib.suppress(AssetError):  # as one name several may lead nowhere
            one = folders.find((argument,), f"{where} (mtllib)")
            paths = [one] if one.is_file() else paths
        for path in paths or [folders.find(names, f"{where} (mtllib)") for names in several]:
            found.setdefault(path, where)
        if len(found) > _MAX_LIBRARIES:
            raise AssetError(Reason.TOO_LARGE, f"{where}: more than {_MAX_LIBRARIES} material libraries")
    return found


def library_names(argument: str) -> list[tuple[str, ...]]:
    """Readings of the names that an `mtllib` line can hold: one, spaces and all; then several that end in `.mtl`, if
    there are."""
    several, words = list[str](), list[str]()
    for word in argument.split():
        words.append(word)
        if word.lower().rstrip('"').endswith(".mtl"):
            several.append(" ".join(words))
            words = []
    return [readings(argument), *(readings(name) for name in several if len(several) > 1)]


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unit(number: float) -> float:
    return min(max(number, 0.0), 1.0)


def _number(word: str, place: str) -> float:
    if not is_number(word) or not math.isfinite(float(word)):
        raise AssetError(Reason.INVALID_STRUCTURE, f"{place}: {word[:40]!r} is not a number")
    return float(word)
