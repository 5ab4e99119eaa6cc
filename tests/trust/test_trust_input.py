"""The fault matrix, promises 15 to 19: files from strangers."""

import dataclasses
import json
import os
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import meshopt
import numpy as np
import pytest

from pipeline.blender.host import BlenderConfig, convert
from pipeline.dataset.plan import plan_jobs
from pipeline.executor.job import process_job
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.sandbox.child import LimitsConfig, run_child
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.codec import UID_PATTERN, decode
from schemas.dataset import part_path, read_ledger_part, shard_path
from schemas.ledger import Outcome, Reason, Rejected, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.shards import read_shard
from tests.pipeline.mesh_io.test_load_fuzz import mutated, mutated_tree, rich
from tests.pipeline.mesh_io.test_preflight import CONTAINERS, OBJS, SPOILED, gltf, spoiled
from tests.support.small_gltf import CORNERS, QUADRANTS, Builder, box, pack, png, preflight, primitive
from tests.trust.test_trust_sandbox import SMALL
from tests.trust.trust import Trust

CFG = PreflightConfig()
PATIENT = dataclasses.replace(SMALL, limits=LimitsConfig())


def new_output(out: Path) -> Path:
    for name in ("shards", "ledger", ".work"):
        (out / name).mkdir(parents=True)
    return out


def rows(
    refs: list[MeshRef], out: Path, target: str = "pipeline.executor.job:process_in_child", path: tuple[Path, ...] = ()
) -> list[Outcome]:
    process_job(ShardJob(index=0, refs=tuple(refs)), new_output(out), PATIENT, target, path)
    return list(read_ledger_part(part_path(out, 0)).outcomes)


# 15


def png_of_one_colour(side: int) -> bytes:
    """A whole, valid PNG of 1 bit a pixel: some 110 KB at 30,000 pixels a side, which decode to 3.6 GB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer, row = zlib.compressobj(9), b"\0" * (1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.compress(row * (side % 100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", rows + packer.flush()), chunk(b"IEND", b""))
    )


def _image(builder: Builder, encoded: bytes) -> None:
    builder.tree["textures"][0]["source"] = builder.image(encoded)


def _meshopt(builder: Builder, count: int, stride: int = 12) -> None:
    encoded = meshopt.encode_gltf_buffer(CORNERS, "ATTRIBUTES")
    builder.tree["accessors"][0]["bufferView"] = builder.compressed(encoded, count, stride, "ATTRIBUTES")


def _draco(builder: Builder, count: int) -> None:
    view = builder.view(b"DRACO\x02\x02\x01\x01\0\0" + b"\xff" * 64)
    entry = primitive(builder)
    for accessor in (entry["attributes"]["POSITION"], entry["indices"]):
        builder.tree["accessors"][accessor].pop("bufferView")
        builder.tree["accessors"][accessor]["count"] = count
    entry["attributes"] = {"POSITION": entry["attributes"]["POSITION"]}
    entry["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": view, "attributes": {"POSITION": 0}}}


def _deep(builder: Builder, depth: int) -> None:
    builder.tree["nodes"] = [{"children": [i + 1]} for i in range(depth)] + [{"mesh": 0}]


def _wide_instances(builder: Builder) -> None:
    """A tree in which every level doubles what is below: 2^40 meshes in 41 nodes, were it a tree."""
    builder.tree["nodes"] = [{"children": [i + 1, i + 1]} for i in range(40)] + [{"mesh": 0}]


def _sparse(builder: Builder, **changes: int) -> None:
    accessor = builder.sparse(np.array([0], np.uint16), np.zeros((1, 3), np.float32), 8)
    builder.tree["accessors"][accessor]["sparse"] |= changes
    primitive(builder)["attributes"]["POSITION"] = accessor


MORE = {
    "a real PNG of 30,000 x 30,000": (lambda b: _image(b, png_of_one_colour(30_000)), Reason.TOO_LARGE),
    "nodes 20,000 deep": (lambda b: _deep(b, 20_000), Reason.INVALID_STRUCTURE),
    "a node twice below each": (_wide_instances, Reason.INVALID_STRUCTURE),
    "a node below itself": (lambda b: b.tree["nodes"][0].update(children=[0]), Reason.INVALID_STRUCTURE),
    "meshopt of 2^31 elements": (lambda b: _meshopt(b, 2**31), Reason.TOO_LARGE),
    "meshopt of 2^53 elements": (lambda b: _meshopt(b, 2**53), Reason.INVALID_STRUCTURE),
    "Draco of 2^31 vertices": (lambda b: _draco(b, 2**31), Reason.TOO_LARGE),
    "sparse of 2^31 values": (lambda b: _sparse(b, count=2**31), Reason.INVALID_STRUCTURE),
    "sparse of -1 values": (lambda b: _sparse(b, count=-1), Reason.INVALID_STRUCTURE),
}


def _length(data: bytes, length: int) -> bytes:
    return data[:8] + struct.pack("<I", length) + data[12:]


BYTES = {
    "length too long": (lambda: _length(box().glb(), 1 << 20), Reason.LENGTH_MISMATCH),
    "length too short": (lambda: _length(box().glb(), 100), Reason.LENGTH_MISMATCH),
    "length of 2^32 - 1": (lambda: _length(box().glb(), 2**32 - 1), Reason.LENGTH_MISMATCH),
    "bytes after the end": (lambda: box().glb() + b"\0" * 100, Reason.LENGTH_MISMATCH),
    "JSON of a million objects": (lambda: pack(b'{"a":[' + b"{}," * 1_000_000 + b"{}]}"), Reason.INVALID_STRUCTURE),
    "JSON larger than its limit": (lambda: pack(b'{"a":"' + b"x" * (33 << 20) + b'"}'), Reason.TOO_LARGE),
    "JSON of one long number": (lambda: pack(b'{"a":1' + b"0" * 5_000_000 + b"}"), Reason.INVALID_JSON),
}


def corpus(directory: Path) -> dict[str, tuple[Path, Reason | None]]:
    """Every hostile file of these tests and of `test_preflight`, with the reason that it must end with."""
    data = {name: (spoiled(change), reason) for name, (change, reason) in (SPOILED | MORE).items()}
    data |= {name: (make(), reason) for name, (make, reason) in BYTES.items()} | dict(CONTAINERS)
    found = {}
    for number, (name, (content, reason)) in enumerate(data.items()):
        path = directory / f"{number:03d}.glb"
        path.write_bytes(content)
        found[name] = (path, reason)
    (directory / "leaves.mtl").write_text("newmtl a\nmap_Kd /etc/hostname\n")
    (directory / "missing.mtl").write_text("newmtl a\nmap_Kd -s 1 1 1 my map.png\n")
    for number, (name, (text, reason)) in enumerate(OBJS.items()):
        path = directory / f"{number:03d}.obj"
        path.write_text(text)
        found[f"obj: {name}"] = (path, reason)
    return found


@pytest.mark.trust(15)
def test_hostile_files_end_with_their_reason_in_little_time_and_memory(tmp_path: Path, trust: Trust) -> None:
    files, wrong = corpus(tmp_path), {}
    assert files["a real PNG of 30,000 x 30,000"][0].stat().st_size < 150_000
    for name, (path, reason) in files.items():
        own = tmp_path / "own"
        own.mkdir(exist_ok=True)

        def work(path: Path = path, own: Path = own) -> None:
            start = time.process_time()
            found = preflight(path, CFG)
            told = found.reason if isinstance(found, Rejected) else None
            (own / "told").write_text(json.dumps([told, time.process_time() - start]))

        ended = run_child(work, LimitsConfig(timeout_s=60.0, memory_gb=1.0), own)
        if ended.reason is not None:
            wrong[name] = ended.detail
            continue
        told, seconds = json.loads((own / "told").read_text())
        if told != reason or seconds >= 2.0:
            wrong[name] = (told, seconds)
    trust.held(len(files) - len(wrong), len(files))
    assert not wrong


# 16

SECRET = b"canary-5f1d0c-" * 4
URIS = [
    "../secret.png",
    "%2e%2e/secret.png",
    "%2e%2e%2fsecret.png",
    "a/../../secret.png",
    "a%2f..%2f..%2fsecret.png",
    "..\\secret.png",
    "..%5csecret.png",
    "{outside}/secret.png",
    "//{outside}/secret.png",
    "file://{outside}/secret.png",
    "FILE:{outside}/secret.png",
    "http://127.0.0.1:{port}/secret.png",
    "https://127.0.0.1:{port}/secret.png",
    "//127.0.0.1:{port}/secret.png",
    "link.png",
    "folder/secret.png",
    "./link.png",
    "link.png%00.png",
    "/proc/self/environ",
    "/proc/self/cwd/../../secret.png",
]
HOOK = """
import os, sys
from pathlib import Path
from pipeline.executor.job import process_in_child

def run(request, directory):
    allowed = [Path(request["ref"]["uri"]).parent.resolve(), directory.resolve()]
    outside = Path(request["ref"]["caption"]).resolve()

    def watch(event, args):
        if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.system"):
            os._exit(99)
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = Path(os.path.realpath(os.fsdecode(args[0])))
            inside = any(path.is_relative_to(folder) for folder in allowed)
            if (path.is_relative_to(outside) and not inside) or path.name in ("environ", "passwd"):
                os._exit(99)

    sys.addaudithook(watch)
    process_in_child(request, directory)
"""


def secret_png() -> bytes:
    """A valid image, so that whoever follows a path to it has a texture."""
    encoded = png(QUADRANTS)
    text = b"tEXt" + b"k\0" + SECRET
    return encoded[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + encoded[33:]


def _asking(kind: str, uri: str, inside: Path) -> Path:
    """An asset that refers to `uri` as `kind`."""
    builder, path = box(), inside / ("asset.obj" if kind in ("mtllib", "map_Kd") else "asset.gltf")
    if kind == "image":
        builder.tree["images"] = [{"uri": uri}]
        path.write_bytes(gltf(builder, inside))
    elif kind == "buffer":
        tree = builder.tree | {"buffers": [{"byteLength": len(builder.data), "uri": uri}]}
        path.write_text(json.dumps(tree))
    else:
        (inside / "a.mtl").write_text(f"newmtl a\nmap_Kd {uri if kind == 'map_Kd' else 'no.png'}\n")
        library = uri if kind == "mtllib" else "a.mtl"
        path.write_text(f"mtllib {library}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl a\nf 1/1 2/1 3/1\n")
    return path


def _listen() -> tuple[socket.socket, list[bytes]]:
    """A server on this machine that remembers who came."""
    server, came = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            came.append(b"connected")
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    return server, came


@pytest.mark.trust(16)
def test_nothing_outside_an_asset_s_folder_is_opened_or_told(tmp_path: Path, trust: Trust) -> None:
    server, came = _listen()
    outside, port = tmp_path / "outside", server.getsockname()[1]
    outside.mkdir()
    (tmp_path / "hook.py").write_text(HOOK)
    (outside / "secret.png").write_bytes(secret_png())
    kinds = ("image", "buffer", "mtllib", "map_Kd")
    uris = URIS if trust.full else URIS[::3]
    refs = []
    for number, (kind, uri) in enumerate((kind, uri) for kind in kinds for uri in uris):
        inside = outside / f"asset-{number}"
        inside.mkdir()
        (inside / "link.png").symlink_to(outside / "secret.png")
        (inside / "folder").symlink_to(outside)
        path = _asking(kind, uri.format(outside=outside, port=port), inside)
        refs.append(MeshRef(uid=f"a-{number}", uri=str(path), caption=str(outside)))
    allowed = outside / "allowed"  # the same image where it may be: what follows would find it
    allowed.mkdir()
    (allowed / "inside.png").write_bytes(secret_png())
    refs.append(MeshRef(uid="allowed", uri=str(_asking("image", "inside.png", allowed)), caption=str(outside)))
    found = rows(refs, tmp_path / "out", "hook:run", (tmp_path,))
    server.close()
    assert found[-1].status is Status.ACCEPTED, found[-1]
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or SECRET[:14] not in file.read_bytes(), file
    hostile = found[:-1]
    refused = [row.reason in (Reason.UNSAFE_URI, Reason.MISSING_FILE) and "canary" not in row.detail for row in hostile]
    trust.held(sum(refused) if not came else 0, len(hostile))
    assert not came
    assert all(refused), [(row.reason, row.detail) for row, good in zip(hostile, refused, strict=True) if not good]


# 17


@pytest.mark.trust(17)
def test_an_asset_that_takes_too_much_is_refused_and_never_textureless(tmp_path: Path, trust: Trust) -> None:
    """Images that pass the preflight and whose pixels take up to 1 GB, under limits up to 2 GB."""
    rng, count = trust.rng(), trust.count(full=40, short=2)
    cases = [
        (16_000, 2.0),
        *zip(rng.integers(2_000, 13_000, count - 1), rng.uniform(0.02, 2.0, count - 1), strict=True),
    ]
    ends = []
    for number, (side, memory_gb) in enumerate(cases):
        builder, own = box(), tmp_path / str(number)
        _image(builder, png_of_one_colour(int(side)))
        own.mkdir()
        (own / "bomb.glb").write_bytes(builder.glb())
        assert not isinstance(preflight(own / "bomb.glb", CFG), Rejected)

        def work(own: Path = own) -> None:
            found = load_asset(own / "bomb.glb", CFG)
            mesh = found[1] if isinstance(found, tuple) else found
            textured = not isinstance(mesh, Rejected) and mesh.materials[0].texture is not None
            (own / "told").write_text(str(mesh.reason) if isinstance(mesh, Rejected) else f"textured {textured}")

        ended = run_child(work, LimitsConfig(timeout_s=120.0, memory_gb=float(memory_gb)), own)
        ends.append(str(ended.reason) if ended.reason else (own / "told").read_text())
    refused = {str(Reason.MEMORY_LIMIT), str(Reason.TOO_LARGE)}
    held = [end in refused or end == "textured True" for end in ends]
    trust.held(sum(held), count)
    assert all(held), list(zip(cases, ends, strict=True))
    assert ends[0] in refused  # 1 GB of pixels, which no 2 GB hold with what decoding takes
    assert not trust.full or len(set(ends)) > 1


# 18


def mutation(number: int, rng: np.random.Generator) -> bytes:
    """A sound file with something wrong: in its tree, in its data, or anywhere in its bytes."""
    builder = (box, rich)[number % 2]()
    if number % 4 < 2:
        for _ in range(int(rng.integers(1, 4))):
            mutated_tree(builder.tree, rng)
        return builder.glb()
    if number % 8 < 4:
        builder.data = mutated(builder.data, rng)
        return builder.glb()
    return mutated(builder.glb(), rng)


@pytest.mark.trust(18)
def test_mutated_files_through_preflight(tmp_path: Path, trust: Trust) -> None:
    rng, count, reasons = trust.rng(), trust.count(full=10_000, short=200), Counter[str]()
    path = tmp_path / "asset.glb"
    for number in range(count):
        path.write_bytes(mutation(number, rng))
        found = preflight(path, CFG)
        reasons[str(found.reason) if isinstance(found, Rejected) else "sound"] += 1
    trust.held(reasons.total(), count)
    assert len(reasons) >= 8, reasons  # the mutations do reach the inside


@pytest.mark.trust(18)
def test_mutated_files_through_a_job(tmp_path: Path, trust: Trust) -> None:
    """All the way: what cannot be told is a failure of ours, and there is none."""
    rng, count, refs = trust.rng(), trust.count(full=500, short=16), []
    for number in range(count):
        path = tmp_path / f"{number}.glb"
        path.write_bytes(mutation(number, rng))
        refs.append(MeshRef(uid=f"a-{number}", uri=str(path)))
    found = rows(refs, tmp_path / "out")
    told = [row.status in (Status.ACCEPTED, Status.REJECTED) for row in found]
    trust.held(sum(told), count)
    assert all(told), [(row.reason, row.detail) for row in found if row.status is Status.FAILED]


USDA = (
    '#usda 1.0\n(\n    defaultPrim = "Box"\n    upAxis = "Y"\n)\ndef Mesh "Box"\n{\n'
    "    int[] faceVertexCounts = [3, 3]\n    int[] faceVertexIndices = [0, 1, 2, 0, 2, 3]\n"
    "    point3f[] points = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0.5)]\n"
    "    texCoord2f[] primvars:st = [(0, 0), (1, 0), (1, 1), (0, 1)] (\n"
    '        interpolation = "vertex"\n    )\n}\n'
)


@pytest.mark.trust(18)
@pytest.mark.timeout(7200)
def test_mutated_files_through_blender(tmp_path: Path, trust: Trust) -> None:
    python = os.environ.get("SEQTEX_BLENDER", str(Path(__file__).resolve().parents[2] / ".venv-blender/bin/python"))
    if not Path(python).is_file():
        pytest.skip(f"no Blender at {python}: run `make blender` (or set SEQTEX_BLENDER)")
    rng, count, told = trust.rng(), trust.count(full=300, short=4), Counter[str]()
    for number in range(count):
        source, target = tmp_path / f"{number}.usda", tmp_path / f"{number}.glb"
        source.write_bytes(mutated(USDA.encode(), rng) if number else USDA.encode())
        found = convert(source, target, BlenderConfig(python=python), CFG.max_file_bytes)
        opened = found if isinstance(found, Rejected) else load_asset(found, CFG)
        mesh = opened[1] if isinstance(opened, tuple) else opened
        told[str(mesh.reason) if isinstance(mesh, Rejected) else "mesh"] += 1
    trust.held(told.total(), count)
    assert told["mesh"] > 0, told


# 19

NAMES = [
    "it's.glb",
    'a "quoted".glb',
    "$(touch canary).glb",
    "`touch canary`.glb",
    "; touch canary;.glb",
    "| touch canary.glb",
    "-rf.glb",
    "--help.glb",
    "new\nline.glb",
    "tab\tand\rreturn.glb",
    "..glb.glb",
    "...glb",
    "%2e%2e%2fcanary.glb",
    "..\\canary.glb",
    "nul\x01\x7f.glb",
    "\u202egnp.glb",
    "\u0430\u0455set \u65e5\u672c \U0001f4a3 e\u0301.glb",
    "x" * 251 + ".glb",
    "*?[a].glb",
    "{uid}.glb",
    "%s%n.glb",
    "pipe:touch canary.glb",
    "<script>.glb",
    os.fsdecode(b"not utf-8 \xff\xfe.glb"),
]


@pytest.mark.trust(19)
def test_hostile_names_are_only_names(tmp_path: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "meshes"
    source.mkdir()
    monkeypatch.chdir(tmp_path)
    data = Path(next(iter(procedural(1, tmp_path / "made"))).uri).read_bytes()
    long = source.joinpath(*["y" * 200] * 18)  # a path of nearly 4 KB
    long.mkdir(parents=True)
    paths = [source / name for name in NAMES] + [long / "deep.glb"]
    for path in paths:
        path.write_bytes(data)
    refs = list(folder(source))
    assert len(refs) == len(paths) == len({ref.uid for ref in refs})
    out = new_output(tmp_path / "out")
    (job,) = plan_jobs(refs, len(refs))
    process_job(job, out, PATIENT)
    found = read_ledger_part(part_path(out, 0)).outcomes
    stored = {uid: fields for name in ("textured-000000.tar",) for uid, fields in read_shard(shard_path(out, name))}
    held = []
    for row in found:
        known, sound = Path(row.uri) in paths, UID_PATTERN.fullmatch(row.uid) is not None
        accepted = known and row.status is Status.ACCEPTED and decode(stored[row.uid]).uid == row.uid
        held.append(sound and (accepted or (not known and row.reason is Reason.MISSING_FILE)))
    assert sum(row.reason is Reason.MISSING_FILE for row in found) == 1  # the name that is no text
    trust.held(sum(held), len(paths))
    assert all(held), [row for row, good in zip(found, held, strict=True) if not good]
    assert not list(tmp_path.rglob("canary")) and not Path("canary").exists()
