"""`seqtex.Dataset`: a sequence of samples, read from verified shards, that other libraries understand."""

import io
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import seqtex
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from schemas.dataset import index_json, read_ledger, shard_path
from schemas.mesh import MeshRef, TexturedMesh
from schemas.sample import Regime
from schemas.storage import ObjectPath
from seqtex.dataset import Sample
from tests.seqtex.test_whole_path import cube_glb
from tests.support.small_dataset import UV_SIZE, VIEW_SIZE, small_sample, write_dataset, write_samples

JOBS = [
    [("a", Regime.TEXTURED), ("b", Regime.MV_ONLY), ("c", Regime.TEXTURED)],
    [("d", Regime.MV_ONLY)],
    [("e", Regime.TEXTURED), ("f", Regime.TEXTURED)],
]
IN_ORDER = ["a", "c", "b", "d", "e", "f"]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_dataset(tmp_path / "forge", JOBS)
    return tmp_path / "forge"


def test_a_dataset_is_a_sequence_of_its_samples(folder):
    dataset = seqtex.Dataset(folder)
    assert len(dataset) == 6 and [sample.uid for sample in dataset] == dataset.uids == IN_ORDER
    assert isinstance(dataset[0], Sample) and dataset[-1].uid == "f" and dataset["b"].regime is Regime.MV_ONLY
    assert "d" in dataset and "z" not in dataset
    assert [sample.uid for sample in dataset[1:4]] == ["c", "b", "d"]
    truth = small_sample("e", Regime.TEXTURED, seed=200)
    np.testing.assert_array_equal(dataset["e"].views.rgb, truth.views.rgb)
    np.testing.assert_array_equal(dataset["e"].uv.rgb, truth.uv.rgb)
    assert dataset["e"].meta == truth.meta and dataset["e"].cameras.projection.shape == (4, 4, 4)
    assert repr(dataset) == f"Dataset('{folder}': 6 samples, 4 of them textured)"
    for missing, error in ((6, IndexError), ("z", KeyError)):
        with pytest.raises(error):
            dataset[missing]


def test_regimes_are_datasets_of_their_own(folder):
    dataset = seqtex.Dataset(str(folder))
    assert dataset.textured.uids == ["a", "c", "e", "f"] and dataset.mv_only.uids == ["b", "d"]
    assert dataset.textured[1].uid == "c" and "b" not in dataset.textured and len(dataset.textured.mv_only) == 0
    assert dataset.uids == IN_ORDER, "the whole stays as it is"


def test_the_ledger_is_a_table_with_every_asset(folder):
    table = seqtex.Dataset(folder).ledger()
    assert table.num_rows == 6 and {"uid", "status", "reason", "faces", "round_trip_psnr"} <= set(table.column_names)
    assert pc.sum(pc.equal(table["regime"], "textured")).as_py() == 4


def test_a_remote_dataset_is_read_through_the_cache(folder, tmp_path):
    (folder / "index.json").write_bytes(index_json(folder, read_ledger(folder)))
    for path in (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "fields"):
        ObjectPath(f"memory://opened/{path.relative_to(folder)}").write_bytes(path.read_bytes())
    dataset = seqtex.Dataset("memory://opened", cache=tmp_path / "cache")
    assert dataset.uids == IN_ORDER and dataset["f"].uid == "f"
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 1, "only the shard that was needed"


def test_no_dataset_and_damaged_shards_are_errors_that_name_a_remedy(folder, tmp_path):
    with pytest.raises(seqtex.UserError, match=r"dataset.json: no such file.*seqtex build"):
        seqtex.Dataset(tmp_path)
    with pytest.raises(seqtex.UserError, match=r"index.json"):
        seqtex.Dataset("memory://nothing", cache=tmp_path / "cache")
    path = shard_path(folder, "textured-000000.tar")
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    dataset = seqtex.Dataset(folder)
    with pytest.raises(seqtex.UserError, match=r"textured-000000.tar.*seqtex repair"):
        dataset["a"]
    assert dataset["e"].uid == "e", "other shards can be read"


def test_a_shard_is_verified_once(folder):
    dataset = seqtex.Dataset(folder)
    first = dataset[0]
    path = shard_path(folder, "textured-000000.tar")
    data = path.read_bytes()
    path.unlink()
    assert dataset["c"].uid == "c", "an open shard is read, not opened again"
    path.write_bytes(data)
    np.testing.assert_array_equal(seqtex.Dataset(folder)[0].views.rgb, first.views.rgb)


def test_a_shard_with_other_samples_than_the_ledger_is_an_error(tmp_path):
    write_samples(tmp_path / "forge", [[small_sample("a", Regime.MV_ONLY, 0), small_sample("b", Regime.MV_ONLY, 1)]])
    dataset = seqtex.Dataset(tmp_path / "forge")
    dataset._places = tuple(place._replace(at=1 - place.at) for place in dataset._places)
    with pytest.raises(seqtex.UserError, match="holds b instead of a"):
        dataset["a"]


def test_tensors_are_in_the_layout_of_the_model(folder):
    sample = seqtex.Dataset(folder)["a"]
    tensors = sample.to_torch()
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        **{f"views_{name}": (4, VIEW_SIZE, VIEW_SIZE, 3) for name in ("rgb", "position", "normal")},
        "views_mask": (4, VIEW_SIZE, VIEW_SIZE),
        **dict.fromkeys(("world_to_cam", "projection"), (4, 4, 4)),
        **{f"uv_{name}": (UV_SIZE, UV_SIZE, 3) for name in ("rgb", "position", "normal")},
        "uv_mask": (UV_SIZE, UV_SIZE),
    }
    assert all(value.dtype in (torch.float32, torch.bool) for value in tensors.values())
    np.testing.assert_allclose(tensors["views_rgb"].numpy() * 255, sample.views.rgb, atol=1e-4)
    np.testing.assert_allclose(tensors["uv_rgb"].numpy()[::-1] * 255, sample.uv.rgb, atol=1e-4)
    np.testing.assert_array_equal(tensors["uv_mask"].numpy()[::-1], sample.uv.mask)
    assert not any(name.startswith("uv_") for name in seqtex.Dataset(folder)["b"].to_torch())


def test_a_data_loader_takes_a_dataset(folder):
    def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
        return torch.utils.data.default_collate([sample.to_torch() for sample in samples])

    loader = DataLoader(seqtex.Dataset(folder).textured, batch_size=2, collate_fn=collate, num_workers=1)
    assert [tuple(batch["uv_rgb"].shape) for batch in loader] == [(2, UV_SIZE, UV_SIZE, 3)] * 2


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Sample:
    """A cube with an asymmetric texture, from its file to a sample."""
    path = tmp_path_factory.mktemp("cube") / "cube.glb"
    path.write_bytes(cube_glb())
    cfg = BuildConfig(views=RenderConfig(resolution=64), uv=BakeConfig(resolution=128))
    found = process_asset(MeshRef(uid="cube", uri=str(path)), cfg).result
    return Sample(**{name: getattr(found, name) for name in Sample.__dataclass_fields__})


def test_a_mesh_carries_its_texture_the_right_way_up(cube, tmp_path):
    mesh = cube.to_mesh()
    np.testing.assert_allclose(mesh.bounds, [[-1, -1, -1], [1, 1, 1]], atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, cube.mesh.faces)
    colors = mesh.visual.to_color().vertex_colors[:, :3].astype(int)
    column = np.clip(cube.mesh.uv[:, 0] * 128, 0, 127).astype(int)
    row = np.clip((1 - cube.mesh.uv[:, 1]) * 128, 0, 127).astype(int)
    assert np.abs(colors - cube.uv.rgb[row, column]).mean() < 4, "as the UV map has it"
    mesh.export(tmp_path / "cube.glb")
    loaded = load_mesh(tmp_path / "cube.glb")
    assert isinstance(loaded, TexturedMesh)
    np.testing.assert_array_equal(loaded.textures[0].image[..., :3], cube.uv.rgb)
    np.testing.assert_allclose(loaded.uv, cube.mesh.uv, atol=1e-6)
    np.testing.assert_allclose(loaded.vertices, cube.mesh.vertices, atol=1e-6)


def test_a_mesh_in_the_frame_of_its_asset_lies_where_the_asset_lies(cube, tmp_path):
    (tmp_path / "source.glb").write_bytes(cube_glb())
    source = load_mesh(tmp_path / "source.glb")
    mesh = cube.to_mesh(frame="asset")
    at = {tuple(np.round(point, 4)): color for point, color in zip(*corners(source), strict=True)}
    assert at, "the cube's corners with their colours"
    mesh.export(tmp_path / "out.glb")
    for point, color in zip(*corners(load_mesh(tmp_path / "out.glb")), strict=True):
        np.testing.assert_allclose(color, at[tuple(np.round(point, 4))], atol=40)


def corners(mesh: TexturedMesh) -> tuple[np.ndarray, np.ndarray]:
    """Middle of every face, and its colour in the texture."""
    points, uv = mesh.vertices[mesh.faces].mean(axis=1), mesh.uv[mesh.faces].mean(axis=1)
    height, width = mesh.textures[0].image.shape[:2]
    row, column = ((1 - uv[:, 1]) * height).astype(int), (uv[:, 0] * width).astype(int)
    return points, mesh.textures[0].image[row, column, :3].astype(int)


def test_samples_without_a_mesh_say_so(folder):
    with pytest.raises(seqtex.UserError, match=r"b: a multi-view-only sample has no mesh"):
        seqtex.Dataset(folder)["b"].to_mesh()


def test_a_sample_shows_its_views_over_its_maps(folder):
    dataset = seqtex.Dataset(folder)
    picture = Image.open(io.BytesIO(dataset["a"]._repr_png_()))
    assert picture.size == (768, 192 + 256) and np.asarray(picture)[:192].any() and np.asarray(picture)[192:].any()
    assert Image.open(io.BytesIO(dataset["b"]._repr_png_())).size == (768, 192)
