"""Two processes on this machine (gloo) train as one does, with copies of the model and with shards of it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

import training.arithmetic
from schemas.errors import UsageError
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.training.test_training import small_config
from training.config import TrainConfig, preset
from training.cost import estimate
from training.data.mixture import ImageSizes
from training.loop.checkpoints import load_checkpoint
from training.loop.states import newest_state
from training.loop.strategies import choose
from training.model.init import make_model
from training.model.seqtex import SeqTexTransformer3DModel
from training.module import TextureModule
from training.train import train

REPO = Path(__file__).resolve().parents[3]
STEPS = 5
FULL = ImageSizes(views=4, view_resolution=512, uv_resolution=1024)
RANK = """
import os, sys
from pathlib import Path
from tests.training.loop.test_strategies import scenarios
scenarios(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def highest(device_type: str) -> str:
    """The precision of float32 layers with which sums in another order stay close."""
    return "highest"


@pytest.fixture(scope="module", autouse=True)
def exact_products() -> Iterator[None]:
    """Batches of other shapes round otherwise where a processor has bfloat16 products."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.arithmetic, "float32_products", highest)
        yield


def config(dataset: Path, run: Path, **run_options: Any) -> TrainConfig:
    """Four samples a step, of both regimes; AdamW, which shards may have."""
    cfg = small_config(dataset, run, **{"max_steps": STEPS, "state_every": 100, "logger": "none"} | run_options)
    optimizer = replace(cfg.optimizer, muon_learning_rate=None, final_share=1.0, ema_decay=0.5, uv_factor=2.0)
    return replace(cfg, data=replace(cfg.data, batch_size=4), optimizer=optimizer)


def unforgiving(cfg: TrainConfig) -> TrainConfig:
    """Goes back at the first loss that is no number."""
    return replace(cfg, optimizer=replace(cfg.optimizer, skip_budget=0))


def recorded(cfg: TrainConfig, stop_at: int = 0, broken: int | None = None) -> list[list[Any]]:
    """Trains; the number and samples of every batch that this process saw. stop_at: batch in which it is killed.
    broken: batch whose loss is no number, on the rank that has its first sample."""
    seen: list[list[Any]] = []
    real = TextureModule.training_step

    def step(self: TextureModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        if stop_at and batch.number == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append([batch.number, list(batch.uids), list(batch.samples)])
        result = real(self, batch, batch_idx)
        is_bad = batch.number == broken and batch.samples[0] % 4 == 0
        return result | {"loss": result["loss"] * float("nan")} if is_bad else result

    TextureModule.training_step = step  # type: ignore[method-assign]
    try:
        train(cfg)
    finally:
        TextureModule.training_step = real  # type: ignore[method-assign]
    return seen


def scenarios(dataset: Path, runs: Path) -> None:
    """The work of each of the two ranks. Blocks are compiled without a compiler of the machine's code."""
    from torch._dynamo.utils import counters

    rank = os.environ["LOCAL_RANK"]
    torch.set_num_threads(1)
    training.arithmetic.float32_products = highest
    two = {"devices": 2}
    found = {}
    for name in ("ddp", "fsdp"):
        found[name] = recorded(config(dataset, runs / name, **two, strategy=name, accumulate_grad_batches=2))
        for part in (2, 4):
            found[f"{name} {part}"] = recorded(
                config(dataset, runs / f"{name}_parts", **two, strategy=name, max_steps=part, state_every=2)
            )
    found["elastic"] = recorded(config(dataset, runs / "elastic", **two, strategy="fsdp", max_steps=4, state_every=2))
    compile_blocks = SeqTexTransformer3DModel.compile_repeated_blocks
    SeqTexTransformer3DModel.compile_repeated_blocks = partialmethod(compile_blocks, backend="aot_eager")
    for name in ("ddp", "fsdp"):
        torch._dynamo.reset()
        counters.clear()
        cfg = config(dataset, runs / f"{name}_compiled", **two, strategy=name, precision="bfloat16", max_steps=3)
        recorded(replace(cfg, model=replace(cfg.model, activation_checkpointing="full", compile_blocks=True)))
        found[f"{name} graphs"] = counters["stats"]["unique_graphs"]
    found["broken"] = recorded(unforgiving(config(dataset, runs / "broken", **two, state_every=1)), broken=2)
    (runs / f"rank{rank}.json").write_text(json.dumps(found))
    recorded(config(dataset, runs / "killed", **two, state_every=2), stop_at=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    entries = [(f"t{i}", Regime.TEXTURED) for i in range(5)] + [(f"m{i}", Regime.MV_ONLY) for i in range(4)]
    write_dataset(out, [entries])
    return out


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Any]]]:
    """The run of one process, and what it saw."""
    run = tmp_path_factory.mktemp("alone")
    return run, recorded(config(dataset, run))


@pytest.fixture(scope="module")
def together(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The runs of two processes, and what each saw. They end by being killed."""
    runs = tmp_path_factory.mktemp("together")
    recorded(config(dataset, runs / "elastic", max_steps=2, state_every=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
              "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(dataset), str(runs)],
            env=os.environ | shared | {"LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=250)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [-signal.SIGKILL] * 2, "\n".join(errors)
    return runs, [json.loads((runs / f"rank{rank}.json").read_text()) for rank in range(2)]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").open()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run / "checkpoint").model.state_dict())


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Sums in another order. Single weights may stray farther, all together hardly: AdamW makes full steps of gradients
    that are nothing but rounding."""
    assert found.keys() == expected.keys()
    start = make_model(config(Path(), Path()).model, seed=0).state_dict()
    moved = torch.cat([(value - start[name]).flatten() for name, value in expected.items()]).norm()
    gap = torch.cat([(found[name] - value).flatten() for name, value in expected.items()]).norm()
    assert gap < 1e-4 * moved


def by_batch(seen: list[list[list[Any]]]) -> dict[int, list[tuple[int, str]]]:
    """(sample number, uid) of every global batch, in the order of the stream."""
    batches: dict[int, set[tuple[int, str]]] = {}
    for number, uids, samples in (entry for of_rank in seen for entry in of_rank):
        batches.setdefault(number, set()).update(zip(samples, uids, strict=True))
    return {number: sorted(pairs) for number, pairs in sorted(batches.items())}


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_process_does(alone, together, name):
    run, seen = alone
    runs, ranks = together
    assert losses(runs / name) == pytest.approx(losses(run), rel=1e-5)
    assert_close(weights(runs / name), weights(run))
    assert by_batch([rank[name] for rank in ranks]) == by_batch([seen])
    assert all(len(rank[name]) == 2 * STEPS for rank in ranks), "two turns a step"
    regimes = {json.loads(line)["regime"] for line in (run / "losses.jsonl").open()}
    assert regimes == {"textured", "mv_only"}, "a batch without the UV branch is among them"


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_state_of_two_ranks_goes_on_with_two_or_one(alone, together, dataset, name):
    run, _ = alone
    runs, _ = together
    train(config(dataset, runs / f"{name}_parts"))
    assert losses(runs / f"{name}_parts") == pytest.approx(losses(run), rel=1e-5)
    assert_close(weights(runs / f"{name}_parts"), weights(run))


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_compiled_blocks_train_alike_on_two_ranks(together, dataset, tmp_path, name):
    """The way of preset `full`: bfloat16, blocks compiled and computed again. Equal to within bfloat16's rounding, by
    one graph for all blocks where there is a UV map and one where there is none."""
    runs, ranks = together
    train(config(dataset, tmp_path, precision="bfloat16", max_steps=3))
    assert losses(runs / f"{name}_compiled") == pytest.approx(losses(tmp_path), rel=2**-8)
    assert [rank[f"{name} graphs"] for rank in ranks] == [2, 2]


def test_one_rank_then_two_then_one_see_the_same_stream(alone, together, dataset):
    run, seen = alone
    runs, ranks = together
    last = recorded(config(dataset, runs / "elastic"))
    expected = by_batch([seen])
    assert by_batch([rank["elastic"] for rank in ranks]) == {number: expected[number] for number in (2, 3)}
    assert by_batch([last]) == {4: expected[4]}
    assert losses(runs / "elastic") == pytest.approx(losses(run), rel=1e-5)


def test_a_killed_run_of_two_ranks_is_resumed(alone, together, dataset):
    run, _ = alone
    runs, _ = together
    assert newest_state(runs / "killed" / "states") == runs / "killed" / "states" / "step-00000002.ckpt"
    assert not (runs / "killed" / "checkpoint").exists()
    train(config(dataset, runs / "killed"))
    assert_close(weights(runs / "killed"), weights(run))


def test_two_ranks_go_back_together_when_one_of_them_breaks(together, dataset, tmp_path):
    runs, ranks = together
    seen = recorded(unforgiving(config(dataset, tmp_path, state_every=1)), broken=2)
    assert [number for number, _, _ in seen] == [0, 1, 2, 3, 4, 5], "behind what broke the run"
    assert by_batch([rank["broken"] for rank in ranks]) == by_batch([seen])
    assert losses(runs / "broken") == pytest.approx(losses(tmp_path), rel=1e-5)
    assert_close(weights(runs / "broken"), weights(tmp_path))


def test_a_batch_in_parts_is_the_same_batch(alone, dataset, tmp_path):
    """Also where a run changes the number of parts on its way."""
    run, seen = alone
    recorded(config(dataset, tmp_path, accumulate_grad_batches=2, max_steps=3, state_every=3))
    rest = recorded(config(dataset, tmp_path, accumulate_grad_batches=4))
    assert [number for number, _, _ in rest] == [3] * 4 + [4] * 4
    assert by_batch([rest]) == {number: by_batch([seen])[number] for number in (3, 4)}
    assert losses(tmp_path) == pytest.approx(losses(run), rel=1e-5)
    assert_close(weights(tmp_path), weights(run))


def test_the_choice_follows_devices_and_memory():
    full = preset("full")

    def chosen(gpu_gb: int | None, **options: Any) -> str:
        cfg = replace(full, run=replace(full.run, **options))
        return choose(cfg, estimate(cfg, FULL), None if gpu_gb is None else int(gpu_gb * 1e9)).name

    assert chosen(80) == "single"
    assert chosen(141, devices=8) == "ddp"
    assert chosen(48, devices=8) == "fsdp"
    assert chosen(48, devices=8, strategy="ddp") == "ddp"
    assert chosen(None, devices=2) == "ddp"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "single", "devices": 2}, "one device"),
        ({"strategy": "fsdp"}, "run.devices"),
        ({"strategy": "fsdp", "devices": 2}, "muon_learning_rate"),
        ({"accumulate_grad_batches": 3}, "multiple of 3"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, message, tmp_path, dataset):
    tiny = preset("tiny")
    cfg = replace(
        tiny, data=replace(tiny.data, directory=dataset), run=replace(tiny.run, directory=tmp_path, **options)
    )
    with pytest.raises(UsageError, match=message):
        train(cfg)


def test_latents_that_need_a_gpu_are_not_kept_by_readers(tmp_path, dataset):
    cfg = config(dataset, tmp_path)
    with pytest.raises(UsageError, match=r"seqtex encode.*data\.latents"):
        train(replace(cfg, latents=replace(cfg.latents, codec="wan", codec_path="wan")))
    assert not preset("full").data.keep_latents
