"""Errors that a user can fix. Their message names the file, the reason and the remedy; the command line prints it
without a traceback."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

_LOGIN = re.compile(r"://[^\s/?#]*@")
_PARAMETER = re.compile(r"([?&])([^=&\s#]{1,100})=([^&\s#'\"]+)")
_SECRETS = ("token", "secret", "password", "passwd", "pwd", "signature", "sig", "key", "credential", "auth")
"""Words in the names of parameters whose values nobody else may know."""


def redacted(text: str) -> str:
    """Replace what logs in, in the URLs of a text: user and password, and parameters such as tokens and signatures."""
    return _PARAMETER.sub(_without_value, _LOGIN.sub("://***@", text))


def _without_value(found: re.Match[str]) -> str:
    secret = any(word in found[2].lower() for word in _SECRETS)
    return f"{found[1]}{found[2]}=***" if secret else found[0]


def redacted_values(value: Any) -> Any:
    """Redact every text in nested values that become JSON, names of entries included."""
    if isinstance(value, dict):
        return {redacted(str(name)): redacted_values(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(entry) for entry in value]
    return redacted(value) if isinstance(value, str) else value


class UserError(Exception):
    """The work cannot be done with the given input: exit code 1. Its message keeps no password of a URL."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


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
    """Redact a text, and replace by ? all that would move a terminal's cursor or change its colours; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in redacted(text))
