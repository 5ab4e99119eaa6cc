"""One asset to a sample, one job to shards: every asset ends in exactly one row."""

import dataclasses
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.asset import process_asset
from pipeline.config import BuildConfig, config_from_dict
from pipeline.dataset.pictures import SIDE, pictures_path, read_pictures
from pipeline.executor.job import process_job
from pipeline.filter.rules import FilterConfig, rule_of
from pipeline.mesh_io.write_glb import Primitive, encode_glb
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sandbox.child import LimitsConfig
from pipeline.sandbox.fork_server import MachineError
from pipeline.sandbox.policy import Layer
from pipeline.sources.procedural import procedural
from pipeline.unwrap.unwrap import unwrap
from schemas.codec import decode, encode
from schemas.dataset import part_path, read_ledger_part, shard_path
from schemas.ledger import MAX_DETAIL_CHARS, Counts, Reason, Rejected, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime, TextureSample
from schemas.shards import read_shard
from tests.support.small_gltf import box

SMALL = BuildConfig(
    views=RenderConfig(resolution=64), uv=BakeConfig(resolution=128), filter=FilterConfig(min_round_trip_db=15.0)
)


@pytest.fixture(scope="module")
def refs(tmp_path_factory) -> list[MeshRef]:
    return list(procedural(10, tmp_path_factory.mktemp("assets")))


def test_a_sample_says_what_it_is_made_of(refs):
    processed = process_asset(refs[0], SMALL)
    sample = processed.result
    assert isinstance(sample, TextureSample)
    assert sample.regime is Regime.TEXTURED
    assert sample.views.rgb.shape == (4, 64, 64, 3)
    assert sample.uv is not None
    assert sample.uv.rgb.shape == (128, 128, 3)
    assert sample.meta["source"]["licence"] == "CC0-1.0"
    assert sample.meta["source"]["uri"] == f"{refs[0].uid}.glb"
    assert sample.meta["caption"] == refs[0].caption
    assert sample.meta["measurements"] == processed.measurements.json()
    assert encode(decode(encode(sample)))["json"] == encode(sample)["json"]


def test_the_proof_of_a_map_sees_an_unwrapped_mesh_that_lies_elsewhere(refs, monkeypatch):
    """Faces seen in the views of the source are taken for those of the map only where they lie in the same places."""

    def moved(*arguments):
        found = unwrap(*arguments)
        return dataclasses.replace(found, vertices=found.vertices * np.float32(0.9))

    right = process_asset(refs[0], SMALL).measurements.round_trip_psnr
    monkeypatch.setattr("pipeline.asset.unwrap", moved)
    wrong = process_asset(refs[0], SMALL).measurements.round_trip_psnr
    assert right is not None and wrong is not None and wrong < 20 < right


def test_positions_of_the_views_project_to_their_pixels(refs):
    """clip = projection @ world_to_cam @ (x, 1): the pixel a position is stored in is the pixel it projects to."""
    sample = process_asset(refs[1], SMALL).result
    assert isinstance(sample, TextureSample)
    views, cameras = sample.views, sample.cameras
    for v in range(4):
        rows, columns = np.nonzero(views.mask[v])
        points = np.concatenate([views.position[v][rows, columns], np.ones((len(rows), 1))], axis=1)
        clip = points @ cameras.world_to_clip[v].T.astype(np.float64)
        found = (clip[:, :2] / clip[:, 3:] + 1) / 2 * 64 - 0.5
        error = np.abs(found - np.stack([columns, rows], axis=1)).max(axis=1)
        assert np.quantile(error, 0.99) < 1e-3
        assert error.max() < 0.1  # float32 weights on a face seen from its edge


def test_the_uv_map_holds_the_texture_of_the_surface(refs):
    """A texel's colour is seen in the views at its position, where nothing hides it."""
    sample = process_asset(refs[0], SMALL).result
    assert isinstance(sample, TextureSample)
    assert sample.uv is not None
    seen = sample.views.position[sample.views.mask]
    colors = sample.views.rgb[sample.views.mask].astype(float)
    texels, texel_colors = sample.uv.position[sample.uv.mask], sample.uv.rgb[sample.uv.mask].astype(float)
    pick = np.random.default_rng(0).permutation(len(seen))[:300]
    nearest = ((texels[None] - seen[pick][:, None]) ** 2).sum(-1).argmin(1)
    error = np.abs(texel_colors[nearest] - colors[pick])
    assert np.median(error) < 8
    shuffled = np.abs(texel_colors[np.random.default_rng(1).permutation(nearest)] - colors[pick])
    assert error.mean() < 0.5 * shuffled.mean()


def test_an_asset_that_changed_after_planning_is_refused(refs):
    stale = dataclasses.replace(refs[0], sha256="0" * 64)
    result = process_asset(stale, SMALL).result
    assert isinstance(result, Rejected)
    assert result.reason is Reason.INPUT_CHANGED


def test_a_poor_round_trip_or_a_small_budget_makes_a_sample_multi_view_only(refs):
    strict = dataclasses.replace(SMALL, filter=FilterConfig(min_round_trip_db=99.0))
    processed = process_asset(refs[0], strict)
    assert isinstance(processed.result, TextureSample)
    assert processed.result.regime is Regime.MV_ONLY
    assert processed.result.uv is None
    assert processed.mv_only is not None
    assert processed.mv_only.reason is Reason.ROUND_TRIP
    assert rule_of(processed.mv_only.detail) == "min_round_trip_db" and "99" in processed.mv_only.detail
    assert processed.measurements.round_trip_psnr is not None


def test_an_asset_that_hardly_shows_is_rejected(refs):
    processed = process_asset(refs[0], dataclasses.replace(SMALL, filter=FilterConfig(min_visible_share=0.9)))
    assert isinstance(processed.result, Rejected)
    assert processed.result.reason is Reason.BARELY_VISIBLE
    assert rule_of(processed.result.detail) == "min_visible_share"


def test_a_configuration_survives_json():
    cfg = dataclasses.replace(SMALL, assets_per_job=7, limits=LimitsConfig(timeout_s=3.5))
    assert config_from_dict(BuildConfig, json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg


# a job


def new_output(out: Path) -> Path:
    for name in ("shards", "ledger", ".work"):
        (out / name).mkdir(parents=True)
    return out


def test_a_job_gives_every_asset_one_row_and_every_sample_one_place(refs, tmp_path):
    missing = MeshRef(uid="z-missing", uri=str(tmp_path / "gone.glb"))
    job = ShardJob(index=3, refs=(*refs[6:], missing))
    out = new_output(tmp_path / "out")
    report = process_job(job, out, SMALL)
    part = read_ledger_part(part_path(out, 3))
    assert [row.uid for row in part.outcomes] == [ref.uid for ref in job.refs]
    assert report.planned == len(job.refs) == report.counts.total
    assert part.outcomes[-1].reason is Reason.MISSING_FILE
    assert all(Layer.LIMITS in (row.sandbox or "").split("+") for row in part.outcomes)
    assert not list((out / ".work").iterdir())
    stored = [uid for shard in part.shards for uid, _ in read_shard(shard_path(out, shard.name))]
    assert sorted(stored) == sorted(row.uid for row in part.outcomes if row.status is Status.ACCEPTED)
    assert stored
    for shard in part.shards:
        for uid, fields in read_shard(shard_path(out, shard.name)):
            sample = decode(fields)
            row = next(row for row in part.outcomes if row.uid == uid)
            assert (sample.regime, row.regime, row.shard) == (shard.regime, shard.regime, shard.name)
            assert sample.meta["measurements"] == row.measurements.json()


def test_rejected_assets_leave_a_picture_beside_the_ledger(refs, tmp_path):
    """At every stage of the filter, the same one every time; a job done again for one asset keeps the others'."""
    cfg = dataclasses.replace(SMALL, filter=FilterConfig(min_visible_share=0.9))
    job = ShardJob(index=2, refs=(refs[0], refs[2], MeshRef(uid="z-missing", uri=str(tmp_path / "gone.glb"))))
    outs = [new_output(tmp_path / name) for name in ("one", "two")]
    for out in outs:
        assert process_job(job, out, cfg).counts.rejected == 3
    first, second = (pictures_path(out, 2).read_bytes() for out in outs)
    pictures = read_pictures(outs[0], 2)
    assert first == second and list(pictures) == [refs[0].uid, refs[2].uid]
    for picture in pictures.values():
        shown = np.asarray(Image.open(io.BytesIO(picture)))
        assert shown.shape == (SIDE, SIDE, 4) and len(picture) < 8000
        assert 0.02 < (shown[..., 3] > 128).mean() < 0.98 and shown[shown[..., 3] > 128][:, :3].std() > 10

    process_job(dataclasses.replace(job, only=frozenset({"z-missing"})), outs[0], cfg)
    assert pictures_path(outs[0], 2).read_bytes() == first
    process_job(job, outs[1], SMALL)
    assert read_pictures(outs[1], 2) == {}, "accepted assets have none"


def test_assets_without_a_size_have_no_picture(refs, tmp_path):
    few = process_asset(refs[0], dataclasses.replace(SMALL, filter=FilterConfig(min_faces=10**6)))
    assert few.picture is not None and few.picture.shape == (SIDE, SIDE, 4) and few.picture[..., 3].any()
    path = tmp_path / "point.glb"
    path.write_bytes(encode_glb([point()], [], {}))
    nothing = process_asset(MeshRef(uid="p", uri=str(path)), SMALL)
    assert isinstance(nothing.result, Rejected) and nothing.picture is None


def point() -> Primitive:
    """Twenty faces, all of whose corners lie in one point."""
    return Primitive(
        positions=np.zeros((3, 3)), normals=np.eye(3), faces=np.tile(np.array([[0, 1, 2]]), (20, 1)), material=None
    )


def test_a_machine_that_cannot_process_assets_commits_nothing(refs, tmp_path):
    out = new_output(tmp_path / "out")
    with pytest.raises(MachineError, match="No module named 'gone'"):
        process_job(ShardJob(index=0, refs=tuple(refs[:2])), out, SMALL, "gone:run")
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_text_that_no_file_can_hold_ends_as_a_row_like_any_other(tmp_path):
    """JSON may bring lone surrogates, and names of megabytes: a verdict quotes what it finds."""
    named = {"surrogate": "_\ud800", "long": "_" * (3 << 20)}
    for stem, name in named.items():
        builder = box()
        builder.tree["meshes"][0]["primitives"][0]["attributes"] = {"POSITION": name}
        (tmp_path / f"{stem}.glb").write_bytes(builder.glb())
    (tmp_path / "needs.gltf").write_text('{"asset": {"version": "2.0"}, "extensionsRequired": ["\\ud800"]}')
    paths = sorted(path for path in tmp_path.iterdir())
    out = new_output(tmp_path / "out")
    process_job(ShardJob(index=0, refs=tuple(MeshRef(uid=path.stem, uri=str(path)) for path in paths)), out, SMALL)
    long, needs, surrogate = read_ledger_part(part_path(out, 0)).outcomes
    assert (needs.reason, needs.detail) == (Reason.UNSUPPORTED_EXTENSION, "requires ?")
    assert surrogate.reason is long.reason is Reason.INVALID_STRUCTURE
    assert surrogate.detail.startswith("meshes[0].primitives[0].attributes.POSITION is '_\\ud800', expected")
    assert long.detail.startswith("meshes[0].primitives[0].attributes.POSITION is '__")
    assert len(long.detail) <= MAX_DETAIL_CHARS


POISON = """
import os, time
from pathlib import Path
from pipeline.executor.job import process_in_child

def run(request, directory):
    kind = request["ref"]["caption"]
    if kind == "sleep":
        time.sleep(600)
    if kind == "exit":
        os._exit(3)
    if kind == "abort":
        os.abort()
    if kind == "memory":
        bytes(1 << 40)
    if kind == "silent":
        return
    if kind == "killed once" and not Path(__file__).with_name("killed").exists():
        Path("pid").write_text(str(os.getpid()))
        time.sleep(600)
    process_in_child(request, directory)
"""


def kill_once(out: Path, killed: Path) -> None:
    """SIGKILL for the first child that leaves its number."""
    while not (found := [path for path in (out / ".work").glob("*/*/pid") if path.read_text()]):
        time.sleep(0.02)
    killed.touch()
    os.kill(int(found[0].read_text()), signal.SIGKILL)


def test_poison_among_the_assets_harms_nobody_else(refs, tmp_path):
    (tmp_path / "poison.py").write_text(POISON)
    ends = {
        "sleep": Reason.TIMEOUT,
        "exit": Reason.CRASHED,
        "abort": Reason.CRASHED,
        "memory": Reason.MEMORY_LIMIT,
        "silent": Reason.CRASHED,
        "killed once": None,
    }
    poisoned = [dataclasses.replace(refs[0], uid=f"p-{i}", caption=kind) for i, kind in enumerate(ends)]
    good = dataclasses.replace(refs[0], uid="z")
    out = new_output(tmp_path / "out")
    cfg = dataclasses.replace(SMALL, limits=LimitsConfig(timeout_s=6.0))
    job = ShardJob(index=0, refs=(*poisoned, good))
    threading.Thread(target=kill_once, args=(out, tmp_path / "killed"), daemon=True).start()
    report = process_job(job, out, cfg, "poison:run", (tmp_path,))
    rows = read_ledger_part(part_path(out, 0)).outcomes
    assert {row.uid: row.reason for row in rows[:-1]} == {f"p-{i}": end for i, end in enumerate(ends.values())}
    assert [row.status for row in rows[-2:]] == [Status.ACCEPTED] * 2
    assert report.counts == Counts(textured=2, failed=5)
