"""The log of a command on standard output: plain lines for people, JSON lines for programs."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from cli import plain

LogFormat = Literal["plain", "json"]


class Log:
    """Writes the events of a command to standard output, in the format that its `--log` names."""

    def __init__(self) -> None:
        self.begin("plain", time.monotonic)

    def begin(self, log_format: LogFormat, clock: Callable[[], float]) -> None:
        """Start the log of a command: time counts from here."""
        self.format = log_format
        self._clock, self._start = clock, clock()
        self._throttle = plain.Throttle()

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._start

    def event(self, event: str, facts: dict[str, Any]) -> None:
        """Write one line, whatever the event."""
        if self.format == "json":
            self._write(json.dumps({"event": event} | facts) + "\n")
        else:
            self._write(plain.line(self.elapsed, plain.sentence(event, facts)))

    def progress(self, text: str, share: float | None) -> None:
        """Write a plain line where one is due, unless a bar shows the same on the terminal."""
        shown = sys.stderr.isatty() and sys.stdout.isatty()
        if self.format == "plain" and not shown and self._throttle.due(self.elapsed, share):
            self._write(plain.line(self.elapsed, text))

    def _write(self, line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()


_log = Log()
"""The log of the command that is running."""


def begin_log(log_format: LogFormat, clock: Callable[[], float] = time.monotonic) -> None:
    """Starts the log of a command; time counts from here."""
    _log.begin(log_format, clock)


def set_format(log_format: LogFormat) -> None:
    """Changes the format of the lines to come."""
    _log.format = log_format


def logs_json() -> bool:
    """Tell whether `--log json` was given: for commands whose result is a table or text otherwise."""
    return _log.format == "json"


def log_event(event: str, **facts: Any) -> None:
    """Write one line to standard output: a sentence, or a JSON object."""
    _log.event(event, facts)


def log_progress(text: str, share: float | None) -> None:
    """Write a plain line about work that goes on, where one is due: see `plain.Throttle`."""
    _log.progress(text, share)


def elapsed() -> float:
    """Seconds since the command began."""
    return _log.elapsed
