"""Duplicates: the same bytes under another name, the same object exported again; nothing else."""

import json
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.state import planned_jobs
from pipeline.dataset.verify import verify
from pipeline.executor.build import build
from pipeline.executor.job import process_job
from pipeline.filter.duplicates import DuplicatesConfig, duplicates, known_ahead, row_of, unsettled
from pipeline.filter.signature import GENERAL, NUMBERS
from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.dataset import LedgerPart, read_dataset_json, read_ledger, read_parquet, shard_path
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import MeshRef, TexturedMesh, Wrap
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.shards import read_shard
from schemas.storage import file_sha256
from tests.support.re_exports import as_jpeg, distance, half_size, moved, numbers, printed, quartered, reordered

CFG = BuildConfig(
    assets_per_job=3, views=RenderConfig(resolution=48), uv=BakeConfig(resolution=64), preflight=PreflightConfig()
)


def opened(refs: list[MeshRef]) -> dict[str, TexturedMesh]:
    found = {}
    for ref in refs:
        loaded = load_asset(Path(ref.uri), PreflightConfig(), shading=False)
        if isinstance(loaded, tuple) and isinstance(loaded[1], TexturedMesh) and len(loaded[1].faces):
            found[ref.uid] = loaded[1]
    return found


def assert_told_apart(meshes: dict[str, TexturedMesh], known: set[frozenset[str]]) -> None:
    """Re-exports are found, and of different assets none but the `known` pairs."""
    limit = DuplicatesConfig().max_distance
    first = {uid: numbers(mesh) for uid, mesh in meshes.items()}
    for seed, (uid, mesh) in enumerate(meshes.items()):
        again = numbers(as_jpeg(moved(reordered(mesh, seed), seed), 80))
        assert distance(first[uid], again) <= limit, uid
        assert distance(first[uid], numbers(half_size(mesh))) <= limit, uid
    uids = list(first)
    near = {
        frozenset((a, b)) for i, a in enumerate(uids) for b in uids[:i] if distance(first[a], first[b]) <= 2 * limit
    }
    assert near == known, "twice the limit still holds apart what is different"


@pytest.mark.slow
def test_shared_assets_are_told_apart_and_their_re_exports_found(assets_dir):
    meshes = opened(list(folder(assets_dir)))
    bottles = [uid for uid in meshes if uid.startswith("water_bottle")]
    assert len(meshes) > 35 and len(bottles) == 2
    assert_told_apart(meshes, {frozenset(bottles)})  # one asset in two encodings: PNG and meshopt with KTX2


def test_made_up_assets_are_told_apart_and_their_re_exports_found(tmp_path):
    assert_told_apart(opened(list(procedural(12, tmp_path))), set())


def test_one_mesh_with_two_textures_is_two_assets(tmp_path):
    """50 pairs: a texture against its quarters in another order, and two words printed on it; even where the amounts of
    colour are the same at every distance from the centre."""
    limit, pairs, alike = DuplicatesConfig().max_distance, [], 0
    for mesh in opened(list(procedural(25, tmp_path, clean=True))).values():
        pairs += [(mesh, quartered(mesh)), (printed(mesh, "MILKY"), printed(mesh, "SALT!"))]
    for one, other in pairs:
        assert distance(numbers(one), numbers(other)) > limit
        alike += float(np.abs(numbers(one) - numbers(other))[:GENERAL].max()) <= limit
    assert len(pairs) == 50 and alike > 20


@pytest.mark.parametrize(
    "pair", [("quad_rgby", "quad_permuted"), ("box_MILK", "box_SALT"), ("crate_brown", "crate_brown_b")]
)
def test_boxes_with_other_pictures_are_other_assets(pair):
    folder = Path(__file__).parents[2] / "data/duplicates"
    first, second = (load_mesh(folder / f"{name}.glb") for name in pair)
    assert isinstance(first, TexturedMesh) and isinstance(second, TexturedMesh)
    assert distance(numbers(first), numbers(second)) > 1.5 * DuplicatesConfig().max_distance
    again = as_jpeg(moved(reordered(second, 1), 1), 80)
    assert distance(numbers(second), numbers(again)) < DuplicatesConfig().max_distance / 2


def test_a_new_texture_layout_is_the_same_asset(tmp_path):
    """Another exporter's atlas, here the old one mirrored and moved: the place in the texture changes, the object does
    not."""
    for mesh in opened(list(procedural(6, tmp_path, clean=True))).values():
        images = [
            replace(
                t,
                image=np.ascontiguousarray(np.roll(t.image[:, ::-1], 32, axis=0)),
                wrap_u=Wrap.REPEAT,
                wrap_v=Wrap.REPEAT,
            )
            for t in mesh.textures
        ]
        shift = 32 / mesh.textures[0].image.shape[0]
        uv = np.stack([1 - mesh.uv[:, 0], mesh.uv[:, 1] - shift], axis=1).astype(np.float32)
        laid_out = replace(mesh, uv=uv, textures=tuple(images))
        assert distance(numbers(mesh), numbers(laid_out)) <= DuplicatesConfig().max_distance


def test_another_colour_and_another_proportion_are_other_assets(tmp_path):
    mesh = next(mesh for mesh in opened(list(procedural(4, tmp_path, clean=True))).values() if mesh.textures)
    limit = DuplicatesConfig().max_distance
    tinted = [replace(t, image=t.image // np.array([1, 2, 2, 1], np.uint8)) for t in mesh.textures]
    assert distance(numbers(mesh), numbers(replace(mesh, textures=tuple(tinted)))) > limit
    taller = replace(mesh, vertices=mesh.vertices * np.array([1, 1.25, 1], np.float32))
    assert distance(numbers(mesh), numbers(taller)) > limit


def outcome(
    uid: str, sha256: str | None = None, signature: str | None = None, reason: Reason | None = None, detail: str = ""
) -> Outcome:
    status = Status.ACCEPTED if reason is None else Status.REJECTED
    return Outcome(
        uid=uid,
        uri=f"/assets/{uid}.glb",
        sha256=sha256,
        status=Status.FAILED if reason is Reason.TIMEOUT else status,
        regime=Regime.MV_ONLY if reason is None else None,
        reason=reason,
        detail=detail,
        shard="mv_only-000000.tar" if reason is None else None,
        seconds=1.0,
        measurements=Measurements(signature=signature),
    )


def text(first: int) -> str:
    return np.array([first] + [0] * (NUMBERS - 1), ">u2").tobytes().hex()


def judged(*rows: Outcome, **config) -> dict[str, str]:
    refs = [MeshRef(uid=row.uid, uri=row.uri) for row in rows]
    found = duplicates([row_of(ref, row) for ref, row in zip(refs, rows, strict=True)], DuplicatesConfig(**config))
    return {uid: verdict.detail for uid, verdict in found.items()}


def test_the_first_is_kept_and_what_is_left_out_stands_for_no_other():
    limit = int(0.019 * 8192)
    chain = [outcome(uid, signature=text(500 + index * limit)) for index, uid in enumerate("abc")]
    assert judged(*chain) == {"b": "looks like a: signatures differ by 0.0189, at most 0.019"}
    assert judged(*chain, max_distance=0.0) == {}
    assert set(judged(*chain, max_distance=0.05)) == {"b", "c"}


def test_equal_bytes_are_found_by_hash():
    rows = [outcome("a", "1" * 64), outcome("b", "2" * 64), outcome("c", "1" * 64), outcome("d")]
    assert judged(*rows) == {"c": "same bytes as a"}
    assert judged(*rows, exact=False) == {}


def test_one_that_failed_stands_for_no_other_one_that_was_rejected_does():
    same = [outcome(uid, "1" * 64) for uid in "bc"]
    assert judged(outcome("a", "1" * 64, reason=Reason.TIMEOUT), *same) == {"c": "same bytes as b"}
    told = outcome("b", "1" * 64, reason=Reason.DUPLICATE)
    assert judged(outcome("a", "1" * 64, reason=Reason.FLAT), told) == {"b": "same bytes as a"}


def test_the_copy_of_a_re_export_names_both():
    rows = [outcome("a", "1" * 64, text(9)), outcome("b", "2" * 64, text(9)), outcome("c", "2" * 64, text(9))]
    assert judged(*rows)["c"] == "same bytes as b, which looks like a"


def test_files_whose_others_are_not_hashed_are_not_compared_by_hash(tmp_path):
    for name in ("/{}.fbx", "objaverse-xl://github/{}.obj"):
        refs = [MeshRef(uid=uid, uri=name.format(uid), sha256="1" * 64) for uid in "ab"]
        jobs = plan_jobs(refs, 2)
        assert known_ahead(jobs, jobs, DuplicatesConfig())[0].duplicates == {}


def test_copies_with_their_side_files_are_known_ahead(tmp_path):
    """A copy of an OBJ is a duplicate, one with another texture is not."""
    for index, color in enumerate(("red", "red", "blue")):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "a.obj").write_text("mtllib a.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
        (tmp_path / str(index) / "a.mtl").write_text("newmtl a\nmap_Kd a.png\n")
        Image.new("RGB", (4, 4), color).save(tmp_path / str(index) / "a.png")
    refs = list(folder(tmp_path))
    jobs = plan_jobs(refs, 3)
    (job,) = known_ahead(jobs, jobs, DuplicatesConfig())
    assert {uid: found.detail for uid, found in job.duplicates.items()} == {refs[1].uid: f"same bytes as {refs[0].uid}"}


def test_a_settled_ledger_is_left_alone_and_a_lost_original_brings_its_copy_back():
    copy = outcome("b", "1" * 64, reason=Reason.DUPLICATE, detail="same bytes as a")
    jobs = plan_jobs([MeshRef(uid=uid, uri=f"/assets/{uid}.glb", sha256="1" * 64) for uid in "ab"], 1)

    def todo(*rows: Outcome) -> list[ShardJob]:
        parts = [LedgerPart(job=index, outcomes=(row,), shards=()) for index, row in enumerate(rows)]
        return unsettled(jobs, parts, DuplicatesConfig())

    assert todo(outcome("a", "1" * 64), copy) == []
    (again,) = todo(outcome("a", "1" * 64, reason=Reason.TIMEOUT), copy)
    assert (again.index, again.only, again.duplicates) == (1, frozenset({"b"}), {})
    (late,) = todo(outcome("a", "1" * 64), outcome("b", "1" * 64))
    assert (late.index, late.only, list(late.duplicates)) == (1, frozenset(), ["b"])


# builds


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Path:
    """Four assets; a copy of the first, and the second exported again, both sorting last."""
    root = tmp_path_factory.mktemp("twins")
    made = list(procedural(4, tmp_path_factory.mktemp("made"), clean=True))
    for index, ref in enumerate(made):
        (root / f"{index}.glb").write_bytes(Path(ref.uri).read_bytes())
    (root / "8_copy.glb").write_bytes((root / "0.glb").read_bytes())
    (root / "9_again.glb").write_bytes(exported_again(root / "1.glb"))
    return root


def exported_again(path: Path) -> bytes:
    """With its root node turned and scaled."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[20 : 20 + length])
    roots = tree["scenes"][0]["nodes"]
    turned = {"children": roots, "rotation": [0, np.sin(0.4), 0, np.cos(0.4)], "scale": [3, 3, 3]}
    tree["nodes"].append(turned)
    tree["scenes"][0]["nodes"] = [len(tree["nodes"]) - 1]
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    header = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest)) + struct.pack("<II", len(text), 0x4E4F534A)
    return header + text + rest


@pytest.fixture(scope="module")
def built(twins, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    build(f"folder:{twins}", out, CFG)
    return out


def rows_of(out: Path) -> dict[str, Outcome]:
    return {row.uid: row for part in read_ledger(out) for row in part.outcomes}


def stored(out: Path) -> list[str]:
    shards = [shard for part in read_ledger(out) for shard in part.shards]
    return [uid for shard in shards for uid, _ in read_shard(shard_path(out, shard.name))]


def starting(rows: dict[str, Outcome], prefix: str) -> Outcome:
    return next(row for uid, row in rows.items() if uid.startswith(prefix))


def test_a_copy_and_a_re_export_are_rejected_and_name_what_is_kept(built, twins):
    rows = rows_of(built)
    copy, again = starting(rows, "8_copy"), starting(rows, "9_again")
    first, second = starting(rows, "0-"), starting(rows, "1-")
    assert (copy.status, copy.reason, copy.detail) == (
        Status.REJECTED, Reason.DUPLICATE, f"same bytes as {first.uid}")  # fmt: skip
    assert (copy.seconds, copy.measurements) == (0.0, Measurements()), "known ahead, never processed"
    assert (again.reason, again.shard) == (Reason.DUPLICATE, None)
    assert again.detail.startswith(f"looks like {second.uid}: ")
    assert again.measurements.signature is not None
    assert Counter(row.status for row in rows.values()) == {Status.ACCEPTED: 4, Status.REJECTED: 2}
    assert sorted(stored(built)) == sorted(uid for uid, row in rows.items() if row.status is Status.ACCEPTED)
    assert verify(built) == []


def test_a_second_build_has_nothing_to_do_and_another_order_makes_the_same_bytes(built, twins, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.suffix in (".tar", ".parquet")}
    assert build(f"folder:{twins}", built, CFG).jobs_run == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    jobs = planned_jobs(built, read_dataset_json(built))
    for name in ("shards", "ledger", ".work"):
        (tmp_path / "out" / name).mkdir(parents=True)
    for job in reversed(jobs):  # the re-export before its original, nothing known ahead; then the build comes
        process_job(job, tmp_path / "out", CFG)
    assert len(stored(tmp_path / "out")) == 6
    for name in ("dataset.json", "plan.parquet", "folders.json"):
        (tmp_path / "out" / name).write_bytes((built / name).read_bytes())
    build(f"folder:{twins}", tmp_path / "out", CFG)
    assert {p.name: file_sha256(p) for p in (built / "shards").iterdir()} == {
        p.name: file_sha256(p) for p in (tmp_path / "out" / "shards").iterdir()
    }
    assert verify(tmp_path / "out") == []


def test_the_attribution_table_lists_the_samples_shard_by_shard(built):
    table = read_parquet(built / "attribution.parquet").to_pylist()
    kept = [row for row in rows_of(built).values() if row.status is Status.ACCEPTED]
    assert [(entry["shard"], entry["uid"]) for entry in table] == sorted((row.shard, row.uid) for row in kept)
    assert verify(built) == []
    whole = (built / "attribution.parquet").read_bytes()
    (built / "attribution.parquet").write_bytes(whole[:-1])
    (problem,) = verify(built)
    assert "attribution.parquet: missing or damaged" in problem
    (built / "attribution.parquet").write_bytes(whole)
