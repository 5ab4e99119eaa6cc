"""Files that an asset refers to: data URIs, and paths confined to the asset's own folder."""

import base64
import binascii
import re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def is_data_uri(uri: str) -> bool:
    return uri[:5].lower() == "data:"


def decode_data_uri(uri: str, where: str, max_bytes: int) -> bytes:
    """The bytes of a `data:` URI, at most `max_bytes`."""
    if len(uri) > 4 * max_bytes:
        raise AssetError(Reason.TOO_LARGE, f"{where}: data URI has {len(uri):,} characters, limit {4 * max_bytes:,}")
    header, comma, payload = uri.partition(",")
    if not comma:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: data URI has no comma")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: data URI is not base64 ({error})") from error


def confined(uri: str, directory: Path, where: str, *, encoded: bool = True) -> Path:
    """Return the file that a relative reference names, which must be inside `directory` (the file need not exist).

    `encoded`: the reference is a URI with percent escapes (glTF) and not a plain file name (MTL).
    """
    name = unquote(uri) if encoded else uri
    shown = repr(uri[:80])
    if "\\" in name or "\0" in name or _SCHEME.match(uri) or _SCHEME.match(name):
        raise AssetError(Reason.UNSAFE_URI, f"{where}: {shown} is not a plain relative path")
    if name.startswith("/") or ".." in name.split("/"):
        raise AssetError(Reason.UNSAFE_URI, f"{where}: {shown} leads out of the asset's folder")
    try:
        root = directory.resolve()
        target = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        raise AssetError(Reason.UNSAFE_URI, f"{where}: {shown} cannot be resolved ({error})") from error
    if not target.is_relative_to(root):
        raise AssetError(Reason.UNSAFE_URI, f"{where}: {shown} leads out of the asset's folder through a link")
    return target


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
