"""A dataset in SeqTex's data layouts (`pipeline.seqtex_layouts.layout`), for training code that reads those."""

import json
from collections.abc import Callable, Set
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from scipy.ndimage import distance_transform_edt

from geometry.cameras import view_depth
from geometry.frames import Frame
from pipeline.mesh_io.write_glb import write_glb
from pipeline.seqtex_layouts.cameras import locations
from pipeline.seqtex_layouts.exr import BACKGROUND, write_depth
from pipeline.seqtex_layouts.layout import (
    JPEG,
    META,
    MODEL,
    SOURCE_FIELDS,
    Layout,
    Listed,
    item_folder,
    require_new_folder,
)
from pipeline.seqtex_layouts.renders import NORMALISED_SIDE
from schemas.errors import UserError
from schemas.images import encode_image
from schemas.mesh import Attribution
from schemas.sample import Regime, TextureSample, Views
from schemas.shards import stored_samples
from schemas.storage import Location, write_file

JPEG_QUALITY = 95
"""Quality of `model.jpeg`, with colour at full resolution (4:4:4)."""
LOSSLESS = {"lossless": True, "method": 2, "quality": 50, "exact": True}
"""WebP; colour under a transparent pixel is kept."""
SCALE = NORMALISED_SIDE / 2
"""Lengths of the renderer's world per dataset unit: its scenes have a largest side of 1, ours of 2."""


def export(
    dataset: Location,
    dest: Path,
    layout: Layout,
    on_item: Callable[[int, str], None],
    uids: Set[str] = frozenset(),
) -> int:
    """Write the samples that a layout can hold (3D: textured ones) into the new folder `dest`, and return how many.
    uids: those alone.

    The list is written last: with it the export is whole. `on_item` gets the number of items done, and the last uid.
    Raises UsageError for a uid that has no sample; UserError: no dataset, a damaged shard, a `dest` that is not empty,
    nothing to write."""
    regimes = (Regime.TEXTURED,) if layout is Layout.MODELS else tuple(Regime)
    require_new_folder(dest)
    write = write_model if layout is Layout.MODELS else write_renders
    listed: list[Listed] = []
    for sample in stored_samples(dataset, *regimes, uids=uids):
        folder = item_folder(dest, sample.uid)
        folder.mkdir(parents=True)
        write(folder, sample)
        source = {name: str(sample.meta["source"].get(name, "")) for name in SOURCE_FIELDS}
        caption = str(sample.meta.get("caption", ""))
        listed.append(Listed(id=sample.uid, caption=caption, source=Attribution(**source)))
        on_item(len(listed), sample.uid)
    if not listed:
        raise UserError(f"{dataset}: has no sample of regime {' or '.join(regimes)}, which {layout} is made from")
    write_file(dest / f"{layout}.jsonl", b"".join(entry.line() for entry in listed))
    return len(listed)


def write_model(folder: Path, sample: TextureSample) -> None:
    """The mesh in the asset's own frame with its baked map as texture, and the map once more as a JPEG, row 0 at
    v = 1."""
    assert sample.mesh is not None
    assert sample.uv is not None
    frame = Frame(
        center=np.array(sample.meta["frame"]["center"], np.float64), scale=float(sample.meta["frame"]["scale"])
    )
    write_glb(folder / MODEL, sample.mesh, sample.uv.rgb, frame, sample.uv.opacity)
    write_file(folder / JPEG, encode_image(sample.uv.rgb, "JPEG", quality=JPEG_QUALITY, subsampling=0))


def write_renders(folder: Path, sample: TextureSample) -> None:
    """Write what the public renderer would write: a scene of largest side 1 seen by the cameras of the sample."""
    views, cameras = sample.views, sample.cameras
    depth = view_depth(views.position, views.mask, cameras.world_to_cam) * np.float32(SCALE)
    if (depth[views.mask] <= 0).any():
        raise UserError(f"sample {sample.uid}: a camera stands inside the scene, where depth has no meaning; build it "
                        "with another camera rig")  # fmt: skip
    depth = np.where(views.mask, depth, np.float32(BACKGROUND))
    colors, normals = color_images(views), normal_images(views)
    entries = locations(cameras, SCALE)
    for number, entry in enumerate(entries):
        index = entry["index"]
        write_file(folder / f"color_{index}.webp", encode_image(colors[number], "WEBP", **LOSSLESS))
        write_file(folder / f"normal_{index}.webp", encode_image(normals[number], "WEBP", **LOSSLESS))
        write_depth(folder / f"depth_{index}.exr", depth[number])
    height, width = views.mask.shape[1:]
    meta = {"width": width, "height": height, "locations": entries}
    write_file(folder / META, json.dumps(meta, indent=1).encode() + b"\n")


def color_images(views: Views) -> UInt8[np.ndarray, "v h w 4"]:
    """Straight alpha: the coverage, at least 1 inside the mask. Partly covered pixels whose centre is not, which have
    no colour of their own, take that of the nearest one that has."""
    alpha = np.where(views.mask, np.maximum(views.coverage, 1), views.coverage)
    rgb = views.rgb.copy()
    for number, mask in enumerate(views.mask):
        rim = (alpha[number] > 0) & ~mask
        if rim.any() and mask.any():
            rows, columns = distance_transform_edt(~mask, return_distances=False, return_indices=True)
            rgb[number][rim] = views.rgb[number][rows[rim], columns[rim]]
    return np.concatenate([rgb, alpha[..., None]], axis=-1)


def normal_images(views: Views) -> UInt8[np.ndarray, "v h w 4"]:
    """World space, [-1, 1] mapped to 0..255; alpha is the mask."""
    rgb = np.rint((views.normal + 1) * np.float32(127.5)).astype(np.uint8) * views.mask[..., None]
    return np.concatenate([rgb, views.mask[..., None].astype(np.uint8) * np.uint8(255)], axis=-1)
