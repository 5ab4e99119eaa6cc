"""Typed, bounded access to untrusted JSON: every read names the place it read from when the value will not do."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np

from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

T = TypeVar("T")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Also one that does not end: what has been looked at once is not looked at again."""


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON object and where it stands in its file (`meshes[2].primitives[0]`)."""

    value: dict[str, Any]
    where: str

    def at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, expected: str) -> NoReturn:
        found = repr(self.value.get(key))[:60]
        raise AssetError(Reason.INVALID_STRUCTURE, f"{self.at(key)} is {found}, expected {expected}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where it is absent or `null`, which some writers put for that."""
        found = self.value.get(key)
        return default if found is None else found

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, low: int = 0, high: int = 2**53) -> int:
        found = self.get(key, default)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
            self.wrong(key, f"an integer in [{low}, {high}]")
        return found

    def index(self, key: str, size: int, of: str) -> int | None:
        """An optional reference into a list of `size` elements called `of`."""
        if key not in self:
            return None
        found = self.integer(key)
        if found >= size:
            raise AssetError(Reason.INVALID_STRUCTURE, f"{self.at(key)} is {found}, but the file has {size} {of}")
        return found

    def indices(self, key: str, size: int, of: str) -> list[int]:
        """A list of references into a list of `size` elements called `of`; empty when absent."""
        found = self.get(key, [])
        if not isinstance(found, list):
            self.wrong(key, "a list")
        for item in found:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < size:
                raise AssetError(
                    Reason.INVALID_STRUCTURE, f"{self.at(key)} holds {item!r:.60}, but the file has {size} {of}"
                )
        return found

    def number(self, key: str, default: float) -> float:
        return self.numbers_of([self.get(key, default)], key, 1)[0]

    def numbers(self, key: str, default: Sequence[float]) -> list[float]:
        """Return as many finite numbers as the default has."""
        found = self.get(key, default)
        if not isinstance(found, list | tuple):
            self.wrong(key, f"a list of {len(default)} numbers")
        return self.numbers_of(found, key, len(default))

    def list_of_numbers(self, key: str) -> list[float]:
        """Finite numbers, however many; empty when absent."""
        found = self.get(key, [])
        if not isinstance(found, list):
            self.wrong(key, "a list of numbers")
        return self.numbers_of(found, key, len(found))

    def numbers_of(self, found: Sequence[Any], key: str, count: int) -> list[float]:
        plain = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300 for x in found)
        if len(found) != count or not plain or not all(math.isfinite(x) for x in found):
            self.wrong(key, f"{count} finite number(s)")
        return [float(x) for x in found]

    def flag(self, key: str) -> bool:
        found = self.get(key, False)
        if not isinstance(found, bool):
            self.wrong(key, "true or false")
        return found

    def text(self, key: str, default: str | None = None) -> str | None:
        found = self.get(key, default)
        if found is not None and not isinstance(found, str):
            self.wrong(key, "a string")
        return found

    def texts(self, key: str) -> list[str]:
        found = self.get(key, [])
        if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
            self.wrong(key, "a list of strings")
        return found

    def object(self, key: str) -> "Json | None":
        found = self.value.get(key)
        if found is None:
            return None
        if not isinstance(found, dict):
            self.wrong(key, "an object")
        return Json(found, self.at(key))

    def extension(self, name: str) -> "Json | None":
        extensions = self.object("extensions")
        return extensions.object(name) if extensions else None

    def objects(self, key: str) -> "list[Json]":
        return list(self._objects(key))

    def _objects(self, key: str) -> "Iterator[Json]":
        found = self.get(key, [])
        if not isinstance(found, list):
            self.wrong(key, "a list")
        for number, item in enumerate(found):
            where = f"{self.at(key)}[{number}]"
            if not isinstance(item, dict):
                raise AssetError(Reason.INVALID_STRUCTURE, f"{where} is {item!r:.60}, expected an object")
            yield Json(item, where)


class Parsed(Generic[T]):
    """Entries of a list in the file, each parsed and checked when first asked for: animations have thousands of
    accessors and views that nobody reads, and a picture that nobody looks at may be broken."""

    def __init__(self, entries: list[Json], parse: Callable[[Json], T]) -> None:
        self._entries, self._parse = entries, parse
        self._done: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> T:
        if number not in self._done:
            self._done[number] = self._parse(self._entries[number])
        return self._done[number]


def parse_json(data: bytes, max_bytes: int, max_depth: int) -> Json:
    """A JSON object out of untrusted bytes."""
    if len(data) > max_bytes:
        raise AssetError(Reason.TOO_LARGE, f"JSON has {len(data):,} bytes, limit {max_bytes:,}")
    if _depth(data) > max_depth and (depth := _depth(_STRING.sub(b"", data))) > max_depth:
        raise AssetError(Reason.INVALID_JSON, f"JSON is nested {depth} deep, limit {max_depth}")
    try:
        found = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise AssetError(Reason.INVALID_JSON, f"JSON cannot be parsed: {error}") from error
    if not isinstance(found, dict):
        raise AssetError(Reason.INVALID_JSON, f"JSON holds a {type(found).__name__}, expected an object")
    return Json(found, "")


def _depth(data: bytes) -> int:
    """Deepest nesting; an upper bound while strings are still in."""
    codes = np.frombuffer(data, np.uint8) & 0xDF  # clears the bit in which [ ] and { } differ
    steps = (codes == 0x5B).astype(np.int8) - (codes == 0x5D)
    return int(np.cumsum(steps[steps != 0], dtype=np.int64).max(initial=0))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
