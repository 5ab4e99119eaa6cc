"""A large JSON object, entry by entry: collections have indexes of a gigabyte, which take five in memory at once."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_MAX_ENTRY = 1 << 24
"""Characters of one name and value."""
_BLANK = " \t\r\n"


def json_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the JSON object in a file, in its order. Raises ValueError where it is none or
    damaged, OSError where it cannot be read."""
    decoder, rest, opened = json.JSONDecoder(), "", False
    for text in _texts(path):
        rest = rest + text if opened else (rest + text).lstrip(_BLANK)
        at = 0
        if not opened and rest:
            if rest[0] != "{":
                raise ValueError(f"starts with {rest[:20]!r}, which is no JSON object")
            opened, at = True, 1
        while (found := _entry(decoder, rest, at)) is not None:
            name, value, at = found
            yield name, value
        rest = rest[at:]
        if len(rest) > _MAX_ENTRY:
            raise ValueError(f"an entry near {rest[:40]!r} is damaged or has more than {_MAX_ENTRY:,} characters")
    if not opened or rest.strip(_BLANK) != "}":
        raise ValueError(f"ends with {rest[-40:]!r}: cut off or damaged")


def _texts(path: Path) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield decode.decode(chunk)
    yield decode.decode(b"", final=True)


def _entry(decoder: json.JSONDecoder, text: str, at: int) -> tuple[str, Any, int] | None:
    """The entry that begins at a place, and the place behind its comma; None where it is not there as a whole. An entry
    is whole once a comma or the object's end follows it."""
    try:
        at = _past(text, at)
        if text[at] != '"':
            return None
        name, at = decoder.raw_decode(text, at)
        at = _past(text, at)
        if text[at] != ":":
            return None
        value, at = decoder.raw_decode(text, _past(text, at + 1))
        at = _past(text, at)
        if text[at] == ",":
            return name, value, at + 1
        return (name, value, at) if text[at] == "}" else None
    except (IndexError, json.JSONDecodeError, RecursionError):
        return None


def _past(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at
