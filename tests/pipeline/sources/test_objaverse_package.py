"""The real `objaverse` package provides annotations: from our cache, filled from our mirror, with the same assets."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.sources import objaverse_package
from pipeline.sources.objaverse import ObjaverseConfig
from pipeline.sources.registry import open_source
from pipeline.sources.selection import SelectConfig
from schemas.errors import UserError
from schemas.mesh import MeshRef
from tests.support.objaverse_server import make_world, make_xl_world, serving

package = pytest.importorskip(
    "objaverse", reason="the package objaverse is not installed: pip install -e '.[objaverse]'"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The package's own downloads, which go to Hugging Face, are failures."""
    monkeypatch.setattr("urllib.request.urlretrieve", lambda url, path: pytest.fail(f"asks for {url}"))
    monkeypatch.setattr("requests.get", lambda url, **options: pytest.fail(f"asks for {url}"))


def listed(source: str, cfg: ObjaverseConfig, **select) -> list[MeshRef]:
    return list(open_source(source, Path("unused"), select=SelectConfig(**select), mirror=cfg))


@pytest.mark.parametrize(
    "select", [{}, {"licences": ("by", "cc0"), "min_faces": 500}, {"lvis": ("mug",)}, {"sample": 9}]
)
def test_the_package_selects_the_same_assets_from_our_mirror(tmp_path, monkeypatch, select):
    calls = []
    for own in (package.load_annotations, package.load_lvis_annotations):
        monkeypatch.setattr(package, own.__name__, lambda *args, own=own: calls.append(own) or own(*args))
    with serving(make_world(60, folders=20)) as world:
        ours = ObjaverseConfig(base_url=world.url, cache=str(tmp_path / "ours"))
        theirs = replace(ours, cache=str(tmp_path / "theirs"), package=True)
        expected = listed("objaverse:all", ours, **select)
        assert not calls
        assert listed("objaverse:all", theirs, **select) == expected and expected
    folders = 20 if "lvis" not in select else 6
    assert len(calls) == -(-folders // objaverse_package.FOLDERS) + ("lvis" in select), "few files at a time"
    assert package._VERSIONED_PATH.endswith(".objaverse/hf-objaverse-v1"), "it is left as it was"


def test_annotations_that_the_package_has_stored_are_not_asked_for(tmp_path):
    with serving(make_world(12)) as world:
        cfg = ObjaverseConfig(base_url=world.url, cache=str(tmp_path), package=True)
        before = listed("objaverse:lvis", cfg)
        asked = world.asked.copy()
        assert listed("objaverse:lvis", cfg) == before and world.asked == asked


def test_the_package_lists_the_same_assets_of_objaverse_xl(tmp_path):
    pytest.importorskip("objaverse.xl")
    with serving(make_xl_world(7)) as world:
        ours = ObjaverseConfig(base_url=world.url, xl_url=f"{world.url}/xl", cache=str(tmp_path / "ours"))
        theirs = replace(ours, cache=str(tmp_path / "theirs"), package=True)
        expected = listed("objaverse-xl:all", ours, licences=("MIT", "cc0", "by"))
        assert listed("objaverse-xl:all", theirs, licences=("MIT", "cc0", "by")) == expected
        assert {ref.uri.split("/")[2] for ref in expected} >= {"github", "smithsonian", "glbs"}


def test_a_package_that_is_absent_or_of_another_kind_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    with serving(make_world(3)) as world:
        cfg = ObjaverseConfig(base_url=world.url, cache=str(tmp_path), package=True)
        other = ModuleType("objaverse")
        other.__version__ = "9.9"
        monkeypatch.setitem(sys.modules, "objaverse", other)
        with pytest.raises(UserError, match=r"objaverse 9\.9 does not read .* leave out --objaverse\.package"):
            listed("objaverse:all", cfg)
        monkeypatch.setitem(sys.modules, "objaverse", None)
        with pytest.raises(UserError, match=r"cannot be imported .*install it \(pip install"):
            listed("objaverse:all", cfg)
