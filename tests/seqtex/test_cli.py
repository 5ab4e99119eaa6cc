"""The command line as a user meets it: help, exit codes, messages that name file, reason and remedy."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import seqtex
from pipeline.sources.procedural import procedural
from seqtex.cli.commands import COMMANDS
from seqtex.cli.main import main
from seqtex.cli.terminal.console import print_table
from tests.seqtex.test_whole_path import cube_glb


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text and f"seqtex {name}" in text and "--log {plain,json}" in text


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"seqtex {seqtex.__version__}\n"


def test_print_config_can_be_read_back(tmp_path, capsys):
    options = ["--source", "procedural:3", "--out", str(tmp_path / "d"), "--views.resolution", "96"]
    with pytest.raises(SystemExit):
        main(["build", *options, "--print_config"])
    first = capsys.readouterr().out
    assert "resolution: 96" in first
    (tmp_path / "build.yaml").write_text(first)
    with pytest.raises(SystemExit):
        main(["build", "--config", str(tmp_path / "build.yaml"), "--print_config"])
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["build", "--sauce", "x"], ["build", "--source", "folder:."], ["train", "--run.max_steps", "many"]],
)
def test_bad_options_end_with_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_presets_and_sources_that_do_not_exist_end_with_2(tmp_path, capsys):
    assert main(["train", "--preset", "huge"]) == 2
    assert "tiny, small, full" in capsys.readouterr().err
    assert main(["build", "--source", "cloud:x", "--out", str(tmp_path / "d")]) == 2
    assert "folder:PATH" in capsys.readouterr().err
    assert main(["build", "--source", f"folder:{tmp_path / 'absent'}", "--out", str(tmp_path / "d")]) == 2
    assert str(tmp_path / "absent") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--views.resolution", "0"),
        ("--views.supersample", "0"),
        ("--uv.resolution", "-5"),
        ("--limits.timeout_s", "0"),
        ("--workers", "0"),
        ("--assets_per_job", "0"),
    ],
)
def test_values_out_of_range_end_with_2(option, value, tmp_path, capsys):
    assert main(["build", "--source", "procedural:2", "--out", str(tmp_path / "d"), option, value]) == 2
    assert option.removeprefix("--") in capsys.readouterr().err


def test_a_build_that_rejects_everything_says_so(tmp_path, capsys):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "cut.glb").write_bytes(cube_glb()[:500])
    assert main(["build", "--source", f"folder:{tmp_path / 'assets'}", "--out", str(tmp_path / "d")]) == 0
    assert "no asset was accepted" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "d")]) == 0, "a whole ledger of rejections is a whole dataset"


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    list(procedural(1, tmp_path / "assets", clean=True))
    code = main(["build", "--source", f"folder:{tmp_path / 'assets'}", "--out", str(tmp_path / "file" / "d")])
    assert code == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "file") in message and "--out" in message


@pytest.mark.parametrize("command", ["verify", "report"])
def test_a_folder_that_is_no_dataset(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 1
    assert "seqtex build" in capsys.readouterr().err


def test_texture_names_what_is_wrong_with_its_inputs(tmp_path, capsys):
    mesh, image, out = tmp_path / "cube.glb", tmp_path / "image.png", tmp_path / "out.glb"
    mesh.write_bytes(cube_glb())
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    rest = ["--image", str(image), "--checkpoint", str(tmp_path / "none"), "--out", str(out)]

    assert main(["texture", str(mesh), *rest]) == 1
    assert "seqtex.json" in (message := capsys.readouterr().err) and "seqtex train" in message
    assert main(["texture", str(mesh), *rest[:-1], str(tmp_path / "out.obj")]) == 2
    assert "out.obj" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_from_outside_steers_the_terminal(tmp_path, capsys):
    """Neither in a message nor in a table, where markup is no markup."""
    assert main(["verify", str(tmp_path / "\x1b[2Jno")]) == 1
    print_table(("uid",), [("[bold]\x1b[2Jname[/bold]",)], title="\x1b[2J[red]")
    written = capsys.readouterr()
    assert "?[2Jno: no such folder" in written.err and "[bold]?[2Jname[/bold]" in written.out and "[red]" in written.out
    assert "\x1b" not in written.err + written.out


@pytest.mark.slow
def test_an_interrupted_build_says_how_to_go_on(tmp_path):
    options = ["--source", "procedural:40", "--out", str(tmp_path / "out"), "--assets_per_job", "1", "--log", "json"]
    command = [str(Path(sys.executable).with_name("seqtex")), "build", *options]
    build = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any(json.loads(line)["event"] == "started" for line in build.stdout)
    build.send_signal(signal.SIGINT)
    _, errors = build.communicate(timeout=60)
    assert build.returncode == 130
    assert errors.strip() == "seqtex build: interrupted; run the same command again, what is finished is kept"
