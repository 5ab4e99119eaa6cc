"""Errors that a user can fix. Their message names the file, the reason and the remedy; the command line prints it
without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """The work cannot be done with the given input: exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """The command got an option or argument that does not exist: exit code 2."""

    exit_code = 2


def require_between(name: str, value: int | float, lowest: int | float, highest: int | float) -> None:
    """Raise UsageError where an option lies outside its range."""
    if not lowest <= value <= highest:
        raise UsageError(f"{name} is {value}; give {lowest:g} to {highest:g}")


@contextlib.contextmanager
def explained(place: object, failure: str, remedy: str) -> Iterator[None]:
    """Raise an OSError within as a UserError that names the file (`place` if the error does not), the failure, its
    reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or place}: {failure} ({error.strerror or error}); {remedy}") from error


def storable(text: str) -> str:
    """Replace lone surrogates by ?: JSON can bring them, UTF-8 cannot hold them."""
    return text.encode(errors="replace").decode()


def printable(text: str) -> str:
    """Replace by ? all that would move a terminal's cursor or change its colours; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
