"""From raw costs to total costs: lambda, beta and SQL expressions, against loops and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from l2d.data.cache.reader import AgentRecord
from l2d.data.errors import UsageError
from l2d.rejector.costs import CostWeights, expression_costs, query_costs, total_costs


def agents(*prices: float) -> list[AgentRecord]:
    return [
        AgentRecord(
            name=f"agent{index}",
            index=index,
            kind="column",
            role="agent",
            price=price,
            description="",
            queries=[f"agent{index}"],
        )
        for index, price in enumerate(prices)
    ]


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).random((50, 3, 2)).astype(np.float32)


# --- lambda and beta -------------------------------------------------------------------------------------------------


def test_total_costs_are_the_weighted_sum_plus_beta(raw):
    weights, beta = [1.0, 0.2], [0.0, 0.1, 0.3]
    found = total_costs(torch.from_numpy(raw), torch.tensor(weights), torch.tensor(beta)).numpy()
    for b in range(50):
        for j in range(3):
            expected = sum(weights[t] * float(raw[b, j, t]) for t in range(2)) + beta[j]
            assert found[b, j] == pytest.approx(expected, abs=1e-6)


def test_total_costs_of_a_grid_are_each_points_own(raw):
    grid = np.random.default_rng(1)
    weights, beta = grid.random((4, 2)).astype(np.float32), grid.random((4, 3)).astype(np.float32)
    many = np.stack([raw + k for k in range(4)])
    found = total_costs(torch.from_numpy(many), torch.from_numpy(weights), torch.from_numpy(beta)).numpy()
    assert found.shape == (4, 50, 3)
    for g in range(4):
        for j in range(3):
            expected = many[g, :, j].astype(np.float64) @ weights[g].astype(np.float64) + float(beta[g, j])
            np.testing.assert_allclose(found[g, :, j], expected, rtol=1e-6)


def test_a_single_beta_is_the_dearest_experts_and_scales_by_price():
    found = query_costs(0.3, agents(0.0, 134.4, 280.3)).tolist()
    assert found == pytest.approx([0.0, 0.3 * 134.4 / 280.3, 0.3], abs=1e-7)
    assert query_costs(0.3, agents(0.0, 280.3, 134.4)).tolist() == pytest.approx(
        [0, 0.3, 0.3 * 134.4 / 280.3], abs=1e-7
    )
    assert query_costs(0.0, agents(0.0, 1.0, 2.0)).tolist() == [0, 0, 0]


def test_a_model_that_is_not_free_has_its_query_cost_in_proportion():
    assert query_costs(0.5, agents(4.0, 1.0, 2.0)).tolist() == pytest.approx([1.0, 0.25, 0.5])
    assert query_costs({"agent0": 0.1}, agents(4.0, 1.0, 2.0)).tolist() == pytest.approx([0.1, 0.0, 0.0])


@pytest.mark.parametrize("prices", [(None, 1.0, 2.0), (0.0, 1.0, None)])
def test_a_price_that_is_not_known_is_not_zero(prices):
    name = f"agent{prices.index(None)}"
    with pytest.raises(UsageError, match=f"the price of {name} is not known"):
        query_costs(0.3, agents(*prices))
    assert query_costs(0.0, agents(*prices)).tolist() == [0, 0, 0]
    assert query_costs({"agent1": 0.3}, agents(*prices)).tolist() == pytest.approx([0, 0.3, 0])


def test_named_betas_are_taken_as_they_are_and_others_are_free():
    assert query_costs({"agent2": 0.7}, agents(0.0, 5.0, 1.0)).tolist() == pytest.approx([0.0, 0.0, 0.7])
    assert query_costs({"agent0": 0.0, "agent1": 2}, agents(0.0, 5.0, 1.0)).tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        ({"agent0": 0.1}, "beta of the model"),
        ({"nobody": 0.1}, "nobody"),
        ({"agent1": -0.1}, "agent1"),
        ({"agent1": float("nan")}, "agent1"),
        ({"agent1": float("inf")}, "agent1"),
        (-0.1, "beta"),
        (float("nan"), "beta"),
        (float("inf"), "beta"),
    ],
)
def test_a_query_cost_that_makes_no_sense_is_refused(beta, message):
    with pytest.raises(UsageError, match=message):
        query_costs(beta, agents(0.0, 1.0, 2.0))


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_a_bad_beta_is_refused_even_if_every_expert_is_free(beta):
    with pytest.raises(UsageError, match="beta"):
        query_costs(beta, agents(0.0, 0.0, 0.0))


def test_lambda_is_parsed_in_task_order_with_0_for_what_is_not_named():
    assert CostWeights.parse({"reg": 0.2, "cla": 1}, ["cla", "reg"]).by_task == (("cla", 1.0), ("reg", 0.2))
    assert CostWeights.parse({"reg": 0.2}, ["cla", "reg"]).by_task == (("cla", 0.0), ("reg", 0.2))
    assert CostWeights.parse({}, ["cla", "reg"]).by_task == (("cla", 1.0), ("reg", 1.0))


@pytest.mark.parametrize(
    "values", [{"map": 1.0}, {"cla": -1.0}, {"cla": float("nan")}, {"reg": float("inf")}, {"cla": 0.0, "reg": 0.0}]
)
def test_a_lambda_that_makes_no_sense_is_refused(values):
    with pytest.raises(UsageError):
        CostWeights.parse(values, ["cla", "reg"])


def test_single_task_methods_keep_their_tasks_weight_alone():
    weights = CostWeights.parse({"cla": 0.7, "reg": 0.2}, ["cla", "reg"])
    assert weights.trained_on("multi-task") == weights
    assert dict(weights.trained_on("classification-only").by_task) == {"cla": 0.7, "reg": 0.0}
    assert dict(weights.trained_on("regression-only").by_task) == {"cla": 0.0, "reg": 0.2}


@pytest.mark.parametrize(("values", "tasks"), [({"cla": 1.0}, ["cla"]), ({"cla": 1.0, "reg": 0.0}, ["cla", "reg"])])
def test_a_method_whose_task_is_absent_or_weighs_0_is_refused(values, tasks):
    with pytest.raises(UsageError, match="reg"):
        CostWeights.parse(values, tasks).trained_on("regression-only")


# --- SQL expressions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "numpy_says"),
    [
        ("greatest(cost_cla, 0.2 * cost_reg)", lambda cla, reg: np.maximum(cla, 0.2 * reg)),
        ("cost_cla + 0.2 * cost_reg", lambda cla, reg: cla + 0.2 * reg),
        ("CASE WHEN cost_cla > 0.5 THEN 1 ELSE sqrt(cost_reg) END", lambda cla, reg: np.where(cla > 0.5, 1, reg**0.5)),
        ("1", lambda cla, reg: np.ones_like(cla)),
    ],
)
def test_an_expression_gives_what_numpy_gives(raw, expression, numpy_says):
    found = expression_costs(raw, ["cla", "reg"], expression)
    assert (found.shape, found.dtype) == ((50, 3, 1), np.float32)
    expected = numpy_says(raw[..., 0].astype(np.float64), raw[..., 1].astype(np.float64))
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-6)


def test_an_expression_keeps_the_order_of_many_rows():
    raw = np.arange(300_000 * 2, dtype=np.float32).reshape(300_000, 2, 1)
    np.testing.assert_array_equal(expression_costs(raw, ["map"], "cost_map"), raw)


@pytest.mark.parametrize(
    "expression",
    [
        "cost_cla +",
        "no_such_column",
        "cost_map",  # a task that this cache does not have
        "",
        "NULL",
        "CASE WHEN cost_cla < 0.5 THEN cost_cla END",
        "cost_cla - 2",
        "CASE WHEN cost_cla > 0.9 THEN -cost_cla ELSE 0 END",
        "cost_cla / 0",
        "'inf'::FLOAT",
        "'nan'::FLOAT",
        "1e300",
        "'text'",
        "sum(cost_cla)",
        "unnest([cost_cla, cost_reg])",
        "cost_cla)::FLOAT AS cost FROM raw_costs LIMIT 1 --",
        "1)::FLOAT AS cost FROM raw_costs WHERE false --",
    ],
)
def test_an_expression_that_gives_no_cost_per_agent_is_refused(raw, expression):
    with pytest.raises(UsageError, match="--cost"):
        expression_costs(raw, ["cla", "reg"], expression)


def test_an_expression_cannot_read_files(raw, tmp_path: Path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n2\n")
    for query in (
        "(SELECT count(*) FROM read_csv('/etc/passwd'))",
        f"(SELECT max(a) FROM read_csv('{secret}'))",
        f"(SELECT max(a) FROM '{secret}')",
        f"(SELECT length(content) FROM read_text('{secret}'))",
        f"(SELECT count(*) FROM glob('{tmp_path}/*'))",
    ):
        with pytest.raises(UsageError, match="--cost"):
            expression_costs(raw, ["cla", "reg"], query)


def test_an_expression_cannot_write_files_or_lift_the_guard(raw, tmp_path: Path):
    target = tmp_path / "written.csv"
    for statement in (
        f"COPY (SELECT 1) TO '{target}'",
        f"ATTACH '{target}' AS other",
        "SET enable_external_access = true",
        f"EXPORT DATABASE '{target}'",
    ):
        with pytest.raises(UsageError, match="--cost"):
            expression_costs(raw, ["cla", "reg"], f"1)::FLOAT AS cost FROM raw_costs; {statement}; SELECT (1")
    assert list(tmp_path.iterdir()) == []


def test_an_expression_cannot_see_python_variables(raw):
    hidden = {"a": [1]}
    assert hidden
    with pytest.raises(UsageError, match="--cost"):
        expression_costs(raw, ["cla", "reg"], "(SELECT max(a) FROM hidden)")
