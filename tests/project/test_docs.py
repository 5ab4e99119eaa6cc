"""Tests of the documents: links, options and command lines exist, tables are complete, words are plain."""

import re
import shlex
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
DOCS = sorted((REPO / "docs").rglob("*.md"))
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "SECURITY.md", *DOCS]
GALLERY = [path for path in sorted((REPO / "pipeline" / "report").rglob("*")) if path.suffix in (".py", ".js", ".html")]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))


# links


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def headings(page: Path) -> set[str]:
    """Return the anchors of a page."""
    texts = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pages
def test_links_lead_to_headings(page):
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    missing = [(file, name) for file, name in links if name not in headings(page.parent / file if file else page)]
    assert not missing


def test_the_readme_links_to_every_guide():
    links = set(re.findall(r"\]\((docs/[^)#]+)", (REPO / "README.md").read_text()))
    guides = {str(path.relative_to(REPO)) for path in (REPO / "docs").iterdir() if path.suffix in (".md", ".ipynb")}
    assert guides <= links


# options and commands


FLAG = re.compile(r"(?<![\w-])--[a-z][\w.]*\*?")
COMMAND = re.compile(r"^(?:[\w]+=\S+ +)*(?:\S*bin/)?seqtex +(?=[a-z])")
NAME = re.compile(
    r"(?<![\w./-])(?:data|filter|flow|latents|model|optimizer|run|tasks|unwrap|validation)"
    r"(?:\.(?!glb\b|jpeg\b|js(?:on)?\b|py\b)[a-z_]+)+(?![\w(/])"
)
FOREIGN = re.compile(
    r"(?:\S*/)?(aws|flock|pip|ray|docker|kubectl|sbatch|tensorboard|git|srun|make|python -m training)\b"
)


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Return every option of every command."""
    from jsonargparse import set_parsing_settings

    from seqtex.cli.commands import COMMANDS
    from seqtex.cli.main import main
    from seqtex.cli.terminal.parser import build_parser

    with pytest.raises(SystemExit):
        main(["--help"])  # registers the types of paths
    set_parsing_settings(docstring_parse_attribute_docstrings=False)  # names alone: without texts it is quick
    found = {}
    for name in COMMANDS:
        (choices,) = [a.choices for a in build_parser(name)._actions if getattr(a, "choices", None)]
        found[name] = {option for action in choices[name]._actions for option in action.option_strings}
    return found


def snippets(text: str) -> list[str]:
    """Return the lines of code blocks, continued ones joined, and the code within sentences."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return lines + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def benchmark_options(name: str = "*") -> set[str]:
    return {flag for path in (REPO / "benchmarks").glob(f"{name}.py") for flag in FLAG.findall(path.read_text())}


def known(snippet: str, options: dict[str, set[str]], page: Path) -> tuple[str, set[str]]:
    """Return the part of a snippet whose options are ours, and the options that it may have."""
    every = set().union(*options.values(), benchmark_options() if page.stem == "benchmarks" else ())
    if found := re.search(r"benchmarks\.(\w+)", snippet):
        return snippet, benchmark_options(found[1])
    if found := re.search(r"deploy/slurm(_train)?\.sh (.*)", snippet):
        return found[2], options["train" if found[1] else "build"]
    if found := re.search(r"\bseqtex ([\w-]+)(.*)", snippet):
        return found[2], options.get(found[1], every)
    return ("", set()) if FOREIGN.match(snippet) else (snippet, every)


@pages
def test_every_option_that_is_named_exists(page, options):
    unknown = []
    for snippet in snippets(page.read_text()):
        text, allowed = known(snippet.split(" # ")[0], options, page)
        for flag in FLAG.findall(text):
            stem = flag.rstrip("*").rstrip(".")
            if not any(option.startswith(stem) if "*" in flag else option == stem for option in allowed):
                unknown.append((flag, snippet))
    assert not unknown


@pages
def test_every_option_in_a_sentence_exists(page, options):
    """Options are named without dashes, too: `model.view_hint`."""
    every = set().union(*options.values())
    text = re.sub(r"^```\w*\n.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    names = {name for code in re.findall(r"`([^`]+)`", text) for name in NAME.findall(code)}
    assert not {name for name in names if f"--{name}" not in every}


@pages
def test_every_command_line_parses(page, tmp_path, monkeypatch, options):
    """In a code block, options and values too; in a sentence the name of the command."""
    from seqtex.cli.terminal.parser import appending, build_parser

    (tmp_path / "build.yaml").write_text("source: folder:meshes\nout: forge\nfilter:\n  min_faces: 12\n")
    (tmp_path / "mine.yaml").write_text("run:\n  seed: 1\n")
    monkeypatch.chdir(tmp_path)
    for line in snippets(page.read_text()):
        if not COMMAND.match(line) or "..." in line:
            continue
        words = shlex.split(COMMAND.sub("", line), comments=True)
        assert words[0] in options, line
        if len(words) == 1 or f"`{line}`" in page.read_text():
            continue
        try:
            build_parser(words[0], words).parse_args(appending(words[0], words))
        except SystemExit:
            pytest.fail(f"{page.name}: {line}")


# tables


def test_every_reason_is_explained():
    from schemas.ledger import Reason

    table = (REPO / "docs" / "operating.md").read_text().partition("### Every reason")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", table, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == [str(reason) for reason in Reason]


def test_a_build_lists_every_reason():
    from schemas.ledger import Reason

    section = (REPO / "docs" / "building.md").read_text().partition("| status | reasons |")[2].partition("\n\n")[0]
    listed = [name for cell in re.findall(r"\| `([\w ]+)` \|", section) for name in cell.split()]
    assert sorted(listed) == sorted(Reason)


def test_the_walkthrough_names_each_file_once():
    ways = (REPO / "docs" / "walkthrough.md").read_text().split("\n## ")[1:]
    assert len(ways) == 3
    for way in ways:
        files = re.findall(r"\]\(([^)]+)\)", way)
        assert len(files) == len(set(files)), way.splitlines()[0]


# words


PLAIN = {
    r"judg(e|es|ed|ing|ement|ments?)": "filter",
    r"verdicts?": "result, reason",
    r"faults?": "reason, error, problem",
    r"told|tells?|says": "reports, lists, names",
    r"(shut|closed) in": "sandboxed",
    r"rooms? (for|of)": "capacity, sandbox policy",
    r"zygotes?": "fork server",
    r"mend(s|ed|ing)?": "fix",
    r"made-up": "procedural",
    r"pass(es|ed|ing)? over": "skip",
    r"(leaves?|left|leaving) out": "exclude, reject",
    r"second (start|time)s?": "backup attempt",
    r"for want of|want of memory": "out of memory",
    r"sewn?|sews|sewed|sewing": "stitch",
    r"official (data )?layouts?": "SeqTex layouts",
    r"waits to learn": "data wait",
    r"unless told": "by default",
    r"becomes? of|became of": "outcome",
    r"owed to": "attribution",
    r"goes by its": "is called",
    r"worth learning( from)?": "accepted",
    r"promises?": "requirement, result",
    r"walls?": "sandbox",
    r"address(es)?": "URL",
    r"(?<!activation )checkpointing": "activation checkpointing",
    r"levels? of noise": "noise level",
    r"grown layouts?": "new layout",
}
"""Words of a private vocabulary, and what to write instead."""
ALLOWED = {
    r"fault(s|y)? (matrix|injection)|page faults|(kinds of|injected|32) faults|\| fault \|": "fault injection",
    r"address space|IP address|address and undefined-behaviour sanitizers": "terms of operating systems",
    r"wall clock": "a term of operating systems",
    r"new Promise": "JavaScript",
}


def prose(path: Path) -> str:
    """Return the text of a page without code, or a whole source file."""
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`]+`|\]\([^)]+\)", "`", text)
    return re.sub("|".join(ALLOWED), "", " ".join(text.split()), flags=re.IGNORECASE)


@pytest.mark.parametrize(
    "path", [*PAGES, REPO / "CHANGELOG.md", *GALLERY], ids=lambda path: str(path.relative_to(REPO))
)
def test_words_are_plain(path):
    text = prose(path)
    found = [
        f"{text[max(0, match.start() - 40) : match.end() + 20]!r}: write {instead}"
        for words, instead in PLAIN.items()
        for match in re.finditer(rf"(?<![\w-])({words})(?![\w-])", text, flags=re.IGNORECASE)
    ]
    assert not found, "\n".join(found)
