"""One allocation everywhere: the same rule, ties to the lowest index, in torch, numpy, Python and SQL."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch

from l2d.rejector.losses import allocate, deferral_loss, oracle_allocation

ROWS, AGENTS = 200_000, 4


@pytest.fixture(scope="module")
def costs() -> np.ndarray:
    """Costs rounded so coarsely that about half of the rows tie at their lowest."""
    costs = np.random.default_rng(0).integers(0, 4, (ROWS, AGENTS)).astype(np.float32) / 4
    ties = ((costs == costs.min(axis=1, keepdims=True)).sum(axis=1) > 1).mean()
    assert 0.4 < ties < 0.6
    return costs


def lists(values: np.ndarray) -> pa.Table:
    flat = pa.array(values.reshape(-1))
    return pa.table({"row": np.arange(len(values)), "v": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])})


def in_sql(query: str, **tables: pa.Table) -> np.ndarray:
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register(name, table)
    found = connection.execute(query).fetchnumpy()["agent"]
    connection.close()
    return np.asarray(found)


def first_best(scores: list[float]) -> int:
    best = 0
    for position, score in enumerate(scores):
        if score > scores[best]:
            best = position
    return best


def test_torch_numpy_python_and_sql_allocate_every_row_alike(costs):
    scores = -costs
    expected = np.array([first_best(row) for row in scores.tolist()])
    np.testing.assert_array_equal(allocate(torch.from_numpy(scores)).numpy(), expected)
    np.testing.assert_array_equal(scores.argmax(axis=1), expected)
    sql = "SELECT list_position(s, list_max(s)) - 1 AS agent FROM (SELECT row, v::FLOAT[] AS s FROM t) ORDER BY row"
    np.testing.assert_array_equal(in_sql(sql, t=lists(scores)), expected)


def test_oracle_is_the_first_cheapest_agent_in_numpy_and_sql(costs):
    found = oracle_allocation(torch.from_numpy(costs)).numpy()
    np.testing.assert_array_equal(found, costs.argmin(axis=1))
    long = pa.table(
        {
            "row": np.repeat(np.arange(ROWS), AGENTS),
            "j": np.tile(np.arange(AGENTS), ROWS),
            "cost": costs.reshape(-1),
        }
    )
    sql = "SELECT row, arg_min(j, (cost, j)) AS agent FROM t GROUP BY row ORDER BY row"
    np.testing.assert_array_equal(in_sql(sql, t=long), found)


def test_allocation_under_a_gpu_like_order_is_still_the_lowest_index(costs):
    """Reversing the agents must move ties to what was the last one: the rule is the index, not the value."""
    scores = -costs
    backwards = allocate(torch.from_numpy(scores[:, ::-1].copy())).numpy()
    last_best = np.array([max(j for j in range(AGENTS) if row[j] == max(row)) for row in scores[:5000].tolist()])
    np.testing.assert_array_equal(AGENTS - 1 - backwards[:5000], last_best)


def test_model_wins_a_full_tie_and_infinite_scores_are_ordered():
    scores = torch.tensor([[0.0, 0.0, 0.0], [-torch.inf, -1e30, -torch.inf], [1.0, torch.inf, torch.inf]])
    assert allocate(scores).tolist() == [0, 1, 1]
    assert allocate(torch.full((2, 3), -torch.inf)).tolist() == [0, 0]
    assert allocate(torch.tensor([[0.0, -0.0], [-0.0, 0.0]])).tolist() == [0, 0]


def test_allocation_works_over_grid_dimensions():
    scores = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (2, 3, 50, 4)).astype(np.float32))
    np.testing.assert_array_equal(allocate(scores).numpy(), scores.numpy().argmax(axis=-1))
    assert allocate(scores).dtype == torch.int64


def test_no_allocation_costs_less_than_the_oracle(costs):
    values = torch.from_numpy(costs)
    lowest = deferral_loss(oracle_allocation(values), values).numpy()
    np.testing.assert_array_equal(lowest, costs.min(axis=1))
    for agent in range(AGENTS):
        assert (deferral_loss(torch.full((ROWS,), agent), values).numpy() >= lowest).all()
