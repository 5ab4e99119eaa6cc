"""The fault matrix counts what tests recorded and shows what was not run."""

import pytest

from tests.trust import PROMISES, Held, matrix


def test_matrix_sums_counts_and_keeps_every_promise_in_sight():
    table = matrix(
        [
            Held(number=4, held=600, runs=600, seed=1, seconds=1.4),
            Held(number=4, held=399, runs=400, seed=1, seconds=2.0),
        ]
    )
    rows = table.splitlines()[2:]
    assert len(rows) == len(PROMISES) == 25
    assert rows[3] == f"| 4 | {PROMISES[4]} | 999 | 1,000 | 1 | 3 |"
    assert sum("not run" in row for row in rows) == 24


def test_full_counts_and_recorded_counts_reach_the_matrix(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest
        pytest_plugins = ["tests.trust"]

        @pytest.mark.trust(3)
        def test_it(trust):
            runs = trust.count(full=20, short=2)
            trust.held(runs - 1, runs)
            assert runs == 2, "a failing test is counted too"
        """
    )
    ended = pytester.runpytest("-p", "tests.trust", "--full-counts", "--trust-table", "out/trust.md")
    ended.assert_outcomes(failed=1)
    assert "| 3 | shard cut off at any length | 19 | 20 | 2507 |" in (pytester.path / "out/trust.md").read_text()
