"""The axis that points up: files without one of their own mean the same asset once it is named, others stay."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.asset import process_asset
from pipeline.config import BuildConfig, config_from_dict
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig, UpAxis
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from schemas.codec import encode
from schemas.ledger import Rejected
from schemas.mesh import MeshRef, TexturedMesh
from schemas.sample import TextureSample
from tests.pipeline.mesh_io.test_exchange import collada, model, picture
from tests.support.small_gltf import box

CORNERS = [(0, 0, 0), (4, 0, 0.5), (4, 3, 0.25), (2, 1, 0), (0, 3, -0.5), (2, 1.5, 7)]
"""A concave polygon, and a peak above it."""
FACES = [(0, 1, 2, 3, 4), (0, 5, 1), (1, 5, 2), (2, 5, 3), (3, 5, 4), (4, 5, 0)]


def turned(x: float, y: float, z: float, up: UpAxis) -> str:
    """A point or direction of a Y-up file in a file with another axis up."""
    return f"{x} {y} {z}" if up == "y" else f"{x} {-z} {y}"


def written(suffix: str, up: UpAxis) -> str:
    """The same shape in one of the formats."""
    points = [turned(*corner, up) for corner in CORNERS]
    if suffix == ".obj":
        normal = f"vn {turned(0.25, -0.5, 1, up)}\n"
        faces = "".join("f " + " ".join(f"{i + 1}//1" for i in face) + "\n" for face in FACES)
        return "".join(f"v {point} 1 {0.1 * i} 0\n" for i, point in enumerate(points)) + normal + faces
    polygons = "".join(f"{len(face)} {' '.join(map(str, face))}\n" for face in FACES)
    if suffix == ".off":
        return f"OFF\n{len(points)} {len(FACES)} 0\n" + "\n".join(points) + "\n" + polygons
    if suffix == ".stl":
        fans = [(face[0], face[i], face[i + 1]) for face in FACES for i in range(1, len(face) - 1)]
        loops = ["\n".join(f"vertex {points[i]}" for i in fan) for fan in fans]
        facets = (f"facet normal 0 0 0\nouter loop\n{loop}\nendloop\nendfacet\n" for loop in loops)
        return "solid x\n" + "".join(facets) + "endsolid x\n"
    header = (
        f"ply\nformat ascii 1.0\nelement vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\n"
    )
    header += f"element face {len(FACES)}\nproperty list uchar int vertex_indices\nend_header\n"
    return header + "\n".join(points) + "\n" + polygons


def loaded(path: Path, up: UpAxis) -> TexturedMesh:
    found = load_asset(path, PreflightConfig(), up_axis=up)
    assert not isinstance(found, Rejected), found
    assert isinstance(found[1], TexturedMesh), found[1]
    return found[1]


def equal(one: TexturedMesh, other: TexturedMesh) -> bool:
    arrays = [name for name, value in asdict(one).items() if isinstance(value, np.ndarray)]
    assert {"vertices", "faces", "normals"} <= set(arrays)
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


@pytest.mark.parametrize("suffix", [".obj", ".off", ".ply", ".stl"])
def test_a_file_with_either_axis_up_is_the_same_mesh(tmp_path: Path, suffix: str) -> None:
    paths: dict[UpAxis, Path] = {"y": tmp_path / f"y{suffix}", "z": tmp_path / f"z{suffix}"}
    for up, path in paths.items():
        path.write_text(written(suffix, up))
    upright = loaded(paths["y"], "y")
    np.testing.assert_array_equal(upright.vertices.max(axis=0), [4, 3, 7])
    as_told, as_default = loaded(paths["z"], "z"), loaded(paths["z"], "y")
    order = np.lexsort(upright.vertices.T), np.lexsort(as_told.vertices.T)
    if suffix == ".stl":  # corners in one place become one vertex, which come by their places
        upright, as_told = (
            replace(m, vertices=m.vertices[o], faces=np.argsort(o).astype(np.int32)[m.faces], normals=m.normals[o])
            for m, o in zip((upright, as_told), order, strict=True)
        )
    assert equal(upright, as_told)
    assert not np.signbit(as_told.vertices[as_told.vertices == 0]).any()
    np.testing.assert_array_equal(as_default.vertices.max(axis=0), [4, 0.5, 3])


def test_formats_that_say_which_axis_is_up_are_not_turned(tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(box().glb())
    picture(tmp_path)
    (tmp_path / "a.dae").write_text(collada())
    triangle = '<mesh><vertices><vertex x="0" y="0" z="0"/><vertex x="2" y="0" z="0"/><vertex x="0" y="3" z="1"/>'
    triangle += '</vertices><triangles><triangle v1="0" v2="1" v3="2"/></triangles></mesh>'
    (tmp_path / "a.3mf").write_bytes(model(f'<object id="1">{triangle}</object>', '<item objectid="1"/>'))
    for suffix in (".glb", ".dae", ".3mf"):
        assert equal(loaded(tmp_path / f"a{suffix}", "y"), loaded(tmp_path / f"a{suffix}", "z"))


def test_an_asset_with_either_axis_up_is_the_same_sample(tmp_path: Path, assets_dir: Path) -> None:
    source = assets_dir / "spot_cow_obj" / "spot_triangulated.obj"
    shutil.copytree(source.parent, tmp_path / "z")
    lines = source.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("v ", "vn ")):
            kind, x, y, z = line.split()
            lines[number] = f"{kind} {turned(float(x), float(y), float(z), 'z')}"
    rotated = tmp_path / "z" / source.name
    rotated.write_text("\n".join(lines))
    cfg = BuildConfig(views=RenderConfig(resolution=48), uv=BakeConfig(resolution=96))
    samples = [
        process_asset(MeshRef(uid="cow", uri=str(path)), replace(cfg, up_axis=up)).result
        for path, up in ((source, "y"), (rotated, "z"), (rotated, "y"))
    ]
    fields = [encode(sample) for sample in samples if isinstance(sample, TextureSample)]
    assert len(fields) == 3
    metas = [json.loads(field.pop("json")) for field in fields]
    assert fields[0] == fields[1], "every picture, map and array, byte for byte"
    for meta in metas:
        meta["measurements"].pop("bytes")
    assert metas[0] == metas[1]
    assert fields[2] != fields[0] and metas[2] != metas[0], "a file on its back is another sample"


def test_the_axis_is_recorded_where_it_is_named() -> None:
    turned_config = BuildConfig(up_axis="z")
    assert "up_axis" not in BuildConfig().recorded(), "datasets of earlier versions are built on"
    assert turned_config.recorded() == BuildConfig().recorded() | {"up_axis": "z"}
    assert config_from_dict(BuildConfig, asdict(turned_config)) == turned_config
