"""The simulated build keeps the laws of arithmetic, and a plan of many assets costs its driver little."""

import dataclasses
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.driver import as_samples, note_down, refs
from benchmarks.scale import COSTS, Simulation, World, read_costs, simulate
from pipeline.config import BuildConfig
from pipeline.dataset.plan import plan_jobs
from pipeline.filter.duplicates import unsettled

REPO = Path(__file__).resolve().parents[3]
QUIET = World(cores=4, hours_to_loss=1e9, slow_share=0.0, job_overhead_s=0.0)
COSTS_OF_ASSETS = read_costs(COSTS)


def test_equal_jobs_without_failures_take_as_many_turns_as_there_are():
    result = Simulation(np.full(40, 10.0), 4, 8, QUIET, 0).run()
    assert result.makespan_s == pytest.approx(50.0)  # 40 jobs on 8 workers
    assert result.useful_s == pytest.approx(400.0) and result.wasted_s == 0 and result.second_starts == 0


def test_no_failure_makes_a_build_faster_and_all_work_is_done():
    calm = simulate(COSTS_OF_ASSETS, 20_000, 16, 64, QUIET, 1)
    harsh = dataclasses.replace(QUIET, hours_to_loss=0.05, slow_share=0.02, boot_s=60.0)
    rough = simulate(COSTS_OF_ASSETS, 20_000, 16, 64, harsh, 1)
    drawn = np.random.default_rng(1).choice(COSTS_OF_ASSETS.seconds, 20_000).sum()
    assert calm.useful_s == pytest.approx(drawn) and calm.wasted_s == 0
    assert calm.makespan_s >= drawn / 64
    assert rough.useful_s >= drawn * (1 - 1e-9) and rough.wasted_s > 0 and rough.lost_nodes > 0
    assert rough.makespan_s > calm.makespan_s
    assert simulate(COSTS_OF_ASSETS, 20_000, 16, 64, harsh, 1) == rough  # from the seed alone


def test_second_starts_shorten_the_wait_for_a_slow_one():
    """One job in a hundred takes 50 times as long wherever it first runs; a second start does not."""
    world = dataclasses.replace(QUIET, slow_share=0.01, slow_factor=50.0)
    result = Simulation(np.full(400, 100.0), 16, 8, world, 3).run()
    assert result.second_starts > 0
    assert result.makespan_s < 400 * 100 / 8 + 50 * 100


def test_looking_for_duplicates_takes_less_memory_than_the_plan_leaves(tmp_path):
    """All else grows by 221 MB in a build of 100,000 assets, of 300."""
    assets, cfg = 4096, BuildConfig()
    jobs = plan_jobs(refs(assets), cfg.assets_per_job)
    (tmp_path / "ledger").mkdir()
    for job in jobs:
        note_down(job, tmp_path, cfg, may_commit=lambda: True)
    unsettled(jobs[:1], as_samples(tmp_path, jobs[:1]), cfg.duplicates)  # loads what is loaded once, for any number
    tracemalloc.start()
    try:
        assert not unsettled(jobs, as_samples(tmp_path, jobs), cfg.duplicates)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / assets < (300 - 221) * 1e6 / 100_000


@pytest.mark.slow
def test_the_driver_stays_small():
    """The bound is that for 100,000 assets; most of what there is is Ray. In a process of its own, since the most that
    a process ever took includes what it took before."""
    command = [sys.executable, "-m", "benchmarks.driver", "--assets", "5000"]
    told = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280, check=True).stdout
    assert 0 < int(re.fullmatch(r"5000 assets: the driver grew by (\d+) MB, \d+ s\n", told)[1]) < 300, told
