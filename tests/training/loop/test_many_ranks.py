"""Four processes on this machine (gloo): groups of shards, states that each rank writes its part of, narrow gathers."""

import json
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

import training.arithmetic
import training.loop.callbacks
import training.loop.states
from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.support.training_process import SERVER, SIZE, ended, free_port, minute_config, same
from training.config import TrainConfig, preset
from training.cost import estimate
from training.data.mixture import ImageSizes
from training.loop.checkpoints import load_checkpoint
from training.loop.states import ShardedCheckpointIO, is_sharded, newest_state, read_state, sum_path, verified
from training.loop.strategies import bytes_needed, check_run
from training.model.files import CONFIG
from training.model.init import make_model
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import save_model
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


def count_gathers(counts: dict[str, int]) -> None:
    """From here on every all-gather of weights adds the bytes that it brings, by dtype."""
    real = DefaultAllGather.__call__

    def gather(self: Any, output_tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        name = str(output_tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + output_tensor.nbytes
        return real(self, output_tensor, *arguments, **options)

    DefaultAllGather.__call__ = gather  # type: ignore[method-assign]


def damage(state: Path) -> None:
    """Turn one bit of a state's tensors over."""
    path = next(state.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def scenarios(dataset: Path, runs: Path, env: dict[str, str]) -> None:
    """Do what each rank does."""
    os.environ.update(env)
    rank = int(env["LOCAL_RANK"])
    torch.set_num_threads(1)
    training.arithmetic.float32_products = highest
    counts: dict[str, int] = {}
    hashed: list[str] = []
    count_gathers(counts)
    real_sum, real_write = training.loop.callbacks.verified, training.loop.states.write_state
    training.loop.callbacks.verified = lambda path: hashed.append(path.name) or real_sum(path)
    # Rank 0 alone has weights to start from: the folder of the others has none.
    place, found = runs / ("start" if rank == 0 else "settings"), {}

    def run(name: str, **options: Any) -> None:
        counts.clear()
        train(from_weights(config(dataset, runs / name, devices=RANKS, strategy="fsdp", **options), place))
        found[name] = dict(counts)

    run("mixed", max_steps=4, shard_size=2, state_format="sharded")
    if rank == 0:
        damage(runs / "mixed" / "states" / "step-00000004.ckpt")
    run("mixed", max_steps=6)
    training.arithmetic.fast_dtype = lambda device_type: torch.bfloat16
    run("narrow", max_steps=2, precision="bfloat16")
    training.arithmetic.fast_dtype = lambda device_type: torch.float32
    (runs / f"rank{rank}.json").write_text(json.dumps(found | {"hashed": hashed}))

    def write(plain: Any, tensors: Any, path: Path, group: Any) -> None:
        if path.name == "step-00000004.ckpt":
            (path.parent / ".step-00000004.ckpt.tmp").mkdir(exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        real_write(plain, tensors, path, group)

    training.loop.states.write_state = write
    cfg = config(dataset, runs / "killed", max_steps=6, devices=RANKS, strategy="ddp", state_format="sharded")
    train(from_weights(cfg, runs / "start"))


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
def together(dataset: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
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


def assert_close(run: Path, other: Path, start: Path) -> None:
    """Sums in another order: AdamW makes full steps of gradients that are nothing but rounding."""
    begin = torch.cat(
        [value.flatten() for value in SeqTexTransformer3DModel.from_pretrained(start).state_dict().values()]
    )
    found, expected = weights(run / "checkpoint"), weights(other / "checkpoint")
    assert (found - expected).norm() < 1e-3 * (expected - begin).norm()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_groups_of_shards_and_all_ranks_train_as_one_process_does(alone, together, start):
    """Two groups of two, then four; the state between them is in shards, and the newest one is damaged."""
    runs, _ = together
    assert losses(runs / "mixed") == pytest.approx(losses(alone), rel=1e-5)
    assert_close(runs / "mixed", alone, start)
    states = runs / "mixed" / "states"
    assert verified(states / "step-00000006.ckpt") and (states / "step-00000006.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rank_0_alone_reads_the_weights_and_verifies_the_states(together):
    """The folder of the other ranks has no weights."""
    runs, ranks = together
    assert not list((runs / "settings").glob("*.safetensors"))
    assert [rank["hashed"] for rank in ranks] == [["step-00000004.ckpt", "step-00000002.ckpt"], [], [], []]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_blocks_are_gathered_in_bfloat16_where_they_are_computed_in_it(alone, together):
    runs, ranks = together
    for rank in ranks:
        wide, narrow = rank["mixed"], rank["narrow"]
        assert wide.keys() == {"float32"} and narrow.keys() == {"float32", "bfloat16"}
        assert 2 * (narrow["float32"] + 2 * narrow["bfloat16"]) == wide["float32"], "two steps, and four"
    assert losses(runs / "narrow") == pytest.approx(losses(alone)[:2], rel=2**-8)
    saved = read_state(newest_state(runs / "narrow" / "states"))
    assert {tensor.dtype for tensor in saved["state_dict"].values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_while_it_saves_goes_on_from_the_state_before(alone, together, dataset, start):
    """On one process, in one file, from what four wrote."""
    runs, _ = together
    states = runs / "killed" / "states"
    assert newest_state(states) == states / "step-00000002.ckpt" and is_sharded(states / "step-00000002.ckpt")
    assert len(list((states / "step-00000002.ckpt").glob("shard-*"))) == RANKS
    assert list(states.glob(".step-*"))
    train(from_weights(config(dataset, runs / "killed", max_steps=6), runs / "start"))
    assert losses(runs / "killed") == pytest.approx(losses(alone), rel=1e-5)
    assert_close(runs / "killed", alone, start)
    assert not list(states.glob(".step-*"))


def test_one_process_resumes_from_shards_bit_for_bit(alone, dataset, start, tmp_path, monkeypatch):
    monkeypatch.setattr(training.arithmetic, "float32_products", highest)
    for steps, state_format in ((2, "sharded"), (4, "one_file"), (6, "sharded")):
        cfg = config(dataset, tmp_path, max_steps=steps, state_format=state_format)
        train(from_weights(cfg, start))
    assert losses(tmp_path) == losses(alone)
    found, expected = (read_state(newest_state(run / "states")) for run in (tmp_path, alone))
    names = ("state_dict", "optimizer_states", "lr_schedulers", "TextureDataModule", "frozen_sha256", "card")
    assert all(same(found[name], expected[name]) for name in names)
    assert same(found["callbacks"]["AveragedWeights"], expected["callbacks"]["AveragedWeights"])
    assert torch.equal(weights(newest_state(tmp_path / "states")), weights(alone / "checkpoint"))
    states = sorted(path.name for path in (tmp_path / "states").iterdir())
    assert states == [
        "step-00000004.ckpt",
        "step-00000004.ckpt.sha256",
        "step-00000006.ckpt",
        "step-00000006.ckpt.sha256",
    ]


def test_training_goes_on_while_a_state_is_written(tmp_path, monkeypatch):
    gate, real = threading.Event(), training.loop.states.write_state
    monkeypatch.setattr(training.loop.states, "write_state", lambda *given: gate.wait(60) and real(*given))
    io, weight = ShardedCheckpointIO(), torch.zeros(4)
    io.save_checkpoint({"step": 1, "weights": [weight, torch.tensor(7.0)]}, tmp_path / "step-00000001.ckpt")
    weight += 1
    assert newest_state(tmp_path) is None
    gate.set()
    io.save_checkpoint({"step": 2, "weights": [weight, torch.tensor(7.0)]}, tmp_path / "step-00000002.ckpt")
    assert newest_state(tmp_path) is not None, "the first one is there before the second one begins"
    io.teardown()
    for number in (1, 2):
        found = io.load_checkpoint(tmp_path / f"step-0000000{number}.ckpt")
        assert same(found, {"step": number, "weights": [torch.full((4,), number - 1.0), torch.tensor(7.0)]})


def test_a_state_in_shards_that_is_not_as_written_does_not_count(tmp_path):
    io = ShardedCheckpointIO()
    for number in (1, 2):
        io.save_checkpoint({"weights": torch.rand(50)}, tmp_path / f"step-0000000{number}.ckpt")
    io.teardown()
    old, new = tmp_path / "step-00000001.ckpt", tmp_path / "step-00000002.ckpt"
    assert newest_state(tmp_path) == new
    copy, text = shutil.copytree(new, tmp_path / "copy"), sum_path(new).read_text()

    def restored() -> None:
        shutil.rmtree(new)
        shutil.copytree(copy, new)
        sum_path(new).write_text(text)

    changes: list[Callable[[], object]] = [
        lambda: damage(new),
        lambda: next(new.glob("*.safetensors")).unlink(),
        lambda: (new / "shard-00009.safetensors").write_bytes(b""),
        lambda: (new / "trainer.pt").write_bytes(b""),
        lambda: sum_path(new).unlink(),
        lambda: sum_path(new).write_text(""),
        lambda: sum_path(new).write_text(text.splitlines()[0] + "\n"),
    ]
    for change in changes:
        change()
        assert not verified(new) and newest_state(tmp_path) == old
        restored()
        assert newest_state(tmp_path) == new
    damage(new)
    with pytest.raises(UserError, match=r"step-00000002.ckpt: damaged"):
        read_state(new)
    restored()
    next(new.glob("*.safetensors")).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"step-00000002.ckpt: no trainer state"):
        io.load_checkpoint(new)
    (new / "trainer.pt").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UserError, match=r"step-00000002.ckpt: no trainer state"):
        io.load_checkpoint(new)


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        HuggingFaceStorageWriter, "write_data", lambda *given: (_ for _ in ()).throw(OSError(28, "full"))
    )
    io = ShardedCheckpointIO()
    io.save_checkpoint({"weights": torch.zeros(3)}, tmp_path / "step-00000001.ckpt")
    with pytest.raises(UserError, match=r"step-00000001.ckpt: the trainer state cannot be written \(rank 0: .*full"):
        io.teardown()
    assert newest_state(tmp_path) is None


def test_groups_must_divide_the_ranks_and_decide_what_each_holds(dataset, tmp_path):
    full = preset("full")
    cost = estimate(full, ImageSizes(views=4, view_resolution=512, uv_resolution=1024))

    def with_run(**options: Any) -> TrainConfig:
        return replace(full, run=replace(full.run, **options))

    needs = [bytes_needed(with_run(shard_size=size, devices=16), cost, "fsdp", 16) for size in (0, 16, 8)]
    fixed = cost.memory["full"].fixed - cost.memory["full"].encoders
    assert needs[0] == needs[1] and needs[2] - needs[1] == fixed // 8 - fixed // 16
    for options in ({"strategy": "ddp", "shard_size": 2}, {"strategy": "fsdp", "shard_size": 3}):
        with pytest.raises(UsageError, match=r"run\.shard_size"):
            check_run(with_run(devices=4, **options))
    sharded = with_run(state_format="sharded")
    with pytest.raises(UsageError, match=r"optimizer\.eight_bit"):
        check_run(replace(sharded, optimizer=replace(sharded.optimizer, eight_bit=True)))
