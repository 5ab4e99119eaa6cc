"""The commands together, small: `seqtex demo`, then `train` and `texture` on what it leaves."""

import json
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from geometry.frames import bounding_box
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.write_glb import Material, Primitive, encode_glb
from schemas.mesh import TexturedMesh
from seqtex.cli.demo import DemoConfig, exit_code, score, show_result, summarise
from seqtex.cli.main import main
from seqtex.gallery.trials import LABEL, Trial
from training.config import preset
from training.train import train

pytestmark = pytest.mark.slow

SMALL = ["--mixed_assets", "20", "--clean_assets", "6", "--steps", "2", "--measured_meshes", "2"]
FIGURES = ("training_db", "training_nearest_db", "training_fill_db",
           "held_out_db", "held_out_nearest_db", "held_out_fill_db")  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Two steps: nothing is learnt, and the demo must say so."""
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out), *SMALL]) == 1
    return out


@pytest.mark.timeout(600)
def test_a_demo_below_the_fill_ends_with_1_and_a_summary_that_says_why(demo, capsys):
    summary = json.loads((demo / "summary.json").read_text())
    assert set(summary) == {"result", "steps", "planned_steps", "seconds", *FIGURES}
    assert (summary["result"], summary["steps"], summary["planned_steps"]) == ("failed", 2, 2)
    assert all(isinstance(summary[name], float) and 3 < summary[name] < 40 for name in FIGURES)
    assert summary["held_out_db"] < summary["held_out_fill_db"] < summary["held_out_nearest_db"]
    assert list(summary["seconds"]) == ["build", "verify", "train", "texture", "report"]
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert main(["demo", "--out", str(demo), *SMALL]) == 1, "run again it finds the same"
    output = capsys.readouterr().out
    assert "failed: no better than a fill" in output and "after 2 of 2 steps" in output and "{" not in output
    assert json.loads((demo / "summary.json").read_text()) | {"seconds": 0} == summary | {"seconds": 0}


def scored(psnr_db: float) -> Mock:
    return Mock(spec=Trial, psnr_db=psnr_db, nearest_db=15.0, fill_db=9.0)


@pytest.mark.parametrize(
    ("known_db", "unseen_db", "steps", "result", "code"),
    [
        (20.0, 17.0, 100, "passed", 0),
        (20.0, 17.0, 60, "undertrained", 0),
        (20.0, 8.9, 100, "failed", 1),
        (8.9, 17.0, 60, "failed", 1),
    ],
)
def test_the_result_follows_from_the_figures(known_db, unseen_db, steps, result, code, capsys, tmp_path):
    scores = [score("known", [scored(known_db)] * 2), score("unseen", [scored(unseen_db)] * 2)]
    summary = summarise(scores, steps, DemoConfig(steps=100))
    assert summary["result"] == result and exit_code(summary) == code
    show_result(summary, tmp_path, tmp_path / "demo.html")
    output = capsys.readouterr().out
    assert output.startswith(result) and ("run again to go on" in output) == (steps < 100)
    assert str(tmp_path / "demo.html") in output and str(tmp_path / "held-out.glb") in output


def test_training_that_is_paused_goes_on_with_the_same_command(demo, tmp_path):
    """On a slow computer: the state of the step that it came to is kept, and the learning rate follows the plan."""
    tiny = preset("tiny")
    run = replace(tiny.run, directory=tmp_path / "run", max_steps=4, logger="none", threads=1)
    cfg = replace(tiny, data=replace(tiny.data, directory=demo / "dataset"), run=run)
    paused = train(replace(cfg, run=replace(run, pause_seconds=1e-3)))
    assert [row["step"] for row in paused.losses] == [1] and (paused.checkpoint / "seqtex.json").is_file()
    resumed = train(cfg)
    whole = train(replace(cfg, run=replace(run, directory=tmp_path / "whole")))
    assert [row["loss"] for row in resumed.losses] == [row["loss"] for row in whole.losses]
    assert [row["learning_rate"] for row in resumed.losses] == [row["learning_rate"] for row in whole.losses]


def textured(path) -> TexturedMesh:
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh), mesh
    return mesh


def test_demo_leaves_textured_meshes_and_a_report(demo):
    for name in ("training", "held-out"):
        mesh = textured(demo / f"{name}.glb")
        assert len(mesh.textures) == 1
        assert mesh.face_has_uv.all()
        assert np.ptp(mesh.textures[0].image[..., :3]) > 0
    report = demo / "dataset" / "report"
    page, index = (report / "demo.html").read_text(), (report / "index.html").read_text()
    for part in ("Training loss", "before: the bare mesh", "A held-out mesh", "copying the nearest visible pixel"):
        assert part in page
    textures = (report / "demo-textures.html").read_text()
    for other in ("demo-textures.html", "run-run.html"):
        assert f'href="{other}"' in page and (report / other).is_file()
    assert textures.count("UV map, error") == textures.count("its error against the true views") == 2 * 4
    assert (report / "run-run.html").read_text().count("<figcaption>step ") == 2
    assert "26 of 26 planned assets done" in index and 'href="demo.html"' in index
    assert list((report / "samples").glob("textured-*/*.webp"))
    assert Image.open(demo / "picture.png").size == (5 * 256, 2 * (2 * 256 + 2 * LABEL))


def test_textured_meshes_keep_the_shape_and_place_of_the_asset(demo):
    first = min((demo / "held_out").glob("*.glb"))
    source, result = textured(first), textured(demo / "held-out.glb")
    for mine, other in zip(
        bounding_box(result.vertices, result.faces), bounding_box(source.vertices, source.faces), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.ptp(source.vertices))


def test_training_goes_on_where_it_stopped(demo, capsys):
    before = sum(1 for _ in (demo / "run" / "losses.jsonl").open())
    options = ["--preset", "tiny", "--data.directory", str(demo / "dataset"), "--run.directory", str(demo / "more")]
    assert main(["train", *options, "--run.max_steps", "2", "--run.state_every", "2"]) == 0
    assert main(["train", *options, "--run.max_steps", "4", "--run.state_every", "2"]) == 0
    steps = [json.loads(line)["step"] for line in (demo / "more" / "losses.jsonl").open()]
    assert steps == [1, 2, 3, 4]
    assert before > 0


def pyramid_without_uv() -> bytes:
    """Five faces' worth of geometry, no texture coordinates, standing on y = 3 in the asset's own frame."""
    points = np.array([[-1, 3, -1], [1, 3, -1], [1, 3, 1], [-1, 3, 1], [0, 5, 0]], float)
    faces = np.array([[0, 2, 1], [0, 3, 2], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    corners = points[faces].reshape(-1, 3)
    normal = np.cross(corners[1::3] - corners[::3], corners[2::3] - corners[::3])
    normals = np.repeat(normal / np.linalg.norm(normal, axis=1, keepdims=True), 3, axis=0)
    primitive = Primitive(positions=corners, normals=normals, faces=np.arange(18).reshape(-1, 3), material=0)
    return encode_glb([primitive], [Material()], {})


@pytest.mark.parametrize("view", [0, 2])
def test_texture_for_a_mesh_without_uvs(demo, tmp_path, view):
    (tmp_path / "pyramid.glb").write_bytes(pyramid_without_uv())
    Image.new("RGBA", (90, 50), (200, 40, 30, 255)).save(tmp_path / "image.png")
    arguments = [str(tmp_path / "pyramid.glb"), "--image", str(tmp_path / "image.png"), "--steps", "2"]
    arguments += ["--checkpoint", str(demo / "run" / "checkpoint"), "--view", str(view), "--device", "cpu"]
    for name in ("one.glb", "two.glb"):
        assert main(["texture", *arguments, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "two.glb").read_bytes(), "equal seeds, equal results"
    mesh = textured(tmp_path / "one.glb")
    assert mesh.textures[0].image.shape == (128, 128, 4)
    assert mesh.face_has_uv.all() and mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    np.testing.assert_allclose(bounding_box(mesh.vertices, mesh.faces), ([-1, 3, -1], [1, 5, 1]), atol=1e-5)
    tip = mesh.vertices[mesh.vertices[:, 1] > 4.9]
    assert len(tip) and np.allclose(tip, (0, 5, 0), atol=1e-5), "it stands upright where it stood"


def test_texture_names_what_is_wrong(demo, tmp_path, capsys):
    whole, cut, image, out = (tmp_path / name for name in ("pyramid.glb", "cut.glb", "image.png", "out.glb"))
    whole.write_bytes(pyramid_without_uv())
    cut.write_bytes(pyramid_without_uv()[:500])
    Image.new("RGB", (8, 8)).save(image)
    rest = ["--checkpoint", str(demo / "run" / "checkpoint"), "--out", str(out)]

    assert main(["texture", str(whole), "--image", str(image), "--view", "4", *rest]) == 2
    assert "0 to 3" in capsys.readouterr().err
    assert main(["texture", str(cut), "--image", str(image), *rest]) == 1
    assert "cut.glb" in (message := capsys.readouterr().err)
    assert "truncated" in message
    assert main(["texture", str(whole), "--image", str(cut), *rest]) == 1
    assert "cut.glb" in (message := capsys.readouterr().err)
    assert "PNG" in message
    assert main(["texture", str(whole), "--image", str(image), "--max_unwrap_faces", "3", *rest]) == 1
    assert "--max_unwrap_faces" in capsys.readouterr().err
    assert not out.exists()
