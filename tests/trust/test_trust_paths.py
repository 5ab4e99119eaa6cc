"""The fault matrix of paths: records that travel have none of the machine that wrote them."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.dataset.folders import FILE, located, portable
from pipeline.dataset.plan import plan_bytes, read_plan
from pipeline.dataset.verify import verify
from pipeline.executor.build import build
from pipeline.publish.local_paths import local_paths
from pipeline.sources.procedural import procedural
from schemas.dataset import read_ledger
from schemas.errors import UserError
from schemas.ledger import Measurements, Note, NoteKind, Outcome, Reason, Status
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from seqtex.cli.main import main
from tests.support.small_build import CFG
from tests.training.test_training import small_config
from tests.trust.trust import Trust
from training.train import train

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """Meshes, one that cannot be read, and one that names files of somebody else's machine and of this one."""
    folder = tmp_path / "my assets"
    list(procedural(2, folder / "deep"))
    (folder / "broken.glb").write_bytes(b"glTF")
    (folder / "chair.obj").write_text(f"mtllib {folder}/none.mtl /home/artist/chair/wood.mtl\nv 0 0 0\nf 1 1 1\n")
    return folder


def written(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder, Parquet as text."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        rows = str(pq.read_table(io.BytesIO(data)).to_pylist()).encode() if path.suffix == ".parquet" else b""
        yield path, data + rows


@pytest.mark.trust(30)
def test_no_artefact_names_a_folder_of_this_machine(
    trust: Trust, assets: Path, tmp_path: Path, without_ray: None
) -> None:
    """A build with rows of every kind, its gallery, its latents, and a training run: the one file that has the folder
    of the assets is none of the published ones."""
    out, run = tmp_path / "forge", tmp_path / "run"
    build(f"folder:{assets}", out, CFG)
    codes = [main(["report", str(out)]), main(["encode", str(out), "--codec", "dct"])]
    train(small_config(out, run, max_steps=2))
    found = {}
    for folder in (out, run):
        for path, data in written(folder):
            found[str(path.relative_to(tmp_path))] = any(bytes(name) in data for name in (tmp_path, REPO))
    named = [name for name, spilt in found.items() if spilt]
    held = [not spilt for name, spilt in found.items() if name != f"forge/{FILE}"]
    held += [code == 0 for code in codes] + [local_paths(out, read_ledger(out)) == [], verify(out) == []]
    trust.held(sum(held), len(held))
    assert named == [f"forge/{FILE}"] and all(held), (named, local_paths(out, read_ledger(out)))
    assert len({row.uri for part in read_ledger(out) for row in part.outcomes}) == 4


@pytest.mark.trust(30)
def test_a_source_that_has_moved_is_named_again(
    trust: Trust, assets: Path, tmp_path: Path, without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command with the new folder finds nothing to do; without the file of folders `inspect` and `retry` name
    the option, and work with it."""
    out, moved = tmp_path / "forge", tmp_path / "moved"
    build(f"folder:{assets}", out, CFG)
    uid = next(row.uid for part in read_ledger(out) for row in part.outcomes if row.status is Status.ACCEPTED)
    assets.rename(moved)
    held = [build(f"folder:{moved}", out, CFG).jobs_run == 0, str(moved) in (out / FILE).read_text()]
    (out / FILE).unlink()
    for command in ("inspect", "retry"):
        code = main([command, str(out), "--uid", uid])
        held += [code == 1, "--folder" in capsys.readouterr().err]
        held += [main([command, str(out), "--uid", uid, "--folder", str(moved)]) == 0]
    (out / FILE).write_text('{"0": "here"}')
    held += [main(["repair", str(out)]) == 1, FILE in capsys.readouterr().err]
    trust.held(sum(held), len(held))
    assert all(held), held


@pytest.mark.trust(30)
@pytest.mark.parametrize(("uri", "root"), [("../../etc/passwd.obj", None), ("a/../../b.glb", None), ("a.glb", "..")])
def test_a_plan_does_not_lead_out_of_its_folder(trust: Trust, tmp_path: Path, uri: str, root: str | None) -> None:
    refs = (MeshRef(uid="a", uri=uri, root=root),)
    (tmp_path / "plan.parquet").write_bytes(plan_bytes([ShardJob(index=0, refs=refs)]))
    with pytest.raises(UserError, match="leads out of its folder"):
        read_plan(tmp_path / "plan.parquet")
    trust.held(1, 1)


def test_details_keep_what_helps() -> None:
    """A traceback keeps the files of the program, a reference its name, a URL everything."""
    text = (
        f"File \"{REPO}/pipeline/asset.py\", line 3; /data/my meshes/sub/a.glb: '/home/artist/b c/wood.png' is "
        "missing; see https://host/a/b and nodes/3/mesh"
    )
    row = Outcome(
        uid="a", uri="sub/a.glb", sha256=None, status=Status.FAILED, regime=None, reason=Reason.CRASHED, detail=text,
        shard=None, seconds=1.0, measurements=Measurements(),
        notes=(Note(kind=next(iter(NoteKind)), count=1, detail="/data/my meshes/wood.png"),),
    )  # fmt: skip
    kept = portable(row, "/data/my meshes", Path("/out"))
    assert kept.detail == (
        "File \"pipeline/asset.py\", line 3; sub/a.glb: '…/b c/wood.png' is missing; "
        "see https://host/a/b and nodes/3/mesh"
    )
    assert kept.notes[0].detail == "wood.png"
    assert replace(kept, detail="", notes=()) == replace(row, detail="", notes=())


def test_an_asset_is_found_in_its_folder() -> None:
    inside, remote = MeshRef(uid="a", uri="sub/a.glb", root="."), MeshRef(uid="b", uri="objaverse://a.glb")
    assert located(inside, "/data/m") == MeshRef(uid="a", uri="/data/m/sub/a.glb", root="/data/m")
    assert located(remote, "/data/m") == remote and located(inside, None) == inside
