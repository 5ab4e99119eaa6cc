"""Every rule at its threshold; the verdict of a record, whole or half measured; other thresholds on a ledger."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from pipeline.config import BuildConfig
from pipeline.filter.rules import NO_FACES, NO_LAYOUT, RULE_NAMES, RULES, FilterConfig, apply_rules, rule_of, suspicions
from pipeline.maintain.what_if import ChangeKind, Thresholds, changes
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import DatasetInfo, dataset_json, read_ledger, write_ledger_part
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.sample import Regime
from seqtex.cli.main import main
from tests.support.small_dataset import write_dataset

CFG, UNWRAP = FilterConfig(), UnwrapConfig(max_faces=200_000)
SOUND = Measurements(
    faces=100,
    degenerate_share=0.0,
    flatness=0.5,
    transparent_share=0.0,
    distinct_colors=9,
    color_std=0.2,
    flat_share=0.3,
    texture_entropy=3.0,
    visible_share_min=0.2,
    visible_share_opposite=0.3,
    single_surface_share=0.0,
    edge_score=20.0,
    texture_score=125.0,
    layout="authored",
    round_trip_psnr=45.0,
    round_trip_off_share=0.01,
    constant_material_share=0.2,
    metallic_psnr=40.0,
    roughness_psnr=40.0,
    emissive_psnr=40.0,
    normal_error_deg=1.0,
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"faces": 0}, Reason.NO_GEOMETRY),
        ({"faces": 12}, None),
        ({"faces": 11}, Reason.TOO_FEW_FACES),
        ({"faces": 500_000}, None),
        ({"faces": 500_001}, Reason.TOO_MANY_FACES),
        ({"degenerate_share": 0.25}, None),
        ({"degenerate_share": 0.26}, Reason.DEGENERATE),
        ({"flatness": 0.009}, Reason.FLAT),
        ({"flatness": 0.009, "faces": 2}, Reason.FLAT),
        ({"transparent_share": 0.51}, Reason.TRANSPARENT),
        ({"distinct_colors": 1}, Reason.UNTEXTURED),
        ({"distinct_colors": 2}, None),
        ({"color_std": 0.009}, Reason.UNTEXTURED),
        ({"flat_share": 1.0}, None),
        ({"visible_share_min": 0.0019}, Reason.BARELY_VISIBLE),
        ({"visible_share_opposite": 0.007}, Reason.BARELY_VISIBLE),
        ({"single_surface_share": 0.91}, Reason.FLAT),
        ({"texture_score": 0.0}, None),
        ({"degenerate_share": None, "flatness": None, "distinct_colors": None}, None),
    ],
)
def test_rules(change: dict[str, float | int | None], reason: Reason | None) -> None:
    verdict = apply_rules(replace(SOUND, **change), CFG)
    assert (verdict.rejected.reason if verdict.rejected else None) == reason
    assert verdict.regime is (None if reason else Regime.TEXTURED)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_fires_just_beyond_its_threshold_and_says_so(rule) -> None:
    """With the threshold at the value itself it stands; a hair beyond, it fires, and tells rule, value and limit."""
    value = getattr(SOUND, rule.measurement)
    away = 1 if isinstance(value, int) else 0.005
    sign = 1 if rule.name.startswith("min_") else -1
    assert apply_rules(SOUND, replace(CFG, **{rule.name: value})).regime is Regime.TEXTURED
    verdict = apply_rules(SOUND, replace(CFG, **{rule.name: value + sign * away}))
    assert verdict.regime is rule.regime and verdict.rejected is not None and verdict.rejected.reason is rule.reason
    assert rule_of(verdict.rejected.detail) == rule.name
    assert "{}" not in verdict.rejected.detail and ", at " in verdict.rejected.detail
    assert apply_rules(
        replace(SOUND, **{rule.measurement: None}), replace(CFG, **{rule.name: value + sign * away})
    ) == apply_rules(SOUND, CFG), "a rule whose measurement is missing does not fire"


def test_rules_are_thresholds_of_the_config_and_columns_of_the_ledger() -> None:
    thresholds = {field.name for field in fields(FilterConfig)} - {"suspect_baked_light"}
    assert thresholds == {rule.name for rule in RULES} == RULE_NAMES - {NO_FACES, NO_LAYOUT}
    assert {rule.measurement for rule in RULES} <= {field.name for field in fields(Measurements)}
    assert all(rule.name.startswith(("min_", "max_")) for rule in RULES)


def test_details_name_value_and_threshold() -> None:
    verdict = apply_rules(replace(SOUND, faces=600_000), CFG)
    assert verdict.rejected is not None
    assert verdict.rejected.detail == "max_faces: 600,000 faces, at most 500,000"
    verdict = apply_rules(replace(SOUND, transparent_share=0.744), CFG)
    assert verdict.rejected is not None
    assert verdict.rejected.detail == "max_transparent_share: 74.40% of the surface is transparent, at most 50.00%"


def test_the_first_rule_decides() -> None:
    verdict = apply_rules(replace(SOUND, faces=600_000, color_std=0.0, round_trip_psnr=3.0), CFG)
    assert verdict.rejected is not None and rule_of(verdict.rejected.detail) == "max_faces"


def test_what_costs_the_texture_alone() -> None:
    """A full record decides the regime by itself: a poor round trip, or no layout, leaves the views."""
    poor = apply_rules(replace(SOUND, round_trip_psnr=29.9), CFG)
    assert poor.regime is Regime.MV_ONLY and poor.rejected is not None and poor.rejected.reason is Reason.ROUND_TRIP
    none = apply_rules(replace(SOUND, layout=None, layout_fault="unwrap_budget", round_trip_psnr=None), CFG)
    assert none.regime is Regime.MV_ONLY and none.rejected is not None and none.rejected.reason is Reason.UNWRAP_BUDGET
    assert rule_of(none.rejected.detail) == NO_LAYOUT
    grey = apply_rules(replace(SOUND, color_std=0.0, round_trip_psnr=29.9), CFG)
    assert grey.regime is None, "an asset that is nothing is not half of something"


def test_suspicion_is_no_reason() -> None:
    lit = replace(SOUND, baked_light=0.8)
    assert apply_rules(lit, CFG).regime is Regime.TEXTURED
    assert suspicions(lit, CFG) and not suspicions(replace(SOUND, baked_light=0.1), CFG) and not suspicions(SOUND, CFG)


def test_details_of_other_origin_name_no_rule() -> None:
    assert rule_of("") is None and rule_of("sha256 abc where def was planned") is None
    assert rule_of("error: unreadable") is None


def test_the_guide_names_every_rule_with_its_default_and_every_measurement() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "building.md").read_text()
    rows = re.findall(
        r"^\| `((?:min|max)_\w+)` \| (\S+) \| `(\w+)` \| `(\w+)` \| (views|nothing) \|$", text, re.MULTILINE
    )
    assert [(name, float(value), measurement, reason, left) for name, value, measurement, reason, left in rows] == [
        (rule.name, getattr(CFG, rule.name), rule.measurement, rule.reason, "views" if rule.regime else "nothing")
        for rule in RULES
    ]
    section = text.partition("| group | columns |")[2].partition("\n\n")[0]
    columns = [name for cell in re.findall(r"`([\w ]+)`", section) for name in cell.split()]
    assert columns == [field.name for field in fields(Measurements)]
    assert f"({CFG.suspect_baked_light:g})" in text


# other thresholds on a ledger


def outcome(uid: str, measurements: Measurements, cfg: FilterConfig = CFG) -> Outcome:
    """A row as a build with `cfg` writes it."""
    verdict = apply_rules(measurements, cfg)
    return Outcome(
        uid=uid,
        uri=f"/{uid}.glb",
        sha256=None,
        status=Status.REJECTED if verdict.regime is None else Status.ACCEPTED,
        regime=verdict.regime,
        reason=verdict.rejected.reason if verdict.rejected else None,
        detail=verdict.rejected.detail if verdict.rejected else "",
        shard=None,
        seconds=1.0,
        measurements=measurements,
    )


LEDGER = [
    outcome("good", SOUND),
    outcome("dull", replace(SOUND, color_std=0.015)),
    outcome("blurred", replace(SOUND, round_trip_psnr=33.0)),
    outcome("poor", replace(SOUND, round_trip_psnr=25.0)),
    outcome("grey", Measurements(faces=100, color_std=0.004, distinct_colors=5)),
    outcome("budget", replace(SOUND, layout=None, layout_fault="unwrap_budget", round_trip_psnr=None)),
    replace(outcome("broken", Measurements(bytes=3)), status=Status.REJECTED, regime=None, reason=Reason.TRUNCATED),
    replace(outcome("empty", Measurements(faces=0)), detail="the scene draws no triangle"),
    replace(outcome("slow", Measurements()), status=Status.FAILED, regime=None, reason=Reason.TIMEOUT),
]


def thresholds(cfg: FilterConfig = CFG, unwrap: UnwrapConfig = UNWRAP) -> Thresholds:
    return Thresholds(filter=cfg, unwrap=unwrap, built=UNWRAP)


def test_the_same_thresholds_change_nothing() -> None:
    assert list(changes(LEDGER, thresholds())) == []


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        ({"min_color_std": 0.02}, {"dull": ChangeKind.REJECTED}),
        ({"min_round_trip_db": 40.0}, {"blurred": ChangeKind.MV_ONLY}),
        ({"min_round_trip_db": 20.0}, {"poor": ChangeKind.TEXTURED}),
        ({"min_color_std": 0.001}, {"grey": ChangeKind.ACCEPTED}),
        ({"min_distinct_colors": 6}, {"grey": ChangeKind.RULE}),
        ({"min_faces": 101}, dict.fromkeys(["good", "dull", "blurred", "poor", "budget"], ChangeKind.REJECTED)),
    ],
)
def test_other_thresholds(threshold: dict[str, float], expected: dict[str, ChangeKind]) -> None:
    cfg = replace(CFG, **threshold)
    found = list(changes(LEDGER, thresholds(cfg)))
    if "min_faces" in threshold:  # the grey one has too few faces before it is grey
        expected = expected | {"grey": ChangeKind.RULE}
    assert {change.uid: change.kind for change in found} == expected
    assert all(rule_of(change.after) or change.kind in (ChangeKind.TEXTURED, ChangeKind.ACCEPTED) for change in found)


def test_going_there_and_back_changes_nothing() -> None:
    """A dataset that was built with other thresholds, judged by those."""
    strict = replace(CFG, min_color_std=0.1, min_round_trip_db=40.0)
    ledger = [outcome(row.uid, row.measurements, strict) for row in LEDGER if row.status is not Status.FAILED]
    assert list(changes(ledger, thresholds(strict))) == []
    back = {change.uid: change.kind for change in changes(ledger, thresholds())}
    assert back == {"dull": ChangeKind.ACCEPTED, "blurred": ChangeKind.TEXTURED}


# other limits on layouts


def layout_row(uid: str, **measured) -> Outcome:
    return outcome(uid, replace(SOUND, **measured))


AUTHORED = {"layout": "authored", "uv_faces_share": 1.0, "uv_outside_share": 0.0, "uv_degenerate_share": 0.0}
NEW = {"layout": "grown", "uv_faces_share": 0.0, "layout_charts": 90, "layout_stretch": 1.2, "uv_fill": 0.6}
NONE = {"layout": None, "uv_faces_share": 0.0, "round_trip_psnr": None}
LAYOUTS = [
    layout_row("kept", **AUTHORED, uv_overlap_share=0.008, faces=900),
    layout_row("overlapping", **NEW | AUTHORED | {"layout": "grown"}, uv_overlap_share=0.03, faces=900),
    layout_row("grown", **NEW, faces=40_000),
    layout_row("poor", **NONE, layout_fault="unwrap_poor", faces=900),
    layout_row("heavy", **NONE, layout_fault="unwrap_budget", faces=300_000),
    layout_row("slow", **NONE, layout_fault="unwrap_budget", faces=900),
    replace(layout_row("images", **NONE, layout_fault="no_mesh"), measurements=Measurements(layout_fault="no_mesh")),
]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({}, {}),
        ({"timeout_s": 1.0, "memory_gb": 1.0, "padding": 4}, {}),
        ({"max_overlap_share": 0.005}, {"kept": (ChangeKind.LAYOUT, "unwrap.authored")}),
        (
            {"max_overlap_share": 0.05},
            {
                "overlapping": (ChangeKind.LAYOUT, "unwrap.authored"),
                "poor": (ChangeKind.TEXTURED, "unwrap.max_overlap_share"),
            },
        ),
        ({"max_faces": 10_000}, {"grown": (ChangeKind.MV_ONLY, "unwrap.max_faces")}),
        ({"max_faces": 400_000}, {"heavy": (ChangeKind.TEXTURED, "unwrap.max_faces")}),
        (
            {"max_xatlas_faces": 50_000},
            dict.fromkeys(["overlapping", "grown"], (ChangeKind.LAYOUT, "unwrap.max_xatlas_faces"))
            | dict.fromkeys(["poor", "slow"], (ChangeKind.TEXTURED, "unwrap.max_xatlas_faces")),
        ),
        ({"max_rescue_faces": 20_000}, {}),
        ({"max_stretch": 1.1}, dict.fromkeys(["overlapping", "grown"], (ChangeKind.MV_ONLY, "unwrap.max_stretch"))),
        ({"max_charts": 89}, dict.fromkeys(["overlapping", "grown"], (ChangeKind.MV_ONLY, "unwrap.max_charts"))),
        ({"min_fill": 0.7}, dict.fromkeys(["overlapping", "grown"], (ChangeKind.MV_ONLY, "unwrap.min_fill"))),
        ({"max_stretch": 3.0}, {"poor": (ChangeKind.TEXTURED, "unwrap.max_stretch")}),
    ],
)
def test_other_limits_on_layouts(limit: dict, expected: dict[str, tuple[ChangeKind, str]]) -> None:
    found = list(changes(LAYOUTS, thresholds(unwrap=replace(UNWRAP, **limit))))
    assert {change.uid: (change.kind, change.rule) for change in found} == expected


def test_other_budgets_of_xatlas() -> None:
    rows = [*LAYOUTS, layout_row("rescued", **NEW | {"layout": "xatlas"}, faces=40_000)]
    small, large = replace(UNWRAP, max_rescue_faces=800), replace(UNWRAP, max_rescue_faces=50_000)
    gained = changes(rows, Thresholds(filter=CFG, unwrap=large, built=small))
    assert [(change.uid, change.kind, change.rule) for change in gained] == [
        ("poor", ChangeKind.TEXTURED, "unwrap.max_rescue_faces")
    ]
    lost = changes(rows, Thresholds(filter=CFG, unwrap=small, built=large))
    assert [(change.uid, change.kind) for change in lost] == [("rescued", ChangeKind.MV_ONLY)]


def test_what_would_go_goes_whatever_its_layout() -> None:
    both = thresholds(replace(CFG, min_faces=1_000_000), UnwrapConfig(max_stretch=1.1))
    assert {change.kind for change in changes(LAYOUTS[:6], both)} == {ChangeKind.REJECTED}


def test_a_whole_build_file_is_judged_by_as_far_as_it_goes(tmp_path, capsys) -> None:
    write_dataset(tmp_path / "data", [[("a", Regime.TEXTURED)]])
    config = BuildConfig().recorded()
    info = DatasetInfo(config=config, plan_sha256="", planned=1, jobs=1)
    (tmp_path / "data" / "dataset.json").write_bytes(dataset_json(info))
    part = read_ledger(tmp_path / "data")[0]
    row = replace(part.outcomes[0], measurements=replace(SOUND, **NEW, faces=900))
    write_ledger_part(tmp_path / "data", replace(part, outcomes=(row,)))
    build = {"source": "folder:x", "out": "y", "rig": {"name": "ortho6"}, "filter": {"min_faces": 10},
             "unwrap": {"max_stretch": 1.1, "padding": 4}}  # fmt: skip
    (tmp_path / "build.yaml").write_text(yaml.safe_dump(build))
    for given in (["--config", str(tmp_path / "build.yaml")], [f"--config={tmp_path / 'build.yaml'}"]):
        assert main(["what-if", str(tmp_path / "data"), "--log", "json", *given]) == 0
        told = [json.loads(line) for line in "".join(capsys.readouterr()).splitlines() if line.startswith("{")]
        assert [line["settings"] for line in told if line["event"] == "not_applied"] == [
            ["rig.name"], ["unwrap.padding"]]  # fmt: skip
        assert [line["rule"] for line in told if line["event"] == "change"] == ["unwrap.max_stretch"]
