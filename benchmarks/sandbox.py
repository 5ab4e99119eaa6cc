"""The cost of the sandbox of an asset's process beside that of another commit, all other code being the same:
`OMP_NUM_THREADS=1 python -m benchmarks.sandbox --before e7ee3eb`.

Processor seconds (user and system, of the process that forks, of its child and all descendants) from the fork of an
asset's process to its end. Both sides process the same made-up assets in turn, each asset once on either side in every
round, the side that begins changing with every pair. The sizes are those of the tiny preset, the smallest, where a
sandbox counts most; and a child that does nothing shows its whole price. Intervals are of 95 %, by resampling assets.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path
from tarfile import TarFile

import numpy as np

from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.executor.compile_kernels import warm_up
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sandbox.child import LimitsConfig, run_child
from pipeline.sandbox.policy import Policy, devices, program_files
from pipeline.sources.procedural import procedural
from schemas.codec import encode
from schemas.ledger import Rejected
from schemas.mesh import MeshRef

REPO = Path(__file__).resolve().parents[1]
CFG = BuildConfig(views=RenderConfig(resolution=64), uv=BakeConfig(resolution=128))
NOTHING = "nothing"


def work(uid: str, path: str) -> None:
    """Process an asset from its file to the encoded fields, as files; nothing without a path."""
    if not path:
        return
    result = process_asset(MeshRef(uid=uid, uri=path), CFG).result
    for name, data in ({} if isinstance(result, Rejected) else encode(result)).items():
        Path(name).write_bytes(data)


def processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def serve() -> None:
    """Process an asset for every line of standard input, and answer with its processor seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warm_up()
    program, hardware = program_files(), devices()
    for line in sys.stdin:
        uid, path = json.loads(line)
        with tempfile.TemporaryDirectory() as name:
            policy = Policy(readable=(*program, *([Path(path)] if path else [])), devices=hardware, own=Path(name))
            begun = processor_seconds()
            ended = run_child(partial(work, uid, path), LimitsConfig(), Path(name), policy=policy)
            seconds = processor_seconds() - begun
        if ended.reason is not None:
            raise RuntimeError(f"{uid}: {ended.detail}")
        answers.write(json.dumps(seconds) + "\n")
        answers.flush()


class Side:
    """A process that runs `serve` with the code of one folder."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.sandbox", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
        )

    def seconds(self, uid: str, path: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([uid, path]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def copy_with_sandbox_of(commit: str, folder: Path) -> None:
    """Write this program to `folder`, its sandbox as it was in `commit`."""
    for name in ("schemas", "geometry", "pipeline", "benchmarks"):
        shutil.copytree(REPO / name, folder / name)
    shutil.rmtree(folder / "pipeline/sandbox")
    archive = subprocess.run(["git", "archive", commit, "pipeline/sandbox"], cwd=REPO, capture_output=True, check=True)
    with TarFile(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """The ratio of the sums over assets, and its interval. `before`, `after`: (assets, rounds)."""
    rng, count = np.random.default_rng(0), len(before)
    chosen = rng.integers(0, count, (10_000, count))
    ratios = after.sum(1)[chosen].sum(1) / before.sum(1)[chosen].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return after.sum() / before.sum(), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="e7ee3eb", help="commit of the other sandbox, in this layout of folders")
    parser.add_argument("--assets", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as name:
        copy_with_sandbox_of(options.before, Path(name) / "before")
        sides = [Side(Path(name) / "before"), Side(REPO)]
        assets = [(ref.uid, ref.uri) for ref in procedural(options.assets, Path(name) / "assets")]
        for title, chosen in (("assets", assets), (NOTHING, [(NOTHING, "")] * options.assets)):
            for side in sides:
                side.seconds(*chosen[0])  # what is loaded once
            seconds = np.zeros((2, len(chosen), options.rounds))
            for turn in range(options.rounds):
                for number, asset in enumerate(chosen):
                    for which in (0, 1) if (turn + number) % 2 else (1, 0):
                        seconds[which, number, turn] = sides[which].seconds(*asset)
            before, after = 1000 * seconds.mean(axis=(1, 2))
            ratio, low, high = interval(*seconds)
            print(f"{title}: {before:.2f} -> {after:.2f} ms, ratio {ratio:.4f} ({low:.4f} to {high:.4f})")
        for side in sides:
            side.close()


if __name__ == "__main__":
    main()
