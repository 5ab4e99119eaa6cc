"""Annotations as the installed `objaverse` package reads them, from files that our downloader put where it looks."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.errors import UserError

FOLDERS = 8
"""Files of annotations that the package is asked for at a time: all 160 take gigabytes."""
_REMEDY = "install it (pip install -e '.[objaverse]'), or leave out --objaverse.package"
_ANSWERS = (AttributeError, KeyError, TypeError, ValueError, OSError, EOFError)
"""Errors that a package of another version, or one that finds other files, may end with."""


@contextlib.contextmanager
def _pointed_at(folder: Path) -> Iterator[Any]:
    """The package with our cache as its own. Raises UserError where it is not installed or works in another way."""
    try:
        package: Any = importlib.import_module("objaverse")
    except ImportError as error:
        raise UserError(f"objaverse.package: the package objaverse cannot be imported ({error}); {_REMEDY}") from error
    version = getattr(package, "__version__", "unknown")
    try:
        before = package._VERSIONED_PATH
        package._VERSIONED_PATH = str(folder)
        try:
            yield package
        finally:
            package._VERSIONED_PATH = before
    except _ANSWERS as error:
        detail = f"{type(error).__name__}: {error}"
        raise UserError(
            f"objaverse.package: objaverse {version} does not read {folder} ({detail}); {_REMEDY}"
        ) from error


def load_annotations(folder: Path, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return annotations of Objaverse 1.0 by uid. `folder`: has `metadata` and `object-paths.json.gz`."""
    with _pointed_at(folder) as package:
        return dict(package.load_annotations(list(uids)))


def load_lvis_annotations(folder: Path) -> dict[str, list[str]]:
    """Return the uids of every LVIS category. `folder`: has `lvis-annotations.json.gz`."""
    with _pointed_at(folder) as package:
        return dict(package.load_lvis_annotations())


def load_xl_annotations(root: Path, origin: str, batch_rows: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one origin of Objaverse-XL, as `objaverse.xl.get_annotations` joins them for all. `root`: has
    `ORIGIN/ORIGIN.parquet`. The package holds the rows of an origin in memory."""
    with _pointed_at(root):
        downloaders = importlib.import_module("objaverse.xl").downloaders
        frame = downloaders[origin].get_annotations(download_dir=str(root))
    for start in range(0, len(frame), batch_rows):
        batch = frame.iloc[start : start + batch_rows]
        yield from pa.RecordBatch.from_pandas(batch, preserve_index=False).to_pylist()
