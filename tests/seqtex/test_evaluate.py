"""`seqtex evaluate` with a network that knows nothing and one that knows the answer."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import seqtex.cli.evaluate
from geometry.image_metrics import capped_psnr, psnr
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.report.images import error_colors
from pipeline.sources.procedural import procedural
from schemas.sample import TextureSample
from seqtex.cli.main import main
from seqtex.gallery.comparison import compared
from tests.support.gallery_dataset import glowing_square
from tests.support.small_checkpoint import UV, VIEW, TrueFlow, write_checkpoint
from tests.support.small_dataset import write_samples
from training.data.batch import encode_batch, to_model
from training.diffusion.encoders import DctCodec
from training.diffusion.latents import to_uint8, uv_to_image
from training.loop.checkpoints import load_checkpoint
from training.maps import MATERIAL_MAPS
from training.metrics.lpips import AlexFeatures
from training.metrics.surface import Seen, cross_view_consistency

CONFIG = BuildConfig(views=RenderConfig(resolution=VIEW), uv=BakeConfig(resolution=UV))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[TextureSample]:
    refs = procedural(4, tmp_path_factory.mktemp("meshes"), clean=True)
    found = [process_asset(ref, CONFIG).result for ref in refs]
    return [sample for sample in found if isinstance(sample, TextureSample) and sample.uv is not None]


@pytest.fixture(scope="module")
def dataset(samples, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "forge"
    write_samples(out, [samples[:2], samples[2:]])
    return out


def evaluated(out, *options: object) -> dict:
    path = out / "metrics.json"
    assert main(["evaluate", *map(str, options), "--out", str(path), "--steps", "2"]) == 0
    return json.loads(path.read_text())


def test_a_dataset_that_cannot_be_read_is_named(dataset, checkpoint, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    path = damaged / "shards" / "textured-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    assert main(["evaluate", str(damaged), "--checkpoint", str(checkpoint), "--steps", "2"]) == 1
    assert f"{path}: 5000 bytes" in (told := capsys.readouterr().err) and f"seqtex repair {damaged}" in told
    assert main(["evaluate", str(tmp_path / "mistyped"), "--checkpoint", str(checkpoint)]) == 1
    assert f"{tmp_path / 'mistyped' / 'dataset.json'}: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["img2tex", "mv2tex", "geo2mvtex"])
def test_every_mesh_is_measured_and_summarised(dataset, samples, checkpoint, tmp_path, task):
    result = evaluated(tmp_path, dataset, "--checkpoint", checkpoint, "--task", task, "--batch_size", 3)
    assert [row["uid"] for row in result["meshes"]] == [sample.uid for sample in samples]
    for name, interval in result["summary"].items():
        values = [row[name] for row in result["meshes"] if name in row]
        assert interval["value"] == pytest.approx(np.mean(values))
        assert min(values) <= interval["low"] <= interval["high"] <= max(values)
    assert ("view_psnr" in result["summary"]) == (task != "mv2tex"), "given views are not measured"
    assert result["summary"]["uv_psnr"]["value"] < 15, "noise"


def test_a_network_that_knows_the_answer_is_as_good_as_its_codec(dataset, samples, checkpoint, tmp_path, monkeypatch):
    network = load_checkpoint(checkpoint)
    network.model.forward = TrueFlow(samples[0])  # type: ignore[method-assign]
    monkeypatch.setattr(seqtex.cli.evaluate, "load_checkpoint", lambda *arguments: network)
    (row,) = evaluated(tmp_path, dataset, "--checkpoint", checkpoint, "--meshes", 1)["meshes"]
    codec, sample = DctCodec(), samples[0]
    latents = encode_batch(to_model(sample), codec)
    assert sample.uv is not None and latents.uv is not None
    best = psnr(uv_to_image(codec.decode(latents.uv.rgb)[0]), sample.uv.rgb, sample.uv.mask)
    assert row["uv_psnr"] == pytest.approx(best, abs=0.2)
    assert row["uv_psnr"] > row["fill_psnr"] + 10
    assert row["render_psnr"] > 30
    assert row["seam_step"] == pytest.approx(row["true_seam_step"], abs=0.02)
    views, mask = to_uint8(codec.decode(latents.mv.rgb)[0]), sample.views.mask
    assert row["view_psnr"] == pytest.approx(psnr(views[1:], sample.views.rgb[1:], mask[1:]), abs=0.2)
    seen = Seen(position=sample.views.position, normal=sample.views.normal, mask=mask, cameras=sample.cameras)
    assert row["cross_view_step"] == pytest.approx(cross_view_consistency(views, seen).step, abs=2e-3)
    assert row["true_cross_view_step"] < row["cross_view_step"], "small views lose much in the codec"


def test_a_page_shows_every_mesh_beside_the_truth_the_worst_first(dataset, samples, checkpoint, tmp_path):
    """It is a folder of its own; what it shows as true is what the dataset holds."""
    report = tmp_path / "a report"
    result = evaluated(tmp_path, dataset, "--checkpoint", checkpoint, "--report", report)
    page = (report / "index.html").read_text()
    uids = [row["uid"] for row in sorted(result["meshes"], key=lambda row: row["uv_psnr"])]
    assert re.findall(r'<section class="section" id="([^"]+)">', page) == uids
    assert re.findall(r'<td><a href="#([^"]+)">', page) == uids
    assert "script-src" not in page and "default-src 'none'" in page and "index.html" not in page
    shown = re.findall(r'<img src="([^"]+)" width="(\d+)" height="(\d+)" loading="lazy" alt="([^"]+)">', page)
    assert len(shown) == page.count("<img ") == 8 * len(samples)
    assert {path.relative_to(report).as_posix() for path in report.rglob("*.webp")} == {one[0] for one in shown}
    sample = next(sample for sample in samples if sample.uid == uids[0])
    pictures = {alt: np.asarray(Image.open(report / address)) for address, _, _, alt in shown[:8]}
    for address, width, height, _ in shown:
        assert Image.open(report / address).size == (int(width), int(height))
    assert sample.uv is not None
    true, mask = (image.repeat(2, axis=0).repeat(2, axis=1) for image in (sample.uv.rgb, sample.uv.mask))
    assert capped_psnr(np.ascontiguousarray(pictures["UV map, true"][..., :3]), true, mask) > 28
    assert capped_psnr(np.ascontiguousarray(pictures["UV map, generated"][..., :3]), true, mask) < 20, "noise"
    assert (pictures["UV map, error"][..., 3][~mask] < 64).mean() > 0.95, "nothing outside the map"
    assert pictures["given"].shape[1] * 4 == pictures["views, true"].shape[1]


def test_errors_are_shown_where_they_are(samples):
    """None for the truth itself; a wrong texel is as bright as its difference, up to 64 of 255."""
    sample = samples[0]
    assert sample.uv is not None
    views, uv = sample.views.rgb, sample.uv.rgb
    same = compared(sample, views[:1], views, uv, views)
    for name in ("UV map, error", "its error against the true views"):
        assert (same[name][..., :3][same[name][..., 3] > 0] == error_colors(np.zeros((1, 1), np.uint8),
                np.ones((1, 1), bool), 1)[0, 0, :3]).all()  # fmt: skip
    row, column = np.argwhere(sample.uv.mask)[100]
    wrong = uv.copy()
    wrong[row, column] ^= 128
    shown = compared(sample, views[:0], views, wrong, views)
    factor = len(shown["UV map, error"]) // len(uv)
    differs = (shown["UV map, error"] != same["UV map, error"]).any(axis=-1)[::factor, ::factor]
    assert np.argwhere(differs).tolist() == [[row, column]]
    assert "given" not in shown
    assert "its error against the true views" not in compared(sample, views[:1], views, uv, views.repeat(2, axis=1))


def test_generated_materials_are_shown_by_what_their_channels_hold(tmp_path):
    sample = glowing_square(tmp_path)
    assert sample.uv is not None and sample.uv.materials is not None
    views, uv = sample.views.rgb, sample.uv.rgb
    maps = {name: kind.pack(sample.uv.materials) for name, kind in MATERIAL_MAPS.items()}
    maps["metallic_roughness"] = maps["metallic_roughness"] ^ np.uint8([0, 0, 128])
    shown = compared(sample, views[:1], views, uv, views, maps)
    names = ("roughness", "metallic", "normal map", "emitted light")
    assert [name for name in shown if name.endswith(", generated")][1:-1] == [f"{name}, generated" for name in names]
    for name in names:
        error = shown[f"{name}, error"]
        wrong = (error[..., :3][error[..., 3] > 0] > 200).any(axis=-1).mean()
        assert wrong == (1 if name == "metallic" else 0), name
    assert np.ptp(shown["roughness, true"][..., :3], axis=-1).max() == 0, "one channel is grey"
    assert np.ptp(shown["normal map, true"][..., :3], axis=-1).max() > 50
    without = replace(sample, uv=replace(sample.uv, materials=None))
    assert "metallic, generated" in (alone := compared(without, views[:1], views, uv, views, maps))
    assert "metallic, true" not in alone


def test_a_page_that_cannot_be_written_is_named(dataset, checkpoint, tmp_path, capsys):
    (tmp_path / "report").write_text("a file")
    words = ["evaluate", str(dataset), "--checkpoint", str(checkpoint), "--steps", "1", "--meshes", "1"]
    assert main([*words, "--report", str(tmp_path / "report")]) == 1
    assert "the page cannot be written" in (told := capsys.readouterr().err) and "--report" in told


def test_another_resolution_is_refused_with_the_remedy(checkpoint, tmp_path, capsys):
    (ref,) = procedural(1, tmp_path / "meshes", clean=True)
    sample = process_asset(ref, BuildConfig(views=RenderConfig(resolution=32), uv=BakeConfig(resolution=64))).result
    assert isinstance(sample, TextureSample)
    write_samples(tmp_path / "forge", [[sample]])
    assert main(["evaluate", str(tmp_path / "forge"), "--checkpoint", str(checkpoint)]) == 1
    assert f"--views.resolution {VIEW} --uv.resolution {UV}" in capsys.readouterr().err


def test_features_are_named_right_or_refused(dataset, checkpoint, tmp_path, capsys):
    assert main(["evaluate", str(dataset), "--checkpoint", str(checkpoint), "--features", "vgg:x"]) == 2
    assert "clip:PATH" in capsys.readouterr().err
    assert main(["evaluate", str(dataset), "--checkpoint", str(checkpoint), "--features", f"clip:{tmp_path}"]) == 1
    assert "no CLIP vision model" in capsys.readouterr().err


def test_sets_are_compared_by_the_features_of_a_clip_model(dataset, checkpoint, tmp_path):
    """A tiny random one of the same class."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=6,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "clip"
    )
    summary = evaluated(tmp_path, dataset, "--checkpoint", checkpoint, "--features", f"clip:{tmp_path / 'clip'}")[
        "summary"
    ]
    assert summary["fid (clip)"]["value"] > 0
    for name in ("kid x 1000 (clip)", "cmmd (clip)"):
        assert summary[name]["high"] >= summary[name]["value"] >= summary[name]["low"]


def test_lpips_is_measured_where_its_weights_are_given(dataset, checkpoint, tmp_path):
    torch.manual_seed(0)
    torch.save(AlexFeatures().state_dict(), tmp_path / "alexnet.pth")
    result = evaluated(
        tmp_path, dataset, "--checkpoint", checkpoint, "--meshes", 1, "--lpips", tmp_path / "alexnet.pth"
    )
    assert result["summary"]["uv_lpips"]["value"] > 0 and result["summary"]["view_lpips"]["value"] > 0
