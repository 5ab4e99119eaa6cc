"""Wavefront MTL: the materials of an OBJ.

Read: Kd, d, Ns, map_Kd. Tr is not: exporters disagree on its sense. A map replaces Kd, as in Blender (exporters leave
arbitrary Kd next to a map). Kd is sRGB-encoded, as three.js has it.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.references import confined, read_limited
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
    roughness: float = 1.0
    """Of the microfacet lobe as wide as the Blinn-Phong one of exponent Ns: sqrt(2 / (Ns + 2)) (Walter et al. 2007)."""


def read_mtl(path: Path, directory: Path, where: str, max_bytes: int) -> dict[str, ObjMaterial]:
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
    if kind == "ns":
        exponent = max(_number(words[1], place), 0.0)
        return replace(material, roughness=min(math.sqrt(2.0 / (exponent + 2.0)), 1.0))
    if kind == "map_kd":
        name, clamp = _map_argument(line.split(None, 1)[1].strip())
        return replace(material, image=confined(name, directory, place, encoded=False), clamp=clamp)
    return material


def _map_argument(argument: str) -> tuple[str, bool]:
    """File name (spaces allowed) behind any options, and whether it is clamped."""
    words = [(word[0], word.start()) for word in re.finditer(r"\S+", argument)]
    clamp, at = False, 0
    while at < len(words) and (most := _MAP_OPTIONS.get(option := words[at][0])):
        at += 1
        clamp |= option == "-clamp" and at < len(words) and words[at][0] == "on"
        for _ in range(most):
            if at + 1 >= len(words) or (most > 1 and not _is_number(words[at][0])):
                break
            at += 1
    return argument[words[at][1] :] if at < len(words) else "", clamp


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unit(word: str, place: str) -> float:
    return min(max(_number(word, place), 0.0), 1.0)


def _number(word: str, place: str) -> float:
    if not _is_number(word) or not math.isfinite(float(word)):
        raise AssetError(Reason.INVALID_STRUCTURE, f"{place}: {word[:40]!r} is not a number")
    return float(word)
