"""Schedule jobs: choose what starts next, and start lost and slow jobs again. No Ray, no clock: `ray_executor`
reports what happened and what time it is."""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from schemas.errors import require_between
from schemas.plan import ShardJob

JOBS_IN_FLIGHT = 2
"""Times the capacity of the machines: one running, one waiting, so that no worker idles and the queue stays short."""
JOBS_TO_COMPARE = 3
"""Finished jobs before another one can be called slow."""
JOBS_REMEMBERED = 1001
"""The latest ones say what is usual."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of running a build. None of it decides what a dataset holds, so a dataset does not record it."""

    job_memory_gb: float = 1.5
    """Memory that a running job reserves on its node, GiB, so that a node gets no more jobs than fit (ours: a
    200k-face asset takes 0.8, its unwrapper included, beside the worker). A job that is killed for lack
    of memory reserves twice as much the next time, and so has fewer beside it."""
    gpu_share: float = 0.25
    """Share of a GPU that a running job reserves with `rasterizer: cuda` (ours)."""
    attempts: int = 3
    """Most starts of a job that loses its worker process, whatever killed that (ours)."""
    node_losses: int = 10
    """Lost nodes that a job survives beyond its attempts: a preempted machine is not the job's fault, but a job may
    also be what takes its machines down (ours)."""
    straggler_factor: float = 3.0
    """Once workers idle, a job that takes this many times as long as its peers is started a second time on another
    node, and the first to finish counts (ours); 0: never."""
    straggler_s: float = 60.0
    """Shortest time after which a job is called slow, seconds (ours)."""
    min_in_flight: int = 16
    """Jobs offered to a cluster however small it is: what waits is what its autoscaler adds nodes for (ours)."""
    jobs_per_process: int = 64
    """Jobs after which a worker process is replaced, whatever it has leaked (ours)."""

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("job_memory_gb", 0.0, 1e6),
            ("gpu_share", 1e-3, 1.0),
            ("attempts", 1, 1000),
            ("node_losses", 0, 1000),
            ("straggler_factor", 0.0, 1e6),
            ("straggler_s", 0.0, 1e9),
            ("min_in_flight", 1, 1_000_000),
            ("jobs_per_process", 1, 1_000_000),
        ):
            require_between(f"run.{name}", getattr(self, name), lowest, highest)


class Loss(StrEnum):
    """Reason why a job gave no result."""

    NODE = "its node was lost"
    MACHINE = "its node cannot process assets"
    MEMORY = "it was killed for lack of memory"
    PROCESS = "its worker process was lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The capacity of the machines at the moment."""

    at_once: int
    """Jobs that can run at one time."""
    largest_gb: float
    """Memory of the largest node, GiB: no job can reserve more."""
    nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """One start of a job. Attempts of one job that may run at the same time have one `round`: only the first of a round
    that claims it may commit."""

    job: ShardJob
    number: int
    """Counts the starts of a build."""
    round: int
    memory_gb: float
    beside: "Start | None" = None
    """The slow start that this one is a second of."""


@dataclass(slots=True, kw_only=True)
class _Tries:
    memory_gb: float
    started: int = 0
    lost_nodes: int = 0
    round: int = 0
    claimed: bool = False
    """A start found that another one of its round commits: any further one would find the same."""
    at_work: list[Start] = field(default_factory=list)

    @property
    def may_be_doubled(self) -> bool:
        return len(self.at_work) == 1 and not self.claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A job that could not be done."""

    job: ShardJob
    why: Loss
    """The last time."""
    starts: int


class Schedule:
    """The jobs of a build that are still to be done. A job leaves when it is done or given up."""

    def __init__(self, jobs: Iterable[ShardJob], cfg: RunConfig) -> None:
        self.cfg = cfg
        self.given_up: list[GivenUp] = []
        self._waiting = deque(jobs)
        self._tries: dict[int, _Tries] = {}
        self._at_work: dict[int, Start] = {}
        """Starts that have not ended, by number."""
        self._queued: deque[int] = deque()
        self._since: dict[int, float] = {}
        """Times at which starts began, as far as is known: the longest-waiting ones fill the capacity there is."""
        self._seconds_per_asset: deque[float] = deque(maxlen=JOBS_REMEMBERED)
        self._numbers = itertools.count(1)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._at_work)

    def next(self, capacity: Capacity, now: float) -> Start | None:
        """Choose the attempt to start now; None: nothing, until one ends or time passes."""
        while self._queued and len(self._since) < capacity.at_once:
            if (number := self._queued.popleft()) in self._at_work:
                self._since[number] = now
        if self._waiting:
            if len(self._at_work) >= max(self.cfg.min_in_flight, JOBS_IN_FLIGHT * capacity.at_once):
                return None
            return self._start(self._waiting.popleft(), capacity)
        if len(self._at_work) >= capacity.at_once or capacity.nodes < 2:
            return None
        slow = self._slowest(now)
        return self._start(slow.job, capacity, beside=slow) if slow else None

    def _start(self, job: ShardJob, capacity: Capacity, beside: Start | None = None) -> Start:
        tries = self._tries.setdefault(job.index, _Tries(memory_gb=self.cfg.job_memory_gb))
        tries.started += beside is None
        memory_gb, number = min(tries.memory_gb, capacity.largest_gb), next(self._numbers)
        start = Start(job=job, number=number, round=tries.round, memory_gb=memory_gb, beside=beside)
        tries.at_work.append(start)
        self._at_work[number] = start
        self._queued.append(number)
        return start

    def _slowest(self, now: float) -> Start | None:
        """The start that is furthest beyond our patience, alone at its job and not known to be committing it."""
        if not self.cfg.straggler_factor or len(self._seconds_per_asset) < JOBS_TO_COMPARE:
            return None
        usual = self.cfg.straggler_factor * median(self._seconds_per_asset)
        worst, worst_over = None, 0.0
        for start in self._at_work.values():
            patience = max(self.cfg.straggler_s, usual * len(start.job.refs))
            over = now - self._since.get(start.number, now) - patience
            if over > worst_over and self._tries[start.job.index].may_be_doubled:
                worst, worst_over = start, over
        return worst

    def done(self, start: Start, seconds: float) -> list[Start]:
        """A start has committed its job. Returns the job's other starts: nobody waits for them any more."""
        self._seconds_per_asset.append(seconds / len(start.job.refs))
        starts = self._tries.pop(start.job.index).at_work
        for ended in starts:
            self._forget(ended)
        return [other for other in starts if other is not start]

    def superseded(self, start: Start) -> None:
        """A start came to its end and found that another one had claimed the job."""
        self._tries[start.job.index].claimed = True
        self._end(start, Loss.PROCESS)

    def lost(self, start: Start, why: Loss) -> None:
        """A start gave no result: its job waits again, or is given up."""
        tries = self._tries[start.job.index]
        if why in (Loss.NODE, Loss.MACHINE) and tries.lost_nodes < self.cfg.node_losses:
            tries.lost_nodes += 1
            tries.started -= start.beside is None
        elif why is Loss.MEMORY:
            tries.memory_gb *= 2
        self._end(start, why)

    def _end(self, start: Start, why: Loss) -> None:
        """With the last start of its round a job waits again, before all others, or is given up."""
        tries = self._tries[start.job.index]
        tries.at_work.remove(start)
        self._forget(start)
        if tries.at_work:
            return
        tries.round, tries.claimed = tries.round + 1, False
        if tries.started < self.cfg.attempts:
            self._waiting.appendleft(start.job)
        else:
            del self._tries[start.job.index]
            self.given_up.append(GivenUp(job=start.job, why=why, starts=tries.started + tries.lost_nodes))

    def _forget(self, start: Start) -> None:
        del self._at_work[start.number]
        self._since.pop(start.number, None)
