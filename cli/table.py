"""Tables on standard output."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from schemas.text import printable

WIDE = 1000
"""Columns of a pipe or file, where a row stays on its line."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> None:
    """One table; numbers to the right. Cells show as they are: what they hold may come from strangers."""
    console, table = Console(width=None if sys.stdout.isatty() else WIDE), Table()
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else escape(printable(str(cell))) for cell in row))
    if title:
        console.print(Text(printable(title), style="table.title"), soft_wrap=True)
    console.print(table)
