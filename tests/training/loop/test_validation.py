"""The samples that a run textures as it trains: readable ones of its own data, or of the dataset that it was named."""

from dataclasses import replace
from pathlib import Path

import pytest

from schemas.dataset import shard_path
from schemas.errors import UsageError
from schemas.sample import Regime
from seqtex.cli.train import validation_of
from tests.support.small_dataset import UV_SIZE, write_dataset
from tests.training.test_training import small_config
from training.config import TrainConfig
from training.loop.checkpoints import read_card
from training.train import plan_run, train

TEXTURED = [[(f"{letter}{i}", Regime.TEXTURED) for i in range(2)] for letter in "ab"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`views`: views alone; `maps`: two shards of two samples with UV maps."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "views", [[("m0", Regime.MV_ONLY), ("m1", Regime.MV_ONLY)]])
    write_dataset(root / "maps", TEXTURED)
    return root


def mixture(data: Path, run: Path, **options: object) -> TrainConfig:
    """Views alone come first."""
    cfg = small_config(data / "views", run, **options)
    both = {str(data / "views"): 1.0, str(data / "maps"): 1.0}
    return replace(cfg, data=replace(cfg.data, directories=both))


def shown(cfg: TrainConfig) -> list[str]:
    validation = validation_of(cfg)
    return [sample.uid for sample in validation.samples] if validation else []


def test_a_mixture_is_described_by_the_dataset_that_has_uv_maps(data: Path, tmp_path: Path) -> None:
    cfg = mixture(data, tmp_path, max_steps=1)
    assert plan_run(cfg).sizes.uv_resolution == UV_SIZE
    assert read_card(train(cfg).checkpoint).uv_resolution == UV_SIZE


def test_samples_of_the_data_are_shown(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "dataset", [[("unrelated", Regime.TEXTURED)]])  # the default of data.directory
    monkeypatch.chdir(tmp_path)
    cfg = mixture(data, tmp_path)
    assert shown(cfg) == ["a0", "a1", "b0", "b1"]
    assert shown(replace(cfg, validation=replace(cfg.validation, samples=1))) == ["a0"]
    assert shown(replace(cfg, validation=replace(cfg.validation, directory=Path("dataset")))) == ["unrelated"]
    assert shown(replace(cfg, validation=replace(cfg.validation, every=0))) == []
    with pytest.raises(UsageError, match="views: no textured sample"):
        shown(replace(cfg, validation=replace(cfg.validation, directory=data / "views")))


@pytest.mark.parametrize("damage", ["a bit", "cut", "missing"])
def test_a_bad_shard_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    write_dataset(tmp_path / "data", TEXTURED)
    shard = shard_path(tmp_path / "data", "textured-000000.tar")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "a bit" else content[: len(content) // 2])
    assert shown(small_config(tmp_path / "data", tmp_path / "run")) == ["b0", "b1"]
    assert "textured-000000.tar" in caplog.text
