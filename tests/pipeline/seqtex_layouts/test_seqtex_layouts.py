"""SeqTex's own layouts: what is exported comes back, what others wrote is read as they meant it, and what is broken
ends as a row."""

import json
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from geometry.cameras import RigConfig, project
from geometry.image_metrics import capped_psnr
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_bytes, plan_jobs, read_plan
from pipeline.dataset.shards import commit
from pipeline.dataset.verify import verify
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.seqtex_layouts.export import export
from pipeline.seqtex_layouts.exr import read_depth, write_depth
from pipeline.seqtex_layouts.layout import Layout, item_folder, items
from pipeline.seqtex_layouts.renders import RenderedViews, RendersConfig, read_renders
from pipeline.sources.procedural import procedural
from pipeline.sources.registry import official
from schemas.codec import NORMAL_ERROR_DEG, decode, encode
from schemas.dataset import DatasetInfo, dataset_json, read_ledger, shard_path
from schemas.errors import UserError
from schemas.ledger import Measurements, Outcome, Reason, Rejected, Status
from schemas.mesh import MeshRef
from schemas.sample import Regime, TextureSample
from schemas.shards import read_shard
from schemas.storage import file_sha256, write_file
from seqtex.cli.main import main
from training.data.datamodule import BatchStream
from training.data.mixture import DataConfig

SIZE = 96
CFG = BuildConfig(views=RenderConfig(resolution=SIZE), uv=BakeConfig(resolution=256))
ENCODING_DEG = 0.4
"""Largest angle that 8 bits a channel add to a normal: asin(sqrt(3) / 255) = 0.389 degrees."""


def write_dataset(out: Path, samples: list[TextureSample]) -> None:
    """A dataset of one job, without Ray."""
    for folder in ("shards", "ledger", "fields"):
        (out / folder).mkdir(parents=True)
    info = DatasetInfo(config={}, plan_sha256="", planned=len(samples), jobs=1)
    write_file(out / "dataset.json", dataset_json(info))
    outcomes, files = [], dict[Regime, list[tuple[str, list[Path]]]]()
    for sample in samples:
        folder = out / "fields" / sample.uid
        folder.mkdir()
        for name, data in encode(sample).items():
            (folder / name).write_bytes(data)
        files.setdefault(sample.regime, []).append((sample.uid, list(folder.iterdir())))
        outcomes.append(
            Outcome(
                uid=sample.uid, uri="", sha256=None, status=Status.ACCEPTED, regime=sample.regime, reason=None,
                detail="", shard=f"{sample.regime}-000000.tar", seconds=0.0, measurements=Measurements(),
            )
        )  # fmt: skip
    commit(out, 0, outcomes, files)


def made(ref: MeshRef, cfg: BuildConfig = CFG) -> TextureSample:
    """The sample of an asset as a reader gets it."""
    result = process_asset(ref, cfg).result
    assert isinstance(result, TextureSample), result
    return decode(encode(result))


@pytest.fixture(scope="module")
def refs(tmp_path_factory) -> list[MeshRef]:
    return list(procedural(2, tmp_path_factory.mktemp("assets"), clean=True))


@pytest.fixture(scope="module")
def samples(refs) -> list[TextureSample]:
    return [made(ref) for ref in refs]


@pytest.fixture(scope="module")
def dataset(samples, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    write_dataset(out, samples)
    return out


def exported(dataset: Path, dest: Path, layout: Layout) -> Path:
    assert export(dataset, dest, layout, lambda done, uid: None) == len(list(items(dest, layout)))
    return dest


@pytest.fixture(scope="module")
def models(dataset, tmp_path_factory) -> Path:
    return exported(dataset, tmp_path_factory.mktemp("models") / "out", Layout.MODELS)


@pytest.fixture(scope="module")
def renders(dataset, tmp_path_factory) -> Path:
    return exported(dataset, tmp_path_factory.mktemp("renders") / "out", Layout.IMAGES)


def copied(renders: Path, uid: str, tmp_path: Path) -> Path:
    """The meta.json of an item in a folder that may be altered."""
    folder = tmp_path / "item"
    folder.mkdir()
    for path in item_folder(renders, uid).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "meta.json"


def read(meta: Path, resolution: int = SIZE, cfg: RendersConfig | None = None) -> RenderedViews:
    found = read_renders(meta, cfg or RendersConfig(), resolution)
    assert isinstance(found, RenderedViews), found
    return found


def fault(meta: Path, resolution: int = SIZE) -> Rejected:
    found = read_renders(meta, RendersConfig(), resolution)
    assert isinstance(found, Rejected)
    return found


def pixel_errors(position: np.ndarray, mask: np.ndarray, world_to_clip: np.ndarray) -> np.ndarray:
    """Distances, in pixels, of positions from the centres of the pixels that hold them."""
    errors = []
    for points, covered, matrix in zip(position, mask, world_to_clip, strict=True):
        rows, columns = np.nonzero(covered)
        clip = project(points[covered], matrix[None])[0]
        found = (clip[:, :2] / clip[:, 3:] + 1) / 2 * len(covered) - 0.5
        errors.append(np.linalg.norm(found - np.stack([columns, rows], axis=-1), axis=-1))
    return np.concatenate(errors)


def angles_deg(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(first - second, axis=-1) / 2, 0, 1)))


# 3D data


def test_models_come_back_in_place_upright_and_with_their_texture(models, refs, samples):
    listed = list(official(models, Layout.MODELS))
    assert [(ref.uid, ref.caption, ref.source) for ref in listed] == [(r.uid, r.caption, r.source) for r in refs]
    for ref, before in zip(listed, samples, strict=True):
        assert before.uv is not None and before.mesh is not None
        with Image.open(Path(ref.uri).with_name("model.jpeg")) as jpeg:
            assert capped_psnr(np.asarray(jpeg), before.uv.rgb, before.uv.mask) > 35
        after = made(ref)
        assert after.uv is not None and after.mesh is not None
        assert after.mesh.layout == "authored"
        np.testing.assert_allclose(after.mesh.vertices, before.mesh.vertices, atol=1e-5)
        np.testing.assert_allclose(after.mesh.uv, before.mesh.uv, atol=1e-6)
        np.testing.assert_array_equal(after.mesh.faces, before.mesh.faces)
        np.testing.assert_allclose(after.meta["frame"]["center"], before.meta["frame"]["center"], atol=1e-5)
        assert after.meta["frame"]["scale"] == pytest.approx(before.meta["frame"]["scale"], rel=1e-6)
        assert capped_psnr(after.uv.rgb, before.uv.rgb, before.uv.mask) > 35
        assert capped_psnr(after.views.rgb, before.views.rgb, before.views.mask & after.views.mask) > 30


def without_texture(glb: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", glb, 12)
    tree = json.loads(glb[20 : 20 + length])
    del tree["materials"], tree["textures"], tree["images"], tree["samplers"]
    for primitive in tree["meshes"][0]["primitives"]:
        del primitive["material"]
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + glb[20 + length :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def test_a_model_without_texture_wears_the_jpeg(models, samples, tmp_path):
    before = samples[0]
    source, folder = item_folder(models, before.uid), tmp_path / "ab" / "one"
    folder.mkdir(parents=True)
    (folder / "model.glb").write_bytes(without_texture((source / "model.glb").read_bytes()))
    (ref,) = official(tmp_path, Layout.MODELS)
    bare = process_asset(ref, CFG).result
    assert isinstance(bare, Rejected) and bare.reason is Reason.UNTEXTURED
    jpeg = (source / "model.jpeg").read_bytes()
    (folder / "model.jpeg").write_bytes(jpeg)
    after = made(ref)
    assert capped_psnr(after.views.rgb, before.views.rgb, before.views.mask & after.views.mask) > 30
    (folder / "model.jpeg").write_bytes(jpeg[:2000])
    broken = process_asset(ref, CFG).result
    assert isinstance(broken, Rejected) and broken.reason is Reason.BAD_IMAGE


# image data


def test_renders_come_back(renders, samples):
    for ref, before in zip(official(renders, Layout.IMAGES), samples, strict=True):
        after = made(ref)
        assert after.regime is Regime.MV_ONLY and after.meta["caption"] == before.meta["caption"] != ""
        mask = before.views.mask
        np.testing.assert_array_equal(after.views.mask, mask)
        np.testing.assert_array_equal(after.views.rgb, before.views.rgb)
        np.testing.assert_array_equal(after.views.coverage[mask], np.maximum(before.views.coverage[mask], 1))
        np.testing.assert_array_equal(after.views.coverage[~mask], before.views.coverage[~mask])
        np.testing.assert_allclose(after.cameras.world_to_cam, before.cameras.world_to_cam, atol=1e-5)
        np.testing.assert_allclose(after.cameras.projection, before.cameras.projection, atol=1e-5)
        assert np.abs(after.views.position - before.views.position).max() < 1e-3
        off = angles_deg(after.views.normal[mask], before.views.normal[mask])
        assert off.max() < ENCODING_DEG + NORMAL_ERROR_DEG
        assert after.meta["frame"] == {"center": [0.0, 0.0, 0.0], "scale": pytest.approx(2.0, rel=1e-4)}


def test_imported_positions_lie_on_their_pixels(renders, samples, tmp_path):
    found = read(item_folder(renders, samples[0].uid) / "meta.json")
    assert pixel_errors(found.views.position, found.views.mask, found.cameras.world_to_clip).max() < 0.01


def test_parallel_projection_and_six_views(refs, tmp_path):
    before = made(refs[0], BuildConfig(rig=RigConfig(name="ortho6"), views=CFG.views, uv=CFG.uv))
    write_dataset(tmp_path / "dataset", [before])
    renders = exported(tmp_path / "dataset", tmp_path / "renders", Layout.IMAGES)
    meta = item_folder(renders, before.uid) / "meta.json"
    assert {entry["projection_type"] for entry in json.loads(meta.read_text())["locations"]} == {"ORTHO"}
    after = read(meta)
    gap = np.abs(after.views.position - before.views.position).max(axis=-1)[before.views.mask]
    assert np.quantile(gap, 0.999) < 1e-3
    # on slivers seen edge-on the rasteriser itself is this far off its pixel; what is imported lies on it
    off = pixel_errors(before.views.position, before.views.mask, before.cameras.world_to_clip).max()
    assert gap.max() < off * 2 / SIZE / before.cameras.projection[0, 0, 0]
    assert pixel_errors(after.views.position, after.views.mask, after.cameras.world_to_clip).max() < 0.01
    some = read(meta, cfg=RendersConfig(views=(0, 3)))
    np.testing.assert_array_equal(some.views.rgb, after.views.rgb[[0, 3]])
    np.testing.assert_array_equal(some.cameras.world_to_cam, after.cameras.world_to_cam[[0, 3]])


def test_a_scene_of_any_place_and_size_is_fitted_with_its_cameras(renders, samples, tmp_path):
    meta = copied(renders, samples[0].uid, tmp_path)
    before = read(meta)
    content = json.loads(meta.read_text())
    for entry in content["locations"]:
        matrix = np.array(entry["transform_matrix"])
        matrix[:3, 3] = 7 * matrix[:3, 3] + (5, -6, 2)
        entry["transform_matrix"] = matrix.tolist()
        path = meta.with_name(f"depth_{entry['index']}.exr")
        write_depth(path, np.where((depth := read_depth(path, (SIZE, SIZE))) > 0, 7 * depth, np.float32(65504)))
    meta.write_text(json.dumps(content))
    after = read(meta)
    seen = after.views.position[after.views.mask]
    np.testing.assert_allclose(seen.min(axis=0), -seen.max(axis=0), atol=1e-5)
    assert np.abs(seen).max() == pytest.approx(1, abs=1e-5)
    assert pixel_errors(after.views.position, after.views.mask, after.cameras.world_to_clip).max() < 0.01
    # back in the renderer's world, both are the same scene
    world = seen / after.frame.scale + after.frame.center
    np.testing.assert_allclose((world - (5, -6, 2)) / 7, before.views.position[before.views.mask] / 2, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
def test_larger_renders_are_reduced_onto_the_same_surface(renders, samples, factor):
    found = read(item_folder(renders, samples[0].uid) / "meta.json", SIZE // factor)
    assert pixel_errors(found.views.position, found.views.mask, found.cameras.world_to_clip).max() < 0.01
    full = samples[0].views
    middle = slice(factor // 2, None, factor)
    both = found.views.mask & full.mask[:, middle, middle]
    assert both.mean() > 0.9 * full.mask.mean()
    gap = np.linalg.norm(found.views.position - full.position[:, middle, middle], axis=-1)[both]
    assert np.median(gap) < 2 / SIZE * factor
    if factor % 2:
        assert np.quantile(gap, 0.99) < 1e-3
    coverage = full.coverage.reshape(4, SIZE // factor, factor, SIZE // factor, factor).mean(axis=(2, 4))
    np.testing.assert_allclose(found.views.coverage, coverage, atol=1)


# the renderer's conventions, by hand


def wall(folder: Path, lens: dict, normal: tuple[int, int, int], background: float = 1e10) -> Path:
    """A camera at (0, -3, 0) looks along +y, up +z, at a wall 2 units away: 16 x 16 pixels, the left column empty."""
    matrix = [[1, 0, 0, 0], [0, 0, -1, -3], [0, 1, 0, 0], [0, 0, 0, 1]]
    folder.mkdir()
    (folder / "meta.json").write_text(
        json.dumps({"locations": [{"index": "0000", "transform_matrix": matrix}], "width": 16, "height": 16} | lens)
    )
    depth = np.full((16, 16), 2, np.float32)
    depth[:, 0] = background
    write_depth(folder / "depth_0000.exr", depth)
    color = np.full((16, 16, 4), (10, 20, 30, 255), np.uint8)
    color[:, 0] = 0
    color[0, 1, 3] = 128
    Image.fromarray(color).save(folder / "render_0000.webp", lossless=True, exact=True)
    normals = np.full((16, 16, 3), normal, np.uint8)
    Image.fromarray(normals).save(folder / "normal_0000.webp", lossless=True)
    return folder / "meta.json"


@pytest.mark.parametrize("lens", [{"camera_angle_x": np.pi / 2}, {"ortho_scale": 4.0}], ids=["persp", "ortho"])
def test_a_wall_seen_by_a_known_camera(lens, tmp_path):
    """At 90 degrees half the picture is as wide as the distance, 2; in parallel projection as wide as half of 4."""
    meta = wall(tmp_path / "item", lens, (128, 0, 128))
    if "ortho_scale" in lens:
        content = json.loads(meta.read_text())
        content["locations"][0]["projection_type"] = "ORTHO"
        meta.write_text(json.dumps(content))
    found = read(meta, 16)
    views = found.views
    assert not views.mask[0, :, 0].any() and views.mask[0, :, 1:].all()
    world = views.position[0] / found.frame.scale + found.frame.center
    # the last pixel of row 0: 15/16 of 2 to the right and up; the wall stands at y = -3 + 2
    np.testing.assert_allclose(world[0, 15], (1.875, -1, 1.875), atol=1e-6)
    np.testing.assert_allclose(world[15, 1], (-1.625, -1, -1.875), atol=1e-6)
    np.testing.assert_allclose(views.normal[0, 5, 5], (0, -1, 0), atol=0.01)
    # straight alpha: the colour of a half covered pixel is whole, its coverage is not; black outside the mask
    assert views.rgb[0, 0, 1].tolist() == [10, 20, 30] and views.coverage[0, 0, 1] == 128
    assert not views.rgb[0, :, 0].any() and not views.coverage[0, :, 0].any()
    assert pixel_errors(views.position, views.mask, found.cameras.world_to_clip).max() < 0.01


def test_normals_in_the_cameras_axes_are_turned(tmp_path):
    """(0, 0, 1) towards the camera is (0, -1, 0) in the world."""
    found = read(wall(tmp_path / "item", {"camera_angle_x": np.pi / 2}, (128, 128, 255)), 16)
    np.testing.assert_allclose(found.views.normal[0, 5, 5], (0, -1, 0), atol=0.01)


def test_normals_that_fit_no_surface_are_refused(tmp_path):
    meta = wall(tmp_path / "item", {"camera_angle_x": np.pi / 2}, (255, 128, 128))
    assert fault(meta, 16).reason is Reason.INCONSISTENT_VIEWS


@pytest.mark.parametrize("background", [1001.03, 65504.0, 1e10, np.inf, 0.0, -1.0, np.nan])
def test_every_background_in_use_is_empty(background, tmp_path):
    assert (
        not read(wall(tmp_path / "item", {"camera_angle_x": 1.0}, (128, 0, 128), background), 16)
        .views.mask[..., 0]
        .any()
    )


@pytest.mark.parametrize("channels", ["RGBA", "V", "Z"])
def test_depth_under_other_names_and_in_half_floats(channels, tmp_path):
    depth = np.arange(16, dtype=np.float16).reshape(4, 4)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {name: depth if name != "A" else np.ones_like(depth) for name in channels}) as file:
        file.write(str(tmp_path / "depth.exr"))
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.exr", (4, 4)), depth)


def test_depth_along_the_ray_is_refused(refs, tmp_path):
    rig = RigConfig(name="turntable", num_views=8, fov_y_deg=70.0)
    sample = made(refs[0], BuildConfig(rig=rig, views=CFG.views, uv=CFG.uv))
    write_dataset(tmp_path / "dataset", [sample])
    renders = exported(tmp_path / "dataset", tmp_path / "renders", Layout.IMAGES)
    meta = item_folder(renders, sample.uid) / "meta.json"
    assert len(read(meta).views.mask) == 8
    angle = json.loads(meta.read_text())["locations"][0]["camera_angle_x"]
    x = ((2 * np.arange(SIZE) + 1) / SIZE - 1) * np.tan(angle / 2)
    stretch = np.sqrt(1 + x**2 + x[:, None] ** 2).astype(np.float32)
    for path in meta.parent.glob("*.exr"):
        depth = read_depth(path, (SIZE, SIZE)) * stretch
        write_depth(path, np.where(depth > 0, depth, np.float32(1e10)))
    found = fault(meta)
    assert found.reason is Reason.INCONSISTENT_VIEWS and "camera's axis" in found.detail


# broken and hostile items


def spoil_meta(**changes):
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "meta.json").read_text())
        content["locations"][1] |= changes
        (folder / "meta.json").write_text(json.dumps(content))

    return spoil


def cut(name: str):
    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return spoil


def resized(folder: Path) -> None:
    write_depth(folder / "depth_0001.exr", np.ones((8, 8), np.float32))


def enormous(folder: Path) -> None:
    data = bytearray((folder / "color_0000.webp").read_bytes())
    assert data[12:16] == b"VP8L"
    data[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    (folder / "color_0000.webp").write_bytes(data)


FAULTS = {
    "no meta": (lambda folder: (folder / "meta.json").unlink(), Reason.MISSING_FILE),
    "no depth": (lambda folder: (folder / "depth_0002.exr").unlink(), Reason.MISSING_FILE),
    "no colour": (lambda folder: (folder / "color_0002.webp").unlink(), Reason.MISSING_FILE),
    "not json": (lambda folder: (folder / "meta.json").write_text("{"), Reason.INVALID_JSON),
    "path in index": (spoil_meta(index="../x"), Reason.INVALID_STRUCTURE),
    "same index": (spoil_meta(index="0000"), Reason.INVALID_STRUCTURE),
    "no angle": (spoil_meta(camera_angle_x=0), Reason.INVALID_STRUCTURE),
    "tiny angle": (spoil_meta(camera_angle_x=1e-320), Reason.INVALID_STRUCTURE),
    "sheared": (spoil_meta(transform_matrix=[[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
                Reason.INVALID_STRUCTURE),
    "mirrored": (spoil_meta(transform_matrix=np.diag([-1, 1, 1, 1]).tolist()), Reason.INVALID_STRUCTURE),
    "text for a number": (spoil_meta(transform_matrix=[["1"] * 4] * 4), Reason.INVALID_STRUCTURE),
    "another camera": (spoil_meta(transform_matrix=np.eye(4).tolist()), Reason.INCONSISTENT_VIEWS),
    "cut depth": (cut("depth_0000.exr"), Reason.BAD_IMAGE),
    "cut colour": (cut("color_0000.webp"), Reason.BAD_IMAGE),
    "small depth": (resized, Reason.BAD_IMAGE),
    "enormous colour": (enormous, Reason.BAD_IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_a_reason(name, renders, samples, tmp_path):
    spoil, reason = FAULTS[name]
    meta = copied(renders, samples[0].uid, tmp_path)
    spoil(meta.parent)
    found = fault(meta)
    assert found.reason is reason and found.detail


# the commands


def test_import_is_a_build_that_verifies_resumes_and_trains(renders, samples, tmp_path, capsys):
    folder = tmp_path / "renders"
    for path in renders.rglob("*.*"):
        (folder / path.relative_to(renders)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(renders)).write_bytes(path.read_bytes())
    with (folder / "seqtex-images.jsonl").open("a") as file:
        file.write('{"id": "gone"}\n')
    cut("depth_0003.exr")(item_folder(folder, samples[1].uid))
    command = ["import", str(folder), "--layout", "seqtex-images", "--out", str(tmp_path / "out")]
    command += ["--views.resolution", str(SIZE), "--assets_per_job", "64"]
    assert main([*command, "--log", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "built" and events[-1]["mv_only"] == 1 and events[-1]["rejected"] == 2
    assert verify(tmp_path / "out") == []
    (part,) = read_ledger(tmp_path / "out")
    rows = {o.uid: (o.status, o.regime, o.reason) for o in part.outcomes}
    assert rows == {
        "gone": (Status.REJECTED, None, Reason.MISSING_FILE),
        samples[0].uid: (Status.ACCEPTED, Regime.MV_ONLY, Reason.NO_MESH),
        samples[1].uid: (Status.REJECTED, None, Reason.BAD_IMAGE),
    }
    (shard,) = part.shards
    ((uid, fields),) = read_shard(shard_path(tmp_path / "out", shard.name))
    np.testing.assert_array_equal(decode(fields).views.rgb, samples[0].views.rgb)
    assert uid == samples[0].uid
    batch = BatchStream(DataConfig(directory=tmp_path / "out", batch_size=1), seed=0)[0]
    assert batch.regime is Regime.MV_ONLY and batch.uids == (uid,)
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_an_export_has_the_same_bytes_every_time(dataset, renders, tmp_path):
    again = tmp_path / "again"
    assert main(["export", str(dataset), "--layout", "seqtex-images", "--out", str(again)]) == 0
    first = {path.relative_to(renders): file_sha256(path) for path in renders.rglob("*.*")}
    assert first == {path.relative_to(again): file_sha256(path) for path in again.rglob("*.*")}


def test_errors_name_file_reason_and_remedy(dataset, models, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["export", str(dataset), "--layout", "seqtex-3d", "--out", str(tmp_path / "full")]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--layout", "seqtex-3d", "--out", str(tmp_path / "new")]) == 1
    assert "seqtex build" in capsys.readouterr().err
    rest = ["--layout", "seqtex-images", "--out", str(tmp_path / "out")]
    assert main(["import", str(tmp_path / "none"), *rest]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert main(["import", str(tmp_path / "full"), *rest]) == 1
    assert "meta.json" in capsys.readouterr().err


def test_a_damaged_shard_is_not_exported_as_if_it_were_whole(dataset, tmp_path, capsys):
    """The header of its second sample is no header: a tar ends there for most readers."""
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    path = shard_path(damaged, "textured-000000.tar")
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        first = tar.next()
        assert first is not None
        second = next(member for member in tar if member.name.partition(".")[0] != first.name.partition(".")[0])
    data[second.offset + 100] ^= 1
    path.write_bytes(data)
    for layout in Layout:
        assert main(["export", str(damaged), "--layout", layout, "--out", str(tmp_path / layout)]) == 1
        assert f"{path}: damaged" in (told := capsys.readouterr().err) and f"seqtex repair {damaged}" in told
        assert not (tmp_path / layout / f"{layout}.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "not a JSON object"),
        ('{"id": "../x"}', "'id'"),
        ('{"id": "a", "caption": 3}', "'caption'"),
        (f'{{"id": "a", "caption": "{"x" * (1 << 20)}"}}', "a line of more than 1048576 bytes"),
    ],
)
def test_a_bad_list_is_named_by_line(line, wrong, tmp_path):
    (tmp_path / "list.jsonl").write_text(f'{{"id": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=r"list\.jsonl:2: .*" + wrong):
        list(official(tmp_path, Layout.MODELS))


def test_a_plan_remembers_what_an_asset_is(renders, tmp_path):
    jobs = plan_jobs(official(renders, Layout.IMAGES), 8)
    (tmp_path / "plan.parquet").write_bytes(plan_bytes(jobs))
    assert read_plan(tmp_path / "plan.parquet") == jobs
