"""The fault matrix, promise 18, format by format: mutated meshes and images end as a mesh or as a rejection."""

import io
import json
import re
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import SUFFIXES, PreflightConfig
from schemas.ledger import Rejected
from schemas.mesh import TexturedMesh
from tests.pipeline.mesh_io.test_exchange import SIZES, collada, coloured_ply, picture, textured_ply
from tests.pipeline.mesh_io.test_load_fuzz import ASSETS, MTL_WORDS, WORDS, mutated, mutated_tree, rich, with_words
from tests.support.small_gltf import BOX_FACES, CORNERS, QUADRANTS, box
from tests.trust.test_trust_input import mutation
from tests.trust.trust import Trust

CFG = PreflightConfig(max_file_bytes=2**22, max_faces=10_000, max_image_bytes=2**24)
SLOWEST_S = 2.0
"""Processor seconds that no small file may take."""
Files = Iterator[Path]


def glb(folder: Path, rng: np.random.Generator) -> Files:
    for number in range(2**31):
        (folder / "a.glb").write_bytes(mutation(number, rng))
        yield folder / "a.glb"


def gltf(folder: Path, rng: np.random.Generator) -> Files:
    """Its tree, its text or its buffer beside it is wrong."""
    for number in range(2**31):
        builder = (box, rich)[number % 2]()
        builder.tree["buffers"] = [{"byteLength": len(builder.data), "uri": "a.bin"}]
        for _ in range(int(rng.integers(1, 4)) if number % 4 < 2 else 0):
            mutated_tree(builder.tree, rng)
        text = json.dumps(builder.tree).encode()
        (folder / "a.gltf").write_bytes(mutated(text, rng) if number % 8 >= 6 else text)
        data = bytes(builder.data)
        (folder / "a.bin").write_bytes(mutated(data, rng) if number % 8 in (2, 3) else data)
        yield folder / "a.gltf"


OBJ = (
    "mtllib a.mtl\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS) + "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvn 0 0 1\n"
)
OBJ += (
    "usemtl a\nf 1/1 2/2 4/3 3/4\nf 5/1/1 7/2/1 8/3/1 6/4/1\nf -8/1 -4/2 -3/3 -7/4\nusemtl b\nf 3//1 4//1 8//1 7//1\n"
)


def obj(folder: Path, rng: np.random.Generator) -> Files:
    """It or its library is wrong."""
    picture(folder)
    while True:
        (folder / "a.obj").write_bytes(with_words(OBJ.encode(), WORDS, rng))
        (folder / "a.mtl").write_bytes(with_words(b"newmtl a\nmap_Kd t.png\nnewmtl b\nKd 1 0 0\n", MTL_WORDS, rng))
        yield folder / "a.obj"


def _any_of(suffix: str, forms: list[bytes]) -> Callable[[Path, np.random.Generator], Files]:
    """Mutations of each form of a format in turn."""

    def files(folder: Path, rng: np.random.Generator) -> Files:
        picture(folder)
        for number in range(2**31):
            (folder / f"a.{suffix}").write_bytes(mutated(forms[number % len(forms)], rng))
            yield folder / f"a.{suffix}"

    return files


NUMBER = re.compile(rb"(?<![\w.])-?\d+(\.\d+)?(?![\w.])")
"""A number in XML, in an attribute or a list."""
VALUES = (b"-1", b"0", b"7", b"99999", b"1e300", b"nan", b"-0.5", b"2147483648", b"", b"x", b"1 2", b"#id")


def renumbered(data: bytes, rng: np.random.Generator) -> bytes:
    """A text that stays well-formed, with a few of its numbers replaced."""
    for _ in range(int(rng.integers(1, 4))):
        places = list(NUMBER.finditer(data))
        chosen = places[int(rng.integers(0, len(places)))]
        data = data[: chosen.start()] + VALUES[int(rng.integers(0, len(VALUES)))] + data[chosen.end() :]
    return data


def dae(folder: Path, rng: np.random.Generator) -> Files:
    """Its text is wrong, or two times of three its numbers."""
    picture(folder)
    for number in range(2**31):
        (folder / "a.dae").write_bytes((renumbered if number % 3 else mutated)(collada().encode(), rng))
        yield folder / "a.dae"


def remade_png(rng: np.random.Generator) -> bytes:
    """A PNG whose checksums hold, with damage in its header or its rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header, rows = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0), b"".join(b"\1" + row.tobytes() for row in QUADRANTS)
    header, rows = (mutated(header, rng), rows) if rng.random() < 0.3 else (header, mutated(rows, rng))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _exported(kind: str) -> bytes:
    data = trimesh.Trimesh(CORNERS * SIZES, BOX_FACES, process=False).export(file_type=kind)
    return data if isinstance(data, bytes) else data.encode()


def three_mf(folder: Path, rng: np.random.Generator) -> Files:
    """The archive is wrong, or three times of four a model in it."""
    data = _exported("3mf")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for number in range(2**31):
        (folder / "a.3mf").write_bytes(mutated(data, rng))
        if number % 4:
            with zipfile.ZipFile(folder / "a.3mf", "w") as archive:
                for name, part in parts.items():
                    archive.writestr(name, mutated(part, rng) if name.endswith(".model") else part)
        yield folder / "a.3mf"


FORMATS: dict[str, Callable[[Path, np.random.Generator], Files]] = {
    "glb": glb,
    "gltf": gltf,
    "obj": obj,
    "ply": _any_of(
        "ply", [*map(coloured_ply, ("ascii", "binary_little_endian", "binary_big_endian")), textured_ply(True).encode()]
    ),
    "stl": _any_of("stl", [_exported("stl"), _exported("stl_ascii")]),
    "off": _any_of("off", [_exported("off")]),
    "dae": dae,
    "3mf": three_mf,
}
IMAGES = ("png", "jpg", "webp", "ktx2", "tga", "bmp", "tif", "gif", "dds")


def outcomes(files: Files, count: int) -> Counter[str]:
    """Count the outcomes of the files; fail where one takes too long or is neither a sound mesh nor rejected with a
    reason."""
    found = Counter[str]()
    for _, path in zip(range(count), files, strict=False):
        start = time.process_time()
        opened = load_asset(path, CFG, path.parent, shading=True)
        assert time.process_time() - start < SLOWEST_S, path.read_bytes()[:2000]
        mesh = opened if isinstance(opened, Rejected) else opened[1]
        if isinstance(mesh, TexturedMesh):
            assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)
            assert all(texture.image.size for texture in mesh.textures)
        else:
            assert mesh.detail
        found["mesh" if isinstance(mesh, TexturedMesh) else str(mesh.reason)] += 1
    return found


def test_every_format_is_mutated() -> None:
    assert {f".{name}" for name in FORMATS} == set(SUFFIXES)


@pytest.mark.trust(18)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_mutated_meshes_of_every_format(tmp_path: Path, trust: Trust, name: str) -> None:
    count = trust.count(full=2_000, short=40)
    found = outcomes(FORMATS[name](tmp_path, trust.rng()), count)
    trust.held(found.total(), count)
    assert found["mesh"] and len(found) >= 2, found  # the mutations do reach the inside


@pytest.mark.trust(18)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", IMAGES)
def test_mutated_images_of_every_format(tmp_path: Path, trust: Trust, suffix: str) -> None:
    count, rng = trust.count(full=2_000, short=40), trust.rng()
    pixels = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))
    path, image = tmp_path / "a.obj", tmp_path / f"t.{suffix}"
    if suffix == "ktx2":
        sound = [(ASSETS / f"{name}.ktx2").read_bytes() for name in ("etc1s", "uastc_zstd")]
    else:
        pixels.save(image)
        sound = [image.read_bytes()]

    def files() -> Files:
        path.write_text(OBJ)
        (tmp_path / "a.mtl").write_text(f"newmtl a\nmap_Kd t.{suffix}\nnewmtl b\nKd 1 0 0\n")
        for number in range(count):
            whole = remade_png(rng) if suffix == "png" and number % 2 else None  # else its checksums hide the inside
            image.write_bytes(whole or mutated(sound[number % len(sound)], rng))
            yield path

    found = outcomes(files(), count)
    trust.held(found.total(), count)
    assert found["mesh"] and found["bad_image"], found
