"""Folders of jobs in progress: what killed ones leave goes, what others work in stays."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.dataset.lock import job_folder
from pipeline.dataset.shards import remove_leftovers
from schemas.storage import ObjectPath, working_folder
from tests.support.processes import until

REPO = Path(__file__).resolve().parents[3]
AT_WORK = """
import sys, time
from pipeline.dataset.lock import job_folder
from schemas.storage import location
with job_folder(location(sys.argv[1]), 7) as folder:
    (folder / "000000").mkdir()
    (folder / "000000" / "large").write_bytes(bytes(1 << 20))
    print(folder, flush=True)
    time.sleep(600)
"""


def at_work(out: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that does job 7 of a build, and the folder in which it does."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen([sys.executable, "-c", AT_WORK, out], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("remote", [True, False])
def test_what_a_killed_job_has_left_goes_with_the_next_one(tmp_path, monkeypatch, remote):
    monkeypatch.setenv("SEQTEX_SCRATCH", str(tmp_path / "scratch"))
    out = ObjectPath("s3://bucket/forge") if remote else tmp_path
    (first, left), (second, live) = at_work(str(out)), at_work(str(out))
    try:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert left.is_dir()
        with job_folder(out, 8) as folder:
            assert {path for path in working_folder(out).iterdir()} == {live, folder}
        assert list(working_folder(out).iterdir()) == [live]
        assert (live / "000000" / "large").stat().st_size == 1 << 20
    finally:
        second.kill()
        second.wait()


def test_jobs_that_begin_at_one_time_leave_each_other_alone(tmp_path):
    def job(number: int) -> None:
        for _ in range(50):
            with job_folder(tmp_path, number) as folder:
                (folder / "mine").write_text(f"{number}")
                assert (folder / "mine").read_text() == f"{number}"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(8)))
    assert not list((tmp_path / ".work").iterdir())


def test_a_worker_that_is_still_dying_stops_no_build(tmp_path):
    """Its asset goes on writing while the folder is being removed."""
    for name in ("shards", "ledger"):
        (tmp_path / name).mkdir()
    ended, begun = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            folder = tmp_path / ".work" / "job" / f"{number % 50}"
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # removed just now
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number}").touch()
            begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(begun.is_set, 30)
        for _ in range(10):
            remove_leftovers(tmp_path, 1)
    finally:
        ended.set()
        writer.join()
