"""Samples for pipelines of the `webdataset` package, decoded to their meaning. (The module is not named like the
package: `seqtex.webdataset` is the function.)"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields as fields_of
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.codec import decode, decode_field
from schemas.errors import UserError
from schemas.mesh import mesh_arrays
from schemas.sample import MaterialMaps, MaterialViews, UvMaps, Views

if TYPE_CHECKING:
    import webdataset as wds

PICKLES = frozenset(("pickle", "pkl", "pth", "pyd"))
"""Extensions that webdataset's own decoders unpickle, which runs whatever code a file holds."""


def webdataset(
    urls: str | Path | Iterable[str | Path],
    *,
    tensors: bool = False,
    shardshuffle: bool | int = False,
    **options: Any,
) -> "wds.WebDataset":
    """Open shards as a `webdataset.WebDataset`: a pipeline with `shuffle`, `batched`, `to_tuple` and the like.

    urls: one shard or several, braces expanded (`shards/textured-{000000..000007}.tar`). tensors: torch tensors instead
    of numpy arrays. shardshuffle, options: those of `webdataset.WebDataset`. Only `seqtex.Dataset` compares shards with
    their recorded sha256.

    A sample is a dict, with the same keys in every sample of a regime: `__key__`, `json`, `rgb, position, normal`
    [V, h, w, 3], `mask, coverage` [V, h, w], `world_to_cam, projection` [V, 4, 4], in a dataset with lit views `lit`,
    in one with materials `metallic_roughness` [V, h, w, 2] and `normal_detail, emissive` [V, h, w, 3]; for `textured`
    also `uv_rgb, uv_position, uv_normal` [H, W, 3], `uv_mask, uv_opacity` [H, W], whose row 0 is v = 1, materials
    likewise with `uv_normal_tangent` [H, W, 3], and `mesh {vertices, normals, uv, faces, single_sided}`, the last a
    bool for each face: not seen from behind. Nothing is unpickled. A sample with another field, or a malformed one,
    raises UserError naming shard, sample and field; `handler` (an option) may turn that into a warning. No shard, or a
    folder in place of one, raises UserError at once."""
    import webdataset as wds

    shards = str(urls) if isinstance(urls, str | Path) else [str(url) for url in urls]
    if not shards:
        raise UserError("no shards are given; a glob pattern that matches nothing is an empty list")
    for url in [shards] if isinstance(shards, str) else shards:
        if os.path.isdir(url):  # noqa: PTH112 (addresses may be longer than a path)
            raise UserError(f"{url}: a folder; give the shards in it, such as {url}/shards/textured-000000.tar")
    pipeline = wds.WebDataset(shards, shardshuffle=shardshuffle, **options)
    return pipeline.map(partial(sample_arrays, tensors=tensors), handler=options.get("handler", wds.reraise_exception))


def decoder(key: str, data: bytes) -> Any:
    """Decode one field; a handler for `webdataset.WebDataset(urls).decode(seqtex.decoder)`.

    Positions and normals become float32 [rows, width, 3], colours uint8 [rows, width, 3], masks bool [rows, width],
    coverage and opacity uint8 [rows, width], JSON and meshes dicts; the views of a sample stay one strip of rows. None
    for a field of another kind, which webdataset's own handlers then decode. Raises ValueError for a field that is
    malformed, or that they would unpickle."""
    name = key.removeprefix(".")
    if name.rpartition(".")[2] in PICKLES:
        raise ValueError(f"field {name!r} is a pickle, which may run any code: no sample has one")
    return decode_field(name, data)


def sample_arrays(stored: Mapping[str, Any], tensors: bool = False) -> dict[str, Any]:
    """Decode a sample of webdataset, as `webdataset` describes it. Raises UserError where it is not one."""
    key, url = stored["__key__"], stored.get("__url__", "shard")
    try:
        sample = decode(stored)
        if sample.uid != key:
            raise ValueError(f"its JSON is of {sample.uid!r}")
    except ValueError as error:
        raise UserError(f"{url}: sample {key}: {error}") from error
    arrays = _maps(sample.views, "") | {
        "world_to_cam": sample.cameras.world_to_cam,
        "projection": sample.cameras.projection,
    }
    if sample.uv is not None and sample.mesh is not None:
        opaque = np.full(sample.uv.mask.shape, 255, np.uint8)
        arrays |= {"uv_opacity": opaque} | _maps(sample.uv, "uv_")
        arrays["mesh"] = mesh_arrays(sample.mesh)
        arrays["mesh"].setdefault("single_sided", np.zeros(len(sample.mesh.faces), bool))
    return {"__key__": key, "json": sample.meta} | (_tensors(arrays) if tensors else arrays)


def _maps(maps: Views | UvMaps | MaterialViews | MaterialMaps, prefix: str) -> dict[str, Any]:
    """Return the images that are there, those of materials under their own names."""
    named = {field.name: getattr(maps, field.name) for field in fields_of(maps)}
    materials = named.pop("materials", None)
    images = {f"{prefix}{name}": image for name, image in named.items() if image is not None}
    return images if materials is None else images | _maps(materials, prefix)


def _tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {
        name: _tensors(value) if isinstance(value, dict) else torch.from_numpy(value) for name, value in arrays.items()
    }
