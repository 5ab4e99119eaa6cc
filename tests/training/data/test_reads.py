"""Bytes that are read of shards to verify them, and that are fetched of remote ones, counted over all processes."""

import functools
import http.server
import multiprocessing
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.dataset import index_json, read_ledger, shard_path
from schemas.sample import Regime
from schemas.storage import write_file
from tests.support.small_dataset import write_dataset
from training.data import dataset_files
from training.data.datamodule import BatchStream, TextureDataModule
from training.data.dataset_files import LocalFiles, ShardError, notes_of
from training.data.mixture import DataConfig

SHARDS, STEPS = 4, 6
"""6 batches of 4 are two epochs of 4 shards of 3 samples."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reads") / "forge"
    write_dataset(out, [[(f"t{job}{i}", Regime.TEXTURED) for i in range(3)] for job in range(SHARDS)], 8, 8)
    write_file(out / "index.json", index_json(out, read_ledger(out)))
    return out


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that receives a line for every shard that any process reads to verify it."""
    path, real = tmp_path / "hashed.txt", dataset_files.require_recorded
    path.touch()

    def counted(file: object, sha256: str, size: int) -> None:
        with path.open("a") as lines:
            lines.write(f"{size}\n")
        real(file, sha256, size)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset_files, "require_recorded", counted)
    return path


def bytes_of(dataset: Path) -> int:
    return sum(shard.bytes for part in read_ledger(dataset) for shard in part.shards)


def config(location: str | Path, cache: Path, **changes: object) -> DataConfig:
    options = {"batch_size": 4, "window": SHARDS, "cache_directory": cache}
    return DataConfig(directories={str(location): 1.0}, **(options | changes))  # type: ignore[arg-type]


def consume(cfg: DataConfig, rank: int, ranks: int, seen: Path) -> None:
    module = TextureDataModule(cfg, seed=3)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=ranks, accumulate_grad_batches=1,
        overfit_batches=0,
    )  # fmt: skip
    uids = [uid for batch in islice(module.train_dataloader(), STEPS) for uid in batch.uids]
    (seen / f"{rank}").write_text("\n".join(uids))


def consume_on(ranks: int, cfg: DataConfig, seen: Path) -> list[str]:
    """Run the ranks side by side; returns the uids that came, in the order of the stream."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=consume, args=(cfg, rank, ranks, seen)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
    shares, of_each = [(seen / f"{rank}").read_text().split() for rank in range(ranks)], 4 // ranks
    return [uid for step in range(STEPS) for share in shares for uid in share[step * of_each : (step + 1) * of_each]]


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (1, 1), (2, 1), (4, 1), (0, 2), (2, 2)])
def test_a_machine_reads_each_shard_once_to_verify_it(
    dataset: Path, tmp_path: Path, hashed: Path, workers: int, ranks: int
) -> None:
    cfg = config(dataset, tmp_path / "cache", workers=workers)
    uids = consume_on(ranks, cfg, tmp_path)
    assert sum(map(int, hashed.read_text().split())) == bytes_of(dataset)
    stream = BatchStream(cfg, seed=3)
    assert uids == [uid for number in range(STEPS) for uid in stream[number].uids]


def opened(dataset: Path, cache: Path) -> list[str]:
    """The shards that a process which starts now can open."""
    files, found = LocalFiles(dataset, notes_of(cache, dataset)), []
    for shard in (shard for part in read_ledger(dataset) for shard in part.shards):
        try:
            files.open(f"shards/{shard.name}", shard.sha256, shard.bytes).close()
            found.append(shard.name)
        except ShardError as error:
            assert f"{shard.name}: damaged, its sha256 is not the recorded one" in str(error)
    return found


def test_a_shard_that_changes_after_it_was_verified_is_refused(tmp_path: Path, hashed: Path) -> None:
    out, cache = tmp_path / "forge", tmp_path / "cache"
    write_dataset(out, [[(f"t{job}", Regime.TEXTURED)] for job in range(2)], 8, 8)
    assert len(opened(out, cache)) == 2 == len(opened(out, cache)) == len(hashed.read_text().split())
    path = shard_path(out, "textured-000001.tar")
    times, data = (path.stat().st_atime_ns, path.stat().st_mtime_ns), bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=times)
    for _ in range(2):  # what was found damaged is noted nowhere
        assert opened(out, cache) == ["textured-000000.tar"]
    data[5000] ^= 4
    path.write_bytes(data)
    assert len(opened(out, cache)) == 2, "repaired"


def test_what_an_earlier_run_verified_is_verified_again(
    dataset: Path, tmp_path: Path, hashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(dataset, tmp_path)
    monkeypatch.setattr(dataset_files, "STARTED", dataset_files.STARTED + 10**6)
    opened(dataset, tmp_path)
    assert len(hashed.read_text().split()) == 2 * SHARDS


def test_notes_on_a_dataset_that_is_gone_are_removed(dataset: Path, tmp_path: Path) -> None:
    for name in ("gone", "recent"):
        (tmp_path / "verified" / name).mkdir(parents=True)
    os.utime(tmp_path / "verified" / "gone", (0, 0))
    notes_of(tmp_path, dataset)
    assert {path.name for path in (tmp_path / "verified").iterdir()} > {"recent"}
    assert not (tmp_path / "verified" / "gone").exists()


def test_without_a_place_for_notes_every_process_verifies(
    dataset: Path, tmp_path: Path, hashed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert notes_of(tmp_path / "file", dataset) is None
    consume_on(1, config(dataset, tmp_path / "file", workers=2), tmp_path)
    assert SHARDS < len(hashed.read_text().split()) <= 2 * SHARDS
    assert "every process that reads checks every shard" in caplog.text


@pytest.fixture
def server(dataset: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of the dataset on this machine, and the paths of the shards that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".tar"):
                asked.append(self.path)
            super().do_GET()

        def log_message(self, form: str, *values: object) -> None: ...

    handler = functools.partial(Handler, directory=str(dataset.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/forge", asked
        found.shutdown()


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (1, 2)])
def test_a_machine_fetches_each_remote_shard_once(
    server: tuple[str, list[str]], tmp_path: Path, workers: int, ranks: int
) -> None:
    address, asked = server
    consume_on(ranks, config(address, tmp_path / "cache", workers=workers), tmp_path)
    assert len(asked) == len(set(asked)) == SHARDS
