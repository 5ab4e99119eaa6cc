"""A server of Objaverse's layout on this machine, which fails as often and in as many ways as it is told."""

import contextlib
import gzip
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.mesh_io.write_glb import Primitive, encode_glb
from tests.support.loopback import loopback

FAULTS = ("503", "cut", "slow", "wrong length", "missing")
SLOW_S = 1.4
"""Longer than any timeout in the tests, which are long enough for a busy machine."""
LICENCES = ("by", "by-sa", "by-nc", "cc0")
CATEGORIES = (("Furniture & Home", "furniture-home"), ("Cars & Vehicles", "cars-vehicles"))


@dataclass
class World:
    """Content of the server, and the requests to it. Faults depend on file and number of the request alone."""

    files: dict[str, bytes]
    annotations: dict[str, dict]
    failing: float = 0.0
    only_faults: tuple[str, ...] = FAULTS
    gone: set[str] = field(default_factory=set)
    hashes: bool = False
    """Redirect and name sha256s, as Hugging Face does."""
    asked: Counter = field(default_factory=Counter)
    delivered: Counter = field(default_factory=Counter)
    """Answers that were sent to their end, from wherever they began."""
    faults: Counter = field(default_factory=Counter)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    rows: list["XlRow"] = field(default_factory=list)
    """Rows of Objaverse-XL."""
    sent: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    on_delivery: Callable[[int], None] = lambda count: None
    """Called with the number of answers sent to their end."""

    def fault(self, path: str) -> str | None:
        with self.lock:
            self.asked[path] += 1
            draw = random.Random(f"{path} {self.asked[path]}")
            kind = draw.choice(self.only_faults) if draw.random() < self.failing else None
            if path in self.gone:
                kind = "missing"
            if kind:
                self.faults[kind] += 1
            return kind

    def uids(self) -> list[str]:
        return sorted(self.annotations)


def glb_of(number: int) -> bytes:
    """A few hundred triangles, others for each number."""
    rng = np.random.default_rng(number)
    positions = rng.uniform(-1, 1, (240 + number % 97, 3))
    faces = np.arange(len(positions) // 3 * 3).reshape(-1, 3)
    return encode_glb([Primitive(positions=positions, normals=positions, faces=faces, material=None)], [], {})


def make_world(count: int, folders: int = 5) -> World:
    paths, files, annotations = {}, {}, {}
    for number in range(count):
        uid = hashlib.md5(f"asset {number}".encode()).hexdigest()
        paths[uid] = f"glbs/000-{number % folders:03d}/{uid}.glb"
        files[paths[uid]] = glb_of(number)
        annotations[uid] = annotation_of(uid, number)
    files["object-paths.json.gz"] = packed(paths)
    for folder in range(folders):
        part = {uid: annotations[uid] for uid, path in paths.items() if path.startswith(f"glbs/000-{folder:03d}/")}
        files[f"metadata/000-{folder:03d}.json.gz"] = packed(part)
    lvis = {"chair": [uid for uid in paths if annotations[uid]["number"] % 10 == 0]}
    lvis["mug"] = [uid for uid in paths if annotations[uid]["number"] % 10 == 1]
    files["lvis-annotations.json.gz"] = packed(lvis)
    return World(files, annotations)


@dataclass(kw_only=True)
class XlRow:
    """An asset of Objaverse-XL as its annotations have it, and where the server has it."""

    origin: str
    identifier: str
    name: str
    data: bytes
    licence: str | None
    file_type: str = "glb"
    metadata: dict = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        self.sha256 = self.sha256 or hashlib.sha256(self.data).hexdigest()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def xl_row(number: int, origin: str) -> XlRow:
    data = glb_of(1000 * len(origin) + number)
    if origin == "github":
        inside = f"org-{number % 7}/repo.{number % 11}/blob/{COMMIT}/models/thing {number}.glb"
        name = f"raw/{inside.replace('/blob/', '/')}"
        licence = ("MIT License", "Apache License 2.0", None)[number % 3]
        return XlRow(origin=origin, identifier=f"https://github.com/{inside}", name=name, data=data, licence=licence)
    if origin == "smithsonian":
        inside = f"content/document/3d_package:{number}/resources/vase%20{number}-medium.glb"
        identifier, told = f"https://3d-api.si.edu/{inside}", {"title": f"Vase {number}"}
        name = f"si/{unquote(inside)}"
        return XlRow(origin=origin, identifier=identifier, name=name, data=data, licence="CC0", metadata=told)
    identifier = f"https://www.thingiverse.com/thing:{number}/files?fileId={number + 7}"
    name, data = f"things/download:{number + 7}", b"solid thing\n" + data
    return XlRow(origin=origin, identifier=identifier, name=name, data=data, licence="BSD License", file_type="stl")


def make_xl_world(count: int, more: Sequence[XlRow] = ()) -> World:
    """Objaverse 1.0 with `count` assets, as many in each other origin, and `more`."""
    world = make_world(count)
    rows = [xl_row(number, origin) for origin in ("github", "smithsonian", "thingiverse") for number in range(count)]
    paths = json.loads(gzip.decompress(world.files["object-paths.json.gz"]))
    for uid, path in paths.items():
        page, data = f"https://sketchfab.com/3d-models/{uid}", world.files[path]
        rows.append(XlRow(origin="sketchfab", identifier=page, name=path, data=data, licence="by"))
    world.rows = [*rows, *more]
    world.files |= {row.name: row.data for row in world.rows}
    for origin in ("github", "sketchfab", "smithsonian", "thingiverse"):
        world.files[f"xl/{origin}/{origin}.parquet"] = annotations_of([r for r in world.rows if r.origin == origin])
    return world


def annotations_of(rows: Sequence[XlRow]) -> bytes:
    table = pa.table({
        "fileIdentifier": [row.identifier for row in rows],
        "source": [row.origin for row in rows],
        "license": pa.array([row.licence for row in rows], pa.string()),
        "fileType": [row.file_type for row in rows],
        "sha256": [row.sha256 for row in rows],
        "metadata": [json.dumps(row.metadata) for row in rows],
    })  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def annotation_of(uid: str, number: int) -> dict:
    """Return an annotation as Sketchfab writes it, what nobody reads left out; `number` is ours."""
    name, slug = CATEGORIES[number % 2]
    return {
        "number": number,
        "uid": uid,
        "name": f"Thing  {number}",
        "license": LICENCES[number % 4],
        "faceCount": 100 * number,
        "animationCount": number % 3,
        "archives": {"glb": {"textureCount": number % 2, "size": 1}, "usdz": None},
        "tags": [{"name": "wood" if number % 5 == 0 else "Steel", "slug": f"tag-{number % 7}"}],
        "categories": [{"name": name, "slug": slug}],
        "user": {"username": f"user{number}", "displayName": f"User {number}"},
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
    }


def packed(value: dict) -> bytes:
    return gzip.compress(json.dumps(value).encode(), mtime=0)


class _Handler(BaseHTTPRequestHandler):
    world: World

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(self.path.lstrip("/"))
        if self.world.hashes and not path.startswith("cdn/"):
            self._redirect(path)
            return
        path = path.removeprefix("cdn/")
        fault = self.world.fault(path)
        if path not in self.world.files or fault == "missing":
            self.send_error(404)
        elif fault == "503":
            self.send_error(503)
        else:
            with contextlib.suppress(ConnectionError):
                self._file(path, self.world.files[path], fault)

    def _redirect(self, path: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"/cdn/{path}")
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(self.world.files[path]).hexdigest()}"')
        self.end_headers()

    def _file(self, path: str, data: bytes, fault: str | None) -> None:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        begin = 0
        if "Range" in self.headers and self.headers.get("If-Range") == tag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.world.ranges.append((path, begin))
            if begin >= len(data):
                self.send_error(416)
                return
        body = data[begin:]
        if fault == "wrong length":
            body = body[: len(body) // 2]
        if fault == "wrong sha256":
            body = bytes(body[:4]) + bytes(b ^ 1 for b in body[4:])
        if fault == "flipped byte":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{begin + len(body)}")
        self.end_headers()
        if fault in ("cut", "slow"):
            body = body[: len(body) // 2]
        if fault == "trickle":
            for byte in body[:200]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
            return
        self.wfile.write(body)
        with self.world.lock:
            self.world.sent[path] += len(body)
            if fault is None:
                self.world.delivered[path] += 1
                self.world.on_delivery(sum(self.world.delivered.values()))
        if fault == "slow":
            self.wfile.flush()
            time.sleep(SLOW_S)


@contextlib.contextmanager
def serving(world: World) -> Iterator[World]:
    with loopback(_Handler, world=world) as world.url:
        yield world
