"""`seqtex.webdataset` and `seqtex.decoder`: samples for pipelines of webdataset, and nothing unpickled on the way."""

import gzip
import io
import pickle
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

import seqtex
from schemas.codec import decode, encode
from schemas.sample import Regime, TextureSample
from schemas.shards import read_shard
from seqtex.web_dataset import sample_arrays
from tests.support.small_dataset import UV_SIZE, VIEW_SIZE, small_sample
from tests.support.varied_dataset import PER_REGIME, write_varied_dataset

VIEWS = {"rgb", "mask", "coverage", "position", "normal"}
COMMON = {"__key__", "json", "world_to_cam", "projection"} | VIEWS
MAPS = {f"uv_{name}" for name in ("rgb", "mask", "opacity", "position", "normal")}
ARRAYS = ("vertices", "normals", "uv", "faces")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    write_varied_dataset(out := tmp_path_factory.mktemp("varied") / "forge")
    return out


def shards(folder: Path, regime: str) -> list[Path]:
    return sorted((folder / "shards").glob(f"{regime}-*.tar"))


def ours(folder: Path, regime: str) -> list[TextureSample]:
    return [decode(fields) for shard in shards(folder, regime) for _, fields in read_shard(shard)]


@pytest.mark.parametrize(("regime", "keys"), [("textured", COMMON | MAPS | {"mesh"}), ("mv_only", COMMON)])
def test_samples_have_the_same_keys_and_exact_arrays(folder, regime, keys):
    found = list(seqtex.webdataset(shards(folder, regime)))
    assert len(found) == 2 * PER_REGIME and all(set(sample) == keys for sample in found)
    for sample, truth in zip(found, ours(folder, regime), strict=True):
        assert sample["__key__"] == truth.uid and sample["json"] == truth.meta
        for name in VIEWS:
            stored = getattr(truth.views, name)
            assert sample[name].dtype == stored.dtype
            np.testing.assert_array_equal(sample[name], stored)
        np.testing.assert_array_equal(sample["projection"], truth.cameras.projection)
        if truth.uv is None:
            continue
        for name in ("rgb", "mask", "position", "normal"):
            np.testing.assert_array_equal(sample[f"uv_{name}"], getattr(truth.uv, name))
        opaque = np.full(truth.uv.mask.shape, 255, np.uint8)
        np.testing.assert_array_equal(sample["uv_opacity"], opaque if truth.uv.opacity is None else truth.uv.opacity)
        for name in ARRAYS:
            np.testing.assert_array_equal(sample["mesh"][name], getattr(truth.mesh, name))
        seen_from_one_side = truth.mesh.single_sided is not None  # all of its faces, or none
        np.testing.assert_array_equal(sample["mesh"]["single_sided"], [seen_from_one_side] * len(truth.mesh.faces))
    meshes = [sample["mesh"] for sample in found if "mesh" in sample]
    assert all(set(mesh) == {*ARRAYS, "single_sided"} for mesh in meshes)
    assert {mesh["single_sided"].all() for mesh in meshes} == ({True, False} if meshes else set())


def test_no_shards_and_folders_are_named_at_once(folder):
    with pytest.raises(seqtex.UserError, match="no shards are given"):
        seqtex.webdataset(sorted(folder.glob("shard/*.tar")))
    for urls in (folder, [str(folder)]):
        with pytest.raises(seqtex.UserError, match=f"{folder}: a folder; give the shards in it"):
            seqtex.webdataset(urls)


def test_lit_views_are_there_where_a_dataset_has_them():
    sample = small_sample("a", Regime.MV_ONLY, seed=0)
    lit = replace(sample, views=replace(sample.views, lit=sample.views.rgb // 2))
    found = sample_arrays({"__key__": "a"} | encode(lit))
    assert set(found) == COMMON | {"lit"} and (found["lit"] == sample.views.rgb // 2).all()
    with pytest.raises(seqtex.UserError, match="sample b: its JSON is of 'a'"):
        sample_arrays({"__key__": "b"} | encode(lit))


def test_samples_are_batches_of_tensors_in_workers(folder):
    names = ("rgb", "position", "uv_rgb", "world_to_cam")
    braces = str(folder / "shards" / "textured-{000000..000001}.tar")
    stream = seqtex.webdataset(braces, tensors=True).to_tuple("__key__", "json", *names).batched(2)
    batches = list(DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn"))
    assert sorted(key for keys, *_ in batches for key in keys) == [sample.uid for sample in ours(folder, "textured")]
    _, metas, rgb, position, uv_rgb, world_to_cam = batches[0]
    assert metas[0]["regime"] == "textured" and uv_rgb.shape == (2, UV_SIZE, UV_SIZE, 3)
    assert rgb.shape == position.shape == (2, 4, VIEW_SIZE, VIEW_SIZE, 3)
    assert rgb.dtype == torch.uint8 and position.dtype == world_to_cam.dtype == torch.float32
    mesh = next(iter(seqtex.webdataset(braces, tensors=True)))["mesh"]
    assert mesh["faces"].dtype == torch.int32 and mesh["single_sided"].dtype == torch.bool


def test_the_decoder_decodes_every_field_alone(folder):
    (truth, *_), shard = ours(folder, "textured"), str(shards(folder, "textured")[0])
    fields = next(iter(wds.WebDataset(shard, shardshuffle=False).decode(seqtex.decoder)))
    for name, form in {"rgb": "webp", "mask": "png", "coverage": "png", "position": "png", "normal": "png"}.items():
        stored = getattr(truth.views, name)
        found = fields[f"{name}.{form}"]
        assert found.dtype == stored.dtype
        np.testing.assert_array_equal(found, stored.reshape(-1, *stored.shape[2:]))
    for name in ("position", "normal", "mask"):
        np.testing.assert_array_equal(fields[f"uv_{name}.png"], getattr(truth.uv, name))
    assert fields["json"] == truth.meta and fields["uv_opacity.png"].dtype == np.uint8
    for name in ARRAYS:
        np.testing.assert_array_equal(fields["mesh.npz"][name], getattr(truth.mesh, name))
    assert seqtex.decoder(".txt", b"1") is None and seqtex.decoder("other.png", b"") is None


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def with_member(shard: Path, name: str, data: bytes, out: Path) -> str:
    """Copy a shard, with one more member after the first sample."""
    _, fields = next(read_shard(shard))
    uid = decode(fields).uid
    with tarfile.open(out, "w") as tar:
        for extension, content in (fields | {name: data}).items():
            info = tarfile.TarInfo(f"{uid}.{extension}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(out)


@pytest.mark.parametrize("name", ["extra.pyd", "pickle", "a.pkl", "pth", "npy", "txt", "rgb.pyd.gz"])
def test_nothing_is_unpickled_and_other_fields_are_refused(folder, tmp_path, name):
    data = pickle.dumps(Bomb())
    data = gzip.compress(data) if name.endswith(".gz") else data
    shard = with_member(shards(folder, "textured")[0], name, data, tmp_path / "hostile.tar")
    with pytest.raises(seqtex.UserError, match=rf"hostile.tar: sample 000-t: unknown field '{name}'"):
        list(seqtex.webdataset(shard))
    if name not in ("npy", "txt"):
        with pytest.raises(wds.autodecode.DecodingError) as found:
            list(wds.WebDataset(shard, shardshuffle=False).decode(seqtex.decoder))
        assert "is a pickle" in str(found.value.__cause__)


def test_a_malformed_sample_is_an_error_that_a_handler_may_pass(folder, tmp_path):
    shard = shards(folder, "textured")[0]
    bad = with_member(shard, "rgb.webp", b"RIFF", tmp_path / "bad.tar")
    with pytest.raises(seqtex.UserError, match=r"bad.tar: sample 000-t: field 'rgb.webp'"):
        list(seqtex.webdataset(bad))
    with pytest.warns(UserWarning, match="rgb.webp"):
        samples = list(seqtex.webdataset([bad, shard], handler=wds.warn_and_continue))
    assert len(samples) == PER_REGIME


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("position.png", b""),
        ("position.png", b"\x89PNG\r\n\x1a\n" + b"\xff" * 64),
        ("uv_normal.png", b"\x89PNG"),
        ("mesh.npz", b"PK"),
        ("json", b"[1]"),
        ("lit.webp", b"RIFF"),
        ("uv_opacity.png", b"\x89PNG"),
    ],
)
def test_a_malformed_field_is_refused_by_name(name, data):
    with pytest.raises(ValueError, match=f"field '{name}'"):
        seqtex.decoder(f".{name}", data)


def test_names_of_positions_that_are_no_planes_are_refused(folder):
    _, fields = next(read_shard(shards(folder, "textured")[0]))
    with pytest.raises(ValueError, match="as it is written here"):
        seqtex.decoder(".position.png", fields["coverage.png"])


def test_the_function_is_public_whatever_is_imported_first():
    code = (
        "import sys, seqtex; assert callable(seqtex.decoder) and callable(seqtex.webdataset); "
        "assert not {'torch', 'webdataset'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
