"""The gallery: every asset is listed, only what changed is drawn again, mesh and errors are those of the sample."""

import base64
import gzip
import io
import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geometry.image_metrics import capped_psnr, compare_pixels
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.dataset.pictures import RAW_BYTES, encode_picture, pictures_path, write_pictures
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, render_baked
from pipeline.report.asset_table import measurement_groups
from pipeline.report.channels import NORMAL_ERROR_DEG, channels
from pipeline.report.charts import histogram
from pipeline.report.gallery import STATIC, write_gallery
from pipeline.report.images import ERROR_LEVELS, GRID, error_colors, seen_surface, side_by_side
from pipeline.report.packed_mesh import pack_mesh
from pipeline.report.sample_files import draw_sample, draw_stored, quick_thumbnail
from pipeline.sources.procedural import procedural
from schemas.codec import decode, encode
from schemas.dataset import part_path, read_ledger, shard_path, write_ledger_part
from schemas.ledger import LEDGER_SCHEMA, Measurements, Reason
from schemas.mesh import UvMesh
from schemas.sample import Regime, TextureSample, Views
from schemas.shards import read_shard
from seqtex.cli.main import main
from tests.schemas.test_codec import make_sample
from tests.support.gallery_dataset import HOSTILE, glowing_square, synthetic_outcome, synthetic_ref, write_dataset

ASSETS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("gallery") / "forge & <b>", ASSETS, assets_per_job=12)


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def gallery(dataset: Path, limit: int = 1000, workers: int = 1):
    heard: list[tuple[int, int]] = []
    written = write_gallery(dataset, FilterConfig(), limit, workers, lambda *progress: heard.append(progress))
    assert heard == [(count, written.drawn) for count in range(written.drawn + 1)]
    return written


def handed_over(path: Path, receiver: str):
    """Return the data that a script of the gallery hands to the page."""
    text = path.read_text("ascii")
    assert text.startswith(f"gallery.{receiver}(") and text.endswith(");\n")
    assert "<" not in text
    return json.loads(text[len(f"gallery.{receiver}(") : -len(");\n")])


def stored(dataset: Path) -> dict:
    """Every sample, by uid."""
    names = [shard.name for part in read_ledger(dataset) for shard in part.shards]
    return {uid: decode(fields) for name in names for uid, fields in read_shard(shard_path(dataset, name))}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_asset_is_listed_with_what_the_ledger_and_the_plan_say(dataset):
    written = gallery(dataset)
    assert (written.listed, written.drawn, written.kept, written.problems) == (ASSETS, 4, 0, ())
    columns = handed_over(dataset / "report" / "data.js", "data")["columns"]
    place = {uid: i for i, uid in enumerate(columns["uid"])}
    assert [bool(shard) for shard in columns["shard"]] == sorted(map(bool, columns["shard"]), reverse=True)
    for i in range(ASSETS):
        outcome, ref = synthetic_outcome(i, i // 12), synthetic_ref(i)
        row = {name: values[place[ref.uid]] for name, values in columns.items()}
        assert (row["uid"], row["caption"], row["detail"]) == (ref.uid, ref.caption, outcome.detail)
        assert row["attribution"] == ref.source.attribution and row["reason"] == (outcome.reason or "")
        assert row["faces"] == outcome.measurements.faces
        files_of_sample = [
            dataset / "report" / "samples" / row["shard"] / f"{ref.uid}{end}" for end in (".js", ".webp")
        ]
        assert all(path.is_file() for path in files_of_sample) == (outcome.shard is not None) == bool(row["shard"])


def test_groups_name_every_measurement_once():
    names = [name for group in measurement_groups() for name in group["names"]]
    assert names == list(Measurements.__dataclass_fields__) and set(names) < set(LEDGER_SCHEMA.names)


def unpacked(packed: dict) -> UvMesh:
    """The mesh that `web/mesh.js` unpacks."""
    data, offset = gzip.decompress(base64.b64decode(packed["data"])), 0

    def stream(kind, count):
        nonlocal offset
        size = np.dtype(kind).itemsize
        planes = np.frombuffer(data, np.uint8, size * count, offset).reshape(size, count)
        offset += size * count
        coded = np.ascontiguousarray(planes.T).view(kind).reshape(-1).astype(np.int64)
        return np.cumsum((coded >> 1) ^ -(coded & 1)) % (1 << 8 * size)

    n = packed["vertices"]
    wide = np.stack([stream("<u2", n) for _ in range(5)], axis=1) / 65_535
    normals = np.stack([stream("u1", n) for _ in range(3)], axis=1) / 255 * 2 - 1
    faces = stream("<u4", 3 * packed["faces"]).reshape(-1, 3)
    assert offset == len(data)
    return UvMesh(
        vertices=(wide[:, :3] * 2 - 1).astype(np.float32), uv=wide[:, 3:].astype(np.float32),
        normals=normals.astype(np.float32), faces=faces.astype(np.int32), layout="",
    )  # fmt: skip


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_an_opened_sample_has_its_mesh_maps_and_views(dataset):
    gallery(dataset)
    uid, sample = next((uid, s) for uid, s in stored(dataset).items() if s.regime is Regime.TEXTURED)
    entry = handed_over(dataset / "report" / "samples" / "textured-000000" / f"{uid}.js", "sample")
    mesh = unpacked(entry["mesh"])
    for name, error in (("vertices", 2e-5), ("uv", 1e-5), ("normals", 0.005)):
        order = np.argsort(sample.mesh.single_sided, kind="stable")
        ours, theirs = getattr(mesh, name)[mesh.faces], getattr(sample.mesh, name)[sample.mesh.faces[order]]
        np.testing.assert_allclose(ours, theirs, atol=error)
    assert entry["mesh"]["double_sided"] == len(sample.mesh.faces) - sample.mesh.single_sided.sum()
    off = picture(entry["maps"]["color"])[..., :3].astype(int) - sample.uv.rgb
    assert np.abs(off).mean() < 40, "lossy, and noise"
    assert list(entry["maps"]) == ["color", "normal", "position"]
    assert list(entry["strips"]) == ["source", "normal", "position", "baked", "error"]
    side = sample.views.rgb.shape[1]
    assert {picture(uri).shape[:2] for uri in entry["strips"].values()} == {(side, entry["views"] * side)}


def test_faces_that_hide_their_backs_come_last_in_a_packed_mesh():
    rng = np.random.default_rng(3)
    single = np.array([True, False, True, False, False])
    faces = np.array([[9, 1, 2], [3, 4, 5], [1, 2, 7], [5, 4, 3], [7, 8, 9]], np.int32)
    mesh = UvMesh(
        vertices=rng.uniform(-1, 1, (12, 3)).astype(np.float32), normals=np.tile(np.float32([0, 0, 1]), (12, 1)),
        uv=rng.uniform(0, 1, (12, 2)).astype(np.float32), faces=faces, layout="", single_sided=single,
    )  # fmt: skip
    packed = pack_mesh(mesh)
    assert (packed["double_sided"], packed["vertices"]) == (3, 8), "vertices that no face uses are left out"
    order = [1, 3, 4, 0, 2]
    ours = unpacked(packed)
    np.testing.assert_allclose(ours.vertices[ours.faces], mesh.vertices[faces[order]], atol=2e-5)


def test_an_error_of_one_pixel_survives_the_reduction():
    error, mask = np.zeros((300, 300), np.uint8), np.zeros((300, 300), bool)
    mask[100:200, 100:200] = True
    error[150, 160], error[0, 0] = 255, 255
    colors = error_colors(error, mask, 128)
    assert colors.shape == (100, 100, 4)
    assert colors[50, 53].tolist() == [252, 253, 191, 255]
    assert colors[0, 0, 3] == 0 and colors[40, 40].tolist() == [0, 0, 4, 255], "outside the mask nothing, inside black"


def test_views_of_the_baked_map_give_the_round_trip_of_the_ledger():
    """Drawn again from what a shard holds, they reach the PSNR that the build measured."""
    (ref,) = procedural(1, Path(tempfile.mkdtemp()), clean=True)
    cfg = BuildConfig(views=RenderConfig(resolution=128), uv=BakeConfig(resolution=256))
    processed = process_asset(ref, cfg)
    assert isinstance(processed.result, TextureSample)
    sample = decode(encode(processed.result))
    baked = render_baked(sample.mesh, sample.uv.rgb, sample.cameras, cfg.views, CpuRasterizer(), sample.uv.opacity)
    found, _ = compare_pixels(sample.views.rgb, baked.rgb, sample.views.mask | baked.mask, 8)
    assert found == pytest.approx(processed.measurements.round_trip_psnr, abs=0.05)
    script = draw_sample(sample, cfg.views.supersample).script
    entry = json.loads(script[len("gallery.sample(") : -3])
    drawn = picture(entry["strips"]["baked"])[..., :3].astype(int) - np.concatenate(list(baked.rgb), axis=1)
    assert np.abs(drawn)[np.concatenate(list(baked.mask), axis=1)].mean() < 4


def test_only_shards_that_changed_are_drawn_again(dataset):
    gallery(dataset)
    first = files(dataset / "report")
    again = gallery(dataset, workers=2)
    assert (again.drawn, again.kept) == (0, 4) and files(dataset / "report") == first

    folder = dataset / "report" / "samples" / "textured-000001"
    (folder / "key.txt").write_text("of another shard")
    (folder / "left over.js").write_text("")
    (dataset / "report" / "samples" / "textured-000009").mkdir()
    part_path(dataset, 0).unlink()
    less = gallery(dataset)
    assert (less.listed, less.drawn, less.kept) == (ASSETS // 2, 1, 1)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mv_only-000001", "textured-000001"]
    assert files(folder) == {
        name.rpartition("/")[2]: data for name, data in first.items() if name.startswith("samples/textured-000001/")
    }


def test_a_gallery_of_fewer_assets_is_an_even_choice(dataset):
    def listed(limit):
        assert gallery(dataset, limit).listed == limit
        return set(handed_over(dataset / "report" / "data.js", "data")["columns"]["uid"])

    few, more = listed(5), listed(10)
    assert few < more and len(few) == 5 and len(more) == 10
    page = (dataset / "report" / "index.html").read_text()
    assert re.search(r"10\s+of\s+24 assets, chosen evenly", page)
    drawn = {path.stem for path in (dataset / "report" / "samples").rglob("*.webp")}
    assert drawn == more & stored(dataset).keys()


def test_names_stay_text(dataset):
    gallery(dataset)
    page = (dataset / "report" / "index.html").read_text()
    assert "forge &amp; &lt;b&gt;" in page and "<b>" not in page
    scripts = [*(dataset / "report" / "samples").rglob("*.js"), dataset / "report" / "data.js"]
    text = "".join(path.read_text("ascii") for path in scripts)
    assert "<" not in text and "\u2028" not in text and json.dumps(HOSTILE[2]).strip('"') in text


def test_the_page_names_no_file_but_its_own(dataset):
    gallery(dataset)
    page = (dataset / "report" / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    static = {name for name in STATIC if name.endswith(".js")}
    pictures = {link for link in links if link.startswith("samples/")}
    assert set(links) - pictures == {"data:,", "gallery.css", "data.js"} | static
    assert pictures and all((dataset / "report" / link).is_file() for link in pictures)
    assert not re.findall(r"<script(?![^>]* src=)", page), "no inline script"
    assert "default-src 'none'" in page
    assert all((dataset / "report" / name).read_bytes() == source.read_bytes() for name, source in STATIC.items())


def test_a_damaged_shard_costs_its_own_pictures_alone(dataset, capsys):
    path = shard_path(dataset, "textured-000000.tar")
    path.write_bytes(path.read_bytes()[:700])
    shard_path(dataset, "mv_only-000001.tar").unlink()
    assert main(["report", str(dataset), "--log", "json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    problems = [event["detail"] for event in events if event["event"] == "problem"]
    assert len(problems) == 2 and all("seqtex repair" in text for text in problems)
    columns = handed_over(dataset / "report" / "data.js", "data")["columns"]
    assert {shard for shard in columns["shard"] if shard} == {"mv_only-000000", "textured-000001"}
    assert "mv_only-000001.tar" in problems[1] + problems[0] and events[-1]["listed"] == ASSETS
    assert not (dataset / "report" / "samples" / "textured-000000").exists()
    assert len(list((dataset / "report" / "samples" / "textured-000001").glob("*.js"))) == 6


def test_samples_of_any_shape_can_be_drawn():
    """Stored views may be wider than high, and their cameras and normals anything."""
    for regime in Regime:
        fields = encode(make_sample(regime))
        files = draw_stored(fields, 2)
        assert files.thumbnail == quick_thumbnail(fields)
        assert Image.open(io.BytesIO(files.thumbnail)).size == (32, 24)


def test_rejected_assets_show_their_picture_and_duplicates_that_of_the_asset_they_repeat(dataset):
    pictures = {"asset-000004": encode_picture(bytes(RAW_BYTES)), "asset-000010": encode_picture(bytes(RAW_BYTES))}
    for job, uid in enumerate(pictures):
        write_pictures(dataset, job, {uid: pictures[uid]})
    part = read_ledger(dataset)[1]
    twin = replace(part.outcomes[4], reason=Reason.DUPLICATE, detail="looks like asset-000001: signatures differ by 0")
    write_ledger_part(dataset, replace(part, outcomes=(*part.outcomes[:4], twin, *part.outcomes[5:])))
    gallery(dataset)
    columns = handed_over(dataset / "report" / "data.js", "data")["columns"]
    shown = dict(zip(columns["uid"], columns["picture"], strict=True))
    assert shown["asset-000004"] == "rejected/asset-000004.webp"
    assert (dataset / "report" / shown["asset-000004"]).read_bytes() == pictures["asset-000004"]
    assert shown[twin.uid] == "samples/textured-000000/asset-000001.webp" and shown["asset-000005"] == ""
    last = [bool(path) for path in columns["picture"] if path.startswith(("samples", "rejected"))]
    assert len(last) == 16 + 3 and columns["uid"][16] == "asset-000004", "after the samples, before all others"

    pictures_path(dataset, 0).write_bytes(b"no tar")
    again = gallery(dataset)
    assert len(again.problems) == 1 and "rejected/000000.tar: cannot be read" in again.problems[0]
    assert not (dataset / "report" / "rejected" / "asset-000004.webp").exists()


def test_bad_options_of_report(dataset, capsys):
    assert main(["report", str(dataset), "--assets", "0"]) == 2
    assert "--assets" in capsys.readouterr().err
    assert main(["report", str(dataset / "absent")]) == 1
    assert "dataset.json" in capsys.readouterr().err


def sphere_views(side: int = 120) -> Views:
    """A sphere of radius 0.8 as four cameras around it see it."""
    turns = np.linspace(0, 2 * np.pi, 4, endpoint=False)
    row, column = np.meshgrid(*[(np.arange(side) + 0.5) / side * 2 - 1] * 2, indexing="ij")
    inside = row**2 + column**2 < 0.8**2
    depth = np.sqrt(np.maximum(0.8**2 - row**2 - column**2, 0))
    position = np.stack(
        [
            np.stack([column * np.cos(t) + depth * np.sin(t), column * np.sin(t) - depth * np.cos(t), -row], axis=-1)
            for t in turns
        ]
    )
    position = (position * inside[None, ..., None]).astype(np.float32)
    mask = np.repeat(inside[None], 4, axis=0)
    rgb = ((position + 1) * 127).astype(np.uint8) * mask[..., None]
    return Views(
        rgb=rgb, mask=mask, coverage=mask * np.uint8(255), position=position, normal=(position / np.float32(0.8))
    )


def test_the_surface_that_views_see_lies_on_the_surface_and_faces_outwards():
    views = sphere_views()
    mesh, texture = seen_surface(views), side_by_side(views.rgb)
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), 0.8, atol=1e-5)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((across * corners.mean(axis=1)).sum(axis=1) > 0).all(), "counter-clockwise from outside"
    column = (mesh.uv[:, 0] * texture.shape[1]).astype(int)
    row = ((1 - mesh.uv[:, 1]) * texture.shape[0]).astype(int)
    assert (texture[row, column] == ((mesh.vertices + 1) * 127).astype(np.uint8)).all(), "each point has its own colour"
    assert len(mesh.vertices) <= 4 * GRID**2


def test_views_of_nothing_have_no_surface():
    views = sphere_views(40)
    empty = Views(
        **{name: np.zeros_like(getattr(views, name)) for name in ("rgb", "mask", "coverage", "position", "normal")}
    )
    assert seen_surface(empty) is None


@pytest.mark.parametrize("log", [False, True])
def test_a_histogram_has_every_value_once(log):
    values = np.random.default_rng(0).uniform(1, 9000, 500).tolist()
    svg = histogram(values, "Faces", "faces", "faces", log=log)
    assert sum(int(n) for n in re.findall(r"<title>([\d,]+)</title>", svg)) == 500
    links = re.findall(r'href="#range=faces:([^:]+):([^"]+)"', svg)
    assert sum((float(low) <= v <= float(high)) for v in values for low, high in links) >= 498, (
        "a bar links to its values"
    )
    assert f"median {np.median(values):,.4g} faces" in svg and "500 assets" in svg
    assert histogram([], "Faces", "faces", "faces", log=log) == ""
    assert "<rect" in histogram([5.0], "Faces", "faces", "faces", log=log), "one value is a chart too"


def test_thumbnails_are_see_through_outside_the_mask(dataset):
    gallery(dataset)
    picture = Image.open(next((dataset / "report" / "samples" / "textured-000000").glob("*.webp")))
    assert picture.mode == "RGBA"
    assert {0, 255} <= set(np.unique(np.asarray(picture)[..., 3]))


def test_channels_of_a_material_are_drawn_with_their_proofs(tmp_path):
    """Views of the baked maps, drawn again from what a shard holds, reach the PSNR that the build measured."""
    built = glowing_square(tmp_path)
    sample = decode(encode(built))
    cfg = RenderConfig(resolution=sample.views.mask.shape[1])
    found, either = channels(sample, cfg)
    assert [channel.name for channel in found] == ["metallic", "roughness", "normal_detail", "emissive"]
    measured = built.meta["measurements"]
    for channel in found[:2]:
        both = sample.views.mask & either
        psnr = capped_psnr(channel.source[..., 0], channel.baked[..., 0], both)
        assert psnr == pytest.approx(measured[f"{channel.name}_psnr"], abs=0.3)
        difference = np.abs(channel.source.astype(int) - channel.baked).max(axis=-1)
        np.testing.assert_array_equal(channel.error, difference)
    degrees = found[2].error[sample.views.mask].mean() * NORMAL_ERROR_DEG / ERROR_LEVELS
    assert degrees == pytest.approx(measured["normal_error_deg"], abs=0.5)
    entry = json.loads(draw_sample(sample, cfg.supersample).script[len("gallery.sample(") : -3])
    names = [f"{channel.name}_{kind}" for channel in found for kind in ("source", "baked", "error")]
    assert list(entry["strips"]) == ["source", "normal", "position", *names, "baked", "error"]
    assert list(entry["maps"])[:3] == ["color", "normal", "position"]
    assert list(entry["maps"])[3:] == ["metallic", "roughness", "normal_detail", "normal_tangent", "emissive"]
    assert abs(int(picture(entry["maps"]["metallic"])[64, 10, 0]) - 255) < 4 and entry["strength"] == 1.0
    roughness = picture(entry["strips"]["roughness_source"])[..., 0][np.concatenate(list(sample.views.mask), axis=1)]
    assert abs(np.quantile(roughness, 0.05) - 40) < 8 and abs(np.quantile(roughness, 0.95) - 230) < 8


def test_a_channel_without_a_map_has_its_source_alone(tmp_path):
    sample = glowing_square(tmp_path)
    sample = replace(sample, regime=Regime.MV_ONLY, uv=None, mesh=None)
    entry = json.loads(draw_sample(sample, 2).script[len("gallery.sample(") : -3])
    assert [name for name in entry["strips"] if name.startswith("metallic")] == ["metallic_source"]
