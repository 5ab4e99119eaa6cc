"""The `seqtex` command: its subcommands, with options from the dataclasses of the stages.

Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 interrupted (Ctrl-C), 143 ended by SIGTERM.
`--config FILE` reads options from YAML, `--print_config` writes them; `--log json` writes events as JSON lines for
programs."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import TextIOWrapper
from itertools import pairwise
from types import FrameType

from schemas.errors import UserError, printable
from seqtex.cli.commands import COMMANDS
from seqtex.cli.terminal.console import LogFormat, begin_log, signs_of_life

INTERRUPTED, TERMINATED = 130, 143
BARE = frozenset({"-h", "--help", "--help-all", "--print_config", "--dry_run", "--json"})
"""Options that ask for a text, which nothing is to be added to."""
OTHERS = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Environment variables that are not 0 in all processes but the first of a training run."""


def command_first(arguments: Sequence[str], name: str | None) -> list[str]:
    """Turn `--log json COMMAND ...` into `COMMAND --log json ...`."""
    words = list(arguments)
    if name and words[0].partition("=")[0] == "--log":
        words.remove(name)
        words.insert(0, name)
    return words


def requested_format(arguments: Sequence[str]) -> LogFormat:
    """Return the format that `--log` asks for, before the parser has read the arguments; it rejects bad ones."""
    return "json" if ("--log", "json") in pairwise(arguments) or "--log=json" in arguments else "plain"


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
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if word in COMMANDS), None)
    arguments = command_first(arguments, name)
    begin_log(requested_format(arguments))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the encoding cannot write ends no command
    with ending_at_sigterm() as terminated, first_line(name, arguments):
        return _run(name, arguments, terminated)


def first_line(name: str | None, arguments: Sequence[str]) -> AbstractContextManager[None]:
    """Show signs of life until a command ends, first what it loads, unless it is asked for a text."""
    loads = COMMANDS[name].loads if name else ""
    asked = BARE.intersection(word.partition("=")[0] for word in arguments)
    if not loads or asked or any(os.environ.get(rank, "0") != "0" for rank in OTHERS):
        return nullcontext()
    return signs_of_life(f"starting  loading {loads}")


def _run(name: str | None, arguments: Sequence[str], terminated: Callable[[], bool]) -> int:
    try:
        from seqtex.cli.terminal.parser import parse_and_run  # a second, in which the first line is there

        return parse_and_run(name, arguments)
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


def program() -> int:
    """Run one command as a process of its own, which ends without a last look for garbage: that takes seconds among all
    that PyTorch and Lightning have made."""
    code = main()
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(program())
