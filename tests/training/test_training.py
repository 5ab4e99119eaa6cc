import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import UsageError, UserError
from schemas.sample import Regime
from tests.support.small_dataset import UV_SIZE, VIEW_SIZE, write_dataset
from training.config import TrainConfig, preset
from training.data.batch import Batch, LatentBatch, encode_batch
from training.data.datamodule import BatchStream
from training.diffusion.encoders import DctCodec
from training.diffusion.flow import FlowConfig, draw
from training.diffusion.tasks import TASKS, given_views
from training.loop.checkpoints import CARD, load_checkpoint, read_card
from training.loop.signals import Diverged
from training.loop.states import AtomicCheckpointIO, newest_state, verified
from training.module import TextureModule
from training.train import TrainResult, train

WORKER = """
import json, os, signal, sys
from pathlib import Path
from tests.training.test_training import small_config
from training.train import train
dataset, run, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def report(row):
    if row["step"] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
train(small_config(dataset, run, max_steps=6, state_every=3), report)
"""


def small_config(dataset: Path, run: Path, **run_options: object) -> TrainConfig:
    """The tiny preset at a quarter of its width."""
    tiny = preset("tiny")
    return replace(
        tiny,
        data=replace(tiny.data, directory=dataset, batch_size=2, mv_only_ratio=0.4),
        model=replace(tiny.model, num_layers=2, num_attention_heads=2, attention_head_dim=16, ffn_dim=64),
        run=replace(tiny.run, directory=run, **run_options),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    entries = [(f"t{i}", Regime.TEXTURED) for i in range(3)] + [(f"m{i}", Regime.MV_ONLY) for i in range(2)]
    write_dataset(out, [entries])
    return out


def is_uv_parameter(name: str) -> bool:
    return any(part in name for part in ("attnuv", "ffnuv", "normuv2", "scale_shift_table_uv"))


def test_multi_view_only_batches_leave_the_uv_branch_alone(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path)
    module = TextureModule.of(cfg)
    torch.nn.init.normal_(module.model.proj_out.weight, std=0.1)  # at zero it would pass no gradient on
    stream = BatchStream(cfg.data, seed=0, tasks=cfg.tasks, images=("hint",))
    seen = set()
    for number in range(8):
        batch = encode_batch(stream[number], DctCodec())
        module.zero_grad()
        result = module.training_step(batch, 0)
        result["loss"].backward()
        reached = {n for n, p in module.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        if batch.regime is Regime.MV_ONLY:
            assert not any(is_uv_parameter(name) for name in reached)
            assert all(p.grad is None for n, p in module.model.named_parameters() if is_uv_parameter(n))
            assert "loss_uv" not in result
        elif result["task"] == "img2tex":
            assert "blocks.0.attnuv.to_q.weight" in reached
            assert "scale_shift_table_uv" in reached
        assert "blocks.0.attn1.to_q.weight" in reached
        seen.add((batch.regime, result["task"]))
    assert {(Regime.MV_ONLY, "geo2mv"), (Regime.TEXTURED, "img2tex")} <= seen


@pytest.mark.parametrize(("task", "given"), [("img2tex", {1}), ("some2tex", {2, 3})])
def test_the_loss_does_not_look_at_condition_frames(dataset: Path, tmp_path: Path, task: str, given: set[int]) -> None:
    """A frame's own prediction enters the loss only if it is generated: the given views' never does."""
    cfg = small_config(dataset, tmp_path)
    cfg = replace(cfg, tasks=replace(cfg.tasks, textured={task: 1.0}))
    module = TextureModule.of(cfg)
    stream = BatchStream(cfg.data, seed=0, tasks=cfg.tasks, images=("hint",))
    number = next(n for n in range(50) if stream.schedule(n)[0] is Regime.TEXTURED)
    flows: list[torch.Tensor] = []
    levels: list[torch.Tensor] = []

    def watch(mv: torch.Tensor, uv: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> tuple:
        flows.extend(torch.zeros(x.shape[0], 16, *x.shape[2:], requires_grad=True) for x in (mv, uv))
        levels.append(timestep)
        return tuple(flows)

    module.model.forward = watch
    module.training_step(encode_batch(stream[number], DctCodec()), 0)["loss"].backward()
    reached = torch.cat([f.grad.abs().amax(dim=(1, 3, 4)) > 0 for f in flows], dim=1)
    is_condition = torch.isclose(levels[0], torch.tensor(70.7547))
    assert set(is_condition.sum(dim=1).tolist()) <= given
    assert torch.equal(reached, ~is_condition)


def test_the_loss_of_some2tex_is_that_of_the_unsplit_batch(dataset: Path, tmp_path: Path) -> None:
    """Its samples generate one or two views: parts of a batch weigh by what they generate, whoever computes them."""
    cfg = small_config(dataset, tmp_path)
    cfg = replace(cfg, tasks=replace(cfg.tasks, textured={"some2tex": 1.0}), data=replace(cfg.data, batch_size=8))
    module = TextureModule.of(cfg)
    torch.nn.init.normal_(module.model.proj_out.weight, std=0.1)
    options: dict[str, Any] = {"seed": 0, "tasks": cfg.tasks, "images": ("hint",)}
    whole = BatchStream(cfg.data, **options)
    number = next(n for n in range(50) if whole.schedule(n)[0] is Regime.TEXTURED)
    split = [BatchStream(cfg.data, rank=rank, ranks=4, **options)[number] for rank in range(4)]
    order = [draw(0, part.samples, [(16, 4, 4, 4)]).view_order for part in (*split, whole[number])]
    counts = [int((~given_views(TASKS["some2tex"], one)).sum()) for one in order]
    assert len(set(counts[:4])) > 1 and sum(counts[:4]) == counts[4], "a mean of means would be another"

    def loss_mv(batch: Batch) -> float:
        return float(module.training_step(encode_batch(batch, DctCodec()), 0)["loss_mv"])

    with torch.no_grad():
        losses, expected = [loss_mv(part) for part in split], loss_mv(whole[number])
    assert sum(losses) / 4 == pytest.approx(expected, rel=1e-5)
    own = [loss * counts[4] / 4 / count for loss, count in zip(losses, counts, strict=False)]
    assert sum(own) / 4 != pytest.approx(expected, rel=1e-3), "the mean of the parts' own means"


def test_uv_maps_are_encoded_for_the_tasks_that_need_them(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path)
    stream = BatchStream(cfg.data, seed=0, images=("hint",))
    number = next(n for n in range(50) if stream.schedule(n)[0] is Regime.TEXTURED)

    class Watched(DctCodec):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            frames.append(images.shape[1])
            return super().encode(images)

    for task, encoded in (("geo2mv", {4}), ("img2tex", {1, 4})):
        frames: list[int] = []
        module = TextureModule.of(replace(cfg, tasks=replace(cfg.tasks, textured={task: 1.0})))
        module.codec = Watched()
        module.training_step(stream[number], 0)
        assert set(frames) == encoded


@pytest.mark.parametrize("task", ["img2tex", "some2tex", "mv2tex"])
def test_a_model_is_trained_without_the_views_that_are_dropped(dataset: Path, tmp_path: Path, task: str) -> None:
    cfg = small_config(dataset, tmp_path)
    cfg = replace(cfg, tasks=replace(cfg.tasks, textured={task: 1.0}))
    module = TextureModule.of(cfg)
    stream = BatchStream(cfg.data, seed=0, tasks=cfg.tasks, images=("hint",))
    number = next(n for n in range(50) if stream.schedule(n)[0] is Regime.TEXTURED)
    batch = encode_batch(stream[number], DctCodec())
    assert batch.uv is not None and batch.mv.conditions["hint"].any()
    inputs: list[tuple[torch.Tensor, ...]] = []
    forward = module.model.forward

    def watch(*arguments: torch.Tensor) -> tuple:
        inputs.append(arguments)
        return forward(*arguments)

    def seen(dropout: float) -> tuple[torch.Tensor, ...]:
        module.flow = replace(cfg.flow, image_dropout=dropout)
        module.training_step(batch, 0)["loss"].backward()
        return inputs.pop()

    module.model.forward = watch
    (mv, uv, timestep, text), (blind_mv, blind_uv, blind_timestep, blind_text) = seen(0.0), seen(1.0)
    given, hint = torch.isclose(timestep, torch.tensor(70.7547)), slice(48, 65)
    assert torch.equal(blind_timestep, torch.where(given, 1000.0, timestep)) and torch.equal(text, blind_text)
    noise = draw(cfg.run.seed, batch.samples, [mv[0, :16].shape]).noise[0]
    frames = given[:, None, :-1, None, None].expand_as(noise)
    assert torch.equal(blind_mv[:, :16], torch.where(frames, noise, mv[:, :16])), "the same numbers as without dropout"
    assert torch.equal(blind_uv[:, :48], uv[:, :48])
    assert mv[:, hint].any() and uv[:, hint].any() and not blind_mv[:, hint].any() and not blind_uv[:, hint].any()


def test_the_share_of_dropped_samples_is_the_dropout() -> None:
    drops = draw(3, tuple(range(2000)), [(1, 4, 1, 1)])
    assert float((drops.drop_image < 0.3).float().mean()) == pytest.approx(0.3, abs=0.03)
    together = torch.corrcoef(torch.stack([drops.drop_image, drops.drop_text, drops.level]))
    assert float((together - torch.eye(3)).abs().max()) < 0.08, "independent of captions and noise levels"
    with pytest.raises(UsageError, match=r"flow\.image_dropout"):
        FlowConfig(image_dropout=1.5)


def test_a_checkpoint_records_whether_images_were_dropped(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path)
    cfg = replace(cfg, flow=replace(cfg.flow, image_dropout=0.5), run=replace(cfg.run, max_steps=1))
    train(cfg)
    assert read_card(cfg.run.directory / "checkpoint").image_dropout == 0.5


def test_one_batch_can_be_learned_by_heart(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED)]])
    tiny = preset("tiny")
    cfg = replace(
        tiny,
        data=replace(tiny.data, directory=tmp_path / "data", batch_size=2),
        tasks=replace(tiny.tasks, textured={"img2tex": 1.0}),
        run=replace(tiny.run, directory=tmp_path / "run", max_steps=120),
    )
    losses = [row["loss"] for row in train(cfg).losses]
    assert len(losses) == 120
    # Knowing all of the noise and nothing of the images would leave 0.86.
    assert sum(losses[-10:]) < 0.35 * sum(losses[:10])


def test_a_killed_run_resumes_to_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    whole = train(small_config(dataset, tmp_path / "whole", max_steps=6, state_every=3))
    command = [sys.executable, "-c", WORKER, str(dataset), str(tmp_path / "killed")]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.run([*command, "5"], env=env, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert newest_state(tmp_path / "killed" / "states") == tmp_path / "killed" / "states" / "step-00000003.ckpt"
    resumed = train(small_config(dataset, tmp_path / "killed", max_steps=6, state_every=3))
    keys = ("step", "loss", "task", "regime", "learning_rate")
    assert [[row[k] for k in keys] for row in resumed.losses] == [[row[k] for k in keys] for row in whole.losses]
    for one, other in ((whole.checkpoint, resumed.checkpoint), (tmp_path / "whole", tmp_path / "killed")):
        if one is whole.checkpoint:
            weights = [load_checkpoint(path).model.state_dict() for path in (one, other)]
        else:
            states = [AtomicCheckpointIO().load_checkpoint(newest_state(path / "states")) for path in (one, other)]
            assert [state["global_step"] for state in states] == [6, 6]
            weights = [state["state_dict"] for state in states]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_checkpoint_holds_the_averaged_weights_and_all_that_sampling_needs(dataset: Path, tmp_path: Path) -> None:
    cfg = small_config(dataset, tmp_path, max_steps=4, state_every=4)
    result = train(cfg)
    checkpoint = load_checkpoint(result.checkpoint)
    assert (checkpoint.card.views, checkpoint.card.view_resolution, checkpoint.card.uv_resolution) == (
        4,
        VIEW_SIZE,
        UV_SIZE,
    )
    assert (checkpoint.card.codec, checkpoint.card.preset, checkpoint.card.steps) == ("dct", "tiny", 4)
    state = AtomicCheckpointIO().load_checkpoint(newest_state(tmp_path / "states"))
    average = state["callbacks"]["AveragedWeights"]
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(value, average[f"model.{name}"])
    last = state["state_dict"]["model.blocks.0.attn1.to_q.weight"]
    assert not torch.equal(last, average["model.blocks.0.attn1.to_q.weight"])


def test_a_time_limit_ends_the_run_and_its_decay(dataset: Path, tmp_path: Path) -> None:
    result = train(small_config(dataset, tmp_path, max_steps=100_000, max_seconds=1.5))
    assert 0 < result.losses[-1]["step"] < 100_000
    peak = preset("tiny").optimizer.learning_rate
    assert result.losses[-1]["learning_rate"] < 0.2 * peak
    assert load_checkpoint(result.checkpoint).card.steps == result.losses[-1]["step"]
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".ckpt", ".jsonl")
    }
    again = train(small_config(dataset, tmp_path, max_steps=100_000, max_seconds=1.5))
    assert [row["step"] for row in again.losses] == [row["step"] for row in result.losses]
    assert len(before) > 2 and all(path.read_bytes() == data for path, data in before.items()), "nothing left to do"
    (result.checkpoint / CARD).unlink()
    with pytest.raises(UserError, match=r"nothing left to train.*raise run.max_steps or run.max_seconds"):
        train(small_config(dataset, tmp_path, max_steps=100_000, max_seconds=1.5))


def test_a_damaged_trainer_state_is_passed_over_and_an_older_one_taken(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint({"step": step, "tensor": torch.arange(1000)}, tmp_path / f"step-0000000{step}.ckpt")
    newest = tmp_path / "step-00000002.ckpt"
    assert newest_state(tmp_path) == newest
    data = newest.read_bytes()
    for cut in (data[:-1], data[: len(data) // 2], b""):
        newest.write_bytes(cut)
        assert not verified(newest)
        assert newest_state(tmp_path) == tmp_path / "step-00000001.ckpt"
    newest.write_bytes(data)
    newest.with_name(newest.name + ".sha256").unlink()  # killed between the file and its sum
    assert newest_state(tmp_path) == tmp_path / "step-00000001.ckpt"
    assert not list(tmp_path.glob(".*.tmp"))


def broken_at(monkeypatch: pytest.MonkeyPatch, numbers: range | set[int]) -> None:
    """Losses of these batches of the stream are no numbers."""
    real = TextureModule.training_step

    def step(self: TextureModule, batch: Batch | LatentBatch, batch_idx: int) -> dict[str, Any]:
        result = real(self, batch, batch_idx)
        return result | {"loss": result["loss"] * float("nan")} if batch.number in numbers else result

    monkeypatch.setattr(TextureModule, "training_step", step)


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(result.checkpoint).model.state_dict())


def test_a_pickle_for_a_trainer_state_is_refused_in_a_sentence(tmp_path):
    """With a sum beside it, as whoever put it there can write one."""
    for data in (pickle.dumps({"global_step": 1}), b"", pickle.dumps(os.getcwd)):
        (tmp_path / "step-00000001.ckpt").write_bytes(data)
        with pytest.raises(UserError, match=r"step-00000001.ckpt.*another run.directory"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "step-00000001.ckpt")


def test_a_gradient_that_is_no_number_changes_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, {3, 4})
    result = train(small_config(dataset, tmp_path, max_steps=5, state_every=1))
    assert [row["loss"] is None for row in result.losses] == [False] * 3 + [True] * 2
    fourth, fifth = (load_state(tmp_path, step) for step in (4, 5))
    assert all(torch.equal(value, fifth["state_dict"][name]) for name, value in fourth["state_dict"].items())
    moments = [[part["state"] for part in state["optimizer_states"][0]["parts"]] for state in (fourth, fifth)]
    assert str(moments[0]) == str(moments[1]), "nor did its momenta decay"
    result = train(small_config(dataset, tmp_path, max_steps=7))
    assert all(torch.isfinite(value).all() for value in weights(result).values())
    assert [row["loss"] is None for row in result.losses] == [False] * 3 + [True] * 2 + [False] * 2


def load_state(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / "states" / f"step-{step:08d}.ckpt", weights_only=True)


def test_beyond_the_budget_a_run_goes_back_and_on_behind_what_broke_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches 4 to 8 are bad, two may be passed over: the run stops in 6, returns to the state after 4 batches, goes on
    with batch 7, passes over 7 and 8, and ends."""
    broken_at(monkeypatch, range(4, 9))
    cfg = small_config(dataset, tmp_path, max_steps=8, state_every=2)
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, skip_budget=2))
    result = train(cfg)
    assert [row["step"] for row in result.losses] == list(range(1, 9))
    lost = [row["step"] for row in result.losses if row["loss"] is None]
    assert lost == [5, 6, 7, 8] or lost == [5, 6]
    assert all(torch.isfinite(value).all() for value in weights(result).values())


def test_a_run_that_cannot_be_saved_says_what_to_do(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, range(2, 1000))
    cfg = small_config(dataset, tmp_path, max_steps=40, state_every=1)
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, skip_budget=1))
    with pytest.raises(Diverged, match=r"skip_budget \(1\): lower optimizer.learning_rate"):
        train(cfg)
    assert not (tmp_path / "checkpoint").exists()


STOPPED = """
import os, signal, sys
from pathlib import Path
from seqtex.cli.main import main
import seqtex.cli.train
dataset, run, step, names = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
from dataclasses import replace
from tests.training.test_training import small_config
def train(cfg, report, validation, plan):
    def told(row):
        if row["step"] == step:
            for name in names:
                os.killpg(0, getattr(signal, name))
        report(row)
    cfg = small_config(dataset, run, max_steps=6, state_every=100)
    return seqtex.cli.train.train_for_test(replace(cfg, data=replace(cfg.data, workers=2)), told)
seqtex.cli.train.train_for_test, seqtex.cli.train.run_training = seqtex.cli.train.run_training, train
sys.exit(main(["train", "--preset", "tiny", "--data.directory", str(dataset)]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_saves_the_state_at_the_end_of_the_batch_and_the_run_resumes_exactly(
    dataset: Path, tmp_path: Path, name: str, code: int
) -> None:
    # sent to the whole group, as a terminal does, while step 4 is reported, after its own check: noticed at the end of
    # step 5
    arguments = [sys.executable, "-c", STOPPED, str(dataset), str(tmp_path / "run"), "4", name]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False, start_new_session=True)
    assert ended.returncode == code, ended.stderr
    assert f"stopped by {name} after step 5, state saved" in ended.stderr
    assert newest_state(tmp_path / "run" / "states") == tmp_path / "run" / "states" / "step-00000005.ckpt"
    assert not (tmp_path / "run" / "checkpoint").exists()
    resumed = train(small_config(dataset, tmp_path / "run", max_steps=6))
    straight = train(small_config(dataset, tmp_path / "straight", max_steps=6))
    assert all(torch.equal(value, weights(straight)[key]) for key, value in weights(resumed).items())


def test_a_second_ctrl_c_ends_a_run_at_once(dataset: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", STOPPED, str(dataset), str(tmp_path / "run"), "4", "SIGINT", "SIGINT"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False, start_new_session=True)
    assert ended.returncode == 130, ended.stderr
    assert "Ctrl-C again ends at once" in ended.stderr
    assert "seqtex train: interrupted; run the same command again" in ended.stderr
    assert newest_state(tmp_path / "run" / "states") is None


def test_a_checkpoint_of_other_latents_is_refused(dataset: Path, tmp_path: Path) -> None:
    checkpoint = train(small_config(dataset, tmp_path, max_steps=1)).checkpoint
    entries = json.loads((checkpoint / CARD).read_text())
    entries["latent_std"][0] *= 2
    (checkpoint / CARD).write_text(json.dumps(entries))
    with pytest.raises(UserError, match="other latent statistics"):
        load_checkpoint(checkpoint)
    (checkpoint / CARD).unlink()
    with pytest.raises(UserError, match=r"seqtex\.json: no such file"):
        load_checkpoint(checkpoint)


ENDED = """
import os, signal, sys
from pathlib import Path
import training.loop.checkpoints, training.loop.snapshots, training.train
from tests.training.test_training import small_config
dataset, run, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def report(row):
    if moment == "signal" and row["step"] == 6:
        os.kill(os.getpid(), signal.SIGTERM)
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "kill":
    training.loop.snapshots.save_checkpoint = killed
if moment == "card":
    write = training.loop.checkpoints.write_file
    card = "seqtex.json"
    training.loop.checkpoints.write_file = lambda path, data: (killed if path.name == card else write)(path, data)
training.train.train(small_config(dataset, run, max_steps=6, state_every=2), report)
"""


@pytest.mark.parametrize(("moment", "code"), [("signal", 0), ("kill", -signal.SIGKILL), ("card", -signal.SIGKILL)])
def test_a_run_disturbed_in_its_last_step_has_its_checkpoint_or_makes_it(
    dataset: Path, tmp_path: Path, moment: str, code: int
) -> None:
    """A signal that comes when nothing is left to do changes nothing; a kill while the checkpoint is written leaves no
    state behind that counts as the end."""
    arguments = [sys.executable, "-c", ENDED, str(dataset), str(tmp_path / "run"), moment]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == code, ended.stderr
    assert (tmp_path / "run" / "checkpoint").exists() == (moment == "signal")
    assert any((tmp_path / "run").glob(".checkpoint.*")) == (moment == "card")
    resumed = train(small_config(dataset, tmp_path / "run", max_steps=6, state_every=2))
    assert not any((tmp_path / "run").glob(".checkpoint.*"))
    straight = train(small_config(dataset, tmp_path / "straight", max_steps=6, state_every=2))
    assert all(torch.equal(value, weights(straight)[key]) for key, value in weights(resumed).items())


def test_a_run_that_is_over_has_its_state_and_finds_its_checkpoint(dataset: Path, tmp_path: Path) -> None:
    """Steps at which no state is due are no reason to train them again, nor is a missing checkpoint a success."""
    whole = train(small_config(dataset, tmp_path, max_steps=5, state_every=3))
    assert newest_state(tmp_path / "states") == tmp_path / "states" / "step-00000005.ckpt"
    again = train(small_config(dataset, tmp_path, max_steps=5, state_every=3))
    assert [row["loss"] for row in again.losses] == [row["loss"] for row in whole.losses]
    assert train(small_config(dataset, tmp_path, max_steps=4, state_every=3)).checkpoint == whole.checkpoint
    entries = json.loads((whole.checkpoint / CARD).read_text())
    (whole.checkpoint / CARD).write_text(json.dumps(entries | {"steps": 3}))  # of an earlier part of the run
    with pytest.raises(UserError, match=r"no checkpoint of 5 steps.*state has 5; raise run\.max_steps"):
        train(small_config(dataset, tmp_path, max_steps=5, state_every=3))
    (whole.checkpoint / CARD).unlink()
    with pytest.raises(UserError, match="no checkpoint of 4 steps"):
        train(small_config(dataset, tmp_path, max_steps=4, state_every=3))
