"""Our side of Blender: one child process per request, under limits, whose answer is not trusted."""

import json
import os
import resource
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.sandbox.child import ChildResult, LimitsConfig, insist, run_child
from schemas.errors import UserError, require_between
from schemas.ledger import Reason, Rejected

SUFFIXES = (".abc", ".blend", ".fbx", ".usd", ".usda", ".usdc", ".usdz")
"""Formats that are read through Blender alone."""
WORKER = Path(__file__).with_name("worker")
MAX_ANSWER_BYTES = 1 << 20
OUT_OF_MEMORY = ("MemoryError", "alloc returns null", "alloc array aborted")
"""Messages with which Python and Blender end when they are out of memory."""
REMEDY = "run `make blender`, then give --blender.python .venv-blender/bin/python"


@dataclass(frozen=True, kw_only=True)
class BlenderProgram:
    """Blender's interpreter on this machine. A dataset records that there was one, never where."""

    python: str = ""
    """Interpreter that has bpy: `.venv-blender/bin/python` after `make blender`. Empty: no Blender."""


@dataclass(frozen=True, kw_only=True)
class BlenderConfig(BlenderProgram):
    """Blender, for formats that only Blender reads and for Cycles views; off by default."""

    timeout_s: float = 120.0
    """Wall clock of one Blender process, seconds (ours)."""
    memory_gb: float = 8.0
    """Address space of one Blender process, GiB (ours); an asset's own limit holds as well."""
    threads: int = 1
    """Threads of one Blender process (ours)."""
    samples: int = 64
    """Cycles samples per pixel of lit views (ours)."""

    def __post_init__(self) -> None:
        require_between("blender.timeout_s", self.timeout_s, 1, 1e6)
        require_between("blender.memory_gb", self.memory_gb, 0.5, 1e6)
        require_between("blender.threads", self.threads, 1, 1024)
        require_between("blender.samples", self.samples, 1, 1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlenderResult:
    """The answer of Blender's worker."""

    version: str
    start_s: float
    """Processor seconds until its first command."""
    seconds: tuple[dict[str, float], ...]
    """Processor seconds of the stages of each command."""


def convert(path: Path, target: Path, cfg: BlenderConfig, max_file_bytes: int) -> Path | Rejected:
    """Write what Blender makes of an asset to `target`, a .glb. That is as untrusted as its source: preflight and
    loader check it like any other."""
    if not path.is_file():
        return Rejected(reason=Reason.MISSING_FILE, detail=f"no file {path.name!r}")
    if not (size := path.stat().st_size):
        return Rejected(reason=Reason.EMPTY_FILE, detail="file has 0 bytes")
    if size > max_file_bytes:
        return Rejected(reason=Reason.TOO_LARGE, detail=f"{size:,} bytes, limit {max_file_bytes:,}")
    command = {"command": "convert", "source": str(path.resolve()), "target": str(target.resolve())}
    answer = run_worker([command], cfg)
    if isinstance(answer, Rejected):
        return answer
    if not target.is_file():
        return Rejected(reason=Reason.BLENDER_FAILED, detail="Blender reported success and left no file")
    return target


def run_worker(commands: list[dict[str, Any]], cfg: BlenderConfig) -> BlenderResult | Rejected:
    """Run commands in one Blender process. Rejected: the first error of an asset, or why Blender itself failed.
    The caller must be single-threaded (`pipeline.sandbox.child.run_child`)."""
    if not os.access(cfg.python, os.X_OK):
        return Rejected(reason=Reason.BLENDER_FAILED, detail=f"{cfg.python!r} is not an interpreter")
    limits = LimitsConfig(timeout_s=cfg.timeout_s, memory_gb=cfg.memory_gb)
    with tempfile.TemporaryDirectory(prefix="blender-") as name:
        directory = Path(name).resolve()
        request, answer = directory / "request.json", directory / "answer.json"
        request.write_text(json.dumps({"answer": str(answer), "threads": cfg.threads, "commands": commands}))
        arguments = [cfg.python, "-I", str(WORKER), str(request)]
        python = Path(cfg.python).absolute()

        environment, memory = _environment(directory), int(cfg.memory_gb * 2**30)

        def work() -> None:
            # Nothing that this process has mapped survives the exec: the limit is Blender's alone.
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            os.execve(python, arguments, environment)

        ended = insist(lambda: run_child(work, limits, directory))
        if ended.reason is not None:
            return Rejected(reason=_reason(ended), detail=f"Blender, within {cfg.memory_gb:g} GiB: {ended.detail}")
        return _read_answer(answer, len(commands))


def tried(cfg: BlenderConfig) -> BlenderConfig:
    """The configuration with its interpreter's path made absolute, for processes that work elsewhere. Raises UserError
    where Blender does not start: better once than for every asset."""
    if not cfg.python:
        return cfg
    cfg = replace(cfg, python=str(Path(cfg.python).expanduser().absolute()))
    if isinstance(answer := run_worker([], cfg), Rejected):
        raise UserError(f"blender.python: {answer.detail}; {REMEDY}")
    return cfg


def _reason(ended: ChildResult) -> Reason:
    if ended.reason is Reason.CRASHED and any(words in ended.detail for words in OUT_OF_MEMORY):
        return Reason.MEMORY_LIMIT
    return Reason.BLENDER_FAILED if ended.reason in (None, Reason.CRASHED) else ended.reason


def _environment(directory: Path) -> dict[str, str]:
    """Nothing of ours, and no settings of the user's."""
    return {"HOME": str(directory), "TMPDIR": str(directory), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


def _read_answer(path: Path, count: int) -> BlenderResult | Rejected:
    """Return the rejection that the worker found, its timings, or BLENDER_FAILED where it wrote something else."""
    try:
        with path.open("rb") as file:
            answer = json.loads(file.read(MAX_ANSWER_BYTES))
        results = answer["results"]
        if len(results) != count:
            raise ValueError(f"{len(results)} results for {count} commands")
        for result in results:
            if result["fault"] is not None:
                reason, detail = result["fault"]
                return Rejected(reason=Reason(reason), detail=str(detail))
        seconds = tuple({str(k): float(v) for k, v in result["seconds"].items()} for result in results)
        return BlenderResult(version=str(answer["blender"]), start_s=float(answer["start_s"]), seconds=seconds)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = f"Blender ended without an answer that can be read ({type(error).__name__}: {error})"
        return Rejected(reason=Reason.BLENDER_FAILED, detail=detail)
