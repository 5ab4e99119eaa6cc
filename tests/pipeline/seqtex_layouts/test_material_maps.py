"""Plain maps of samples: values of each, what other readers make of the .glb, and what happens without materials."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from geometry.frames import normalise
from geometry.texture import LINEAR_DECODE
from pipeline.mesh_io.load import load_mesh
from schemas.mesh import TexturedMesh
from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from seqtex.cli.main import main
from tests.pipeline.render.test_materials import coded, flat, sample_of, square, tilted
from tests.support.small_dataset import small_sample, write_samples

SURFACE = {"metallicRoughnessTexture": {"index": 1}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A tilted, glowing, half metallic square."""
    directory = tmp_path_factory.mktemp("square")
    rough = np.concatenate([flat(np.array([0, 60, 255])), flat(np.array([0, 200, 0]))], axis=1)
    material = {
        "pbrMetallicRoughness": dict(SURFACE),
        "normalTexture": {"index": 2},
        "emissiveFactor": [1.0, 0.0, 0.0],
        "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 4.0}},
    }
    sample = sample_of(directory, square(material, [rough, flat(coded(tilted((0, 1))))]))
    write_samples(directory / "dataset", [[sample]])
    return directory / "dataset"


def export(dataset: Path, out: Path, *options: str) -> int:
    return main(["export", str(dataset), "--layout", "maps", "--out", str(out), "--log", "json", *options])


def only_sample(dataset: Path) -> TextureSample:
    (sample,) = stored_samples(dataset, *Regime)
    return sample


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_maps_are_those_of_the_sample(dataset, tmp_path):
    assert export(dataset, tmp_path / "out") == 0
    sample = only_sample(dataset)
    assert sample.uv is not None and sample.uv.materials is not None
    folder, maps = tmp_path / "out" / sample.uid, sample.uv.materials
    assert sorted(path.name for path in folder.iterdir()) == [
        "base_color.png", "emissive.png", "metallic.png", "metallic_roughness.png", "model.glb", "normal_gl.png",
        "roughness.png", "sample.json",
    ]  # fmt: skip
    np.testing.assert_array_equal(picture(folder / "base_color.png"), sample.uv.rgb)
    metallic, roughness = picture(folder / "metallic.png"), picture(folder / "roughness.png")
    np.testing.assert_array_equal(np.dstack([metallic, roughness]), maps.metallic_roughness)
    assert (metallic[:, 4:60] == 255).all() and (roughness[:, 4:60] == 60).all() and (roughness[:, 68:124] == 200).all()
    packed = picture(folder / "metallic_roughness.png")
    np.testing.assert_array_equal(packed, np.dstack([np.full_like(metallic, 255), roughness, metallic]))
    green_up = picture(folder / "normal_gl.png").reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(green_up, (tilted((0, 1)) + 1) * 127.5, atol=1.5)
    assert picture(folder / "emissive.png")[64, 64].tolist() == [255, 0, 0]
    found = json.loads((folder / "sample.json").read_bytes())
    assert found["emissive_strength"] == 4.0 and found["id"] == sample.uid
    assert (tmp_path / "out" / "maps.jsonl").read_bytes() == (folder / "sample.json").read_bytes()


def test_readers_find_all_maps_in_the_model(dataset, tmp_path):
    assert export(dataset, tmp_path / "out") == 0
    sample = only_sample(dataset)
    path = tmp_path / "out" / sample.uid / "model.glb"
    other = trimesh.load(path, force="mesh", process=False).visual.material
    np.testing.assert_array_equal(np.asarray(other.normalTexture), picture(path.with_name("normal_gl.png")))
    np.testing.assert_array_equal(
        np.asarray(other.metallicRoughnessTexture), picture(path.with_name("metallic_roughness.png"))
    )
    mesh = load_mesh(path, materials=True)
    assert isinstance(mesh, TexturedMesh) and mesh.layers is not None and sample.mesh is not None
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), [2, 2, 0], atol=1e-6)
    assert mesh.layers.emissive_strength == 4.0
    again, _ = normalise(mesh)
    assert again.layers is not None and again.layers.normal.textures[0] is not None
    bump = LINEAR_DECODE[again.textures[again.layers.normal.textures[0]].image[64, 64, :3]] * 2 - 1
    tangent, sign = again.layers.tangents[0, 0, :3], again.layers.tangents[0, 0, 3]
    normal = again.normals[again.faces[0, 0]]
    world = bump[0] * tangent + bump[1] * sign * np.cross(normal, tangent) + bump[2] * normal
    assert sample.uv is not None and sample.uv.materials is not None
    world /= np.linalg.norm(world)
    assert world @ sample.uv.materials.normal_detail[64, 64] > np.cos(np.radians(1.0))


def test_without_materials_there_is_base_color_alone(tmp_path):
    write_samples(tmp_path / "dataset", [[small_sample("a", Regime.TEXTURED, 0), small_sample("b", Regime.MV_ONLY, 1)]])
    assert export(tmp_path / "dataset", tmp_path / "out") == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["a/base_color.png", "a/model.glb", "a/sample.json", "maps.jsonl"]


def test_what_cannot_be_exported_is_named(dataset, tmp_path, capsys):
    write_samples(tmp_path / "views", [[small_sample("b", Regime.MV_ONLY, 1)]])
    assert export(tmp_path / "views", tmp_path / "out") == 1
    assert "no sample of regime textured" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert export(dataset, tmp_path / "full") == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert export(dataset, tmp_path / "other", "--uid", "nobody") == 2
    assert "nobody" in capsys.readouterr().err
