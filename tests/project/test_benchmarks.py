"""Every benchmark can be imported, and those that are programs tell their options."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (REPO / "benchmarks").glob("*.py") if path.stem != "__init__")

EACH = """
import contextlib, importlib, io, sys

for name in sys.argv[1:]:
    module = importlib.import_module(f"benchmarks.{name}")
    if hasattr(module, "main"):
        told, sys.argv = io.StringIO(), [name, "--help"]
        try:
            with contextlib.redirect_stdout(told):
                module.main()
        except SystemExit as ended:
            assert ended.code == 0, name
        assert "usage:" in told.getvalue(), name
        print(name)
"""


def test_every_benchmark_answers_help():
    """In one process: what they import takes longest."""
    ended = subprocess.run(
        [sys.executable, "-c", EACH, *MODULES], cwd=REPO, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    programs = {name for name in MODULES if "__main__" in (REPO / "benchmarks" / f"{name}.py").read_text()}
    assert set(ended.stdout.split()) == programs and len(programs) > 8
