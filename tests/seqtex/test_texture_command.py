"""`seqtex texture` on meshes that stand nowhere else: every kind of condition, batches, and what is wrong with them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import training.arithmetic
import training.loop.checkpoints
from geometry.cameras import seqtex4
from geometry.frames import bounding_box, normalise
from geometry.image_metrics import capped_psnr
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, render_views
from pipeline.sources.procedural import procedural
from schemas.errors import UsageError, UserError
from schemas.mesh import MeshRef, TexturedMesh
from schemas.sample import TextureSample
from seqtex.cli.main import main
from seqtex.cli.texture import weights_dtype
from seqtex.texturing import prepare_mesh, read_image, texture, texture_meshes
from tests.pipeline.executor.test_kept_materials import everything
from tests.support.small_checkpoint import UV, VIEW, TrueFlow, write_checkpoint
from training.diffusion.encoders import NullTextEncoder
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> list[MeshRef]:
    return list(procedural(3, tmp_path_factory.mktemp("meshes"), clean=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator[Path]:
    """Checkpoint of a network with a text encoder, one whose weights need no download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.loop.checkpoints, "make_text_encoder", lambda *args, **options: NullTextEncoder(8))
        yield write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint", text_encoder="umt5")


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]):
        Image.new("RGB", (80, 80), color).save(folder / f"view_{number}.png")
    return folder


def texture_of(path: Path) -> np.ndarray:
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh) and mesh.face_has_uv.all()
    return mesh.textures[0].image[..., :3]


def command(checkpoint: Path, *options: object) -> int:
    return main(["texture", "--checkpoint", str(checkpoint), "--steps", "2", "--log", "json", *map(str, options)])


def test_every_kind_of_condition_gives_another_texture_and_the_views(meshes, checkpoint, pictures, tmp_path):
    mesh, textures = meshes[0].uri, {}
    some = tmp_path / "some"
    some.mkdir()
    for number in (0, 2):
        (some / f"view_{number}.png").write_bytes((pictures / f"view_{number}.png").read_bytes())
    for name, options in {
        "text": ["--prompt", "a red vase"],
        "image": ["--image", pictures / "view_0.png"],
        "other view": ["--image", pictures / "view_0.png", "--view", 2],
        "some views": ["--images", some],
        "all views": ["--images", pictures],
    }.items():
        out, views = tmp_path / f"{name}.glb", tmp_path / f"{name} views"
        assert command(checkpoint, mesh, "--out", out, "--views", views, *options) == 0
        textures[name] = texture_of(out)
        assert textures[name].shape == (UV, UV, 3)
        assert sorted(path.name for path in views.iterdir()) == [f"view_{number}.png" for number in range(4)]
    given = np.asarray(Image.open(tmp_path / "some views views" / "view_2.png")).astype(int)
    assert np.abs(given - (30, 30, 200)).max() <= 2, "a given view comes back"
    different = [(a, b) for a in textures for b in textures if a < b and (textures[a] != textures[b]).any()]
    assert len(different) == 10


def test_a_scan_that_stands_on_its_z_axis_is_textured_upright(meshes, checkpoint, pictures, tmp_path):
    """The same mesh once with Y up and once with Z up: with `--up_axis z` both give one result."""
    mesh = load_mesh(Path(meshes[0].uri))
    assert isinstance(mesh, TexturedMesh)
    x, y, z = mesh.vertices.T.astype(float)
    faces = "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in mesh.faces)
    for name, points in {"y": (x, y, z), "z": (x, -z, y)}.items():
        vertices = "".join("v {:.9g} {:.9g} {:.9g}\n".format(*point) for point in zip(*points, strict=True))
        (tmp_path / f"{name}.obj").write_text(vertices + faces)

    def textured(name: str, *options: str) -> tuple[np.ndarray, np.ndarray]:
        out = tmp_path / f"{name}{len(options)}.glb"
        given = ["--images", str(pictures), "--checkpoint", str(checkpoint), "--out", str(out), "--steps", "2"]
        assert main(["texture", str(tmp_path / f"{name}.obj"), *given, *options]) == 0
        found = load_mesh(out)
        assert isinstance(found, TexturedMesh)
        return found.vertices, texture_of(out)

    upright, lying, right = textured("y"), textured("z"), textured("z", "--up_axis", "z")
    assert np.allclose(right[0], upright[0], atol=1e-5) and np.array_equal(right[1], upright[1])
    assert not np.allclose(np.ptp(lying[0], axis=0), np.ptp(upright[0], axis=0), atol=1e-3)


def test_solver_seed_steps_and_uv_resolution_count(meshes, checkpoint, pictures, tmp_path):
    mesh, results = meshes[0].uri, []
    for number, options in enumerate(
        [[], ["--seed", 1], ["--solver", "adams", "--steps", 3], ["--steps", 3], ["--uv_resolution", 192], []]
    ):
        out = tmp_path / f"{number}.glb"
        assert command(checkpoint, mesh, "--out", out, "--image", pictures / "view_1.png", *options) == 0
        results.append(texture_of(out))
    assert results[4].shape == (192, 192, 3)
    np.testing.assert_array_equal(results[0], results[5])
    same_size = results[:4]
    assert all((a != b).any() for i, a in enumerate(same_size) for b in same_size[i + 1 :])


POINT = "v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n"


def test_a_mesh_without_extent_is_named_and_stops_no_other(meshes, checkpoint, tmp_path, capsys):
    (tmp_path / "point.obj").write_text(POINT)
    assert command(checkpoint, tmp_path / "point.obj", "--out", tmp_path / "out.glb", "--prompt", "x") == 1
    assert "point.obj: degenerate" in capsys.readouterr().err
    listing = tmp_path / "items.jsonl"
    items = [
        {"mesh": "point.obj", "out": "1.glb", "prompt": "x"},
        {"mesh": meshes[0].uri, "out": "2.glb", "prompt": "x"},
    ]
    listing.write_text("\n".join(map(json.dumps, items)))
    assert command(checkpoint, "--batch", listing) == 1
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["failed", "textured"]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b'{"mesh": "a.glb", "out": "b.glb", "prompt": "x", "view": "x"}', "line 1: view is 'x', not of type int"),
        (b'{"mesh": "a.glb", "out": "b.glb", "prompt": "x", "seed": 1.5}', "line 1: seed is 1.5, not of type int"),
        (b'{"mesh": 3, "out": "b.glb", "prompt": "x"}', "line 1: mesh is 3, not of type str"),
        (b"[]", "line 1: not a JSON object"),
        (b'{"mesh": "\xff.glb"}', "not UTF-8 text"),
    ],
)
def test_a_bad_line_of_a_batch_is_named(line, wrong, checkpoint, tmp_path, capsys):
    (tmp_path / "items.jsonl").write_bytes(line)
    assert command(checkpoint, "--batch", tmp_path / "items.jsonl") == 2
    assert wrong in capsys.readouterr().err


def test_a_batch_gives_what_each_mesh_gets_alone_and_one_bad_mesh_stops_nothing(
    meshes, checkpoint, pictures, tmp_path, capsys
):
    (tmp_path / "cut.glb").write_bytes(Path(meshes[0].uri).read_bytes()[:600])
    items = [{"mesh": ref.uri, "out": f"out/{n}.glb", "image": "pictures/view_0.png", "seed": n}
             for n, ref in enumerate(meshes)]  # fmt: skip
    items.insert(1, {"mesh": "cut.glb", "out": "out/cut.glb", "prompt": "x"})
    listing = tmp_path / "items.jsonl"
    listing.write_text("\n".join(json.dumps(item) for item in items) + "\n")
    assert command(checkpoint, "--batch", listing, "--batch_size", 2, "--views", tmp_path / "views") == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    assert len(failed) == 1 and failed[0]["mesh"].endswith("cut.glb") and "truncated" in failed[0]["detail"]
    assert not (tmp_path / "out" / "cut.glb").exists()
    for number, ref in enumerate(meshes):
        alone = tmp_path / f"alone{number}.glb"
        options = ["--image", pictures / "view_0.png", "--seed", number]
        assert command(checkpoint, ref.uri, "--out", alone, *options) == 0
        difference = texture_of(alone).astype(int) - texture_of(tmp_path / "out" / f"{number}.glb")
        assert np.abs(difference).max() <= 1, "float sums in another order, no more"
        assert (tmp_path / "views" / str(number) / "view_3.png").is_file()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["a.glb", "--out", "b.glb"], 2, "--prompt"),
        (["a.glb", "--prompt", "x"], 2, "--out is missing"),
        (["a.glb", "--out", "b.obj", "--prompt", "x"], 2, ".glb"),
        (["a.glb", "--out", "b.glb", "--image", "i.png", "--images", "."], 2, "--images"),
        (["--prompt", "x"], 2, "--batch"),
        (["a.glb", "--batch", "b.jsonl"], 2, "--batch"),
        (["a.glb", "--out", "b.glb", "--prompt", "x", "--steps", "0"], 2, "steps is 0"),
        (["a.glb", "--out", "b.glb", "--prompt", "x", "--uv_resolution", "1000"], 1, "multiples of 16"),
        (["a.glb", "--out", "b.glb", "--images", "empty"], 1, "view_0.png"),
        (["--batch", "bad.jsonl"], 2, "line 2"),
    ],
)
def test_bad_usage_is_named(checkpoint, meshes, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    Path("a.glb").write_bytes(Path(meshes[0].uri).read_bytes())
    Path("empty").mkdir()
    Path("b.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"mesh": "a.glb", "out": "o.glb", "prompt": "x"}\n{"mesh": "a.glb", "color": 3}\n')
    arguments = ["texture", "--checkpoint", str(checkpoint), "--steps", "1", *options]
    assert main(arguments) == code
    assert message in capsys.readouterr().err


def test_the_right_flow_ends_in_the_assets_own_texture_upright_on_the_mesh(meshes, checkpoint, tmp_path):
    """Every turn on the way (model orientation, image orientation, axes of glTF) is undone: the written mesh looks like
    the asset that it came from, from every side."""
    ref = meshes[1]
    sample = process_asset(ref, BuildConfig(views=RenderConfig(resolution=VIEW), uv=BakeConfig(resolution=UV))).result
    assert isinstance(sample, TextureSample)
    network = load_checkpoint(checkpoint)
    network.model.forward = TrueFlow(sample)  # type: ignore[method-assign]
    prepared = prepare_mesh(ref.uri, network.card, pictures={0: sample.views.rgb[0]})
    (result,) = texture_meshes([prepared], network, SamplerConfig(steps=4))
    result.save(tmp_path / "out.glb")
    replace(result, uv=result.uv[::-1].copy()).save(tmp_path / "flipped.glb")

    def pictures(path: Path):
        mesh = load_mesh(path)
        assert isinstance(mesh, TexturedMesh)
        mesh, _ = normalise(mesh)
        cameras = seqtex4(*bounding_box(mesh.vertices, mesh.faces))
        return render_views(mesh, cameras, RenderConfig(resolution=VIEW), CpuRasterizer())

    source, written, flipped = (
        pictures(path) for path in (Path(ref.uri), tmp_path / "out.glb", tmp_path / "flipped.glb")
    )
    assert (source.mask == written.mask).mean() > 0.999
    both = source.mask & written.mask
    shown, control = capped_psnr(source.rgb, written.rgb, both), capped_psnr(source.rgb, flipped.rgb, both)
    assert shown > 40 and control < 20, "as close as the codec keeps it, and not so with the map upside down"


def test_cameras_are_those_of_the_data_that_was_trained_on(meshes, checkpoint):
    card = load_checkpoint(checkpoint).card
    path = Path(meshes[0].uri)
    assert len(prepare_mesh(path, card).cameras.projection) == 4
    six = prepare_mesh(path, replace(card, rig={"name": "ortho6"})).cameras
    assert len(six.projection) == 6
    assert (six.projection[:, 3, 3] == 1).all(), "parallel projection"
    raised = prepare_mesh(path, replace(card, rig={"name": "seqtex4", "elevation_deg": 25.0})).cameras
    assert raised.world_to_cam[0, 1, 2] == pytest.approx(np.cos(np.radians(25.0)), abs=1e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_slow_bfloat16_is_replaced_by_float32_with_a_word(fast, monkeypatch, capsys):
    monkeypatch.setattr(training.arithmetic, "fast_dtype", lambda device: torch.bfloat16 if fast else torch.float32)
    assert weights_dtype("bfloat16", "cpu") is (torch.bfloat16 if fast else torch.float32)
    assert ("no fast bfloat16" in capsys.readouterr().out) == (not fast)
    assert weights_dtype("float32", "cpu") is torch.float32 and not capsys.readouterr().out


def test_the_function_gives_what_the_command_gives(meshes, checkpoint, pictures, tmp_path):
    path, image = meshes[0].uri, pictures / "view_0.png"
    assert command(checkpoint, path, "--out", tmp_path / "command.glb", "--image", image, "--view", 1) == 0
    options = {"checkpoint": checkpoint, "steps": 2}
    result = texture(path, image=image, view=1, out=tmp_path / "out" / "function.glb", **options)
    assert (tmp_path / "out" / "function.glb").read_bytes() == (tmp_path / "command.glb").read_bytes()
    assert result.uv.shape == (UV, UV, 3) and result.views.shape == (4, VIEW, VIEW, 3)
    network = load_checkpoint(checkpoint)
    again = texture(path, image={1: np.asarray(Image.open(image))}, checkpoint=network, steps=2)
    np.testing.assert_array_equal(again.uv, result.uv)
    with pytest.raises(UsageError, match="give an image or a prompt"):
        texture(path, checkpoint=network)
    with pytest.raises(UsageError, match="view 4: the checkpoint has views 0 to 3"):
        texture(path, image=image, view=4, checkpoint=network)
    with pytest.raises(UserError, match="trained without UV maps"):
        texture(path, prompt="x", checkpoint=replace(network, card=replace(network.card, uv_resolution=None)))


def test_meshes_in_memory_are_textured_too(meshes, checkpoint, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    network = load_checkpoint(checkpoint)
    loaded = trimesh.load(meshes[0].uri, force="mesh")
    result = texture(loaded, prompt="x", checkpoint=network, steps=1, out=tmp_path / "trimesh.glb")
    np.testing.assert_allclose(trimesh.load(tmp_path / "trimesh.glb", force="mesh").bounds, loaded.bounds, atol=1e-4)
    again = texture(result.mesh, prompt="x", checkpoint=network, steps=1, uv_resolution=64)
    assert again.mesh is result.mesh and again.uv.shape == (64, 64, 3)
    np.testing.assert_array_equal(again.input.views.position, result.input.views.position)


def test_what_a_checkpoint_without_text_encoder_cannot_follow_is_refused_by_name(meshes, pictures, tmp_path, capsys):
    silent = write_checkpoint(tmp_path / "checkpoint")
    arguments = [meshes[0].uri, "--out", tmp_path / "out.glb", "--image", pictures / "view_0.png"]
    for options, named in ((["--prompt", "a red vase"], "prompt 'a red vase'"), (["--guidance", 3], "guidance 3")):
        assert command(silent, *arguments, *options) == 2
        assert f"{named}: the checkpoint was trained without a text encoder" in capsys.readouterr().err
    with pytest.raises(UsageError, match="prompt 'x': the checkpoint was trained without a text encoder"):
        texture(meshes[0].uri, prompt="x", checkpoint=load_checkpoint(silent))


def test_image_guidance_follows_images_where_they_were_dropped_in_training(
    meshes, checkpoint, pictures, tmp_path, capsys
):
    arguments = [meshes[0].uri, "--out", tmp_path / "out.glb", "--steps", 1, "--image_guidance", 3]
    image = ["--image", pictures / "view_0.png"]
    never = write_checkpoint(tmp_path / "never")
    assert command(never, *arguments, *image) == 2
    assert "image_guidance 3: the checkpoint was trained without flow.image_dropout" in capsys.readouterr().err
    reader = load_checkpoint(checkpoint)
    reader = replace(reader, card=replace(reader.card, image_dropout=0.1))
    with pytest.raises(UsageError, match="image_guidance 3: there is no image to follow"):
        texture(meshes[0].uri, prompt="x", checkpoint=reader, image_guidance=3.0)
    silent = load_checkpoint(write_checkpoint(tmp_path / "silent", image_dropout=0.1))
    options = {"image": pictures / "view_0.png", "checkpoint": silent, "steps": 2}
    plain, guided = (texture(meshes[0].uri, image_guidance=scale, **options) for scale in (1.0, 3.0))
    assert not np.array_equal(plain.uv, guided.uv)
    assert command(tmp_path / "silent", *arguments, *image) == 0 and (tmp_path / "out.glb").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(meshes, checkpoint, pictures, tmp_path, capsys):
    arguments = [meshes[0].uri, "--out", tmp_path / "out.glb", "--image", pictures / "view_0.png", "--device", "cuda"]
    assert command(checkpoint, *arguments) == 2
    error = capsys.readouterr().err
    assert "cuda: torch" in error and "finds no CUDA GPU on this machine" in error and "Traceback" not in error


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright_as_their_exif_orientation_says(form, orientation, tmp_path):
    pixels = np.kron(np.array([[250, 120, 60], [20, 90, 200]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo.{form.lower()}"
    options = {"quality": 100} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(path, form, exif=exif, **options)
    turned = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T,
              6: np.rot90(pixels, -1), 7: np.rot90(pixels.T, 2), 8: np.rot90(pixels)}[orientation]  # fmt: skip
    np.testing.assert_allclose(read_image(path)[..., 0].astype(int), turned, atol=6)


def test_other_maps_of_the_mesh_are_kept_and_a_lost_one_is_named(checkpoint, tmp_path, capsys):
    builder, files = everything()
    builder.tree["textures"][2]["source"] = builder.image(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "asset.glb").write_bytes(builder.glb())
    assert command(checkpoint, tmp_path / "asset.glb", "--out", tmp_path / "out.glb", "--prompt", "x") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (warning,) = [event["detail"] for event in events if event["event"] == "warning"]
    assert "asset.glb: skipped in out.glb: images[5]" in warning
    written = (tmp_path / "out.glb").read_bytes()
    assert [file in written for file in files] == [True, False, True, True]
    found = load_mesh(tmp_path / "out.glb", materials=True)
    assert isinstance(found, TexturedMesh) and found.layers is not None
    assert found.layers.metallic_roughness.textures[0] is not None and found.layers.emissive_strength == 3.0
