"""Progress of a build, counted as jobs end, in the same time and memory whatever the number of jobs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from schemas.ledger import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """Progress, for a person or a log."""

    event: str
    """`waiting` (for the lock of another build, in an object store), `selected` (by a table of scores), `planned`,
    `compiling` (kernels, once on this machine), `started` (Ray is there), `job` (one is done), `retry`, `straggler`
    (one is started a second time), `nodes` (the cluster has another size) or `done`."""
    job: int | None = None
    jobs_done: int
    jobs: int
    assets_done: int
    """Assets of finished jobs, those of earlier runs included."""
    planned: int
    """Assets."""
    textured: int
    """Of the assets done; so the next three."""
    mv_only: int
    rejected: int
    failed: int
    assets_per_s: float | None = None
    """Since the first job of this run was started, assets done again included; None before a job has ended."""
    eta_s: float | None = None
    """Seconds to go at that rate."""
    running_at_once: int = 0
    """Jobs that the machines have room for; 0 before Ray is there."""
    dashboard: str | None = None
    """Address of Ray's dashboard, where there is one."""
    job_seconds: float | None = None
    """What the job took in its worker."""
    stage_seconds: float | None = None
    """Of these, those in the stages of its assets: what is left is sandbox and commit."""
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
    running_at_once: int = 0
    dashboard: str | None = None
    _began: float | None = None
    _processed: int = 0
    """Assets of jobs done since then; what is done again counts again."""

    def begin(self, running_at_once: int, dashboard: str | None) -> None:
        """Jobs are about to be started."""
        if self._began is not None:
            return
        self.running_at_once, self.dashboard = running_at_once, dashboard
        self._began = self.clock()
        self.report("started", detail=f"room for {running_at_once} jobs at once")

    def done(self, counts: Counts) -> None:
        """One more job is done."""
        self.jobs_done += 1
        self.counts += counts
        self._processed += counts.total

    def undone(self, counts: Counts) -> None:
        """A job that was done is to be done again."""
        self.jobs_done -= 1
        self.counts -= counts

    def report(
        self,
        event: str,
        job: int | None = None,
        detail: str = "",
        job_seconds: float | None = None,
        stage_seconds: float | None = None,
    ) -> None:
        done, rate = self.counts.total, self._rate()
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
                eta_s=(self.planned - done) / rate if rate else None,
                running_at_once=self.running_at_once,
                dashboard=self.dashboard,
                job_seconds=job_seconds,
                stage_seconds=stage_seconds,
                detail=detail,
            )
        )

    def _rate(self) -> float | None:
        elapsed = 0.0 if self._began is None else self.clock() - self._began
        return self._processed / elapsed if self._processed and elapsed > 0 else None
