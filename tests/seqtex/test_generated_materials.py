"""Materials generated with the base colour: in the .glb, in an evaluation, and beside what needs no learning."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

import seqtex.ablation.run
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.errors import UsageError
from schemas.sample import TextureSample
from seqtex.ablation.materials import compare, material_lines, mean_material, over_meshes
from seqtex.ablation.run import AblateConfig
from seqtex.cli.evaluate import measure_group
from seqtex.cli.main import main
from seqtex.texturing import texture
from tests.seqtex.test_ablate import SMALL, build_here
from tests.support.small_checkpoint import UV, VIEW, TrueFlow, write_checkpoint
from tests.support.small_dataset import write_samples
from training.diffusion.encoders import DctCodec
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import load_checkpoint
from training.maps import MATERIAL_MAPS

MAPS = ("base_color", "metallic_roughness", "normal_tangent", "emissive")
TEXTURES = {"metallic_roughness": "metallicRoughnessTexture", "normal_tangent": "normalTexture",
            "emissive": "emissiveTexture"}  # fmt: skip
CONFIG = BuildConfig(views=RenderConfig(resolution=VIEW, lit="pbr"), uv=BakeConfig(resolution=UV), materials=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint", maps=MAPS)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[TextureSample]:
    refs = procedural(2, tmp_path_factory.mktemp("meshes"), clean=True, materials=True)
    found = [process_asset(ref, CONFIG).result for ref in refs]
    return [sample for sample in found if isinstance(sample, TextureSample) and sample.uv is not None]


def test_generated_maps_are_the_textures_of_the_glb(checkpoint: Path, tmp_path: Path) -> None:
    (mesh,) = procedural(1, tmp_path, clean=True, materials=True)
    out = tmp_path / "out.glb"
    result = texture(mesh.uri, image=np.full((8, 8, 3), 200, np.uint8), checkpoint=checkpoint, steps=1, out=out)
    assert list(result.maps) == list(MAPS[1:])
    (found,) = trimesh.load_scene(out).geometry.values()
    material = found.visual.material
    np.testing.assert_array_equal(np.asarray(material.baseColorTexture), result.uv)
    for name, slot in TEXTURES.items():
        np.testing.assert_array_equal(np.asarray(getattr(material, slot)), result.maps[name])
        assert result.maps[name].std() > 1, "it was generated"
    assert material.metallicFactor == material.roughnessFactor == 1.0, "those of the file do not weigh upon it"
    assert list(material.emissiveFactor) == [1.0, 1.0, 1.0]


def test_an_evaluation_measures_generated_materials(
    samples: list[TextureSample], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (one, *_), network = samples, load_checkpoint(checkpoint)
    network.model.forward = TrueFlow(one, MAPS)
    (measured,) = measure_group([one], network, SamplerConfig(steps=4), "img2tex", [0], "cpu", lit=True)
    figures = {name.removesuffix("_psnr"): measured.figures[name] for name in measured.figures if name[-5:] == "_psnr"}
    kept = compare(one, np.uint8([0, 128, 128]), DctCodec())
    for name in ("metallic", "roughness"):
        assert figures[name] == pytest.approx(kept[f"codec_{name}_psnr"], abs=0.5), "what the codec keeps"
    assert {"normal_tangent", "emissive"} <= set(figures) and figures["roughness"] > 20
    write_samples(tmp_path / "lit", [samples])
    write_samples(tmp_path / "dark", [[replace(s, views=replace(s.views, lit=None)) for s in samples]])
    command = ["evaluate", str(tmp_path / "lit"), "--checkpoint", str(checkpoint), "--steps", "1", "--lit", "true"]
    assert main([*command, "--out", str(tmp_path / "found.json"), "--report", str(tmp_path / "page")]) == 0
    shown = (tmp_path / "page" / "index.html").read_text()
    assert all(f"{name}, generated" in shown for name in ("roughness", "metallic", "normal map", "emitted light"))
    assert {"metallic_psnr", "roughness_psnr"} <= set(json.loads((tmp_path / "found.json").read_text())["summary"])
    command[1] = str(tmp_path / "dark")
    assert main(command) == 1
    assert f"sample {one.uid} has no lit views; build its dataset with --views.lit pbr" in capsys.readouterr().err


def test_the_constant_is_the_mean_over_meshes_and_differences_are_taken_mesh_by_mesh(
    samples: list[TextureSample], tmp_path: Path
) -> None:
    write_samples(tmp_path / "data", [samples])
    images = [MATERIAL_MAPS["metallic_roughness"].pack(one.uv.materials)[one.uv.mask] for one in samples]
    expected = np.mean([image.mean(axis=0) for image in images], axis=0)
    np.testing.assert_allclose(mean_material(tmp_path / "data"), expected, atol=0.5)
    figures = compare(samples[0], np.uint8([0, 0, 0]), DctCodec())
    power = np.mean(images[0][..., 1].astype(float) ** 2)
    assert figures["constant_roughness_psnr"] == pytest.approx(10 * np.log10(255**2 / power))
    runs = [[{"a": 10.0 + mesh + seed, "b": 5.0 + mesh} for mesh in range(4)] for seed in (0, 2)]
    gap = over_meshes(runs, "a", "b")
    assert (gap.value, gap.low, gap.high) == (6.0, 6.0, 6.0), "the same for every mesh, whatever the meshes are like"
    assert over_meshes(runs, "a").low < over_meshes(runs, "a").value == 12.5


def test_an_ablation_trains_materials_beside_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seqtex.ablation.run, "build", build_here)
    cells = ["--cells", '["base", "materials"]', "--materials", "true", "--seeds", "1"]
    assert main(["ablate", "--out", str(tmp_path), *cells, *SMALL]) == 0
    runs = {run["cell"]: run for run in json.loads((tmp_path / "table.json").read_text())["runs"]}
    assert "metallic_psnr" not in runs["base"]["figures"]
    for prefix in ("", "constant_", "unlit_", "codec_"):
        assert f"{prefix}metallic_psnr" in runs["materials"]["figures"]
    assert runs["materials"]["figures"]["flow_uv"] == runs["materials"]["figures"]["flow_base_color"]
    config = json.loads((tmp_path / "runs" / "materials-0" / "config.json").read_text())
    assert config["model"]["maps"] == ["base_color", "metallic_roughness"] and config["data"]["augment"]["lit"] == 1.0
    table = (tmp_path / "table.md").read_text()
    assert all(line in table for line in material_lines(*([runs[cell]["meshes"]] for cell in ("materials", "base"))))
    with pytest.raises(UsageError, match="give --materials true"):
        AblateConfig(cells=["base", "materials"])
