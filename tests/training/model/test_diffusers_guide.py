"""The code of docs/diffusers.md runs as it stands, on small weights."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from training.model.weights import from_wan, save_model

REPO = Path(__file__).resolve().parents[3]
SMALL = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 32,
    "text_dim": 8,
    "freq_dim": 16,
}


def test_the_code_of_the_guide_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wan = WanTransformer3DModel(**SMALL)
    wan.save_pretrained(tmp_path / "wan" / "transformer")
    save_model(from_wan(wan, lora_rank=2), tmp_path / "run" / "checkpoint")
    (code,) = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "diffusers.md").read_text(), re.S)
    path = f"import sys; sys.path.insert(0, {str(REPO)!r})\n"
    ended = subprocess.run(
        [sys.executable, "-c", path + code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    shapes, levels, adapted = ended.stdout.splitlines()
    assert shapes == "(1, 16, 4, 8, 8) (1, 16, 1, 16, 16)" and adapted == "(1, 16, 4, 8, 8)"
    assert float(levels.rpartition(" ")[2]) < 1e-6
