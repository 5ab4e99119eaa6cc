"""The 47 real assets through `seqtex build`: one row each with the outcome a person would give it, whatever happens."""

import json
import shutil
from pathlib import Path

import pytest

from schemas.dataset import read_ledger
from schemas.ledger import Reason, Status
from schemas.sample import Regime
from schemas.storage import file_sha256
from seqtex.cli.main import main
from tests.pipeline.executor.test_shared_assets import EXPECTED, MV_ONLY, TEXTURED

BUILT = EXPECTED | {"water_bottle_pbr.glb": ("rejected", Reason.DUPLICATE)}
"""Two of them are one bottle with its textures in two encodings."""

pytestmark = [pytest.mark.assets, pytest.mark.slow]


def build(out: Path, source: Path, workers: int, *options: str) -> int:
    return main(["build", "--source", f"folder:{source}", "--out", str(out), "--workers", str(workers), *options])


@pytest.fixture(scope="module")
def dataset(assets_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "dataset"
    assert build(out, assets_dir, 2, "--assets_per_job", "12") == 0
    return out


@pytest.mark.timeout(600)
def test_every_asset_ends_as_a_person_would_judge_it(dataset, assets_dir):
    outcomes = {outcome.uri: outcome for part in read_ledger(dataset) for outcome in part.outcomes}
    assert len(outcomes) == sum(len(part.outcomes) for part in read_ledger(dataset)) == 47
    found = {}
    for name, outcome in outcomes.items():
        if outcome.status is Status.ACCEPTED:
            textured = outcome.regime is Regime.TEXTURED
            found[name] = (TEXTURED, outcome.measurements.layout) if textured else (MV_ONLY, outcome.reason)
        else:
            found[name] = (str(outcome.status), outcome.reason)
    assert found == BUILT
    assert "looks like water_bottle_meshopt_ktx2" in outcomes["water_bottle_pbr.glb"].detail


def test_accepted_textures_pass_the_round_trip(dataset):
    textured = [o for part in read_ledger(dataset) for o in part.outcomes if o.regime is Regime.TEXTURED]
    assert len(textured) == sum(regime == TEXTURED for regime, _ in BUILT.values())
    assert min(o.measurements.round_trip_psnr for o in textured) >= 30


OF_THE_VIEWS = ("visible_share_min", "visible_share_opposite", "single_surface_share", "edge_score", "texture_score")
OF_THE_MAP = ("layout", "uv_fill", "layout_density", "layout_density_spread", "round_trip_psnr", "round_trip_off_share")


def test_accepted_assets_were_measured_to_the_end(dataset):
    accepted = [o for part in read_ledger(dataset) for o in part.outcomes if o.status is Status.ACCEPTED]
    for outcome in accepted:
        m, textured = outcome.measurements, outcome.regime is Regime.TEXTURED
        proven = textured or outcome.reason is Reason.ROUND_TRIP
        assert (m.layout_fault is None) == proven, outcome.uid
        for column in (*OF_THE_VIEWS, *(OF_THE_MAP if proven else ())):
            assert getattr(m, column) is not None, (outcome.uid, column)
        assert 0 <= m.single_surface_share < 0.9 and m.visible_share_opposite >= 0.0075


def test_judging_again_changes_nothing(dataset, capsys):
    capsys.readouterr()
    assert main(["what-if", str(dataset), "--log", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == 0


def test_verify_finds_nothing_wrong(dataset):
    assert main(["verify", str(dataset)]) == 0


def test_second_run_finds_nothing_to_do(dataset, assets_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file() and path.name != ".lock"}
    assert build(dataset, assets_dir, 2, "--assets_per_job", "12") == 0
    assert "nothing to do" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.timeout(600)
def test_a_deleted_shard_comes_back_with_the_same_bytes(dataset, assets_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shard = copy / "shards" / "textured-000003.tar"
    digest = file_sha256(shard)
    shard.unlink()
    assert main(["verify", str(copy)]) == 1
    # another number of workers than the first time
    assert build(copy, assets_dir, 1, "--assets_per_job", "12") == 0
    assert file_sha256(shard) == digest
    assert main(["verify", str(copy)]) == 0
