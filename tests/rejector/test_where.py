"""Bins of samples, and the examples of each agent."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2d.data.errors import UsageError
from l2d.rejector.report.allocations import Decisions
from l2d.rejector.report.examples import choose
from l2d.rejector.report.groups import bins_by, group_rows, most_telling, ranked_cost, without_few


def decisions(costs: np.ndarray, chosen: np.ndarray) -> Decisions:
    """Decisions of one seed, or of several; the first agent is the best constant one."""
    chosen = np.atleast_2d(chosen)
    return Decisions(
        ids=[f"s{row}" for row in range(len(costs))],
        agents=[f"agent_{j}" for j in range(costs.shape[1])],
        chosen=chosen,
        costs=costs,
        losses=costs[np.arange(len(costs)), chosen].mean(axis=0),
        best_constant="agent_0",
        constant_losses=np.where(np.isfinite(costs[:, 0]), costs[:, 0], costs[:, 1]),
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-5, 5), st.integers(-3, 3).map(float)), min_size=1, max_size=60))
def test_bins_of_numbers_are_ordered_intervals_that_keep_equal_values_together(values):
    bins = bins_by(pa.table({"x": pa.array(values, pa.float64())}), "x")
    assert len(bins.index) == len(values)
    assert set(bins.index.tolist()) <= set(range(len(bins.labels)))
    assert len(set(bins.labels)) == len(bins.labels)
    seen = sorted((value, bin) for value, bin in zip(values, bins.index.tolist(), strict=True) if value is not None)
    assert [bin for _, bin in seen] == sorted(bin for _, bin in seen)
    assert len(set(seen)) == len({value for value, _ in seen})
    for value, bin in zip(values, bins.index.tolist(), strict=True):
        assert (bins.labels[bin] == "missing") == (value is None)


def test_fifths_hold_a_fifth_each_and_say_where_they_end():
    values = np.random.default_rng(0).permutation(1000) / 7
    bins = bins_by(pa.table({"age": values}), "age")
    assert np.bincount(bins.index).tolist() == [200] * 5
    edges = np.quantile(values, [0.2, 0.4, 0.6, 0.8])
    assert float(bins.labels[0].removeprefix("up to ")) == pytest.approx(edges[0], rel=5e-3)
    assert float(bins.labels[-1].removeprefix("above ")) == pytest.approx(edges[-1], rel=5e-3)


def test_text_keeps_its_most_frequent_values_and_sql_sees_columns_in_order():
    words = [word for number, word in enumerate("abcdefghijkl") for _ in range(20 - number)]
    table = pa.table({"word": words, "position": np.arange(len(words))})
    bins = bins_by(table, "word")
    assert bins.labels == [*"abcdefgh", "other"]
    assert np.bincount(bins.index)[-1] == words.count("i") + words.count("j") + words.count("k") + words.count("l")
    halves = bins_by(table, "CASE WHEN position < 7 THEN 'first' END")
    assert halves.labels == ["first", "missing"]
    assert halves.index.tolist() == [0] * 7 + [1] * (len(words) - 7)
    assert bins_by(table, "position >= 7").labels == ["no", "yes"]
    assert bins_by(pa.table({"a = b": [1, 2, 2]}), "a = b").index.tolist() == [0, 1, 1]  # a column's own name


@pytest.mark.parametrize(
    ("values", "labels", "counts"),
    [
        ([1] * 4 + [2] * 7 + [3] * 12 + [5] * 3, ["1 to 2", "3 to 5"], [11, 15]),
        ([1] * 20 + [2] * 9 + [7] * 2, ["1", "2 to 7"], [20, 11]),
        ([1] * 30 + [2] * 5, ["1", "2"], [30, 5]),  # all of them would be one
        ([1] * 30 + [2] * 12 + [None] * 3, ["1", "2", "missing"], [30, 12, 3]),
        (["a"] * 30 + ["b"] * 4 + ["c"] * 3 + ["d"] * 11, ["a", "d", "other"], [30, 11, 7]),
        (["a"] * 30 + ["b"] * 4 + [None] * 2, ["a", "b", "missing"], [30, 4, 2]),
    ],
)
def test_bins_of_few_samples_are_put_together(values, labels, counts):
    bins = without_few(bins_by(pa.table({"x": values}), "x"))
    assert bins.labels == labels
    assert np.bincount(bins.index).tolist() == counts


@pytest.mark.parametrize(
    "wrong", ["missing_column", "count(*)", "unnest([1, 2])", "[1, 2]", "read_text('/etc/passwd')"]
)
def test_what_gives_no_value_a_sample_is_refused(wrong):
    with pytest.raises(UsageError):
        bins_by(pa.table({"x": [1.0, 2.0, 3.0]}), wrong)


def test_groups_against_arithmetic_by_hand():
    costs = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, 1.0, np.inf], [0.5, 1.0, np.inf]])
    chosen = np.array([[1, 0, 0, 1], [2, 1, 0, 0]])
    bins = bins_by(pa.table({"g": ["a", "a", "b", "b"]}), "g")
    first, second = group_rows(decisions(costs, chosen), bins)
    assert (first["bin"], first["samples"]) == ("a", 2)
    assert first["shares"] == {"agent_0": 0.25, "agent_1": 0.5, "agent_2": 0.25}
    assert first["cheapest_shares"] == {"agent_0": 0.0, "agent_1": 0.75, "agent_2": 0.25}  # one sample is a tie
    assert first["loss"] == pytest.approx((0 + 0.5) / 2)
    assert first["against_best"]["value"] == pytest.approx(0.25 - 1.0)
    assert second["cheapest_shares"] == {"agent_0": 1.0, "agent_1": 0.0, "agent_2": 0.0}
    assert second["against_oracle"]["value"] == pytest.approx((0 + 0.75) / 2 - 0.25)


def test_the_column_that_decides_who_is_cheap_tells_most():
    generator = np.random.default_rng(1)
    ward, noise = generator.choice(["a", "b"], 400), generator.normal(size=400)
    costs = np.stack([ward == "a", ward == "b"], axis=1).astype(float)
    table = pa.table(
        {"sample_id": [str(k) for k in range(400)], "noise": noise, "ward": ward, "target_cla": costs[:, 0]}
    )
    found = most_telling(table, decisions(costs, np.zeros(400, dtype=np.int64)), most=1)
    assert [bins.title for bins in found] == ["ward"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_ranked_cost_sends_each_sample_to_the_first_of_one_ranking_that_answers(seed):
    generator = np.random.default_rng(seed)
    costs = generator.random((9, 3))
    full = ranked_cost(costs)
    assert full == pytest.approx(costs.sum(axis=0).min())  # the best constant agent
    costs[generator.random((9, 3)) < 0.4] = np.inf
    costs[np.isinf(costs).all(axis=1), 1] = 0.5
    mean = [np.mean(column[np.isfinite(column)]) if np.isfinite(column).any() else np.inf for column in costs.T]
    ranking = sorted(range(3), key=lambda agent: mean[agent])
    assert ranked_cost(costs) == pytest.approx(
        sum(next(row[j] for j in ranking if np.isfinite(row[j])) for row in costs)
    )


def test_groups_where_nobody_answers_everything():
    generator = np.random.default_rng(2)
    ward = generator.choice(["a", "b"], 300)
    costs = np.stack([ward == "a", ward == "b"], axis=1).astype(float)
    absent = generator.integers(0, 6, 300)  # 0 and 1: that agent is away
    costs[np.arange(300)[absent < 2], absent[absent < 2]] = np.inf
    table = pa.table({"noise": generator.normal(size=300), "ward": ward})
    chosen = np.where(np.isfinite(costs), costs, 9).argmin(axis=1)
    found = most_telling(table, decisions(costs, chosen), most=1)
    assert [bins.title for bins in found] == ["ward"]
    for row in group_rows(decisions(costs, chosen), found[0]):
        mine = ward == row["bin"]
        stand_in = np.where(np.isfinite(costs[:, 0]), costs[:, 0], costs[:, 1])
        assert row["against_oracle"]["value"] == 0
        assert row["against_best"]["value"] == pytest.approx((costs.min(axis=1) - stand_in)[mine].mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_examples_are_the_largest_gains_and_losses_by_brute_force(seed):
    generator = np.random.default_rng(seed)
    costs = generator.integers(0, 4, (12, 3)).astype(float)
    costs[generator.random((12, 3)) < 0.15] = np.inf
    costs[:, 0] = np.where(np.isinf(costs[:, 0]), 1.0, costs[:, 0])
    chosen = np.where(np.isfinite(costs), generator.random((12, 3)), -1).argmax(axis=1)
    found = choose(decisions(costs, chosen), each=2)
    for agent in range(3):
        mine = [row for row in range(12) if chosen[row] == agent]
        other = {row: min(cost for j, cost in enumerate(costs[row]) if j != agent) for row in mine}
        gains = sorted((other[row] - costs[row, agent] for row in mine if np.isfinite(other[row])), reverse=True)
        losses = sorted((costs[row, agent] - costs[row].min() for row in mine), reverse=True)
        for kind, values in (("gain", gains), ("loss", losses)):
            shown = [example.by for example in found if (example.chosen, example.kind) == (agent, kind)]
            assert shown == [value for value in values[:2] if value > 0]


def test_a_column_of_values_with_a_few_samples_each_is_not_chosen():
    costs = np.tile([[0.0, 1.0], [1.0, 0.0]], (20, 1))
    names = [f"{letter}{k % 2}" for k, letter in enumerate("aabbccddeeffgghhiijjkkllmmnnooppqqrrsstt")]
    columns = pa.table({"few": names, "many": ["x", "y"] * 20})
    assert [bins.title for bins in most_telling(columns, decisions(costs, np.zeros((1, 40), int)))] == ["many"]
