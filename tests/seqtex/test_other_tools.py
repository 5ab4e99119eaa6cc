"""Other tools read a dataset as it lies in its folder, and get the numbers that we get: datasets, webdataset, wids,
Pillow, OpenCV, duckdb, polars, pandas. Its samples differ in all that a sample may lack."""

import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pandas
import polars
import pytest
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

import seqtex
from pipeline.dataset.verify import verify
from schemas.codec import decode
from schemas.ledger import LEDGER_SCHEMA
from schemas.sample import Regime, TextureSample, UvMaps, Views
from schemas.shards import read_shard, write_tar
from tests.support.varied_dataset import JOBS, PER_REGIME, write_varied_dataset

WIDS_UID = 84
"""Longest uid that wids reads, and that `folder:` makes: with `.uv_position.png` 100 characters."""
regimes = pytest.mark.parametrize("regime", list(Regime), ids=str)


@pytest.fixture(scope="module")
def forge(tmp_path_factory) -> Path:
    write_varied_dataset(out := tmp_path_factory.mktemp("varied") / "forge")
    assert verify(out) == []
    return out


@pytest.fixture
def offline(monkeypatch) -> None:
    """No network, and no hub."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"asks the network for {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def shards(forge: Path, regime: Regime = Regime.TEXTURED) -> list[str]:
    return [str(path) for path in sorted((forge / "shards").glob(f"{regime}-*.tar"))]


def stored(forge: Path, regime: Regime = Regime.TEXTURED) -> dict[str, dict[str, bytes]]:
    return {uid: fields for shard in shards(forge, regime) for uid, fields in read_shard(Path(shard))}


def assert_images(found: dict[str, np.ndarray], prefix: str, maps: Views | UvMaps) -> None:
    """Compare the stored images of one kind, read by another tool, with our arrays: positions in all their 16 bits."""
    flat = (lambda image: image.reshape(-1, *image.shape[2:])) if isinstance(maps, Views) else np.asarray
    mask, position, normal = flat(maps.mask), flat(maps.position), flat(maps.normal)
    np.testing.assert_array_equal(found[f"{prefix}rgb.webp"], flat(maps.rgb))
    np.testing.assert_array_equal(found[f"{prefix}mask.png"] != 0, mask)
    planes = found[f"{prefix}position.png"]
    assert planes.dtype == np.uint16 and planes.shape == (3 * len(mask), mask.shape[1])
    values = np.moveaxis(planes.reshape(3, *mask.shape), 0, -1)
    np.testing.assert_array_equal(values, (np.rint(position * 32767.0) + 32768) * mask[..., None])
    vectors = (found[f"{prefix}normal.png"] - 128.0) * mask[..., None]
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors / np.maximum(lengths, 1), normal, atol=1e-6)


def assert_row(row: dict[str, Any], truth: TextureSample) -> None:
    """Compare a row of the `datasets` package with our decoding of the same sample."""
    images = {name: np.asarray(value) for name, value in row.items() if name.endswith((".png", ".webp"))}
    assert row["json"] == truth.meta and row["__key__"] == truth.uid
    assert_images(images, "", truth.views)
    np.testing.assert_array_equal(images["coverage.png"], truth.views.coverage.reshape(-1, truth.views.rgb.shape[2]))
    if truth.uv is not None and truth.mesh is not None:
        assert_images(images, "uv_", truth.uv)
        opacity = 255 if truth.uv.opacity is None else truth.uv.opacity
        np.testing.assert_array_equal(images["uv_opacity.png"], np.broadcast_to(opacity, truth.uv.mask.shape))
        for name in ("vertices", "normals", "uv", "faces"):
            np.testing.assert_array_equal(np.array(row["mesh.npz"][name]), getattr(truth.mesh, name))
        single_sided = row["mesh.npz"]["single_sided"]
        assert (single_sided is None) is (truth.mesh.single_sided is None)
        np.testing.assert_array_equal(single_sided, truth.mesh.single_sided)


# datasets


@regimes
def test_datasets_loads_a_regime_from_the_folder(forge, tmp_path, offline, regime):
    import datasets

    loaded = datasets.load_dataset(str(forge), str(regime), split="train", cache_dir=str(tmp_path))
    truth = {uid: decode(fields) for uid, fields in stored(forge, regime).items()}
    assert loaded["__key__"][:] == list(truth) and len(loaded) == JOBS * PER_REGIME
    for row in loaded.shuffle(seed=1):
        assert_row(row, truth[row["__key__"]])
    batches = DataLoader(loaded, batch_size=3, collate_fn=list, num_workers=2, multiprocessing_context="spawn")
    rows = [row for batch in batches for row in batch]
    assert [row["__key__"] for row in rows] == list(truth)
    assert_row(rows[2], truth[rows[2]["__key__"]])


@regimes
def test_datasets_streams_a_regime_in_workers(forge, tmp_path, offline, regime):
    import datasets

    stream = datasets.load_dataset(
        str(forge), str(regime), split="train", streaming=True, cache_dir=str(tmp_path)
    ).shuffle(seed=1, buffer_size=4)
    truth = {uid: decode(fields) for uid, fields in stored(forge, regime).items()}
    rows = list(DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn"))
    keys = [row["__key__"] for row in rows]
    assert sorted(keys) == sorted(truth) and keys != list(truth)
    for row in rows:
        assert_row(row, truth[row["__key__"]])


# webdataset


@pytest.mark.parametrize("kind", ["pil", "rgb8"])
def test_webdatasets_own_decoders_keep_colours_and_lose_positions(forge, kind):
    """They turn every image to 8-bit RGB: of a 16-bit value remains whether it is there. `seqtex.decoder` is exact."""
    raw = stored(forge)
    exact = wds.WebDataset(shards(forge), shardshuffle=False).decode(seqtex.decoder)
    for fields, ours in zip(wds.WebDataset(shards(forge), shardshuffle=False).decode(kind), exact, strict=True):
        truth = decode(raw[fields["__key__"]])
        assert fields["json"] == truth.meta
        np.testing.assert_array_equal(np.asarray(fields["uv_rgb.webp"]), truth.uv.rgb)
        np.testing.assert_array_equal(np.asarray(fields["rgb.webp"]), ours["rgb.webp"])
        np.testing.assert_array_equal(np.asarray(fields["mask.png"])[..., 0], 255 * ours["mask.png"].astype(np.uint8))
        lost = np.asarray(fields["uv_position.png"])
        assert lost.dtype == np.uint8 and set(np.unique(lost)) == {0, 255}
        np.testing.assert_array_equal(ours["uv_position.png"], truth.uv.position)
        np.testing.assert_array_equal(ours["uv_normal.png"], truth.uv.normal)


def test_shards_are_what_webdatasets_writer_writes(forge):
    """Also with uids that need a tar header of their own."""
    for regime in Regime:
        for shard in shards(forge, regime):
            again = io.BytesIO()
            with wds.TarWriter(again, encoder=False, mtime=0, user="", group="", mode=0o644) as writer:
                for uid, fields in read_shard(Path(shard)):
                    writer.write({"__key__": uid, **fields})
            assert again.getvalue() == Path(shard).read_bytes()
            assert write_tar(io.BytesIO(), read_shard(Path(shard))) == PER_REGIME
    assert max(map(len, stored(forge))) == 200


# images


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def opencv(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return image[..., ::-1] if image.ndim == 3 else image  # OpenCV has BGR


@pytest.mark.parametrize("read", [pillow, opencv])
def test_images_are_read_to_the_last_bit(forge, read):
    for fields in stored(forge).values():
        truth = decode(fields)
        images = {name: read(data) for name, data in fields.items() if name.endswith((".png", ".webp"))}
        assert_images(images, "", truth.views)
        assert_images(images, "uv_", truth.uv)


# wids


def test_wids_reads_the_index(tmp_path):
    import wids

    samples = write_varied_dataset(tmp_path / "forge", longest_uid=WIDS_UID)
    assert max(map(len, samples)) == WIDS_UID

    def ours(sample: dict[str, Any]) -> dict[str, Any]:
        return {name: seqtex.decoder(name, v.read()) if name[0] == "." else v for name, v in sample.items()}

    index = str(tmp_path / "forge" / "index.json")
    loaded = wids.ShardListDataset(index, cache_dir=str(tmp_path / "cache"), transformations=[ours])
    assert len(loaded) == len(samples) == 2 * JOBS * PER_REGIME
    assert {loaded[number]["__key__"] for number in range(len(loaded))} == set(samples)
    for number in (len(loaded) - 1, 0, PER_REGIME):
        sample = loaded[number]
        truth = samples[sample["__key__"]]
        assert sample[".json"] == truth.meta
        np.testing.assert_array_equal(sample[".mask.png"], truth.views.mask.reshape(-1, truth.views.mask.shape[2]))
        assert abs(sample[".position.png"] - truth.views.position.reshape(sample[".position.png"].shape)).max() < 2e-5
    loaded.close()


# tables


def test_tables_are_read_by_duckdb_polars_and_pandas(forge):
    ledger = seqtex.Dataset(forge).ledger()
    for place, columns in (("ledger", LEDGER_SCHEMA.names), ("plan.parquet", None), ("attribution.parquet", None)):
        path = forge / place
        names = str(path / "*.parquet" if path.is_dir() else path)
        read = [
            pandas.read_parquet(path).to_dict("list"),
            polars.read_parquet(names).to_dict(as_series=False),
            duckdb.sql(f"SELECT * FROM '{names}'").to_arrow_table().to_pydict(),
        ]
        assert read[0].keys() == read[1].keys() == read[2].keys()
        assert all(found["uid"] == read[0]["uid"] and len(found["uid"]) == len(ledger) for found in read)
        assert read[1] == read[2], "with None where a value is missing; pandas has NaN"
        if columns:
            assert read[1] == ledger.to_pydict() and list(read[1]) == columns


# the card


def blocks(card: str) -> Iterator[str]:
    return iter(re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL))


@regimes
def test_the_code_of_the_card_reads_the_dataset(forge, tmp_path, offline, monkeypatch, regime):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    out = forge
    if regime is Regime.MV_ONLY:
        write_varied_dataset(out := tmp_path / "forge", regimes=(regime,))
    names: dict[str, Any] = {}
    for block in blocks((out / "README.md").read_text()):
        exec(block.replace("PATH", str(out)), names)
    fields = stored(out, regime)
    assert [row["__key__"] for row in names["dataset"]] == list(fields)
    last = decode(list(fields.values())[-1])
    assert names["meta"] == last.meta
    np.testing.assert_array_equal(names["rgb"], last.views.rgb.reshape(names["rgb"].shape))
    np.testing.assert_allclose(names["position"].reshape(last.views.position.shape), last.views.position, atol=1e-7)
    assert len(names["ledger"]) == seqtex.Dataset(out).ledger().num_rows
