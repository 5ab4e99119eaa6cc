"""Waiting for object stores and file systems, but not for ever."""

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

STALL_S = 120.0
"""Seconds without a sign of life after which a request to a store counts as lost."""
ATTEMPTS = 3
"""Times that a lost request is made in all."""
WATCHDOG_S = 60.0
"""Seconds after which a file that is still being read is named."""
Result = TypeVar("Result")
Alive = Callable[[], None]
"""Called by a request whenever some of its bytes have come or gone."""

log = logging.getLogger(__name__)


def answered(url: str, request: Callable[[Alive], Result], attempts: int = ATTEMPTS) -> Result:
    """Return what a request returns, which runs in a thread of its own; make it again where nothing has been heard of
    it for `STALL_S`. Raises TimeoutError naming the URL once that has happened `attempts` times."""
    for _ in range(attempts):
        future, heard = Future[Result](), [time.monotonic()]

        def run(future: Future[Result] = future, heard: list[float] = heard) -> None:
            try:
                future.set_result(request(lambda: heard.append(time.monotonic())))
            except BaseException as error:  # the caller gets it, whatever it is
                future.set_exception(error)

        threading.Thread(target=run, daemon=True, name=f"request to {url}").start()
        while (left := heard[-1] + STALL_S - time.monotonic()) > 0:
            del heard[:-1]
            with contextlib.suppress(TimeoutError):
                future.exception(timeout=left)
            if future.done():
                return future.result()
    raise TimeoutError(errno.ETIMEDOUT, f"no answer for {STALL_S:g} s, {attempts} times in a row", url)


@contextlib.contextmanager
def watched(path: object) -> Iterator[None]:
    """Name a file in a warning where reading it takes longer than `WATCHDOG_S`: a file system that has stopped to
    answer holds whoever asks."""
    text = "%s: reading this file takes more than %g s; does its file system still answer?"
    watchdog = threading.Timer(WATCHDOG_S, log.warning, (text, path, WATCHDOG_S))
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
