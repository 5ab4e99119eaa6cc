"""Objaverse from a server that fails: everything arrives, once, whole, where the `objaverse` package finds it."""

import gzip
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import committed
from pipeline.executor.job import process_job
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.download import DownloadError, download
from pipeline.sources.objaverse import ObjaverseConfig, glb_fault
from pipeline.sources.procedural import procedural
from pipeline.sources.registry import fetched, open_source
from pipeline.sources.selection import SelectConfig
from schemas.codec import decode
from schemas.dataset import shard_path
from schemas.errors import UsageError, UserError
from schemas.ledger import Reason, Rejected, Status
from schemas.mesh import MeshRef
from schemas.shards import read_shard
from schemas.storage import file_sha256
from tests.support.objaverse_server import LICENCES, World, make_world, packed, serving

REPO = Path(__file__).resolve().parents[3]


def mirror(world: World, cache: Path, **changes) -> ObjaverseConfig:
    base = ObjaverseConfig(
        base_url=world.url,
        cache=str(cache),
        timeout_s=1.0,
        attempts=14,
        backoff_s=0.002,
        max_backoff_s=0.05,
        concurrency=32,
    )
    return replace(base, **changes)


def listed(cfg: ObjaverseConfig, which: str = "all", **select) -> list[MeshRef]:
    return list(open_source(f"objaverse:{which}", Path("unused"), select=SelectConfig(**select), mirror=cfg))


@pytest.fixture
def small(tmp_path):
    with serving(make_world(40)) as world:
        yield world, mirror(world, tmp_path / "cache")


def test_all_of_500_arrive_once_from_a_server_that_fails_three_times_in_ten(tmp_path, monkeypatch):
    with serving(make_world(500)) as world:
        world.failing = 0.3
        cfg = mirror(world, tmp_path)
        refs = listed(cfg)
        assert [ref.uid for ref in refs] == world.uids()
        with fetched(refs, cfg) as local:
            files = list(local)
        asked, failed = sum(world.asked.values()), sum(world.faults.values())
    assert 0.25 < failed / asked < 0.35
    assert min(world.faults.values()) > 20 and len(world.faults) == 5
    for ref, file in zip(refs, files, strict=True):
        name = ref.uri.removeprefix("objaverse://")
        assert file == replace(ref, uri=str(cfg.path(name)), sha256=file.sha256)
        assert Path(file.uri).read_bytes() == world.files[name]
        assert file.sha256 == file_sha256(Path(file.uri))
    present = {path.relative_to(cfg.path("")).as_posix() for path in cfg.path("").rglob("*") if path.is_file()}
    assert present == world.files.keys() - {"lvis-annotations.json.gz"}, "nothing missing, nothing left over"
    assert all(world.delivered[name] == 1 for name in present), "none twice"
    _read_by_the_package(world, cfg, monkeypatch)


def _read_by_the_package(world: World, cfg: ObjaverseConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network taken away from it."""
    import objaverse

    monkeypatch.setattr(objaverse, "_VERSIONED_PATH", str(cfg.path("")))
    monkeypatch.setattr("urllib.request.urlretrieve", lambda url, path: pytest.fail(f"asks for {url}"))
    uids = world.uids()
    assert sorted(objaverse.load_uids()) == uids
    assert objaverse.load_annotations(uids) == world.annotations
    objects = objaverse.load_objects(uids)
    assert sorted(objects) == uids
    assert all(Path(path).read_bytes() == world.files[f"glbs/{Path(path).parent.name}/{uid}.glb"]
               for uid, path in objects.items())  # fmt: skip


def test_the_package_reads_the_lvis_index(small, monkeypatch):
    world, cfg = small
    chairs = {uid for uid, entry in world.annotations.items() if entry["number"] % 10 == 0}
    assert {ref.uid for ref in listed(cfg, lvis=("chair",))} == chairs
    import objaverse

    monkeypatch.setattr(objaverse, "_VERSIONED_PATH", str(cfg.path("")))
    monkeypatch.setattr("urllib.request.urlretrieve", lambda url, path: pytest.fail(f"asks for {url}"))
    assert set(objaverse.load_lvis_annotations()["chair"]) == chairs


SCRIPT = """
import sys
from pathlib import Path
from pipeline.sources.registry import fetched
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.registry import open_source
patience = {"timeout_s": 1.0, "attempts": 14, "backoff_s": 0.002, "max_backoff_s": 0.05}
cfg = ObjaverseConfig(base_url=sys.argv[1], cache=sys.argv[2], **patience)
with fetched(list(open_source("objaverse:lvis", Path("unused"), mirror=cfg)), cfg) as local:
    print(sum(hasattr(file, "uri") for file in local))
"""


def _start(world: World, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, world.url, str(cache)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_and_finished_by_two_processes_at_once(tmp_path):
    with serving(make_world(300)) as world:
        world.failing = 0.3
        cfg = mirror(world, tmp_path)
        world.on_delivery = lambda count: first.kill() if count == 30 else None
        first = _start(world, tmp_path)
        first.communicate()
        assert first.returncode == -signal.SIGKILL
        done = [path for path in cfg.path("").rglob("*.gl*") if path.suffix == ".glb"]
        assert 10 < len(done) < 60, "killed in the middle"
        names = [path.relative_to(cfg.path("")).as_posix() for path in done]
        assert all(cfg.path(name).read_bytes() == world.files[name] for name in names)
        for path in cfg.path("").rglob("*.gz"):
            assert path.read_bytes() == world.files[path.relative_to(cfg.path("")).as_posix()]
        before = world.asked.copy()
        both = [_start(world, tmp_path) for _ in range(2)]
        assert [int(process.communicate()[0]) for process in both] == [60, 60]
        assert all(world.asked[name] == before[name] for name in names), "what was there is not asked for again"
        rest = {name for name in world.delivered if name.endswith(".glb")} - set(names)
        # one more than once is a file whose last byte had come, but not its name, when the first was killed
        assert sum(world.delivered[name] for name in rest) <= len(rest) + 4
    left = [path for path in cfg.path("").rglob(".*") if path.is_file()]
    assert left == []


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_the_last_rename_leaves_nothing_behind(small, monkeypatch, moment):
    world, cfg = small
    name = listed(cfg)[0].uri.removeprefix("objaverse://")
    path, rename = cfg.path(name), Path.replace

    def killed(part: Path, target: Path) -> None:
        if moment == "after":
            rename(part, target)
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        download(cfg.url(name), path, cfg, glb_fault)
    monkeypatch.undo()
    assert path.is_file() == (moment == "after")
    download(cfg.url(name), path, cfg, glb_fault)
    assert path.read_bytes() == world.files[name]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_cut_file_goes_on_where_it_was_cut(small):
    world, cfg = small
    name = f"glbs/000-000/{next(uid for uid in world.uids() if world.annotations[uid]['number'] == 0)}.glb"
    world.failing, world.only_faults = 1.0, ("cut",)
    path = cfg.path(name)
    with pytest.raises(DownloadError, match="cut off at"):
        download(cfg.url(name), path, replace(cfg, attempts=1), glb_fault)
    assert not path.exists()
    world.failing = 0.0
    download(cfg.url(name), path, cfg, glb_fault)
    assert path.read_bytes() == world.files[name]
    assert world.ranges == [(name, len(path.read_bytes()) // 2)]
    assert world.sent[name] == len(path.read_bytes()), "no byte twice"


def test_another_version_of_a_file_is_not_joined_to_the_old_one(small):
    world, cfg = small
    name = next(name for name in world.files if name.endswith(".glb"))
    world.failing, world.only_faults = 1.0, ("cut",)
    with pytest.raises(DownloadError):
        download(cfg.url(name), cfg.path(name), replace(cfg, attempts=1), glb_fault)
    world.failing = 0.0
    world.files[name] = world.files[list(world.files)[7]]
    download(cfg.url(name), cfg.path(name), cfg, glb_fault)
    assert cfg.path(name).read_bytes() == world.files[name]


def test_published_hashes_are_checked(small):
    world, cfg = small
    world.hashes, world.failing, world.only_faults = True, 0.6, ("flipped byte",)
    refs = listed(cfg, sample=20)
    with fetched(refs, cfg) as local:
        files = list(local)
    assert world.faults["flipped byte"] > 10
    assert all(Path(f.uri).read_bytes() == world.files[r.uri[12:]] for r, f in zip(refs, files, strict=True))


def test_a_trickle_is_given_up(small):
    world, cfg = small
    name = next(name for name in world.files if name.endswith(".glb"))
    world.failing, world.only_faults = 1.0, ("trickle",)
    with pytest.raises(DownloadError, match=r"bytes in 0\.\d seconds"):
        download(cfg.url(name), cfg.path(name), replace(cfg, attempts=1, timeout_s=0.3), glb_fault)


def test_damaged_indexes_and_assets_of_the_cache_are_fetched_again(small):
    world, cfg = small
    refs = listed(cfg)
    indexes = sorted(cfg.path("").rglob("*.gz"))
    assert len(indexes) == 6
    for path in indexes:
        path.write_bytes(path.read_bytes()[:-9])
    assert listed(cfg) == refs
    assert all(path.read_bytes() == world.files[path.relative_to(cfg.path("")).as_posix()] for path in indexes)
    asset = cfg.path(refs[0].uri.removeprefix("objaverse://"))
    asset.parent.mkdir(parents=True)
    asset.write_bytes(b"glTF" + bytes(20))
    with fetched(refs[:1], cfg) as local:
        assert Path(next(local).uri).read_bytes() == world.files[refs[0].uri.removeprefix("objaverse://")]


def test_an_index_that_cannot_be_had_is_an_error_with_a_remedy(small):
    world, cfg = small
    cfg = replace(cfg, attempts=4)
    world.gone.add("metadata/000-003.json.gz")
    with pytest.raises(UserError, match=r"000-003\.json\.gz: HTTP 404.*attempt 4 of 4.*objaverse\.base_url"):
        listed(cfg)
    world.gone.clear()
    world.files["object-paths.json.gz"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match="damaged index"):
        listed(replace(cfg, cache=cfg.cache + "2"))


def test_a_missing_asset_is_a_row_and_the_others_become_samples(small, tmp_path):
    world, cfg = small
    good, lost = (next(n for n in world.files if n.endswith(f"{uid}.glb")) for uid in world.uids()[:2])
    made = next(procedural(1, tmp_path / "made", clean=True))
    world.files[good] = Path(made.uri).read_bytes()
    world.gone.add(lost)
    (tmp_path / "uids.txt").write_text("# two\n" + "\n".join(f"{uid}.glb" for uid in world.uids()[:2]))
    build = BuildConfig(
        objaverse=replace(cfg, attempts=3), views=RenderConfig(resolution=32), uv=BakeConfig(resolution=64)
    )
    jobs = plan_jobs(listed(cfg, str(tmp_path / "uids.txt")), 8)
    out = tmp_path / "out"
    for name in ("shards", "ledger", ".work"):
        (out / name).mkdir(parents=True)
    report = process_job(jobs[0], out, build)
    assert (report.counts.textured, report.counts.failed, report.counts.total) == (1, 1, 2)
    part = committed(out, jobs[0])
    assert part is not None
    accepted, failed = part.outcomes
    assert (accepted.uri, accepted.sha256) == (f"objaverse://{good}", made.sha256)
    assert (failed.uri, failed.status, failed.reason) == (f"objaverse://{lost}", Status.FAILED, Reason.DOWNLOAD_FAILED)
    assert "HTTP 404" in failed.detail and "attempt 3 of 3" in failed.detail
    ((_, fields),) = read_shard(shard_path(out, part.shards[0].name))
    number = world.annotations[accepted.uid]["number"]
    source = decode(fields).meta["source"]
    assert source["licence"] == {"by": "CC-BY-4.0", "cc0": "CC0-1.0"}.get(LICENCES[number % 4], source["licence"])
    wanted = f'"Thing {number}" by User {number}, https://sketchfab.com/3d-models/{accepted.uid}'
    assert source["attribution"] == wanted
    page = f"https://sketchfab.com/3d-models/{accepted.uid}"
    assert (source["title"], source["author"], source["url"]) == (f"Thing {number}", f"User {number}", page)
    assert source["uri"] == f"{accepted.uid}.glb"


def test_where_assets_come_from_is_not_part_of_what_is_built(tmp_path):
    one, other = (BuildConfig(objaverse=ObjaverseConfig(base_url=f"http://{n}")) for n in ("one", "other"))
    assert one.recorded() == other.recorded()
    assert one.recorded() != replace(one, select=SelectConfig(sample=3)).recorded()


@pytest.mark.parametrize(
    ("select", "fits"),
    [
        ({}, lambda n: True),
        ({"licences": ("by", "cc0")}, lambda n: n % 4 in (0, 3)),
        ({"min_faces": 500, "max_faces": 2000}, lambda n: 5 <= n <= 20),
        ({"textured": True}, lambda n: n % 2 == 1),
        ({"textured": False, "animated": True}, lambda n: n % 2 == 0 and n % 3 > 0),
        ({"tags": ("WOOD",)}, lambda n: n % 5 == 0),
        ({"tags": ("tag-3", "wood")}, lambda n: n % 5 == 0 or n % 7 == 3),
        ({"categories": ("cars-vehicles",)}, lambda n: n % 2 == 1),
        ({"categories": ("Furniture & Home",)}, lambda n: n % 2 == 0),
        ({"lvis": ("chair", "mug"), "textured": True}, lambda n: n % 10 == 1),
    ],
)
def test_selection_by_annotation_downloads_no_asset(small, select, fits):
    world, cfg = small
    wanted = [uid for uid in world.uids() if fits(world.annotations[uid]["number"])]
    assert [ref.uid for ref in listed(cfg, **select)] == wanted
    assert not any(name.endswith(".glb") for name in world.asked)


def test_a_sample_depends_on_its_seed_alone(small):
    _, cfg = small
    ten = {ref.uid for ref in listed(cfg, sample=10, seed=1)}
    assert len(ten) == 10
    assert {ref.uid for ref in listed(cfg, sample=10, seed=1)} == ten
    assert {ref.uid for ref in listed(cfg, sample=20, seed=1)} > ten
    assert {ref.uid for ref in listed(cfg, sample=10, seed=2)} != ten
    assert len(listed(cfg, sample=1000)) == 40


def test_an_annotation_with_holes_fits_no_condition(small):
    world, cfg = small
    uid = world.uids()[0]
    name = next(f"metadata/{path.split('/')[1]}.json.gz" for path in world.files if uid in path)
    part = json.loads(gzip.decompress(world.files[name]))
    world.files[name] = packed(part | {uid: {"uid": uid, "name": None, "archives": None, "faceCount": None}})
    (ref,) = [ref for ref in listed(cfg) if ref.uid == uid]
    assert (ref.caption, ref.source.licence) == (uid, "")
    assert ref.source.attribution == f'"{uid}" by unknown, https://sketchfab.com/3d-models/{uid}'
    for select in ({"min_faces": 0}, {"textured": False}, {"animated": False}, {"licences": LICENCES}):
        assert uid not in {ref.uid for ref in listed(cfg, **select)}


@pytest.mark.parametrize("kind", ["named.csv", "bare.csv", "table.parquet"])
def test_captions_come_from_a_table_else_from_name_and_tags(small, tmp_path, kind):
    world, cfg = small
    first, second = world.uids()[:2]
    path = tmp_path / kind
    if kind == "table.parquet":
        pq.write_table(pa.table({"caption": ["a thing, wooden"], "uid": [first]}), path)
    else:
        bare = f'{first},"a thing, wooden"\n'
        path.write_text(bare if kind == "bare.csv" else f'caption,more,uid\n"a thing, wooden",1,{first}\n')
    captions = {ref.uid: ref.caption for ref in listed(replace(cfg, captions=str(path)))}
    assert captions[first] == "a thing, wooden"
    number = world.annotations[second]["number"]
    assert captions[second] == f"Thing {number}, {'wood' if number % 5 == 0 else 'Steel'}"


def test_what_cannot_be_understood_is_named(small, tmp_path):
    _, cfg = small
    (tmp_path / "uids").write_text("nobody\n")
    (tmp_path / "empty.csv").write_text("only one column\n")
    with pytest.raises(UsageError, match="Objaverse-XL is objaverse-xl:all"):
        listed(cfg, "xl")
    with pytest.raises(UsageError, match="`all`, `lvis`, or a file"):
        listed(cfg, "nothing.txt")
    with pytest.raises(UserError, match=r"1 uids are not in Objaverse 1\.0, first 'nobody'"):
        listed(cfg, str(tmp_path / "uids"))
    with pytest.raises(UsageError, match="'sofa' is no LVIS category"):
        listed(cfg, lvis=("sofa",))
    with pytest.raises(UserError, match="row 1 has 1 columns"):
        listed(replace(cfg, captions=str(tmp_path / "empty.csv")))
    with pytest.raises(UsageError, match=r"select\.licences: mit is none of by"):
        listed(cfg, licences=("mit",))
    for wrong in ({"origins": ("mars",)}, {"sample": 0}, {"min_faces": -1}, {"min_faces": 5, "max_faces": 4}):
        with pytest.raises(UsageError, match=r"select\.(origins|sample|min_faces)"):
            SelectConfig(**wrong)
    with pytest.raises(UsageError, match="base_url"):
        ObjaverseConfig(base_url="ftp://x")


def test_a_path_that_leads_out_of_the_cache_is_not_fetched(small, tmp_path):
    _, cfg = small
    ref = MeshRef(uid="a", uri="objaverse://glbs/../../../evil.glb")
    with fetched([ref], cfg) as local:
        told = next(local)
    assert isinstance(told, Rejected)
    assert told.reason is Reason.DOWNLOAD_FAILED
