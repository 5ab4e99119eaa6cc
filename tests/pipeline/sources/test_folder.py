"""A folder as a source: what is found, in which order, under which keys."""

import hashlib
import itertools
import re
from pathlib import Path

import pytest

from pipeline.sources.folder import folder, uid_of
from schemas.codec import EXTENSIONS, MATERIAL_FIELDS, UID_PATTERN
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


def test_the_longest_key_fits_a_plain_tar_header_with_every_extension_but_those_of_materials() -> None:
    names = [f"{'long name ' * 30}{number}.glb" for number in range(9)]
    keys = {uid_of(name) for name in names}
    assert len(keys) == len(names)
    assert max(len(f"{key}.{extension}") for key in keys for extension in EXTENSIONS - MATERIAL_FIELDS) == 100


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*not a folder"):
        list(folder(tmp_path / "nowhere"))


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("main", "side"),
    [
        ("a.gltf", ["a.bin", "tex/my image.png"]),
        ("b.obj", ["b.mtl", "wood grain.png"]),
    ],
)
def test_the_hash_is_of_what_a_file_refers_to_as_well(tmp_path: Path, main: str, side: list[str]) -> None:
    files = {
        "a.gltf": '{"buffers": [{"uri": "a.bin"}], "images": [{"uri": "tex/my%20image.png"}, {"uri": "../x.png"}]}',
        "b.obj": "v 0 0 0\n  mtllib b.mtl\r\nv 0 0 1\n",
        "b.mtl": "newmtl one\nmap_Kd -clamp on wood grain.png\n",
    }
    write_files(tmp_path / "in", dict.fromkeys(side, "x") | {"other.png": "x"} | files)
    write_files(tmp_path, {"x.png": "x"})

    def found() -> str | None:
        return next(ref.sha256 for ref in folder(tmp_path / "in") if ref.uri.endswith(main))

    before = found()
    write_files(tmp_path, {"x.png": "y", "in/other.png": "y"})
    assert found() == before, "no file outside, and none that is not referred to"
    for name in side:
        text = (tmp_path / "in" / name).read_text()
        (tmp_path / "in" / name).write_text(text + " ")
        assert found() != before, name
        (tmp_path / "in" / name).unlink()
        assert found() != before, name
        (tmp_path / "in" / name).write_text(text)
        assert found() == before


def test_a_file_that_stands_alone_has_its_own_hash(tmp_path: Path) -> None:
    files = {
        "a.glb": "glTF",
        "b.gltf": '{"buffers": [{"uri": "data:;base64,AA=="}]}',
        "c.obj": "v 0 0 0\n",
        "d.gltf": "[[",
    }
    write_files(tmp_path, files | {"e.obj": ""})
    for ref in folder(tmp_path):
        assert ref.sha256 == hashlib.sha256(Path(ref.uri).read_bytes()).hexdigest()


def test_two_paths_of_one_short_hash_are_told_apart(tmp_path: Path) -> None:
    """Whoever wants two names of one uid finds them within a second; they get more digits, all others keep theirs."""
    found: dict[str, str] = {}
    for marks in itertools.product("-_ ", repeat=14):
        name = f"a{''.join(marks)}b.glb"
        if (other := found.setdefault(uid_of(name), name)) != name:
            break
    for path in (name, other, "b.glb"):
        (tmp_path / path).write_bytes(b"glTF")
    uids = {Path(ref.uri).name: ref.uid for ref in folder(tmp_path)}
    assert len(set(uids.values())) == 3 and uids["b.glb"] == uid_of("b.glb")
    assert all(UID_PATTERN.fullmatch(uid) for uid in uids.values())
