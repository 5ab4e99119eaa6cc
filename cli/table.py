"""Tables on standard output."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.text import printable


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> None:
    """One table; numbers to the right. Cells show as they are: what they hold may come from strangers."""
    table = Table(title=escape(printable(title)), title_justify="left")
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else escape(printable(str(cell))) for cell in row))
    Console().print(table)
