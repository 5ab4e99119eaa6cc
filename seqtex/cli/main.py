"""The `seqtex` command: its subcommands, with options from the dataclasses of the stages.

Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 interrupted (Ctrl-C), 143 ended by SIGTERM.
`--config FILE` reads options from YAML, `--print_config` writes them; `--log json` writes events as JSON lines for
programs."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings
from jsonargparse.typing import register_type

import seqtex
from schemas.errors import UsageError, UserError, printable
from schemas.storage import Location, location
from seqtex.cli.console import LogFormat, begin_log, log

INTERRUPTED, TERMINATED = 130, 143


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A subcommand: its function, and a summary and an example for its help."""

    module: str
    """Module with a function of the command's name; imported only when the command runs."""
    summary: str
    example: str
    positional: str | None = None
    """Parameter that is given without a flag."""
    function: str | None = None
    """Name of its function, if it is not the command's."""
    repeated: tuple[str, ...] = ()
    """Options with a list of values that are given once per value."""


COMMANDS = {
    "demo": Command(
        module="seqtex.cli.demo",
        summary="every step on procedural meshes: build, verify, train, texture, report",
        example="seqtex demo --out out/demo",
    ),
    "build": Command(
        module="seqtex.cli.build",
        summary="build a dataset from 3D assets",
        example="seqtex build --source folder:/data/meshes --out /data/forge --workers 8",
    ),
    "verify": Command(
        module="seqtex.cli.inspect",
        summary="check every hash, count and sample of a dataset",
        example="seqtex verify /data/forge",
        positional="dataset",
    ),
    "status": Command(
        module="seqtex.cli.inspect",
        summary="show how far a dataset is: outcomes by stage, rate, slowest assets, shard sizes",
        example="seqtex status /data/forge",
        positional="dataset",
    ),
    "failures": Command(
        module="seqtex.cli.inspect",
        summary="list the assets that failed, with their stderr and a command that processes one alone",
        example="seqtex failures /data/forge --rejected",
        positional="dataset",
    ),
    "inspect": Command(
        module="seqtex.cli.inspect",
        summary="process one asset of a dataset alone and show its outcome",
        example="seqtex inspect /data/forge --uid chair-0a1b2c3d",
        positional="dataset",
    ),
    "retry": Command(
        module="seqtex.cli.build",
        summary="process again the assets that ended with a reason, or whose file was put right",
        example="seqtex retry /data/forge --reason timeout --reason missing_file",
        positional="dataset",
        repeated=("reason", "uid"),
    ),
    "repair": Command(
        module="seqtex.cli.build",
        summary="build again exactly the damaged or missing jobs of a dataset",
        example="seqtex repair /data/forge --workers 8",
        positional="dataset",
    ),
    "extend": Command(
        module="seqtex.cli.build",
        summary="add the assets of a source to a dataset",
        example="seqtex extend /data/forge --source folder:/data/more --workers 8",
        positional="dataset",
    ),
    "merge": Command(
        module="seqtex.cli.build",
        summary="put datasets of one configuration together",
        example="seqtex merge /data/forge /data/other --out /data/both",
        positional="datasets",
    ),
    "upgrade": Command(
        module="seqtex.cli.build",
        summary="write a dataset of schema version 2 anew in the present version",
        example="seqtex upgrade /data/old --out /data/forge",
        positional="dataset",
    ),
    "what-if": Command(
        module="seqtex.cli.inspect",
        summary="show what other thresholds would change in a dataset, by its ledger alone",
        example="seqtex what-if /data/forge --filter.min_color_std 0.02",
        positional="dataset",
        function="what_if",
    ),
    "report": Command(
        module="seqtex.gallery.commands",
        summary="write the gallery of a dataset (report/index.html)",
        example="seqtex report /data/forge --workers 8",
        positional="dataset",
        repeated=("run", "evaluation"),
    ),
    "view": Command(
        module="seqtex.gallery.commands",
        summary="serve the gallery of a dataset to a browser on this machine",
        example="seqtex view /data/forge",
        positional="dataset",
    ),
    "import": Command(
        module="seqtex.cli.export",
        summary="build a dataset from a folder in one of SeqTex's own data layouts",
        example="seqtex import /data/renders --layout seqtex-images --out /data/forge --workers 8",
        positional="folder",
        function="import_layout",
    ),
    "export": Command(
        module="seqtex.cli.export",
        summary="write a dataset in one of SeqTex's own data layouts",
        example="seqtex export /data/forge --layout seqtex-3d --out /data/official",
        positional="dataset",
    ),
    "publish": Command(
        module="seqtex.cli.export",
        summary="upload a dataset to a Hugging Face dataset repository",
        example="seqtex publish /data/forge --repo organisation/forge --private",
        positional="dataset",
    ),
    "attribution": Command(
        module="seqtex.cli.export",
        summary="write the attribution of a dataset as CSV that is safe in spreadsheets",
        example="seqtex attribution /data/forge --out attribution.csv",
        positional="dataset",
    ),
    "encode": Command(
        module="seqtex.cli.encode",
        summary="write the latents of a dataset, for training without its images",
        example="seqtex encode /data/forge --codec wan --text_encoder umt5 --device cuda",
        positional="dataset",
    ),
    "train": Command(
        module="seqtex.cli.train",
        summary="train SeqTex on a dataset",
        example="seqtex train --preset small --data.directory /data/forge --run.directory /data/run",
    ),
    "weights": Command(
        module="seqtex.cli.export",
        summary="write a checkpoint's weights as the released SeqTex code reads them, or its LoRA alone",
        example="seqtex weights /data/run/checkpoint --out /data/seqtex --lora merged",
        positional="checkpoint",
    ),
    "evaluate": Command(
        module="seqtex.cli.evaluate",
        summary="measure a checkpoint on the meshes of a dataset",
        example="seqtex evaluate /data/held_out --checkpoint /data/run/checkpoint --meshes 64 --out metrics.json",
        positional="dataset",
    ),
    "ablate": Command(
        module="seqtex.ablation.run",
        summary="train variants of the model on procedural meshes and compare them on held-out ones",
        example="seqtex ablate --out out/ablation --minutes 30 --seeds 3",
    ),
    "texture": Command(
        module="seqtex.cli.texture",
        summary="texture a mesh from one image, several views, or a text",
        example="seqtex texture chair.glb --image chair.png --checkpoint /data/run/checkpoint --out textured.glb",
        positional="mesh",
    ),
}


class HelpFormatter(DefaultHelpFormatter):
    """Help that keeps the example line of a command as it is written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def command_function(name: str) -> Callable[..., int]:
    """Import the function of a command."""
    return getattr(import_module(COMMANDS[name].module), COMMANDS[name].function or name)


def flat_configs(function: Callable[..., int]) -> dict[str, type]:
    """Return the dataclasses of a command's parameters `cfg`, `work` and `machine`, whose fields become options of the
    command."""
    return {name: kind for name, kind in get_type_hints(function).items() if name in ("cfg", "work", "machine")}


def add_options(parser: ArgumentParser, name: str, arguments: Sequence[str]) -> None:
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
        parser.add_argument(positional, type=several[0] if several else kind, nargs=nargs)
    configs = flat_configs(function)
    parser.add_function_arguments(function, skip={positional or "", *configs}, as_group=False)
    for config_class in configs.values():
        parser.add_class_arguments(config_class, as_group=False)
    for action in parser._actions:  # a flag may stand alone: --dry_run is --dry_run true
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    defaults = getattr(import_module(COMMANDS[name].module), "defaults", None)
    if defaults:
        parser.set_defaults(defaults(name, arguments))


def add_log_option(parser: ArgumentParser) -> None:
    """Add `--log`, which every command has."""
    text = "events as short lines for people, or as JSON lines for programs, on standard output"
    parser.add_argument("--log", type=LogFormat, default="plain", help=text)


def build_parser(name: str | None, arguments: Sequence[str] = ()) -> ArgumentParser:
    """Make the parser. Only command `name` gets its options, so that `seqtex --help` imports no stage."""
    description = "Build SeqTex data from 3D assets and train SeqTex on it."
    parser = ArgumentParser(prog="seqtex", description=description, version=seqtex.__version__)
    add_log_option(parser)
    subcommands = parser.add_subcommands(metavar="COMMAND")
    for command_name, command in COMMANDS.items():
        sub = ArgumentParser(
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=HelpFormatter,
        )
        if command_name == name:
            add_options(sub, name, arguments)
        subcommands.add_subcommand(command_name, sub, help=command.summary)
    return parser


def appending(name: str | None, arguments: Sequence[str]) -> list[str]:
    """Rewrite arguments for the parser: `--option+ value` appends to a list. The command's module may have a function
    `adapted` for further changes."""
    if name and (adapted := getattr(import_module(COMMANDS[name].module), "adapted", None)):
        arguments = adapted(name, arguments)
    flags = {f"--{option}" for option in COMMANDS[name].repeated} if name else set()
    split = (word.partition("=") for word in arguments)
    return [f"{flag}+{equals}{value}" if flag in flags else flag + equals + value for flag, equals, value in split]


def command_first(arguments: Sequence[str], name: str | None) -> list[str]:
    """Turn `--log json COMMAND ...` into `COMMAND --log json ...`."""
    words = list(arguments)
    if name and words[0].partition("=")[0] == "--log":
        words.remove(name)
        words.insert(0, name)
    return words


def requested_format(arguments: Sequence[str]) -> LogFormat:
    """Return the format that `--log` asks for, before the parser has read the arguments; it rejects bad ones."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return "json" if ("--log", "json") in pairs or "--log=json" in arguments else "plain"


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


@contextmanager
def ending_at_sigterm() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM end the command as Ctrl-C does, in the main thread of a process that would die of it; yields a
    function that returns whether it has come. (Ray passes a KeyboardInterrupt on, no class derived from it.)"""
    came = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: a second one must not break off the end
        came.set()
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield came.is_set
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (the parser itself exits with 2 on bad usage)."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    register_type(Location, deserializer=location)
    register_type(Path, deserializer=local_path, type_check=isinstance)
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if word in COMMANDS), None)
    arguments = command_first(arguments, name)
    begin_log(requested_format(arguments))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the encoding cannot write ends no command
    with ending_at_sigterm() as terminated:
        return _run(name, arguments, terminated)


def _run(name: str | None, arguments: Sequence[str], terminated: Callable[[], bool]) -> int:
    try:
        parser = build_parser(name, arguments)
        parsed = parser.instantiate(parser.parse_args(appending(name, arguments)))
        return run(parsed.subcommand, parsed[parsed.subcommand].as_dict())
    except UserError as error:
        sys.stderr.write(printable(f"seqtex {name}: {error}\n"))
        return error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(printable(f"seqtex {name}: {place}{error.strerror or error}\n"))
        return 1
    except KeyboardInterrupt:
        why = "ended by SIGTERM" if terminated() else "interrupted"
        sys.stderr.write(f"\nseqtex {name}: {why}; run the same command again, what is finished is kept\n")
        return TERMINATED if terminated() else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
