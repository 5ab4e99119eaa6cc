"""Publishing to a hub: the bytes that arrive, interruptions, and everything that stops it before a byte is sent."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mlcroissant
import pytest
import yaml
from PIL import Image

import seqtex
from pipeline.dataset.verify import verify
from pipeline.publish.contact_sheet import MAX_SAMPLES, chosen
from pipeline.publish.licences import PUBLISHABLE, Use, use_of
from pipeline.publish.local_paths import PATH, local_paths
from pipeline.sources.selection import LICENCES
from schemas.dataset import ShardRecord, dataset_json, read_dataset_json, read_ledger
from schemas.mesh import Attribution, MeshRef
from schemas.sample import Regime
from seqtex.cli.main import main
from tests.support.hub_server import TOKEN, Hub, StoredRepo, git_id, serving
from tests.support.small_dataset import write_finished

REPO = "studio/forge"


def ref(number: int, licence: str = "CC0-1.0", uri: str = "objaverse://{}") -> MeshRef:
    source = Attribution(name="objaverse", licence=licence, title=f"thing {number}")
    return MeshRef(uid=f"asset-{number:03d}", uri=uri.format(number), source=source)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Three jobs of two samples each."""
    out = tmp_path_factory.mktemp("publish") / "forge"
    write_finished(out, [ref(number) for number in range(6)], 2)
    return out


@pytest.fixture
def dataset(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "forge"))


@pytest.fixture
def hub(monkeypatch):
    """A hub, for which this machine has a token, and whose errors are retried at once."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    with serving(Hub()) as hub:
        yield hub


def publish(dataset: Path, hub: Hub, *options: str) -> int:
    return main(["publish", str(dataset), "--repo", REPO, "--endpoint", hub.url, *options])


def events(text: str) -> dict[str, dict]:
    return {entry["event"]: entry for entry in map(json.loads, text.splitlines())}


def sent_files(dataset: Path) -> dict[str, bytes]:
    """The files of a dataset that are published as they are."""
    names = ["plan.parquet", "dataset.json", "index.json", "attribution.parquet"]
    paths = [*(dataset / "shards").iterdir(), *(dataset / "ledger").iterdir(), *(dataset / name for name in names)]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in paths}


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Bytes and times of all files of a folder."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# what arrives


@pytest.mark.parametrize(("part_bytes", "page"), [(None, 1000), (10_000, 3)], ids=["whole", "in parts and pages"])
def test_the_repository_has_the_bytes_of_the_dataset(dataset, hub, part_bytes, page, capsys):
    hub.part_bytes, hub.page = part_bytes, page
    before = state(dataset)
    assert publish(dataset, hub) == 0
    stored, expected = hub.repos[REPO].files, sent_files(dataset)
    assert {name: hashlib.sha256(stored[name]).hexdigest() for name in expected} == {
        name: hashlib.sha256(data).hexdigest() for name, data in expected.items()
    }
    assert stored.keys() - expected.keys() == {".gitattributes", "README.md", "croissant.json", "contact_sheet.webp"}
    assert state(dataset) == before and not hub.repos[REPO].private
    assert len(hub.repos[REPO].commits) == 1 and hub.tokens == {TOKEN}
    text = capsys.readouterr()
    assert "published" in text.out and f"{hub.url}/datasets/{REPO}: 13 files sent" in text.out
    assert TOKEN not in text.out + text.err


def test_a_downloaded_copy_is_a_dataset(dataset, hub, tmp_path):
    assert publish(dataset, hub) == 0
    for name, data in hub.repos[REPO].files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert verify(tmp_path / "copy") == []
    assert len(seqtex.Dataset(tmp_path / "copy")) == 6


LOADED = """
import sys, datasets
for streaming in (False, True):
    rows = datasets.load_dataset(sys.argv[1], "textured", split="train", streaming=streaming)
    print([(row["__key__"], row["uv_position.png"].mode, row["json"]["uid"]) for row in rows])
"""


def test_a_published_dataset_is_loaded_by_its_name(dataset, hub, tmp_path):
    """By a process of its own (ten seconds): `datasets` reads the address of the hub when it is imported."""
    assert publish(dataset, hub) == 0
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run([sys.executable, "-c", LOADED, REPO], env=env, capture_output=True, text=True)
    assert ran.stdout.splitlines() == 2 * [str([(uid, "I;16", uid) for uid in (f"asset-{n:03d}" for n in range(6))])], (
        ran.stderr
    )


def test_published_croissant_validates_without_a_warning(dataset, hub, tmp_path, capsys):
    """It has the day on which the repository was created, so that publishing again on another day sends nothing."""
    assert publish(dataset, hub) == 0
    hub.repos[REPO].created = "2026-11-02T23:59:59.000Z"
    assert publish(dataset, hub) == 0
    (tmp_path / "croissant.json").write_bytes(data := hub.repos[REPO].files["croissant.json"])
    issues = mlcroissant.Dataset(jsonld=tmp_path / "croissant.json").metadata.ctx.issues
    assert not issues.errors and not issues.warnings
    entries = json.loads(data)
    assert entries.pop("datePublished") == "2026-11-02"
    assert entries == json.loads((dataset / "croissant.json").read_text())
    capsys.readouterr()
    assert publish(dataset, hub, "--log", "json") == 0
    assert events(capsys.readouterr().out)["published"]["sent"] == 0


def test_the_card_shows_the_samples(dataset, hub):
    assert publish(dataset, hub) == 0
    stored = hub.repos[REPO].files
    card = stored["README.md"].decode()
    front, text = card.split("---\n")[1:3]
    assert yaml.safe_load(front)["license"] == ["cc0-1.0"]
    assert "](contact_sheet.webp)" in text and f"hf download {REPO} --repo-type dataset" in text
    own = (dataset / "README.md").read_text()
    assert [line for line in own.splitlines() if line not in card.splitlines()] == []
    with Image.open(io.BytesIO(stored["contact_sheet.webp"])) as sheet:
        assert sheet.size == (6 * 32, 32)  # six samples in a row, at the size of their views
        shown = sheet.convert("RGBA").crop((0, 0, 32, 32))
    front_view = seqtex.Dataset(dataset)[0].views
    assert (shown.getpixel((16, 16))[3] == 255) is bool(front_view.mask[0, 16, 16])


def test_a_contact_sheet_is_spread_evenly():
    shards = [
        ShardRecord(name=str(number), regime=Regime.TEXTURED, sha256="", bytes=0, count=count)
        for number, count in enumerate([100, 1, 0, 899])
    ]
    picked = {shard.name: numbers for shard, numbers in chosen(shards)}
    assert sum(map(len, picked.values())) == MAX_SAMPLES
    assert picked["0"] == [0, 41, 83] and len(picked["3"]) == MAX_SAMPLES - 3
    assert [numbers for _, numbers in chosen(shards[1:2])] == [[0]] and not list(chosen([]))


def test_nothing_else_is_uploaded(dataset, hub, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (dataset / "notes.txt").write_text("notes")
    (dataset / "key.pem").symlink_to(tmp_path / "secret")
    (dataset / "report").mkdir()
    (dataset / "report" / "index.html").write_text("gallery")
    (dataset / "ledger" / ".cache").mkdir()
    assert publish(dataset, hub) == 1  # whatever is among the shards or the ledger stops it
    (dataset / "ledger" / ".cache").rmdir()
    assert publish(dataset, hub) == 1  # and so does a link
    assert not hub.requests
    (dataset / "key.pem").unlink()
    assert publish(dataset, hub) == 0
    assert hub.repos[REPO].files.keys() == sent_files(dataset).keys() | {
        ".gitattributes",
        "README.md",
        "croissant.json",
        "contact_sheet.webp",
    }
    assert b"secret" not in b"".join(hub.repos[REPO].files.values())


def test_private_makes_a_private_repository(dataset, hub):
    assert publish(dataset, hub, "--private") == 0
    assert hub.repos[REPO].private
    assert publish(dataset, hub, "--private") == 0


def test_private_refuses_a_public_repository(dataset, hub, capsys):
    hub.repos[REPO] = StoredRepo(private=False)
    assert publish(dataset, hub, "--private") == 1
    assert "exists and is public" in capsys.readouterr().err
    assert not hub.objects and not hub.repos[REPO].commits


# once more


def test_a_second_run_has_nothing_to_do(dataset, hub, capsys):
    assert publish(dataset, hub) == 0
    before = dict(hub.requests)
    capsys.readouterr()
    assert publish(dataset, hub) == 0
    assert "nothing to do, it has all 13 files" in capsys.readouterr().out
    new = {line for line, count in hub.requests.items() if count > before.get(line, 0)}
    assert new == {f"GET /api/datasets/{REPO}", f"GET /api/datasets/{REPO}/tree/main"}


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_an_interrupted_upload_is_finished(dataset, hub, fault, capsys):
    """One shard never arrives in the first run. The second run sends it and what is left, nothing twice."""
    shards = [shard for part in read_ledger(dataset) for shard in part.shards]
    hub.fault = lambda method, path: fault if path.startswith(f"/storage/{shards[1].sha256}") else None
    assert publish(dataset, hub) == 1
    error = capsys.readouterr().err
    assert "run the same command again" in error and hub.url in error and TOKEN not in error
    assert hub.asked("PUT", shards[1].sha256) == 6  # huggingface_hub tries again five times
    assert not hub.repos[REPO].commits and shards[0].sha256 in hub.objects
    hub.fault = lambda method, path: None
    there, asked = set(hub.objects), hub.asked("PUT")
    assert publish(dataset, hub) == 0
    assert hub.asked("PUT") - asked == len(hub.objects) - len(there)
    assert set(hub.uploads.values()) == {1} and shards[1].sha256 in hub.objects
    assert sent_files(dataset).items() <= hub.repos[REPO].files.items()


def test_commits_that_were_made_are_kept(dataset, hub, monkeypatch, capsys):
    """Many files go in several commits, the card in the last one; a run that is stopped between them goes on there."""
    monkeypatch.setattr("pipeline.publish.hub.PER_COMMIT", 3)
    commits = []

    def fault(method: str, path: str) -> str | None:
        if "/commit/" in path:
            commits.append(path)
        return "500" if "/commit/" in path and len(commits) == 3 else None

    hub.fault = fault
    assert publish(dataset, hub) == 1
    assert "answers 500" in capsys.readouterr().err
    assert len(hub.repos[REPO].files) == 7 and "README.md" not in hub.repos[REPO].files
    assert publish(dataset, hub, "--log", "json") == 0
    done = events(capsys.readouterr().out)["published"]
    assert (done["present"], done["sent"], done["files"]) == (6, 7, 13)
    assert "README.md" in hub.repos[REPO].files and set(hub.uploads.values()) == {1}


def test_a_changed_dataset_replaces_the_one_there(finished, dataset, hub, tmp_path, capsys):
    """Shards and ledger parts of an earlier state go, since the card's patterns match them; files of others stay."""
    assert publish(dataset, hub) == 0
    hub.repos[REPO].files["notes.md"] = b"ours"
    smaller = tmp_path / "smaller"
    write_finished(smaller, [ref(number) for number in range(4)], 2)
    capsys.readouterr()
    assert publish(smaller, hub, "--log", "json") == 0
    done = events(capsys.readouterr().out)["published"]
    assert done["removed"] == ["ledger/000002.parquet", "shards/textured-000002.tar"]
    assert done["foreign"] == ["notes.md"] and done["present"] >= 4
    stored = hub.repos[REPO].files
    assert sent_files(smaller).items() <= stored.items() and stored["notes.md"] == b"ours"
    assert not stored.keys() & set(done["removed"])


def test_files_that_do_not_arrive_are_reported(dataset, hub, capsys):
    hub.repos[REPO] = StoredRepo(private=False, files={".gitignore": b"plan.parquet"})
    assert publish(dataset, hub) == 1
    assert "plan.parquet" in (error := capsys.readouterr().err) and ".gitignore" in error


# refused before a request


def test_a_damaged_shard_stops_it(dataset, hub, capsys):
    shard = next((dataset / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert publish(dataset, hub) == 1
    text = capsys.readouterr()
    assert shard.name in text.out and "sha256" in text.out and "seqtex repair" in text.err
    assert not hub.requests


@pytest.mark.parametrize("name", ["index.json", "ledger/000001.parquet", "README.md", "croissant.json"])
def test_an_unfinished_dataset_stops_it(dataset, hub, name, capsys):
    (dataset / name).unlink()
    assert publish(dataset, hub) == 1
    text = capsys.readouterr()
    assert name in text.out + text.err and "seqtex repair" in text.err and not hub.requests


def test_licences_that_forbid_it_stop_it(hub, tmp_path, capsys):
    licences = ["CC0-1.0", "CC-BY-ND-4.0", "", "Editorial", *["CC-BY-ND-4.0"] * 6, "CC-BY-NC-4.0"]
    write_finished(tmp_path / "forge", [ref(number, licence) for number, licence in enumerate(licences)], 6)
    assert publish(tmp_path / "forge", hub) == 1
    error = capsys.readouterr().err
    assert "9 samples have licences" in error and "--include_restricted" in error
    named = "asset-001, asset-004, asset-005, asset-006, asset-007, ..."
    assert f"7 under CC-BY-ND-4.0 (no derivatives, and a sample is one): {named}" in error
    assert "1 under no stated licence (without a licence all rights are reserved): asset-002" in error
    assert "1 under Editorial (not in the table" in error
    assert not hub.requests
    assert publish(tmp_path / "forge", hub, "--include_restricted", "--log", "json") == 0
    found = events(capsys.readouterr().out)["licences"]
    assert found["noncommercial"] == {"CC-BY-NC-4.0": 1} and sum(found["refused"].values()) == 9
    assert hub.repos[REPO].commits


def test_noncommercial_samples_are_published_and_named(hub, tmp_path, capsys):
    write_finished(tmp_path / "forge", [ref(0, "CC-BY-NC-SA-4.0"), ref(1, "MIT")], 2)
    assert publish(tmp_path / "forge", hub) == 0
    assert "any use: MIT (1); noncommercial use alone: CC-BY-NC-SA-4.0 (1)" in capsys.readouterr().out


def test_the_table_of_licences():
    assert {word: use_of(word) for word in LICENCES} == {
        "by": Use.ANY,
        "by-sa": Use.ANY,
        "by-nd": None,
        "by-nc": Use.NONCOMMERCIAL,
        "by-nc-sa": Use.NONCOMMERCIAL,
        "by-nc-nd": None,
        "cc0": Use.ANY,
    }
    for licence in (
        "",
        " ",
        "All rights reserved",
        "Other",
        "not stated",
        "CC-BY-ND-4.0",
        "MIT with exceptions",
        "GPL",
    ):
        assert use_of(licence) is None
    assert use_of("mit license") is use_of("apache-2.0") is use_of("CC0") is Use.ANY
    assert not [name for name in PUBLISHABLE if "ND" in name.split("-")]


def test_paths_of_this_machine_stop_it(hub, tmp_path, capsys):
    write_finished(tmp_path / "forge", [ref(0, uri="/home/someone/meshes/{}.glb"), ref(1)], 2)
    assert publish(tmp_path / "forge", hub) == 1
    error = capsys.readouterr().err
    assert "ledger/*.parquet: 1 (such as /home/someone/meshes/0.glb)" in error and "--include_paths" in error
    assert not hub.requests
    assert publish(tmp_path / "forge", hub, "--include_paths") == 0
    assert "/home/someone/meshes/0.glb" in capsys.readouterr().out
    assert b"/home/someone" not in b"".join(
        data for name, data in hub.repos[REPO].files.items() if name.endswith((".tar", ".md", ".json"))
    )


def test_paths_in_details_and_settings_are_found(dataset):
    """A failure may quote a file, and a setting may name one."""
    assert local_paths(dataset, read_ledger(dataset)) == []
    info, parts = read_dataset_json(dataset), read_ledger(dataset)
    select = {"select": {"captions": "/home/someone/captions.json"}}
    text = dataset_json(dataclasses.replace(info, config=info.config | select))
    (dataset / "dataset.json").write_bytes(text)
    outcome = dataclasses.replace(parts[0].outcomes[0], detail="no such file: '/home/someone/a.png'")
    parts[0] = dataclasses.replace(parts[0], outcomes=(outcome,))
    assert local_paths(dataset, parts) == [
        "details in ledger/*.parquet: 1 (such as /home/someone/a.png)",
        "settings in dataset.json: 1 (such as /home/someone/captions.json)",
    ]


def test_paths_within_texts_are_found():
    assert PATH.search("cannot open '/home/a/b.png'")[0] == "/home/a/b.png"
    for text in ("and/or this", "https://host/a/b", "textures/a/b.png", "/ 3", "1/2/3"):
        assert PATH.search(text) is None


def test_an_object_store_is_refused(capsys, hub):
    assert main(["publish", "s3://bucket/forge", "--repo", REPO, "--endpoint", hub.url]) == 2
    assert "s3://bucket/forge" in (error := capsys.readouterr().err) and "download" in error


@pytest.mark.parametrize("repo", ["forge", "a/b/c", "studio/", "studio/-forge", "studio/a b"])
def test_a_bad_name_is_refused(dataset, hub, repo, capsys):
    assert main(["publish", str(dataset), "--repo", repo, "--endpoint", hub.url]) == 2
    assert f"--repo {repo}" in capsys.readouterr().err and not hub.requests


# tokens and the network


def test_no_token(dataset, hub, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert publish(dataset, hub) == 1
    error = capsys.readouterr().err
    assert hub.url in error and "no token" in error and "hf auth login" in error and not hub.requests


@pytest.mark.parametrize("token", ["hf_wrongwrongwrong", "hf_wröng"])
def test_a_bad_token(dataset, hub, monkeypatch, token, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    assert publish(dataset, hub) == 1
    text = capsys.readouterr()
    assert "hf auth login" in text.err and hub.url in text.err and token not in text.out + text.err
    assert not hub.repos


@pytest.mark.parametrize("exists", [False, True])
def test_a_token_without_the_right_to_write(dataset, hub, exists, capsys):
    hub.writers = ("others",)
    if exists:
        hub.repos[REPO] = StoredRepo(private=False)
    assert publish(dataset, hub) == 1
    error = capsys.readouterr().err
    assert REPO in error and "may not write" in error and "403" in error and "studio" in error
    assert not hub.objects


def test_a_hub_that_cannot_be_reached(dataset, hub, capsys):
    assert main(["publish", str(dataset), "--repo", REPO, "--endpoint", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9: cannot be reached" in error and "run the same command again" in error


def test_a_hub_that_is_ill(dataset, hub, capsys):
    hub.fault = lambda method, path: "503" if path == f"/api/datasets/{REPO}" else None
    assert publish(dataset, hub) == 1
    assert "answers 503" in (error := capsys.readouterr().err) and "run the same command again" in error


def test_git_names_small_files_like_the_hub(tmp_path):
    from pipeline.publish.hub import git_blob_id

    (tmp_path / "file").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "file") == git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
