"""What agents are worth: by brute force over sets and prices; a new agent's gain is found in a world that is known."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from decision_worlds import right_by_type, world_of

import l2d as library
from l2d.data.errors import DataError, UsageError
from l2d.rejector.decisions.limits import rule_of, search_of
from l2d.rejector.decisions.new_agent import judge_new_agent
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.saved import read_saved
from l2d.rejector.decisions.walk import walk
from l2d.rejector.decisions.worth import PriceCurve, losses_of, shapley, without_each, worth_of
from l2d.rejector.decisions.worth_of_policy import shapley_of, wanted_of
from l2d.rejector.runs.run import load_run

CHARGES = (0.01, 0.03, 0.05, 0.08)


@pytest.fixture(scope="module")
def world():
    return world_of(right_by_type(5, 4, 1), CHARGES, 3000, classes=3, seed=0)


def test_leaving_an_agent_out_is_routing_among_the_others(world):
    found = without_each(world)
    total = world.known.predicted + np.array(CHARGES)
    real = world.costs + np.array(CHARGES)
    rows = np.arange(len(world))
    whole = real[rows, total.argmin(axis=1)]
    for agent in range(4):
        others = [j for j in range(4) if j != agent]
        alone = real[:, others][rows, total[:, others].argmin(axis=1)]
        np.testing.assert_allclose(found[:, agent], alone - whole)


def test_shapley_values_are_means_over_all_orders_and_add_up(world):
    found = shapley(world)
    slow = np.zeros_like(found)
    orders = list(permutations(range(4)))
    for order in orders:
        for place, agent in enumerate(order):
            slow[:, agent] += losses_of(world, order[:place]) - losses_of(world, order[: place + 1])
    np.testing.assert_allclose(found, slow / len(orders), atol=1e-12)
    gain = losses_of(world, ()) - losses_of(world, range(4))
    np.testing.assert_allclose(found.sum(axis=1), gain, atol=1e-12)
    with pytest.raises(ValueError, match="sets"):
        shapley(world_of(np.full((2, 13), 0.5), [0.0] * 13, 10, classes=2, seed=0))


def test_gains_at_every_price_are_those_of_routing_at_that_price(world):
    for agent in range(4):
        curve = PriceCurve.of(world, agent)
        others = losses_of(world, [j for j in range(4) if j != agent])
        gains = []
        prices = np.linspace(0.0, 0.6, 40)
        for price in prices:
            charged = world.charges.copy()
            charged[:, agent] = price
            moved = losses_of(replace(world, charges=charged), range(4))
            gains.append(float((others - moved).mean()))
            assert curve.gain(float(price)) == pytest.approx(gains[-1], abs=1e-9)
        even = curve.break_even
        if even > 0:
            assert curve.gain(even - 1e-6) > 0
        assert all(gain <= 1e-12 for price, gain in zip(prices, gains, strict=True) if price > even + 1e-9)


def test_a_table_of_it(world):
    facts = {"run_id": "r", "split": "test", "unit": "USD", "worth_of_money": 2.0}
    found = worth_of(world, facts)
    assert [row["agent"] for row in found.agents] == world.agents
    for row in found.agents:
        assert row["without"]["low"] <= row["without"]["value"] <= row["without"]["high"]
        assert row["verdict"] in ("worth it", "better without", "not shown")
    shares = sum(row["shapley"]["value"] for row in found.agents)
    assert shares == pytest.approx(found.result["random_agent_loss"] - found.result["loss"])
    assert found.rows()[0]["break-even USD"] == pytest.approx(found.agents[0]["break_even"] / 2)


def test_a_new_agent_is_judged_from_some_answers():
    """Its true gain is known; intervals from 150 answers hold it at their rate."""
    right = right_by_type(5, 5, 4)
    whole = world_of(right, [0.02] * 5, 20_000, classes=3, seed=1)
    old = replace(
        whole, agents=whole.agents[:4], costs=whole.costs[:, :4], charges=whole.charges[:, :4],
        price=whole.price[:, :4],
        known=replace(whole.known, predicted=whole.known.predicted[:, :4], right=whole.known.right[:, :4],
                      available=whole.known.available[:, :4]),
    )  # fmt: skip
    generator, held, values = np.random.default_rng(0), 0, []
    for _ in range(40):
        rows = generator.choice(len(old), 150, replace=False)
        answers = {old.ids[row]: float(whole.costs[row, 4]) for row in rows}
        found = judge_new_agent(old, answers, charge=0.02).result
        # what is judged is a rule learnt from these answers, so its own gain on everything is what should be covered
        best = losses_of(old, range(4)).mean() - losses_of(whole, range(5)).mean()
        held += found["gain"]["low"] <= best + 0.02
        values.append(found["gain"]["value"])
    assert held >= 36
    assert -0.02 < np.mean(values) <= best + 0.01
    useless = {old.ids[row]: 1.0 for row in range(80)}
    assert judge_new_agent(old, useless).result["verdict"] == "not worth it"
    perfect = {old.ids[row]: 0.0 for row in range(80)}
    found = judge_new_agent(old, perfect, buy=7)
    assert found.result["verdict"] == "worth it"
    assert len(set(found.next)) == 7
    assert not set(found.next) & set(perfect)
    with pytest.raises(DataError, match="3 answers"):
        judge_new_agent(old, {old.ids[row]: 0.0 for row in range(3)})


def test_the_command_and_sql(patient_runs, tmp_path, l2d, l2d_done):
    run = patient_runs / "best"
    told = json.loads(l2d_done("worth", run, "--save", tmp_path / "values", "--format", "json"))
    library.policy(run, ask="cascade", save=tmp_path / "cascade")
    found = library.query([run, tmp_path], "SELECT agent, without, shapley, verdict FROM agent_values").rows()
    assert [row["agent"] for row in found] == [row["agent"] for row in told["agents"]]
    assert [row["without"] for row in found] == [row["without"]["value"] for row in told["agents"]]
    (row,) = library.query(tmp_path, "SELECT * FROM policies").rows()
    decisions = pl.read_parquet(tmp_path / "cascade" / "decisions.parquet").filter(pl.col("split") == "test")
    assert (row["policy"], row["kind"]) == ("cascade", "cascade")
    assert row["deferral_loss"] == pytest.approx(decisions["loss"].mean())
    joined = library.query(
        [run, tmp_path],
        "SELECT avg(d.loss) AS loss, avg(a.deferral_cost) AS router, avg(len(d.asked)) AS asked FROM decisions d "
        "JOIN allocations a USING (run_id, sample_id) WHERE d.split = 'test'",
    ).rows()[0]
    assert joined["loss"] == pytest.approx(decisions["loss"].mean())
    assert joined["router"] == pytest.approx(decisions["router_loss"].mean(), abs=1e-6)
    ids = decisions["sample_id"].to_list()[:30]
    pl.DataFrame({"sample_id": ids, "correct": [1] * len(ids)}).write_csv(tmp_path / "new.csv")
    out = l2d_done("worth", run, "--new", tmp_path / "new.csv", "--buy", "3")
    assert "worth it" in out
    pl.DataFrame({"sample_id": ids, "right": [1] * len(ids)}).write_csv(tmp_path / "wrong.csv")
    for wrong, words in (
        (["--new", tmp_path / "wrong.csv"], "cost, correct or answer"),
        (["--buy", "3"], "--new FILE"),
    ):
        code, _, err = l2d("worth", run, *wrong)
        assert code in (2, 3)
        assert words in err


@pytest.mark.slow
def test_what_agents_add_to_a_policy(patient_runs, tmp_path, l2d_done):
    """Against the search among the agents that are left, and Shapley values that add up to the whole gain."""
    run, saved = patient_runs / "best", tmp_path / "cascade"
    library.policy(run, ask="cascade", depth=2, save=saved)
    result = library.worth(saved, save=tmp_path / "values").result
    assert result["policy"] == "cascade"
    wanted = wanted_of(read_saved(saved))
    assert (wanted.ask, wanted.depth, wanted.risks) == ("cascade", 2, ())
    read = read_worlds(load_run(run), ("test",))
    search = search_of(read, wanted)
    row, name = result["agents"][1], read.fit.agents[1]
    search.only = [agent for agent in range(read.fit.num_agents) if agent != 1]
    rule, _ = rule_of(search, "cascade", wanted, read.worlds["validation"])
    without = walk(rule, read.worlds["test"]).loss
    whole = pl.read_parquet(saved / "decisions.parquet").filter(pl.col("split") == "test")
    assert row["agent"] == name
    assert row["without"]["value"] == pytest.approx(float((without - whole["loss"].to_numpy()).mean()), abs=1e-9)
    asked = whole["asked"].list.contains(name).mean()
    assert row["share"] == pytest.approx(asked)
    for each in result["agents"]:
        if each["share"]:
            told = each["charge"] + each["without"]["value"] / each["share"]
            assert each["break_even"] == pytest.approx(max(0, told))
            assert each["break_even_low"] <= each["break_even"] <= each["break_even_high"]
    gain = result["random_agent_loss"] - result["loss"]
    assert sum(each["shapley"]["value"] for each in result["agents"]) == pytest.approx(gain)
    told = l2d_done("query", tmp_path / "values", "SELECT policy, agent, without FROM agent_values", "--format", "json")
    assert {each["policy"] for each in json.loads(told)} == {"cascade"}
    with pytest.raises(UsageError):
        library.worth(saved, buy=3)
    library.policy(run, ask="router", budget=0.2, save=tmp_path / "cheap")  # the dear agents alone cannot
    cheap = library.worth(tmp_path / "cheap").result
    gain = cheap["random_agent_loss"] - cheap["loss"]
    assert sum(each["shapley"]["value"] for each in cheap["agents"]) == pytest.approx(gain)


def test_shapley_values_by_hand():
    game = {(): 4.0, (0,): 3.0, (1,): 2.0, (0, 1): 0.0}  # what is lost by whom is there
    assert shapley_of((0, 1), lambda some: np.array([game[some]])).tolist() == [[1.5, 2.5]]
