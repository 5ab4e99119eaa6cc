"""The whole model is one graph for torch.compile, with and without UV map."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]

EXPLAINED = """
import sys
from dataclasses import replace
import torch
from training.config import PRESETS
from training.model.seqtex import SeqTexTransformer3DModel

cfg = PRESETS[sys.argv[1]].model
sizes = dict(num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=32, text_dim=8, freq_dim=8)
cfg = replace(cfg, **sizes, lora_rank=min(cfg.lora_rank, 2))
model = SeqTexTransformer3DModel(**cfg.architecture()).train()
model.checkpoint_blocks(cfg.activation_checkpointing)
mv, uv = (torch.randn(1, model.in_depth, frames, 4, 4) for frames in (2, 1))
for given in (uv, None):
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(mv, given, 1000 * torch.rand(1, 3), torch.randn(1, 3, 8))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
"""


@pytest.mark.parametrize("preset", ["tiny", "full"])
def test_a_forward_pass_has_no_graph_break(preset: str) -> None:
    """In a process of its own, without the run-time checks of types, which cannot be traced. `full` with its blocks
    computed again and its LoRA, at small sizes."""
    command = [sys.executable, "-W", "ignore", "-c", EXPLAINED, preset]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
