"""Trainer states of runs that train a part of the model: they hold that part and know the rest by its sum."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas.errors import UserError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.training.test_training import load_state, small_config, weights
from training.config import TrainConfig
from training.model.init import make_model
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import frozen_fingerprint, frozen_matrices, mark_trained, save_model
from training.module import TextureModule
from training.train import train

FROZEN = "blocks.1.attn1.to_q.base_layer.weight"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    return out


@pytest.fixture(scope="module")
def start(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from, of the full preset's parts: LoRA beside frozen layers."""
    scratch = small_config(dataset, dataset).model
    model = make_model(replace(scratch, lora_rank=4, lora_alpha=2), seed=1)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)  # at zero it would pass no gradient on
    path = tmp_path_factory.mktemp("start") / "model"
    save_model(model, path)
    return path


def config(dataset: Path, run: Path, start: Path, steps: int = 4) -> TrainConfig:
    cfg = small_config(dataset, run, max_steps=steps, state_every=2)
    model = replace(cfg.model, start="seqtex", start_path=str(start), lora_rank=4, lora_alpha=2, trained="released")
    return replace(cfg, model=model, optimizer=replace(cfg.optimizer, final_share=1.0))  # whatever the number of steps


def test_a_state_holds_what_trains_and_resumes_exactly(dataset: Path, start: Path, tmp_path: Path) -> None:
    straight = train(config(dataset, tmp_path / "straight", start))
    train(config(dataset, tmp_path / "parts", start, steps=2))
    resumed = train(config(dataset, tmp_path / "parts", start))
    assert all(torch.equal(value, weights(straight)[name]) for name, value in weights(resumed).items())
    assert torch.equal(weights(resumed)[FROZEN], SeqTexTransformer3DModel.from_pretrained(start).state_dict()[FROZEN])
    model = make_model(config(dataset, tmp_path, start).model, seed=0)
    trained = mark_trained(model, "released")
    state = load_state(tmp_path / "parts", 4)
    assert state["state_dict"].keys() == {f"model.{name}" for name in trained}
    assert 0 < len(trained) < len(dict(model.named_parameters()))
    assert state["frozen_sha256"] == frozen_fingerprint(model)


def test_a_run_does_not_go_on_from_other_frozen_weights(dataset: Path, start: Path, tmp_path: Path) -> None:
    train(config(dataset, tmp_path / "run", start, steps=2))
    model = SeqTexTransformer3DModel.from_pretrained(start)
    with torch.no_grad():
        model.get_parameter(FROZEN)[0, 0] += 1e-6
    save_model(model, tmp_path / "other")
    with pytest.raises(UserError, match=r"other frozen weights.*model\.start_path"):
        train(config(dataset, tmp_path / "run", tmp_path / "other"))
    cfg = config(dataset, tmp_path / "run", start)
    with pytest.raises(UserError, match="frozen weights"):
        train(replace(cfg, model=replace(cfg.model, trained="all")))


def test_a_run_does_not_go_on_with_another_model(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path, max_steps=2, state_every=2)
    train(cfg)
    cfg = replace(cfg, run=replace(cfg.run, max_steps=4))
    for change in ({"num_layers": 1}, {"ffn_dim": 32}):
        with pytest.raises(UserError, match=r"another model.*config\.json"):
            train(replace(cfg, model=replace(cfg.model, **change)))


def losses_of(cfg: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Train with products in bfloat16, whatever the processor; losses, final weights, and bytes of the model's own."""
    monkeypatch.setattr("training.train.autocast_dtype", lambda device, precision: torch.bfloat16)
    sizes: list[int] = []
    checked = TextureModule.on_train_start

    def measure(module: TextureModule) -> None:
        sizes.append(sum(p.nbytes for p in module.model.parameters()))
        assert {p.dtype for p in module.model.parameters() if p.requires_grad} == {torch.float32}
        checked(module)

    monkeypatch.setattr(TextureModule, "on_train_start", measure)
    result = train(replace(cfg, run=replace(cfg.run, precision="bfloat16")))
    monkeypatch.setattr(TextureModule, "on_train_start", checked)
    return [row["loss"] for row in result.losses], weights(result), sizes[-1]


def test_narrow_frozen_weights_change_nothing_but_memory(
    dataset: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and finished weights, bit for bit, the frozen ones as they were loaded; a run goes on from a
    state of the other kind."""
    wide = config(dataset, tmp_path / "wide", start)
    narrow = replace(wide, model=replace(wide.model, frozen_dtype="bfloat16"))
    losses, final, size = losses_of(wide, monkeypatch)
    first = config(dataset, tmp_path / "narrow", start, steps=2)
    losses_of(first, monkeypatch)
    rest, resumed, narrow_size = losses_of(replace(narrow, run=replace(first.run, max_steps=4)), monkeypatch)
    assert rest == losses
    assert final.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in final.items())
    assert not torch.equal(final[FROZEN], final[FROZEN].bfloat16().float())
    matrices = frozen_matrices(make_model(narrow.model, seed=0))
    assert FROZEN in matrices
    assert size - narrow_size == 2 * sum(p.numel() for p in matrices.values())
    state = load_state(tmp_path / "narrow", 4)
    assert {tensor.dtype for tensor in state["state_dict"].values()} == {torch.float32}
    assert state["frozen_sha256"] == frozen_fingerprint(make_model(wide.model, seed=0))
