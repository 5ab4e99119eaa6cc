"""The parser of the command line: options from the dataclasses of the stages. It takes a second to import."""

import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from importlib import import_module
from inspect import cleandoc, signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import shtab
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import register_type

import seqtex
from schemas.errors import UsageError
from schemas.storage import Location, location
from seqtex.cli.commands import COMMANDS, overview
from seqtex.cli.terminal.console import LogFormat, log
from seqtex.cli.terminal.help import CommandParser


def command_function(name: str) -> Callable[..., int]:
    """Import the function of a command."""
    return getattr(import_module(COMMANDS[name].module), COMMANDS[name].function or name)


def flat_configs(function: Callable[..., int]) -> dict[str, type]:
    """Return the dataclasses of a command's parameters `cfg`, `work` and `machine`, whose fields become options of the
    command."""
    return {name: kind for name, kind in get_type_hints(function).items() if name in ("cfg", "work", "machine")}


def add_options(parser: CommandParser, name: str, arguments: Sequence[str]) -> None:
    """Add the options of a command. Its module may have a function `defaults` for those that depend on the other
    arguments."""
    function, positional = command_function(name), COMMANDS[name].positional
    parser.add_argument("--config", action="config", help="read options from this YAML file")
    add_log_option(parser)
    if positional:
        optional = signature(function).parameters[positional].default is None
        kind = get_type_hints(function)[positional]
        several = get_args(kind) if get_origin(kind) is list else ()
        nargs = "+" if several else "?" if optional else None
        text = argument_text(function, positional)
        parser.add_argument(positional, type=several[0] if several else kind, nargs=nargs, help=text)
    configs = flat_configs(function)
    empty = [each.name for each in signature(function).parameters.values() if each.default is each.empty]
    parser.needed = tuple(option for option in empty if option not in configs)
    parser.add_function_arguments(function, skip={positional or "", *configs}, as_group=False)
    for config_class in configs.values():
        parser.add_class_arguments(config_class, as_group=False)
    for action in parser._actions:  # a flag may stand alone: --dry_run is --dry_run true
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    defaults = getattr(import_module(COMMANDS[name].module), "defaults", None)
    if defaults:
        parser.set_defaults(defaults(name, arguments))


def argument_text(function: Callable[..., int], name: str) -> str:
    """Return the text about an argument in a function's docstring."""
    found = re.search(
        rf"^    {name}: (.*?)(?=\n    \w+: |\Z)", cleandoc(function.__doc__ or ""), re.DOTALL | re.MULTILINE
    )
    return " ".join(found[1].split()) if found else ""


def add_log_option(parser: ArgumentParser) -> None:
    """Add `--log`, which every command has."""
    text = "events as short lines for people, or as JSON lines for programs, on standard output"
    parser.add_argument("--log", type=LogFormat, default="plain", help=text)


def build_parser(names: Collection[str], arguments: Sequence[str] = ()) -> CommandParser:
    """Make the parser. Only the commands of these names get their options, so that `seqtex --help` imports no stage."""
    description = "Build SeqTex data from 3D assets and train SeqTex on it."
    parser = CommandParser(prog="seqtex", description=description, version=seqtex.__version__, overview=overview())
    add_log_option(parser)
    subcommands = parser.add_subcommands(metavar="COMMAND")
    for name, command in COMMANDS.items():
        description = f"{command.summary[0].upper()}{command.summary[1:]}."
        sub = CommandParser(description=description, example=command.example, common=command.common)
        if name in names:
            add_options(sub, name, arguments)
        subcommands.add_subcommand(name, sub, help=command.summary)
        parser.commands[name] = sub
    return parser


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> int:
    """Print the completion of commands and options for a shell; see the example for how to use it.

    Args:
        shell: bash, zsh or tcsh
    """
    sys.stdout.write(shtab.complete(build_parser(COMMANDS), shell))
    return 0


def appending(name: str | None, arguments: Sequence[str]) -> list[str]:
    """Rewrite arguments for the parser: `--option+ value` appends to a list. The command's module may have a function
    `adapted` for further changes."""
    if name and (adapted := getattr(import_module(COMMANDS[name].module), "adapted", None)):
        arguments = adapted(name, arguments)
    flags = {f"--{option}" for option in COMMANDS[name].repeated} if name else set()
    split = (word.partition("=") for word in arguments)
    return [f"{flag}+{equals}{value}" if flag in flags else flag + equals + value for flag, equals, value in split]


def local_path(text: str) -> Path:
    """Return a file or folder of this machine. Raises UsageError for a URL."""
    if not isinstance(place := location(text), Path):
        raise UsageError(f"{text}: a URL cannot be given here; give a file or folder of this machine")
    return place


def run(name: str, options: dict[str, Any]) -> int:
    """Call a command with its options, those of its dataclasses put together again."""
    function = command_function(name)
    options.pop("config", None)
    log.format = options.pop("log")
    for parameter, config_class in flat_configs(function).items():
        options[parameter] = config_class(**{f.name: options.pop(f.name) for f in fields(config_class)})
    return function(**options)


def parse_and_run(name: str | None, arguments: Sequence[str]) -> int:
    """Run the command that some arguments ask for, the first one that is a command's name being `name`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    register_type(Location, deserializer=location)
    register_type(Path, deserializer=local_path, type_check=isinstance)
    parser = build_parser([name] if name else [], arguments)
    parsed = parser.instantiate(parser.parse_args(appending(name, arguments)))
    return run(parsed.subcommand, parsed[parsed.subcommand].as_dict())
