"""The dataset that a command line names, for what depends on it before the command line is read."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from schemas.errors import UserError
from schemas.storage import Location, location


def named_dataset(arguments: Sequence[str]) -> Location | None:
    """The first word behind the command that is one. Words behind an option, which may be its value, are looked at
    last. What is wrong with a word, its own reader says."""
    pairs = pairwise(arguments)
    for _, word in sorted(pairs, key=lambda pair: pair[0].startswith("-") and "=" not in pair[0]):
        with suppress(UserError, OSError):
            if not word.startswith("-") and ((place := location(word)) / "dataset.json").is_file():
                return place
    return None
