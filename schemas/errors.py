"""Errors that a user can fix. Their message names the file, the reason and the remedy; the command line prints it
without a traceback."""


class UserError(Exception):
    """The work could not be done with what was given: exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """The command was asked for something that does not exist: exit code 2."""

    exit_code = 2


def require_between(name: str, value: int | float, lowest: int | float, highest: int | float) -> None:
    """Raises UsageError where an option lies outside its range."""
    if not lowest <= value <= highest:
        raise UsageError(f"{name} is {value}; give {lowest:g} to {highest:g}")


def storable(text: str) -> str:
    """Replace lone surrogates by ?: JSON can bring them, UTF-8 cannot hold them."""
    return text.encode(errors="replace").decode()


def printable(text: str) -> str:
    """Replace by ? all that would move a terminal's cursor or change its colours; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
