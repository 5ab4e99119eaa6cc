"""The model benchmark runs, every line of it, on small sizes."""

import json
import subprocess
from pathlib import Path

import torch

from benchmarks.model import CASES, compare, on_cpu
from training.data.mixture import ImageSizes
from training.model.init import ModelConfig

REPO = Path(__file__).resolve().parents[3]
SMALL = ModelConfig(
    num_layers=1,
    num_attention_heads=2,
    attention_head_dim=12,
    ffn_dim=32,
    text_dim=8,
    freq_dim=8,
    lora_rank=2,
    lora_alpha=1,
    start="scratch",
)
SIZES = ImageSizes(views=2, view_resolution=32, uv_resolution=32)
CASE = type(CASES[0])(name="small", model=SMALL, sizes=SIZES, text_encoder="none", batch=2)


def test_ours_agrees_with_the_opponent_and_the_table_names_both(capsys):
    before = torch.get_float32_matmul_precision()
    rows = compare(CASE, rounds=1, compiled=False)
    assert [row[0] for row in rows] == ["forward", "forward + backward"]
    assert all(errors["ours"] < 1e-5 for _, _, errors in rows)
    assert all(errors["ours, as trained"] < 2**-6 for _, _, errors in rows), "bfloat16 products where there are any"
    on_cpu(1, False, (CASE,))
    told = capsys.readouterr().out
    assert "8 + 4 tokens" in told
    assert "ours, as trained" in told
    assert torch.get_float32_matmul_precision() == before


def test_the_gpu_command_runs_to_its_end_on_a_cpu(tmp_path):
    """Every part in half a minute of an idle core: five processes, which import torch."""
    command = ["benchmarks/gpu.sh", "--small", "--work", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report, told = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    parts = report["parts"]
    assert set(parts) == {"raster", "model", "sampling", "latents", "pixels"} and not report["left_out"]
    rows = {(row["checkpointing"], row["task"]): row for row in parts["model"]["rows"]}
    assert set(rows) == {*((policy, "img2tex") for policy in ("none", "selective", "full")),
                         ("full", "geo2mv, UV run"), ("full", "geo2mv")}  # fmt: skip
    assert all(0 < row["mfu"] < 1 and row["step_s"] > 0 for row in rows.values())
    assert parts["latents"]["steps_again"] > 0 and parts["latents"]["loss_gap"] == 0, "exact on a CPU"
    assert parts["sampling"]["texture_s"] > 0 and parts["latents"]["tasks"] and parts["pixels"]["tasks"]
    for row in ("| img2tex | selective |", "| geo2mv | full |", "training from latents", "Killed and resumed"):
        assert row in told
