"""Processes that train, for tests that kill them. They are forked from one that has imported everything, so that a
start takes little, and run what `seqtex train` runs."""

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import training.objective
from schemas.errors import UserError
from seqtex.cli.main import main
from tests.training.test_training import small_config
from training.config import TrainConfig
from training.loop.checkpoints import AtomicCheckpointIO, newest_state
from training.module import TextureModule
from training.train import train

SIZE = 16
"""Pixels of views and texels of maps: one token each."""
SECONDS = 900.0
"""After which a process counts as hanging; a slow machine needs minutes for a few hundred steps of two ranks."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.training_server"])


def minute_config(
    dataset: Path, run: Path, *, workers: int = 0, skip_budget: int = 0, **run_options: Any
) -> TrainConfig:
    """The tiny preset with one layer of 16, on two samples a step."""
    cfg = small_config(dataset, run, **({"threads": 1, "logger": "none"} | run_options))
    model = replace(cfg.model, num_layers=1, num_attention_heads=1, ffn_dim=32)
    data = replace(cfg.data, workers=workers, skip_budget=skip_budget)
    validation = replace(cfg.validation, every=0)
    return replace(cfg, model=model, data=data, validation=validation)


def record(path: Path, broken: range) -> None:
    """From here on every batch leaves a line in `path`: number, samples, what noise, what loss. Losses of the batches
    `broken` are no numbers."""
    real_step, real_draw, drawn = TextureModule.training_step, training.objective.draw, [""]

    def draw(*arguments: Any) -> Any:
        draws = real_draw(*arguments)
        parts = [*draws.noise, draws.level, draws.view_order, draws.drop_text]
        drawn[0] = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
        return draws

    def step(self: TextureModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        result = real_step(self, batch, batch_idx)
        line = [batch.number, [*zip(batch.samples, batch.uids, strict=True)], drawn[0], float(result["loss"])]
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result | {"loss": result["loss"] * float("nan")} if batch.number in broken else result

    TextureModule.training_step, training.objective.draw = step, draw  # type: ignore[method-assign,assignment]


def recorded(run: Path, rank: int = 0) -> list[list[Any]]:
    """Number, [sample, uid] pairs, noise and loss of every batch, in the order of work; the lines of a process that was
    killed while it wrote are left out."""
    path = seen_path(run, rank)
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def seen_path(run: Path, rank: int) -> Path:
    return run.with_name(f"{run.name}.seen{rank}")


def work(cfg: TrainConfig, env: dict[str, str], broken: range, command: list[str] | None) -> None:
    """Run `seqtex COMMAND`, or training by a configuration, in this process. Ends with the exit code of the command."""
    os.environ.update(env)
    os.setpgid(0, 0)  # as a shell starts a command: a signal to the group is for its readers of data, too
    multiprocessing.set_start_method("fork", force=True)  # for its loader, as in any other process
    run = cfg.run.directory
    sys.stderr = seen_path(run, 0).with_suffix(f".err{env.get('LOCAL_RANK', '0')}").open("a")
    record(seen_path(run, int(env.get("LOCAL_RANK", "0"))), broken)
    if command is not None:
        sys.exit(main(command))
    try:
        train(cfg)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        sys.exit(error.exit_code)


def told(run: Path, rank: int = 0) -> str:
    """Return the standard error of a process."""
    return seen_path(run, 0).with_suffix(f".err{rank}").read_text()


def start(
    cfg: TrainConfig, env: dict[str, str] | None = None, broken: range = range(0), command: list[str] | None = None
) -> BaseProcess:
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # for the server, which starts once
    process = SERVER.Process(target=work, args=(cfg, env or {}, broken, command))
    process.start()
    return process


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_ranks(cfg: TrainConfig, ranks: int, configs: list[TrainConfig] | None = None) -> list[BaseProcess]:
    """configs: one for each rank, where they differ."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    each = configs or [cfg] * ranks
    return [start(each[rank], shared | {"LOCAL_RANK": str(rank)}) for rank in range(ranks)]


def ended(*processes: BaseProcess) -> list[int | None]:
    """Exit codes; None for a process that hung, and was killed for it."""
    limit = time.monotonic() + SECONDS
    codes = []
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
        codes.append(process.exitcode)
    for process in processes:
        process.kill()
        process.join()
    return codes


def run_to_end(cfg: TrainConfig, **options: Any) -> None:
    process = start(cfg, **options)
    codes = ended(process)
    assert codes == [0], told(cfg.run.directory)


def steps_done(run: Path) -> int:
    """Lines in the loss log."""
    log = run / "losses.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def wait_until(is_so: Callable[[], bool], process: BaseProcess) -> bool:
    """Wait until a condition holds; return whether it did so while the process was alive."""
    limit = time.monotonic() + SECONDS
    while not is_so():
        if not process.is_alive() or time.monotonic() > limit:
            return False
        time.sleep(2e-4)
    return True


def last_state(run: Path) -> dict[str, Any]:
    """Return what decides how training goes on, of the newest trainer state that verifies."""
    path = newest_state(run / "states")
    assert path is not None
    state = AtomicCheckpointIO().load_checkpoint(path)
    names = ("state_dict", "optimizer_states", "global_step", "TextureDataModule")
    return {name: state[name] for name in names} | {"average": state["callbacks"]["AveragedWeights"]}


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(part)


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
