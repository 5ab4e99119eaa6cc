"""Curation by a table: the assets that meet a condition, all others counted, and the table recorded by its content."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import BuildConfig, recorded_config
from pipeline.dataset.plan import plan_jobs
from pipeline.dataset.state import require_same, settle
from pipeline.executor.build import added, step
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.registry import open_source
from pipeline.sources.selection import SelectConfig
from pipeline.sources.tables.conditions import met, parse
from pipeline.sources.tables.scores import read_scores
from schemas.dataset import read_dataset_json
from schemas.errors import UsageError, UserError
from schemas.mesh import MeshRef
from schemas.storage import file_sha256
from tests.support.objaverse_server import make_world, make_xl_world, serving

TABLE = pa.table({
    "uid": list("abcdefg"),
    "score": pa.array([1, 2, 3, 4, 5, None, 2**60], pa.int64()),
    "beauty": pa.array([0.1, 0.2, float("nan"), None, -1.5, 3e8, 0.7], pa.float32()),
    "style": pa.array(["toon", "real", "real", None, "it's", "real", "TOON"]),
    "kind": pa.array(["x", "y", "x", "x", "y", None, "x"]).dictionary_encode(),
    "is.scene": pa.array([True, False, None, False, True, False, True]),
    "odd name": pa.array([1, 1, 1, 2, 2, 2, 2], pa.uint8()),
    "day": pa.array([0] * 7, pa.date32()),
    "price": pa.array(range(7), pa.decimal128(10, 2)),
    "nothing": pa.nulls(7),
})  # fmt: skip


@pytest.mark.parametrize(
    ("where", "uids"),
    [
        ("score >= 4", "deg"),
        ("score > 3.5 and score < 1e18", "de"),
        ("score != 2", "acdeg"),
        ("score in (1, 5, 9)", "ae"),
        ("beauty = 0.1", "a"),
        ("beauty <= .2", "abe"),
        ("not beauty > 0.2", "abe"),
        ("beauty = -1.5 or beauty = 3e8", "ef"),
        ("style = 'real'", "bcf"),
        ('style = "it\'s"', "e"),
        ("style != 'real'", "aeg"),
        ("not style in ('real', 'toon')", "eg"),
        ("kind = 'x' and not is.scene = true", "d"),
        ("is.scene = FALSE", "bdf"),
        ("`odd name` == 2 AND (score = 4 OR score = 5)", "de"),
        ("score = 1 or score = 2 and style = 'toon'", "a"),
        ("(score = 1 or score = 2) and style = 'real'", "b"),
        ("score = 5 or style = 'real'", "bcef"),
        ("price > 4.5", "fg"),
        ("nothing = 1 or score = 1", "a"),
    ],
)
def test_conditions_mean_what_they_say(where, uids):
    mask = met(parse(where), TABLE).to_pylist()
    assert "".join(uid for uid, fits in zip("abcdefg", mask, strict=True) if fits) == uids


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("score >=", "a number, a text in quotes, true or false is missing at its end"),
        ("score", "a comparison .* is missing at its end"),
        (">= 4", "a column is missing before '>= 4'"),
        ("score >= 4 score", "`and`, `or` or the end is missing before 'score'"),
        ("(score >= 4", r"'\)' is missing at its end"),
        ("score in 4", r"'\(' is missing before '4'"),
        ("score >= high", "a number, a text in quotes"),
        ("score >= 4; drop table", "the end is missing before '; drop table'"),
        ("__import__('os').system('x')", "a comparison"),
        ("score >= 4x", "a number"),
        ("(" * 60 + "score = 1" + ")" * 60, "more than 50 parentheses"),
        ("not " * 5000 + "score = 1", "more than 50 parentheses"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(where, named):
    with pytest.raises(UsageError, match=named):
        SelectConfig(scores="x.csv", where=where)


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("score = 'high'", "column 'score' holds numbers, which cannot be compared with 'high'"),
        ("score = true", "holds numbers"),
        ("style = 4", "column 'style' holds text"),
        ("style > 'real'", "holds text, without an order"),
        ("is.scene = 1", "holds true and false"),
        ("day = 1", r"holds date32"),
    ],
)
def test_a_value_of_another_kind_than_its_column_is_refused(where, named):
    with pytest.raises(UsageError, match=named):
        met(parse(where), TABLE)


def select(path: Path, where: str = "score >= 4", **more) -> SelectConfig:
    return SelectConfig(scores=str(path), where=where, **more)


def written(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def test_tables_that_cannot_be_used_are_named_with_the_remedy(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "torn.csv").write_text("uid,score\na,1\nb\n")
    (tmp_path / "hole.csv").write_text("uid,score\na,1\n,2\n")
    (tmp_path / "words.csv").write_text("uid,score\na,high\n")
    (tmp_path / "scores.json").write_text("{}")
    twice = written(tmp_path / "twice.parquet", pa.table({"uid": ["a", "b", "a"], "score": [1, 2, 3]}))
    numbers = written(tmp_path / "numbers.parquet", pa.table({"uid": [1, 2], "score": [1, 2]}))
    nameless = written(tmp_path / "nameless.parquet", pa.table({"id": ["a"], "score": [1]}))
    for path, named in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path / "bad.parquet", "cannot be read"),
        (tmp_path / "torn.csv", "cannot be read"),
        (tmp_path / "hole.csv", "1 rows have no text as uid, first row 2"),
        (tmp_path / "words.csv", "column 'score' holds text"),
        (tmp_path / "scores.json", "give a .parquet or .csv with a column uid"),
        (twice, "the uid 'a' stands in 2 rows; keep one"),
        (numbers, "2 rows have no text as uid"),
        (nameless, "no column uid among id, score"),
    ):
        with pytest.raises(UserError, match=named):
            read_scores(select(path))
    with pytest.raises(UserError, match=r"no column 'colour', which select.where names; it has uid, score"):
        read_scores(select(twice, "colour = 1"))
    with pytest.raises(UsageError, match=r"name it by --select\.scores"):
        SelectConfig(where="score >= 4")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_folder_is_curated_and_what_is_not_selected_is_counted(tmp_path, suffix):
    for name in "abcd":
        (tmp_path / f"{name}.obj").write_text("v 0 0 0\n")
    refs = list(open_source(f"folder:{tmp_path}", tmp_path))
    path, lines = tmp_path / f"scores{suffix}", list[str]()
    if suffix == ".csv":
        rows = "".join(f'{ref.uid},{score},"x, y"\n' for ref, score in zip(refs[:3], (5, 1, ""), strict=True))
        path.write_text("\ufeffuid,score,note\n" + rows)
    else:
        written(path, pa.table({"score": [5.0, 1.0, None], "UID": [ref.uid for ref in refs[:3]]}))
    found = list(open_source(f"folder:{tmp_path}", tmp_path, select=select(path), report=lines.append))
    assert [ref.uid for ref in found] == [refs[0].uid]
    name = f"scores{suffix} (sha256 {file_sha256(path)[:12]})"
    assert lines == [f"by {name}: 1 selected, 2 do not meet select.where, 1 are not in it"]
    listed = open_source(f"folder:{tmp_path}", tmp_path, select=select(path, where=""))
    assert [ref.uid for ref in listed] == [ref.uid for ref in refs[:3]], "a table alone is a list"


def test_objaverse_is_curated_before_it_is_sampled(tmp_path):
    with serving(make_world(40)) as world:
        cfg = ObjaverseConfig(base_url=world.url, cache=str(tmp_path / "cache"))
        uids = world.uids()
        path = written(tmp_path / "s.parquet", pa.table({"uid": uids[:30], "score": [i % 6 for i in range(30)]}))
        lines: list[str] = []
        found = open_source(
            "objaverse:all", tmp_path, select=select(path, sample=4, licences=("by", "cc0", "by-nc")), mirror=cfg,
            report=lines.append,
        )  # fmt: skip
        chosen = [ref.uid for ref in found]
    good = {uid for i, uid in enumerate(uids[:30]) if i % 6 >= 4 and world.annotations[uid]["license"] != "by-sa"}
    assert len(good) > 4 and len(chosen) == 4 and set(chosen) <= good
    assert lines[0].endswith(": 10 selected, 20 do not meet select.where, 10 are not in it")


def test_objaverse_xl_is_curated_by_uid_sha256_or_file_identifier(tmp_path):
    with serving(make_xl_world(4)) as world:
        cfg = ObjaverseConfig(base_url=world.url, xl_url=f"{world.url}/xl", cache=str(tmp_path / "cache"))
        github = [row for row in world.rows if row.origin == "github"]
        uid = world.uids()[0]
        named = [github[0].identifier, github[1].sha256, uid, github[2].sha256]
        path = written(tmp_path / "s.parquet", pa.table({"uid": named, "score": [9, 9, 9, 1]}))
        found = list(open_source("objaverse-xl:all", tmp_path, select=select(path), mirror=cfg))
    pages = {github[0].identifier, github[1].identifier, f"https://sketchfab.com/3d-models/{uid}"}
    assert {ref.source.url for ref in found} == pages


def test_a_changed_table_is_refused_on_resume_and_noticed_by_extend(tmp_path):
    out = tmp_path / "out"
    (out / "ledger").mkdir(parents=True)
    path = tmp_path / "scores.csv"
    path.write_text("uid,score\na,5\nb,4\n")
    jobs = plan_jobs([MeshRef(uid=uid, uri=f"/{uid}.glb") for uid in "ab"], 8)
    cfg = BuildConfig(select=select(path))
    settle(out, jobs, cfg.recorded())
    recorded = read_dataset_json(out).config["select"]
    assert recorded["scores"] == f"sha256:{file_sha256(path)}" and recorded["where"] == "score >= 4"
    assert str(tmp_path) not in (out / "dataset.json").read_text(), "where the table lies decides nothing"
    moved = path.rename(tmp_path / "moved.csv")
    settle(out, jobs, replace(cfg, select=select(moved)).recorded())
    moved.write_text("uid,score\na,5\nb,4\nc,9\n")
    changed = replace(cfg, select=select(moved))
    with pytest.raises(
        UserError, match=r"built with select\.scores='sha256:.*, now it is 'sha256:.*give another --out"
    ):
        settle(out, jobs, changed.recorded())
    info = read_dataset_json(out)
    require_same(out, info, changed.recorded(), but="select")  # extend may take another table, and says which
    more = added(jobs, [MeshRef(uid="c", uri="/c.glb")], 8)
    assert step("folder:/x", changed, more)["select"]["scores"] == f"sha256:{file_sha256(moved)}"
    again = recorded_config(out, info, "")
    require_same(out, info, again.recorded())
    with pytest.raises(UserError, match=r"built with a table of sha256:.*--select\.scores"):
        open_source("procedural:1", tmp_path, select=again.select)


def test_a_build_without_a_table_is_recorded_as_before():
    """Datasets of earlier versions are resumed: they lack what is not set."""
    assert {"scores", "where"}.isdisjoint(BuildConfig().recorded()["select"])


def test_a_list_of_uids_selects_them(tmp_path):
    listed = tmp_path / "uids.txt"
    listed.write_text("\ufeffprocedural-0001-x\n\n  b  \n", encoding="utf-8")
    scores = read_scores(SelectConfig(scores=str(listed)))
    assert scores is not None and scores.rows == {"procedural-0001-x": True, "b": True}
    refs = list(open_source("procedural:3", tmp_path / "assets"))
    listed.write_text(f"{refs[2].uid}\n{refs[0].uid}\n")
    taken = open_source("procedural:3", tmp_path / "assets", select=SelectConfig(scores=str(listed)))
    assert [ref.uid for ref in taken] == [refs[0].uid, refs[2].uid]
    with pytest.raises(UserError, match="no column 'score'"):
        read_scores(SelectConfig(scores=str(listed), where="score > 1"))
