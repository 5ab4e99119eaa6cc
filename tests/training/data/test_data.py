import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.dataset import read_ledger, shard_path
from schemas.errors import UserError
from schemas.sample import Regime
from tests.support.small_dataset import UV_SIZE, VIEW_SIZE, small_sample, write_dataset
from training.data.batch import Batch, LatentBatch, encode_batch, join, to_model
from training.data.datamodule import BatchStream, TextureDataModule
from training.data.mixture import DataConfig, image_sizes
from training.data.order import SampleOrder, Schedule
from training.diffusion.encoders import DctCodec
from training.diffusion.latents import uv_to_image, uv_to_model

TEXTURED = [(f"t{i}", Regime.TEXTURED) for i in range(6)]
MV_ONLY = [(f"m{i}", Regime.MV_ONLY) for i in range(4)]
CFG = {"batch_size": 4, "mv_only_ratio": 0.4, "window": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [TEXTURED[:3] + MV_ONLY[:2], TEXTURED[3:5] + MV_ONLY[2:], TEXTURED[5:]])
    return out


def config(dataset: Path, **changes: object) -> DataConfig:
    return DataConfig(directory=dataset, **(CFG | {"keep_latents": False} | changes))


def test_uv_maps_are_flipped_on_the_way_in_and_back_on_the_way_out() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[0, :, 0] = 255  # the row at v = 1 is red
    image[3, 2] = (10, 20, 30)
    tensor = uv_to_model(image)
    assert tensor.shape == (1, 4, 6, 3)
    assert tensor[0, 3, :, 0].tolist() == [1.0] * 6  # and the last one for the model
    assert torch.equal(tensor[0, 0, 2], torch.tensor([10.0, 20.0, 30.0]) / 255)
    assert np.array_equal(uv_to_image(tensor), image)


def test_a_sample_for_the_model_is_the_stored_one_with_flipped_uv_maps() -> None:
    sample = small_sample("a", Regime.TEXTURED, 1)
    assert sample.uv is not None
    batch = to_model(sample)
    assert batch.uv is not None
    assert np.array_equal(batch.mv.position[0].numpy(), sample.views.position)
    assert np.array_equal(batch.mv.rgb[0].numpy(), sample.views.rgb.astype(np.float32) / 255)
    for name in ("rgb", "position", "normal"):
        stored = getattr(sample.uv, name)
        stored = stored.astype(np.float32) / 255 if name == "rgb" else stored
        assert np.array_equal(getattr(batch.uv, name)[0, 0].numpy(), stored[::-1])
        assert not np.array_equal(stored, stored[::-1])


def test_batches_have_one_regime_and_every_sample_comes_once_per_epoch(dataset: Path) -> None:
    stream = BatchStream(config(dataset), seed=1)
    seen: dict[Regime, list[str]] = {regime: [] for regime in Regime}
    for number in range(60):
        batch = stream[number]
        assert isinstance(batch, Batch)
        assert {uid[0] for uid in batch.uids} == {"t" if batch.regime is Regime.TEXTURED else "m"}
        assert (batch.uv is None) == (batch.regime is Regime.MV_ONLY)
        assert batch.samples == tuple(range(4 * number, 4 * number + 4))
        seen[batch.regime] += batch.uids
    for regime, everyone in ((Regime.TEXTURED, TEXTURED), (Regime.MV_ONLY, MV_ONLY)):
        size = len(everyone)
        epochs = [seen[regime][i : i + size] for i in range(0, len(seen[regime]) - size + 1, size)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == sorted(uid for uid, _ in everyone) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_is_a_function_of_seed_and_number_alone(dataset: Path) -> None:
    forward = [BatchStream(config(dataset), seed=1)[n] for n in range(12)]
    stream = BatchStream(config(dataset), seed=1)
    for number in (11, 3, 7, 0):
        assert stream[number].uids == forward[number].uids
        assert torch.equal(stream[number].mv.rgb, forward[number].mv.rgb)
    other = BatchStream(config(dataset), seed=2)
    assert [other[n].uids for n in range(12)] != [batch.uids for batch in forward]


def test_ranks_share_a_global_batch(dataset: Path) -> None:
    whole = BatchStream(config(dataset), seed=1)
    halves = [BatchStream(config(dataset), seed=1, rank=rank, ranks=2) for rank in range(2)]
    for number in range(8):
        parts = [half[number] for half in halves]
        assert parts[0].uids + parts[1].uids == whole[number].uids
        assert parts[0].samples + parts[1].samples == whole[number].samples
        assert parts[0].regime is parts[1].regime
    with pytest.raises(UserError, match="batch_size 4 does not divide among 3 ranks"):
        BatchStream(config(dataset), seed=1, rank=0, ranks=3)


def test_regime_ratio_over_2000_draws() -> None:
    schedule = Schedule(seed=9, mv_only_ratio=0.3)
    draws = [schedule(number) for number in range(2000)]
    count = sum(regime is Regime.MV_ONLY for regime, _ in draws)
    assert abs(count - 600) < 2.576 * (2000 * 0.3 * 0.7) ** 0.5
    for regime in Regime:
        assert [earlier for r, earlier in draws if r is regime] == list(range(sum(r is regime for r, _ in draws)))
    assert Schedule(seed=9, mv_only_ratio=0.3)(9000) == schedule(9000)


def test_samples_are_shuffled_within_a_window_of_shards() -> None:
    counts = (5, 3, 4, 2, 6)
    order = SampleOrder(counts, seed=1, window=2)
    places = [order(position) for position in range(20)]
    assert sorted(places) == [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    windows = [shard for shard, _ in itertools.groupby(places, key=lambda place: place[0])]
    first, second = set(windows[:2]), {shard for shard, _ in places if shard not in windows[:2]}
    assert len(first) == 2
    assert {shard for shard, _ in places[: sum(counts[shard] for shard in first)]} == first
    assert len(second) == 3


def test_latents_are_made_once_and_equal_those_of_the_batch(dataset: Path) -> None:
    class CountingCodec(DctCodec):
        calls = 0

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().encode(images)

    codec, counting = DctCodec(), CountingCodec()
    kept = BatchStream(config(dataset, keep_latents=True), seed=1, codec=counting)
    plain = BatchStream(config(dataset), seed=1)
    for number in range(12):
        ours, theirs = kept[number], encode_batch(plain[number], codec)
        assert isinstance(ours, LatentBatch)
        assert ours.uids == theirs.uids
        assert torch.allclose(ours.mv.rgb, theirs.mv.rgb, atol=1e-5)
        assert torch.allclose(ours.mv.geometry, theirs.mv.geometry, atol=1e-5)
    assert counting.calls == 3 * (2 * len(TEXTURED) + len(MV_ONLY)), "colour, position and normal of each branch"


def test_position_maps_enter_the_codec_mapped_to_unit_range() -> None:
    batch = to_model(small_sample("a", Regime.TEXTURED, 1))
    latents, codec = encode_batch(batch, DctCodec()), DctCodec()
    assert latents.uv is not None
    assert latents.uv.geometry.shape == (1, 32, 1, UV_SIZE // 8, UV_SIZE // 8)
    expected = codec.encode((batch.mv.position + 1) / 2)
    assert torch.equal(latents.mv.geometry[:, :16], expected)
    background = codec.encode(torch.full((1, 1, 8, 8, 3), 0.5))[0, :, 0, 0, 0]
    assert torch.allclose(latents.mv.geometry[0, :16, 0, 0, 0], background, atol=1e-5)


def test_resolution_and_views_are_read_from_the_samples(dataset: Path) -> None:
    sizes = image_sizes(dataset)
    assert (sizes.views, sizes.view_resolution, sizes.uv_resolution) == (4, VIEW_SIZE, UV_SIZE)


def test_samples_of_two_resolutions_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [TEXTURED[:2]])
    small = to_model(small_sample("small", Regime.TEXTURED, 1, view_size=16))
    with pytest.raises(UserError, match=r"samples small, big differ .* one resolution"):
        join([small, to_model(small_sample("big", Regime.TEXTURED, 1))])


def test_a_shard_that_no_ledger_part_names_is_not_read(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, [TEXTURED[:1], TEXTURED[1:2]])
    (tmp_path / "ledger" / "000001.parquet").unlink()
    assert (tmp_path / "shards" / "textured-000001.tar").is_file()
    stream = BatchStream(config(tmp_path), seed=0)
    assert {uid for number in range(10) for uid in stream[number].uids} == {"t0"}


@pytest.mark.parametrize("damage", ["cut at a member", "one bit", "missing"])
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    write_dataset(tmp_path, [TEXTURED[:3]])
    path = shard_path(tmp_path, "textured-000000.tar")
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "one bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[:10240] + bytes(1024))
    with pytest.raises(UserError, match=r"textured-000000\.tar.*seqtex repair"):
        BatchStream(config(tmp_path), seed=0)[0]


def test_a_shard_with_a_pickle_in_it_runs_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path, [TEXTURED[:1]])
    (part,) = read_ledger(tmp_path)
    path = shard_path(tmp_path, part.shards[0].name)
    forged = path.read_bytes().replace(b"t0.rgb.webp", b"t0.evil.pyd")
    path.write_bytes(forged)
    stream = BatchStream(config(tmp_path), seed=0)
    record = part.shards[0]
    honest_sum = type(record)(
        name=record.name,
        regime=record.regime,
        sha256=hashlib.sha256(forged).hexdigest(),
        bytes=len(forged),
        count=1,
    )
    stream.sources[Regime.TEXTURED][0].reader.shards = (honest_sum,)
    with pytest.raises(UserError, match=r"textured-000000\.tar"):
        stream[0]


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset"):
        BatchStream(config(tmp_path), seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_goes_on_where_its_state_says(dataset: Path, workers: int) -> None:
    cfg = config(dataset, workers=workers)
    whole = TextureDataModule(cfg, seed=3)
    batches = list(itertools.islice(whole.train_dataloader(), 6))
    whole.consumed(batches[2])
    assert whole.state_dict() == {"consumed_samples": 12}
    resumed = TextureDataModule(config(dataset, workers=workers, keep_latents=True), seed=3, codec=DctCodec())
    resumed.load_state_dict(whole.state_dict())
    again = list(itertools.islice(resumed.train_dataloader(), 3))
    assert [batch.uids for batch in again] == [batch.uids for batch in batches[3:]]
    assert [batch.number for batch in again] == [3, 4, 5]


@pytest.mark.parametrize("entries", [TEXTURED[:2], MV_ONLY[:2], [*TEXTURED[:2], MV_ONLY[0]]])
def test_one_shard_is_enough_for_any_number_of_ranks_and_workers(
    tmp_path: Path, entries: list[tuple[str, Regime]]
) -> None:
    """Ranks and workers share samples, not shards: none waits, and the ratio is as asked."""
    write_dataset(tmp_path / "data", [entries])
    cfg = config(tmp_path / "data")
    alone = BatchStream(cfg, seed=1)
    whole = [alone[number] for number in range(12)]
    ranks = [[BatchStream(cfg, seed=1, rank=rank, ranks=4)[number] for rank in range(4)] for number in range(12)]
    for batch, shares in zip(whole, ranks, strict=True):
        assert batch.uids == tuple(uid for share in shares for uid in share.uids)
        assert {share.regime for share in shares} == {batch.regime}
    data = TextureDataModule(config(tmp_path / "data", workers=3), seed=1)
    for batch, expected in zip(itertools.islice(data.train_dataloader(), 12), whole, strict=True):
        assert (batch.uids, batch.number) == (expected.uids, expected.number)
    kinds = {regime for _, regime in entries}
    assert {batch.regime for batch in whole} == kinds
    shares = np.mean([alone.schedule(number)[0] is Regime.MV_ONLY for number in range(2000)])
    wanted = 0.4 if len(kinds) == 2 else float(Regime.MV_ONLY in kinds)
    assert abs(shares - wanted) < 0.03


@pytest.mark.parametrize(
    ("shards", "window", "same_shard", "correlation", "distinct"),
    [(64, 16, 0.0635, 0.029, 10.3), (64, 64, 0.0156, 0.0, 14.2), (64, 1, 0.998, 0.998, 1.0), (4, 16, 0.251, 0.0, 4.0)],
)
def test_the_shuffle_is_as_good_as_the_guide_has_it(
    shards: int, window: int, same_shard: float, correlation: float, distinct: float
) -> None:
    """Neighbours of the stream: how often they share a shard, and the correlation of their places in the dataset."""
    found = []
    for seed in range(3):
        order = SampleOrder((512,) * shards, seed, window)
        places = np.array([order(position) for position in range(512 * shards)])
        at, batches = places @ [512, 1], places[:, 0].reshape(-1, 16)
        corr = np.corrcoef(at[1:], at[:-1])[0, 1]
        found.append((np.mean(np.diff(places[:, 0]) == 0), corr, np.mean([len(set(row)) for row in batches])))
    measured = np.mean(found, axis=0)
    assert abs(measured[0] - same_shard) < 0.005 and abs(measured[1] - correlation) < 0.03
    assert abs(measured[2] - distinct) < 0.1
