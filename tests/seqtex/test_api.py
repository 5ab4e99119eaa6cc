"""The public names of `import seqtex`: quick to import, typed, and as docs/api.md shows them."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import seqtex
from pipeline.config import BuildConfig
from schemas.errors import UsageError
from seqtex.runs import BuildOptions, TrainOptions, changed
from training.config import TrainConfig, preset

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "api.md").read_text()


def python(code: str, folder: Path) -> str:
    """Run code as a script of its own, in `folder`."""
    (folder / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_is_quick_and_loads_neither_torch_nor_ray(tmp_path):
    code = """import sys, time
start = time.perf_counter()
import seqtex
print(time.perf_counter() - start, *({"torch", "ray", "numpy", "lightning", "numba"} & set(sys.modules)))
"""
    seconds, *loaded = python(code, tmp_path).split()
    assert loaded == [] and float(seconds) < 1


def test_every_public_name_is_there_and_no_other():
    assert dir(seqtex) == seqtex.__all__ == sorted(seqtex.__all__)
    assert all(getattr(seqtex, name) is not None for name in seqtex.__all__)
    with pytest.raises(AttributeError, match="'seqtex' has no attribute 'bulid'"):
        seqtex.bulid  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_lazily():
    (block,) = [node for node in ast.parse(Path(seqtex.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == seqtex._MODULES and {*seen, "__version__"} == set(seqtex.__all__)
    packages = ("schemas", "geometry", "pipeline", "training", "seqtex")
    assert all((REPO / package / "py.typed").is_file() for package in packages)


def test_options_are_those_of_the_configurations():
    assert BuildOptions.__annotations__.keys() == {field.name for field in fields(BuildConfig)}
    assert TrainOptions.__annotations__.keys() | {"preset"} == {field.name for field in fields(TrainConfig)}


def test_options_change_what_they_name_and_nothing_else():
    cfg = changed(preset("tiny"), {"run": {"max_steps": 3}, "data": {"augment": {"rotate_views": 0.5}}})
    assert cfg.data.augment.rotate_views == 0.5 and cfg.data.batch_size == preset("tiny").data.batch_size
    assert cfg.run.max_steps == 3 and cfg.run.accelerator == "cpu" and cfg.model == preset("tiny").model
    for wrong, name in (({"veiws": {}}, "veiws"), ({"views": {"size": 3}}, "views.size")):
        with pytest.raises(UsageError, match=f"^{name}: no such option; give one of"):
            changed(BuildConfig(), wrong)


def test_the_page_shows_every_name():
    assert all(f"`{name}`" in PAGE.replace("`, `", "` `") or f"seqtex.{name}" in PAGE for name in seqtex.__all__)


@pytest.mark.slow
def test_the_blocks_of_the_page_run_in_order(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    output = python("\n".join(blocks), tmp_path)
    assert "textured, " in output and "out/nothing/dataset.json: no such file" in output
    for name in ("sample.png", "mesh.glb", "texture.png", "run/checkpoint/seqtex.json"):
        assert (tmp_path / "out" / name).is_file()
