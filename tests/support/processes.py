"""Running processes, as tests see them."""

import time
from collections.abc import Callable
from pathlib import Path


def command_lines() -> list[str]:
    """Return the command line of every process; what was forked has that of what forked it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines


def until(condition: Callable[[], object], seconds: float) -> None:
    """Return once the condition holds; fail where it does not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.05)
