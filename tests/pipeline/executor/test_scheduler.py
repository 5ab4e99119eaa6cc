"""Decisions of the scheduler on reported events, without Ray: next starts, repeated starts, and giving up."""

import pytest

from pipeline.executor.scheduler import Capacity, Loss, RunConfig, Schedule, Start
from schemas.errors import UsageError
from schemas.mesh import MeshRef
from schemas.plan import ShardJob

CAPACITY = Capacity(at_once=2, largest_gb=8.0, nodes=2)
RUN = RunConfig(min_in_flight=1, straggler_s=10.0)


def jobs(count: int) -> list[ShardJob]:
    return [
        ShardJob(index=n, refs=(MeshRef(uid=f"a-{n}", uri=""), MeshRef(uid=f"b-{n}", uri=""))) for n in range(count)
    ]


def started(schedule: Schedule, capacity: Capacity = CAPACITY, now: float = 0.0) -> list[Start]:
    """All that is started at this time."""
    starts = []
    while start := schedule.next(capacity, now):
        starts.append(start)
    return starts


def test_jobs_in_flight_are_twice_the_room_and_grow_with_it():
    schedule = Schedule(jobs(100), RUN)
    assert [start.job.index for start in started(schedule)] == [0, 1, 2, 3]
    assert len(started(schedule, Capacity(at_once=10, largest_gb=8.0, nodes=6))) == 16
    assert started(schedule) == []  # nodes have left: nothing more until jobs end


def test_a_cluster_without_workers_is_offered_jobs():
    schedule = Schedule(jobs(100), RunConfig(min_in_flight=16))
    assert len(started(schedule, Capacity(at_once=0, largest_gb=float("inf"), nodes=0))) == 16


def test_every_job_ends_done_or_given_up():
    schedule = Schedule(jobs(5), RunConfig(attempts=2))
    seen: list[int] = []
    while schedule:
        for start in started(schedule):
            seen.append(start.job.index)
            if start.job.index == 3:
                schedule.lost(start, Loss.PROCESS)
            else:
                assert schedule.done(start, 1.0) == []
    assert sorted(seen) == [0, 1, 2, 3, 3, 4]
    assert [(end.job.index, end.why, end.starts) for end in schedule.given_up] == [(3, Loss.PROCESS, 2)]


@pytest.mark.parametrize("why", [Loss.NODE, Loss.MACHINE])
def test_lost_nodes_do_not_count_against_a_job_up_to_their_own_bound(why):
    schedule = Schedule(jobs(1), RunConfig(attempts=2, node_losses=5))
    for _ in range(5):
        (start,) = started(schedule)
        schedule.lost(start, why)
    for _ in range(2):
        (start,) = started(schedule)
        schedule.lost(start, why)
    assert not schedule and [(end.why, end.starts) for end in schedule.given_up] == [(why, 7)]


def test_want_of_memory_doubles_what_a_job_reserves_up_to_a_whole_node():
    schedule = Schedule(jobs(1), RunConfig(attempts=5, job_memory_gb=1.5))
    reserved = []
    for _ in range(5):
        (start,) = started(schedule)
        reserved.append(start.memory_gb)
        schedule.lost(start, Loss.MEMORY)
    assert reserved == [1.5, 3.0, 6.0, 8.0, 8.0]
    assert not schedule and [end.why for end in schedule.given_up] == [Loss.MEMORY]


def slow(schedule: Schedule) -> Start:
    """The one job of five that is left; the others took a second each."""
    (*quick, left) = sorted(started(schedule, Capacity(at_once=5, largest_gb=8.0, nodes=2)), key=lambda s: s.job.index)
    for start in quick:
        schedule.done(start, 1.0)
    return left


def test_a_slow_job_is_started_a_second_time_where_another_node_idles():
    schedule = Schedule(jobs(5), RUN)
    first = slow(schedule)
    assert started(schedule, now=10.0) == []
    assert started(schedule, Capacity(at_once=2, largest_gb=8.0, nodes=1), now=100.0) == []
    assert started(schedule, Capacity(at_once=1, largest_gb=8.0, nodes=2), now=100.0) == []
    (second,) = started(schedule, now=10.5)
    assert second.job is first.job and second.beside is first and second.round == first.round
    assert started(schedule, now=1000.0) == []  # no third one
    assert schedule.done(second, 1.0) == [first] and not schedule


def test_patience_grows_with_what_jobs_usually_take():
    schedule = Schedule(jobs(5), RunConfig(straggler_s=0.0, straggler_factor=4.0))
    slow(schedule)
    assert started(schedule, now=3.9) == []  # 4 times the 1 s of the others
    assert len(started(schedule, now=4.1)) == 1
    schedule = Schedule(jobs(5), RunConfig(straggler_factor=0.0))
    slow(schedule)
    assert started(schedule, now=1e6) == []


def test_a_claim_that_was_lost_with_its_node_is_made_anew():
    """The first start claims its job and dies; the second is refused: the job is started in a new round."""
    schedule = Schedule(jobs(5), RunConfig(straggler_s=0.0, attempts=1))
    first = slow(schedule)
    (second,) = started(schedule, now=60.0)
    schedule.lost(first, Loss.NODE)
    assert started(schedule, now=61.0) == []  # the second one may yet do it
    schedule.superseded(second)
    (third,) = started(schedule, now=62.0)
    assert third.job is first.job and third.round == first.round + 1
    schedule.done(third, 1.0)
    assert not schedule and not schedule.given_up


def test_a_job_that_is_being_committed_is_not_started_a_third_time():
    schedule = Schedule(jobs(5), RUN)
    first = slow(schedule)
    (second,) = started(schedule, now=60.0)
    schedule.superseded(second)
    assert started(schedule, now=1000.0) == []
    assert schedule.done(first, 1000.0) == [] and not schedule


def test_options_out_of_range_are_named():
    with pytest.raises(UsageError, match=r"run\.gpu_share is 0.0; give 0\.001 to 1"):
        RunConfig(gpu_share=0.0)
