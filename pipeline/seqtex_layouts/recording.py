"""Samples as recordings of the Rerun viewer: cameras with their images, points, the textured mesh, UV maps, texts.

| entity | contents |
|---|---|
| `mesh` | the unwrapped mesh with its baked texture |
| `cameras/0` | pose and lens of view 0; `color`, `normal`, `lit` below it are its images |
| `points/view_0`, `points/uv` | position and colour of every pixel or texel that a face covers |
| `uv/color`, `uv/position`, `uv/normal`, `uv/opacity` | the maps as images |
| `metallic`, `roughness`, `normal_detail`, `emissive` | below a camera and `uv`, where samples hold materials |
| `uv/normal_tangent` | the normal map of the mesh, green up, where samples hold materials |
| `caption`, `source`, `measurements` | texts; `measurements` has each ledger value as a component, too |

World is the dataset frame: Z up, largest side 2."""

from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from pipeline.seqtex_layouts.layout import require_new_folder
from schemas.errors import UsageError, UserError
from schemas.images import encode_image
from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from schemas.storage import Location, write_file

if TYPE_CHECKING:
    import rerun

APPLICATION = "seqtex"
POINT_UI_SIZE = 1.5
"""Radius of points in pixels of the viewer, whatever the zoom."""
MATERIAL_IMAGES = ("metallic", "roughness", "normal_detail", "emissive")
FRUSTUM = 0.75
"""Distance of a camera's image from it in the scene, world units."""


def export_recordings(
    dataset: Location, dest: Path, on_item: Callable[[int, str], None], uids: Set[str] = frozenset()
) -> int:
    """Write a file `<uid>.rrd` per sample into the new folder `dest`, and return how many. uids: those alone.

    `on_item` gets the number of samples done, and the last uid. Raises UsageError without the package rerun-sdk or for
    a uid that has no sample; UserError: no dataset, a damaged shard, a `dest` that is not empty, nothing to write."""
    require_rerun()
    require_new_folder(dest)
    count = 0
    for count, sample in enumerate(stored_samples(dataset, *Regime, uids=uids), start=1):
        dest.mkdir(parents=True, exist_ok=True)
        write_file(dest / f"{sample.uid}.rrd", recording(sample))
        on_item(count, sample.uid)
    if not count:
        raise UserError(f"{dataset}: has no sample")
    return count


def require_rerun() -> None:
    """Raise UsageError unless the package rerun-sdk is there and switched on."""
    try:
        import rerun
    except ImportError as error:
        remedy = "in this program's folder, pip install -c constraints.txt '.[rerun]'"
        raise UsageError(f"--layout rerun needs the package rerun-sdk ({error}); {remedy}") from error
    if not rerun.is_enabled(rerun.RecordingStream(APPLICATION)):
        raise UsageError("--layout rerun: the variable RERUN switches the package off; unset it")


def recording(sample: TextureSample) -> bytes:
    """Return a sample as the bytes of an .rrd file, with an arrangement of the viewer's panels."""
    import rerun as rr

    stream = rr.RecordingStream(APPLICATION, recording_id=sample.uid)
    output = rr.binary_stream(stream)
    stream.send_recording_name(sample.uid)
    for entity, *parts in _entities(sample):
        stream.log(entity, *parts, static=True, strict=True)
    stream.send_blueprint(_panels(sample))
    data = output.read()
    assert data is not None
    return data


def _entities(sample: TextureSample) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every entity with its archetypes."""
    import rerun as rr

    yield "/", rr.ViewCoordinates.RIGHT_HAND_Z_UP
    yield from _cameras(sample)
    if sample.uv is not None and sample.mesh is not None:
        uv, mesh = sample.uv, sample.mesh
        yield (
            "mesh",
            rr.Mesh3D(
                vertex_positions=mesh.vertices,
                triangle_indices=mesh.faces,
                vertex_normals=mesh.normals,
                vertex_texcoords=mesh.uv * (1, -1) + (0, 1),  # the viewer's v = 0 is row 0
                albedo_texture=uv.rgb,
            ),
        )
        yield "points/uv", _points(uv.position, uv.rgb, uv.mask)
        yield "uv/color", _image(uv.rgb)
        yield "uv/position", _image(_unit_rgb(uv.position, uv.mask))
        yield "uv/normal", _image(_unit_rgb(uv.normal, uv.mask))
        if uv.opacity is not None:
            yield "uv/opacity", _image(uv.opacity)
        if uv.materials is not None:
            own = uv.materials
            yield from _materials("uv", own.metallic_roughness, own.normal_detail, own.emissive, uv.mask)
            yield "uv/normal_tangent", _image(_unit_rgb(own.normal_tangent, uv.mask))
    measured = {name: value for name, value in sample.meta["measurements"].items() if value is not None}
    yield "caption", _text([sample.meta.get("caption", ""), *sample.meta.get("captions", {}).values()])
    yield "source", _text(f"{name}: {value}" for name, value in sample.meta["source"].items())
    lines = _text(f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}"
                  for name, value in measured.items())  # fmt: skip
    yield "measurements", lines, rr.AnyValues(**measured)


def _cameras(sample: TextureSample) -> Iterator[tuple[Any, ...]]:
    """Yield the cameras, their images and points. A camera of parallel rays has a pose but no lens, which the viewer
    has not."""
    import rerun as rr

    views, cameras = sample.views, sample.cameras
    height, width = views.mask.shape[1:]
    for number, (world_to_cam, projection) in enumerate(zip(cameras.world_to_cam, cameras.projection, strict=True)):
        entity, cam_to_world = f"cameras/{number}", np.linalg.inv(world_to_cam.astype(np.float64))
        yield entity, rr.Transform3D(translation=cam_to_world[:3, 3], mat3x3=cam_to_world[:3, :3])
        if projection[3, 2] != 0:
            yield (
                entity,
                rr.Pinhole(
                    focal_length=(abs(projection[0, 0]) * width / 2, abs(projection[1, 1]) * height / 2),
                    width=width,
                    height=height,
                    camera_xyz=rr.ViewCoordinates.RUB,
                    image_plane_distance=FRUSTUM,
                ),
            )
        yield f"{entity}/color", _image(views.rgb[number])
        yield f"{entity}/normal", _image(_unit_rgb(views.normal[number], views.mask[number]))
        if views.lit is not None:
            yield f"{entity}/lit", _image(views.lit[number])
        if views.materials is not None:
            own = views.materials
            parts = own.metallic_roughness[number], own.normal_detail[number], own.emissive[number]
            yield from _materials(entity, *parts, views.mask[number])
        yield f"points/view_{number}", _points(views.position[number], views.rgb[number], views.mask[number])


def _materials(
    entity: str,
    metallic_roughness: UInt8[np.ndarray, "h w 2"],
    normal_detail: Float32[np.ndarray, "h w 3"],
    emissive: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
) -> Iterator[tuple[Any, ...]]:
    """Yield the channels of a material as images below an entity."""
    grey = (np.ascontiguousarray(metallic_roughness[..., place]) for place in range(2))
    for name, image in zip(MATERIAL_IMAGES, (*grey, _unit_rgb(normal_detail, mask), emissive), strict=True):
        yield f"{entity}/{name}", _image(image)


def _points(
    position: Float32[np.ndarray, "h w 3"], rgb: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> "rerun.Points3D":
    import rerun as rr

    return rr.Points3D(position[mask], colors=rgb[mask], radii=rr.Radius.ui_points(POINT_UI_SIZE))


def _unit_rgb(vectors: Float32[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Positions or normals as colours: [-1, 1] as 0..255, black outside the mask."""
    return np.rint((vectors + 1) * np.float32(127.5)).astype(np.uint8) * mask[..., None]


def _image(pixels: UInt8[np.ndarray, "h w *channels"]) -> "rerun.EncodedImage":
    """Lossless."""
    import rerun as rr

    return rr.EncodedImage(contents=encode_image(pixels, "PNG"), media_type="image/png")


def _text(lines: Any) -> "rerun.TextDocument":
    """Plain: texts of assets must not reach a reader of Markdown, which may load images."""
    import rerun as rr

    return rr.TextDocument("\n".join(str(line) for line in lines), media_type=rr.MediaType.TEXT)


def _panels(sample: TextureSample) -> "rerun.blueprint.Blueprint":
    """Arrange the panels: the scene (points can be switched on where there is a mesh), images, texts."""
    import rerun.blueprint as rrb

    hidden = rrb.EntityBehavior(visible=sample.mesh is None)
    views = len(sample.views.rgb)
    images = [rrb.Spatial2DView(origin=f"cameras/{number}", contents="$origin/color", name=f"view {number}")
              for number in range(views)]  # fmt: skip
    names = ("color", "position", "normal", *(MATERIAL_IMAGES if sample.views.materials is not None else ()))
    maps = [rrb.Spatial2DView(origin=f"uv/{name}", name=name) for name in names]
    tabs = [rrb.Grid(*images, name="views"), *([rrb.Grid(*maps, name="UV maps")] if sample.uv is not None else [])]
    texts = [rrb.TextDocumentView(origin=name, name=name) for name in ("caption", "measurements", "source")]
    lenses = [number for number in range(views) if sample.cameras.projection[number, 3, 2] != 0]
    pictured = [f"/cameras/{number}{image}" for number in lenses for image in ("", "/color")]
    scene = rrb.Spatial3DView(contents=["/mesh", "/points/**", *pictured], name="scene", overrides={"points": hidden})
    return rrb.Blueprint(
        rrb.Horizontal(scene, rrb.Vertical(rrb.Tabs(*tabs), rrb.Tabs(*texts), row_shares=[3, 1]), column_shares=[3, 2]),
        collapse_panels=True,
    )
