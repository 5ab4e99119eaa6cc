"""Run-time shape checks on our packages, and the shared assets where they are present."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

REPO = Path(__file__).resolve().parents[1]

CHECKED = [
    *("schemas.codec", "schemas.dataset", "schemas.images", "schemas.ledger", "schemas.mesh", "schemas.sample"),
    *("geometry.frames", "geometry.cameras", "geometry.raster", "geometry.raster_cuda", "geometry.shading"),
    *(
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for path in REPO.glob("pipeline/**/*.py")
        if path.name != "__init__.py" and path.parent.name != "kernels"
    ),
    "training",
]
"""Modules whose annotations are checked at run time (numba kernels cannot be wrapped)."""

install_import_hook(CHECKED, "beartype.beartype")

from pipeline.executor.ray_environment import close_to_others  # noqa: E402 (after the import hook)

close_to_others()  # before a test imports Ray

pytest_plugins = ["tests.trust.trust", "tests.support.build_without_assets", "pytester"]


def shared(name: str) -> Path:
    return REPO.parent / "shared" / name


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """Folder of real 3D assets: $SEQTEX_ASSETS, else ../shared/assets."""
    path = Path(os.environ.get("SEQTEX_ASSETS", shared("assets")))
    if not (path / "assets.json").is_file():
        pytest.skip(f"shared assets are absent ({path}); set SEQTEX_ASSETS to their folder to run this test")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference numbers: $SEQTEX_GOLDEN, else ../shared/golden."""
    path = Path(os.environ.get("SEQTEX_GOLDEN", shared("golden")))
    if not (path / "cameras.json").is_file():
        pytest.skip(f"golden numbers are absent ({path}); set SEQTEX_GOLDEN to their folder to run this test")
    return path


@pytest.fixture(scope="session")
def layout_kernels() -> None:
    """Compiled, as in a build, before the time counts that a new layout may take."""
    from pipeline.executor.compile_kernels import LAYOUTS, load_kernels  # after the import hook

    load_kernels(LAYOUTS)
