"""Help on one screen, every option on demand, wrong words answered in one line, completion in a shell."""

import subprocess

import pytest

from seqtex.cli.commands import COMMANDS
from seqtex.cli.main import main

SCREEN = 46
"""Lines."""


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that the parser ends."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(str(ended.value.code)), out, err


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_a_screen_with_the_example_first(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = shown(["--help"] if name is None else [name, "--help"], capsys)
    lines = text.splitlines()
    assert code == 0 and len(lines) <= SCREEN and lines[0].startswith("usage: seqtex")
    if name:
        assert lines.index("example:") < lines.index("options:")
        options = lines[lines.index("options:") + 1 :]
        assert options[0].split()[1:] or options[1].startswith(" " * 32), "the first argument has no text"
    else:
        assert all(any(line.startswith(f"  {command} ") for line in lines) for command in COMMANDS)
    assert "SUPPRESS" not in text, "hidden options are hidden"


def test_all_options_are_shown_on_demand(capsys):
    _, some, _ = shown(["build", "--help"], capsys)
    _, everything, _ = shown(["build", "--help-all"], capsys)
    assert "options, in groups: seqtex build --help-all" in some
    for option in ("--views.resolution", "--unwrap.max_charts", "--run.straggler_s", "--preflight.max_nodes"):
        assert option in everything
    assert "--unwrap.max_charts" not in some and "--views.resolution" in some
    assert everything.count("\n") > 4 * SCREEN


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["buidl"], "seqtex: there is no buidl; did you mean build?"),
        ([], "seqtex: a command must be given"),
        (["build", "--resolution", "3"], "there is no option --resolution; did you mean --views.resolution or"),
        (["train", "--run.max_stepz", "3"], "there is no option --run.max_stepz; did you mean --run.max_steps or"),
        (["build", "--qqqqqqqqqq"], "seqtex build: there is no option --qqqqqqqqqq (seqtex build --help)"),
        (["build", "--views.resolution", "abc"], "seqtex build: --views.resolution abc: give a whole number"),
        (["build", "--views.lit", "foo"], "seqtex build: --views.lit foo: give none, pbr or cycles"),
        (["build", "--out", "here"], "seqtex build: --source must be given (seqtex build --help)"),
        (["inspect"], "seqtex inspect: DATASET and --uid must be given (seqtex inspect --help)"),
        (["merge", "--out", "here"], "DATASETS must be given"),
        (["verify", "one", "two"], "seqtex verify: two is one argument too many"),
        (["build", "--source"], "seqtex build: --source: expected one argument"),
    ],
)
def test_wrong_words_are_answered_in_one_line(arguments, answer, capsys, monkeypatch):
    monkeypatch.setattr("seqtex.cli.terminal.console.FIRST_S", 60.0)
    if arguments[:1] == ["build"] and len(arguments) > 1 and arguments[1] not in ("--out", "--source"):
        arguments = [*arguments, "--source", "procedural:1", "--out", "here"]
    code, out, err = shown(arguments, capsys)
    assert code == 2 and not out and err.count("\n") == 1
    assert answer in err


def test_a_shell_completes_commands_and_options(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_seqtex; "
        code += 'printf "%s\\n" "${COMPREPLY[@]}"'
        return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split())

    assert completed("seqtex", "bu") == {"build"}
    assert completed("seqtex", "build", "--views.") >= {"--views.resolution", "--views.lit"}
    assert "--data.directory" in completed("seqtex", "train", "--data.d")
