"""The embedded dataset: writes varied .glb files and lists them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.sources.procedural.assets import Kind, asset_bytes, design, kind_of
from schemas.dataset import write_file
from schemas.mesh import Attribution, MeshRef

ATTRIBUTION = Attribution(name="procedural", licence="CC0-1.0", attribution="SeqTex Forge procedural source")


def procedural(count: int, directory: Path, seed: int = 0, *, clean: bool = False) -> Iterator[MeshRef]:
    """`count` assets of all kinds (`kind_of`), one broken in ten; `clean`: only textured ones with good UVs.

    The bytes of an asset depend on (seed, index, clean) alone. A file that already holds them is left alone.
    """
    if count < 0:
        raise ValueError(f"procedural source: count is {count}; give 0 or more")
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        plan = design(seed, index, Kind.TEXTURED if clean else kind_of(index))
        uid = f"procedural-{'clean-' if clean else ''}{index:06d}"
        data = asset_bytes(plan)
        path = directory / f"{uid}.glb"
        if not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            write_file(path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        yield MeshRef(uid=uid, uri=str(path), sha256=sha256, source=ATTRIBUTION, caption=plan.caption)
