"""Mixtures of datasets, their order, and what happens when shards are bad."""

import io
import itertools
import json
import os
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from lightning.pytorch.strategies import SingleDeviceStrategy

from schemas.dataset import DatasetInfo, dataset_json, shard_path
from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from schemas.shards import ShardFile
from schemas.storage import write_file
from tests.support.small_dataset import write_dataset
from training.data.datamodule import BatchStream, TextureDataModule
from training.data.latent_shards import LatentDecoder, codec_header
from training.data.mixture import DataConfig, decode_pixels
from training.data.order import SampleOrder, WeightedDraws
from training.diffusion.encoders import DctCodec
from training.diffusion.tasks import TaskConfig, draw_task

Z99 = 2.576


def textured(prefix: str, count: int) -> list[tuple[str, Regime]]:
    return [(f"{prefix}{i}", Regime.TEXTURED) for i in range(count)]


def mv_only(prefix: str, count: int) -> list[tuple[str, Regime]]:
    return [(f"{prefix}m{i}", Regime.MV_ONLY) for i in range(count)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """a: 7 textured samples in three shards; b: 3 textured and 2 multi-view-only ones."""
    root = tmp_path_factory.mktemp("pair")
    write_dataset(root / "a", [textured("a", 3), textured("aa", 2), textured("aaa", 2)], 8, 8)
    write_dataset(root / "b", [textured("b", 3) + mv_only("b", 2)], 8, 8)
    return root / "a", root / "b"


def config(weights: dict[Path, float], **changes: object) -> DataConfig:
    options = {"batch_size": 6, "mv_only_ratio": 0.4, "window": 2, "keep_latents": False}
    return DataConfig(directories={str(path): weight for path, weight in weights.items()}, **(options | changes))


def one(path: Path, **changes: object) -> DataConfig:
    return config({path: 1.0}, **changes)


def uids(cfg: DataConfig, numbers: range, seed: int = 1) -> list[tuple[str, ...]]:
    stream = BatchStream(cfg, seed=seed)
    return [stream[number].uids for number in numbers]


@pytest.mark.parametrize("weights", [(1.0,), (0.2, 0.8), (3.0, 1.0, 2.0)])
def test_draws_count_what_came_before_and_keep_their_shares(weights: tuple[float, ...]) -> None:
    draws = WeightedDraws((4, 1), weights)
    kinds = [draws(number) for number in range(9000)]
    seen = Counter[int]()
    for kind, earlier in kinds:
        assert earlier == seen[kind]
        seen[kind] += 1
    for kind, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(seen[kind] - 9000 * share) <= Z99 * (9000 * share * (1 - share)) ** 0.5
    late = WeightedDraws((4, 1), weights)  # as after a resume
    assert [late(number) for number in (8999, 4095, 4096, 0)] == [kinds[number] for number in (8999, 4095, 4096, 0)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_comes_once_per_epoch_of_its_dataset(pair: tuple[Path, Path], ranks: int, workers: int) -> None:
    # fewer shards than processes: 4 of them for up to 6
    cfg = config(dict(zip(pair, (0.7, 0.3), strict=True)), workers=workers)
    steps = 12 if workers else 24
    seen: dict[tuple[str, Regime], list[tuple[int, str]]] = {}
    for rank in range(ranks):
        module = TextureDataModule(cfg, seed=3)
        ranked = {"global_rank": rank, "world_size": ranks, "strategy": SingleDeviceStrategy()}
        module.trainer = type("Ranks", (), ranked | {"accumulate_grad_batches": 1, "overfit_batches": 0})()
        batches = iter(module.train_dataloader())
        for _ in range(steps):
            batch = next(batches)
            assert len(batch.uids) == 6 // ranks
            for uid, number in zip(batch.uids, batch.samples, strict=True):
                seen.setdefault((uid[0], batch.regime), []).append((number, uid))
    sizes = {("a", Regime.TEXTURED): 7, ("b", Regime.TEXTURED): 3, ("b", Regime.MV_ONLY): 2}
    assert seen.keys() == sizes.keys()
    for key, size in sizes.items():
        order = [uid for _, uid in sorted(seen[key])]
        assert len(order) > size
        for start in range(0, len(order) - size + 1, size):
            assert len(set(order[start : start + size])) == size


def test_weights_decide_the_share_of_each_dataset(pair: tuple[Path, Path]) -> None:
    names = [
        uid[0] for batch in uids(config({pair[0]: 1.0, pair[1]: 3.0}, mv_only_ratio=0.0), range(100)) for uid in batch
    ]
    assert abs(names.count("b") - 450) <= Z99 * (600 * 0.75 * 0.25) ** 0.5
    with pytest.raises(UsageError, match="weight above 0"):
        config({pair[0]: 0.0})


def test_the_first_of_several_datasets_keeps_its_own_order(pair: tuple[Path, Path]) -> None:
    alone = [uid for batch in uids(one(pair[0]), range(10)) for uid in batch]
    mixed = [uid for batch in uids(config(dict.fromkeys(pair, 1.0), mv_only_ratio=0.0), range(15)) for uid in batch]
    assert [uid for uid in mixed if uid[0] == "a"] == alone[: sum(uid[0] == "a" for uid in mixed)]


def test_ranks_and_turns_divide_the_same_global_batch(pair: tuple[Path, Path]) -> None:
    cfg = config(dict.fromkeys(pair, 1.0))
    whole = BatchStream(cfg, seed=2)
    shares = [BatchStream(cfg, seed=2, rank=rank, ranks=2, accumulate_grad_batches=3) for rank in range(2)]
    for number in range(6):
        parts = [share[3 * number + turn] for share in shares for turn in range(3)]
        assert {part.number for part in parts} == {number}
        assert sum((part.uids for part in parts), ()) == whole[number].uids
        assert sum((part.samples for part in parts), ()) == whole[number].samples
    with pytest.raises(UserError, match="among 2 ranks by 2 accumulated batches"):
        BatchStream(cfg, seed=2, ranks=2, accumulate_grad_batches=2)


def test_elastic_ranks_see_one_stream(pair: tuple[Path, Path]) -> None:
    """1 rank, then 2, then 1, at a constant global batch."""
    cfg = config(dict.fromkeys(pair, 1.0))
    module, seen = TextureDataModule(cfg, seed=5), []
    for ranks, steps in ((1, 4), (2, 5), (1, 3)):
        state, module = module.state_dict(), TextureDataModule(cfg, seed=5)
        module.load_state_dict(state)
        streams = [BatchStream(cfg, seed=5, rank=rank, ranks=ranks) for rank in range(ranks)]
        for _ in range(steps):
            number = module.consumed_samples // cfg.batch_size
            parts = [stream[number] for stream in streams]
            seen.append(sum((part.uids for part in parts), ()))
            module.consumed(parts[0])
    assert seen == uids(cfg, range(12), seed=5)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Three shards of four samples, the middle one with a bit flipped."""
    write_dataset(tmp_path / "d", [textured("x", 4), textured("y", 4), textured("z", 4)], 8, 8)
    damage(shard_path(tmp_path / "d", "textured-000001.tar"), "bit")
    return tmp_path / "d"


@pytest.mark.parametrize("how", ["bit", "missing"])
def test_a_bad_shard_is_passed_over_within_the_budget_and_named(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path / "d", [textured("x", 4), textured("y", 4), textured("z", 4)], 8, 8)
    good = uids(one(tmp_path / "d"), range(20))
    damage(shard_path(tmp_path / "d", "textured-000001.tar"), how)
    module = TextureDataModule(one(tmp_path / "d", skip_budget=1), seed=1)
    batches = iter(module.train_dataloader())
    for expected in good:
        batch = next(batches)
        module.consumed(batch)
        assert len(batch.uids) == len(expected) == 6  # never short
        for uid, wanted in zip(batch.uids, expected, strict=True):
            assert uid == wanted or (wanted[0] == "y" and uid[0] in "xz")  # the others stay where they were
    assert [name.rpartition("/")[2] for name in module.budget.skipped] == ["textured-000001.tar"]
    messages = [record.message for record in caplog.records if "skipped" in record.message]
    assert len(messages) == 1 and "1 of at most 1" in messages[0] and "textured-000001.tar" in messages[0]


def test_more_bad_shards_than_the_budget_end_the_run(damaged: Path) -> None:
    with pytest.raises(UserError, match=r"textured-000001\.tar.*more than data\.skip_budget, 0"):
        uids(one(damaged), range(4))
    shard_path(damaged, "textured-000000.tar").unlink()
    with pytest.raises(UserError, match=r"shards skipped: 2, more than data\.skip_budget, 1"):
        uids(one(damaged, skip_budget=1), range(4))
    shard_path(damaged, "textured-000002.tar").unlink()
    with pytest.raises(UserError, match="none of its textured shards can be read"):
        uids(one(damaged, skip_budget=3), range(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_s_fault_is_told_in_one_line(damaged: Path, workers: int) -> None:
    module = TextureDataModule(one(damaged, workers=workers), seed=1)
    with pytest.raises(UserError) as caught:
        list(itertools.islice(module.train_dataloader(), 4))
    assert "textured-000001.tar" in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_stand_in_is_the_same_for_every_rank_and_order_of_asking(damaged: Path) -> None:
    cfg = one(damaged, skip_budget=1)
    whole = uids(cfg, range(12))
    halves = [BatchStream(cfg, seed=1, rank=rank, ranks=2) for rank in range(2)]
    for number in (11, 0, 5, 3, 7, 2):
        assert halves[0][number].uids + halves[1][number].uids == whole[number]


def test_stand_ins_come_from_the_same_window_first() -> None:
    order = SampleOrder((4, 4, 4, 4, 4, 4), seed=3, window=2)
    for position in (0, 9, 23, 40):
        epoch, within = divmod(position, 24)
        window = {order(24 * epoch + 8 * (within // 8) + i) for i in range(8)}
        stand_ins = list(order.replacements(position))
        assert set(stand_ins[:8]) == window
        assert set(stand_ins[8:]) == {(shard, i) for shard in range(6) for i in range(4)}
        assert stand_ins == list(SampleOrder((4, 4, 4, 4, 4, 4), seed=3, window=2).replacements(position))


def test_datasets_that_do_not_mix_are_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "small", [textured("s", 2)], 8, 8)
    write_dataset(tmp_path / "big", [textured("b", 2)], 16, 8)
    cfg = config({tmp_path / "small": 1.0, tmp_path / "big": 1.0})
    with pytest.raises(UserError, match=r"big.*small.*differ in views or resolution"):
        uids(cfg, range(8))
    for name, resolution, rig in (("small", 8, {"kind": "seqtex4"}), ("big", 16, {"kind": "seqtex4"})):
        build = {"views": {"resolution": resolution}, "rig": rig | {"jitter_azimuth_deg": float(resolution)}}
        info = DatasetInfo(config=build, plan_sha256="", planned=2, jobs=1)
        write_file(tmp_path / name / "dataset.json", dataset_json(info))
    with pytest.raises(UserError, match=r"small and .*big do not mix: views\.resolution is 8 and 16"):
        BatchStream(cfg, seed=0)


RANKS, STEPS = 2, 400


def uneven_rank(rank: int, meeting: str, cfg: DataConfig, out: Path) -> None:
    """One of two processes that meet after every batch."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    stream, rows = BatchStream(cfg, seed=8, rank=rank, ranks=RANKS), []
    for number in range(STEPS):
        batch = stream[number]
        task = draw_task(TaskConfig(), batch.regime, 8, batch.number).name
        told = [None] * RANKS
        torch.distributed.all_gather_object(told, (number, task, len(batch.uids)))
        assert len(set(told)) == 1
        rows.append([batch.regime, task, batch.uids])
    (out / f"{rank}.json").write_text(json.dumps(rows))


def test_uneven_data_hangs_no_rank(pair: tuple[Path, Path], damaged: Path, tmp_path: Path) -> None:
    """2 ranks; three shards of which one is corrupt, and a second dataset that is exhausted again and again."""
    cfg = config({damaged: 0.9, pair[1]: 0.1}, skip_budget=1)
    torch.multiprocessing.start_processes(
        uneven_rank, (str(tmp_path / "meeting"), cfg, tmp_path), RANKS, start_method="fork"
    )
    rows = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert [len(each) for each in rows] == [STEPS] * RANKS
    seen = [uid for each in rows for _, _, batch in each for uid in batch]
    assert len(seen) == 6 * STEPS and not any(uid[0] == "y" for uid in seen)
    assert seen.count("b0") > 10
    counts = Counter(regime for regime, _, _ in rows[0])
    assert abs(counts[Regime.MV_ONLY] - 0.4 * STEPS) <= Z99 * (STEPS * 0.24) ** 0.5
    for regime, weights in ((Regime.TEXTURED, TaskConfig().textured), (Regime.MV_ONLY, TaskConfig().mv_only)):
        tasks = Counter(task for found, task, _ in rows[0] if found == regime)
        for name, weight in weights.items():
            share = weight / sum(weights.values())
            spread = (counts[regime] * share * (1 - share)) ** 0.5
            assert abs(tasks[name] - counts[regime] * share) <= Z99 * spread


def test_the_order_of_an_epoch_does_not_depend_on_how_it_is_written() -> None:
    """The order of released seeds: shards by one permutation, then each window by its own, of one generator."""
    counts, order = (3, 1, 2), SampleOrder((3, 1, 2), seed=6, window=2)
    for epoch in range(3):
        rng = np.random.default_rng((6, epoch))
        shards, expected = rng.permutation(3), []
        for start in (0, 2):
            places = [(shard, i) for shard in shards[start : start + 2] for i in range(counts[shard])]
            expected += rng.permutation(np.array(places)).tolist()
        assert [list(order(6 * epoch + i)) for i in range(6)] == expected


def tar_of(path: Path, members: list[tuple[str, bytes, bytes]]) -> Path:
    """Members: name, type, content."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


FILE = tarfile.REGTYPE
HOSTILE = {
    "a path as a key": [("../../evil.json", FILE, b"{}")],
    "an absolute path": [("/tmp/evil.json", FILE, b"{}")],
    "no extension": [("evil", FILE, b"{}")],
    "no key": [(".json", FILE, b"{}")],
    "a link": [("a.json", tarfile.SYMTYPE, b"")],
    "a hard link": [("a.json", tarfile.LNKTYPE, b"")],
    "a device": [("a.json", tarfile.CHRTYPE, b"")],
    "a folder": [("a.json", tarfile.DIRTYPE, b"")],
    "a field twice": [("a.json", FILE, b"{}"), ("a.json", FILE, b"[]")],
    "a sample in two places": [("a.json", FILE, b"{}"), ("b.json", FILE, b"{}"), ("a.rgb.webp", FILE, b"")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_shard_is_refused_before_anything_is_decoded(
    tmp_path: Path, members: list[tuple[str, bytes, bytes]]
) -> None:
    with pytest.raises(ValueError, match="member"):
        ShardFile(tar_of(tmp_path / "shard.tar", members).open("rb"))


def test_members_larger_than_their_shard_take_no_memory(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "shard.tar", [("a.json", FILE, b"{}")])
    data = bytearray(path.read_bytes())
    data[124:136] = b"%011o\0" % (1 << 32)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match="whole"):
        ShardFile(path.open("rb"))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def header(kind: bytes, size: int) -> bytes:
    """The header before a member that holds its name or attributes, and declares a size of them."""
    info = tarfile.TarInfo("a.json")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_take_no_memory_for_what_they_declare_and_have_an_end(tmp_path: Path, kind: bytes) -> None:
    """`tarfile` takes memory for their size first, and reads one within the other."""
    path = tmp_path / "shard.tar"
    for size in (1 << 20, 1 << 40, 1 << 62, 1 << 80, -1024):
        path.write_bytes(header(kind, size) + bytes(10_240))
        with pytest.raises(ValueError, match="declares"):
            ShardFile(path.open("rb"))
    path.write_bytes(2_000 * (header(kind, 11) + b"11 foo=bar\n".ljust(512, b"\0")) + bytes(1024))
    with pytest.raises(ValueError, match="without end"):
        ShardFile(path.open("rb"))


def test_a_shard_cut_off_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "shard.tar", [("a.json", FILE, bytes(50_000))])
    shard = ShardFile(path.open("rb"))
    os.truncate(path, 10_000)
    with pytest.raises(ValueError, match="cut off"):
        shard[0]["json"]


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "npy", "npz", "yaml", "sh", "rgb.webp.pkl"])
def test_what_would_run_elsewhere_is_no_field_of_a_sample(tmp_path: Path, extension: str) -> None:
    canary = tmp_path / "ran"
    attack = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    shard = ShardFile(tar_of(tmp_path / "shard.tar", [(f"a.{extension}", FILE, attack)]).open("rb"))
    assert shard.uids == ["a"]
    for decode in (decode_pixels, LatentDecoder(codec_header(DctCodec()), None, with_variance=True, images=("hint",))):
        with pytest.raises(ValueError, match="field"):
            decode(shard[0])
    assert not canary.exists()
