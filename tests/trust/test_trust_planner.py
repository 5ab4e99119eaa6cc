"""The fault matrix of planning: what strangers wrote is neither waited for nor held in memory by whoever plans."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.folders import PATH
from pipeline.executor.mesh_file import open_mesh_file
from pipeline.mesh_io.gltf.json_fields import parse_json
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.side_files import side_files
from pipeline.mesh_io.wavefront.mtl import read_mtl
from pipeline.sources.folder import uid_of
from pipeline.sources.xl_fetch import key_of, uri_of
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import read_ledger
from schemas.ledger import Reason, Rejected, Status
from tests.support.small_gltf import box
from tests.trust.trust import Trust

MB = 1 << 20
REPO = Path(__file__).resolve().parents[2]


def write_hangs(folder: Path) -> None:
    """Write files that hung or bloated a driver: two quadratic expressions, a pipe, four TiB, and JSON of ten million
    objects."""
    (folder / "spaces.obj").write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nmtllib " + b" " * 300_000 + b"\nf 1 2 3\n")
    (folder / "quotes.gltf").write_bytes(b'{"a":' + b"[" * 70 + b'"' + b'\\"' * 150_000)
    for name in ("pipe", "sparse"):
        text = f'{{"asset":{{"version":"2.0"}},"buffers":[{{"uri":"{name}.bin","byteLength":36}}]}}'
        (folder / f"{name}.gltf").write_text(text)
    os.mkfifo(folder / "pipe.bin")
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(4 << 40)
    with (folder / "huge.glb").open("wb") as file:
        file.truncate(4 << 40)
    (folder / "objects.gltf").write_bytes(b'{"a":[' + b"{}," * (10 * MB) + b"{}]}")


@pytest.fixture
def hangs(tmp_path: Path) -> Path:
    (tmp_path / "hangs").mkdir()
    write_hangs(tmp_path / "hangs")
    return tmp_path / "hangs"


PLAN = """
import resource, sys
from pathlib import Path
from pipeline.sources.folder import folder
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for ref in folder(Path(sys.argv[1])):
    print(Path(ref.uri).name, ref.sha256)
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.trust(27)
def test_planning_ends_soon_and_stays_small(trust: Trust, hangs: Path) -> None:
    """Every hostile file is listed; those that are too large have no hash; 30 MB of JSON take no memory here."""
    ended = subprocess.run(
        [sys.executable, "-c", PLAN, str(hangs)], cwd=REPO, capture_output=True, text=True, timeout=100, check=True
    )
    told = dict(line.split() for line in ended.stdout.splitlines())
    grown = int(told.pop("grown"))
    held = [name in told for name in ("spaces.obj", "quotes.gltf", "pipe.gltf", "sparse.gltf", "objects.gltf")]
    held += [told["huge.glb"] == "None", grown < 100]
    trust.held(sum(held), len(held))
    assert all(held), (told, grown)


def write_attacks(folder: Path) -> None:
    """The folder of the attack trial: two quadratic expressions, a pipe and four TiB as buffers, and a scale that no
    number of 32 bits holds."""
    for name in ("spaces", "quotes", "pipe", "sparse"):
        (folder / name).mkdir(parents=True)
    (folder / "spaces/evil.obj").write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nmtllib " + b" " * 300_000 + b"\nf 1 2 3\n")
    (folder / "quotes/evil.gltf").write_bytes(b'{"a":' + b"[" * 70 + b'"' + b'\\"' * 150_000)
    text = '{"asset":{"version":"2.0"},"buffers":[{"uri":"buffer.bin","byteLength":36}]}'
    for name in ("pipe", "sparse"):
        (folder / name / "evil.gltf").write_text(text)
    os.mkfifo(folder / "pipe/buffer.bin")
    with (folder / "sparse/buffer.bin").open("wb") as file:
        file.truncate(4 << 40)
    builder = box()
    builder.tree["nodes"][0]["scale"] = [1e-40] * 3
    (folder / "denormal.glb").write_bytes(builder.glb())


@pytest.mark.slow
@pytest.mark.trust(27)
@pytest.mark.parametrize(("write", "assets"), [(write_attacks, 5), (write_hangs, 6)])
def test_a_build_rejects_what_hung_it(trust: Trust, tmp_path: Path, write: Callable[[Path], None], assets: int) -> None:
    """The command as a user types it ends with exit code 0, each asset rejected, within two minutes."""
    if not trust.full:
        pytest.skip("a whole build: at full counts")
    (tmp_path / "hangs").mkdir()
    write(tmp_path / "hangs")
    command = ("build", "--source", f"folder:{tmp_path / 'hangs'}", "--out", str(tmp_path / "out"))
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-m", "seqtex.cli.main", *command], cwd=REPO, check=False, timeout=240)
    seconds = time.monotonic() - start
    rows = [outcome for part in read_ledger(tmp_path / "out") for outcome in part.outcomes]
    held = [row.status is Status.REJECTED for row in rows] + [ended.returncode == 0, seconds < 120]
    trust.held(sum(held), len(held))
    assert len(rows) == assets and all(held), (seconds, [(row.uid, row.detail) for row in rows])


@pytest.mark.trust(27)
def test_a_mesh_to_texture_is_opened_elsewhere(trust: Trust, hangs: Path) -> None:
    """A file on which the reader itself dies costs one message, not this process."""
    (hangs / "tiny.obj").write_text("v 0 0 0\nv 1e-40 0 0\nv 0 1e-40 0\nv 0 0 1e-40\nf 1 2 3\nf 1 2 4\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expected = {
        "objects.gltf": {Reason.MEMORY_LIMIT, Reason.INVALID_STRUCTURE},
        "huge.glb": {Reason.TOO_LARGE},
        "pipe.gltf": {Reason.MISSING_FILE},
        "tiny.obj": {Reason.DEGENERATE},
    }
    found = {name: open_mesh_file(hangs / name, UnwrapConfig(), 64) for name in expected}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    held = [isinstance(found[name], Rejected) and found[name].reason in reasons for name, reasons in expected.items()]
    held.append(grown < 100)
    trust.held(sum(held), len(held))
    assert all(held), (found, grown)


def json_of(text: bytes) -> None:
    with pytest.raises(AssetError):
        parse_json(text, 8 * MB, 64)


def material_of(folder: Path, line: bytes) -> None:
    (folder / "a.mtl").write_bytes(b"newmtl a\n" + line + b"\n")
    read_mtl(folder / "a.mtl", "here", 8 * MB, Notes())


def libraries_of(folder: Path, text: bytes) -> None:
    (folder / "a.obj").write_bytes(text)
    side_files(folder / "a.obj")


LINEAR: dict[str, Callable[[Path], object]] = {
    "JSON of escaped quotes": lambda folder: json_of(b'{"a":' + b"[" * 70 + b'"' + b'\\"' * (MB // 2)),
    "JSON of quotes": lambda folder: json_of(b"[" * 70 + b'"' * (MB + 1)),
    "JSON of backslashes": lambda folder: json_of(b"[" * 70 + b'"' + b"\\" * (MB + 1)),
    "mtllib of spaces": lambda folder: libraries_of(folder, b"mtllib " + b" " * MB + b"\n"),
    "lines of mtllib": lambda folder: libraries_of(folder, b"mtllib \t\n" * (MB // 9)),
    "lines of spaces": lambda folder: libraries_of(folder, (b" " * 1000 + b"\n") * (MB // 1000)),
    "material of options": lambda folder: material_of(folder, b"map_Kd " + b"-clamp on " * (MB // 10) + b"a.png"),
    "material of numbers": lambda folder: material_of(folder, b"map_Kd " + b"-s 1 1 1 " * (MB // 9) + b"a.png"),
    "name of one kind": lambda folder: uid_of("." * MB + "/" + " " * MB),
    "path in a detail": lambda folder: PATH.search("/" + "a" * MB),
    "paths in a detail": lambda folder: PATH.search(" /a(" * (MB // 4)),
    "slashes in a detail": lambda folder: PATH.search("(/" * (MB // 2)),
    "GitHub": lambda folder: uri_of("github", "https://github.com/" + "a/blob/" * (MB // 7)),
    "Thingiverse": lambda folder: uri_of(
        "thingiverse", "https://www.thingiverse.com/thing:1/" + "?fileId=1" * (MB // 9)
    ),
    "key": lambda folder: key_of("a" * MB),
}


@pytest.mark.trust(27)
@pytest.mark.parametrize("name", LINEAR)
def test_a_megabyte_of_the_worst_text_takes_no_time(trust: Trust, tmp_path: Path, name: str) -> None:
    start = time.process_time()
    LINEAR[name](tmp_path)
    seconds = time.process_time() - start
    trust.held(seconds < 10, 1)
    assert seconds < 10


NOT_OF_STRANGERS = {"pipeline/blender/check.py"}


@pytest.mark.trust(27)
def test_no_expression_repeats_what_repeats(trust: Trust) -> None:
    """None nests one unbounded repetition in another, over all of the program's code."""
    nested = re.compile(r"[*+]\)[*+](?![+])|[*+]\)\{\d*,\}")
    code = [
        path
        for name in ("schemas", "geometry", "pipeline", "training", "seqtex")
        for path in (REPO / name).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(REPO)}: {line.strip()}"
        for path in code
        if str(path.relative_to(REPO)) not in NOT_OF_STRANGERS
        for line in path.read_text().splitlines()
        if "re." in line and nested.search(line)
    ]
    trust.held(not found, 1)
    assert not found
