"""Objaverse-XL from servers that fail: four origins, everything that can be had arrives, nothing leads out."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import committed
from pipeline.executor.job import process_job
from pipeline.mesh_io.load import load_mesh
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.procedural import procedural
from pipeline.sources.registry import fetched, open_source
from pipeline.sources.selection import SelectConfig
from schemas.codec import decode
from schemas.dataset import shard_path
from schemas.errors import UsageError, UserError
from schemas.ledger import Reason, Rejected, Status
from schemas.mesh import MeshRef, TexturedMesh
from schemas.shards import read_shard
from tests.pipeline.mesh_io.test_exchange import collada, textured_ply
from tests.support.objaverse_server import COMMIT, FAULTS, World, XlRow, make_xl_world, serving, xl_row
from tests.support.small_gltf import QUADRANTS, png

OBJ = b"mtllib look.mtl\nusemtl skin\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def mirror(world: World, cache: Path, **changes) -> ObjaverseConfig:
    base = ObjaverseConfig(
        base_url=world.url,
        xl_url=f"{world.url}/xl",
        github_url=f"{world.url}/raw",
        github_lfs_url=f"{world.url}/lfs",
        smithsonian_url=f"{world.url}/si",
        thingiverse_url=f"{world.url}/things",
        cache=str(cache),
        timeout_s=1.0,
        attempts=14,
        absent_attempts=14,
        backoff_s=0.002,
        max_backoff_s=0.05,
        concurrency=16,
    )
    return replace(base, **changes)


def listed(cfg: ObjaverseConfig, which: str = "all", **select) -> list[MeshRef]:
    return list(open_source(f"objaverse-xl:{which}", Path("unused"), select=SelectConfig(**select), mirror=cfg))


def brought(refs: list[MeshRef], cfg: ObjaverseConfig) -> list[MeshRef | Rejected]:
    with fetched(refs, cfg) as local:
        return list(local)


@pytest.fixture
def small(tmp_path):
    with serving(make_xl_world(12)) as world:
        yield world, mirror(world, tmp_path / "cache")


def github_row(path: str, data: bytes, file_type: str, repo: str = "org/repo") -> XlRow:
    identifier = f"https://github.com/{repo}/blob/{COMMIT}/{path}"
    name = f"raw/{repo}/{COMMIT}/{path}"
    return XlRow(
        origin="github", identifier=identifier, name=name, data=data, licence="MIT License", file_type=file_type
    )


def test_all_origins_arrive_once_from_servers_that_fail_three_times_in_ten(tmp_path):
    with serving(make_xl_world(60)) as world:
        world.failing, world.only_faults = 0.3, (*FAULTS, "wrong sha256")
        cfg = mirror(world, tmp_path)
        refs = listed(cfg, file_types=("glb", "stl"))
        files = brought(refs, cfg)
        asked, failed = sum(world.asked.values()), sum(world.faults.values())
    assert 0.25 < failed / asked < 0.35 and len(world.faults) == 6
    assert Counter(ref.source.name for ref in refs) == {
        "Objaverse 1.0": 60, "Objaverse-XL, github": 60, "Objaverse-XL, smithsonian": 60,
        "Objaverse-XL, thingiverse": 60}  # fmt: skip
    by_page = {row.identifier: row for row in world.rows}
    for ref, file in zip(refs, files, strict=True):
        row = by_page[ref.source.url]
        assert isinstance(file, MeshRef), file
        assert Path(file.uri).read_bytes() == row.data
        assert file.sha256 == row.sha256 == ref.sha256
    left = [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert left == [] and all(world.delivered[row.name] == 1 for row in world.rows), "nothing left over, none twice"


def test_the_package_reads_what_was_fetched(small, monkeypatch):
    """Annotations of all origins, and the objects where its layout holds them, with the network taken away from it."""
    world, cfg = small
    refs = listed(cfg, file_types=("glb", "stl"))
    assert all(isinstance(file, MeshRef) for file in brought(refs, cfg))
    import objaverse.xl as xl

    def no_network(*arguments, **options):
        pytest.fail(f"asks for {arguments}")

    for name in ("requests.get", "urllib.request.urlopen"):
        monkeypatch.setattr(name, no_network)
    table = xl.get_annotations(download_dir=str(cfg.root))
    assert sorted(table["fileIdentifier"]) == sorted(row.identifier for row in world.rows)
    there = xl.download_objects(table[table["source"] != "github"], download_dir=str(cfg.root), processes=1)
    by_page = {row.identifier: row for row in world.rows if row.origin != "github"}
    assert there.keys() == by_page.keys()
    assert all(Path(path).read_bytes() == by_page[page].data for page, path in there.items())


def test_selection_downloads_annotations_alone(small):
    world, cfg = small
    count = {name: len(listed(cfg, origins=(name,))) for name in ("github", "sketchfab", "smithsonian", "thingiverse")}
    assert count == {"github": 12, "sketchfab": 12, "smithsonian": 12, "thingiverse": 0}, ".stl has no colour"
    assert len(listed(cfg, origins=("github",), licences=("mit",))) == 4
    assert len(listed(cfg, origins=("github",), licences=("Apache License 2.0", "MIT"))) == 8
    assert len(listed(cfg, licences=("cc0",))) == 12 + 3, "the Smithsonian's, and a quarter of Sketchfab's"
    assert {ref.source.name for ref in listed(cfg, min_faces=500)} == {"Objaverse 1.0"}, "others do not say"
    ten = {ref.uid for ref in listed(cfg, sample=10, seed=4)}
    assert len(ten) == 10 and ten < {ref.uid for ref in listed(cfg, sample=20, seed=4)}
    assert not any(name.endswith((".glb", ".stl")) for name in world.asked)


def test_a_list_may_name_uids_hashes_and_pages(small, tmp_path):
    world, cfg = small
    chosen = [world.rows[0], world.rows[14], world.rows[-1]]
    uid = next(ref.uid for ref in listed(cfg) if ref.source.url == chosen[0].identifier)
    path = tmp_path / "wanted.txt"
    path.write_text(f"# three\n{uid}\n{chosen[1].sha256}  # a vase\n{chosen[2].identifier}\n")
    assert {ref.source.url for ref in listed(cfg, str(path))} == {row.identifier for row in chosen}
    path.write_text("nobody\n")
    with pytest.raises(UserError, match="1 lines are not in github, sketchfab, smithsonian, thingiverse, first 'nob"):
        listed(cfg, str(path))
    with pytest.raises(UsageError, match="give `all`, or a file"):
        listed(cfg, "nothing.txt")


def test_terms_and_captions(small, tmp_path):
    world, cfg = small
    told = tmp_path / "captions.csv"
    told.write_text(f"uid,caption\n{world.rows[0].sha256},a thing of many corners\n")
    refs = {ref.source.url: ref for ref in listed(replace(cfg, captions=str(told)))}
    first, vase, page = refs[world.rows[0].identifier], refs[world.rows[12].identifier], world.rows[-1].identifier
    assert first.caption == "a thing of many corners"
    assert (first.source.title, first.source.author, first.source.licence) == ("thing 0", "org-0", "MIT")
    assert first.source.attribution == f'"thing 0" by org-0, {world.rows[0].identifier}'
    assert (vase.source.title, vase.source.author, vase.caption) == ("Vase 0", "Smithsonian Institution", "Vase 0")
    assert refs[page].source.author.startswith("User ") and refs[page].uid == page.rpartition("/")[2]


def test_what_an_origin_does_not_have_fails_alone(small):
    world, cfg = small
    gone, changed = world.rows[0], world.rows[1]
    world.gone.add(gone.name)
    world.files[changed.name] = world.rows[2].data
    cfg = replace(cfg, attempts=6, absent_attempts=3)
    refs = listed(cfg, origins=("github",))
    ended = {ref.source.url: file for ref, file in zip(refs, brought(refs, cfg), strict=True)}
    lost, other = ended[gone.identifier], ended[changed.identifier]
    assert isinstance(lost, Rejected) and isinstance(other, Rejected)
    assert "HTTP 404" in lost.detail and "attempt 3 of 6" in lost.detail, "what is gone is not asked for for ever"
    assert f"annotated is {changed.sha256[:12]}" in other.detail and "attempt 6 of 6" in other.detail
    assert {lost.reason, other.reason} == {Reason.DOWNLOAD_FAILED}
    assert sum(isinstance(file, MeshRef) for file in ended.values()) == 10
    assert not list(cfg.root.rglob("thing 1.glb"))


def test_what_sketchfab_has_lost_and_rows_without_an_address_fail_alone(tmp_path):
    lost = XlRow(
        origin="sketchfab",
        identifier="https://sketchfab.com/3d-models/" + "f" * 32,
        name="none",
        data=b"",
        licence="by",
    )
    nowhere = XlRow(origin="github", identifier="elsewhere", name="none", data=b"", licence="MIT License")
    with serving(make_xl_world(1, [lost, nowhere])) as world:
        cfg = mirror(world, tmp_path)
        refs = {ref.source.url: ref for ref in listed(cfg)}
        told = brought([refs[lost.identifier], refs[nowhere.identifier]], cfg)
    assert [isinstance(entry, Rejected) and entry.detail.partition(" is ")[2] for entry in told] == [
        "no address of sketchfab", "no address of github"]  # fmt: skip
    assert len(refs) == 5


def test_files_that_an_asset_names_come_with_it(tmp_path):
    made = json.dumps({
        "asset": {"version": "2.0"},
        "buffers": [{"uri": "data%201.bin", "byteLength": 3}, {"uri": "data:application/octet-stream;base64,AAAA"}],
        "images": [{"uri": "maps/skin.png"}, {"uri": "../outside.png"}, {"uri": "file:///etc/passwd"}],
    }).encode()  # fmt: skip
    rows = [github_row("a/scene.gltf", made, "gltf"), github_row("b/thing.OBJ", OBJ, "obj")]
    with serving(make_xl_world(1, rows)) as world:
        base = f"raw/org/repo/{COMMIT}"
        beside = {f"{base}/a/data 1.bin": b"123", f"{base}/a/maps/skin.png": b"png", f"{base}/b/maps/skin.jpg": b"jpg"}
        beside[f"{base}/b/look.mtl"] = b"newmtl skin\nmap_Kd maps/skin.jpg\nmap_Kd /etc/passwd\n"
        beside[f"{base}/outside.png"] = b"never"
        world.files |= beside
        cfg = mirror(world, tmp_path)
        refs = [ref for ref in listed(cfg, origins=("github",)) if "/org/repo/" in ref.uri]
        files = brought(refs, cfg)
        assert len(files) == 2 and all(isinstance(file, MeshRef) for file in files)
        found = (cfg.root / "github/commits/org/repo").rglob("*.*")
        there = {p.relative_to(cfg.root).as_posix() for p in found if p.suffix != ".part"}
    wanted = {f"github/commits/org/repo/{COMMIT}/{name}" for name in (
        "a/scene.gltf", "a/data 1.bin", "a/maps/skin.png", "b/thing.OBJ", "b/look.mtl")}  # fmt: skip
    assert there == wanted, "a library with an image that leads out brings none; the preflight refuses it"
    leading_out = [name for name in world.asked if "outside" in name or "passwd" in name]
    assert all(name.startswith((f"{base}/a/", f"{base}/b/")) for name in leading_out), "by the end of their paths alone"


@pytest.mark.parametrize("large", [False, True])
def test_textures_of_ply_and_collada_come_with_them_and_are_read(tmp_path, large):
    cloth, wood = png(QUADRANTS), png(QUADRANTS[::-1])
    scene = collada("maps/wood%201.png").encode() + b"<!--" + (b" " * 2**20 if large else b"") + b"-->"
    ply = textured_ply(True, "cloth.png").replace("element vertex", "comment TextureFile ../../out.png\nelement vertex")
    rows = [
        github_row("a/scan.PLY", textured_ply(True, "maps\\cloth.png").encode(), "ply"),
        github_row("b/scene.dae", scene, "dae"),
        github_row("c/out.ply", ply.encode(), "ply"),
    ]
    with serving(make_xl_world(1, rows)) as world:
        base = f"raw/org/repo/{COMMIT}"
        world.files |= {f"{base}/a/maps/cloth.png": cloth, f"{base}/b/maps/wood 1.png": wood, "raw/out.png": cloth}
        cfg = mirror(world, tmp_path)
        refs = [ref for ref in listed(cfg, origins=("github",)) if "/org/repo/" in ref.uri]
        files = {Path(file.uri).name: Path(file.uri) for file in brought(refs, cfg) if isinstance(file, MeshRef)}
        asked = set(world.asked)
    for name in ("scan.PLY", "scene.dae"):
        mesh = load_mesh(files[name])
        assert isinstance(mesh, TexturedMesh) and mesh.textures, mesh
    assert not any(name.endswith("out.png") and not name.startswith(f"{base}/c/") for name in asked)
    found = {p.name for p in (cfg.root / "github/commits/org/repo").rglob("*.png")}
    assert found == {"cloth.png", "wood 1.png"}


def test_large_files_of_a_repository_come_from_its_large_file_store(tmp_path):
    row = github_row("big.glb", xl_row(3, "github").data, "glb")
    with serving(make_xl_world(1, [row])) as world:
        world.files[row.name] = POINTER
        world.files[row.name.replace("raw/", "lfs/", 1)] = row.data
        cfg = mirror(world, tmp_path)
        (ref,) = [ref for ref in listed(cfg, origins=("github",)) if "/org/repo/" in ref.uri]
        (file,) = brought([ref], cfg)
    assert isinstance(file, MeshRef) and Path(file.uri).read_bytes() == row.data


def test_a_repository_that_the_package_has_stored_is_used_where_it_is_sound(tmp_path):
    rows = [
        github_row(f"{name}.glb", xl_row(n, "github").data, "glb") for n, name in enumerate(("whole", "link", "cut"))
    ]
    with serving(make_xl_world(1, rows)) as world:
        cfg = mirror(world, tmp_path / "cache")
        stored = cfg.root / "github" / "repos" / "org" / "repo"
        stored.mkdir(parents=True)
        (stored / "whole.glb").write_bytes(rows[0].data)
        (tmp_path / "elsewhere.glb").write_bytes(rows[1].data)
        (stored / "link.glb").symlink_to(tmp_path / "elsewhere.glb")
        (stored / "cut.glb").write_bytes(rows[2].data[:-1])
        refs = {ref.source.title: ref for ref in listed(cfg, origins=("github",)) if "/org/repo/" in ref.uri}
        files = {title: brought([ref], cfg)[0] for title, ref in refs.items()}
    places = {title: Path(file.uri).parts[-3] for title, file in files.items() if isinstance(file, MeshRef)}
    assert places == {"whole": "org", "link": "repo", "cut": "repo"}
    assert [name for name in world.asked if name.endswith(("whole.glb", "link.glb"))] == [rows[1].name]


@pytest.mark.parametrize(
    "tail",
    [
        f"github/org/repo/{COMMIT}/../../../../evil.glb",
        f"github/org/repo/{COMMIT}//etc/evil.glb",
        f"github/../repo/{COMMIT}/evil.glb",
        f"github/org/repo/{COMMIT}/a\\b.glb",
        f"github/org/repo/{COMMIT}/a\0.glb",
        "github/org/repo/main/evil.glb",
        "github/https://elsewhere/evil.glb",
        "smithsonian/../evil.glb",
        "smithsonian/https://elsewhere/evil.glb",
        "thingiverse/../../evil.stl",
        "sketchfab/evil",
        "mars/evil.glb",
    ],
)
def test_addresses_that_lead_elsewhere_are_not_asked_for(small, tail):
    world, cfg = small
    (told,) = brought([MeshRef(uid="a", uri=f"objaverse-xl://{tail}")], cfg)
    assert isinstance(told, Rejected) and told.reason is Reason.DOWNLOAD_FAILED
    assert not world.asked and not cfg.root.exists()


def test_a_file_without_end_is_given_up(small):
    world, cfg = small
    world.files[world.rows[0].name] = bytes(200_000)
    refs = [ref for ref in listed(cfg, origins=("github",)) if ref.source.url == world.rows[0].identifier]
    (told,) = brought(refs, replace(cfg, max_file_gb=1e-4))
    assert isinstance(told, Rejected) and "more than 0.0001 GB" in told.detail
    assert world.asked[world.rows[0].name] == 1


def test_damaged_annotations_are_an_error_with_a_remedy(small):
    world, cfg = small
    world.files["xl/github/github.parquet"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match=r"github\.parquet: damaged annotations .*objaverse\.xl_url"):
        listed(replace(cfg, attempts=2))


def test_a_plan_knows_copies_by_their_annotated_hashes(tmp_path):
    row = github_row("copy.glb", xl_row(0, "github").data, "glb")
    with serving(make_xl_world(2, [row])) as world:
        refs = listed(mirror(world, tmp_path), origins=("github",))
    assert len({ref.sha256 for ref in refs}) == 2 and len(plan_jobs(refs, 8)[0].refs) == 3


def test_an_asset_of_several_files_becomes_a_sample_with_its_terms(tmp_path):
    glb = Path(next(procedural(1, tmp_path / "made", clean=True)).uri).read_bytes()
    length = int.from_bytes(glb[12:16], "little")
    tree, data = json.loads(glb[20 : 20 + length]), glb[28 + length :]
    tree["buffers"][0] |= {"uri": "scene.bin", "byteLength": len(data)}
    row = github_row("chair/scene.gltf", json.dumps(tree).encode(), "gltf")
    with serving(make_xl_world(1, [row])) as world:
        world.files[f"raw/org/repo/{COMMIT}/chair/scene.bin"] = data
        cfg = mirror(world, tmp_path / "cache")
        refs = [ref for ref in listed(cfg, origins=("github",)) if "/org/repo/" in ref.uri]
        (job,) = plan_jobs(refs, 1)
        out = tmp_path / "out"
        for name in ("shards", "ledger", ".work"):
            (out / name).mkdir(parents=True)
        build = BuildConfig(objaverse=cfg, views=RenderConfig(resolution=32), uv=BakeConfig(resolution=64))
        report = process_job(job, out, build)
    part = committed(out, job)
    assert part is not None and part.outcomes[0].status is Status.ACCEPTED, (report, part)
    ((_, fields),) = read_shard(shard_path(out, part.shards[0].name))
    source = decode(fields).meta["source"]
    assert (source["title"], source["author"], source["licence"], source["url"], source["uri"]) == (
        "scene", "org", "MIT", row.identifier, "scene.gltf")  # fmt: skip
