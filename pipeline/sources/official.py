"""Assets in SeqTex's own data layouts (`pipeline.official.layout`)."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.official.layout import Layout, items
from pipeline.sources.folder import sha256_or_none, uid_of
from schemas.codec import UID_PATTERN
from schemas.mesh import AssetKind, MeshRef

_KINDS = {Layout.MODELS: AssetKind.OFFICIAL_MODEL, Layout.IMAGES: AssetKind.OFFICIAL_RENDERS}


def official(root: Path, layout: Layout) -> Iterator[MeshRef]:
    """The listed items, keyed by their ids, with the captions and terms of the list. The main file alone is hashed."""
    for entry, path in items(root.resolve(), layout):
        yield MeshRef(
            uid=entry.id if UID_PATTERN.fullmatch(entry.id) else uid_of(entry.id),
            uri=str(path),
            sha256=sha256_or_none(path),
            source=entry.source,
            caption=entry.caption,
            kind=_KINDS[layout],
        )
