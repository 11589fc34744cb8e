"""Agents that can answer only so many inputs of a batch: limits hold, those that gain most come first, queues move."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from decision_worlds import right_by_type, world_of

import l2d
from l2d.data.errors import UsageError
from l2d.rejector.decisions.budget import within_capacities
from l2d.rejector.decisions.capacity import parse_capacities
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.rule import Capacity, rule_from_json, rule_to_json
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.walk import walk
from l2d.rejector.runs.run import load_run

CHARGES = [0.01, 0.02, 0.05]


@pytest.fixture(scope="module")
def world():
    return world_of(right_by_type(5, 3, 3), CHARGES, 900, classes=3, seed=1)


def asked_by_batch(walked, agent: int) -> np.ndarray:
    return np.bincount(walked.batch[(walked.path == agent).any(axis=1)], minlength=walked.batch.max() + 1)


@pytest.mark.parametrize("kind", ["ranked", "committee", "cascade", "adaptive"])
def test_no_batch_asks_more_than_an_agent_can_answer(world, kind):
    search = Search(world, depth=2)
    found = {"ranked": lambda: search.ranked(2), "committee": search.committee, "cascade": search.cascade,
             "adaptive": search.adaptive}[kind]()  # fmt: skip
    wanted = walk(found, world, held_out=True)
    agent = int(np.bincount(wanted.path[wanted.path >= 0]).argmax())
    limited = replace(found, capacities=(Capacity(agent, count=15),), batch=100)
    walked = walk(limited, world, held_out=True)
    assert asked_by_batch(wanted, agent).sum() > 15 * 9
    assert asked_by_batch(walked, agent).max() == 15
    assert walked.answered.all()
    assert walked.batch.max() == 8
    again = walk(rule_from_json(rule_to_json(limited)), world)
    assert asked_by_batch(again, agent).max() == 15


def test_a_full_router_serves_those_that_gain_most(world):
    """Of a batch the best use of one scarce agent, by enumeration of who gets it."""
    some = world.take(np.arange(9))
    rule = replace(Search(world).ranked(1), capacities=(Capacity(2, count=2),))
    walked = walk(rule, some)
    total = some.known.predicted + np.array(rule.charges)
    others = total[:, :2].min(axis=1)
    free = np.where(total[:, 2] < others, total[:, 2], others)
    best = min(
        sum(total[row, 2] if row in given else others[row] for row in range(9))
        for size in range(3) for given in combinations(range(9), size)
    )  # fmt: skip
    assert (total[:, 2] < others).sum() > 2  # more want it
    assert walked.expected.size
    assert np.isclose(sum(total[row, agent] for row, agent in enumerate(walked.path[:, 0])), best)
    assert best > free.sum()
    assert walked.turned.sum() == (total[:, 2] < others).sum() - 2


def test_a_queue_is_first_come_first_served_and_waiting_costs(world):
    rule = Search(world).ranked(1)
    plain = walk(rule, world)
    scarce = int(np.bincount(plain.path[:, 0]).argmax())
    limited = replace(rule, capacities=(Capacity(scarce, count=20),), batch=100)
    elsewhere = walk(limited, world)
    patient = walk(replace(limited, wait=1e-6), world)
    assert asked_by_batch(patient, scarce).max() == 20
    assert (
        patient.path[:, 0] == plain.path[:, 0]
    ).mean() > 0.99  # waiting costs next to nothing: all get whom they want
    assert patient.batch.max() > 8
    assert patient.waited.max() >= 1
    assert elsewhere.waited.max() == 0
    order = patient.batch - patient.waited
    np.testing.assert_array_equal(order, np.arange(900) // 100)  # each waited from the batch that it came with
    served = patient.path[:, 0] == scarce
    for batch in range(patient.batch.max()):
        here = served & (patient.batch == batch)
        later = served & (patient.batch > batch) & (order <= batch)
        if here.any() and later.any():
            assert order[here].max() <= order[later].max() or patient.waited[later].min() > 0
    np.testing.assert_allclose(
        patient.charges, world.charges[np.arange(900), patient.path[:, 0]] + 1e-6 * patient.waited
    )
    dear = walk(replace(limited, wait=10.0), world)
    assert dear.waited.max() == 0
    np.testing.assert_array_equal(dear.path, elsewhere.path)


def test_a_rule_made_for_a_scarce_agent_loses_no_more_than_one_that_meets_it_unprepared(world):
    world = world.take(np.arange(300))
    search = Search(world, depth=2)
    order = search.cascade().order
    search.capacities, search.batch = (Capacity(order[0], share=0.05),), 300
    naive = search.cascade()
    rule, _ = within_capacities(search, lambda: (search.cascade(), 0.0), world)
    losses = [walk(each, world, held_out=True).loss.mean() for each in (naive, rule)]
    assert losses[1] <= losses[0]
    assert search.tolls is None


def test_capacities_are_shares_counts_and_rates():
    found = parse_capacities("a=0.25,b=30,c=2/minute", ["a", "b", "c"], every=90)
    assert [each.of(100) for each in found] == [25, 30, 3]
    assert parse_capacities({"a": 0.5, "b": 7}, ["a", "b"])[1] == Capacity(1, count=7)
    assert Capacity(0, share=0.3).of(10) == 3
    for wrong in ("d=1", "a=x", "a=-1", "a=1.5", "a=2/fortnight", "a=2/minute", "a=1,a=2", "a=nan"):
        with pytest.raises(UsageError):
            parse_capacities(wrong, ["a", "b", "c"])


@pytest.mark.slow
def test_the_command_routes_within_capacities(patient_runs, tmp_path, l2d_done, l2d):
    run, saved, out = patient_runs / "best", tmp_path / "scarce", tmp_path / "round.csv"
    printed = l2d_done("policy", run, "--ask", "cascade", "--capacity", "cheap=4/hour,asked=0.2", "--every", 1800,
                       "--batch-size", 10, "--wait", 0.01, "--save", saved)  # fmt: skip
    assert "agents that can be full" in printed
    table = pl.read_parquet(saved / "decisions.parquet").filter(pl.col("split") == "test")
    each = table.explode("asked").group_by("batch", "asked").len()
    assert each.filter(pl.col("asked") == "cheap")["len"].max() or 0 <= 2
    assert each.filter(pl.col("asked") == "asked")["len"].max() or 0 <= 2
    read = read_worlds(load_run(run))
    walked = walk(load(saved).rule, read.worlds["test"])
    assert table["loss"].to_numpy() == pytest.approx(walked.loss)
    l2d_done("route", run, patient_runs / "cache", "--policy", saved, "--out", out)
    asks = pl.read_csv(out, infer_schema=False)
    batches = -(-len(asks) // 10)
    for name in ("cheap", "asked"):
        assert asks.filter(pl.col("action") == "ask", pl.col("agent") == name).height <= 2 * batches
    code, _, error = l2d("policy", run, "--ask", "cascade", "--capacity", "cheap=2", "--risk", "error<=0.2")
    assert code == 2
    assert "--capacity" in error
    assert l2d("policy", run, "--ask", "cascade", "--wait", 0.1)[0] == 2


def load(folder):
    return l2d.load_policy(folder)


def test_input_by_input_the_first_have_a_scarce_agent(patient_runs, tmp_path):
    run = patient_runs / "best"
    made = l2d.policy(run, ask="router", capacity={"expert": 1}, batch_size=50, save=tmp_path / "one")
    policy = l2d.load_policy(tmp_path / "one")
    wanting = [policy.start(np.full(policy.width, value, np.float32)).ask for value in np.linspace(-2, 2, 9)]
    policy.begin_batch(50)
    again = [policy.start(np.full(policy.width, value, np.float32)).ask for value in np.linspace(-2, 2, 9)]
    assert wanting == again
    assert again.count("expert") <= 1
    assert made.result["capacities"][0]["asked in a batch, most"] <= 1
