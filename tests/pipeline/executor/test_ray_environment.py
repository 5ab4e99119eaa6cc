"""Starting Ray on a machine that is busy."""

import inspect
import subprocess
import sys

import pytest
import ray._private.node

from pipeline.executor.ray_environment import STARTS, TIMED_OUT, patiently


class Starts:
    """A start of Ray that leaves a process and fails, some times."""

    def __init__(self, failures: int, message: str) -> None:
        self.failures, self.message = failures, message
        self.left: list[subprocess.Popen[bytes]] = []

    def __call__(self) -> str:
        if len(self.left) == self.failures:
            return "started"
        self.left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        raise Exception(self.message)

    def end(self) -> None:
        for process in self.left:
            process.kill()
            process.wait()


def test_ray_is_given_more_time_and_nothing_stays_of_an_attempt():
    mine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    start = Starts(STARTS - 1, f"The current node {TIMED_OUT}. This could happen")
    try:
        assert patiently(start) == "started"
        assert len(start.left) == STARTS - 1 == sum(process.poll() is not None for process in start.left)
        assert mine.poll() is None
    finally:
        mine.kill()
        mine.wait()
        start.end()


@pytest.mark.parametrize(("message", "attempts"), [(TIMED_OUT, STARTS), ("no space left", 1)])
def test_what_does_not_pass_is_raised(message, attempts):
    start = Starts(STARTS, message)
    try:
        with pytest.raises(Exception, match=message):
            patiently(start)
        assert len(start.left) == attempts
    finally:
        start.end()


def test_ray_still_says_so():
    assert TIMED_OUT in inspect.getsource(ray._private.node).replace('"\n                        "', "")
