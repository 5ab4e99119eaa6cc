"""The folders hold what their names say, in sizes that a reader can hold: counts, lengths and import circles."""

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "geometry", "pipeline", "training", "seqtex")
MODULES = [path.relative_to(REPO) for package in PACKAGES for path in (REPO / package).rglob("*.py")]
FUNCTIONS = {
    f"{module}:{node.name}": node.end_lineno - node.lineno + 1
    for module in MODULES
    for node in ast.walk(ast.parse((REPO / module).read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
}

UNCLEAR = re.compile(r"(As|How|If|None where|Of|So|That|Those|What|When|Where|Whether|Which|Who|Whom|Whose|Why) ")
"""Openings of a docstring that answers a question, or needs the name beside it, instead of naming its thing."""
UNCHECKED = ("training/", "tests/training/")
"""Folders whose docstrings `test_every_docstring_names_its_thing` leaves out."""


def lines(module: Path) -> int:
    return len((REPO / module).read_text().splitlines())


def test_no_folder_holds_more_than_twelve_modules():
    counts = Counter(str(module.parent) for module in MODULES if module.name != "__init__.py")
    assert counts and not {folder: count for folder, count in counts.items() if count > 12}


def test_no_module_is_a_scrap_or_a_tome():
    scraps = [
        str(module)
        for module in MODULES
        if lines(module) < 40 and module.name != "__init__.py" and "kernels" not in str(module)
    ]
    assert not scraps
    assert not [str(module) for module in MODULES if lines(module) > 400]


def test_functions_fit_a_screen():
    assert len(FUNCTIONS) > 1000
    assert statistics.median(FUNCTIONS.values()) <= 9
    assert not {name: length for name, length in FUNCTIONS.items() if length > 85}


def unit(module: str) -> str:
    """The folder of a module, or the module itself where it stands beside the folders."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("grain", ["files", "folders"])
def test_no_import_goes_in_a_circle(grain):
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    name = unit if grain == "folders" else str
    imports: defaultdict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        imports[name(module)] |= {name(other) for other in graph.find_modules_directly_imported_by(module)}
        imports[name(module)] -= {name(module)}
    assert sum(map(len, imports.values())) > 50
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


def test_importing_the_public_face_is_quick_and_light():
    """Neither torch nor ray, in less than a second (the best of three: another program may be busy)."""
    script = (
        "import sys, time; start = time.perf_counter(); import seqtex; "
        "assert not {'torch', 'ray', 'lightning'} & set(sys.modules); print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", script]
    seconds = [
        float(subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout) for _ in range(3)
    ]
    assert min(seconds) < 1


def test_every_docstring_begins_with_a_sentence():
    """Public modules, classes and functions have a docstring where STYLE asks for one, and none begins with a word that
    answers a question nobody has asked."""
    unclear = ("What ", "Whether ", "Of ", "None where", "As `", "Where ", "How ", "Which ", "Those ", "That ", "Who")
    found = []
    for module in MODULES:
        tree = ast.parse((REPO / module).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").split("\n")[0]
                if first.startswith(unclear):
                    found.append(f"{module}:{getattr(node, 'lineno', 1)}: {first}")
    assert not found, "\n".join(found)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring: of modules, classes and functions, and those under attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text.strip()


def test_every_docstring_names_its_thing():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    found, count = [], 0
    for file in files.splitlines():
        if not file.startswith(UNCHECKED):
            for line, text in docstrings(ast.parse((REPO / file).read_text())):
                count += 1
                if UNCLEAR.match(text):
                    found.append(f"{file}:{line}: {text.splitlines()[0]}")
    assert count > 2000
    assert not found, "\n".join(found)
