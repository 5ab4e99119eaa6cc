"""The model benchmark runs, every line of it, on small sizes."""

import torch
from diffusers import AutoencoderKLWan

from benchmarks.model import CASES, compare, on_cpu
from benchmarks.model_gpu import on_gpu
from training.data.mixture import ImageSizes
from training.model.init import ModelConfig

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


def test_the_gpu_report_runs_on_a_cpu(capsys):
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    on_gpu(1, "full", case=CASE, device="cpu", compiled=False, rounds=1, peak_size=64, vae=vae)
    told = capsys.readouterr().out
    for word in ("img2tex", "geo2mv, UV run", "of the measured peak", "30 steps", "images/s"):
        assert word in told
