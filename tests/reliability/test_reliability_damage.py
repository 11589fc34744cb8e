"""Damage to a finished cache: every reader says the truth or a clean error."""

from __future__ import annotations

from functools import partial

import pytest
from damage import damages
from processes import apart

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("reader", ["python", "sql"])
def test_no_damage_is_read_as_another_value(reader):
    outcome = damages(150, reader=reader)
    assert not outcome.problems, outcome.shown()
    assert outcome.cases == 150


@pytest.mark.parametrize("reader", ["python", "sql"])
def test_without_its_checks_a_reader_would_give_wrong_values(reader):
    outcome = apart(partial(damages, 60, reader=reader, sabotage=True))
    assert any("other values" in problem for problem in outcome.problems), outcome.shown()
