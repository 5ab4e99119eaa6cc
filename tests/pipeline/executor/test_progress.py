"""Reports on the progress of a build are true at every moment."""

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
    progress.done(99, four)
    progress.report("job")
    assert (events[-1].assets_per_s, events[-1].eta_s, events[-1].jobs_done) == (2.0, 0.0, 100)
    for job in range(5):
        progress.undone(job, four)
    progress.report("retry")
    assert (events[-1].assets_done, events[-1].eta_s, events[-1].jobs_done) == (400, 0.0, 95)
    for job in range(5):
        now[0] += 2.0
        progress.at_work(job, Counts(textured=2))
        progress.tick()
        progress.done(job, Counts(textured=3, rejected=1))
        progress.report("job")
        assert events[-1].assets_done == 400 and events[-1].assets_per_s > 0 and events[-1].eta_s == 0
    assert (events[-1].jobs_done, events[-1].textured, events[-1].rejected) == (100, 395, 5)


def test_assets_count_as_they_end_and_never_backwards():
    """A job of 8 assets is lost after 5 of them, overtakes that in its second start, and is done."""
    events: list[BuildEvent] = []
    now = [0.0]
    progress = Progress(jobs=2, planned=12, notify=events.append, clock=lambda: now[0])
    progress.begin(2, None)
    told = [Counts(textured=2), Counts(textured=4, rejected=1), Counts(textured=1), Counts(textured=5, rejected=1)]
    for counts in told:
        now[0] += 1.0
        progress.at_work(0, counts)
        progress.tick()
    assert [event.assets_done for event in events] == [0, 2, 5, 6], "the second start says nothing new at first"
    assert (events[-1].assets_per_s, events[-1].eta_s) == (1.5, None) and events[-1].jobs_done == 0
    progress.done(0, Counts(textured=6, rejected=1, failed=1))
    progress.report("job", 0)
    assert (events[-1].assets_done, events[-1].textured, events[-1].rejected, events[-1].failed) == (8, 6, 1, 1)
    for seconds in (4.9, 0.2):
        now[0] += seconds
        progress.tick()
    assert [event.event for event in events[-2:]] == ["job", "assets"], "a sign of life after five seconds"


def test_the_time_left_does_not_count_what_came_before_the_first_asset():
    """Kernels are compiled for 40 s; then two assets end each second."""
    events: list[BuildEvent] = []
    now = [0.0]
    progress = Progress(jobs=1, planned=202, notify=events.append, clock=lambda: now[0])
    progress.begin(1, None)
    now[0] = 40.0
    for ended in range(2, 23, 2):
        progress.at_work(0, Counts(textured=ended))
        progress.tick()
        now[0] += 1.0
    assert (events[1].assets_per_s, events[1].eta_s) == (2 / 40, None), "an hour would be a scare"
    assert [event.eta_s is None for event in events[1:]] == [True] * 5 + [False] * 6
    assert (events[6].assets_per_s, events[6].eta_s) == (2.0, 95.0)


def test_a_source_that_is_listed_shows_how_far():
    events: list[BuildEvent] = []
    now = [0.0]
    progress = Progress(jobs=0, planned=0, notify=events.append, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 0.0625
        progress.found()
    assert [event.planned for event in events] == [16, 32, 48, 64, 80, 96] and events[0].event == "listing"
