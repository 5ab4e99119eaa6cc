"""The fault matrix of a dataset that comes from a stranger: no program of its own choice runs."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.blender.host import BlenderConfig
from pipeline.config import MachineConfig, built_config
from pipeline.dataset.plan import read_plan
from pipeline.dataset.verify import verify
from pipeline.sandbox.child import LimitsConfig
from pipeline.sandbox.policy import Policy, folder_of, interpreter_files, program_files, too_wide
from schemas.dataset import (
    canonical_json,
    config_hash,
    part_path,
    read_dataset_json,
    read_ledger_part,
    write_ledger_part,
)
from schemas.storage import staged, write_file, write_in_place
from seqtex.cli.main import main
from seqtex.cli.options import recorded_options
from tests.support.build_without_assets import CFG
from tests.trust.trust import Trust


def with_config(dataset: Path, change: Callable[[dict], None]) -> None:
    """Write another configuration, with the hashes that belong to it, as whoever made the dataset can."""
    entries = json.loads((dataset / "dataset.json").read_bytes())
    change(entries["config"])
    entries["config_sha256"] = config_hash(entries["config"])
    del entries["sha256"]
    entries["sha256"] = hashlib.sha256(canonical_json(entries)).hexdigest()
    (dataset / "dataset.json").write_text(json.dumps(entries, sort_keys=True, indent=2) + "\n")


COMMANDS = {
    "extend": ("--source", "procedural:1"),
    "retry": ("--reason", "crashed"),
    "repair": (),
    "inspect": ("--uid", ""),
}


@pytest.mark.trust(26)
@pytest.mark.parametrize("lit", ["none", "cycles"])
def test_no_program_that_a_dataset_names_is_started(
    trust: Trust, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lit: str
) -> None:
    """The program lies beside the root, so that its folder's folder is the whole machine. Every command that would use
    it refuses, and names the option."""
    program, started = tmp_path / "evil", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)

    def name_it(config: dict) -> None:
        config["blender"]["python"] = str(program)
        config["views"]["lit"] = lit

    with_config(dataset, name_it)
    uid, told = read_plan(dataset / "plan.parquet")[0].refs[0].uid, {}
    for command, options in COMMANDS.items():
        code = main([command, str(dataset), *(option or uid for option in options)])
        told[command] = (code, capsys.readouterr().err, started.exists())
    held = sum(code in (1, 2) and "--blender.python" in text and not ran for code, text, ran in told.values())
    trust.held(held, len(COMMANDS))
    assert held == len(COMMANDS), told


@pytest.mark.trust(26)
@pytest.mark.parametrize("name", LimitsConfig.__dataclass_fields__)
def test_no_dataset_raises_the_limits_of_an_asset(
    trust: Trust, dataset: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Every command that processes assets refuses and names the option; lower limits are the dataset's to choose."""
    most = getattr(LimitsConfig(), name)
    with_config(dataset, lambda config: config["limits"].update({name: 2 * most}))
    uid, told = read_plan(dataset / "plan.parquet")[0].refs[0].uid, {}
    for command, options in COMMANDS.items():
        code = main([command, str(dataset), *(option or uid for option in options)])
        told[command] = (code, capsys.readouterr().err)
    info = read_dataset_json(dataset)
    allowed = built_config(dataset, info, MachineConfig(limits=LimitsConfig(**{name: 2 * most})))
    with_config(dataset, lambda config: config["limits"].update({name: type(most)(most / 2)}))
    lower = built_config(dataset, read_dataset_json(dataset))
    held = [code == 1 and f"limits.{name}" in text for code, text in told.values()]
    held += [getattr(allowed.limits, name) == 2 * most, getattr(lower.limits, name) == type(most)(most / 2)]
    trust.held(sum(held), len(held))
    assert all(held), told


@pytest.mark.trust(26)
def test_a_dataset_remembers_that_there_was_blender_not_where(trust: Trust, dataset: Path) -> None:
    """Two machines whose Blender lies elsewhere write the same bytes; a path in an older dataset is not read."""
    here, there = (replace(CFG, blender=BlenderConfig(python=path)).recorded() for path in ("/a/python", "/b/python"))
    assert here == there != CFG.recorded() and "/a" not in str(here)
    with_config(dataset, lambda config: config["blender"].update(python="/evil/bin/python"))
    info = read_dataset_json(dataset)
    options = recorded_options(["extend", str(dataset)])
    held = [config_hash(info.config) == config_hash(here), "/evil" not in str(options), "blender.samples" in options]
    trust.held(sum(held), len(held))
    assert all(held)


@pytest.mark.trust(26)
def test_no_policy_opens_the_machine(trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an interpreter or an asset is called: never the root, a home, or what lies around this program."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").symlink_to(sys.executable)
    for name in ("chair.obj", "chair.mtl", "letter.txt"):
        (home / name).touch()
    monkeypatch.setenv("HOME", str(home))
    too_wide.cache_clear()
    wide = [Path("/"), home, home.parent, Path(sys.prefix).parent, Path.home().parent]
    opened = [
        *interpreter_files("/evil"),
        *interpreter_files(str(home / "bin/python")),
        *interpreter_files(str(home / "evil")),
        *folder_of(Path("/chair.obj")),
        *folder_of(home / "chair.obj"),
        *program_files(),
    ]
    refused = 0
    for folder in wide:
        with pytest.raises(ValueError, match="no policy"):
            Policy(readable=(folder,), devices=(), own=tmp_path / "own")
        refused += 1
    held = sum(folder not in opened for folder in wide) + refused
    too_wide.cache_clear()
    trust.held(held, 2 * len(wide))
    assert held == 2 * len(wide), opened
    assert home / "letter.txt" not in opened
    assert home / "chair.mtl" in opened and Path(sys.prefix).resolve() in opened, "what is needed can be read"


NESTED = b'{"config": ' * 5000 + b"1" + b"}" * 5000


@pytest.mark.trust(20)
def test_numbers_that_are_none_and_endless_nesting_get_a_sentence(
    trust: Trust, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` finds a ledger with NaN; no command ends with a traceback."""
    part = read_ledger_part(part_path(dataset, 0))
    broken = replace(part.outcomes[0], measurements=replace(part.outcomes[0].measurements, flatness=float("nan")))
    write_ledger_part(dataset, replace(part, outcomes=(broken, *part.outcomes[1:])))
    held = ["flatness" in " ".join(verify(dataset))]
    for command in ("report", "status", "failures"):
        code = main([command, str(dataset)])
        told = capsys.readouterr()
        held.append(code in (0, 1) and "000000.parquet" in told.out + told.err)
    (dataset / "dataset.json").write_bytes(NESTED)
    for command in ("status", "verify", "report", "repair"):
        code = main([command, str(dataset)])
        told = capsys.readouterr()
        held.append(code == 1 and "dataset.json" in told.out + told.err)
    trust.held(sum(held), len(held))
    assert all(held), held


LINKED = (".lock", "report", "latents", "shards", "index.json", "report/index.html", f".index.json.{os.getpid()}.tmp")
"""Links that a dataset may come with, to a file or a folder of whoever works with it."""
WRITERS: dict[str, tuple[str, ...]] = {
    "repair": (),
    "report": (),
    "retry": ("--reason", "flat"),
    "encode": ("--codec", "dct"),
    "publish": ("--repo", "someone/something", "--endpoint", "http://127.0.0.1:9"),
}


@pytest.mark.trust(29)
@pytest.mark.parametrize("command", WRITERS)
def test_no_command_writes_or_reads_through_a_link(
    trust: Trust, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Each refuses and names the link; what lies behind it stays as it was."""
    told = {}
    for name in LINKED:
        place, folder = dataset / name, tmp_path / "mine" / name.replace("/", "_")
        (dataset / "report").mkdir(exist_ok=True)
        kept = place.rename(tmp_path / "kept") if place.exists() else None
        folder.mkdir(parents=True)
        (folder / "letter").write_text("mine")
        target = folder if (kept and kept.is_dir()) or name == "latents" else folder / "letter"
        place.symlink_to(target)
        code = main([command, str(dataset), *WRITERS[command]])
        unchanged = {path.name: path.read_text() for path in folder.iterdir()} == {"letter": "mine"}
        told[name] = (code, unchanged, name.split("/")[-1] in capsys.readouterr().err)
        place.unlink()
        if kept is not None:
            kept.rename(place)
    held = sum(code == 1 and unchanged and named for code, unchanged, named in told.values())
    trust.held(held, len(LINKED))
    assert held == len(LINKED), told


@pytest.mark.trust(29)
def test_files_are_written_beside_links_not_through_them(trust: Trust, tmp_path: Path) -> None:
    """Also where the link came after the look: the staged file, a lock file, one with a second name."""
    (tmp_path / "letter").write_text("mine")
    write_file_at, lock_at, twice = tmp_path / "index.json", tmp_path / ".lock", tmp_path / "second"
    staged(write_file_at).symlink_to(tmp_path / "letter")
    write_file(write_file_at, b"new")
    lock_at.symlink_to(tmp_path / "letter")
    os.link(tmp_path / "letter", twice)
    refused = 0
    for path in (lock_at, twice):
        with pytest.raises(OSError, match=path.name):
            write_in_place(path, "new")
        refused += 1
    held = [write_file_at.read_bytes() == b"new", (tmp_path / "letter").read_text() == "mine", refused == 2]
    trust.held(sum(held), len(held))
    assert all(held)


@pytest.mark.trust(29)
def test_a_run_directory_with_a_link_is_refused(trust: Trust, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("mine")
    held = 0
    for name in (".lock", "losses.jsonl", "config.json", "states"):
        run = tmp_path / f"run-{name}"
        run.mkdir()
        (run / name).symlink_to(tmp_path / "letter")
        code = main(["train", "--data.directory", str(dataset), "--run.directory", str(run), "--run.max_steps", "1"])
        held += code == 1 and (tmp_path / "letter").read_text() == "mine"
    trust.held(held, 4)
    assert held == 4
