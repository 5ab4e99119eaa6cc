"""What a watcher of a build is told is true at every moment."""

from pipeline.executor.progress import BuildEvent, Progress
from schemas.ledger import Counts


def test_jobs_done_again_for_duplicates_turn_no_rate_negative():
    """A build is resumed with 99 of 100 jobs done, does the last one, then five again that hold duplicates."""
    events: list[BuildEvent] = []
    now = [0.0]
    four = Counts(textured=4)
    progress = Progress(
        jobs=100, planned=400, notify=events.append, clock=lambda: now[0], jobs_done=99, counts=Counts(textured=396)
    )
    progress.begin(1, None)
    assert events[-1].assets_per_s is None and events[-1].eta_s is None
    now[0] = 2.0
    progress.done(four)
    progress.report("job")
    assert (events[-1].assets_per_s, events[-1].eta_s, events[-1].jobs_done) == (2.0, 0.0, 100)
    for _ in range(5):
        progress.undone(four)
    progress.report("retry")
    assert (events[-1].assets_per_s, events[-1].eta_s, events[-1].assets_done) == (2.0, 10.0, 380)
    for step in range(1, 6):
        now[0] = 2.0 + 2.0 * step
        progress.done(Counts(textured=3, rejected=1))
        progress.report("job")
        assert (events[-1].assets_per_s, events[-1].eta_s) == (2.0, 2.0 * (5 - step))
    assert (events[-1].jobs_done, events[-1].textured, events[-1].rejected) == (100, 395, 5)
