"""Datasets in object stores: the same bytes as in a folder, whatever was killed on the way, one builder at a time."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pipeline.dataset import lock as locking
from pipeline.dataset.folders import common_folder
from pipeline.dataset.lock import lock, running_since
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import commit, committed, remove_leftovers
from pipeline.dataset.state import finish, finished, replan, settle, writable
from pipeline.dataset.verify import find_problems, verify
from pipeline.executor.build import build
from pipeline.executor.job import process_job
from pipeline.executor.progress import BuildEvent
from pipeline.maintain.merge import carry_over, plan_merge
from pipeline.sources.procedural import procedural
from schemas.dataset import part_path, read_dataset_json, read_ledger, read_ledger_part, shard_path
from schemas.errors import UsageError, UserError
from schemas.ledger import Status
from schemas.mesh import MeshRef
from schemas.storage import ObjectPath, location, workspace
from seqtex.cli.main import main
from tests.support import flaky_store
from tests.support.small_build import CFG, commit_again
from training.data.batch import LatentBatch
from training.data.datamodule import BatchStream
from training.data.mixture import DataConfig
from training.diffusion.encoders import DctCodec

REPO = Path(__file__).resolve().parents[3]
COUNT = 4


@dataclass(frozen=True)
class Server:
    """A store on this machine, and the environment that leads there."""

    url: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    server = pytest.importorskip("moto.server", reason="no S3 server: pip install -e '.[dev]'")
    s3fs = pytest.importorskip("s3fs", reason="no client for S3: pip install -e '.[dev]'")
    found = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield Server("s3://bucket", environment)
        s3fs.S3FileSystem.clear_instance_cache()
    found.stop()


@pytest.fixture(scope="module")
def gs() -> Iterator[Server]:
    server = pytest.importorskip("gcp_storage_emulator.server", reason="no GCS server: pip install -e '.[dev]'")
    gcsfs = pytest.importorskip("gcsfs", reason="no client for GCS: pip install -e '.[dev]'")
    found = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    found.start()
    port = found._api._httpd.socket.getsockname()[1]
    # the client asks for a bucket's kind over gRPC, which this server has not
    environment = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Server("gs://bucket", environment)
        gcsfs.GCSFileSystem.clear_instance_cache()
    found.stop()


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> list[MeshRef]:
    return list(procedural(COUNT, tmp_path_factory.mktemp("assets"), clean=True))


@pytest.fixture(scope="module")
def folder(refs: list[MeshRef], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset in a folder."""
    return built(refs, tmp_path_factory.mktemp("folder") / "forge")


def built(refs: list[MeshRef], out: Path) -> Path:
    for name in ("shards", "ledger"):
        (out / name).mkdir(parents=True)
    jobs = plan_jobs(refs, CFG.assets_per_job, common_folder(refs))
    info = settle(out, jobs, CFG.recorded())
    for job in jobs:
        process_job(job, out, CFG)
    finish(out, info, jobs, len(jobs))
    statuses = [outcome.status for part in read_ledger(out) for outcome in part.outcomes]
    assert verify(out) == [] and statuses == [Status.ACCEPTED] * len(refs)
    return out


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQTEX_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(locking, "SETTLE_S", 0.0)
    return tmp_path / "scratch"


def copied(folder: Path, out: ObjectPath) -> ObjectPath:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            ObjectPath(f"{out}/{path.relative_to(folder).as_posix()}").upload(path)
    return out


def shards(out: Path | ObjectPath) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "shards").iterdir()}


def without_ledger(index: bytes) -> dict[str, object]:
    """The ledger's rows hold seconds, so their hashes differ between two builds in one folder too."""
    return {name: entry for name, entry in json.loads(index).items() if name != "ledger"}


def same(out: Path | ObjectPath, folder: Path) -> bool:
    return (
        shards(out) == shards(folder)
        and without_ledger((out / "index.json").read_bytes()) == without_ledger((folder / "index.json").read_bytes())
        and all((out / name).read_bytes() == (folder / name).read_bytes() for name in ("plan.parquet", "dataset.json"))
    )


@pytest.mark.slow
def test_a_build_on_s3_has_the_bytes_of_one_in_a_folder(
    s3: Server, refs: list[MeshRef], folder: Path, scratch: Path
) -> None:
    """Over Ray, whose workers find server and credentials in their environment."""
    out = location(f"{s3.url}/built/forge")
    assert isinstance(out, ObjectPath)
    report = build(refs, out, CFG)
    assert report.planned == report.textured + report.mv_only == COUNT
    assert same(out, folder) and verify(out) == []
    assert {path.name for path in out.iterdir()} == {
        "README.md", "attribution.parquet", "croissant.json", "dataset.json", "folders.json", "index.json", "ledger",
        "plan.parquet", "shards",
    }  # fmt: skip
    assert not any(scratch.rglob("*.tmp")) and not list(scratch.glob("*/.work/*"))
    events: list[str] = []
    assert build(refs, out, CFG, on_event=lambda event: events.append(event.detail)).jobs_run == 0
    assert events[0] == "nothing to do"


@pytest.mark.slow
def test_an_extension_on_s3_leaves_what_was_there(
    s3: Server, refs: list[MeshRef], folder: Path, scratch: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Over Ray, from the command line: two assets, of which one is there, then a report of all."""
    out, more = copied(folder, ObjectPath(f"{s3.url}/extended/forge")), tmp_path / "more"
    before = shards(out)
    (more / "assets").mkdir(parents=True)
    for ref in procedural(2, tmp_path / "made", seed=1, clean=True):
        (more / Path(ref.uri).name).write_bytes(Path(ref.uri).read_bytes())
    assert main(["extend", str(out), "--source", f"folder:{more}", "--log", "json"]) == 0
    reported = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert (reported[-1]["event"], reported[-1]["added"], reported[-1]["planned"], reported[-1]["jobs_run"]) == (
        "extended", 2, COUNT + 2, 1)  # fmt: skip
    assert before.items() < shards(out).items() and verify(out) == []
    assert read_dataset_json(out).history[0]["source"] == "folder:more" and not (out / ".lock").exists()
    with pytest.raises(UserError, match="the input has changed"):
        build(refs, out, CFG)
    assert main(["report", str(out), "--log", "json"]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["listed"] == COUNT + 2 and Path(report["path"]).is_file()
    assert str(workspace(out)) in report["path"]


@pytest.fixture(scope="module")
def other(refs: list[MeshRef], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another dataset, which has an asset of the first one, too, in a job with one of its own."""
    root = tmp_path_factory.mktemp("other")
    more = [replace(ref, uid=f"more-{ref.uid}") for ref in procedural(3, root / "assets", seed=1, clean=True)]
    return built([refs[0], *more], root / "forge")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "out"), [("s3", "s3", "s3"), ("folder", "s3", "s3"), ("s3", "s3", "folder")]
)
def test_datasets_are_put_together_wherever_they_lie(
    first: str, second: str, out: str, s3: Server, folder: Path, other: Path, scratch: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With the bytes of a merge of the same datasets in folders."""
    assert main(["merge", str(folder), str(other), "--out", str(tmp_path / "folders"), "--log", "json"]) == 0
    there = {path: ObjectPath(f"{s3.url}/merged-{first}-{second}-{out}/{path.parent.name}/forge")
             for path in (folder, other)}  # fmt: skip
    names = [str(copied(path, there[path]) if place == "s3" else path)
             for path, place in ((folder, first), (other, second))]  # fmt: skip
    both = location(f"{s3.url}/merged-{first}-{second}-{out}/both" if out == "s3" else tmp_path / "both")
    moved: list[str] = []
    download = ObjectPath.download
    monkeypatch.setattr(ObjectPath, "download", lambda self, file: (moved.append(self.name), download(self, file)))
    plan = plan_merge([location(name) for name in names])
    with writable(both), lock(both):
        carry_over(plan, both)
    rewritten = {shard.name for move in plan.moves if len(move.job.refs) < len(move.old.refs)
                 for shard in read_ledger_part(part_path(other, move.old.index)).shards}  # fmt: skip
    if (first, out) == ("s3", "s3"):
        assert {name for name in moved if name.endswith(".tar")} == rewritten != set(), "the store copies the others"
    monkeypatch.undo()
    assert main(["merge", *names, "--out", str(both), "--log", "json"]) == 0
    reported = [json.loads(line) for line in capfd.readouterr().out.splitlines() if '"merged"' in line]
    assert [(each["planned"], each["same_uid"]) for each in reported] == [(COUNT + 3, 1)] * 2
    assert isinstance(both, Path | ObjectPath) and same(both, tmp_path / "folders") and verify(both) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.dataset.lock import lock
from pipeline.dataset.state import settle
from pipeline.dataset.plan import read_plan
from schemas.storage import ObjectPath, location
from tests.support import flaky_store
from tests.support.small_build import CFG, commit_again

source, out, work, method, where = Path(sys.argv[1]), location(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
original, step = getattr(ObjectPath, method), 0

def killed(self, *arguments, **options):
    global step
    step += self.parent.name in ("shards", "ledger")
    if step == int(where):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments, **options)

jobs = read_plan(source / "plan.parquet")
with lock(out):
    settle(out, jobs, CFG.recorded())
    setattr(ObjectPath, method, killed)
    for job in jobs:
        commit_again(source, out, job.index, work)
"""


@pytest.mark.parametrize(("method", "where", "kept"), [("write_bytes", 1, 0), ("write_bytes", 2, 1), ("upload", 2, 1)])
def test_a_build_killed_before_its_ledger_part_is_finished_to_the_same_bytes(
    method: str, where: int, kept: int, s3: Server, refs: list[MeshRef], folder: Path, scratch: Path, tmp_path: Path
) -> None:
    """Between the upload of a shard and that of its record, or before that of a shard. The lock is a dead process's."""
    out = ObjectPath(f"{s3.url}/killed-{method}-{where}/forge")
    arguments = [str(folder), str(out), str(tmp_path / "work"), method, str(where)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=REPO, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    assert (out / ".lock").is_file() and len(list((out / "ledger").iterdir())) == kept
    assert any(problem.job is not None for problem in find_problems(out))
    jobs = plan_jobs(refs, CFG.assets_per_job, common_folder(refs))
    with lock(out):
        info = settle(out, jobs, CFG.recorded())
        remove_leftovers(out, len(jobs))
        parts = finished(out, jobs)
        assert len(parts) == kept
        for job in jobs:
            if job.index not in parts:
                commit_again(folder, out, job.index, tmp_path / "again")
        finish(out, info, jobs, len(jobs) - kept)
    assert same(out, folder) and verify(out) == [] and not (out / ".lock").exists()
    assert not list(scratch.rglob("*.tar*"))


def test_training_reads_it_from_there(s3: Server, folder: Path, tmp_path: Path) -> None:
    out = copied(folder, ObjectPath(f"{s3.url}/trained/forge"))

    def uids(place: str) -> list[tuple[str, ...]]:
        stream = BatchStream(
            DataConfig(directories={place: 1.0}, batch_size=2, keep_latents=False, cache_directory=tmp_path / "cache"),
            seed=1,
        )
        return [stream[number].uids for number in range(4)]

    assert uids(str(out)) == uids(str(folder))


def test_latents_are_written_there_and_training_reads_them(
    s3: Server, folder: Path, scratch: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By two processes that share the work, of which one comes again; the bytes of a folder."""
    out, here = copied(folder, ObjectPath(f"{s3.url}/encoded/forge")), tmp_path / "here"
    shutil.copytree(folder, here)
    words = ["--codec", "dct", "--cache_directory", str(tmp_path / "cache"), "--log", "json"]
    assert main(["encode", str(here), *words]) == 0
    assert main(["encode", str(out), *words, "--parts", "2"]) == 0
    assert main(["encode", str(out), *words, "--parts", "2", "--part", "1"]) == 0
    reported = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [each["event"] for each in reported] == ["encoded", "encoded_part", "encoded"]
    (latents,) = (out / "latents").iterdir()
    assert reported[2]["latents"] == str(latents)
    local = {path.name: path.read_bytes() for path in (here / "latents" / latents.name).iterdir()}
    assert {path.name: path.read_bytes() for path in latents.iterdir()} == local and len(local) > 4
    before = {path.name: path.stat().st_mtime for path in latents.iterdir() if path.name.endswith(".tar")}
    assert main(["encode", str(out), *words]) == 0
    assert {path.name: path.stat().st_mtime for path in latents.iterdir() if path.name in before} == before
    streams = [
        BatchStream(DataConfig(directories={str(place): 1.0}, cache_directory=tmp_path / "cache", batch_size=2,
                               latents=True), seed=1, codec=DctCodec())
        for place in (out, here)
    ]  # fmt: skip
    for number in range(3):
        there, locally = (stream[number] for stream in streams)
        assert isinstance(there, LatentBatch) and isinstance(locally, LatentBatch)
        assert there.uids == locally.uids and torch.equal(there.mv.rgb, locally.mv.rgb)
    (latents / min(before)).unlink()
    assert main(["encode", str(out), *words]) == 0
    assert (latents / min(before)).read_bytes() == local[min(before)]


def test_every_command_reads_it_and_damage_is_located_there(
    s3: Server, folder: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(folder, ObjectPath(f"{s3.url}/damaged/forge"))
    for command in ("verify", "status", "failures", "what-if", "report"):
        assert main([command, str(out), "--log", "json"]) == 0, command
    reported = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    status = next(line for line in reported if line["event"] == "status")
    assert status["done"] == status["planned"] == COUNT and not status["running"]
    assert (workspace(out) / "report" / "index.html").is_file()
    tars = sorted((out / "shards").iterdir())
    data = bytearray(tars[0].read_bytes())
    data[len(data) // 2] ^= 1
    tars[0].write_bytes(data)
    tars[-1].write_bytes(tars[-1].read_bytes()[:-512])
    part = part_path(out, 0)
    problems = verify(out)
    assert len(problems) == 2 and all(
        str(path) in text for path, text in zip((tars[0], tars[-1]), problems, strict=True)
    )
    part.write_bytes(b"no parquet")
    assert any(str(part) in problem for problem in verify(out))
    assert main(["verify", str(out)]) == 1


def test_a_repair_there_brings_the_same_bytes_back(
    s3: Server, refs: list[MeshRef], folder: Path, scratch: Path, tmp_path: Path
) -> None:
    out = copied(folder, ObjectPath(f"{s3.url}/repaired/forge"))
    job = plan_jobs(refs, CFG.assets_per_job)[1]
    part = committed(out, job)
    assert part is not None
    shard_path(out, part.shards[0].name).unlink()
    assert committed(out, job) is None and len(find_problems(out)) == 1
    commit_again(folder, out, 1, tmp_path / "again")
    assert shards(out) == shards(folder)
    kept = replace(job, only=frozenset({job.refs[0].uid}))
    process_job(kept, out, CFG)  # the other asset comes out of the store
    assert shards(out) == shards(folder)


def nth(number: int, request: str, name: str) -> Callable[[str, str], bool]:
    """Make a condition that one request meets: the one of this number among those of its kind, counted from 1."""
    seen = 0

    def fails(asked: str, path: str) -> bool:
        nonlocal seen
        seen += asked == request and path.endswith(name)
        return asked == request and path.endswith(name) and seen == number

    return fails


def test_an_error_that_passes_is_no_absence(folder: Path, refs: list[MeshRef], scratch: Path) -> None:
    """A store answers one request in between with an error: what is there is not overwritten, built again or
    called missing."""
    flaky_store.register()
    out = copied(folder, ObjectPath("flaky://bucket/forge"))
    jobs = plan_jobs(refs, CFG.assets_per_job, common_folder(refs))
    replan(out, read_dataset_json(out), jobs, {"step": "extended"})
    text = (out / "dataset.json").read_bytes()
    for request, name in (("info", "dataset.json"), ("read", "dataset.json"), ("info", "plan.parquet")):
        for number in range(1, 5):
            with flaky_store.failing(nth(number, request, name)), contextlib.suppress(OSError):
                assert settle(out, jobs, CFG.recorded()).history == [{"step": "extended"}]
            assert (out / "dataset.json").read_bytes() == text
    shard, part = shard_path(out, read_ledger(out)[0].shards[0].name), part_path(out, 0)
    for request, path in (("info", out / "index.json"), ("read", part), ("info", shard)):
        with flaky_store.failing(nth(1, request, path.name)), pytest.raises(OSError, match="503 slow down"):
            finished(out, jobs)
    for request, path in (("read", out / "plan.parquet"), ("read", part), ("read", shard)):
        with flaky_store.failing(nth(1, request, path.name)), pytest.raises(OSError, match="503 slow down"):
            find_problems(out)
    again = replace(jobs[0], only=frozenset({jobs[0].refs[0].uid}))
    for path in (part, shard):
        with flaky_store.failing(nth(1, "read", path.name)), pytest.raises(OSError, match="503 slow down"):
            process_job(again, out, CFG)
    assert verify(out) == []


def test_a_second_builder_is_refused_and_a_dead_one_is_not_waited_for(s3: Server, scratch: Path) -> None:
    out = ObjectPath(f"{s3.url}/locked/forge")
    with lock(out):
        since = running_since(out)
        assert since is not None and abs(time.time() - since) < 60
        with (
            pytest.raises(UserError, match=rf"another build \(process {os.getpid()} on .*delete {out}/\.lock"),
            lock(out),
        ):
            raise AssertionError("two builders")
    assert running_since(out) is None and not (out / ".lock").exists()
    here = json.loads(owner_of(out))
    gone = subprocess.Popen(["true"])
    gone.wait()
    elsewhere = here | {"machine": "other boot"}
    for left in (here | {"process": gone.pid}, elsewhere | {"seen": time.time() - locking.EXPIRY_S - 1}):
        (out / ".lock").write_bytes(json.dumps(left).encode())
        assert running_since(out) is None
        with lock(out):
            assert json.loads((out / ".lock").read_bytes())["token"] != left["token"]


def test_a_builder_elsewhere_is_refused_to_while_it_lives_and_outwaited_when_it_was_killed(
    s3: Server, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "WATCH_S", 0.05)
    out, reported = ObjectPath(f"{s3.url}/watched/forge"), list[str]()
    owner = json.loads(owner_of(out)) | {"machine": "other boot"}
    (out / ".lock").write_bytes(json.dumps(owner | {"seen": time.time() - 60}).encode())

    def alive() -> None:
        time.sleep(0.5)
        (out / ".lock").write_bytes(json.dumps(owner | {"seen": time.time()}).encode())

    beat = threading.Thread(target=alive)
    beat.start()
    with pytest.raises(UserError, match=r"on other, last seen \d s ago"), lock(out, reported.append):
        raise AssertionError("two builders")
    beat.join()
    assert len(reported) == 1 and "on other, last seen 60 s ago; waiting up to 540 s" in reported[0]
    monkeypatch.setattr(locking, "EXPIRY_S", 2.0)
    (out / ".lock").write_bytes(json.dumps(owner | {"seen": time.time() + 3600}).encode())
    with lock(out):  # a clock that is ahead
        pass
    seen = time.time()
    (out / ".lock").write_bytes(json.dumps(owner | {"seen": seen}).encode())
    events: list[BuildEvent] = []
    with pytest.raises(UserError, match="is not a folder"):
        build("folder:/nowhere", out, CFG, on_event=events.append)
    assert time.time() > seen + 2.0 and not (out / ".lock").exists()
    assert [event.event for event in events] == ["waiting"] and "waiting up to 2 s" in events[0].detail


def test_a_process_that_cannot_be_seen_is_not_taken_for_dead(s3: Server, scratch: Path) -> None:
    """Containers may share a host's name and each have its own processes; /proc may hide those of other users."""
    out = ObjectPath(f"{s3.url}/hidden/forge")
    here = json.loads(owner_of(out))
    gone = subprocess.Popen(["true"])
    gone.wait()
    where = here["machine"].split()
    for number, other in ((2, "pid:[1]"), (3, "12345")):
        elsewhere = " ".join([*where[:number], other, *where[number + 1 :]])
        (out / ".lock").write_bytes(json.dumps(here | {"machine": elsewhere, "process": gone.pid}).encode())
        assert running_since(out) is not None
    script = "from pipeline.dataset.lock import _machine; print(_machine())"
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if ended.returncode == 0:  # else this host lets nobody make namespaces
        assert ended.stdout.split()[:2] == where[:2] and ended.stdout.split()[2] != where[2]


def owner_of(out: ObjectPath) -> bytes:
    with lock(out):
        return (out / ".lock").read_bytes()


def test_of_two_that_come_at_once_one_gets_the_lock(s3: Server, scratch: Path) -> None:
    """The store itself refuses to create an object twice."""
    path = ObjectPath(f"{s3.url}/exclusive")
    path.write_bytes(b"first", new=True)
    with pytest.raises(FileExistsError):
        path.write_bytes(b"second", new=True)
    assert path.read_bytes() == b"first"


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["alone", "beside a script"])
def started(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start of this process, alone or beside a script: what a shell starts beside a script ignores SIGINT."""
    before = signal.signal(signal.SIGINT, request.param)
    yield "alone" if request.param is signal.default_int_handler else "beside"
    signal.signal(signal.SIGINT, before)


def test_a_builder_whose_lock_was_taken_stops(
    s3: Server, scratch: Path, monkeypatch: pytest.MonkeyPatch, started: str
) -> None:
    monkeypatch.setattr(locking, "BEAT_S", 0.05)
    out = ObjectPath(f"{s3.url}/taken/{started}")
    other = json.dumps(json.loads(owner_of(out)) | {"token": "other"}).encode()
    with pytest.raises(UserError, match="another one has taken it"), lock(out):
        seen = json.loads((out / ".lock").read_bytes())["seen"]
        for _ in range(200):
            time.sleep(0.05)
            if json.loads((out / ".lock").read_bytes())["seen"] > seen:
                break
        else:
            raise AssertionError("no sign of life")
        for _ in range(40):
            if (out / ".lock").read_bytes() != other:  # a sign of life that was under way may have come after it
                (out / ".lock").write_bytes(other)
            time.sleep(0.5)
    assert (out / ".lock").read_bytes() == other


def test_google_storage_holds_the_same_dataset(
    gs: Server, folder: Path, refs: list[MeshRef], scratch: Path, tmp_path: Path
) -> None:
    """The server at hand does not refuse to create an object twice: the lock is checked by reading it again."""
    out = ObjectPath(f"{gs.url}/built/forge")
    jobs = plan_jobs(refs, CFG.assets_per_job, common_folder(refs))
    with lock(out):
        info = settle(out, jobs, CFG.recorded())
        for job in jobs:
            commit_again(folder, out, job.index, tmp_path / "again")
        finish(out, info, jobs, len(jobs))
    assert same(out, folder) and verify(out) == []
    with lock(out), pytest.raises(UserError, match="another build"), lock(out):
        raise AssertionError("two builders")


def test_what_cannot_be_written_or_read_is_named(
    s3: Server, refs: list[MeshRef], scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"s3://nobucket/forge/.*bucket does not exist"):
        build(refs, ObjectPath("s3://nobucket/forge"), CFG)
    with pytest.raises(UsageError, match="names no bucket"):
        location("s3://")
    with pytest.raises(UserError, match=r"job 0 .*bucket does not exist"):
        commit(ObjectPath("s3://nobucket/forge"), 0, [], {})
    assert main(["status", f"{s3.url}/nothing/forge"]) == 1
    assert f"{s3.url}/nothing/forge/dataset.json" in capsys.readouterr().err
    assert main(["status", "s4://bucket/forge"]) == 1
    assert "s4://bucket/forge/dataset.json: cannot be read" in capsys.readouterr().err


def test_a_missing_client_is_named_with_its_extra() -> None:
    """In a process where the package cannot be imported."""
    for scheme, client, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs")):
        script = f"import sys; sys.modules[{client!r}] = None; from seqtex.cli.main import main; "
        script += "sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", script, "status", f"{scheme}://bucket/forge"]
        ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
        assert ended.returncode == 1 and f"pip install -c constraints.txt '.[{extra}]'" in ended.stderr, ended.stderr


def test_a_place_on_this_machine_for_every_address(scratch: Path, tmp_path: Path) -> None:
    one, two = (workspace(ObjectPath(f"s3://bucket/{name}")) for name in "ab")
    assert one != two and one.parent == two.parent == scratch and one == workspace(ObjectPath("s3://bucket/a"))
    assert workspace(tmp_path) == tmp_path
    assert location("relative") == Path("relative") and location(f"file://{tmp_path}") == tmp_path


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_a_store_copies_an_object_by_itself(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue(store).url
    (tmp_path / "file").write_bytes(b"texture")
    source, copy = ObjectPath(f"{url}/from/file"), ObjectPath(f"{url}/to/copy")
    source.upload(tmp_path / "file")
    copy.copy_from(source)
    assert copy.read_bytes() == source.read_bytes() == b"texture"
    with pytest.raises(FileNotFoundError):
        copy.copy_from(ObjectPath(f"{url}/from/nothing"))
    assert copy.read_bytes() == b"texture"
