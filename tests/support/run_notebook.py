"""Run the code cells of a notebook in order, and write their outputs into it: `python -m tests.support.run_notebook`.

For notebooks of plain Python: no magics, no kernel, no package for notebooks."""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any]) -> None:
    """Run all code cells in one namespace; the last expression of a cell is displayed, as in a notebook."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = run_cell("".join(cell["source"]), namespace)
        cell["execution_count"], cell["outputs"] = number, []
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
        if value is not None:
            output = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown(value)}
            cell["outputs"].append(output)


def run_cell(source: str, namespace: dict[str, Any]) -> object:
    """Run one cell and return the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace) if last else None


def shown(value: object) -> dict[str, Any]:
    """Return a value as a notebook shows it: a picture if it has one, else text."""
    if picture := getattr(value, "_repr_png_", None):
        name = f"<{type(value).__name__}>"
        return {"image/png": base64.b64encode(picture()).decode(), "text/plain": [name]}
    return {"text/plain": repr(value).splitlines(keepends=True)}


def main(path: Path, folder: Path) -> None:
    """Run a notebook in `folder` and write it back."""
    notebook = json.loads(path.read_text())
    os.chdir(folder)
    run(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
