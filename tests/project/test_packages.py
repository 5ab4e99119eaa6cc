"""The five import packages are ours, not a stranger's of the same name."""

import importlib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["schemas", "geometry", "pipeline", "training", "seqtex"])
def test_package_lies_in_this_repository(package):
    assert Path(importlib.import_module(package).__file__).parent == REPO / package
