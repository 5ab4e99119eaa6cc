"""Datasets behind addresses, and the cache that their shards pass through."""

import functools
import hashlib
import http.server
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from schemas.dataset import index_json, read_ledger, shard_path
from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from schemas.storage import write_file
from tests.support.small_dataset import write_dataset
from training.data import dataset_files as storage
from training.data.datamodule import BatchStream, TextureDataModule
from training.data.dataset_files import FileCache, ShardError
from training.data.mixture import DataConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("remote") / "forge"
    write_dataset(out, [[(f"t{job}{i}", Regime.TEXTURED) for i in range(3)] for job in range(3)], 8, 8)
    write_file(out / "index.json", index_json(out, read_ledger(out)))
    return out


@pytest.fixture
def server(dataset: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of the dataset on this machine, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form: str, *values: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(dataset.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/forge", asked
        found.shutdown()


def config(location: str | Path, cache: Path, **changes: object) -> DataConfig:
    options = {"batch_size": 3, "keep_latents": False, "cache_directory": cache}
    return DataConfig(directories={str(location): 1.0}, **(options | changes))


def uids(cfg: DataConfig, batches: int = 6) -> list[tuple[str, ...]]:
    stream = BatchStream(cfg, seed=1)
    return [stream[number].uids for number in range(batches)]


def cached(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (cache / "files").iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_behind_http_reads_like_one_on_disk(
    dataset: Path, server: tuple[str, list[str]], tmp_path: Path, workers: int
) -> None:
    address, asked = server
    module = TextureDataModule(config(address, tmp_path, workers=workers), seed=1)
    batches = islice(module.train_dataloader(), 6)
    assert [batch.uids for batch in batches] == uids(config(dataset, tmp_path))
    shards = {shard.sha256: shard.bytes for part in read_ledger(dataset) for shard in part.shards}
    assert cached(tmp_path) == shards
    fetched = [path for path in asked if path.endswith(".tar")]
    assert len(fetched) >= 3
    asked.clear()
    uids(config(address, tmp_path))
    assert not [path for path in asked if path.endswith(".tar")]  # all of them lie in the cache


def test_other_addresses_of_fsspec(dataset: Path, tmp_path: Path) -> None:
    expected = uids(config(dataset, tmp_path))
    assert uids(config(f"file://{dataset}", tmp_path / "1")) == expected
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/forge", recursive=True)
    assert uids(config("memory://forge", tmp_path / "2")) == expected
    memory.rm("/forge", recursive=True)


def test_addresses_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"memory://nothing: no index\.json"):
        uids(config("memory://nothing", tmp_path))
    with pytest.raises(UserError, match=r"nosuch://bucket/index\.json: cannot be read \(Protocol not known"):
        uids(config("nosuch://bucket", tmp_path))
    with pytest.raises(UsageError, match=r"data\.directories"):
        DataConfig(directory=Path("s3://bucket/forge"))


def test_a_remote_shard_that_is_another_one_is_passed_over(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    path = shard_path(copy, "textured-000001.tar")
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes(data)
    shard_path(copy, "textured-000002.tar").unlink()
    with pytest.raises(UserError, match=r"textured-00000[12]\.tar.*skip_budget, 0"):
        uids(config(f"file://{copy}", tmp_path / "cache"))
    batches = uids(config(f"file://{copy}", tmp_path / "cache", skip_budget=2))
    assert {uid[:2] for batch in batches for uid in batch} == {"t0"} and all(len(batch) == 3 for batch in batches)
    assert len(cached(tmp_path / "cache")) == 1  # neither the wrong bytes nor a part of them


def test_a_damaged_ledger_of_a_remote_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / "ledger" / "000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"000001\.parquet: not as index\.json lists it"):
        uids(config(f"file://{copy}", tmp_path / "cache"))


def numbered(folder: Path, count: int, size: int = 1000) -> dict[str, str]:
    """Files of `size` bytes: address by sha256."""
    files = {}
    for number in range(count):
        data = bytes([number]) * size
        path = folder / f"{number}"
        path.write_bytes(data)
        files[hashlib.sha256(data).hexdigest()] = f"file://{path}"
    return files


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 3000)
    (tmp_path / "f").mkdir()
    files = numbered(tmp_path / "f", 5)
    names = list(files)
    for at, number in enumerate((0, 1, 2, 0, 3, 4)):
        with cache.open(files[names[number]], names[number], 1000) as file:
            assert file.read() == bytes([number]) * 1000
        path = tmp_path / "cache" / "files" / names[number]
        stamp = 1_000_000 + at
        os.utime(path, (stamp, stamp))  # clocks of file systems are coarse
    assert cached(tmp_path / "cache").keys() == {names[0], names[3], names[4]}


def test_a_file_in_use_can_be_read_on_after_it_has_made_room(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 1500)
    (tmp_path / "f").mkdir()
    (first, one), (second, two) = numbered(tmp_path / "f", 2).items()
    with cache.open(one, first, 1000) as file:
        cache.open(two, second, 1000).close()
        assert cached(tmp_path / "cache").keys() == {second}
        assert file.read() == bytes(1000)


def use(directory: Path, files: dict[str, str], seed: int) -> None:
    cache = FileCache(directory, 3500)
    names = sorted(files)
    for step in range(40):
        name = names[(seed * 7 + step * (seed + 1)) % len(names)]
        with cache.open(files[name], name, 1000) as file:
            assert hashlib.sha256(file.read()).hexdigest() == name


def test_processes_share_a_cache(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    files = numbered(tmp_path / "f", 8)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=use, args=(tmp_path / "cache", files, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(cached(tmp_path / "cache").values()) <= 3500 + 4 * 1000  # one more may be on its way in each process
    assert not [name for name in cached(tmp_path / "cache") if name.startswith(".")]


def test_what_may_pass_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    (tmp_path / "f").mkdir()
    ((name, url),) = numbered(tmp_path / "f", 1).items()
    filesystem, _ = fsspec.core.url_to_fs(url)
    real, calls = type(filesystem).get_file, []

    def flaky(self: object, *args: object, **options: object) -> None:
        calls.append(1)
        if len(calls) % 3:
            raise ConnectionResetError("cut")
        real(self, *args, **options)

    monkeypatch.setattr(type(filesystem), "get_file", flaky)
    cache = FileCache(tmp_path / "cache", 5000)
    cache.open(url, name, 1000).close()
    assert len(calls) == 3
    cache.open(url, name, 1000).close()
    assert len(calls) == 3
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    with pytest.raises(ShardError, match=r"cannot be fetched in 2 attempts \(cut\)"):
        FileCache(tmp_path / "other", 5000).open(url, name, 1000)
    assert cached(tmp_path / "other") == {}
