"""TexVerse from a server with its layout: chosen by metadata, licences and textures, downloaded whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.shards import committed
from pipeline.executor.job import process_job
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.procedural import procedural
from pipeline.sources.registry import fetched, open_source
from pipeline.sources.selection import SelectConfig
from schemas.codec import decode
from schemas.dataset import shard_path
from schemas.errors import UsageError, UserError
from schemas.ledger import Reason, Rejected
from schemas.mesh import MeshRef
from schemas.shards import read_shard
from tests.support.objaverse_server import World, glb_of, serving

COUNT = 24
UIDS = [f"{number:032x}" for number in range(COUNT)]
LICENCES = ("by", {"label": "CC Attribution-NonCommercial", "slug": "by-nc"}, "CC0 Public Domain", None)
SPDX = ("CC-BY-4.0", "CC-BY-NC-4.0", "CC0-1.0", "")


def largest(number: int) -> int:
    """Side of an asset's largest textures."""
    return 2048 << number % 3


def path_of(number: int, side: int) -> str:
    return f"glbs/glbs_{side // 1024}k/000-{number % 3:03d}/{UIDS[number]}_{side}.glb"


def make_texverse() -> World:
    """Two repositories: `main` and `1k`, whose assets have textures of 1024 pixels."""
    files, metadata = dict[str, bytes](), {}
    for number, uid in enumerate(UIDS):
        sides = [side for side in (1024, 2048, 4096, 8192) if side <= largest(number)]
        for side in sides:
            files[("1k/" if side == 1024 else "main/") + path_of(number, side)] = glb_of(number + side)
        metadata[uid] = {
            "name": f"Thing  {number}",
            "license": LICENCES[number % 4],
            "user": f"User {number}" if number % 2 else {"username": f"user{number}", "displayName": f"User {number}"},
            "viewerUrl": f"https://sketchfab.com/3d-models/thing-{uid}",
            "faceCount": 100 * number,
            "tags": ["wood", {"name": "steel", "slug": "steel"}] if number % 5 == 0 else [],
            "isRigged": False,
            "pbrType": "metalness" if number % 2 else None,
            "max_texture": largest(number),
            "glb_paths": [path_of(number, side) for side in sides],
        }
    captions = {uid: f"A detailed thing {number}." for number, uid in enumerate(UIDS) if number % 6}
    files["main/metadata.json"] = json.dumps(metadata, indent=1).encode()
    files["main/caption.json"] = json.dumps(captions).encode()
    files["main/TexVerse_pbr_id_list.txt"] = "".join(f"{uid}\n" for uid in UIDS[1::2]).encode()
    return World(files, {uid: entry | {"number": n} for n, (uid, entry) in enumerate(metadata.items())})


@pytest.fixture
def world():
    with serving(make_texverse()) as world:
        yield world


def mirror(world: World, cache: Path, **changes) -> ObjaverseConfig:
    cfg = ObjaverseConfig(
        texverse_url=f"{world.url}/main", texverse_1k_url=f"{world.url}/1k", cache=str(cache),
        timeout_s=1.0, attempts=14, backoff_s=0.002, max_backoff_s=0.05, concurrency=8,
    )  # fmt: skip
    return replace(cfg, **changes)


def listed(world: World, cache: Path, which: str = "all", changes=None, **select) -> list[MeshRef]:
    cfg = mirror(world, cache, **(changes or {}))
    return list(open_source(f"texverse:{which}", Path("unused"), select=SelectConfig(**select), mirror=cfg))


@pytest.mark.parametrize(
    ("select", "fits"),
    [
        ({}, lambda n: True),
        ({"texture_resolution": 4096}, lambda n: largest(n) >= 4096),
        ({"texture_resolution": 8192}, lambda n: largest(n) == 8192),
        ({"min_texture_resolution": 4096}, lambda n: largest(n) >= 4096),
        ({"licences": ("by",)}, lambda n: n % 4 == 0),
        ({"licences": ("cc0", "by-nc")}, lambda n: n % 4 in (1, 2)),
        ({"min_faces": 500, "tags": ("steel",)}, lambda n: n >= 5 and n % 5 == 0),
        ({"textured": True, "max_faces": 300}, lambda n: n <= 3),
        ({"textured": False}, lambda n: False),
    ],
)
def test_selection_by_metadata_downloads_no_asset(world, tmp_path, select, fits):
    refs = listed(world, tmp_path, **select)
    assert [ref.uid for ref in refs] == [uid for number, uid in enumerate(UIDS) if fits(number)]
    side = select.get("texture_resolution", 1024)
    assert all(ref.uri == f"texverse://{path_of(UIDS.index(ref.uid), side)}" for ref in refs)
    assert not any(name.endswith(".glb") for name in world.asked)


def test_terms_and_captions(world, tmp_path):
    refs = listed(world, tmp_path)
    assert [ref.source.licence for ref in refs[:4]] == list(SPDX)
    page = f"https://sketchfab.com/3d-models/thing-{UIDS[2]}"
    assert refs[2].source.name == "TexVerse"
    assert refs[2].source.attribution == f'"Thing 2" by User 2, {page}'
    assert (refs[2].source.title, refs[3].source.author, refs[2].source.url) == ("Thing 2", "User 3", page)
    assert refs[1].caption == "A detailed thing 1." and refs[0].caption == "Thing 0, wood, steel"
    assert refs[6].caption == "Thing 6"
    own = tmp_path / "own.csv"
    own.write_text(f"uid,caption,long\n{UIDS[0]},a,b\n")
    changes = {"captions": str(own), "caption_levels": ("long", "caption")}
    refs = listed(world, tmp_path, changes=changes)
    assert (refs[0].caption, refs[0].captions) == ("b", {"long": "b", "caption": "a"})
    assert (refs[1].caption, refs[1].captions) == ("Thing 1", {"long": "", "caption": ""})


def test_lists_samples_and_scores(world, tmp_path):
    assert [ref.uid for ref in listed(world, tmp_path, "pbr")] == UIDS[1::2]
    (tmp_path / "uids.txt").write_text(f"{UIDS[3]}\n{UIDS[7]} # one more\n")
    assert [ref.uid for ref in listed(world, tmp_path, str(tmp_path / "uids.txt"))] == [UIDS[3], UIDS[7]]
    five, nine = ({ref.uid for ref in listed(world, tmp_path, sample=n, seed=3)} for n in (5, 9))
    assert len(five) == 5 and five < nine
    (tmp_path / "s.csv").write_text("uid,score\n" + "".join(f"{uid},{n}\n" for n, uid in enumerate(UIDS)))
    refs = listed(world, tmp_path, scores=str(tmp_path / "s.csv"), where="score >= 20", licences=("by",))
    assert [ref.uid for ref in refs] == [UIDS[20]]


def test_every_asset_arrives_whole_from_its_repository_though_the_server_fails(world, tmp_path):
    world.failing = 0.3
    for side, repository in ((1024, "1k"), (2048, "main")):
        refs = listed(world, tmp_path, texture_resolution=side)
        with fetched(refs, mirror(world, tmp_path)) as local:
            files = list(local)
        assert len(files) == COUNT
        for number, (ref, file) in enumerate(zip(refs, files, strict=True)):
            assert isinstance(file, MeshRef)
            assert Path(file.uri) == tmp_path / "texverse" / path_of(number, side)
            assert Path(file.uri).read_bytes() == world.files[f"{repository}/{path_of(number, side)}"]
            assert file.sha256 and file.source == ref.source
    assert sum(world.faults.values()) > 10
    assert all(count == 1 for name, count in world.delivered.items() if name.endswith(".glb")), "none twice"


def test_an_asset_becomes_a_sample_with_its_terms_and_one_that_is_gone_a_row(world, tmp_path):
    made = next(procedural(1, tmp_path / "made", clean=True))
    world.files[f"1k/{path_of(0, 1024)}"] = Path(made.uri).read_bytes()
    world.gone.add(f"1k/{path_of(1, 1024)}")
    cfg = BuildConfig(
        objaverse=mirror(world, tmp_path / "cache", attempts=3),
        views=RenderConfig(resolution=32),
        uv=BakeConfig(resolution=64),
    )
    (job,) = plan_jobs(listed(world, tmp_path / "cache")[:2], 8)
    out = tmp_path / "out"
    for name in ("shards", "ledger", ".work"):
        (out / name).mkdir(parents=True)
    report = process_job(job, out, cfg)
    assert (report.counts.textured, report.counts.failed, report.counts.total) == (1, 1, 2)
    part = committed(out, job)
    assert part.outcomes[1].reason is Reason.DOWNLOAD_FAILED and "HTTP 404" in part.outcomes[1].detail
    ((_, fields),) = read_shard(shard_path(out, part.shards[0].name))
    source = decode(fields).meta["source"]
    assert (source["name"], source["licence"], source["author"]) == ("TexVerse", "CC-BY-4.0", "User 0")


def test_what_cannot_be_understood_is_named(world, tmp_path):
    (tmp_path / "uids.txt").write_text("nobody\n")
    with pytest.raises(UserError, match=r"1 uids are not in TexVerse, first 'nobody'"):
        listed(world, tmp_path, str(tmp_path / "uids.txt"))
    with pytest.raises(UsageError, match="give `all`, `pbr`, or a file"):
        listed(world, tmp_path, "nothing.txt")
    with pytest.raises(UsageError, match=r"select\.licences: mit is none of by"):
        listed(world, tmp_path, licences=("mit",))
    with pytest.raises(UsageError, match="TexVerse has no LVIS categories"):
        listed(world, tmp_path, lvis=("chair",))
    with pytest.raises(UsageError, match=r"select\.texture_resolution is 1000; give one of 1024 2048 4096 8192"):
        SelectConfig(texture_resolution=1000)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"<html>please log in</html>", "no JSON object: begins with b'<'"),
        (b'{"a": {"glb_paths": [}}', "no metadata of TexVerse can be read"),
        (b'{"a": 1 "b": 2}', "no metadata of TexVerse can be read"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "no metadata of TexVerse can be read"),
    ],
)
def test_damaged_metadata_is_an_error_with_a_remedy(world, tmp_path, data, named):
    world.files["main/metadata.json"] = data
    with pytest.raises(UserError, match=named):
        listed(world, tmp_path, changes={"attempts": 2})


def test_a_path_that_leads_out_of_the_cache_is_not_fetched(world, tmp_path):
    uris = ("glbs/glbs_1k/../../evil_1024.glb", "glbs/glbs_1k/000-000/a_1024.glb/..", "metadata.json")
    with fetched([MeshRef(uid="a", uri=f"texverse://{uri}") for uri in uris], mirror(world, tmp_path)) as local:
        for found in local:
            assert isinstance(found, Rejected) and "is no path of TexVerse" in found.detail
    assert not world.asked
