"""The whole model is one graph for torch.compile, with and without UV map."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]

COMPILED = """
from dataclasses import replace
import torch
from training.config import PRESETS
from training.model.seqtex import SeqTexTransformer3DModel

sizes = dict(num_layers=1, num_attention_heads=1, attention_head_dim=24, ffn_dim=32, text_dim=8, freq_dim=8)
for preset in ("tiny", "full"):
    cfg = PRESETS[preset].model
    cfg = replace(cfg, **sizes, lora_rank=min(cfg.lora_rank, 2))
    model = SeqTexTransformer3DModel(**cfg.architecture()).train()
    model.checkpoint_blocks(cfg.activation_checkpointing)
    mv, uv = (torch.randn(1, model.in_depth, frames, 4, 4) for frames in (2, 1))
    for given in (uv, None):
        torch._dynamo.reset()
        whole = torch.compile(model, backend="eager", fullgraph=True)
        whole(mv, given, 1000 * torch.rand(1, 3), torch.randn(1, 3, 8))
        print(preset, "with" if given is not None else "without", "map: one graph")
"""


def test_a_forward_pass_has_no_graph_break() -> None:
    """In a process of its own, without the run-time checks of types, which cannot be traced; one block at small sizes.
    `fullgraph` raises at a break. `full` with its blocks computed again and its LoRA."""
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        f"{preset} {uv} map: one graph" for preset in ("tiny", "full") for uv in ("with", "without")
    ]
