"""A cluster whose machines have networks and process tables of their own, and share a file system."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pytest

from pipeline.dataset.verify import verify
from pipeline.sources.procedural import procedural
from tests.pipeline.executor.test_cluster import hashes, rows
from tests.support.processes import until

BIN = Path(sys.executable).parent
OWN = ("--net", "--mount", "--pid", "--uts")
RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # these tests' own process is closed to others
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",  # a lost machine is known within seconds, not after a minute
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "5000",  # and so is a call that waits for it
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
}
BUILD = [
    "--workers=1",
    "--assets_per_job=2",
    "--views.resolution=32",
    "--uv.resolution=64",
    "--filter.min_round_trip_db=15",
    "--unwrap.max_faces=40000",
]


@dataclass(frozen=True)
class Machine:
    """Namespaces that live as long as their first process: to kill it is to pull the plug."""

    name: str
    address: str
    first: psutil.Process
    """In the process table of this machine."""

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self.first.pid}", *OWN, *words]

    def run(self, *words: str, stdout: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*words), env=os.environ | RAY, stdout=stdout, stderr=subprocess.STDOUT)

    def pull_the_plug(self) -> None:
        self.first.kill()
        self.first.wait(10)

    def cut_off(self) -> None:
        """Cut the machine off; its processes go on."""
        sh(*self.command("ip", "link", "set", "eth0", "down"))

    def assets_at_work(self) -> int:
        """Processes of assets: children of fork_servers."""
        below = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for fork_server in everything_in(self):
                below += fork_server.children() if "pipeline.sandbox.fork_server" in fork_server.cmdline() else []
        return len(below)


def process_table(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/pid").stat().st_ino


def everything_in(machine: Machine) -> list[psutil.Process]:
    own = process_table(machine.first.pid)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if process_table(process.pid) == own:
                found.append(process)
    return found


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


class Network:
    """Machines on one switch, which is a network namespace too: when the last process ends, nothing is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: list[Machine] = []
        self.switch = self._namespaces("--net")
        self._in_switch("ip", "link", "add", "switch", "type", "bridge")
        self._in_switch("ip", "link", "set", "switch", "up")

    def machine(self) -> Machine:
        """One more machine, which reaches the others."""
        number = len(self.machines) + 1
        name, address = f"machine{number}", f"10.77.0.{number}"
        machine = Machine(name, address, self._namespaces(*OWN, "--fork", "--kill-child", "--mount-proc"))
        self.machines.append(machine)
        self._in_switch(
            *("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(machine.first.pid))
        )
        self._in_switch("ip", "link", "set", name, "master", "switch", "up")
        for words in (
            ("hostname", name),
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{address}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("mkdir", "--parents", "/tmp/ray"),
            ("mount", "--types", "tmpfs", "ray", "/tmp/ray"),
        ):
            sh(*machine.command(*words))
        return machine

    def head(self) -> Machine:
        """It does no work."""
        machine = self.machine()
        options = ("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
        assert self._start(machine, *options).wait(120) == 0, self.log(machine)
        return machine

    def worker(self) -> Machine:
        """It joins when it has started."""
        machine = self.machine()
        self._start(machine, f"--address={self.machines[0].address}:6379", "--num-cpus=1")
        return machine

    def _start(self, machine: Machine, *options: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{machine.name}.log").open("wb") as log:
            return machine.run(
                *(str(BIN / "ray"), "start", f"--node-ip-address={machine.address}", *options),
                *("--object-store-memory=80000000", "--disable-usage-stats"),
                stdout=log,
            )

    def log(self, machine: Machine) -> str:
        return (self.folder / f"{machine.name}.log").read_text()

    def _namespaces(self, *options: str) -> psutil.Process:
        unshare = psutil.Popen(["unshare", *options, "sleep", "infinity"], stderr=subprocess.DEVNULL)
        until(lambda: "sleep" in {process.name() for process in (unshare, *unshare.children())}, 10)
        return next(process for process in (*unshare.children(), unshare) if process.name() == "sleep")

    def _in_switch(self, *words: str) -> None:
        sh("nsenter", f"--target={self.switch.pid}", "--net", *words)

    def close(self) -> None:
        for first in (*(machine.first for machine in self.machines), self.switch):
            with contextlib.suppress(psutil.NoSuchProcess):
                first.kill()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Skips where the host does not let this process make namespaces and links."""
    try:
        link = ("ip", "link", "add", "name", "probe", "type", "veth")
        made = subprocess.run(["unshare", *OWN, "--fork", *link], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no {error.filename} here")
    if made.returncode:
        pytest.skip(f"this host gives no network of one's own: {made.stderr.strip()}")
    network = Network(tmp_path)
    yield network
    network.close()


def events(log: Path) -> list[dict]:
    """Return the events that a build has reported so far; its last line may be half there."""
    lines = log.read_bytes().rpartition(b"\n")[0].splitlines()
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def seqtex_build(assets: Path, out: Path) -> list[str]:
    return [str(BIN / "seqtex"), "build", "--source", f"folder:{assets}", "--out", str(out), "--log", "json", *BUILD]


@pytest.mark.slow
def test_machines_that_lose_power_or_network_change_no_byte(network: Network, tmp_path: Path) -> None:
    """A head and two workers, with token authentication. One worker loses its power while it processes an asset, one
    its network: it goes on by itself, unheard. Two others join."""
    assets, log = tmp_path / "assets", tmp_path / "build.log"
    list(procedural(20, assets))
    head, first, second = network.head(), network.worker(), network.worker()
    with log.open("wb") as file:
        address = f"{head.address}:6379"
        driver = head.run(*seqtex_build(assets, tmp_path / "out"), "--address", address, stdout=file)

    def jobs_done() -> int:
        assert driver.poll() in (None, 0), log.read_text()
        return sum(event["event"] == "job" for event in events(log))

    until(lambda: jobs_done() >= 1 and first.assets_at_work(), 180)
    first.pull_the_plug()
    network.worker()
    until(lambda: jobs_done() >= 3 and second.assets_at_work(), 180)
    second.cut_off()
    network.worker()
    assert driver.wait(300) == 0, log.read_text()
    subprocess.run(seqtex_build(assets, tmp_path / "alone"), check=True, capture_output=True)
    lost = [event for event in events(log) if event["event"] == "retry"]
    assert [event["detail"] for event in lost] == ["its node was lost"] * 2
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone")
    assert rows(tmp_path / "out") == rows(tmp_path / "alone")
    assert verify(tmp_path / "out") == []
