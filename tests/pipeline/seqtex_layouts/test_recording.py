"""Recordings of samples for the Rerun viewer, read back with the package's own reader."""

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geometry.cameras import RigConfig, rig_cameras
from pipeline.seqtex_layouts.recording import export_recordings, recording
from schemas.errors import UsageError, UserError
from schemas.sample import Regime, TextureSample
from seqtex.cli.main import main
from seqtex.dataset import Dataset
from tests.support.gallery_dataset import glowing_square
from tests.support.small_dataset import small_sample, write_dataset, write_samples

chunks = pytest.importorskip("rerun.chunk", reason="rerun-sdk is not installed (extra rerun)")

FIELDS = ("metallic_roughness", "normal_detail", "emissive")
JOBS = [[("vase", Regime.TEXTURED), ("bowl", Regime.MV_ONLY)], [("chair", Regime.TEXTURED)]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("forge") / "out"
    write_dataset(out, JOBS)
    return out


def read(path: Path) -> dict[str, Any]:
    """Return every component of a recording by its entity and name."""
    reader = chunks.RrdReader(path)
    (store,) = reader.recordings()
    assert (store.application_id, store.recording_id) == ("seqtex", path.stem)
    assert len(reader.blueprints()) == 1
    found = {}
    for chunk in reader.stream():
        batch = chunk.to_record_batch()
        found |= {f"{chunk.entity_path}:{name}": batch[name][0].as_py() for name in batch.schema.names}
    return found


def pixels(found: dict[str, Any], entity: str) -> np.ndarray:
    assert found[f"{entity}:EncodedImage:media_type"] == ["image/png"]
    return np.asarray(Image.open(io.BytesIO(bytes(found[f"{entity}:EncodedImage:blob"][0]))))


def exported(dataset: Path, out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    count = export_recordings(dataset, out, lambda done, uid: None, **options)
    assert count == len(list(out.iterdir()))
    return {path.stem: read(path) for path in out.iterdir()}


def test_cameras_see_the_points_where_their_images_have_them(dataset, tmp_path):
    """Pose and lens as the recording has them, applied as its conventions say, take every point to its pixel."""
    recordings = exported(dataset, tmp_path / "out")
    assert recordings.keys() == {"vase", "bowl", "chair"}
    sample = small_sample("vase", Regime.TEXTURED, seed=0)
    found = recordings["vase"]
    turn = np.array(found["/cameras/1:Transform3D:mat3x3"][0]).reshape(3, 3).T  # column by column
    place = np.array(found["/cameras/1:Transform3D:translation"][0])
    lens = np.array(found["/cameras/1:Pinhole:image_from_camera"][0]).reshape(3, 3).T
    size = len(sample.views.mask[1])
    assert found["/cameras/1:Pinhole:resolution"] == [[size, size]]
    points = np.array([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.2]])
    right_up_back = (points - place) @ turn
    in_image = right_up_back * (1, -1, -1) @ lens.T
    clip = np.c_[points, np.ones(2)] @ sample.cameras.world_to_clip[1].T
    truth = (clip[:, :2] / clip[:, 3:] + 1) / 2 * size
    np.testing.assert_allclose(in_image[:, :2] / in_image[:, 2:], truth, atol=1e-3)


def test_images_points_and_maps_are_those_of_the_sample(dataset, tmp_path):
    for uid, found in exported(dataset, tmp_path / "out").items():
        sample = Dataset(dataset)[uid]
        for number, mask in enumerate(sample.views.mask):
            np.testing.assert_array_equal(pixels(found, f"/cameras/{number}/color"), sample.views.rgb[number])
            normal = pixels(found, f"/cameras/{number}/normal")[mask] / 127.5 - 1
            np.testing.assert_allclose(normal, sample.views.normal[number][mask], atol=1 / 255)
            entity = f"/points/view_{number}:Points3D"
            assert np.float32(found[f"{entity}:positions"]).tolist() == sample.views.position[number][mask].tolist()
            red = np.array(found[f"{entity}:colors"]) >> 24
            assert red.tolist() == sample.views.rgb[number][mask][:, 0].tolist()
        assert ("/mesh:Mesh3D:vertex_positions" in found) == (sample.mesh is not None)
        if sample.uv is not None:
            np.testing.assert_array_equal(pixels(found, "/uv/color"), sample.uv.rgb)
            covered = sample.uv.mask
            position = pixels(found, "/uv/position")[covered] / 127.5 - 1
            np.testing.assert_allclose(position, sample.uv.position[covered], atol=1 / 255)
            assert not pixels(found, "/uv/normal")[~covered].any()


def test_the_mesh_has_its_texture_with_row_zero_at_the_top(dataset, tmp_path):
    found = exported(dataset, tmp_path / "out", uids={"chair"})["chair"]
    sample = Dataset(dataset)["chair"]
    assert sample.mesh is not None and sample.uv is not None
    assert found["/mesh:Mesh3D:vertex_positions"] == sample.mesh.vertices.tolist()
    assert found["/mesh:Mesh3D:vertex_normals"] == sample.mesh.normals.tolist()
    assert found["/mesh:Mesh3D:triangle_indices"] == sample.mesh.faces.tolist()
    np.testing.assert_allclose(found["/mesh:Mesh3D:vertex_texcoords"], sample.mesh.uv * (1, -1) + (0, 1))
    assert bytes(found["/mesh:Mesh3D:albedo_texture_buffer"][0]) == sample.uv.rgb.tobytes()


def test_materials_are_images_beside_the_colour(tmp_path):
    sample = glowing_square(tmp_path)
    path = tmp_path / f"{sample.uid}.rrd"
    path.write_bytes(recording(sample))
    found, views, uv = read(path), sample.views, sample.uv
    assert uv is not None and uv.materials is not None and views.materials is not None
    for entity, own, mask in (
        ("/cameras/2", {name: getattr(views.materials, name)[2] for name in FIELDS}, views.mask[2]),
        ("/uv", {name: getattr(uv.materials, name) for name in FIELDS}, uv.mask),
    ):
        metallic, roughness = (pixels(found, f"{entity}/{name}") for name in ("metallic", "roughness"))
        np.testing.assert_array_equal(np.dstack([metallic, roughness]), own["metallic_roughness"])
        np.testing.assert_array_equal(pixels(found, f"{entity}/emissive"), own["emissive"])
        normal = pixels(found, f"{entity}/normal_detail")[mask] / 127.5 - 1
        np.testing.assert_allclose(normal, own["normal_detail"][mask], atol=1 / 255)
    tangent = pixels(found, "/uv/normal_tangent")[uv.mask] / 127.5 - 1
    np.testing.assert_allclose(tangent, uv.materials.normal_tangent[uv.mask], atol=1 / 255)


def test_texts_are_plain_and_measurements_are_values(tmp_path):
    sample = small_sample("vase", Regime.TEXTURED, seed=1)
    sample.meta["caption"], sample.meta["captions"] = "![a vase](http://tracker/x.png)", {"short": "vase"}
    sample.meta["measurements"] = {"faces": 12, "flatness": 0.25, "layout": "authored", "seam_length": None}
    path = tmp_path / "vase.rrd"
    path.write_bytes(recording(sample))
    found = read(path)
    assert found["/caption:TextDocument:text"] == ["![a vase](http://tracker/x.png)\nvase"]
    assert found["/measurements:TextDocument:text"] == ["faces: 12\nflatness: 0.25\nlayout: authored"]
    for entity in ("caption", "source", "measurements"):
        assert found[f"/{entity}:TextDocument:media_type"] == ["text/plain"]
    values = {name.rpartition(":")[2]: value for name, value in found.items() if name.startswith("/measurements:")}
    assert (values["faces"], values["flatness"], values["layout"]) == ([12], [0.25], ["authored"])


def test_a_camera_of_parallel_rays_has_a_pose_and_no_lens(tmp_path):
    plain = small_sample("box", Regime.MV_ONLY, seed=1)
    cameras = rig_cameras(RigConfig(orthographic=True), np.full(3, -1.0), np.full(3, 1.0))
    path = tmp_path / "box.rrd"
    fields = {name: getattr(plain, name) for name in ("uid", "regime", "views", "uv", "mesh", "meta")}
    path.write_bytes(recording(TextureSample(**fields, cameras=cameras)))
    found = read(path)
    assert "/cameras/0:Transform3D:translation" in found and "/cameras/0/color:EncodedImage:blob" in found
    assert not [name for name in found if "Pinhole" in name]


def test_the_command_exports_the_uids_that_are_named(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(dataset), "--layout", "rerun", "--out", str(out), "--log", "json"]
    assert main([*command, "--uid", "vase", "--uid", "bowl"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["bowl.rrd", "vase.rrd"]
    assert '"samples": 2' in capsys.readouterr().out
    assert main(command) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert main([*command[:-3], str(tmp_path / "new"), "--uid", "table"]) == 2
    assert "has no sample 'table'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_one_shard_is_read_for_one_uid(dataset, tmp_path):
    """A damaged shard of others does not matter."""
    write_dataset(copy := tmp_path / "forge", JOBS)
    (copy / "shards" / "textured-000000.tar").write_bytes(b"damaged")
    assert exported(copy, tmp_path / "one", uids={"chair"}).keys() == {"chair"}
    with pytest.raises(UserError, match="textured-000000"):
        export_recordings(copy, tmp_path / "all", lambda done, uid: None)


def test_what_is_missing_is_named(dataset, tmp_path, monkeypatch):
    write_samples(tmp_path / "empty", [[]])
    with pytest.raises(UserError, match="has no sample"):
        export_recordings(tmp_path / "empty", tmp_path / "out", lambda done, uid: None)
    actual = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "rerun":
            raise ImportError("No module named 'rerun'")
        return actual(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"rerun-sdk .*pip install -c constraints.txt '\.\[rerun\]'"):
        export_recordings(dataset, tmp_path / "out", lambda done, uid: None)
