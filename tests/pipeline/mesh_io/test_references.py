"""References lead inside the root and nowhere else, and are followed there."""

import base64
import json
import os
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.dataset.plan import plan_bytes, plan_jobs, read_plan
from pipeline.executor.job import process_job
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, decode_data_uri
from pipeline.mesh_io.side_files import asset_sha256, side_files
from pipeline.sources.folder import folder
from schemas.dataset import part_path, read_ledger_part
from schemas.ledger import Reason, Rejected, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from tests.support.small_gltf import QUADRANTS, box, png
from tests.trust.test_trust_input import PATIENT, new_output


def place(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def followed(root: Path, name: str, encoded: bool = False, own: str = "a/model") -> tuple[str, int]:
    """The file that a reference of `root/OWN/x.gltf` is read from, relative to the root, and how many notes say so."""
    notes = Notes()
    found = Folders(root / own / "x.gltf", root, notes).find((name,), "x", encoded=encoded)
    return found.relative_to(root).as_posix(), len(notes.found())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("t.png", ("a/model/t.png", 0)),
        ("./t.png", ("a/model/t.png", 0)),
        (".\\maps\\s.png", ("a/model/maps/s.png", 0)),
        ("gone/../t.png", ("a/model/t.png", 0)),
        ("..\\shared\\u.png", ("a/shared/u.png", 0)),
        ("../../top.png", ("top.png", 0)),
        ("T.PNG", ("a/model/t.png", 1)),
        ("MAPS\\S.png", ("a/model/maps/s.png", 1)),
        ("../SHARED/u.PNG", ("a/shared/u.png", 1)),
        ("/home/me/t.png", ("a/model/t.png", 1)),
        ("C:\\me\\t.png", ("a/model/t.png", 1)),
        ("c:/me/T.png", ("a/model/t.png", 1)),
        ("\\\\server\\share\\t.png", ("a/model/t.png", 1)),
        ("FILE:///c:/t.png", ("a/model/t.png", 1)),
        ("../../../../t.png", ("a/model/t.png", 1)),
        ("textures/t.png", ("a/model/t.png", 1)),
        ("C:\\me\\model\\MAPS\\s.png", ("a/model/maps/s.png", 1)),
        ("/x/y/z/maps/s.png", ("a/model/maps/s.png", 1)),
        (unicodedata.normalize("NFD", "hölz.png"), ("a/model/hölz.png", 1)),
        ("HÖLZ.png", ("a/model/hölz.png", 1)),
        ("two.png", ("a/model/two.png", 0)),
        ("Two.png", ("a/model/Two.png", 0)),
        ("TWO.png", ("a/model/TWO.png", 0)),
        ("100%.png", ("a/model/100%.png", 0)),
        ("gone.png", ("a/model/gone.png", 0)),
    ],
)
def test_a_reference_is_followed(tmp_path: Path, name: str, wanted: tuple[str, int]) -> None:
    inside = ("t.png", "maps/s.png", unicodedata.normalize("NFC", "hölz.png"), "two.png", "Two.png", "100%.png")
    place(tmp_path, *(f"a/model/{file}" for file in inside), "a/shared/u.png", "top.png")
    assert followed(tmp_path, name) == wanted


def test_a_uri_has_escapes_and_a_name_has_none(tmp_path: Path) -> None:
    place(tmp_path, "a/model/my t.png", "a/shared/u.png")
    assert followed(tmp_path, "my%20t.png", encoded=True) == ("a/model/my t.png", 0)
    assert followed(tmp_path, "..%5Cshared%2Fu.png", encoded=True) == ("a/shared/u.png", 0)
    assert followed(tmp_path, "my%20t.png") == ("a/model/my%20t.png", 0), "which is not there"


def test_a_name_of_raw_bytes_is_found(tmp_path: Path) -> None:
    (tmp_path / "a/model").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/model/h\xf6lz.png")).write_bytes(b"x")
    notes = Notes()
    found = Folders(tmp_path / "a/model/x.obj", tmp_path, notes).find(("hölz.png",), "x")
    assert os.fsencode(found.name) == b"h\xf6lz.png" and len(notes.found()) == 1


@pytest.mark.parametrize(
    "name",
    ["../../../s.png", "/s.png", "C:\\s.png", "http://h/t.png", "HTTPS://h/t.png", "t.png\0", "link.png", "links/s.png",
     "LINK.png", "LINKS/s.png", "../../../t.png/../../s.png", "ftp:t.png"],
)  # fmt: skip
def test_nothing_leaves_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    place(tmp_path, "s.png", "root/a/model/t.png")
    (root / "a/model/link.png").symlink_to(tmp_path / "s.png")
    (root / "a/model/links").symlink_to(tmp_path)
    with pytest.raises(AssetError) as caught:
        found = Folders(root / "a/model/x.obj", root, Notes()).find((name,), "x")
        assert found.resolve().is_relative_to(root) and not found.exists(), found
        raise AssetError(Reason.UNSAFE_URI, "nothing was found in it")
    assert caught.value.rejected.reason == Reason.UNSAFE_URI


def test_a_link_may_stay_inside_the_root(tmp_path: Path) -> None:
    place(tmp_path, "shared/t.png", "a/model/x.gltf")
    (tmp_path / "a/model/maps").symlink_to(tmp_path / "shared")
    assert followed(tmp_path, "maps/t.png") == ("shared/t.png", 0)
    with pytest.raises(AssetError):
        Folders(tmp_path / "a/model/x.gltf", None, Notes()).find(("maps/t.png",), "x")


DATA = bytes(range(256)) + b"?"
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "payload",
    [TEXT, TEXT.rstrip("="), TEXT[:40] + "\r\n\t " + TEXT[40:] + "\n", TEXT.replace("=", "%3D"),
     "".join(f"%{ord(c):02x}" for c in TEXT), TEXT.replace("+", "%2B").replace("/", "%2f")],
)  # fmt: skip
@pytest.mark.parametrize("head", ["data:image/png;base64,", " DATA:;BASE64,", "data:a/b;charset=x; base64 ,"])
def test_data_uris_are_read_as_browsers_read_them(head: str, payload: str) -> None:
    assert decode_data_uri(head + payload, "x", 2000) == DATA


@pytest.mark.parametrize("payload", ["A", TEXT[:-1] + "!", "AA=A", "AAA==="])
def test_what_browsers_refuse_is_refused(payload: str) -> None:
    with pytest.raises(AssetError, match="not base64"):
        decode_data_uri(f"data:;base64,{payload}", "x", 2000)


def asking(path: Path, uri: str) -> Path:
    """A box as .glb or .gltf whose texture is another file."""
    builder = box()
    builder.tree["images"] = [{"uri": uri}]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".glb":
        path.write_bytes(builder.glb())
    else:
        buffer = {"uri": "data:;base64," + base64.b64encode(builder.data).decode(), "byteLength": len(builder.data)}
        path.write_text(json.dumps(builder.tree | {"buffers": [buffer]}))
    return path


def test_a_hash_covers_what_is_read_wherever_it_lies(tmp_path: Path) -> None:
    asking(tmp_path / "a/x.gltf", "..\\shared\\T.png")
    asking(tmp_path / "a/y.glb", "/home/me/t.png")
    asking(tmp_path / "a/z.glb", "gone.png")
    place(tmp_path, "shared/t.png", "a/t.png")
    (tmp_path / "a/w.obj").write_text("v 0 0 0\rmtllib m.mtl\\\n n.mtl\rv 0 0 1\r")
    (tmp_path / "a/m.mtl").write_text("\ufeffnewmtl a\rmap_Kd t.png\rmap_d ..\\shared\\t.png\r")
    (tmp_path / "a/n.mtl").write_text("")
    read = {name: sorted(side_files(tmp_path / "a" / name, tmp_path)) for name in ("x.gltf", "y.glb", "z.glb", "w.obj")}
    here = tmp_path / "a"
    assert read == {
        "x.gltf": [tmp_path / "shared/t.png"],
        "y.glb": [here / "t.png"],
        "z.glb": [here / "gone.png"],
        "w.obj": [here / "m.mtl", here / "n.mtl", here / "t.png", tmp_path / "shared/t.png"],
    }
    for name, files in read.items():
        for file in files:
            before, text = (
                asset_sha256(here / name, side_files(here / name, tmp_path)),
                file.read_bytes() if file.exists() else None,
            )
            file.write_bytes(b"changed")
            assert asset_sha256(here / name, side_files(here / name, tmp_path)) != before, (name, file)
            file.unlink() if text is None else file.write_bytes(text)
            assert asset_sha256(here / name, side_files(here / name, tmp_path)) == before
    roots = {Path(ref.uri).name: ref.root for ref in folder(tmp_path)}
    assert roots == dict.fromkeys(read, str(tmp_path))


def test_a_plan_keeps_roots_and_those_of_earlier_versions_are_read(tmp_path: Path) -> None:
    jobs = plan_jobs([MeshRef(uid="a", uri="/x/a.glb", root="/x"), MeshRef(uid="b", uri="/x/b.glb")], 8)

    path = tmp_path / "plan.parquet"
    path.write_bytes(plan_bytes(jobs))
    assert read_plan(path) == jobs
    pq.write_table(pq.read_table(path).drop(["root"]), path)
    assert [ref.root for job in read_plan(path) for ref in job.refs] == [None, None]


def test_a_sandboxed_child_reads_the_root_and_nothing_beyond(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "shared").mkdir(parents=True)
    for path in (root / "shared/t.png", root / "a/beside.png", tmp_path / "t.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(QUADRANTS))
    asking(root / "a/up.gltf", "../shared/t.png")
    asking(root / "a/whole.glb", "beside.png")
    asking(root / "a/out.gltf", "../../t.png")
    refs = list(folder(root))
    refs.append(MeshRef(uid="zz-alone", uri=str(root / "a/whole.glb")))  # as of a source whose .glb are whole
    refs.append(MeshRef(uid="zz-own", uri=str(root / "a/up.gltf")))
    process_job(ShardJob(index=0, refs=tuple(refs)), new_output(tmp_path / "out"), PATIENT)
    rows = read_ledger_part(part_path(tmp_path / "out", 0)).outcomes
    found = {Path(row.uri).stem if not row.uid.startswith("zz") else row.uid: row for row in rows}
    assert {name: row.reason for name, row in found.items() if row.status is Status.REJECTED} == {
        "out": Reason.UNSAFE_URI,
        "zz-alone": Reason.UNSAFE_URI,
        "zz-own": Reason.UNSAFE_URI,
    }
    assert {name for name, row in found.items() if row.status is Status.ACCEPTED} == {"up", "whole"}


def test_a_glb_without_a_root_refers_to_nothing(tmp_path: Path) -> None:
    path = asking(tmp_path / "a.glb", "t.png")
    (tmp_path / "t.png").write_bytes(png(QUADRANTS))
    found = load_asset(path, PreflightConfig())
    assert isinstance(found, Rejected) and found.reason == Reason.UNSAFE_URI
    assert not isinstance(load_asset(path, PreflightConfig(), tmp_path), Rejected)
