"""A folder as a source: what is found, in which order, under which keys."""

import hashlib
import re
from pathlib import Path

import pytest

from pipeline.sources.folder import folder, uid_of
from schemas.errors import UserError


def test_finds_meshes_and_nothing_else(tmp_path: Path) -> None:
    names = ["b.glb", "a/scene.gltf", "a/scene.bin", "a/x.OBJ", "note.txt", "c.GLB", "a.glb/inner.obj"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(name.encode())
    refs = list(folder(tmp_path))
    assert [Path(ref.uri).relative_to(tmp_path).as_posix() for ref in refs] == [
        "a.glb/inner.obj",
        "a/scene.gltf",
        "a/x.OBJ",
        "b.glb",
        "c.GLB",
    ]
    assert refs[3].sha256 == hashlib.sha256(b"b.glb").hexdigest()
    assert refs == list(folder(tmp_path))


@pytest.mark.parametrize(
    "name", ["a b.glb", "$(touch x).glb", "'\"\n.glb", "ünï/çødé.obj", "x" * 200 + ".glb", "-.glb"]
)
def test_keys_are_safe(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    (ref,) = folder(tmp_path)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,200}", ref.uid)
    assert Path(ref.uri).read_bytes() == b"x"


def test_keys_are_distinct_where_slugs_are_not() -> None:
    names = ["a b.glb", "a_b.glb", "a/b.glb", "a_b.obj", "A_b.glb"]
    assert len({uid_of(name) for name in names}) == len(names)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*not a folder"):
        list(folder(tmp_path / "nowhere"))
