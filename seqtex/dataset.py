"""A dataset as a Python sequence of samples."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

import numpy as np
import pyarrow as pa
from PIL import Image

from geometry.frames import Frame, z_up_to_y_up
from pipeline.report.images import as_rgb, in_rows, side_by_side
from schemas.codec import decode
from schemas.dataset import LedgerPart, by_repair, read_dataset_json, read_ledger
from schemas.errors import UserError
from schemas.ledger import LEDGER_SCHEMA
from schemas.sample import Regime, TextureSample
from schemas.storage import location as locate
from training.data.dataset_files import open_dataset
from training.data.shard_reader import ShardReader

if TYPE_CHECKING:
    import torch
    import trimesh

OPEN_SHARDS = 16
"""Shards that stay open; one that is opened again is verified again."""
VIEW_PX, VIEWS_PER_ROW = 192, 4
"""Height of a view in the picture of a sample, and views side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(TextureSample):
    """One mesh of a dataset: `uid`, `regime`, `views`, `cameras`, `uv`, `mesh` and `meta` as in `TextureSample`.

    Notebooks show it as a picture of its views over its UV maps."""

    def to_torch(self) -> dict[str, "torch.Tensor"]:
        """Return images and cameras as tensors, images in the layout that the model reads.

        `views_rgb, views_position, views_normal` are float32 [V, h, w, 3], `views_mask` is bool [V, h, w];
        `world_to_cam, projection` are float32 [V, 4, 4]. A textured sample also has `uv_rgb, uv_position, uv_normal`
        [H, W, 3] and `uv_mask` [H, W], whose row 0 is v = 0 (in `sample.uv` it is v = 1). Colours are sRGB in [0, 1],
        positions and normals lie in [-1, 1]. `torch.utils.data.default_collate` joins samples of one regime."""
        import torch

        from training.data.batch import to_model

        batch = to_model(self)
        tensors = {f"views_{name}": getattr(batch.mv, name)[0] for name in ("rgb", "position", "normal")}
        tensors["views_mask"] = torch.from_numpy(self.views.mask)
        tensors["world_to_cam"] = torch.from_numpy(self.cameras.world_to_cam)
        tensors["projection"] = torch.from_numpy(self.cameras.projection)
        if self.uv is not None:
            tensors |= {f"uv_{name}": getattr(batch.uv, name)[0, 0] for name in ("rgb", "position", "normal")}
            tensors["uv_mask"] = torch.from_numpy(self.uv.mask[::-1].copy())
        return tensors

    def to_mesh(self, frame: Literal["dataset", "asset"] = "dataset") -> "trimesh.Trimesh":
        """Return the unwrapped mesh with its baked texture.

        frame: `dataset` is that of the views' positions (Z up, bounding box centred, largest side 2); `asset` is that
        of the asset's own file (glTF's: Y up, own place and size), for export to .glb. v points up, as everywhere in
        trimesh: v = 1 is row 0 of the image, and exporting to .glb flips it. Vertices and faces keep their order.
        Raises UserError for a multi-view-only sample: it has no mesh."""
        import trimesh

        if self.mesh is None or self.uv is None:
            raise UserError(f"{self.uid}: a multi-view-only sample has no mesh; take one of `dataset.textured`")
        vertices, normals = self.mesh.vertices, self.mesh.normals
        if frame == "asset":
            stored = self.meta["frame"]
            own = Frame(center=np.array(stored["center"], np.float64), scale=stored["scale"])
            vertices, normals = own.to_asset(vertices), z_up_to_y_up(normals)
        rgb, opacity = self.uv.rgb, self.uv.opacity
        material = trimesh.visual.material.PBRMaterial(
            name=self.uid,
            baseColorTexture=Image.fromarray(rgb if opacity is None else np.dstack([rgb, opacity])),
            metallicFactor=0.0,
            roughnessFactor=1.0,
            doubleSided=True,
            alphaMode="OPAQUE" if opacity is None else "MASK",
        )
        return trimesh.Trimesh(
            vertices=vertices,
            faces=self.mesh.faces,
            vertex_normals=normals,
            visual=trimesh.visual.TextureVisuals(uv=self.mesh.uv, material=material),
            metadata={"uid": self.uid, "caption": self.meta["caption"]},
            process=False,
        )

    def _repr_png_(self) -> bytes:
        """Draw the views in rows and below them the UV maps: colour, position, normal."""
        count, height, width = self.views.mask.shape
        columns = min(count, VIEWS_PER_ROW)
        rows = [_resized(in_rows(self.views.rgb, columns), columns * VIEW_PX * width // height)]
        if self.uv is not None:
            covered = self.uv.mask[..., None]
            maps = [self.uv.rgb, as_rgb(self.uv.position) * covered, as_rgb(self.uv.normal) * covered]
            rows.append(_resized(side_by_side(np.stack(maps)), rows[0].shape[1]))
        buffer = BytesIO()
        Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
        return buffer.getvalue()


class _Place(NamedTuple):
    """Place of a stored sample: its shard, and its number in there."""

    uid: str
    regime: Regime
    shard: int
    at: int


class Dataset:
    """The samples of a dataset, in the order of its ledger: by job, textured ones first.

    `len(dataset)`, `dataset[0]`, `dataset["uid"]`, `dataset[2:5]` (a dataset of these), `uid in dataset` and iteration
    work as for a list; `torch.utils.data.DataLoader` takes it too. A shard's sha256 is compared with its ledger's when
    it is first read; from then on, samples are read one by one."""

    def __init__(self, location: str | Path, *, cache: str | Path = "~/.cache/seqtex", cache_gb: float = 50.0) -> None:
        """Open a dataset that `seqtex build` wrote.

        location: folder, or URL of an object store (`s3://bucket/forge`). cache: folder that receives the shards of a
        remote dataset; those used longest ago are deleted beyond `cache_gb` (10^9 bytes). Raises UserError when there
        is no dataset, or its records are damaged; so does reading a sample of a damaged or missing shard."""
        files = open_dataset(str(locate(location).expanduser()), Path(cache), int(cache_gb * 1e9))
        self.location = files.location
        self.info = read_dataset_json(files.folder)
        self._parts = read_ledger(files.folder)
        shards = tuple(shard for part in self._parts for shard in part.shards)
        self._reader = ShardReader(files, "shards", shards, OPEN_SHARDS, _decode)
        self._select(_places(self._parts))

    def _select(self, places: Iterable[_Place]) -> Self:
        self._places = tuple(places)
        self._numbers = {place.uid: number for number, place in enumerate(self._places)}
        return self

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, uid: object) -> bool:
        return uid in self._numbers

    def __iter__(self) -> Iterator[Sample]:
        return map(self._read, self._places)

    @overload
    def __getitem__(self, key: int | str) -> Sample: ...

    @overload
    def __getitem__(self, key: slice) -> "Dataset": ...

    def __getitem__(self, key: int | str | slice) -> "Sample | Dataset":
        if isinstance(key, slice):
            return copy.copy(self)._select(self._places[key])
        return self._read(self._places[self._numbers[key] if isinstance(key, str) else key])

    @property
    def uids(self) -> list[str]:
        """Keys of the samples, in order."""
        return [place.uid for place in self._places]

    @property
    def textured(self) -> "Dataset":
        """The samples with a UV map and a mesh."""
        return copy.copy(self)._select(place for place in self._places if place.regime is Regime.TEXTURED)

    @property
    def mv_only(self) -> "Dataset":
        """The samples with views alone."""
        return copy.copy(self)._select(place for place in self._places if place.regime is Regime.MV_ONLY)

    def ledger(self) -> pa.Table:
        """Return one row per asset of the whole dataset: status, reason, shard and every measurement."""
        rows = [outcome.row() for part in self._parts for outcome in part.outcomes]
        return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)

    def __repr__(self) -> str:
        textured = sum(place.regime is Regime.TEXTURED for place in self._places)
        return f"Dataset({self.location!r}: {len(self)} samples, {textured} of them textured)"

    def _read(self, place: _Place) -> Sample:
        sample = self._reader(place.shard, place.at)
        if sample.uid != place.uid:
            name = self._reader.name(place.shard)
            raise UserError(f"{name}: holds {sample.uid} instead of {place.uid}; {by_repair(locate(self.location))}")
        return sample


def _places(parts: Iterable[LedgerPart]) -> Iterator[_Place]:
    shards = ((part, shard) for part in parts for shard in part.shards)
    for number, (part, shard) in enumerate(shards):
        stored = (outcome.uid for outcome in part.outcomes if outcome.shard == shard.name)
        yield from (_Place(uid, shard.regime, number, at) for at, uid in enumerate(stored))


def _decode(stored: Mapping[str, Any]) -> Sample:
    sample = decode(stored)
    return Sample(**{field.name: getattr(sample, field.name) for field in fields(sample)})


def _resized(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
