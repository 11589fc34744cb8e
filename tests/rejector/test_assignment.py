"""Allocation under constraints: against enumeration of every allocation, and against HiGHS on the whole problem."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from l2d.data.cache.reader import AgentRecord
from l2d.data.errors import DataError, UsageError
from l2d.rejector.policies.assignment import assign, assign_exactly, assign_in_batches
from l2d.rejector.policies.constraints import Constraint, _no_chatter, make_constraints, parse_capacity
from l2d.rejector.policies.dual_prices import cheapest, fit_prices


def budget(limit: float, *prices: float) -> Constraint:
    return Constraint("budget", f"<= {limit:g}", (0.0, *prices), limit=limit)


def coverage(share: float, agents: int = 3) -> Constraint:
    return Constraint("coverage", f"= {share:g}", (1.0,) + (0.0,) * (agents - 1), limit=share, exact=True)


def capacity(agent: int, most: int, agents: int = 3) -> Constraint:
    use = tuple(float(j == agent) for j in range(agents))
    return Constraint(f"capacity of {agent}", f"<= {most} samples", use, count=most)


def best_by_enumeration(costs: np.ndarray, constraints: list[Constraint]) -> float:
    """Lowest mean cost of any allocation that meets the constraints, or infinity."""
    n, agents = costs.shape
    best = np.inf
    for allocation in itertools.product(range(agents), repeat=n):
        counts = [allocation.count(agent) for agent in range(agents)]
        for constraint in constraints:
            used = sum(c * u for c, u in zip(counts, constraint.use, strict=True))
            limit = constraint.count if constraint.limit is None else constraint.limit * n
            if constraint.exact and used != int(limit + 0.5):
                break
            if not constraint.exact and used > limit + 1e-9:
                break
        else:
            best = min(best, sum(costs[row, agent] for row, agent in enumerate(allocation)) / n)
    return best


def lp_value(costs: np.ndarray, constraints: list[Constraint]) -> float:
    """Mean cost of the linear relaxation, by HiGHS, written down afresh."""
    n, agents = costs.shape
    each = np.kron(np.eye(n), np.ones(agents))
    use = {True: [], False: []}
    for constraint in constraints:
        use[constraint.exact].append((np.tile(constraint.use, n), constraint.total(n)))
    upper, equal = use[False], use[True]
    found = linprog(
        costs.ravel(),
        A_ub=np.array([row for row, _ in upper]) if upper else None,
        b_ub=np.array([limit for _, limit in upper]) if upper else None,
        A_eq=np.vstack([each, *[row for row, _ in equal]]),
        b_eq=np.r_[np.ones(n), [limit for _, limit in equal]],
        bounds=(0, 1),
    )
    return found.fun / n


@st.composite
def tiny(draw):
    """Costs of up to six samples and three agents, many of them tied or infinite, and one to three constraints."""
    n, agents = draw(st.integers(1, 6)), draw(st.integers(2, 3))
    value = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.7]) if draw(st.booleans()) else st.floats(0, 2)
    unit = draw(st.sampled_from([1.0, 1.0, 6e-8, 1e-15, 1e12]))  # HiGHS's tolerances are absolute: 1e-7
    costs = unit * np.array([[draw(value) for _ in range(agents)] for _ in range(n)])
    for row in range(n):
        for agent in range(agents):
            if draw(st.integers(0, 4)) == 0 and np.isfinite(np.delete(costs[row], agent)).any():
                costs[row, agent] = np.inf
    prices = [draw(st.sampled_from([0.0, 0.5, 1.0, 2.3])) for _ in range(agents - 1)]
    possible = [
        budget(draw(st.floats(0, 2)), *prices),
        coverage(draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])), agents),
        capacity(draw(st.integers(0, agents - 1)), draw(st.integers(0, n)), agents),
    ]
    chosen = draw(st.lists(st.sampled_from(range(3)), min_size=1, max_size=3, unique=True))
    return costs, [possible[k] for k in chosen]


@settings(max_examples=60, deadline=None)
@given(tiny())
@pytest.mark.slow
def test_tiny_problems_are_solved_as_enumeration_solves_them(problem):
    costs, constraints = problem
    best = best_by_enumeration(costs, constraints)
    if best == np.inf:
        refused(lambda: assign(costs, constraints), UsageError)
        refused(lambda: assign_exactly(costs, constraints), UsageError)
        return
    largest = costs[np.isfinite(costs)].max()
    for found in (assign(costs, constraints), assign_exactly(costs, constraints)):
        assert found.value == pytest.approx(best, rel=1e-12, abs=1e-12 * largest)
        assert found.bound <= best * (1 + 1e-15)
        assert found.value == pytest.approx(costs[np.arange(len(costs)), found.allocation].mean())
        assert all(constraint.holds(constraint.used(found.allocation), len(costs)) for constraint in constraints)


def test_costs_below_the_solvers_tolerance_are_told_apart():
    """To HiGHS costs below 1e-7 are all 0: it gave such a sample to any agent, and called that the bound."""
    tiny, none = 5.96e-8, [budget(2.0, 1.0, 1.0)]
    costs = np.array([[tiny, 0.0, 0.0], [0.0, tiny, tiny], [tiny, tiny, 0.0], [1.7, 1.7, tiny]])
    for found in (assign(costs, none), assign_exactly(costs, none)):
        np.testing.assert_array_equal(found.allocation != 0, [True, False, True, True])
        assert found.value == tiny / 4
        assert 0 <= found.gap < 1e-11
    one = np.array([[tiny, 0.0, 0.0]])
    for found in (assign(one, [budget(0.0, 0.5, 1.0)]), assign_exactly(one, [budget(0.0, 0.5, 1.0)])):
        assert found.allocation.tolist() == [0]
        assert found.bound <= found.value == tiny


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_larger_problems_meet_their_constraints_close_to_the_linear_program(seed, ties):
    generator = np.random.default_rng(seed)
    n, agents = 300, 4
    costs = generator.integers(0, 4, (n, agents)) / 4 if ties else generator.random((n, agents))
    costs[:, 0] += 0.3
    missing = generator.random((n, agents)) < 0.1
    missing[:, 0] = False
    costs[missing] = np.inf
    constraints = [budget(0.9, 1.0, 2.5, 0.7), capacity(3, 60, agents), coverage(0.413, agents)]
    found, bound = assign(costs, constraints), lp_value(np.where(missing, 1e3, costs), constraints)
    for constraint in constraints:
        used = np.bincount(found.allocation, minlength=agents) @ np.array(constraint.use)
        assert used == 124 if constraint.exact else used <= constraint.total(n) + 1e-9  # 0.413 x 300 = 123.9
    assert np.isfinite(costs[np.arange(n), found.allocation]).all()
    assert found.bound == pytest.approx(bound, abs=1e-6)  # the best prices prove what the linear program does
    assert 0 <= found.gap < 3 / n  # a few samples that the linear program divides
    if not ties:
        assert found.value == pytest.approx(assign_exactly(costs, constraints).value, abs=2e-4)


def test_prices_pay_only_for_limits_that_bind():
    costs = np.random.default_rng(0).random((400, 3))
    use = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.0]])
    columns = np.ascontiguousarray(costs.T)
    free = fit_prices(columns, use, np.array([2.0, 1.0]), np.array([False, False]))
    np.testing.assert_array_equal(free.prices, 0)
    assert free.bound == pytest.approx(costs.min(axis=1).mean())
    np.testing.assert_array_equal(cheapest(columns, np.zeros(3))[0], costs.argmin(axis=1))
    tight = fit_prices(columns, use, np.array([0.4, 0.9]), np.array([False, False]))
    assert tight.prices[0] > 0
    assert tight.prices[1] == pytest.approx(0, abs=1e-9)
    # a price is what one more unit of the limit would save: the slope of the optimum
    more = fit_prices(columns, use, np.array([0.44, 0.9]), np.array([False, False]))
    assert more.prices[0] <= (tight.bound - more.bound) / 0.04 <= tight.prices[0]


def test_many_samples_find_their_prices_from_a_few():
    costs = np.random.default_rng(1).random((25_000, 3)) + np.array([0.3, 0.1, 0.0])
    constraints = [budget(0.9, 1.0, 2.5), capacity(1, 6_000), coverage(0.5)]
    found = assign(costs, constraints)
    assert all(constraint.holds(constraint.used(found.allocation), len(costs)) for constraint in constraints)
    assert 0 <= found.gap < 1e-5


def test_samples_alike_are_dealt_without_trouble():
    """5,000 samples with the very same costs: any price sends all of them one way."""
    costs = np.tile([0.9, 0.2, 0.1], (5_000, 1))
    found = assign(costs, [budget(0.75, 1.0, 2.0), coverage(0.4001)])
    counts = np.bincount(found.allocation, minlength=3)
    # 2,001 (halves up) kept; of 2,999 queries 3,750 price units buy 751 of agent 2
    np.testing.assert_array_equal(counts, [2001, 2248, 751])
    assert found.gap < 1e-6


def test_batches_keep_their_capacities_each():
    generator = np.random.default_rng(2)
    costs = generator.random((230, 3)) + np.array([0.5, 0.0, 0.0])
    constraints = [capacity(1, 10), capacity(2, 15)]
    found = assign_in_batches(costs, constraints, 50)
    exact = assign_in_batches(costs, constraints, 50, exactly=True)
    for start in range(0, 230, 50):
        counts = np.bincount(found.allocation[start : start + 50], minlength=3)
        assert counts[1] <= 10
        assert counts[2] <= 15
    assert found.value == pytest.approx(exact.value, abs=1e-9)
    assert found.bound <= exact.value + 1e-9
    refused(
        lambda: assign_in_batches(costs, [*constraints, capacity(0, 20)], 50),
        UsageError, "samples 0 to 49", "and capacity of 0 <= 20 samples",
    )  # fmt: skip


def test_impossible_limits_are_named():
    available = np.ones((100, 3), bool)
    available[:70, 0] = False
    costs = np.where(available, 0.5, np.inf)
    kept = refused(lambda: assign(costs, [budget(5, 1, 1), coverage(0.4)]), UsageError, "coverage = 0.4")
    assert "0 to 0.3 per input" in kept.what
    assert "budget" not in kept.what
    spent = refused(lambda: assign(costs, [budget(0.6, 1, 2), coverage(0.1)]), UsageError, "budget <= 0.6")
    assert "0.7 to 2" in spent.what
    both = [capacity(1, 30), budget(1.0, 1, 2), coverage(0.2)]
    clash = refused(lambda: assign(costs, both), UsageError, "capacity of 1 <= 30 samples and budget <= 1")
    assert "coverage" not in clash.what  # these two clash whatever the coverage is
    refused(lambda: assign(np.array([[np.inf, np.inf]]), [budget(1, 1)]), DataError, "no agent")
    refused(lambda: assign(np.array([[np.nan, 1.0]]), [budget(1, 1)]), DataError, "not a number")


def test_what_highs_prints_does_not_reach_stdout(capfd):
    libc = ctypes.CDLL(None)
    with _no_chatter():
        libc.printf(b"debugging\n")
    libc.printf(b"result\n")
    libc.fflush(None)
    assert capfd.readouterr().out == "result\n"


def record(name: str, index: int, price: float, gflops: float | None) -> AgentRecord:
    return AgentRecord(
        name=name, index=index, kind="column", role="agent", price=price, description="", queries=[name], gflops=gflops
    )


def test_constraints_of_a_cache_and_their_refusals():
    agents = [record("model", 0, 0.0, 12.2), record("m1", 1, 1.0, 134.4), record("m2", 2, 2.0, 280.3)]
    found = make_constraints(agents, budget=0.5, gflops=100.0, coverage=0.25, capacity={"m1": 0.5, "m2": 7})
    assert [str(c) for c in found] == [
        "budget <= 0.5", "gflops <= 100", "coverage = 0.25", "capacity of m1 <= 0.5", "capacity of m2 <= 7 samples",
    ]  # fmt: skip
    assert [c.use for c in found] == [
        (0, 1, 2), (12.2, 134.4, 280.3), (1, 0, 0), (0, 1, 0), (0, 0, 1),
    ]  # fmt: skip
    assert [c.total(10) for c in found] == [5, 1000, 3, 5, 7]  # 2.5 samples kept are 3
    assert parse_capacity("expert_1=0.3, expert_2=100,m=1") == {"expert_1": 0.3, "expert_2": 100, "m": 1}
    assert isinstance(parse_capacity("m=1")["m"], int)
    free = [record("model", 0, 0.0, None), record("m1", 1, 0.0, 2.0)]
    for agents_of, options, words in (
        (agents, {}, "no constraint"),
        (agents, {"budget": -1.0}, "--budget -1"),
        (agents, {"gflops": float("nan")}, "--gflops nan"),
        (agents, {"coverage": 1.1}, "--coverage 1.1"),
        (agents, {"capacity": {"nobody": 1}}, "the agents are model, m1, m2"),
        (agents, {"capacity": {"m1": 1.5}}, "m1=1.5"),
        (agents, {"capacity": {"m1": -1}}, "m1=-1"),
        (free, {"budget": 1.0}, "no agent costs anything"),
        (free, {"gflops": 1.0}, "the GFLOPs of model are not known"),
    ):
        with pytest.raises(UsageError) as caught:
            make_constraints(agents_of, **options)
        assert words in str(caught.value), caught.value
    for text in ("m", "m=", "=1", "m=x", "m=1,m=2", ""):
        with pytest.raises(UsageError, match="expects agent=limit"):
            parse_capacity(text)
