"""Progress of a build, counted as assets end. What is shown never runs backwards."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from schemas.ledger import Counts

LISTING_S = 1.0
"""Seconds between two reports on a source that is being listed."""
SIGN_OF_LIFE_S = 5.0
"""Seconds after which a build at work reports even if no asset has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """Progress, for a person or a log."""

    event: str
    """`waiting` (for the lock of another build, in an object store), `listing` (the source), `selected` (by a table of
    scores), `planned`, `starting` (Ray), `compiling` (kernels, once on this machine), `started` (Ray is there),
    `assets` (at work, once a second while some end, else every five seconds), `job` (one is done), `retry`, `straggler`
    (one is started a second time), `nodes` (the cluster has another size), `finishing` (files of the whole) or
    `done`."""
    job: int | None = None
    jobs_done: int
    jobs: int
    assets_done: int
    """Assets done, in earlier runs too, and those that have ended in jobs at work."""
    planned: int
    """Assets; those found so far while the source is listed."""
    textured: int
    """Textured assets among those done; the next three fields count likewise."""
    mv_only: int
    rejected: int
    failed: int
    assets_per_s: float | None = None
    """Rate since the first asset of this run ended, at first since jobs were started; None before one has ended."""
    eta_s: float | None = None
    """Seconds to go at that rate; None until it has been seen for five seconds: what is loaded and compiled before the
    first asset would make it hours."""
    running_at_once: int = 0
    """Jobs that the machines have room for; 0 before Ray is there."""
    dashboard: str | None = None
    """Address of Ray's dashboard, where there is one."""
    job_seconds: float | None = None
    """Seconds that the job took in its worker."""
    stage_seconds: float | None = None
    """Seconds of `job_seconds` in the stages of its assets: what is left is sandbox and commit."""
    detail: str = ""


@dataclass(kw_only=True)
class Progress:
    """Counts of a build at work."""

    jobs: int
    planned: int
    notify: Callable[[BuildEvent], None]
    clock: Callable[[], float]
    jobs_done: int = 0
    counts: Counts = field(default_factory=Counts)
    """Assets done, of jobs at work too."""
    running_at_once: int = 0
    dashboard: str | None = None
    _began: float | None = None
    _before: int = 0
    """Assets that were done then."""
    _first: tuple[float, int] | None = None
    """Time at which the first asset of this run ended, and the assets that were done then."""
    _partly: dict[int, Counts] = field(default_factory=dict)
    """The assets of a job at work that `counts` holds."""
    _reported: tuple[float, Counts] = field(init=False)
    """Time and counts of the latest event."""
    _before_the_first: str = "the processes load what they need"
    """Work that keeps the first assets waiting."""

    def __post_init__(self) -> None:
        self._reported = self.clock(), self.counts

    def found(self) -> None:
        """The source has listed one more asset."""
        self.planned += 1
        if self.clock() - self._reported[0] >= LISTING_S:
            self.report("listing", detail="listing the source")

    def begin(self, running_at_once: int, dashboard: str | None) -> None:
        """Jobs are about to be started."""
        if self._began is not None:
            return
        self.running_at_once, self.dashboard = running_at_once, dashboard
        self._began, self._before = self.clock(), self.counts.total
        self.report("started", detail=f"room for {running_at_once} job{'s' if running_at_once > 1 else ''} at once")

    def at_work(self, job: int, counts: Counts) -> None:
        """A job has got so far. One that is started again has to overtake its earlier start before it counts."""
        before = self._partly.get(job, Counts())
        if counts.total > before.total:
            self._partly[job] = counts
            self._add(counts - before)

    def done(self, job: int, counts: Counts) -> None:
        """One more job is done."""
        self.jobs_done += 1
        self._add(counts - self._partly.pop(job, Counts()))

    def _add(self, counts: Counts) -> None:
        self.counts += counts
        if self._first is None and self._began is not None and self.counts.total > self._before:
            self._first = self.clock(), self.counts.total

    def undone(self, job: int, counts: Counts) -> None:
        """A job that was done is to be done again: its assets count as before until then."""
        self.jobs_done -= 1
        self._partly[job] = counts

    def tick(self) -> None:
        """Report the assets that have ended since the latest event, or, now and then, that none has."""
        when, counts = self._reported
        if counts != self.counts or self.clock() - when >= SIGN_OF_LIFE_S:
            self.report("assets", detail="" if self._rate()[0] else self._before_the_first)

    def compiles(self, detail: str) -> None:
        """Kernels are being compiled, which every job waits for."""
        self._before_the_first = detail
        self.report("compiling", detail=detail)

    def report(
        self,
        event: str,
        job: int | None = None,
        detail: str = "",
        job_seconds: float | None = None,
        stage_seconds: float | None = None,
    ) -> None:
        done, (rate, is_settled) = self.counts.total, self._rate()
        self._reported = self.clock(), self.counts
        self.notify(
            BuildEvent(
                event=event,
                job=job,
                jobs_done=self.jobs_done,
                jobs=self.jobs,
                assets_done=done,
                planned=self.planned,
                **asdict(self.counts),
                assets_per_s=rate,
                eta_s=(self.planned - done) / rate if rate and (is_settled or done == self.planned) else None,
                running_at_once=self.running_at_once,
                dashboard=self.dashboard,
                job_seconds=job_seconds,
                stage_seconds=stage_seconds,
                detail=detail,
            )
        )

    def _rate(self) -> tuple[float | None, bool]:
        """Return the rate, and whether it is that of assets alone, without what came before the first one."""
        if self._began is None or self.counts.total == self._before:
            return None, False
        since, before = self._first or (self._began, self._before)
        is_settled = self.clock() - since >= SIGN_OF_LIFE_S and self.counts.total > before
        if not is_settled:
            since, before = self._began, self._before
        elapsed = self.clock() - since
        return (self.counts.total - before) / elapsed if elapsed > 0 else None, is_settled
