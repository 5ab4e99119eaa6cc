"""Where assets come from, as one word on the command line."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.official.layout import Layout
from pipeline.sources.folder import folder, passed_over
from pipeline.sources.objaverse import ObjaverseConfig, objaverse
from pipeline.sources.objaverse_xl import objaverse_xl
from pipeline.sources.official import official
from pipeline.sources.procedural import procedural
from pipeline.sources.selection import SelectConfig
from schemas.errors import UsageError
from schemas.mesh import MeshRef

USAGE = (
    "folder:PATH (every .glb, .gltf and .obj below PATH; more with --blender.python), procedural:N (N made-up assets), "
    "objaverse:all, objaverse:lvis or objaverse:FILE (uids, one a line), objaverse-xl:all or objaverse-xl:FILE (uids, "
    "sha256s or file identifiers, one a line), which --select.* narrows down, "
    "seqtex-3d:PATH or seqtex-images:PATH (SeqTex's own data layouts)"
)


def open_source(
    spec: str,
    assets_dir: Path,
    blender: bool = False,
    select: SelectConfig | None = None,
    mirror: ObjaverseConfig | None = None,
) -> Iterator[MeshRef]:
    """The assets that `spec` names; made-up ones are written to `assets_dir`. `blender`: whether what only Blender
    reads is listed. `select` and `mirror`: which of Objaverse's, and from where. Raises UsageError on a bad spec."""
    kind, _, rest = spec.partition(":")
    if kind in ("folder", *Layout) and rest:
        path = Path(rest).expanduser().resolve()
        if not path.is_dir():
            raise UsageError(f"source {spec!r}: {path} is not a folder; sources are {USAGE}")
        return folder(path, blender) if kind == "folder" else official(path, Layout(kind))
    if kind == "objaverse" and rest:
        return objaverse(rest, select or SelectConfig(), mirror or ObjaverseConfig())
    if kind == "objaverse-xl" and rest:
        return objaverse_xl(rest, select or SelectConfig(), mirror or ObjaverseConfig(), blender)
    if kind == "procedural" and rest.isascii() and rest.isdigit() and int(rest) > 0:
        return procedural(int(rest), assets_dir)
    raise UsageError(f"source {spec!r} is not understood; sources are {USAGE}")


def left_out(spec: str, blender: bool = False) -> str:
    """One line on meshes that `spec` does not list; empty where there are none."""
    kind, _, rest = spec.partition(":")
    return passed_over(Path(rest).expanduser().resolve(), blender) if kind == "folder" and rest else ""
