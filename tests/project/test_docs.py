"""What the documents name exists."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def headings(page: Path) -> set[str]:
    """As links name them."""
    texts = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_to_headings(page):
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    missing = [(file, name) for file, name in links if name not in headings(page.parent / file if file else page)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_options_and_commands_exist(page, capsys):
    from seqtex.cli.main import COMMANDS, main

    for line in re.findall(r"^(?:[^\s=]*bin/)?seqtex .*$", page.read_text(), flags=re.MULTILINE):
        words = line.split("#")[0].split()
        assert words[1] in COMMANDS, line
        with pytest.raises(SystemExit) as ended:
            main([words[1], "--help"])
        assert ended.value.code == 0
        help_text = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option.split("=")[0] in help_text, f"{line}: {option}"


FLAG = re.compile(r"(?<![\w-])--[a-z][\w.]*\*?")
FOREIGN = re.compile(r"(?:\S*/)?(aws|flock|pip|ray|docker|kubectl|sbatch|tensorboard|git|srun|make)\b")


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Every option of every command."""
    from jsonargparse import set_parsing_settings

    from seqtex.cli.main import COMMANDS, build_parser

    set_parsing_settings(docstring_parse_attribute_docstrings=False)  # names alone: without texts it is quick
    found = {}
    for name in COMMANDS:
        (choices,) = [a.choices for a in build_parser(name)._actions if getattr(a, "choices", None)]
        found[name] = {option for action in choices[name]._actions for option in action.option_strings}
    return found


def snippets(text: str) -> list[str]:
    """Lines of code blocks, and code within sentences."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`]+)`", prose)


def benchmark_options(name: str = "*") -> set[str]:
    return {flag for path in (REPO / "benchmarks").glob(f"{name}.py") for flag in FLAG.findall(path.read_text())}


def known(snippet: str, options: dict[str, set[str]], page: Path) -> tuple[str, set[str]]:
    """The part of a snippet whose options are ours, and the options that it may have."""
    every = set().union(*options.values(), benchmark_options() if page.stem in ("benchmarks", "scale") else ())
    if found := re.search(r"benchmarks\.(\w+)", snippet):
        return snippet, benchmark_options(found[1])
    if found := re.search(r"deploy/slurm(_train)?\.sh (.*)", snippet):
        return found[2], options["train" if found[1] else "build"]
    if found := re.search(r"\bseqtex (\w+)(.*)", snippet):
        return found[2], options.get(found[1], every)
    return ("", set()) if FOREIGN.match(snippet) else (snippet, every)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_every_option_that_is_named_exists(page, options):
    unknown = []
    for snippet in snippets(page.read_text()):
        text, allowed = known(snippet.split(" # ")[0], options, page)
        for flag in FLAG.findall(text):
            stem = flag.rstrip("*").rstrip(".")
            if not any(option.startswith(stem) if "*" in flag else option == stem for option in allowed):
                unknown.append((flag, snippet))
    assert not unknown
