"""Duplicates: the same bytes under another name, the same object exported again; nothing else."""

import io
import json
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geometry.mesh import face_vectors
from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs, read_plan
from pipeline.dataset.verify import verify
from pipeline.executor.build import build
from pipeline.executor.job import process_job
from pipeline.filter.duplicates import DuplicatesConfig, duplicates, known_ahead, row_of, unsettled
from pipeline.filter.signature import is_signature, numbers_of, signature
from pipeline.filter.surface_samples import sample_surface
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.dataset import LedgerPart, read_ledger, read_parquet, shard_path
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.mesh import MeshRef, TexturedMesh
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.shards import read_shard
from schemas.storage import file_sha256

CFG = BuildConfig(
    assets_per_job=3, views=RenderConfig(resolution=48), uv=BakeConfig(resolution=64), preflight=PreflightConfig()
)


def rotation_y(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def reordered(mesh: TexturedMesh, seed: int) -> TexturedMesh:
    """The same surface from an exporter that lists faces and vertices in another order."""
    rng = np.random.default_rng(seed)
    faces, vertices = rng.permutation(len(mesh.faces)), rng.permutation(len(mesh.vertices))
    return replace(
        mesh,
        vertices=mesh.vertices[vertices],
        normals=mesh.normals[vertices],
        uv=mesh.uv[vertices],
        colors=mesh.colors[vertices],
        faces=np.roll(np.argsort(vertices)[mesh.faces[faces]], 1, axis=1).astype(np.int32),
        face_material=mesh.face_material[faces],
        face_has_uv=mesh.face_has_uv[faces],
    )


def moved(mesh: TexturedMesh, seed: int) -> TexturedMesh:
    """Turned about its vertical axis, scaled and put elsewhere, as a root node does."""
    rng = np.random.default_rng(seed)
    turned = mesh.vertices.astype(np.float64) @ rotation_y(rng.uniform(0, 6)).T
    return replace(mesh, vertices=(turned * rng.uniform(0.1, 9) + rng.normal(size=3)).astype(np.float32))


def as_jpeg(mesh: TexturedMesh, quality: int) -> TexturedMesh:
    textures = []
    for texture in mesh.textures:
        stream = io.BytesIO()
        Image.fromarray(texture.image[..., :3]).save(stream, "JPEG", quality=quality)
        image = np.dstack([np.array(Image.open(stream)), texture.image[..., 3]])
        textures.append(replace(texture, image=image))
    return replace(mesh, textures=tuple(textures))


def half_size(mesh: TexturedMesh) -> TexturedMesh:
    def half(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return np.array(Image.fromarray(image).resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BOX))

    return replace(mesh, textures=tuple(replace(t, image=half(t.image)) for t in mesh.textures))


def numbers(mesh: TexturedMesh) -> np.ndarray:
    areas = np.linalg.norm(face_vectors(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64)), axis=1) / 2
    text = signature(mesh, sample_surface(mesh, areas), float(areas.sum()))
    assert text is not None and is_signature(text)
    return numbers_of(bytes.fromhex(text))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


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


def text(*values: int) -> str:
    return np.array(values, ">u2").tobytes().hex()


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


def test_files_that_refer_to_others_are_not_compared_by_hash(tmp_path):
    refs = [MeshRef(uid=name, uri=f"/{name}.obj", sha256="1" * 64) for name in "ab"]
    jobs = plan_jobs(refs, 2)
    assert known_ahead(jobs, jobs, DuplicatesConfig())[0].duplicates == {}


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
    jobs = read_plan(built / "plan.parquet")
    for name in ("shards", "ledger", ".work"):
        (tmp_path / "out" / name).mkdir(parents=True)
    for job in reversed(jobs):  # the re-export before its original, nothing known ahead; then the build comes
        process_job(job, tmp_path / "out", CFG)
    assert len(stored(tmp_path / "out")) == 6
    for name in ("dataset.json", "plan.parquet"):
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
