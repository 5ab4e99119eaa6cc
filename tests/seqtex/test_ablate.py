"""`seqtex ablate` on a few meshes and steps, and its statistics on figures whose answer is known."""

import json
import math
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import seqtex.ablation.run
from pipeline.executor.job import process_asset
from schemas.sample import Regime, TextureSample
from schemas.shards import stored_samples
from seqtex.ablation.run import held_out_losses
from seqtex.ablation.table import Outcome, over_seeds, plot, table_rows
from seqtex.cli.main import main
from tests.support.small_dataset import write_samples
from training.data.batch import encode_batch, to_model
from training.loop.checkpoints import load_checkpoint
from training.objective import DRAWS, QUARTERS

REPO = Path(__file__).resolve().parents[2]
SMALL = ["--steps", "3", "--mixed_assets", "3", "--clean_assets", "3", "--held_out_meshes", "2", "--sample_steps", "2",
         "--view_resolution", "32", "--uv_resolution", "64", "--workers", "1"]  # fmt: skip


def build_here(refs, out, cfg, workers, notify):
    """Build as `pipeline.executor.build.build` does, without Ray."""
    if not out.exists():
        found = [process_asset(ref, cfg).result for ref in refs]
        samples = [sample for sample in found if isinstance(sample, TextureSample)]
        write_samples(out, [samples], {"materials": cfg.materials})


def command(out, *options: str) -> list[str]:
    return ["ablate", "--out", str(out), "--cells", '["base", "geometry-off"]', *SMALL, *options]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqtex.ablation.run, "build", build_here)
        assert main(command(out, "--seeds", "1")) == 0
        first = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
        assert main(command(out, "--seeds", "2")) == 0
    return out, first


def test_finished_runs_are_kept_and_seeds_added(ablation):
    out, first = ablation
    assert {path.parent.name for path in first} == {"base-0", "geometry-off-0"}
    assert all(path.stat().st_mtime_ns == made for path, made in first.items())
    runs = json.loads((out / "table.json").read_text())["runs"]
    assert [(run["cell"], run["seed"]) for run in runs] == [
        ("base", 0), ("geometry-off", 0), ("base", 1), ("geometry-off", 1),
    ]  # fmt: skip
    config = json.loads((out / "runs" / "geometry-off-1" / "config.json").read_text())
    assert config["model"]["geometry_attention"] == "off" and config["run"]["seed"] == 1
    assert config["run"]["max_steps"] == 3


def test_a_result_holds_every_held_out_mesh_and_its_mean(ablation):
    out, _ = ablation
    run = json.loads((out / "runs" / "base-0" / "result.json").read_text())
    other = json.loads((out / "runs" / "geometry-off-0" / "result.json").read_text())
    assert [row["uid"] for row in run["meshes"]] == [row["uid"] for row in other["meshes"]]
    assert len(run["meshes"]) == 2
    for name in ("uv_psnr", "flow_uv", "flow_mv"):
        assert run["figures"][name] == pytest.approx(sum(row[name] for row in run["meshes"]) / 2)
    shapes = [
        {sample.mesh.vertices.tobytes() for sample in stored_samples(out / "data" / name, Regime.TEXTURED)}
        for name in ("training-1", "held_out-1")
    ]
    assert shapes[0] and shapes[1] and shapes[0].isdisjoint(shapes[1])
    table = (out / "table.md").read_text()
    assert "| base | 2 |" in table and "| geometry-off | 2 |" in table
    ElementTree.fromstring((out / "plot.svg").read_text())


def test_other_options_do_not_mix_with_finished_runs(ablation, capsys):
    out, _ = ablation
    assert main(command(out, "--sample_steps", "3")) == 1
    assert "sample_steps=2, now 3" in capsys.readouterr().err
    assert main(["ablate", "--out", str(out), "--cells", '["geometry-off"]']) == 2
    assert "base is missing" in capsys.readouterr().err
    assert main(["ablate", "--out", str(out), "--cells", '["base", "size"]']) == 2
    assert "no 'size'" in capsys.readouterr().err


def test_no_run_begins_when_the_time_is_over(ablation, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seqtex.ablation.run, "build", build_here)
    assert main(command(tmp_path, "--minutes", "0")) == 1
    assert "raise --minutes" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_the_loss_on_held_out_meshes_is_that_of_the_flow_and_asks_all_networks_the_same(ablation):
    """A network that answers nothing is off by the whole flow, noise less latents: by 1 and the latents' power."""
    out, _ = ablation
    samples = list(stored_samples(out / "data" / "held_out-1", Regime.TEXTURED))[:2]
    network = load_checkpoint(out / "runs" / "base-0" / "checkpoint")
    network.model.forward = lambda mv, uv, timestep, text: (torch.zeros_like(mv[:, :16]), torch.zeros_like(uv[:, :16]))
    losses = held_out_losses(network, samples, "img2tex")
    for sample, row in zip(samples, losses, strict=True):
        latents = encode_batch(to_model(sample), network.codec)
        values = latents.uv.rgb.numel() * len(QUARTERS) * DRAWS
        power = float(latents.uv.rgb.square().mean())
        assert row["flow_uv"] == pytest.approx(1 + power, abs=5 * (2 + 4 * power) ** 0.5 / values**0.5)
    assert held_out_losses(network, samples, "img2tex") == losses
    levels: list[float] = []
    network.model.forward = lambda mv, uv, timestep, text: levels.append(float(timestep.max())) or (
        torch.zeros_like(mv[:, :16]), torch.zeros_like(uv[:, :16]))  # fmt: skip
    held_out_losses(network, samples[:1], "img2tex")
    assert sorted(set(levels)) == pytest.approx([1000 * 5 * s / (1 + 4 * s) for s in QUARTERS])


def outcome(cell: str, seed: int, psnr: float) -> Outcome:
    return Outcome(
        cell=cell,
        seed=seed,
        loss=1.0,
        seconds=1.0,
        figures={"render_psnr": psnr, "flow_uv": 1.0 + 0.001 * seed},
        meshes=[],
    )


def test_intervals_are_students_over_seeds_and_differences_are_paired():
    interval = over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # of two degrees of freedom, standard deviation 1
    assert (interval.value, interval.low, interval.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert over_seeds([5.0]).low == -math.inf
    psnr = {0: 10.0, 1: 20.0, 2: 15.0}  # seeds differ far more than variants
    gains = {"same": (0.1, -0.2, 0.1), "better": (1.0, 1.1, 0.9)}
    outcomes = [outcome("base", seed, value) for seed, value in psnr.items()]
    outcomes += [outcome(cell, s, psnr[s] + gain) for cell, gained in gains.items() for s, gain in enumerate(gained)]
    base, same, better = table_rows(outcomes)
    assert not base.against_base and not base.differs("render_psnr")
    assert not same.differs("render_psnr") and same.against_base["render_psnr"].value == pytest.approx(0.0)
    assert better.differs("render_psnr") and better.against_base["render_psnr"].value == pytest.approx(1.0)
    assert not better.differs("flow_uv") and better.against_base["flow_uv"].value == 0.0
    assert better.figures["render_psnr"].low < base.figures["render_psnr"].value
    circles = ElementTree.fromstring(plot([base, same, better])).findall("{*}g[1]/{*}circle")
    assert [circle.get("fill") == "#c33" for circle in circles] == [False, False, True]
    assert float(circles[2].get("cx")) > float(circles[0].get("cx"))


def test_the_slurm_script_is_sound_and_requeues_on_75(tmp_path):
    """With srun, scontrol and the command as stand-ins that record what they are told."""
    script = REPO / "deploy" / "slurm_train.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    (tmp_path / "srun").write_text('#!/bin/bash\necho "srun $*" >> "$LOG"\nexit "$STATUS"\n')
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $*" >> "$LOG"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for status, left, requeued in ((75, 0, True), (1, 1, False), (0, 0, False)):
        log = tmp_path / f"log{status}"
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(log), "STATUS": str(status), "SLURM_JOB_ID": "7",
               "SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "8"}  # fmt: skip
        arguments = ["bash", str(script), "--preset", "full"]
        assert subprocess.run(arguments, env=env, check=False, capture_output=True).returncode == left
        told = log.read_text()
        assert "seqtex train --preset full --run.nodes 4 --run.devices 8" in told
        assert ("scontrol requeue 7" in told) == requeued
    assert subprocess.run(["bash", str(script)], check=False, capture_output=True).returncode == 2
