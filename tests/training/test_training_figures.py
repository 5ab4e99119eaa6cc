"""The figures of a run while it trains, and the parts of its optimiser and noise levels."""

import copy
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import UsageError
from schemas.sample import Regime
from tests.support.small_dataset import UV_SIZE, VIEW_SIZE, small_sample, write_dataset
from tests.training.test_training import small_config
from training.config import TrainConfig
from training.cost import count_flops, count_tokens
from training.data.mixture import ImageSizes
from training.diffusion.flow import FlowConfig, logit_normal, shift_sigma
from training.loop.loggers import Curves, make_logger, vertex_colors
from training.loop.run_directory import dataset_hash
from training.loop.throughput import Meter, RunningMeans, Work, peak_flops
from training.loop.validation import Validation, framed, grid
from training.model.optimizers import BatchedMuon, OptimizerConfig, make_optimizer, orthogonalized, part_of
from training.model.seqtex import SeqTexTransformer3DModel
from training.train import train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    return out


def lora_model() -> SeqTexTransformer3DModel:
    return SeqTexTransformer3DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, text_dim=8, freq_dim=8, lora_rank=2
    )


@pytest.mark.parametrize("muon", [None, 0.02])
def test_every_parameter_has_the_rate_of_its_part(muon):
    cfg = OptimizerConfig(
        learning_rate=1e-3, muon_learning_rate=muon, lora_factor=2.0, uv_factor=3.0, geometry_factor=0.5
    )
    named = dict(lora_model().named_parameters())
    optimizer = make_optimizer(cfg, named)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(named) == sum(len(group["params"]) for group in optimizer.param_groups)
    factors = {"LoRA": 2.0, "UV branch": 3.0, "geometry": 0.5, "rest": 1.0}
    expected = {
        "blocks.0.attn1.to_q.lora_A.default.weight": "LoRA",
        "blocks.1.attnuv.to_k.weight": "UV branch",
        "blocks.1.scale_shift_table_uv": "UV branch",
        "blocks.0.geometry_caster.weight": "geometry",
        "pos_patch_embedding.weight": "geometry",
        "blocks.0.attn1.to_q.base_layer.weight": "rest",
        "proj_out.bias": "rest",
    }
    assert {name: part_of(name) for name in expected} == expected
    for name, parameter in named.items():
        is_matrix = muon is not None and parameter.ndim == 2 and name.startswith("blocks.")
        assert rates[id(parameter)] == pytest.approx((0.02 if is_matrix else 1e-3) * factors[part_of(name)])
    assert optimizer.param_groups[-1]["lr"] == 1e-3, "the last group's is the rate that is logged"


def matrices() -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(3)
    shapes = [(24, 24), (24, 24), (48, 24), (24, 48), (24, 24), (48, 24), (24, 48)] * 4
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]


def test_matrices_of_one_shape_together_take_the_steps_of_torchs_muon(monkeypatch):
    """torch's own is in bfloat16 everywhere."""
    monkeypatch.setattr("training.model.optimizers.fast_dtype", lambda device_type: torch.bfloat16)
    ours, torchs, begun = matrices(), matrices(), matrices()
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    batched = BatchedMuon([{"params": ours[:4]}, {"params": ours[4:], "lr": 0.04}], **options)
    single = torch.optim.Muon([{"params": torchs[:4]}, {"params": torchs[4:], "lr": 0.04}], **options)
    random = torch.Generator().manual_seed(4)

    def step() -> None:
        for number, (a, b) in enumerate(zip(ours, torchs, strict=True)):
            a.grad = b.grad = torch.randn(a.shape, generator=random) * 10.0 ** (number % 7 - 3)
        ours[1].grad = torchs[1].grad = None  # a part of the model that this batch did not use
        batched.step()
        single.step()

    def farthest() -> float:
        """Difference of the two, as a share of what was learned."""
        pairs = zip(ours, torchs, begun, strict=True)
        return max(((a - b).norm() / (b - c).norm()).item() for a, b, c in pairs if not torch.equal(b, c))

    for _ in range(4):
        step()
    assert torch.equal(ours[1], begun[1])
    assert 0 <= farthest() < 5e-3, "no farther apart than bfloat16 rounds"
    batched.load_state_dict(copy.deepcopy(single.state_dict()))
    step()
    assert farthest() < 5e-3, "states of torch's Muon are read"
    assert (ours[0] - begun[0]).norm() > 0.1


@pytest.mark.parametrize("shape", [(32, 32), (64, 32), (32, 64)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    scales = torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    found = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5)) * scales
    directions = orthogonalized(found, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    values = torch.linalg.svdvals(directions)
    assert values.max() < 1.25
    assert values.median(dim=-1).values.min() > 0.65 and values.max(dim=-1).values.min() > 0.9
    u, _, v = torch.linalg.svd(found, full_matrices=False)
    alike = torch.nn.functional.cosine_similarity((u @ v).flatten(1), directions.flatten(1))
    assert alike.min() > 0.9, "the directions are those of the matrix"


def test_eight_bits_without_their_package_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    named = dict(lora_model().named_parameters())
    with pytest.raises(UsageError, match=r"\.\[eightbit\]"):
        make_optimizer(OptimizerConfig(eight_bit=True), named)
    with pytest.raises(UsageError, match="muon_learning_rate"):
        make_optimizer(OptimizerConfig(eight_bit=True, muon_learning_rate=0.01), named)


def test_noise_levels_follow_the_distribution_that_was_asked_for():
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FlowConfig(shift=3.0).sigma(uniform), shift_sigma(uniform, 3.0))
    levels = logit_normal(uniform, -0.5, 0.8)
    logits = torch.logit(levels.double())
    assert logits.mean().item() == pytest.approx(-0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)
    assert (levels[uniform.argsort()].diff() >= 0).all(), "each sample's own number decides"
    cfg = FlowConfig(timestep_sampling="logit_normal", logit_mean=-0.5, logit_std=0.8, shift=1.0)
    assert torch.equal(cfg.sigma(uniform), levels)
    ends = logit_normal(torch.tensor([0.0, 0.5, 1 - 2**-24]), 0.0, 1.0)
    assert ends[0] == 0 and ends[1] == 0.5 and 0.99 < ends[2] < 1


class Trainer(lightning.Trainer):
    """The part of a trainer that a `Meter` looks at: every second batch ends a step."""

    accumulate_grad_batches = 2

    def __init__(self) -> None:
        self.ready = 0

    @property
    def fit_loop(self) -> Any:
        return self

    epoch_loop = batch_progress = current = fit_loop  # type: ignore[assignment]


def test_the_meter_tells_rates_waiting_and_utilisation(dataset, tmp_path):
    """Four seconds a step, a half of it waiting (the first wait of a run belongs to no step)."""
    now = 0.0
    cfg = small_config(dataset, tmp_path)
    sizes = ImageSizes(views=4, view_resolution=VIEW_SIZE, uv_resolution=UV_SIZE)
    work = replace(Work.of(cfg, sizes, torch.device("cpu")), peak=1e9)
    meter, trainer, module = Meter(work, lambda: now), Trainer(), lightning.LightningModule()
    tasks = ["img2tex", "img2tex", "geo2mv", "img2tex"]
    assert meter.figures() == {}
    for step, task in enumerate(tasks):
        for _ in range(2):
            trainer.ready += 1
            now += 1.0
            meter.on_train_batch_start(trainer, module, None, 0)
            now += 1.0 if step < 3 else 50.0
            if step == 3 and trainer.ready == 8:
                meter.exclude()
            meter.on_train_batch_end(trainer, module, {"task": task}, None, 0)
    figures = meter.figures()
    counted = tasks[1:3]
    tokens = [count_tokens(sizes, "none", needs_uv=task == "img2tex") for task in counted]
    flops = [count_flops(cfg.model, count) for count in tokens]
    assert figures["samples_per_s"] == pytest.approx(cfg.data.batch_size / 4)
    assert figures["wait"] == pytest.approx(0.5)
    assert figures["tokens_per_s"] == pytest.approx(cfg.data.batch_size * (16 + 16 + 16) / 8)
    needed = sum(one.forward + one.backward for one in flops) * cfg.data.batch_size
    assert figures["mfu"] == pytest.approx(needed / 8 / 1e9)

    now += 1000.0  # a run that failed, and goes on from an older state
    meter.on_train_start(trainer, module)
    for _ in range(2):
        trainer.ready += 1
        meter.on_train_batch_start(trainer, module, None, 0)
        meter.on_train_batch_end(trainer, module, {"task": "img2tex"}, None, 0)
    assert meter.figures() == figures, "reading the state is no step"


@pytest.mark.parametrize(("state_every", "is_measured"), [(1, False), (100, True)])
def test_steps_that_save_a_state_tell_no_rate(dataset, tmp_path, state_every, is_measured):
    rows: list[dict[str, Any]] = []
    train(small_config(dataset, tmp_path, max_steps=4, state_every=state_every, logger="none"), rows.append)
    assert ("samples_per_s" in rows[-1]) == is_measured


def test_peaks_of_devices():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert [peak_flops(f"NVIDIA {name}", "bfloat16") for name in ("L40S", "L40", "L4")] == [362e12, 181e12, 121e12]
    assert peak_flops("something else", "bfloat16") is None


def test_running_means_are_apart_by_task_and_regime():
    means = RunningMeans()
    for loss, task, regime in ((1.0, "img2tex", "textured"), (3.0, "geo2mv", "textured"), (8.0, "geo2mv", "mv_only")):
        means.add({"loss": loss, "task": task, "regime": regime, "loss_uv": None})
    assert means() == {
        "loss/task img2tex": 1.0,
        "loss/task geo2mv": 5.5,
        "loss/regime textured": 2.0,
        "loss/regime mv_only": 8.0,
    }


def shown(cfg: TrainConfig, count: int = 2) -> TrainConfig:
    return replace(cfg, validation=replace(cfg.validation, every=4, samples=count, steps=2))


def test_tensorboard_holds_what_the_log_holds_and_pictures_change_nothing(dataset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    samples = [small_sample(uid, Regime.TEXTURED, seed) for seed, uid in enumerate(("t0", "t1"))]
    validation = Validation(samples=samples, render=lambda sample, uv: sample.views.rgb[2])
    cfg = shown(small_config(dataset, tmp_path / "seen", max_steps=10))
    seen = train(cfg, validation=validation)
    blind = train(small_config(dataset, tmp_path / "blind", max_steps=10, logger="none"))
    for name in ("loss", "task", "learning_rate"):
        assert [row[name] for row in seen.losses] == [row[name] for row in blind.losses]
    assert not (tmp_path / "blind" / "tensorboard").exists()
    events = EventAccumulator(str(tmp_path / "seen" / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"samples/t0", "samples/t1"} == set(tags["images"])
    caption, *_ = events.Tensors("samples/t1/text_summary")
    assert caption.tensor_proto.string_val == [b"    sheet 1"]
    assert {"samples/t0_VERTEX", "samples/t0_COLOR", "samples/t0_FACE"} <= set(tags["tensors"])
    faces = make_ndarray(events.Tensors("samples/t0_FACE")[-1].tensor_proto)
    assert samples[0].mesh is not None and np.array_equal(faces[0], samples[0].mesh.faces)
    assert {"loss", "learning_rate", "wait", "samples_per_s", "loss/task img2tex"} <= set(tags["scalars"])
    ((step, value),) = [(event.step, event.value) for event in events.Scalars("loss")]
    assert (step, value) == (10, pytest.approx(seen.losses[9]["loss"]))
    assert [event.step for event in events.Scalars("validation/uv_psnr")] == [4, 8]
    picture = np.asarray(Image.open(tmp_path / "seen" / "pictures" / "step-00000008-t1.png"))
    assert picture.shape == (2 * (VIEW_SIZE + 2), 7 * (VIEW_SIZE + 2), 3)
    record = json.loads((tmp_path / "seen" / "environment.json").read_text())
    assert record["packages"]["torch"] == torch.__version__
    assert record["dataset_sha256"] == {os.path.relpath(dataset, tmp_path / "seen"): dataset_hash(dataset)}


def test_a_picture_shows_what_was_made_above_what_is_true():
    sample = small_sample("t0", Regime.TEXTURED, 0)
    made = np.full_like(sample.views.rgb, 7)
    uv = np.full_like(sample.uv.rgb, 9)
    picture = grid(sample, made, uv, lambda sample, texels: texels)
    cell = VIEW_SIZE + 2
    cells = picture.reshape(2, cell, 7, cell, 3).swapaxes(1, 2)
    for row, (views, texels) in enumerate(((made, uv), (sample.views.rgb, sample.uv.rgb))):
        for column, image in enumerate([sample.views.rgb[0], *views, texels, texels]):
            assert np.array_equal(cells[row, column], framed(image, VIEW_SIZE))


def test_the_hash_of_a_dataset_is_that_of_its_samples(dataset, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    write_dataset(same, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    write_dataset(other, [[("t0", Regime.TEXTURED), ("t2", Regime.TEXTURED), ("m0", Regime.MV_ONLY)]])
    assert dataset_hash(same) == dataset_hash(dataset) != dataset_hash(other)


def test_a_logger_that_is_not_installed_is_named(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        make_logger(small_config(dataset, tmp_path, logger="wandb"), 1)


def test_weights_and_biases_gets_the_curves_of_both_starts_in_one_run(dataset, tmp_path, monkeypatch):
    """The package itself, offline: its record of each start is a folder named by the run's id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in (10, 20):
        train(small_config(dataset, tmp_path, max_steps=steps, state_every=10, logger="wandb"))
    run_id = (tmp_path / "wandb_id.txt").read_text()
    records = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(records) == 2
    deadline = time.monotonic() + 60  # its service writes the last of a record after `finish` has returned
    while not all(b"gradient_norm" in (data := record.read_bytes()) and b"loss/task" in data for record in records):
        assert time.monotonic() < deadline, [record.stat().st_size for record in records]
        time.sleep(0.2)
    curves = [record.read_bytes() for record in records]
    assert all(b"muon_learning_rate" in data for data in curves), "the configuration is part of the record"


def test_a_vertex_has_the_colour_of_its_texel():
    sample = small_sample("t0", Regime.TEXTURED, 0)
    assert sample.mesh is not None
    texels = np.zeros((4, 4, 3), np.uint8)
    texels[3, 3], texels[0, 0], texels[3, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # row 0 is v = 1
    corners = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    colors = vertex_colors(replace(sample.mesh, uv=corners), texels)
    assert colors.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_weights_and_biases_gets_picture_caption_and_points(dataset, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sample = small_sample("t0", Regime.TEXTURED, 0)
    assert sample.uv is not None
    cfg = small_config(dataset, tmp_path, logger="wandb")
    curves = Curves(cfg)
    curves.logger = make_logger(cfg, 1)
    curves.show(4, sample, sample.uv.rgb, sample.views.rgb[0])
    curves.logger.experiment.finish()
    (run,) = tmp_path.glob("wandb/offline-run-*")
    (picture,) = (run / "files" / "media" / "images").rglob("*.png")
    assert np.array_equal(np.asarray(Image.open(picture)), sample.views.rgb[0])
    (points,) = (run / "files" / "media" / "object3D").rglob("*.pts.json")
    mask = sample.uv.mask
    expected = np.concatenate([sample.uv.position[mask], sample.uv.rgb[mask]], axis=1)
    np.testing.assert_allclose(json.loads(points.read_text()), expected, rtol=1e-6)
    (record,) = run.glob("run-*.wandb")
    assert b"sheet 0" in record.read_bytes()


def test_eight_bit_moments_train_and_resume_exactly(dataset, tmp_path):
    pytest.importorskip("torchao", reason="an extra: pip install '.[eightbit]'")

    def run(name: str, steps: int) -> list[float]:
        cfg = small_config(dataset, tmp_path / name, max_steps=steps, state_every=2, logger="none")
        adamw = replace(cfg.optimizer, muon_learning_rate=None, eight_bit=True, final_share=1.0)
        return [row["loss"] for row in train(replace(cfg, optimizer=adamw)).losses]

    whole = run("whole", 4)
    assert run("parts", 2) == whole[:2]
    assert run("parts", 4) == whole
