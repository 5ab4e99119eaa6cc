"""The fault matrix of stores and file systems that stop answering: an error or a warning that names them, soon."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from schemas import patience
from schemas.dataset import ShardRecord, index_json, read_ledger
from schemas.errors import UserError
from schemas.sample import Regime
from schemas.shards import read_samples
from schemas.storage import ObjectPath, place, staging, write_file
from seqtex.cli.main import main
from tests.support import flaky_store
from tests.support.flaky_store import FlakyStore, failing
from tests.support.loopback import loopback
from tests.support.small_dataset import write_dataset
from tests.training.test_training import small_config
from tests.trust.trust import Trust
from training.data.dataset_files import LocalFiles, ShardError, fetch
from training.train import train

flaky_store.register()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STALL_S", 0.5)
    monkeypatch.setattr(patience, "WATCHDOG_S", 0.3)


@contextmanager
def deaf_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def stalling(request: str, part: str) -> Iterator[None]:
    """Requests of one kind to `flaky://` about a path with `part` in it end only with the test."""
    over = threading.Event()

    def stall(kind: str, path: str) -> bool:
        if kind == request and part in path:
            over.wait(60)
        return False

    try:
        with failing(stall):
            yield
    finally:
        over.set()


def ends_in_time(work, url: str, seconds: float = 10.0) -> bool:
    """Return whether work raises an error that names the URL, before long."""
    start = time.monotonic()
    try:
        work()
    except (OSError, UserError) as error:
        place = error.filename if isinstance(error, OSError) else str(error)
        return url in place and time.monotonic() - start < seconds
    return False


@pytest.mark.trust(31)
def test_a_server_that_accepts_and_never_answers(trust: Trust, tmp_path: Path) -> None:
    with deaf_server() as url:
        (tmp_path / "new").write_bytes(b"x")
        works = [
            lambda: ObjectPath(f"{url}/a").read_bytes(),
            lambda: ObjectPath(f"{url}/a").exists(),
            lambda: ObjectPath(f"{url}/a").download(tmp_path / "a"),
            lambda: ObjectPath(f"{url}/a").upload(tmp_path / "new"),
            lambda: write_file(ObjectPath(f"{url}/a"), b"x"),
            lambda: fetch(f"{url}/a", tmp_path / "b"),
        ]
        held = [ends_in_time(work, url) for work in works]
    trust.held(sum(held), len(held))
    assert all(held), held


@pytest.mark.trust(31)
def test_a_commit_an_encoding_and_a_run_on_a_store_that_stalls(
    trust: Trust, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQTEX_SCRATCH", str(tmp_path / "scratch"))
    forge = tmp_path / "forge"
    write_dataset(forge, [[(f"t{i}", Regime.TEXTURED) for i in range(3)]])
    (forge / "index.json").write_bytes(index_json(forge, read_ledger(forge)))
    for path in (path for path in forge.rglob("*") if path.is_file()):
        ObjectPath(f"flaky://stalled/{path.relative_to(forge).as_posix()}").write_bytes(path.read_bytes())
    shard = ObjectPath("flaky://stalled/shards/textured-000009.tar")

    def commit() -> None:
        with staging(shard) as file:
            file.write(b"x")
        place(shard)

    cache = ("--cache_directory", str(tmp_path / "cache"))
    with stalling("write", "textured-000009"):
        held = [ends_in_time(commit, str(shard))]
    with stalling("read", "shards/textured-000000.tar"):
        held += [main(["encode", "flaky://stalled", "--codec", "dct", *cache]) == 1]
        told = capsys.readouterr().err
        held += ["flaky://stalled/shards/textured-000000.tar" in told]
        held += [ends_in_time(lambda: fetch("flaky://stalled/shards/textured-000000.tar", tmp_path / "a"), "flaky://")]
    assert FlakyStore.fails("read", "") is False, told
    trust.held(sum(held), len(held))
    assert all(held), held


class Proxy(SimpleHTTPRequestHandler):
    """Passes on the files of a folder; a request for the path in `silent` is accepted and never answered."""

    folder: Path
    silent: list[str]
    over: threading.Event

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(self.folder))

    def do_GET(self) -> None:
        if self.path in self.silent:
            self.over.wait(60)
        else:
            super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.trust(31)
@pytest.mark.parametrize("name", ["index.json", "shards/textured-000001.tar"])
def test_a_run_whose_store_stops_answering_ends_and_goes_on(trust: Trust, tmp_path: Path, name: str) -> None:
    """A whole run behind a proxy that accepts and never answers, at its start or when the run comes to the second
    shard: an error that names the URL; once the proxy answers again, the same configuration trains to its end."""
    forge, over, silent = tmp_path / "forge", threading.Event(), [f"/{name}"]
    write_dataset(forge, [[(f"t{job}{i}", Regime.TEXTURED) for i in range(2)] for job in range(2)])
    (forge / "index.json").write_bytes(index_json(forge, read_ledger(forge)))
    with loopback(Proxy, folder=forge, silent=silent, over=over) as url:
        cfg = small_config(forge, tmp_path / "run", max_steps=4)
        data = replace(cfg.data, directories={url: 1.0}, cache_directory=tmp_path / "cache", mv_only_ratio=0.0)
        held = [ends_in_time(lambda: train(replace(cfg, data=data)), f"{url}/{name}", seconds=60)]
        over.set()
        silent.clear()
        held += [train(replace(cfg, data=data)).losses[-1]["step"] == 4]
    trust.held(sum(held), len(held))
    assert all(held), held


@pytest.mark.trust(31)
def test_a_file_that_is_not_read_within_a_minute_is_named(
    trust: Trust, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe without a writer stands for a file system that has stopped: opening it waits."""
    name, held = "textured-000000.tar", []
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / "shards" / name)
    record = ShardRecord(name=name, regime=Regime.TEXTURED, sha256="0" * 64, bytes=1, count=1)
    reads = (
        lambda: LocalFiles(tmp_path).open(f"shards/{name}", "0" * 64, 1),
        lambda: next(read_samples(tmp_path, record)),
    )
    for read in reads:
        caplog.clear()

        def wait(read=read) -> None:
            with pytest.raises((ShardError, UserError)):
                read()

        with caplog.at_level(logging.WARNING):
            reader = threading.Thread(target=wait)
            reader.start()
            time.sleep(1)
            held.append(name in caplog.text and reader.is_alive())
            with (tmp_path / "shards" / name).open("wb"):
                reader.join(10)
    trust.held(sum(held), len(held))
    assert all(held), caplog.text


@pytest.mark.trust(31)
def test_a_slow_store_is_waited_for(trust: Trust) -> None:
    """Whoever shows signs of life has as long as it takes; whoever comes back at the second attempt is heard."""

    def slow(alive: patience.Alive) -> str:
        for _ in range(5):
            time.sleep(0.2)
            alive()
        return "done"

    tries = []

    def late(alive: patience.Alive) -> str:
        tries.append(len(tries))
        time.sleep(2 if len(tries) == 1 else 0)
        return "done"

    held = [patience.answered("here", slow) == "done", patience.answered("here", late) == "done", len(tries) == 2]
    trust.held(sum(held), len(held))
    assert all(held)
