"""The fault matrix of a local build's own Ray: who can reach it, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.dataset.verify import verify
from pipeline.sources.procedural import procedural
from tests.trust.trust import Trust

REPO = Path(__file__).resolve().parents[2]
BUILD = ("--workers=1", "--assets_per_job=1", "--views.resolution=32", "--uv.resolution=64", "--log=json")
OWN = ("RAY_", "TMPDIR")


def start(assets: Path, out: Path, **variables: str) -> subprocess.Popen[str]:
    """A build as from a shell, without what these tests' own process has set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    command = [sys.executable, "-m", "seqtex.cli.main", "build", f"--source=folder:{assets}", f"--out={out}", *BUILD]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=REPO, text=True, env=clean | variables, **pipes)


def at_work(driver: subprocess.Popen[str]) -> None:
    """Wait until the first job is done."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if json.loads(line)["event"] == "job":
            return
    raise AssertionError(driver.stderr.read() if driver.stderr else "")


@pytest.mark.slow
@pytest.mark.trust(32)
def test_a_local_build_is_closed_to_others_and_ends_at_sigterm(trust: Trust, tmp_path: Path) -> None:
    """With a folder for temporary files as long as SLURM's. While it works all its sockets are on loopback addresses
    and its token is a file of this user's alone; SIGTERM ends it and all its processes, and another build goes on."""
    list(procedural(8, tmp_path / "assets"))
    long = tmp_path / ("x" * max(1, 90 - len(str(tmp_path))))
    long.mkdir()
    driver = start(tmp_path / "assets", tmp_path / "out", TMPDIR=str(long))
    at_work(driver)
    processes = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    environment = next(process.environ() for process in processes if process.name() == "raylet")
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    held = [ip.rpartition(":")[2] == "127.0.0.1" for ip in listening]
    held += [len(listening) > 3, environment["RAY_AUTH_MODE"] == "token", token.stat().st_mode & 0o777 == 0o600]
    driver.send_signal(signal.SIGTERM)
    told = driver.communicate(timeout=60)[1]
    held += [driver.returncode == 143, "ended by SIGTERM" in told, not token.exists()]
    end = time.monotonic() + 10
    while any(process.is_running() for process in processes) and time.monotonic() < end:
        time.sleep(0.1)
    held += [not any(process.is_running() for process in processes)]
    again = start(tmp_path / "assets", tmp_path / "out")
    again.communicate(timeout=300)
    held += [again.returncode == 0, verify(tmp_path / "out") == []]
    trust.held(sum(held), len(held))
    assert all(held), (held, listening, told)
