"""The process that `pipeline.sandbox.Zygote` starts: imports the target once, lets its module warm up where it has a
`warm_up`, and forks a child for every line it reads."""

import gc
import importlib
import json
import os
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType

from pipeline.sandbox import LimitsConfig, adopt_orphans, die_with_parent, kill_children, run_child


def main() -> None:
    """Arguments: module:function, process id of the parent, limits as JSON. One JSON line in and one out per asset."""
    target, parent, limits_json = sys.argv[1:]
    adopt_orphans()
    signal.signal(signal.SIGTERM, _end)
    die_with_parent(int(parent), signal.SIGTERM)
    # the pipe is ours alone: whatever a library prints goes to the log
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limits = LimitsConfig(**json.loads(limits_json))
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, name)
    if warm_up := getattr(module, "warm_up", None):
        warm_up()
    gc.collect()
    gc.freeze()  # children share these pages as long as nobody touches them
    try:
        for line in sys.stdin:
            message = json.loads(line)
            directory = Path(message["directory"])
            ended = run_child(partial(function, message["request"], directory), limits, directory)
            kill_children()
            channel.write(json.dumps(asdict(ended)) + "\n")
            channel.flush()
    finally:
        kill_children()


def _end(number: int, frame: FrameType | None) -> None:
    """Once only: the kernel sends the signal for every thread of a dying parent, and the second one must not break off
    the killing of children that the first one started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


if __name__ == "__main__":
    main()
