"""The simulation of training on many GPUs: what must hold whatever its inputs are."""

from dataclasses import replace

import pytest

from benchmarks.scale_training import Parts, breaks_first, communication, ring, roofline, simulate

PARTS = Parts(flops=90e12, parameters=2.7e9, trained=1.3e9)
CALM = replace(PARTS, jitter=0.0, hours_to_failure=1e18, state_every=10**9)


def test_a_step_without_waits_is_its_operations():
    row = simulate(CALM, 8, hybrid=False)
    assert row.compute == pytest.approx(2 * 90e12 / (989e12 * 0.4))
    assert row.efficiency == pytest.approx(1, abs=1e-6)
    assert row.epoch_hours == pytest.approx(1e6 / 16 * row.compute / 3600)


def test_communication_by_hand():
    assert ring(1, 1e9, 1e9, 1.0) == 0
    assert ring(4, 8e9, 2e9, 0.5) == pytest.approx(3 / 4 * 4 + 3 * 0.5)
    quick = replace(PARTS, latency=0.0)
    inside = 7 / 8 * (2 * 2.7e9 * 2 + 1.3e9 * 4) / 300e9
    assert communication(quick, 8, False) == communication(quick, 8, True) == pytest.approx(inside)
    wide = replace(quick, outside=1e8)
    assert communication(wide, 8, False) == pytest.approx(inside + 7 / 8 * 2 * 1e8 * 2 / 300e9), "float32"
    between = 2 * 7 / 8 * (1.3e9 * 4 / 8) / 35e9
    assert communication(quick, 64, True) == pytest.approx(inside + between)
    assert communication(quick, 64, False) > communication(quick, 64, True)


def test_failures_and_slow_ranks_grow_with_the_number_of_gpus():
    few, many = (simulate(replace(PARTS, hours_to_failure=500.0), gpus, hybrid=True) for gpus in (8, 1024))
    assert few.slowest < many.slowest and few.failures < many.failures and few.efficiency > many.efficiency
    assert many == simulate(replace(PARTS, hours_to_failure=500.0), 1024, hybrid=True)


def test_states_that_are_written_meanwhile_cost_their_copies_and_what_is_not_done_in_time():
    often = replace(CALM, state_every=100, state_writers=8)
    waits, goes_on = simulate(often, 8, hybrid=False), simulate(replace(often, staging=20e9), 8, hybrid=False)
    step = waits.compute + waits.communication + waits.slowest
    for row, writing in ((waits, 16 * 1.3e9 / 16e9), (goes_on, 16 * 1.3e9 / 160e9)):
        assert row.state == pytest.approx(writing / (writing + 100 * step))
    slow = simulate(replace(often, staging=20e9, disk=1e7), 8, hybrid=False)
    assert slow.state == pytest.approx(1 - 100 * step / (16 * 1.3e9 / 8e7 + 16 * 1.3e9 / 160e9))


def test_what_breaks_first_is_named():
    calm = replace(CALM, latency=0.0, store=1e18)
    cases = {
        "egress of the store, at 8": replace(calm, store=1e6),
        "failures": replace(calm, hours_to_failure=20.0),
        "writing states, at 8": replace(calm, state_every=10, disk=1e9),
        "waiting for the slowest rank": replace(calm, jitter=0.2),
        "nothing up to 512": calm,
    }
    for words, parts in cases.items():
        assert words in breaks_first(parts, [simulate(parts, gpus, hybrid=True) for gpus in (8, 512)])
    shards = replace(calm, network=1e9)
    assert "communication, at 512" in breaks_first(shards, [simulate(shards, gpus, hybrid=False) for gpus in (8, 512)])


def test_the_roofline_has_all_operations_of_the_blocks():
    rows = roofline("full", 1, PARTS)
    total = sum(flops for _, flops, _ in rows)
    assert total == pytest.approx(34.1e12 + 57e12, rel=0.1), "forward and backward of img2tex in --dry_run"
    assert all(moved > 0 for _, _, moved in rows)
