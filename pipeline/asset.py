"""One asset from bytes to sample."""

import hashlib
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from geometry.cameras import rig_cameras
from geometry.frames import Frame, bounding_box, normalise
from geometry.mesh import mikktspace
from geometry.raster import Rasterizer
from geometry.raster_cpu import CpuRasterizer
from geometry.raster_cuda import CudaRasterizer
from geometry.texture import PackedSurface, pack_surface
from pipeline.blender.host import SUFFIXES as BLENDER_SUFFIXES
from pipeline.blender.host import convert
from pipeline.config import BuildConfig
from pipeline.dataset.pictures import SIDE
from pipeline.filter.measure_mesh import measure
from pipeline.filter.measure_views import measure_map, measure_materials, measure_views
from pipeline.filter.rules import NO_LAYOUT, apply_rules
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import AssetFacts
from pipeline.mesh_io.side_files import asset_sha256, side_files
from pipeline.render.lit import light_views
from pipeline.render.materials import bake_materials, material_trip, material_views
from pipeline.render.uv_maps import bake_uv, find_texels, round_trip, same_places
from pipeline.render.views import render_views, see, small_picture
from pipeline.seqtex_layouts.layout import JPEG
from pipeline.seqtex_layouts.renders import read_renders, wear_jpeg
from pipeline.unwrap.unwrap import unwrap
from schemas.codec import SCHEMA_VERSION, cameras_json
from schemas.dataset import code_version
from schemas.ledger import Measurements, Note, Reason, Rejected
from schemas.mesh import AssetKind, MeshRef, TexturedMesh, UvMesh
from schemas.sample import Cameras, Regime, TextureSample, UvMaps, Views

VERSIONS = {"seqtex-forge": code_version()}
"""The program version in every sample. A fork server reads it at import: an asset's own process may not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """The result of processing one asset."""

    result: TextureSample | Rejected
    measurements: Measurements
    mv_only: Rejected | None = None
    """Reason why an accepted sample has no UV maps."""
    notes: tuple[Note, ...] = ()
    """Notes on what loading left out or read differently."""
    picture: UInt8[np.ndarray, "side side 4"] | None = None
    """A rejected asset that could be loaded, sRGB and opacity."""


def process_asset(ref: MeshRef, cfg: BuildConfig) -> Processed:
    """One asset to a sample, or to the reason why not. An exception is a bug."""
    path = Path(ref.uri)
    if changed := _changed(path, ref, cfg.preflight.max_file_bytes):
        return Processed(result=changed, measurements=Measurements())
    if ref.kind is AssetKind.OFFICIAL_RENDERS:
        return _from_renders(ref, cfg)
    opened = _open(path, root_of(ref), cfg)
    if isinstance(opened, Rejected):
        size = path.stat().st_size if path.is_file() else None
        return Processed(result=opened, measurements=Measurements(bytes=size))
    facts, loaded = opened
    return replace(_process(ref, facts, loaded, cfg), notes=facts.notes)


def _process(ref: MeshRef, facts: AssetFacts, loaded: TexturedMesh | Rejected, cfg: BuildConfig) -> Processed:
    """An asset that has been read, from its measurements on."""
    measurements = Measurements(bytes=facts.bytes, faces=facts.faces, vertices=facts.vertices)
    if ref.kind is AssetKind.OFFICIAL_MODEL and not isinstance(loaded, Rejected):
        loaded = wear_jpeg(loaded, Path(ref.uri).with_name(JPEG), cfg.preflight)
    if isinstance(loaded, Rejected):
        return Processed(result=loaded, measurements=measurements)
    surface = pack_surface(loaded)
    measurements = measure(loaded, facts, surface)
    if rejected := _rejected(measurements, cfg) or too_small(measurements):
        picture = _picture(loaded, surface, measurements, cfg)
        return Processed(result=rejected, measurements=measurements, picture=picture)
    mesh, frame = normalise(loaded)
    return _make_sample(ref, mesh, surface, frame, measurements, cfg)


def _rejected(measurements: Measurements, cfg: BuildConfig) -> Rejected | None:
    """Reject an asset that cannot become a sample, as far as it has been measured."""
    result = apply_rules(measurements, cfg.filter)
    return result.rejected if result.regime is None else None


def root_of(ref: MeshRef) -> Path | None:
    """The folder that the files of an asset must lie in; None: its own, and a .glb has none."""
    return None if ref.root is None else Path(ref.root)


def too_small(measurements: Measurements) -> Rejected | None:
    """Reject an asset whose size is no normal number of float32: its scale would not be one either."""
    side = max(measurements.size_x or 0.0, measurements.size_y or 0.0, measurements.size_z or 0.0)
    if side >= np.finfo(np.float32).tiny:
        return None
    return Rejected(reason=Reason.DEGENERATE, detail=f"largest side {side:.3g}, too small for numbers of 32 bits")


def _picture(
    loaded: TexturedMesh, surface: PackedSurface, measurements: Measurements, cfg: BuildConfig
) -> UInt8[np.ndarray, "side side 4"] | None:
    """Draw an asset that was rejected before its views; None for one without faces or without a size."""
    if not len(loaded.faces) or too_small(measurements):
        return None
    return small_picture(normalise(loaded)[0], surface, cfg.rig, SIDE, CpuRasterizer())


def _open(path: Path, root: Path | None, cfg: BuildConfig) -> tuple[AssetFacts, TexturedMesh | Rejected] | Rejected:
    """Facts and mesh of a file, or of what Blender makes of it."""
    shading, materials = cfg.views.lit != "none", cfg.materials
    if not (cfg.blender.python and path.suffix.lower() in BLENDER_SUFFIXES):
        return load_asset(path, cfg.preflight, root, shading=shading, materials=materials, up_axis=cfg.up_axis)
    with tempfile.TemporaryDirectory(prefix="converted-") as name:
        converted = convert(path, Path(name) / "asset.glb", cfg.blender, cfg.preflight.max_file_bytes)
        opened = (
            converted
            if isinstance(converted, Rejected)
            else load_asset(converted, cfg.preflight, shading=shading, materials=materials)
        )
    if isinstance(opened, Rejected):
        return opened
    facts, mesh = opened
    return replace(facts, bytes=path.stat().st_size), mesh


def seed_of(uid: str) -> int:
    """Seed the random numbers of one asset: the same wherever and whenever it is processed."""
    return int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8])


def _changed(path: Path, ref: MeshRef, max_bytes: int) -> Rejected | None:
    """The file is no longer the one that was planned, by itself or with those it refers to: sources hash either."""
    if ref.sha256 is None or asset_sha256(path, (), max_bytes) in (None, ref.sha256):
        return None  # the preflight reports a file that cannot be read
    if (found := asset_sha256(path, side_files(path, root_of(ref)), max_bytes)) == ref.sha256:
        return None
    return Rejected(reason=Reason.INPUT_CHANGED, detail=f"sha256 {str(found)[:12]} where {ref.sha256[:12]} was planned")


def _from_renders(ref: MeshRef, cfg: BuildConfig) -> Processed:
    """Images of somebody else's renderer: a sample without a mesh."""
    if cfg.materials:
        detail = "rendered images have no materials, which this dataset holds: build them without --materials"
        return Processed(result=Rejected(reason=Reason.NO_MESH, detail=detail), measurements=Measurements())
    read = read_renders(Path(ref.uri), cfg.renders, cfg.views.resolution)
    if isinstance(read, Rejected):
        return Processed(result=read, measurements=Measurements())
    measurements = measure_views(Measurements(layout_fault=str(Reason.NO_MESH)), read.views, read.cameras)
    if rejected := _rejected(measurements, cfg):
        return Processed(result=rejected, measurements=measurements)
    sample = _sample(ref, read.views, read.cameras, read.frame, None, None, measurements)
    mv_only = Rejected(reason=Reason.NO_MESH, detail=f"{NO_LAYOUT}: came as rendered images")
    return Processed(result=sample, measurements=measurements, mv_only=mv_only)


def _make_sample(
    ref: MeshRef,
    mesh: TexturedMesh,
    surface: PackedSurface,
    frame: Frame,
    measurements: Measurements,
    cfg: BuildConfig,
) -> Processed:
    """Views of a mesh that was found fit, and its UV maps where they can be had."""
    rasterizer: Rasterizer = CpuRasterizer() if cfg.rasterizer == "cpu" else CudaRasterizer()
    cameras = rig_cameras(cfg.rig, *bounding_box(mesh.vertices, mesh.faces), seed=seed_of(ref.uid))
    sight = see(mesh, surface, cameras, cfg.views, rasterizer)
    views = render_views(mesh, cameras, cfg.views, rasterizer, surface, sight)
    if mesh.layers is not None:
        views = replace(views, materials=material_views(mesh, mesh.layers, sight.centres, cameras, views.normal))
    measurements = measure_materials(measure_views(measurements, views, cameras), mesh, views)
    if rejected := _rejected(measurements, cfg) or _blank(views):
        picture = small_picture(mesh, surface, cfg.rig, SIDE, rasterizer)
        return Processed(result=rejected, measurements=measurements, picture=picture)
    uv_mesh, maps, mv_only = None, None, None
    unwrapped = unwrap(mesh, measurements, cfg.unwrap, cfg.uv.resolution)
    if isinstance(unwrapped, Rejected):
        measurements = replace(measurements, layout_fault=str(unwrapped.reason))
        mv_only = _at_size(replace(unwrapped, detail=f"{NO_LAYOUT}: {unwrapped.detail}"), cfg)
    else:
        texels = find_texels(unwrapped, cfg.uv, rasterizer)
        baked = bake_uv(mesh, unwrapped, cfg.uv, rasterizer, surface, texels)
        seen = sight if same_places(mesh, unwrapped) else None
        proof = round_trip(views, unwrapped, baked, cameras, cfg.views, rasterizer, seen)
        measurements = replace(
            measure_map(measurements, unwrapped, baked),
            round_trip_psnr=proof.psnr_db,
            round_trip_off_share=proof.off_share,
        )
        if mesh.layers is not None:
            frames = mikktspace(unwrapped.vertices, unwrapped.normals, unwrapped.uv, unwrapped.faces)
            baked = replace(baked, materials=bake_materials(mesh, mesh.layers, unwrapped, texels, baked, frames))
            trip = material_trip(mesh, views, unwrapped, baked, frames, cameras, cfg.views, rasterizer, seen)
            measurements = replace(measurements, **({} if trip is None else asdict(trip)))
        result = apply_rules(measurements, cfg.filter)
        mv_only = _at_size(result.rejected, cfg) if result.rejected else None
        if result.regime is Regime.TEXTURED:
            uv_mesh, maps = unwrapped, baked
    lit = light_views(mesh, cameras, views, cfg.views, cfg.blender, rasterizer, seed_of(ref.uid))
    if isinstance(lit, Rejected):
        return Processed(result=lit, measurements=measurements)
    views = replace(views, lit=lit.images)
    sample = _sample(ref, views, cameras, frame, maps, uv_mesh, measurements)
    if lit.images is not None:
        sample.meta["shading"] = lit.shading
    if mesh.layers is not None:
        sample.meta["materials"] = {"emissive_strength": mesh.layers.emissive_strength}
    return Processed(result=sample, measurements=measurements, mv_only=mv_only)


def _at_size(lost: Rejected, cfg: BuildConfig) -> Rejected:
    """Name the sizes at which an asset lost its map: gutters take more of a small one, and details need texels."""
    sizes = f"views of {cfg.views.resolution} pixels, a map of {cfg.uv.resolution} texels a side"
    return replace(lost, detail=f"{lost.detail} ({sizes})")


def _blank(views: Views) -> Rejected | None:
    """Reject a mesh that no view shows, whatever the filter lets pass."""
    if views.mask.any():
        return None
    return Rejected(reason=Reason.BARELY_VISIBLE, detail=f"0 pixels in {len(views.mask)} views")


def _sample(
    ref: MeshRef,
    views: Views,
    cameras: Cameras,
    frame: Frame,
    maps: UvMaps | None,
    uv_mesh: UvMesh | None,
    measurements: Measurements,
) -> TextureSample:
    regime = Regime.MV_ONLY if maps is None else Regime.TEXTURED
    meta = {
        "uid": ref.uid,
        "schema_version": SCHEMA_VERSION,
        # the file's name alone: where it lay when the dataset was built must not decide the bytes
        "source": asdict(ref.source) | {"uri": ref.uri if "://" in ref.uri else Path(ref.uri).name},
        "caption": ref.caption,
        **({"captions": dict(ref.captions)} if ref.captions else {}),
        "regime": str(regime),
        "cameras": cameras_json(cameras),
        "frame": {"center": frame.center.tolist(), "scale": frame.scale},
        "measurements": measurements.json(materials=views.materials is not None),
        "versions": VERSIONS,
    }
    return TextureSample(uid=ref.uid, regime=regime, views=views, cameras=cameras, uv=maps, mesh=uv_mesh, meta=meta)
