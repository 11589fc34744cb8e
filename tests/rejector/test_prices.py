"""Prices that differ by sample: part of every total cost, for every agent, against plain polars and brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused

import l2d
from l2d.data.cache.paid import missing_prices
from l2d.data.cache.reader import CostCache
from l2d.data.errors import FingerprintMismatch, UsageError
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import load_run, open_cache

ROWS = 900
AGENTS = ("steady", "short", "long")
SPLITS = ("train", "validation", "test")
WORTHS = (0.0, 1.0, 40.0)


def prompts(seed: int = 0) -> pl.DataFrame:
    """Agents that are right alike and are paid alike on average: ``short`` little for short prompts, ``long`` for long.

    ``steady`` is paid a fixed sum a little below that average, so a mean price would send everything to it.
    """
    generator = np.random.default_rng(seed)
    length = generator.uniform(0, 1, ROWS)
    noise = generator.uniform(0.9, 1.1, (ROWS, 2))
    table = {"id": [f"q{row}" for row in range(ROWS)], "length": length}
    table |= {name: (generator.random(ROWS) < 0.8).astype(float) for name in AGENTS}
    table |= {"steady|total_cost": np.full(ROWS, 0.0095)}
    table |= {"short|total_cost": 0.02 * length * noise[:, 0], "long|total_cost": 0.02 * (1 - length) * noise[:, 1]}
    return pl.DataFrame(table)


def imported(folder: Path, table: pl.DataFrame, **facts) -> CostCache:
    return l2d.import_table(table, out=folder / "c", id="id", kind="scores", columns=["length"], **facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prices")


@pytest.fixture(scope="module")
def cache(folder) -> CostCache:
    return imported(folder, prompts())


@pytest.fixture(scope="module")
def runs(cache, folder):
    return l2d.sweep(cache, folder / "runs", betas=[{"paid": worth} for worth in WORTHS])


def of_split(cache: CostCache, table: pl.DataFrame, split: str) -> pl.DataFrame:
    """The rows of the table as it was handed in that are in a split, in the cache's order."""
    parts = [pl.from_arrow(cache.samples(k, ["sample_id", "split"])) for k in range(cache.record.num_chunks)]
    names = pl.concat(parts).filter(pl.col("split") == split).select(id="sample_id")
    return names.join(table, on="id", how="left", maintain_order="left")


def totals(table: pl.DataFrame, worth: float, names=AGENTS) -> np.ndarray:
    """Total costs by hand: one minus the score, plus what a dollar is worth times the dollars."""
    return table.select((1 - pl.col(n) + worth * pl.col(f"{n}|total_cost")).alias(n) for n in names).to_numpy()


def test_constants_cost_their_scores_and_dollars_and_the_oracle_is_the_least_of_each_row(cache, runs):
    table = of_split(cache, prompts(), "test")
    for worth, found in zip(WORTHS, l2d.evaluate(runs), strict=True):
        costs, result = totals(table, worth), found.result
        for position, name in enumerate(AGENTS):
            assert result["agents"][name]["mean_cost"] == pytest.approx(costs[:, position].mean(), abs=1e-9)
            assert result["agents"][name]["mean_paid"] == pytest.approx(table[f"{name}|total_cost"].mean(), abs=1e-9)
        assert result["oracle_loss"] == pytest.approx(np.mean([min(row) for row in costs]), abs=1e-9)
        chosen = costs[np.arange(len(costs)), found.allocation]
        assert result["deferral_loss"] == pytest.approx(chosen.mean(), abs=1e-9)
        dollars = table.select(f"{name}|total_cost" for name in AGENTS).to_numpy()
        assert result["paid"]["mean"] == pytest.approx(
            dollars[np.arange(len(costs)), found.allocation].mean(), abs=1e-12
        )
        assert result["paid"]["unit"] == "USD"
        assert found.task_losses == pytest.approx(totals(table, 0.0)[np.arange(len(costs)), found.allocation], abs=1e-9)


@pytest.mark.parametrize("method", ["best", "multi-task", "cost_regression", "knn"])
def test_what_is_paid_depends_on_the_sample_so_a_mean_would_not_do(cache, folder, method):
    """The agents are as good as each other and ``steady`` has the lowest mean price; the others halve it."""
    less = {"epochs": 40} if method in ("multi-task", "cost_regression") else {}
    run = l2d.train(cache, folder / f"one-{method}", method=method, beta={"paid": 100.0}, **less)
    (found,) = l2d.evaluate(run)
    share = found.result["allocation"]
    assert share["short"] > 0.3
    assert share["long"] > 0.3
    assert found.result["paid"]["mean"] < 0.0075 < found.result["agents"]["steady"]["mean_paid"]
    assert found.result["deferral_loss"] < found.result["best_constant_loss"] - 0.1


def test_sql_says_what_polars_does(cache, runs, folder):
    said = l2d.query(
        [folder / "c", folder / "runs"],
        "SELECT r.beta_paid, a.split, c.agent, avg(total_cost(c.cost_reg, p.paid, r.lambda_reg, r.beta_paid, b.beta)) "
        "AS mean FROM allocations a JOIN runs r USING (run_id) JOIN costs c USING (sample_id) "
        "JOIN prices p ON p.sample_id = c.sample_id AND p.agent = c.agent "
        "JOIN run_agents b ON b.run_id = r.run_id AND b.agent = c.agent GROUP BY ALL",
    ).frame()
    assert len(said) == len(WORTHS) * 9
    for row in said.iter_rows(named=True):
        costs = totals(of_split(cache, prompts(), row["split"]), row["beta_paid"], (row["agent"],))
        assert row["mean"] == pytest.approx(costs.mean(), abs=1e-9)
    kept = l2d.query(folder / "runs", "SELECT beta_paid, avg(deferral_cost) FROM allocations JOIN runs USING (run_id) "
                     "WHERE split = 'test' GROUP BY 1 ORDER BY 1").frame()  # fmt: skip
    results = [found.result["deferral_loss"] for found in l2d.evaluate(runs)]
    assert kept.to_series(1).to_list() == pytest.approx(results, abs=1e-9)


def test_streams_and_tables_have_the_same_prices(cache):
    priced = cache.with_prices()
    tables, streams = load_tables(priced, SPLITS, predictions=True), open_streams(priced, SPLITS)
    for split in SPLITS:
        dollars = of_split(cache, prompts(), split).select(f"{name}|total_cost" for name in AGENTS).to_numpy()
        raw = np.concatenate([raw.numpy() for _, raw in streams[split].in_order(100)])
        assert raw.shape[2] == 2
        assert np.array_equal(raw, tables[split].raw.numpy())
        assert np.array_equal(raw[:, :, 1], dollars)
        assert np.array_equal(tables[split].paid, dollars)
    assert load_tables(cache, ("test",))["test"].raw.shape[2] == 1


def test_an_answer_of_unknown_price_cannot_be_asked_for_and_is_never_free(tmp_path):
    gap = pl.col("id").is_in([f"q{row}" for row in range(0, ROWS, 7)])
    table = prompts().with_columns(pl.when(~gap).then(pl.col("short|total_cost")).alias("short|total_cost"))
    cache = imported(tmp_path, table)
    assert missing_prices(cache) == {"short": -(-ROWS // 7)}
    told: list[str] = []
    run = l2d.train(cache, tmp_path / "run", beta={"paid": 1000.0}, say=told.append)
    assert any("short" in line and "129" in line for line in told)
    (found,) = l2d.evaluate(run)
    test = of_split(cache, table, "test")
    costs = np.where(np.isnan(totals(test, 1000.0)), np.inf, totals(test, 1000.0))
    assert not (found.allocation[test["short|total_cost"].is_null().to_numpy()] == 1).any()
    assert found.result["oracle_loss"] == pytest.approx(costs.min(axis=1).mean(), abs=1e-9)
    (plain,) = l2d.evaluate(l2d.train(cache, tmp_path / "plain", beta=0.0))  # there its answers count as before
    assert plain.result["agents"]["short"]["mean_cost"] == pytest.approx(1 - test["short"].mean(), abs=1e-9)
    assert plain.result["paid"]["unknown"] == int((plain.allocation == 1)[test["short|total_cost"].is_null()].sum())
    bare = imported(tmp_path / "bare", table.drop("short|total_cost"))
    refused(lambda: l2d.train(bare, tmp_path / "no", beta={"paid": 1.0}), UsageError, "answers of short", "--only")


def test_agent_0_is_paid_unless_the_recipe_calls_it_free(tmp_path):
    for name, free in (("yours", True), ("paid", False)):
        cache = imported(tmp_path / name, prompts(), **({"model": "steady"} if free else {}))
        assert cache.agents[0].name == "steady"
        (found,) = l2d.evaluate(l2d.train(cache, tmp_path / name / "run", beta={"paid": 10.0}))
        test = of_split(cache, prompts(), "test")
        expected = 1 - test["steady"].mean() + (0.0 if free else 0.095)
        assert found.result["agents"]["steady"]["mean_cost"] == pytest.approx(expected, abs=1e-9)
        assert found.result["agents"]["steady"]["mean_paid"] == pytest.approx(0.0 if free else 0.0095)


def test_a_recipe_may_say_what_every_answer_is_paid(tmp_path):
    cache = imported(tmp_path, prompts())
    recipe = tmp_path / "c.toml"
    text = recipe.read_text().replace('paid = "steady|total_cost"', "paid = 0.5")
    recipe.write_text(text)
    cache = l2d.build(recipe, tmp_path / "each")
    assert cache.agents[0].paid_each == 0.5
    assert cache.record.unit_paid == "USD"
    (found,) = l2d.evaluate(l2d.train(cache, tmp_path / "run", beta={"paid": 2.0}))
    test = of_split(cache, prompts(), "test")
    assert found.result["agents"]["steady"]["mean_cost"] == pytest.approx(2 - test["steady"].mean(), abs=1e-9)
    said = l2d.query(cache, "SELECT DISTINCT agent, paid FROM prices WHERE agent = 'steady'").frame()
    assert said.rows() == [("steady", 0.5)]
    recipe.write_text(text.replace("paid = 0.5", "paid = 0.25"))
    l2d.build(recipe, tmp_path / "each")
    with pytest.raises(FingerprintMismatch, match="prices of steady"):  # a run of prices that are not its own any more
        open_cache(load_run(tmp_path / "run"))


def test_what_a_unit_of_money_is_worth_is_a_number_from_0_on(cache, folder):
    for worth in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="paid"):
            l2d.train(cache, folder / "bad", beta={"paid": worth})
    (found,) = l2d.evaluate(l2d.train(cache, folder / "both", beta={"paid": 1.0, "long": 0.5}))
    test = of_split(cache, prompts(), "test")
    assert found.result["agents"]["long"]["mean_cost"] == pytest.approx(totals(test, 1.0)[:, 2].mean() + 0.5, abs=1e-7)


def test_sql_in_place_of_the_sum_and_prices_on_top(cache, folder):
    run = l2d.train(cache, folder / "sql", beta={"paid": 3.0}, cost="2 * cost_reg")
    (found,) = l2d.evaluate(run)
    test = of_split(cache, prompts(), "test")
    for position, name in enumerate(AGENTS):
        expected = (2 * totals(test, 0.0) + totals(test, 3.0) - totals(test, 0.0))[:, position].mean()
        assert found.result["agents"][name]["mean_cost"] == pytest.approx(expected, abs=1e-9)


# --- as published -----------------------------------------------------------------------------------------------------

PUBLISHED = next(
    (folder / "shared/data" for folder in Path(__file__).resolve().parents if (folder / "shared/data").is_dir()), None
)


@pytest.mark.skipif(PUBLISHED is None, reason="published tables are not here")
def test_routerbench_in_dollars(tmp_path):
    file = PUBLISHED / "routerbench_0shot_subset_wide.parquet"
    cache = l2d.import_table(file, out=tmp_path / "c", id="sample_id", kind="scores")
    runs = l2d.sweep(cache, tmp_path / "runs", betas=[{"paid": worth} for worth in (0.0, 1.0, 100.0)])
    table = pl.read_parquet(file)
    names = [agent.name for agent in cache.agents]
    costs = {}
    for name in names:  # plain polars, from the rows that have a score of this model: the other halves are others'
        rows = table.filter(pl.col(name).is_not_null())
        costs[name] = {i: (1 - s, p) for i, s, p in rows.select("sample_id", name, f"{name}|total_cost").iter_rows()}
    for found in l2d.evaluate(runs):
        worth = found.result["beta"]["paid"]
        ids = found.measured.table.ids
        by_hand = np.array([[costs[name][i][0] + worth * costs[name][i][1] for name in names] for i in ids])
        means = [found.result["agents"][name]["mean_cost"] for name in names]
        assert means == pytest.approx(by_hand.mean(axis=0), abs=1e-9)
        assert found.result["oracle_loss"] == pytest.approx(by_hand.min(axis=1).mean(), abs=1e-9)
    assert l2d.report(runs, tmp_path / "report.html")[0].is_file()
    new = table.unique("sample_id").select("sample_id", "eval_name")
    new.write_parquet(tmp_path / "new.parquet")
    done = l2d.route(
        load_run(runs.folders[2]), tmp_path / "new.parquet", tmp_path / "to.parquet", id_column="sample_id"
    )
    assert done.samples == len(new)


# --- budgets in money -------------------------------------------------------------------------------------------------


def test_a_budget_in_dollars_is_kept_by_the_price_of_a_dollar(cache, runs, folder):
    """What is allocated is the best for the predicted dollars that it spends: the linear program finds none cheaper."""
    from scipy.optimize import linprog

    limit = 0.0065
    done = l2d.policy(runs.folders[0], budget=limit, save=folder / "policy.json", overwrite=True)
    (row,) = done.result["constraints"]
    assert (row["name"], row["asked"]) == ("budget", "<= 0.0065 USD")
    dollars = of_split(cache, prompts(), "test").select(f"{name}|total_cost" for name in AGENTS).to_numpy()
    assert row["test"] == pytest.approx(dollars[np.arange(len(dollars)), done.allocation].mean(), abs=1e-12)
    assert row["validation"] <= limit
    assert done.result["policy"]["used"]["budget"] == row["test"]
    worth, run = row["dual_price"], load_run(runs.folders[0])
    assert worth > 0
    stream = open_streams(open_cache(run), ("validation",))["validation"]
    ids = [name for some in stream.ids_in_order(500) for name in some]
    features = np.concatenate([x.numpy() for x, _ in stream.in_order(500)])
    raw = run.rejector.predictor("validation", ids, features)
    price = raw[:, :, 1] * np.asarray(run.rejector.state["paid_mean"])
    chosen = (raw[:, :, 0] + worth * price).argmin(axis=1)
    rows = np.arange(len(raw))
    paid = of_split(cache, prompts(), "validation").select(f"{name}|total_cost" for name in AGENTS).to_numpy()
    one = 0.02 / len(raw)  # the price lies where one sample changes hands, so scores in 32 bits may differ by it
    assert row["validation"] == pytest.approx(paid[rows, chosen].mean(), abs=one)
    spent = price[rows, chosen].mean()
    one_each = np.kron(np.eye(len(raw)), np.ones((1, len(AGENTS))))
    best = linprog(
        raw[:, :, 0].ravel() / len(raw), A_ub=price.reshape(1, -1) / len(raw), b_ub=[spent], A_eq=one_each,
        b_eq=np.ones(len(raw)), bounds=(0, 1),
    )  # fmt: skip
    assert raw[rows, chosen, 0].mean() == pytest.approx(best.fun, abs=1e-9)
    assert done.result["optimality"]["value"] == pytest.approx(best.fun, abs=1 / len(raw))
    shares = np.bincount(done.allocation, minlength=len(AGENTS)) / len(done.allocation)
    assert row["test"] < shares @ dollars.mean(axis=0) - 0.002  # a coin at the same shares pays more
    of_split(cache, prompts(), "test").select("id", "length").write_csv(folder / "new.csv")
    l2d.route(runs.folders[0], folder / "new.csv", folder / "to.csv", policy=folder / "policy.json", id_column="id")
    assert pl.read_csv(folder / "to.csv")["agent_index"].to_list() == done.allocation.tolist()


def test_a_budget_in_dollars_beside_a_capacity(runs):
    free = l2d.policy(runs.folders[0], budget=0.0065)
    done = l2d.policy(runs.folders[0], budget=0.0085, capacity={"short": 0.2}, mode="batch")
    rows = {row["name"]: row for row in done.result["constraints"]}
    assert rows["budget"]["validation"] <= 0.0085
    assert rows["capacity of short"]["held"]
    assert (done.allocation == 1).mean() <= 0.2 < (free.allocation == 1).mean()


def test_budgets_that_cannot_be_kept_and_runs_without_prices_are_refused(cache, runs, folder):
    refused(lambda: l2d.policy(runs.folders[0], budget=1e-6), UsageError, "<= 1e-06 USD", "cannot be met")
    run = l2d.train(cache, folder / "nn", method="cost_regression", beta={"paid": 1.0}, epochs=2)
    refused(lambda: l2d.policy(run, budget=0.01), UsageError, "predict no prices", "method best")
    loose = l2d.policy(runs.folders[0], budget=1.0)
    assert loose.result["constraints"][0]["dual_price"] == 0.0
    assert np.array_equal(loose.allocation, loose.split.chosen) or load_run(runs.folders[0]).rejector.guard["holds"]


def test_another_worth_of_money_at_run_time_is_the_run_trained_there(cache, runs, folder):
    """A price dial: the run of one worth serves the others, and a run without prices says that it cannot."""
    table = of_split(cache, prompts(), "test").select("id", "length")
    table.write_csv(folder / "dial.csv")
    for position, worth in enumerate(WORTHS):
        for name, run, dial in (("there", runs.folders[position], None), ("here", runs.folders[0], {"paid": worth})):
            l2d.route(run, folder / "dial.csv", folder / f"{name}.csv", id_column="id", beta=dial, overwrite=True)
        there, here = (pl.read_csv(folder / f"{name}.csv")["agent"].to_list() for name in ("there", "here"))
        assert there == here
    plain = l2d.train(cache, folder / "no-prices", beta=0.0)
    asked = {"id_column": "id", "beta": {"paid": 1.0}}
    refused(lambda: l2d.route(plain, folder / "dial.csv", folder / "x.csv", **asked), UsageError, "no prices", "paid=0")


# --- the router's own cost --------------------------------------------------------------------------------------------


def test_deciding_is_charged_to_the_router_and_to_no_constant(cache, runs, folder):
    worth, each = 40.0, 0.0005
    (plain,) = l2d.evaluate(runs.folders[2])
    (charged,) = l2d.evaluate(l2d.train(cache, folder / "charged", beta={"paid": worth}, router_cost=each))
    assert np.array_equal(plain.allocation, charged.allocation)
    assert charged.result["deferral_loss"] == pytest.approx(plain.result["deferral_loss"] + worth * each, abs=1e-12)
    assert charged.result["paid"]["router"] == each
    for name in ("best_constant_loss", "oracle_loss", "random_same_shares_loss"):
        assert charged.result[name] == plain.result[name]
    assert charged.task_losses == pytest.approx(plain.task_losses)
    costs = [found.result["router_metrics"]["dollars_per_1000"] for found in (plain, charged)]
    assert costs[1] == pytest.approx(costs[0] + 1000 * each)
    done = l2d.policy(charged.run, budget=0.0075)
    assert done.result["constraints"][0]["validation"] <= 0.0075
    assert done.result["policy"]["used"]["budget"] == pytest.approx(
        each + of_split(cache, prompts(), "test").select(f"{name}|total_cost" for name in AGENTS).to_numpy()[
            np.arange(len(done.allocation)), done.allocation
        ].mean()
    )  # fmt: skip


def test_a_guard_leaves_a_router_that_costs_more_than_it_gains(cache, folder):
    (found,) = l2d.evaluate(l2d.train(cache, folder / "dear", beta={"paid": 100.0}, router_cost=1.0))
    assert found.result["guard"]["holds"]
    assert found.result["deferral_loss"] == found.result["agents"][found.result["guard"]["fallback"]]["mean_cost"]
    assert found.result["paid"]["router"] == 0.0
    with pytest.raises(UsageError, match="--beta paid="):
        l2d.train(cache, folder / "none", beta=0.1, router_cost=1.0)
