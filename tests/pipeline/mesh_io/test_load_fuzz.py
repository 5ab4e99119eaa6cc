"""Any file, however mutated, ends in a mesh or in a reason."""

import time
from dataclasses import replace
from pathlib import Path

import meshopt
import numpy as np
from PIL import Image

from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.side_files import asset_sha256, side_files
from schemas.ledger import Rejected
from schemas.mesh import TexturedMesh
from tests.support.small_gltf import BOX_FACES, CORNERS, Builder, box, preflight, primitive

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes changed, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, kind = int(rng.integers(0, len(out))), int(rng.integers(0, 5))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at : at + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()
        elif kind == 2:
            out[at : at + 1] = bytes([int(rng.choice(list(b'0123456789-.e"[]{},:')))])
        elif kind == 3:
            del out[at : at + int(rng.integers(1, 9))]
        else:
            out[at:at] = out[at : at + int(rng.integers(1, 9))]
    return bytes(out)


VALUES: list[object] = [-1, 0, 1, 2, 7, 99, 2**31, 2**40, 0.5, 1e-300, 1e300, 10**400, True, None, "", "x", [], {}]
"""Values that a mutated tree may hold anywhere."""


def mutated_tree(node: object, rng: np.random.Generator) -> None:
    """One value somewhere below `node` replaced, removed or doubled."""
    while isinstance(node, dict | list) and node:
        key = list(node)[int(rng.integers(0, len(node)))] if isinstance(node, dict) else int(rng.integers(0, len(node)))
        below = node[key]  # type: ignore[index]
        if isinstance(below, dict | list) and below and rng.random() < 0.9:
            node = below
            continue
        if rng.random() < 0.2:
            del node[key]  # type: ignore[arg-type]
        else:
            node[key] = VALUES[int(rng.integers(0, len(VALUES)))]  # type: ignore[index]
        return


def rich() -> Builder:
    """Skin, instances, morph targets, sparse and compressed values, KTX2, colours, shading: more to go wrong."""
    builder = box()
    attributes = primitive(builder)["attributes"]
    attributes["JOINTS_0"] = builder.accessor(np.zeros((8, 4), np.uint8))
    attributes["WEIGHTS_0"] = builder.accessor(np.tile(np.float32([1, 0, 0, 0]), (8, 1)))
    attributes["COLOR_0"] = builder.accessor(np.full((8, 4), 200, np.uint8), normalized=True)
    lift = builder.sparse(np.uint8([1, 7]), np.float32([[0, 2, 0], [1, 0, 0]]), 8)
    primitive(builder)["targets"] = [{"POSITION": lift}]
    builder.tree["meshes"][0]["weights"] = [0.5]
    moves = {"TRANSLATION": builder.accessor(np.float32([[5, 0, 0], [0, 0, 7]]))}
    instances = {"EXT_mesh_gpu_instancing": {"attributes": moves}}
    builder.tree["nodes"] = [
        {"mesh": 0, "skin": 0},
        {"translation": [3, 0, 0], "children": [2]},
        {"mesh": 0, "extensions": instances},
    ]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    stored = builder.accessor(np.eye(4, dtype=np.float32).reshape(1, 16))
    builder.tree["skins"] = [{"joints": [1], "inverseBindMatrices": stored}]
    points = builder.compressed(meshopt.encode_gltf_buffer(CORNERS, "ATTRIBUTES"), 8, 12, "ATTRIBUTES")
    corners = builder.compressed(meshopt.encode_gltf_buffer(BOX_FACES.reshape(-1), "TRIANGLES"), 36, 2, "TRIANGLES")
    builder.tree["accessors"][0]["bufferView"] = points
    builder.tree["accessors"][2]["bufferView"] = corners
    builder.tree["samplers"] = [{"wrapS": 33071}]
    builder.tree["textures"][0]["sampler"] = 0
    images = [builder.image((ASSETS / f"{name}.ktx2").read_bytes(), "image/ktx2") for name in ("etc1s", "uastc_zstd")]
    builder.tree["textures"] += [{"extensions": {"KHR_texture_basisu": {"source": image}}} for image in images]
    rough = {"baseColorTexture": {"index": 1}, "metallicRoughnessTexture": {"index": 0}}
    builder.tree["materials"][0] = {"pbrMetallicRoughness": rough, "normalTexture": {"index": 2, "scale": 0.5}}
    return builder


def test_mutations_end_in_a_mesh_or_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(20250611)
    makers = [box, rich]
    path = tmp_path / "asset.glb"
    outcomes: dict[str, int] = {}
    slowest = 0.0
    for number in range(2000):
        builder = makers[number % 2]()
        if number % 4 < 2:
            for _ in range(int(rng.integers(1, 4))):
                mutated_tree(builder.tree, rng)
            path.write_bytes(builder.glb())
        elif number % 8 < 4:
            builder.data = mutated(builder.data, rng)
            path.write_bytes(builder.glb())
        else:
            path.write_bytes(mutated(builder.glb(), rng))
        start = time.process_time()
        opened = load_asset(path, PreflightConfig(), shading=True)
        slowest = max(slowest, time.process_time() - start)
        found = opened if isinstance(opened, Rejected) else opened[1]
        if number % 10 == 0:
            facts, again = preflight(path, PreflightConfig()), load_mesh(path)
            assert facts == (opened if isinstance(opened, Rejected) else replace(opened[0], notes=()))
            assert isinstance(again, Rejected) == isinstance(found, Rejected)
        if isinstance(found, TexturedMesh):
            assert np.isfinite(found.vertices).all() and found.faces.max() < len(found.vertices)
        name = found.reason.value if isinstance(found, Rejected) else "mesh"
        outcomes[name] = outcomes.get(name, 0) + 1
    assert slowest < 2.0
    assert outcomes["mesh"] > 100 and len(outcomes) >= 8, outcomes  # the mutations do reach the inside


WORDS = (
    b"usemtl a", b"usemtl A", b"mtllib a.mtl b.mtl", b"mtllib ..\\x.mtl", b"f 1 2", b"f 0 1 2", b"f 1 2 4 3 7",
    b"f 1/0/0 2 3",
    b"v nan 0 0", b"v 1 2 3 200 9 9", b"vt 1", b"\xef\xbb\xbf", b"\r", b"\\\n", b"v 500000.125 0 4e6",
    b"vn 1.#IND 0 0", b"#",
)  # fmt: skip
"""Text that is put in the midst of an OBJ."""
MTL_WORDS = (
    b"newmtl b", b"map_Kd -s 2 2 1 t.tga", b"map_d -o .5 T.TIF", b"map_Kd C:\\x\\t.bmp", b"map_Kd \"t.gif\" # x",
    b"map_d t.dds",
    b"Pr 0.5", b"Ke 4 x", b"map_Pr -imfchan b t.png", b"bump -bm nan t.tga", b"norm -s 2 t.png",
    b"Kd 0.5", b"Kd 200 0 0", b"Tr 1", b"d -halo 0.5 # x", b"map_Kd ../t.png",
    b"map_Kd -clamp on -t 1 t.png", b"\xef\xbb\xbf",
    b"map_Kd -o nan t.png", b"map_d -imfchan r t.tga", b"h\xf6lz",
)  # fmt: skip


MTL = b"newmtl a\nmap_Kd t.png\nmap_d t.tga\nmap_Pr t.bmp\nbump -bm 2 t.gif\nPm 1\n"


def with_words(data: bytes, words: tuple[bytes, ...], rng: np.random.Generator) -> bytes:
    """A text with some lines of others put in, then some bytes changed in every other one."""
    lines = data.split(b"\n")
    for _ in range(int(rng.integers(0, 4))):
        lines.insert(int(rng.integers(0, len(lines) + 1)), words[int(rng.integers(0, len(words)))])
    return mutated(b"\n".join(lines), rng) if rng.random() < 0.5 else b"\n".join(lines)


def test_mutated_objs_with_materials_and_images_end_in_a_mesh_or_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(20250614)
    pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    images = {}
    for suffix in ("png", "tga", "bmp", "tif", "gif", "dds"):
        pixels.save(tmp_path / f"t.{suffix}")
        images[tmp_path / f"t.{suffix}"] = (tmp_path / f"t.{suffix}").read_bytes()
    text = "mtllib a.mtl\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS) + "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    text += "usemtl a\nf 1/1 2/2 4/3 3/4\nf 5/1 7/2 8/3 6/4\nf 1/1 5/2 6/3 2/4\nusemtl c\nf 3/1 4/2 8/3 7/4\n"
    (tmp_path / "b.mtl").write_text("newmtl c\nKd 1 0 0\n")
    path, outcomes = tmp_path / "asset.obj", dict[str, int]()
    for _ in range(400):
        path.write_bytes(with_words(text.encode(), WORDS, rng))
        (tmp_path / "a.mtl").write_bytes(with_words(MTL, MTL_WORDS, rng))
        image = list(images)[int(rng.integers(0, len(images)))]
        image.write_bytes(mutated(images[image], rng))
        assert asset_sha256(path, side_files(path, tmp_path)) == asset_sha256(path, side_files(path, tmp_path))
        start = time.process_time()
        found = load_mesh(path, shading=True, materials=True)
        assert time.process_time() - start < 2.0
        image.write_bytes(images[image])
        if isinstance(found, TexturedMesh):
            assert np.isfinite(found.vertices).all() and found.faces.max() < len(found.vertices)
            assert found.layers is not None and np.isfinite(found.layers.normal.uv).all()
        name = found.reason.value if isinstance(found, Rejected) else "mesh"
        outcomes[name] = outcomes.get(name, 0) + 1
    assert outcomes["mesh"] > 60 and len(outcomes) >= 4, outcomes


def test_mutated_objs_end_in_a_mesh_or_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(20250612)
    (tmp_path / "a.mtl").write_text("newmtl red\nKd 1 0 0\nNs 10\n")
    text = "mtllib a.mtl\n# box\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS)
    text += "vt 0 0\nvt 1 0 0\nvt 1 1\nvn 0 0 1\nusemtl red\n"
    text += "f 1/1 2/2 4/3\nf 1//1 2//1 3//1\nf -8 -4 -3 -7\nf 5/1/1 6/2/1 8/3/1\n"
    path = tmp_path / "asset.obj"
    outcomes: dict[str, int] = {}
    for _ in range(1500):
        path.write_bytes(mutated(text.encode(), rng))
        found = load_mesh(path)
        if isinstance(found, TexturedMesh):
            assert np.isfinite(found.vertices).all() and found.faces.max() < len(found.vertices)
        name = found.reason.value if isinstance(found, Rejected) else "mesh"
        outcomes[name] = outcomes.get(name, 0) + 1
    assert outcomes["mesh"] > 100 and len(outcomes) >= 4, outcomes
