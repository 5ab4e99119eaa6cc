"""Promises 21 to 25 of the fault matrix: training that is killed, stopped, poisoned, moved to other ranks or fed with
bad data goes on as if nothing had been. Processes are real, and so is the SIGKILL."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from schemas.dataset import shard_path
from schemas.sample import Regime
from tests.support.small_dataset import write_dataset
from tests.support.training_process import (
    SIZE,
    ended,
    last_state,
    minute_config,
    recorded,
    run_to_end,
    same,
    seen_path,
    start,
    start_ranks,
    steps_done,
    tensors_of,
    told,
    wait_until,
)
from training.config import TrainConfig
from training.data.datamodule import BatchStream
from training.diffusion.tasks import TaskConfig
from training.loop.callbacks import read_losses
from training.loop.checkpoints import load_checkpoint, newest_state, trainer_states, verified

STEPS = 14
COMMAND = [
    "train", "--preset", "tiny", "--run.threads", "1", "--run.logger", "none", "--validation.every", "0",
    "--data.batch_size", "2", "--data.mv_only_ratio", "0.4", "--model.num_layers", "1",
    "--model.num_attention_heads", "1", "--model.attention_head_dim", "16", "--model.ffn_dim", "32",
]  # fmt: skip
"""`minute_config` on the command line."""

pytestmark = pytest.mark.slow


def textured(prefix: str, count: int) -> list[tuple[str, Regime]]:
    return [(f"{prefix}{i}", Regime.TEXTURED) for i in range(count)]


def mv_only(prefix: str, count: int) -> list[tuple[str, Regime]]:
    return [(f"{prefix}m{i}", Regime.MV_ONLY) for i in range(count)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [textured("a", 3) + mv_only("a", 2), textured("b", 2) + mv_only("b", 1)], SIZE, SIZE)
    return out


def config(dataset: Path, run: Path, **options: Any) -> TrainConfig:
    return minute_config(dataset, run, **({"max_steps": STEPS, "state_every": 3} | options))


def is_equal(run: Path, whole: Path) -> bool:
    """Every batch that was ever worked on has the samples, noise and loss that it has in the whole run, none is left
    out, and what was learnt is the same to the last bit."""
    expected = {entry[0]: entry for entry in recorded(whole)}
    seen = recorded(run)
    finished = load_checkpoint(run / "checkpoint").model.state_dict()
    return (
        all(entry == expected[entry[0]] for entry in seen)
        and {entry[0] for entry in seen} == expected.keys()
        and [row["loss"] for row in read_losses(run / "losses.jsonl")]
        == [row["loss"] for row in read_losses(whole / "losses.jsonl")]
        and same(last_state(run), last_state(whole))
        and same(dict(finished), dict(load_checkpoint(whole / "checkpoint").model.state_dict()))
    )


def interrupted(cfg: TrainConfig, step: int, number: signal.Signals, rng: np.random.Generator, **options: Any) -> int:
    """Trains until a random moment within two steps after `step` and sends a signal; the exit code. A run that was over
    before is made anew: nothing interrupted it."""
    run = cfg.run.directory
    while True:
        process = start(cfg, **options)
        assert wait_until(lambda: steps_done(run) >= step, process), told(run)
        time.sleep(float(rng.uniform(0, 2)) * read_losses(run / "losses.jsonl")[-1]["seconds"] / step)
        with contextlib.suppress(ProcessLookupError):
            (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
        (code,) = ended(process)
        assert code is not None, f"hangs: {told(run)}"
        # after the end of a run, when its handlers are gone, a signal ends the process
        ignored = number != signal.SIGKILL and "stopped by" not in told(run)
        over = not code or (ignored and (run / "checkpoint").exists())
        if not over:
            return code
        shutil.rmtree(run)
        seen_path(run, 0).unlink()


@pytest.mark.trust(21)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_to_the_same_bits(dataset: Path, tmp_path: Path, trust: Any, workers: int) -> None:
    """Killed once at a random moment behind each of so many random steps."""
    whole = tmp_path / "whole"
    run_to_end(config(dataset, whole, workers=workers))
    rng, held, runs = trust.rng(), 0, trust.count(full=20, short=1)
    for case in range(runs):
        cfg = config(dataset, tmp_path / f"run{case}", workers=workers)
        code = interrupted(cfg, int(rng.integers(1, STEPS - 4)), signal.SIGKILL, rng)
        run_to_end(cfg)
        held += code == -signal.SIGKILL and is_equal(cfg.run.directory, whole)
    trust.held(held, runs)
    assert held == runs


@pytest.mark.trust(22)
def test_one_then_two_then_one_ranks_see_the_same_samples(dataset: Path, tmp_path: Path, trust: Any) -> None:
    run_to_end(config(dataset, tmp_path / "whole"))
    expected = {number: sorted(pairs) for number, pairs, _, _ in recorded(tmp_path / "whole")}
    rng, held, runs = trust.rng(), 0, trust.count(full=10, short=1)
    for case in range(runs):
        first, second = sorted(rng.choice(np.arange(2, STEPS - 1), 2, replace=False).tolist())
        run = tmp_path / f"run{case}"
        workers = int(rng.choice([0, 2]))
        codes = []
        for ranks, stop in ((1, first), (2, second), (1, STEPS)):
            cfg = config(dataset, run, workers=workers, max_steps=stop, state_every=stop, devices=ranks)
            codes += ended(*(start_ranks(cfg, ranks) if ranks > 1 else [start(cfg)]))
        seen: dict[int, list[Any]] = {}
        for entry in recorded(run) + recorded(run, rank=1):
            seen.setdefault(entry[0], []).extend(entry[1])
        alone = {entry[0] for entry in recorded(run, rank=1)}
        held += (
            codes == [0] * 4
            and alone == set(range(first, second))
            and {number: sorted(pairs) for number, pairs in seen.items()} == expected
        )
    trust.held(held, runs)
    assert held == runs


@pytest.fixture(params=["memory", "disk"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder to save in, and one for temporary files that is on another file system: memory and disk, or the other
    way round."""
    memory = Path("/dev/shm") / f"seqtex-{os.getpid()}-{random.getrandbits(32):08x}"
    try:
        memory.mkdir()
    except OSError:
        pytest.skip("no file system in memory (/dev/shm)")
    try:
        if memory.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("temporary files are in memory, too")
        yield (memory, tmp_path) if request.param == "memory" else (tmp_path, memory)
    finally:
        shutil.rmtree(memory)


@pytest.mark.trust(23)
def test_a_run_killed_while_it_saves_has_a_state_that_loads(
    dataset: Path, elsewhere: tuple[Path, Path], trust: Any
) -> None:
    """Only those kills count that left a half-saved state behind."""
    target, temporary = elsewhere
    cfg = config(dataset, target / "run", max_steps=1_000_000, state_every=1)
    states, rng = cfg.run.directory / "states", trust.rng()
    held, runs, newest, kills = 0, trust.count(full=25, short=2), 0, 0
    while runs > held and kills < 20 * runs:
        process = start(cfg, env={"TMPDIR": str(temporary)})
        begun = steps_done(cfg.run.directory) + 1 + int(rng.integers(0, 4))
        assert wait_until(lambda begun=begun: steps_done(cfg.run.directory) > begun, process), told(cfg.run.directory)
        wait_until(lambda: next(states.glob(".*.tmp"), None) is not None, process)
        time.sleep(float(rng.uniform(0, 4e-3)))
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == [-signal.SIGKILL]
        kills += 1
        before, state = newest, last_state(cfg.run.directory)
        newest = state["global_step"]
        assert newest >= max(before, steps_done(cfg.run.directory) - 1), "no more than the step at work is lost"
        assert all(torch.isfinite(tensor).all() for tensor in tensors_of(state["state_dict"]))
        is_half = any(states.glob(".*.tmp")) or any(not verified(path) for path in trainer_states(states))
        held += is_half
    trust.held(held, runs)
    assert held == runs, f"{kills} kills"


@pytest.mark.trust(24)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_at_the_end_of_a_batch_and_the_run_goes_on(
    dataset: Path, tmp_path: Path, trust: Any, name: str
) -> None:
    """`seqtex train` itself, and its exit code; the signal reaches its readers of data, too."""
    whole = config(dataset, tmp_path / "whole")
    run_to_end(whole)
    rng, held, runs = trust.rng(), 0, trust.count(full=10, short=1)
    expected = 130 if name == "SIGINT" else 75
    for case in range(runs):
        cfg = config(dataset, tmp_path / f"run{case}")
        run = cfg.run.directory
        options = {"data.directory": dataset, "run.directory": run, "run.max_steps": STEPS, "run.state_every": 100}
        command = COMMAND + [word for option, value in options.items() for word in (f"--{option}", str(value))]
        command += ["--data.workers", str(rng.choice([0, 2]))]
        step = int(rng.integers(1, STEPS - 4))
        code = interrupted(cfg, step, getattr(signal, name), rng, command=command)
        stopped, done = newest_state(run / "states"), steps_done(run)
        is_boundary = stopped is not None and stopped.name == f"step-{done:08d}.ckpt" and step <= done
        is_unfinished = not (run / "checkpoint").exists() and f"stopped by {name} after step {done}" in told(run)
        run_to_end(cfg)
        held += code == expected and is_boundary and is_unfinished and is_equal(run, whole.run.directory)
    trust.held(held, runs)
    assert held == runs


def with_budget(cfg: TrainConfig, skip_budget: int) -> TrainConfig:
    return replace(cfg, optimizer=replace(cfg.optimizer, skip_budget=skip_budget))


def is_finite(run: Path) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in tensors_of(last_state(run)))


@pytest.mark.trust(24)
def test_gradients_that_are_no_numbers_never_reach_a_weight(dataset: Path, tmp_path: Path, trust: Any) -> None:
    """Some within the budget, with a kill in between; then too many, until the run gives up and is tried again."""
    run_to_end(config(dataset, tmp_path / "sound"))
    rng, held, runs = trust.rng(), 0, trust.count(full=10, short=1)
    for case in range(runs):
        first = int(rng.integers(2, STEPS - 5))
        broken = range(first, first + int(rng.integers(1, 4)))
        whole, run = (with_budget(config(dataset, tmp_path / f"{name}{case}"), 3) for name in ("whole", "run"))
        run_to_end(whole, broken=broken)
        code = interrupted(run, first + 1, signal.SIGKILL, rng, broken=broken)
        run_to_end(run, broken=broken)
        lost = [row["step"] for row in read_losses(run.run.directory / "losses.jsonl") if row["loss"] is None]
        passed = code == -signal.SIGKILL and is_equal(run.run.directory, whole.run.directory)
        passed = passed and lost == [number + 1 for number in broken] and is_finite(run.run.directory)

        hopeless = with_budget(config(dataset, tmp_path / f"hopeless{case}"), 0)
        place = hopeless.run.directory
        codes = ended(start(hopeless, broken=range(max(first, 4), 10**6)))
        passed = passed and codes == [65] and "lower optimizer.learning_rate" in told(place)
        passed = passed and is_finite(place) and not (place / "checkpoint").exists()
        seen_path(place, 0).unlink()
        state = last_state(place)["global_step"]
        run_to_end(hopeless)
        sound = {entry[0]: entry for entry in recorded(tmp_path / "sound")}
        passed = passed and recorded(place) == [sound[number] for number in range(state, STEPS)]
        held += passed and same(last_state(place), last_state(tmp_path / "sound"))
    trust.held(held, runs)
    assert held == runs


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three shards of which one is corrupt, and a dataset so small that it is read again and again."""
    root = tmp_path_factory.mktemp("uneven")
    write_dataset(root / "large", [textured("x", 40), textured("y", 40), textured("z", 40)], SIZE, SIZE)
    flip_a_bit(shard_path(root / "large", "textured-000001.tar"))
    write_dataset(root / "small", [textured("s", 3) + mv_only("s", 2)], SIZE, SIZE)
    return root / "large", root / "small"


@pytest.mark.trust(25)
def test_uneven_data_trains_two_ranks_evenly(uneven: tuple[Path, Path], tmp_path: Path, trust: Any) -> None:
    rng, held, runs, steps = trust.rng(), 0, trust.count(full=8, short=1), trust.count(full=250, short=60)
    drawn: Counter[tuple[str, str]] = Counter()
    for case in range(runs):
        options = {"max_steps": steps, "state_every": steps, "devices": 2, "seed": int(rng.integers(2**31))}
        cfg = config(uneven[0], tmp_path / f"run{case}", skip_budget=1, workers=int(rng.choice([0, 2])), **options)
        weights = dict(zip(map(str, uneven), (0.9, 0.1), strict=True))
        data = replace(cfg.data, directories=weights, batch_size=4, mv_only_ratio=0.3)
        cfg = replace(cfg, data=data, tasks=TaskConfig())
        run = cfg.run.directory
        codes = ended(*start_ranks(cfg, 2))
        seen = [recorded(run, rank) for rank in range(2)]
        uids = Counter(uid for of_rank in seen for entry in of_rank for _, uid in entry[1])
        drawn.update((row["regime"], row["task"]) for row in read_losses(run / "losses.jsonl"))
        held += (
            codes == [0, 0]
            and [[entry[0] for entry in of_rank] for of_rank in seen] == [list(range(steps))] * 2
            and not any(uid[0] == "y" for uid in uids)
            and min(uids["sm0"], uids["sm1"]) > 1
            and sum(uids.values()) == 4 * steps
            and "textured-000001.tar" in told(run)
        )
    expected = {
        (str(regime), task): share * weight
        for regime, share in ((Regime.TEXTURED, 0.7), (Regime.MV_ONLY, 0.3))
        for task, weight in TaskConfig().weights(regime).items()
    }
    assert drawn.keys() <= expected.keys()
    total = drawn.total()
    likely = chisquare([drawn[cell] for cell in expected], [total * share for share in expected.values()]).pvalue
    trust.held(held * (likely > 0.01), runs)
    assert held == runs
    assert likely > 0.01, "regimes and tasks lie in the 99 % interval"


@pytest.fixture(scope="module")
def two_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shards of two samples, two of them corrupt."""
    out = tmp_path_factory.mktemp("two_bad")
    write_dataset(out, [textured(letter, 2) for letter in "abcdefgh"], SIZE, SIZE)
    for number in (2, 5):
        flip_a_bit(shard_path(out, f"textured-{number:06d}.tar"))
    return out


def met_at(cfg: TrainConfig, rank: int) -> dict[str, int]:
    """Return the number of the batch in which a rank of two first meets each bad shard, by name."""
    stream = BatchStream(cfg.data, seed=cfg.run.seed, rank=rank, ranks=2)
    found: dict[str, int] = {}
    for number in range(16):
        for name in stream[number].skipped:
            found.setdefault(name, number)
    return found


@pytest.mark.trust(25)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_budget_for_bad_shards_is_that_of_all_ranks(
    two_bad: Path, tmp_path: Path, trust: Any, workers: int
) -> None:
    """Both ranks stop at the same batch and with the same words once they have met too many together, though neither
    has alone; with one more allowed, both go on."""
    rng, held, runs = trust.rng(), 0, trust.count(full=5, short=1)
    for case in range(runs):
        options = {"workers": workers, "max_steps": 16, "devices": 2}
        while True:
            cfg = config(two_bad, tmp_path / f"run{case}", skip_budget=2, seed=int(rng.integers(2**31)), **options)
            ranks = [met_at(cfg, rank) for rank in range(2)]
            together = max(min(met.get(name, 99) for met in ranks) for name in ranks[0] | ranks[1])
            alone = [max(met.values()) if len(met) == 2 else 99 for met in ranks]
            if 2 < together < min(alone):
                break
        run = cfg.run.directory
        within = ended(*start_ranks(cfg, 2)) == [0, 0] and steps_done(run) == 16
        shutil.rmtree(run)
        cfg = config(two_bad, run, skip_budget=1, seed=cfg.run.seed, **options)
        for rank in range(2):
            seen_path(run, rank).unlink()
        codes = ended(*start_ranks(cfg, 2))
        said = [told(run, rank).splitlines()[-1] for rank in range(2)]
        seen = [len(recorded(run, rank)) for rank in range(2)]
        held += (
            within
            and codes == [1, 1]
            and said[0] == said[1]
            and "shards skipped: 2, more than data.skip_budget, 1" in said[0]
            and seen[0] == seen[1] <= together
        )
    trust.held(held, runs)
    assert held == runs
