"""The gallery: every asset is listed, only what changed is drawn again, what a browser unpacks is the mesh."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.filter.rules import FilterConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.report.asset_table import measurement_groups
from pipeline.report.charts import histogram
from pipeline.report.gallery import STATIC, write_gallery
from pipeline.report.images import GRID, seen_surface
from schemas.codec import decode
from schemas.dataset import part_path, read_ledger, shard_path
from schemas.ledger import LEDGER_SCHEMA, Measurements
from schemas.mesh import TexturedMesh
from schemas.sample import Regime, Views
from schemas.shards import read_shard
from seqtex.cli.main import main
from tests.support.gallery_dataset import HOSTILE, synthetic_outcome, synthetic_ref, write_dataset

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
    """What a script of the gallery hands to the page."""
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
    for i in range(ASSETS):
        outcome, ref = synthetic_outcome(i, i // 12), synthetic_ref(i)
        row = {name: values[i] for name, values in columns.items()}
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


def test_the_model_of_a_sample_is_its_mesh_with_its_map(dataset, tmp_path):
    gallery(dataset)
    uid, sample = next((uid, s) for uid, s in stored(dataset).items() if s.regime is Regime.TEXTURED)
    entry = handed_over(dataset / "report" / "samples" / "textured-000000" / f"{uid}.js", "sample")
    (tmp_path / "model.glb").write_bytes(gzip.decompress(base64.b64decode(entry["model"]["glb"])))
    mesh = load_mesh(tmp_path / "model.glb")
    assert isinstance(mesh, TexturedMesh)
    np.testing.assert_allclose(mesh.vertices[:, [0, 2, 1]] * [1, -1, 1], sample.mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(mesh.uv, sample.mesh.uv, atol=1e-6)
    off = mesh.textures[0].image[..., :3].astype(int) - sample.uv.rgb
    assert np.abs(off).mean() < 20, "a JPEG of the map, noise though it is"
    assert [picture["title"] for picture in entry["pictures"]] == [
        "Views: colour", "Views: normal", "Views: position", "UV map: colour", "UV map: normal", "UV map: position",
    ]  # fmt: skip


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
    assert set(links) == {"data:,", "gallery.css", "catalog.js", "data.js", "sample.js", "gallery.js"}
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
    mesh, texture = seen_surface(views)
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
    svg = histogram(values, "Faces", "faces", log=log)
    assert sum(int(n) for n in re.findall(r"<title>([\d,]+)</title>", svg)) == 500
    assert f"median {np.median(values):,.4g} faces" in svg and "500 assets" in svg
    assert histogram([], "Faces", "faces", log=log) == ""
    assert "<rect" in histogram([5.0], "Faces", "faces", log=log), "one value is a chart too"


def test_thumbnails_are_see_through_outside_the_mask(dataset):
    gallery(dataset)
    picture = Image.open(next((dataset / "report" / "samples" / "textured-000000").glob("*.webp")))
    assert picture.mode == "RGBA"
    assert {0, 255} <= set(np.unique(np.asarray(picture)[..., 3]))
