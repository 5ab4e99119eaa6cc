"""Four processes on this machine (gloo): groups of shards, states of which each rank writes its part, narrow gathers."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import training.arithmetic
import training.loop.checkpoints
from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.support.training_process import SERVER, SIZE, ended, free_port, minute_config, same
from training.config import TrainConfig
from training.cost import estimate
from training.data.mixture import ImageSizes
from training.loop.checkpoints import ShardedCheckpointIO, load_checkpoint, newest_state, read_state, verified
from training.loop.sharded_states import is_sharded, sum_path
from training.loop.strategies import bytes_needed, check_run
from training.model.files import CONFIG
from training.model.init import make_model
from training.model.weights import save_model
from training.module import TextureModule
from training.train import train

RANKS = 4


def config(dataset: Path, run: Path, **run_options: Any) -> TrainConfig:
    """Four samples a step, of both regimes, in steps that do not depend on the length of the run."""
    cfg = minute_config(dataset, run, **{"state_every": 2} | run_options)
    optimizer = replace(cfg.optimizer, muon_learning_rate=None, final_share=1.0, ema_decay=0.5)
    return replace(cfg, data=replace(cfg.data, batch_size=4), optimizer=optimizer)


def from_weights(cfg: TrainConfig, path: Path) -> TrainConfig:
    return replace(cfg, model=replace(cfg.model, start="seqtex", start_path=str(path)))


def highest(device_type: str) -> str:
    return "highest"


def gathered_bytes(counts: dict[str, int]) -> None:
    """From here on every all-gather of weights adds the bytes that it brings, by dtype."""
    real = torch.distributed.all_gather_into_tensor

    def gather(output_tensor: torch.Tensor, input_tensor: torch.Tensor, **options: Any) -> Any:
        name = str(output_tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + output_tensor.nbytes
        return real(output_tensor, input_tensor, **options)

    torch.distributed.all_gather_into_tensor = gather


def scenarios(dataset: Path, runs: Path, env: dict[str, str]) -> None:
    """Do what each rank does."""
    os.environ.update(env)
    rank = int(env["LOCAL_RANK"])
    torch.set_num_threads(1)
    training.arithmetic.float32_products = highest
    found: dict[str, Any] = {"hashed": []}
    real_sum = training.loop.checkpoints.verified
    training.loop.checkpoints.verified = lambda path: found["hashed"].append(path.name) or real_sum(path)
    # Rank 0 alone has weights to start from: the folder of the others has none.
    place = runs / ("start" if rank == 0 else "settings")
    counts: dict[str, int] = {}
    gathered_bytes(counts)

    def run(name: str, **options: Any) -> None:
        counts.clear()
        train(from_weights(config(dataset, runs / name, devices=RANKS, **options), place))
        found[name] = dict(counts)

    run("mixed", max_steps=2, strategy="fsdp", shard_size=2, state_format="sharded")
    run("mixed", max_steps=4, strategy="fsdp")
    training.arithmetic.fast_dtype = lambda device_type: torch.bfloat16
    run("narrow", max_steps=4, strategy="fsdp", precision="bfloat16")
    (runs / f"rank{rank}.json").write_text(json.dumps(found))
    training.arithmetic.fast_dtype = lambda device_type: torch.float32
    real_write = training.loop.checkpoints.write_state

    def write(plain: Any, tensors: Any, path: Path, group: Any) -> None:
        if path.name == "step-00000004.ckpt":
            (path.parent / ".step-00000004.ckpt.tmp").mkdir(exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        real_write(plain, tensors, path, group)

    training.loop.checkpoints.write_state = write
    run("killed", max_steps=6, strategy="fsdp", shard_size=2, state_format="sharded")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    entries = [(f"t{i}", Regime.TEXTURED) for i in range(5)] + [(f"m{i}", Regime.MV_ONLY) for i in range(4)]
    write_dataset(out, [entries], SIZE, SIZE)
    return out


@pytest.fixture(scope="module")
def start(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from, none of which is zero."""
    model = make_model(config(dataset, dataset).model, seed=1)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    path = tmp_path_factory.mktemp("start") / "model"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def alone(dataset: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.arithmetic, "float32_products", highest)
        train(from_weights(config(dataset, run, max_steps=6), start))
    return run


@pytest.fixture(scope="module")
def together(
    dataset: Path, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The runs of four processes, which end by being killed, and what each counted."""
    runs = tmp_path_factory.mktemp("together")
    shutil.copytree(start, runs / "start")
    (runs / "settings").mkdir()
    shutil.copy(start / CONFIG, runs / "settings")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(RANKS), "NODE_RANK": "0"}
    processes = [
        SERVER.Process(target=scenarios, args=(dataset, runs, shared | {"LOCAL_RANK": str(rank)}))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    assert ended(*processes) == [-signal.SIGKILL] * RANKS
    return runs, [json.loads((runs / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").open()]


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(path).model.state_dict().values()])


def test_groups_of_shards_train_as_one_process_does(alone: Path, together: tuple[Path, list[dict[str, Any]]]) -> None:
    runs, _ = together
    assert losses(runs / "mixed") == pytest.approx(losses(alone)[:4], rel=1e-5)
    saved = load_checkpoint(runs / "mixed" / "states" / "step-00000002.ckpt")
    print(saved.card)
