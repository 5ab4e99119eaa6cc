"""docs/tour.ipynb runs from its first cell to its last, and holds the outputs of such a run."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
TOUR = REPO / "docs" / "tour.ipynb"


def outputs(path: Path) -> list[list[dict]]:
    """Outputs of every code cell."""
    return [cell["outputs"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def last_picture(path: Path) -> np.ndarray:
    data = outputs(path)[-1][-1]["data"]["image/png"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_the_notebook_is_small_and_was_run():
    assert TOUR.stat().st_size < 1_000_000
    assert all(outputs(TOUR)) and last_picture(TOUR).std() > 20


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    copy = tmp_path / "tour.ipynb"
    copy.write_bytes(TOUR.read_bytes())
    command = [sys.executable, "-m", "tests.support.run_notebook", str(copy), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [[output["output_type"] for output in cell] for cell in outputs(copy)]
    assert kinds == [[output["output_type"] for output in cell] for cell in outputs(TOUR)]
    assert last_picture(copy).shape == last_picture(TOUR).shape
