"""Any state a crash of the machine can leave: parts are absent or whole, and the build goes on from it."""

from __future__ import annotations

import pytest
from crashes import replay

pytestmark = pytest.mark.slow


def test_after_every_crash_parts_are_absent_or_whole_and_the_build_goes_on():
    outcome = replay(rows=20, subsets=2, resumes=50)
    assert not outcome.problems, outcome.shown()
    assert outcome.cases > 300


def test_after_every_crash_of_a_build_that_asks_anew_costs_are_those_of_the_answers():
    outcome = replay(rows=20, subsets=1, resumes=60, redo=True)
    assert not outcome.problems, outcome.shown()


def test_a_build_that_does_not_sync_is_noticed():
    assert replay(rows=10, subsets=0, resumes=0, sync=False).problems
