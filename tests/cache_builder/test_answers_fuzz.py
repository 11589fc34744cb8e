"""Whatever an agent returns, it is either a proper answer or an AgentFailure that names agent and sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2d.cache_builder.answers import Answers
from l2d.data.errors import AgentFailure

IDS = ["a", "b", "c"]
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-3, 3) | st.sampled_from([1e300, -0.0, 0.5])
arrays = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.bool_, "U2"]), hnp.array_shapes(max_dims=3, max_side=4)
)
values = st.none() | arrays | st.lists(numbers, max_size=4) | st.lists(st.lists(numbers, max_size=3), max_size=4)
odd = (
    values
    | numbers
    | st.text(max_size=3)
    | st.dictionaries(st.text(max_size=2), numbers, max_size=2)
    | st.just([None] * 3)
)


@settings(max_examples=600, deadline=None)
@given(cla=odd, prob=odd, reg=odd)
@example(cla=[0, 1, 1], prob=None, reg=[0.0, 1.0, 2.0])
@example(cla=None, prob=[[0.5, 0.5]] * 3, reg=[math.nan, 1, 1])
@pytest.mark.slow
def test_checked_answers_are_finite_and_in_range_or_refused(cla, prob, reg):
    failure = answers = None
    try:
        answers = Answers(cla=cla, prob=prob, reg=reg).checked("oracle", IDS, ["cla", "reg"], 2)
    except AgentFailure as error:
        failure = error
    if failure is not None:
        assert "'oracle'" in failure.what
        assert any(f"'{sample}'" in str(failure.where) for sample in IDS)
        assert failure.hint
        return
    assert answers.cla.shape == answers.reg.shape == (3,)
    assert set(answers.cla.tolist()) <= {0, 1}
    assert np.isfinite(answers.reg).all()
    if answers.prob is not None:
        assert answers.prob.shape == (3, 2)
        np.testing.assert_allclose(answers.prob.sum(axis=1), 1, atol=2e-3)
    table = answers.to_columns()
    assert all(column.null_count == 0 for name, column in table.items() if name != "failure")
