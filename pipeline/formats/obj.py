"""Wavefront OBJ and MTL bytes to indexed polygons and materials, every bound checked.

Read: v (with optional colour), vt, vn, f, usemtl, mtllib; Kd, d, map_Kd. Tr is not: exporters disagree on its sense. A
map replaces Kd, as in Blender (exporters leave arbitrary Kd next to a map). Kd and vertex colours are sRGB-encoded, as
three.js and MeshLab have them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.formats.fault import AssetFault
from pipeline.formats.uris import confined, read_limited
from schemas.ledger import Reason

_MAP_OPTIONS = {"-s": 3, "-o": 3, "-t": 3, "-mm": 2} | {
    option: 1 for option in ["-bm", "-blendu", "-blendv", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"]
}
"""map_Kd options and how many words follow each (at most)."""


@dataclass(frozen=True, slots=True)
class ObjMaterial:
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Kd, sRGB-encoded."""
    opacity: float = 1.0
    image: Path | None = None
    clamp: bool = False


class _Face(NamedTuple):
    line: int
    argument: str
    counts: tuple[int, int, int]
    """How many v, vt, vn precede it."""
    material: int


@dataclass(frozen=True, slots=True, eq=False)
class ObjFile:
    positions: Float64[np.ndarray, "v 3"]
    colors: Float64[np.ndarray, "v 3"] | None
    """sRGB-encoded."""
    uvs: Float64[np.ndarray, "t 2"]
    normals: Float64[np.ndarray, "n 3"]
    corners: Int64[np.ndarray, "f 3 3"]
    """Per triangle corner: indices of position, uv, normal; -1 for none."""
    face_material: Int64[np.ndarray, " f"]
    materials: list[ObjMaterial]


def read_obj(data: bytes, directory: Path, max_bytes: int, max_faces: int) -> ObjFile:
    """Parse a whole OBJ file and the material libraries in its folder."""
    if b"\0" in data:
        raise AssetFault(Reason.NOT_A_MESH, "OBJ holds a zero byte: it is not a text file")
    lines = data.decode("utf-8", "replace").replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    rows: dict[str, list[str]] = {"v": [], "vt": [], "vn": []}
    faces: list[_Face] = []
    library: dict[str, int] = {}
    seen: set[Path] = set()
    materials, current = [ObjMaterial()], 0
    for number, line in enumerate(lines, 1):
        kind, *rest = line.split(None, 1) or [""]
        argument = rest[0].rstrip() if rest else ""
        if kind in rows:
            rows[kind].append(argument)
        elif kind == "f":
            faces.append(_Face(number, argument, (len(rows["v"]), len(rows["vt"]), len(rows["vn"])), current))
        elif kind == "usemtl":
            current = library.get(argument, 0)
        elif kind == "mtllib" and argument:
            path = confined(argument, directory, f"line {number} (mtllib)", encoded=False)
            if path not in seen:
                seen.add(path)
                for name, material in _read_mtl(path, directory, f"line {number}", max_bytes).items():
                    library[name] = len(materials)
                    materials.append(material)
    if not rows["v"] or not faces:
        raise AssetFault(Reason.NO_GEOMETRY, f"OBJ has {len(rows['v'])} vertices and {len(faces)} faces")
    corners, face_material = _triangles(faces, (len(rows["v"]), len(rows["vt"]), len(rows["vn"])), max_faces)
    colored = len(rows["v"][0].split()) >= 6
    vertices = _table(rows["v"], "v", 6 if colored else 3)
    return ObjFile(
        positions=vertices[:, :3],
        colors=np.clip(vertices[:, 3:], 0.0, 1.0) if colored else None,
        uvs=_table(rows["vt"], "vt", 2),
        normals=_table(rows["vn"], "vn", 3),
        corners=corners,
        face_material=face_material,
        materials=materials,
    )


def _table(rows: list[str], kind: str, width: int) -> Float64[np.ndarray, "rows width"]:
    """The first `width` numbers of every line."""
    if not rows:
        return np.zeros((0, width))
    try:
        table = np.loadtxt(rows, np.float64, usecols=range(width), ndmin=2)
    except ValueError as error:
        raise AssetFault(Reason.INVALID_STRUCTURE, f"'{kind}' lines: {error}") from error
    if len(table) != len(rows):
        raise AssetFault(Reason.INVALID_STRUCTURE, f"{len(rows) - len(table)} '{kind}' line(s) without numbers")
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table))[0, 0])
        raise AssetFault(Reason.NON_FINITE, f"'{kind}' number {row + 1} is {rows[row][:60]!r}")
    return table


def _triangles(
    faces: list[_Face], totals: tuple[int, int, int], max_faces: int
) -> tuple[Int64[np.ndarray, "f 3 3"], Int64[np.ndarray, " f"]]:
    """Polygons cut into fans, and the material of each triangle."""
    corners: list[tuple[int, int, int]] = []
    owners: list[int] = []
    seen: dict[str, tuple[int, int, int]] = {}
    for face in faces:
        polygon = []
        for word in face.argument.split():
            corner = seen.get(word)
            if corner is None:
                corner = _corner(word, face)
                if "-" not in word:
                    seen[word] = corner
            polygon.append(corner)
        if len(polygon) < 3:
            raise AssetFault(Reason.INVALID_STRUCTURE, f"line {face.line}: a face with {len(polygon)} corners")
        for i in range(1, len(polygon) - 1):
            corners += (polygon[0], polygon[i], polygon[i + 1])
            owners.append(face.material)
        if len(owners) > max_faces:
            raise AssetFault(Reason.TOO_LARGE, f"line {face.line}: more than {max_faces:,} triangles")
    table = np.array(corners, dtype=np.int64).reshape(-1, 3, 3)
    for slot, kind in enumerate(("v", "vt", "vn")):
        low, high = int(table[..., slot].min()), int(table[..., slot].max())
        if high >= totals[slot] or low < (0 if slot == 0 else -1):
            shown = high + 1 if high >= totals[slot] else low - totals[slot]
            raise AssetFault(Reason.INDEX_OUT_OF_RANGE, f"a face refers to {kind} {shown}, file has {totals[slot]:,}")
    return table, np.array(owners, dtype=np.int64)


def _corner(word: str, face: _Face) -> tuple[int, int, int]:
    """Indices from 0, and -1 for none. Negative ones in the file count back from the face's own line."""
    found = [-1, -1, -1]
    for slot, text in enumerate(word.split("/")[:3]):
        if not text and slot > 0:
            continue
        try:
            index = int(text)
        except ValueError as error:
            raise AssetFault(Reason.INVALID_STRUCTURE, f"line {face.line}: corner {word[:40]!r}") from error
        found[slot] = index - 1 if index > 0 else face.counts[slot] + index
        if index == 0 or not 0 <= found[slot] < 2**31:
            raise AssetFault(Reason.INDEX_OUT_OF_RANGE, f"line {face.line}: corner {word[:40]!r} refers to nothing")
    return found[0], found[1], found[2]


def _read_mtl(path: Path, directory: Path, where: str, max_bytes: int) -> dict[str, ObjMaterial]:
    text = read_limited(path, f"{where} (mtllib)", max_bytes).decode("utf-8", "replace")
    found: dict[str, ObjMaterial] = {}
    name = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) < 2:
            continue
        place = f"{path.name} line {number}"
        if words[0] == "newmtl":
            name = line.split(None, 1)[1].strip()
            found[name] = ObjMaterial()
        elif name is not None:
            found[name] = _with_line(found[name], words, line, directory, place)
    return found


def _with_line(material: ObjMaterial, words: list[str], line: str, directory: Path, place: str) -> ObjMaterial:
    kind = words[0].lower()
    if kind == "kd" and len(words) >= 4:
        red, green, blue = (_unit(word, place) for word in words[1:4])
        return replace(material, color=(red, green, blue))
    if kind == "d":
        return replace(material, opacity=_unit(words[-1], place))
    if kind == "map_kd":
        name, clamp = _map_argument(line.split(None, 1)[1].strip())
        return replace(material, image=confined(name, directory, place, encoded=False), clamp=clamp)
    return material


def _map_argument(argument: str) -> tuple[str, bool]:
    """File name (spaces allowed) behind any options, and whether it is clamped."""
    clamp, words = False, argument.split()
    while words and words[0] in _MAP_OPTIONS:
        option = words.pop(0)
        argument = argument.split(None, 1)[1] if words else ""
        clamp |= option == "-clamp" and words[:1] == ["on"]
        for _ in range(_MAP_OPTIONS[option]):
            if len(words) < 2 or (_MAP_OPTIONS[option] > 1 and not _is_number(words[0])):
                break
            words.pop(0)
            argument = argument.split(None, 1)[1]
    return argument, clamp


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unit(word: str, place: str) -> float:
    if not _is_number(word) or not np.isfinite(float(word)):
        raise AssetFault(Reason.INVALID_STRUCTURE, f"{place}: {word[:40]!r} is not a number")
    return min(max(float(word), 0.0), 1.0)
