"""Help of the commands on one screen, all options with `--help-all`, and wrong words answered in one sentence."""

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from schemas.errors import printable
from schemas.storage import Location

WIDEST, WIDEST_OPTION = 100, 32
MOST_LINES = 3
"""Lines for an option in the short help."""
SOURCES = re.compile(r" \((ours|paper|released code)\b[^()]*\)")
"""Origin of a default: full help shows it."""
FEW_OPTIONS = 14
"""Options up to which a command's short help shows them all."""
EVERYWHERE = ("config", "log")
"""Options of every command, at the end of its help."""
HIDDEN = ("help", "help_all", "print_config", "print_shtab", "subcommand", "version")
NEEDED = "the following arguments are required: "
"""Beginning of the parser's message about what is missing; the names that follow may begin with their command's."""
COMMAND_OPTION = re.compile(r"([\w-]+)\.(.*)")
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "Location": "a folder or URL"}
"""Types in the words of a message."""


class HelpFormatter(DefaultHelpFormatter):
    """Help that keeps the example line of a command as it is written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class HelpAll(argparse.Action):
    """The option that prints every option of a command, in groups."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print the help and exit."""
        sys.stdout.write(parser.full_help())
        parser.exit()


class CommandParser(ArgumentParser):
    """A parser whose `--help` fits a screen and whose errors are one sentence."""

    def __init__(self, *, common: tuple[str, ...] = (), example: str = "", overview: str = "", **options: Any) -> None:
        """common: options that the short help of a command with many shows, by default those of no section. example: a
        command line. overview: the commands, listed before the options."""
        super().__init__(formatter_class=HelpFormatter, **options)
        self.common, self.example, self.overview = common, example, overview
        self.needed: tuple[str, ...] = ()
        """Options that must be given."""
        self.commands: dict[str, CommandParser] = {}
        if not overview:
            text = "show every option, in groups, and exit"
            self.add_argument("--help-all", action=HelpAll, nargs=0, default=argparse.SUPPRESS, help=text)

    def options(self) -> list[argparse.Action]:
        """Return the options that take part in help, without those that read a whole section from a file."""
        return [
            action
            for action in self._actions
            if action.dest not in HIDDEN and type(action).__name__ not in ("_ActionConfigLoad", "_ActionSubCommands")
        ]

    def format_help(self) -> str:  # type: ignore[override]
        """Return the usage, an example, and the options that people use, or the commands."""
        options = self.options()
        own = [action for action in options if action.dest not in EVERYWHERE]
        if some := len(own) > FEW_OPTIONS:
            names = self.common or [action.dest for action in own if "." not in action.dest]
            own = [action for name in names for action in own if action.dest == name]
        last = [action for action in options if action.dest in EVERYWHERE]
        parts = [f"usage: {self.short_usage()}\n", f"{self.description}\n"]
        parts += [f"example:\n  {self.example}\n"] if self.example else []
        parts += [self.overview] if self.overview else []
        parts += ["options:", *lines_of([*own, *last])]
        parts += [f"\nall {len(options)} options, in groups: {self.command} --help-all"] if some else []
        return "\n".join(parts) + "\n"

    def full_help(self) -> str:
        """Return every option with all that is known of it, in groups."""
        self.usage = self.short_usage()
        return super().format_help()

    @property
    def command(self) -> str:
        """The words that call the command."""
        return self.prog.replace(" [options]", "")

    def short_usage(self) -> str:
        """Return the command with what it needs."""
        needed = [action for action in self.options() if action.dest in self.needed or not action.option_strings]
        words = ["COMMAND"] if self.overview else []
        words += [" ".join([*action.option_strings[:1], value_name(action)]) for action in needed]
        return " ".join([self.command, *words, "[options]"])

    def as_given(self, dest: str) -> str:
        """Return an option or argument of this command as it is written on a command line."""
        given = {action.dest: action.option_strings for action in self._actions}
        return given[dest][0] if given.get(dest) else dest.upper() if dest in given else f"--{dest}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write what is wrong with the command line in one sentence, and end with 2."""
        missing = COMMAND_OPTION.fullmatch(message.removeprefix(NEEDED).partition(",")[0]) if self.overview else None
        parser = getattr(ex, "subcommand_parser", None) or (self.commands[missing[1]] if missing else self)
        sys.stderr.write(printable(f"{parser.command}: {explained(message, parser)} ({parser.command} --help)\n"))
        self.exit(2)


def lines_of(options: Iterable[argparse.Action]) -> Iterator[str]:
    """Yield options, at most a few lines for each: name and value, how its text begins, the default."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    for action in options:
        name = " ".join([*action.option_strings[:1], value_name(action)])
        shown = action.default not in (None, argparse.SUPPRESS, "", (), [], {}, False)
        default = f" (default: {action.default})" if shown and action.dest not in EVERYWHERE else ""
        text = SOURCES.sub("", first_sentence(action.help or ""))
        lines = textwrap.wrap(text + default, width - WIDEST_OPTION, break_on_hyphens=False) or [""]
        if len(lines) > MOST_LINES:
            lines = textwrap.wrap(text, width - WIDEST_OPTION, break_on_hyphens=False, max_lines=MOST_LINES)
        apart = len(name) + 3 > WIDEST_OPTION
        yield f"  {name}" if apart else f"  {name:{WIDEST_OPTION - 2}}{lines[0]}".rstrip()
        yield from (" " * WIDEST_OPTION + line for line in lines[0 if apart else 1 :])


def first_sentence(text: str) -> str:
    """Return the text up to its first semicolon, or full stop before a capital, outside brackets."""
    depth, flat = 0, " ".join(text.split())
    for place, letter in enumerate(flat):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and (letter == ";" or re.fullmatch(r"\.( [^a-z])?", flat[place : place + 3])):
            return flat[:place]
    return flat


def value_name(action: argparse.Action) -> str:
    """Return what stands for the value of an option: its choices, N for a number, or a word."""
    hint = getattr(action, "_typehint", None)
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return "{" + ",".join(kinds) + "}"
    kind: Any = kinds[0] if len(kinds) == 1 and get_origin(hint) not in (list, tuple) else hint
    if kind is bool or action.nargs == 0:
        return ""
    names = {int: "N", float: "N", str: "TEXT", None: "FILE", Path: "PATH", Location: "PATH"}
    name = names.get(kind, "LIST")
    if not action.option_strings:
        name = action.dest.upper()
    return f"{name}..." if action.nargs == "+" else f"[{name}]" if action.nargs == "?" else name


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """Return the names that a wrong word may stand for: the same word in another section, or a similar one."""
    known = list(names)
    bare = word.lstrip("-")
    same = [name for name in known if bare in name.lstrip("-").split(".")]
    return same[:3] or difflib.get_close_matches(word, known, n=2, cutoff=0.75)


def or_list(words: Sequence[str]) -> str:
    """Join words by commas and `or`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def explained(message: str, parser: CommandParser) -> str:
    """Put a message of the parser in a sentence that names the option and the remedy."""
    if unknown := re.match(r"unrecognized arguments: (\S+)", message):
        word = unknown[1].partition("=")[0]
        if not word.startswith("-"):
            return f"{word} is one argument too many"
        similar = nearest(word, [name for action in parser.options() for name in action.option_strings])
        return f"there is no option {word}{suggestion(similar)}"
    if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL):
        names = re.findall("'([^']+)'", choice[2])
        return f"there is no {choice[1]}{suggestion(nearest(choice[1], names))}"
    if message.startswith(NEEDED):
        names = [name.strip().rpartition(".")[2] for name in message.removeprefix(NEEDED).split(",")]
        return f"{' and '.join(map(parser.as_given, names))} must be given"
    if wrong := re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        return explained_value(parser.as_given(wrong[1]), " ".join(wrong[2].split()))
    if "but it was not provided" in message:
        return "a command must be given"
    return " ".join(message.removeprefix("argument ").split())


def suggestion(names: Sequence[str]) -> str:
    """Return a question whether one of some names is meant, empty without any."""
    return f"; did you mean {or_list(names)}?" if names else ""


def explained_value(option: str, problem: str) -> str:
    """Put a problem with the value of an option in a sentence."""
    expected = re.match(r"Expected a (.*)\. Got value: (.*)", problem)
    if not expected:
        return f"{option}: {problem}"
    kind = expected[1]
    if kind.startswith("typing.Literal"):
        choices = re.findall(r"[\w.-]+", kind.partition("[")[2])
        return f"{option} {expected[2]}: give {or_list(choices)}"
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    return f"{option} {expected[2]}: give {WORDS.get(name, name)}"
