"""Captions of several levels: read from any kind of table, planned, and the same typed keys in every sample."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_bytes, plan_difference, plan_jobs, read_plan
from pipeline.executor.job import process_in_child
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.procedural import procedural
from pipeline.sources.registry import open_source
from pipeline.sources.tables.captions import read_captions
from schemas.errors import UsageError, UserError
from schemas.mesh import Attribution, MeshRef
from schemas.sample import TextureSample
from tests.support.objaverse_server import make_xl_world, serving

ROWS = {"a": ("red cup", "A red cup.", "A red cup, glazed, on a saucer."), "b": ("", "A chair.", ""), "c": ("", "", "")}
LEVELS = ("short", "medium", "long")


def written(path: Path) -> Path:
    """The rows as a table of the kind that the suffix names."""
    entries = [{"uid": uid} | dict(zip(LEVELS, texts, strict=True)) for uid, texts in ROWS.items()]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{k: v or None for k, v in entry.items()} for entry in entries]), path)
    elif path.suffix == ".csv":
        lines = [",".join(f'"{entry[name]}"' for name in ("long", "uid", "medium", "short")) for entry in entries]
        path.write_text("\ufefflong,uid,medium,Short\n" + "\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in entry.items() if v}) for entry in entries) + "\n\n")
    else:
        path.write_text(json.dumps({str(entry.pop("uid")): entry for entry in entries}))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".json"])
def test_every_level_is_read_from_every_kind_of_table(tmp_path, suffix):
    captions = read_captions(str(written(tmp_path / f"t{suffix}")), LEVELS)
    assert captions.of("a", otherwise="x") == ("red cup", dict(zip(LEVELS, ROWS["a"], strict=True)))
    assert captions.of("b", otherwise="x") == ("A chair.", {"short": "", "medium": "A chair.", "long": ""})
    for without in ("c", "d"):
        assert captions.of(without, otherwise="x") == ("x", dict.fromkeys(LEVELS, ""))
    longest = read_captions(str(tmp_path / f"t{suffix}"), ("long", "medium"))
    assert longest.of(None, "nobody", "a", otherwise="x")[0] == ROWS["a"][2]
    assert list(longest.of("b", otherwise="x")[1]) == ["long", "medium"]


def test_a_json_of_texts_is_read_as_one_level(tmp_path):
    path = tmp_path / "caption.json"
    path.write_text(json.dumps({"a": " A cup. ", "b": None}))
    assert read_captions(str(path)).rows == {"a": ("A cup.",)}
    path.write_text(json.dumps({"a": "A cup."}))
    assert read_captions(str(path), ("text",)).of("a", otherwise="")[1] == {"text": "A cup."}


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("t.csv", "uid,short\na,b\n", "no column 'medium' among uid, short"),
        ("t.jsonl", '{"uid": "a"}\n[]\n', r"'\[\]' is no JSON object"),
        ("t.json", "[" * 100_000, "no captions can be read"),
        ("t.json", '{"a": 1}', "'1' is no JSON object"),
        ("t.jsonl", '{"uid": "a", "short": "x"}\n', "no asset has a caption of the level 'medium'"),
        ("t.parquet", "no", "no captions can be read"),
    ],
)
def test_tables_without_the_levels_are_named(tmp_path, name, text, named):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=named):
        read_captions(str(tmp_path / name), LEVELS)


def test_levels_are_named_once():
    with pytest.raises(UsageError, match="give each column once"):
        ObjaverseConfig(caption_levels=("short", "short"))


def test_objaverse_assets_of_every_origin_have_every_level(tmp_path):
    with serving(make_xl_world(3)) as world:
        uid, github = world.uids()[0], next(row for row in world.rows if row.origin == "github")
        named = {"uid": [uid, github.sha256], "short": ["s", "t"], "long": [None, "long t"]}
        pq.write_table(pa.table(named), tmp_path / "c.parquet")
        cfg = ObjaverseConfig(
            base_url=world.url, xl_url=f"{world.url}/xl", cache=str(tmp_path / "cache"),
            captions=str(tmp_path / "c.parquet"), caption_levels=("long", "short"),
        )  # fmt: skip
        found = {ref.source.url: ref for ref in open_source("objaverse-xl:all", tmp_path, mirror=cfg)}
        (one,) = [ref for ref in open_source("objaverse:all", tmp_path, mirror=cfg) if ref.uid == uid]
    assert {tuple(ref.captions) for ref in found.values()} == {("long", "short")}
    assert (one.caption, one.captions) == ("s", {"long": "", "short": "s"})
    assert found[f"https://sketchfab.com/3d-models/{uid}"].captions == one.captions
    assert found[github.identifier].captions == {"long": "long t", "short": "t"}
    without = next(ref for ref in found.values() if ref.uid not in (uid, found[github.identifier].uid))
    assert without.captions == {"long": "", "short": ""} and without.caption


REFS = [
    MeshRef(
        uid=f"a{i}", uri=f"/x/{i}.glb", sha256=f"{i:064d}", caption=f"thing {i}", root="/x" if i % 2 else None,
        source=Attribution(name="n", licence="CC0-1.0"),
    )
    for i in range(5)
]  # fmt: skip


def test_plans_keep_the_levels_and_have_the_columns_of_before_without_them(tmp_path):
    plain = pq.read_schema(pa.BufferReader(plan_bytes(plan_jobs(REFS, 2)))).names
    assert plain == ["uid", "uri", "sha256", *asdict(Attribution()), "caption", "kind", "root", "job"]
    refs = [replace(ref, captions={"long": "a \ud800 b", "short": ""}) for ref in REFS]
    jobs = plan_jobs(refs, 2)
    (tmp_path / "plan.parquet").write_bytes(plan_bytes(jobs))
    again = read_plan(tmp_path / "plan.parquet")
    assert again == jobs and again[0].refs[0].captions == {"long": "a ? b", "short": ""}
    assert plan_difference(jobs, plan_jobs(REFS, 2)).startswith("captions of asset a0 was {'long'")
    with pytest.raises(
        UserError, match=r"different levels \(none and long short\); give the same --objaverse\.caption_"
    ):
        plan_bytes(plan_jobs([REFS[0], *refs[1:]], 2))


def test_a_sample_has_every_level_as_text_and_without_levels_no_key(tmp_path):
    made = next(procedural(1, tmp_path / "made", clean=True))
    cfg = BuildConfig(views=RenderConfig(resolution=32), uv=BakeConfig(resolution=64))
    plain = process_asset(made, cfg).result
    assert isinstance(plain, TextureSample) and "captions" not in plain.meta
    told = replace(made, captions={"short": "a pot", "long": ""})
    process_in_child(json.loads(json.dumps({"ref": asdict(told), "cfg": asdict(cfg)})), tmp_path)
    (field,) = tmp_path.rglob("json")
    meta = json.loads(field.read_bytes())
    assert meta["captions"] == {"short": "a pot", "long": ""}
    assert meta.keys() - plain.meta.keys() == {"captions"}
