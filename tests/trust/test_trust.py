"""The fault matrix counts what tests recorded and shows what was not run."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trust.trust import PROMISES, Held, matrix

REPO = Path(__file__).resolve().parents[2]


def test_matrix_sums_counts_and_keeps_every_promise_in_sight():
    table = matrix(
        [
            Held(number=4, held=600, runs=600, seed=1, seconds=1.4),
            Held(number=4, held=399, runs=400, seed=1, seconds=2.0),
        ]
    )
    rows = table.splitlines()[2:]
    assert len(rows) == len(PROMISES) == 32
    assert rows[3] == f"| 4 | {PROMISES[4]} | 999 | 1,000 | 1 | 3 |"
    assert sum("not run" in row for row in rows) == 31


def test_full_counts_and_recorded_counts_reach_the_matrix(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest
        pytest_plugins = ["tests.trust.trust"]

        @pytest.mark.trust(3)
        def test_it(trust):
            runs = trust.count(full=20, short=2)
            trust.held(runs - 1, runs)
            assert runs == 2, "a failing test is counted too"
        """
    )
    ended = pytester.runpytest("-p", "tests.trust.trust", "--full-counts", "--trust-table", "out/trust.md")
    ended.assert_outcomes(failed=1)
    assert "| 3 | shard cut off at any length | 19 | 20 | 2507 |" in (pytester.path / "out/trust.md").read_text()


def test_the_target_runs_again_where_its_table_lies(tmp_path):
    """A word that is a file is taken for a file of tests, and the options of this plugin are not known then."""
    (table := tmp_path / "trust.md").touch()
    make = ["make", "--dry-run", "--no-print-directory", "trust"]
    told = subprocess.run(make, cwd=REPO, capture_output=True, text=True, check=True).stdout
    _, _, *options = shlex.split(told.splitlines()[-1].replace("out/trust.md", str(table)))
    ended = subprocess.run(
        [sys.executable, *options, "--markers"], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 and "trust(number)" in ended.stdout, ended.stderr
