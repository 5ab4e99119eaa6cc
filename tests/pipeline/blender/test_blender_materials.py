"""Baked materials against Blender's importer and baker, which share no code with ours: for every convention of a file,
normals within a degree on 99 % of texels, metallic, roughness and emitted light within 2/255."""

import copy
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geometry.frames import Frame
from geometry.texture import linear_to_srgb
from pipeline.asset import process_asset
from pipeline.render.uv_maps import BakeConfig
from pipeline.sources.folder import folder
from schemas.sample import MaterialMaps, TextureSample, UvMaps
from tests.pipeline.render.test_materials import CFG, Change, attributes_of, coded, remap, square
from tests.support.small_gltf import Builder, pack

REPO = Path(__file__).resolve().parents[3]
SIDE = 128
NORMAL_DEG, LEVELS = 1.0, 2.0
SHARE = 0.99


def slopes(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A normal map of smooth bumps that repeats, red and green unlike each other."""
    x = 0.35 * np.sin(2 * np.pi * columns) + 0.1
    y = 0.3 * np.cos(2 * np.pi * (rows + columns)) - 0.05
    normals = np.dstack([x, y, np.ones_like(x)])
    return coded(normals / np.linalg.norm(normals, axis=2, keepdims=True))


ROWS, COLUMNS = np.mgrid[:256, :256] / 256
BUMPS = slopes(COLUMNS, ROWS)
WAVES = np.sin(2 * np.pi * COLUMNS), np.cos(2 * np.pi * ROWS), np.sin(2 * np.pi * (ROWS - COLUMNS))
ROUGH = np.dstack([np.zeros_like(ROWS), 125 + 85 * WAVES[0], 130 + 100 * WAVES[1]]).astype(np.uint8)
GLOW = np.dstack([130 + 120 * WAVES[2], 120 + 100 * WAVES[0], 128 + 120 * WAVES[1]]).astype(np.uint8)
MAPPED: dict[str, Any] = {
    "pbrMetallicRoughness": {"metallicRoughnessTexture": {"index": 1}, "metallicFactor": 0.9, "roughnessFactor": 0.8},
    "normalTexture": {"index": 2},
    "emissiveTexture": {"index": 3},
    "emissiveFactor": [1.0, 0.5, 0.25],
    "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 3.0}},
}
CONSTANT: dict[str, Any] = {
    "pbrMetallicRoughness": {"metallicFactor": 0.35, "roughnessFactor": 0.65},
    "emissiveFactor": [0.2, 0.4, 0.8],
}


def transformed(material: dict[str, Any]) -> dict[str, Any]:
    """Other offsets and scales for each map; the roughness is turned as well."""
    rough = {"KHR_texture_transform": {"offset": [0.2, 0.3], "scale": [0.7, 0.4], "rotation": 0.5}}
    bump = {"KHR_texture_transform": {"offset": [0.1, 0.45], "scale": [1.5, 0.5]}}
    glow = {"KHR_texture_transform": {"offset": [-0.35, 0.6], "scale": [2.0, 1.0], "rotation": -1.2}}
    surface = material["pbrMetallicRoughness"] | {"metallicRoughnessTexture": {"index": 1, "extensions": rough}}
    return material | {
        "pbrMetallicRoughness": surface,
        "normalTexture": {"index": 2, "extensions": bump},
        "emissiveTexture": {"index": 3, "extensions": glow},
    }


def wrapped(builder: Builder) -> None:
    """Coordinates of TEXCOORD_1 beyond [0, 1] for all but the base colour, and three ways to wrap."""
    corners = np.array([[-0.3, -0.6], [1.6, -0.6], [1.6, 1.7], [-0.3, 1.7]], np.float32)
    attributes_of(builder)["TEXCOORD_1"] = builder.accessor(corners[:, [1, 0]].copy())
    builder.tree["samplers"] = [{"wrapS": u, "wrapT": v} for u, v in ((33648, 33648), (10497, 10497), (33071, 33071))]
    for number, texture in enumerate(builder.tree["textures"][1:]):
        texture["sampler"] = number
    material = builder.tree["materials"][0]
    for use in (
        material["pbrMetallicRoughness"]["metallicRoughnessTexture"],
        material["normalTexture"],
        material["emissiveTexture"],
    ):
        use["texCoord"] = 1


def with_tangents(builder: Builder) -> None:
    """Mirrored coordinates, and the tangents that belong to them."""
    remap(np.array([[-1.0, 0.0], [0.0, 1.0]]))(builder)
    attributes_of(builder)["TANGENT"] = builder.accessor(np.tile(np.float32([-1, 0, 0, -1]), (4, 1)))


def mirrored_node(builder: Builder) -> None:
    builder.tree["nodes"][0]["scale"] = [-1, 1, 1]


def flipped(image: np.ndarray) -> np.ndarray:
    return np.dstack([image[..., 0], 255 - image[..., 1], image[..., 2]])


def ball(material: dict[str, Any], images: list[np.ndarray], repeats: float) -> Builder:
    """A sphere whose textures repeat around it: it gets a layout of its own, with tangents of its own."""
    builder = square(copy.deepcopy(material), images)
    v, u = np.meshgrid(np.linspace(0.02, 0.98, 25), np.linspace(0, 1, 49), indexing="ij")
    turn, height = 2 * np.pi * u, np.pi * (v - 0.5)
    points = np.stack([np.cos(height) * np.cos(turn), np.sin(height), -np.cos(height) * np.sin(turn)], -1)
    points = (points / np.abs(points).max(axis=(0, 1))).reshape(-1, 3).astype(np.float32)
    index = np.arange(v.size).reshape(v.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    primitive = builder.tree["meshes"][0]["primitives"][0]
    primitive["attributes"] = {
        "POSITION": builder.accessor(points),
        "NORMAL": builder.accessor(points / np.linalg.norm(points, axis=1, keepdims=True)),
        "TEXCOORD_0": builder.accessor((np.stack([u, 1 - v], -1) * repeats).reshape(-1, 2).astype(np.float32)),
    }
    primitive["indices"] = builder.accessor(faces.reshape(-1).astype(np.uint16))
    return builder


def mapped(change: Change | None = None, bumps: np.ndarray = BUMPS, **other: Any) -> Builder:
    return square(copy.deepcopy(MAPPED | other), [ROUGH, bumps, GLOW], change)


TURN, MIRROR = np.array([[0.0, 1.0], [-1.0, 0.0]]), np.array([[-1.0, 0.0], [0.0, 1.0]])
CASES: dict[str, Callable[[], Builder]] = {
    "mapped": mapped,
    "constant": lambda: square(dict(CONSTANT), []),
    "green points down": lambda: mapped(bumps=flipped(BUMPS)),
    "mirrored coordinates": lambda: mapped(remap(MIRROR)),
    "mirrored coordinates, tangents of the file": lambda: mapped(with_tangents),
    "mirrored node": lambda: mapped(mirrored_node),
    "normal scale": lambda: mapped(normalTexture={"index": 2, "scale": 1.7}),
    "quarter turn": lambda: mapped(remap(TURN)),
    "transforms": lambda: square(transformed(MAPPED), [ROUGH, BUMPS, GLOW]),
    "wrap modes on a second set": lambda: mapped(wrapped),
    "sphere": lambda: ball(MAPPED, [ROUGH, BUMPS, GLOW], 1.0),
    "sphere, new layout": lambda: ball(MAPPED, [ROUGH, BUMPS, GLOW], 2.0),
}


@dataclass(frozen=True)
class Baked:
    """One file, baked by both."""

    maps: UvMaps
    materials: MaterialMaps
    strength: float
    theirs: np.ndarray
    layout: str
    inside: np.ndarray = field(init=False)
    """Texels of both, away from the border of a chart, where one mean has texels that the other has not."""

    def __post_init__(self) -> None:
        mask = self.maps.mask & np.isfinite(self.theirs).all(axis=(0, 3))
        padded = np.pad(mask, 1)
        inside = np.logical_and.reduce(
            [padded[1 + y : 1 + y + len(mask), 1 + x : 1 + x + len(mask)] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        )
        object.__setattr__(self, "inside", inside)


def prepared(
    directory: Path, name: str, content: bytes, side: int = SIDE, samples: int = 16
) -> tuple[TextureSample, dict[str, Any]]:
    """Our sample of a file, and the job that has Blender bake the same texels, each the mean of `samples`."""
    (directory / "asset.glb").write_bytes(content)
    (ref,) = folder(directory)
    processed = process_asset(ref, replace(CFG, uv=BakeConfig(resolution=side)))
    sample = processed.result
    assert isinstance(sample, TextureSample) and sample.mesh is not None, (name, processed)
    frame = sample.meta["frame"]
    asset = Frame(center=np.array(frame["center"]), scale=frame["scale"]).to_asset(sample.mesh.vertices)
    places = np.stack([asset[:, 0], -asset[:, 2], asset[:, 1]], axis=1)  # as Blender imports glTF: Z up
    np.savez(directory / "atlas.npz", places=places[sample.mesh.faces], uv=sample.mesh.uv[sample.mesh.faces])
    files = {"source": "asset.glb", "atlas": "atlas.npz", "target": "baked.npy"}
    return sample, {key: str(directory / file) for key, file in files.items()} | {"side": side, "samples": samples}


def bake_all(
    python: str, directory: Path, prepared_: dict[str, tuple[TextureSample, dict[str, Any]]]
) -> dict[str, Baked]:
    (directory / "jobs.json").write_text(json.dumps([job for _, job in prepared_.values()]))
    command = [python, "-I", str(REPO / "tests/support/blender_bake.py"), str(directory / "jobs.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    found = {}
    for name, (sample, job) in prepared_.items():
        assert sample.uv is not None and sample.uv.materials is not None and sample.mesh is not None
        strength = sample.meta["materials"]["emissive_strength"]
        found[name] = Baked(sample.uv, sample.uv.materials, strength, np.load(job["target"]), sample.mesh.layout)
    return found


@pytest.fixture(scope="module")
def blender() -> str:
    python = os.environ.get("SEQTEX_BLENDER", str(REPO / ".venv-blender/bin/python"))
    if not os.access(python, os.X_OK):
        pytest.skip(f"no Blender at {python}: run `make blender` (or set SEQTEX_BLENDER) to run this test")
    return python


@pytest.fixture(scope="module")
def baked(blender: str, tmp_path_factory) -> dict[str, Baked]:
    directory, jobs = tmp_path_factory.mktemp("bakes"), {}
    for number, (name, make) in enumerate(CASES.items()):
        own = directory / str(number)
        own.mkdir()
        builder = make()
        tree = builder.tree | {"buffers": [{"byteLength": len(builder.data)}]}
        side = 2 * SIDE if "new layout" in name else SIDE  # its charts leave each texture few texels
        jobs[name] = prepared(own, name, pack(json.dumps(tree).encode(), builder.data), side)
    return bake_all(blender, directory, jobs)


def normal_errors(case: Baked) -> np.ndarray:
    """Angles in degrees between our shading normals and Blender's, on the texels of both."""
    ours, theirs = case.materials.normal_detail[case.inside], case.theirs[0][case.inside]
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip((ours * theirs).sum(axis=1), -1, 1)))


def level_errors(case: Baked) -> dict[str, np.ndarray]:
    """Differences in 8-bit levels by channel: metallic and roughness linear, emitted light sRGB as it is stored."""
    ours, inside = case.materials.metallic_roughness.astype(float), case.inside
    glow = np.clip(linear_to_srgb(np.maximum(case.theirs[3], 0) / case.strength), 0, 1) * 255.0
    return {
        "metallic": np.abs(ours[..., 0] - 255.0 * case.theirs[2][..., 0])[inside],
        "roughness": np.abs(ours[..., 1] - 255.0 * case.theirs[1][..., 0])[inside],
        "emitted": np.abs(case.materials.emissive.astype(float) - glow).max(axis=-1)[inside],
    }


@pytest.mark.parametrize("name", CASES)
def test_blender_bakes_the_same_normals(baked, name):
    case = baked[name]
    assert case.inside.sum() > 0.3 * SIDE**2
    assert (case.layout == "authored") != ("new layout" in name)
    errors = normal_errors(case)
    assert (errors < NORMAL_DEG).mean() >= SHARE, np.quantile(errors, [0.5, 0.9, 0.99, 1.0])


@pytest.mark.parametrize("name", CASES)
def test_blender_bakes_the_same_metallic_roughness_and_light(baked, name):
    for channel, errors in level_errors(baked[name]).items():
        assert (errors <= LEVELS).mean() >= SHARE, (channel, np.quantile(errors, [0.5, 0.9, 0.99, 1.0]))


def test_the_truths_are_unlike_each_other(baked):
    """A convention that either side gets wrong would show: each case's normals are far from those of the plain one."""
    plain = baked["mapped"].theirs[0]
    for name in ("green points down", "mirrored coordinates", "quarter turn", "normal scale", "mirrored node"):
        other = baked[name].theirs[0]
        both = np.isfinite(plain).all(axis=-1) & np.isfinite(other).all(axis=-1)
        angles = np.degrees(np.arccos(np.clip((plain[both] * other[both]).sum(axis=1), -1, 1)))
        assert np.median(angles) > 5.0, name
    assert baked["mapped"].materials.metallic_roughness[baked["mapped"].inside].std(axis=0).min() > 30
