"""Every query of docs/sql.md runs, and says what polars and numpy say of the same files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.rejector.grid import make_grid
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.query import QuerySession
from l2d.rejector.sweep import sweep

COOKBOOK = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
QUERIES = dict(re.findall(r"### ([^\n]+)\n.*?```sql\n(.*?)```", COOKBOOK, re.DOTALL))
ANSWERS = {}


def answers(question: str):
    """Registers the independent answer to a question of the cookbook."""

    def register(function):
        ANSWERS[question] = function
        return function

    return register


class World:
    """A cache, four runs on it, and what their files hold, read by polars."""

    def __init__(self, folder: Path, recipe: Path):
        build(load_recipe(str(recipe)), folder / "cache")
        cache = CostCache(folder / "cache")
        points = make_grid(cache, methods=["multi-task"], weights=[], betas=[0.0, 0.2], nus=[1.0], seeds=[0, 1])
        sweep(cache, points, [folder / "runs" / p.run_id for p in points], TrainConfig(epochs=3))
        names = ["model", "expert", "cheap"]
        parts = {name: folder / "cache" / "agents" / name for name in names}
        self.samples = pl.read_parquet(folder / "cache" / "samples" / "*.parquet")
        self.costs, self.predictions = (
            pl.concat(
                [pl.read_parquet(parts[name] / pattern).with_columns(agent=pl.lit(name)) for name in names],
                how="diagonal",
            )
            for pattern in ("costs-*/*.parquet", "predictions/*.parquet")
        )
        runs, betas = [], []
        for point in points:
            table = pl.read_parquet(folder / "runs" / point.run_id / "allocations.parquet")
            facts = json.loads((folder / "runs" / point.run_id / "run.json").read_text())["point"]
            runs.append(table.with_columns(run_id=pl.lit(point.run_id), beta=pl.lit(facts["beta"])))
            betas.append({"run_id": point.run_id, **dict(zip(names, facts["query_costs"], strict=True))})
        self.allocations = pl.concat(runs)
        self.betas = pl.DataFrame(betas).unpivot(index="run_id", variable_name="agent", value_name="query_cost")
        self.test = self.allocations.filter(split="test")
        self.session = QuerySession([folder])
        self.total = self.costs.with_columns(total=pl.col("cost_cla") + 0.2 * pl.col("cost_reg").cast(pl.Float64))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    from conftest import write_table
    from recipes import RECIPE

    folder = tmp_path_factory.mktemp("cookbook")
    write_table(folder)
    place = "ward || ' ' || CASE WHEN x1 > 0 THEN 'high' ELSE 'low' END || ' ' || ward"
    recipe = RECIPE.but(
        {
            "agents.expert.prob": "CASE WHEN x2 > 0 THEN 1 - risk_good ELSE risk_good END",
            "dataset.tokens": {"place": {"column": place}},
        }
    )
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    made = World(folder / "world", folder / "recipe.toml")
    yield made
    made.session.close()


def close(found: list[dict], expected: list[dict]) -> None:
    """Equal row for row, numbers to float32's precision."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                assert one[name] == pytest.approx(value, rel=2e-4, abs=2e-5), (name, one, other)
            else:
                assert one[name] == value, (name, one, other)


@pytest.mark.parametrize("question", QUERIES)
def test_a_question_of_the_cookbook_gets_the_right_answer(world, question):
    found = world.session.run(QUERIES[question]).table().to_pylist()
    assert found, "an empty answer shows nothing"
    expected = ANSWERS[question](world)
    close(found, expected.to_dicts() if isinstance(expected, pl.DataFrame) else expected)


def test_the_cookbook_is_a_dozen_questions_at_least():
    assert len(QUERIES) >= 12
    assert COOKBOOK.count("```sql") == len(QUERIES) == len(ANSWERS)


@answers("Which agent gets how much, and at what cost?")
def _(w):
    size = pl.len().over("beta").cast(pl.Float64)
    table = w.test.with_columns(part=1 / size).group_by("beta", "agent")
    return table.agg(share=pl.sum("part"), mean_cost=pl.mean("deferral_cost").cast(pl.Float64)).sort("beta", "agent")


@answers("Where did we defer? Shares by group")
def _(w):
    joined = w.test.join(w.samples.select("sample_id", "ward"), on="sample_id")
    return [
        {"ward": ward, **{a: joined.filter(ward=ward, agent=a).height for a in ("model", "expert", "cheap")}}
        for ward in ("a", "b", "c")
    ]


@answers("Why did we defer? What the rejector expected against what it got")
def _(w):
    rows = []
    for index, agent in sorted(enumerate(["model", "expert", "cheap"]), key=lambda pair: pair[1]):
        mine = w.test.filter(agent=agent)
        if index and mine.height:
            model, own = mine["cost_0"].to_numpy(), mine[f"cost_{index}"].to_numpy()
            means = {"model_would_cost": float(model.mean()), "expert_cost": float(own.mean())}
            rows.append({"agent": agent, "deferred": len(own), **means, "share_worth_it": float((own < model).mean())})
    return rows


@answers("What would another beta have cost?")
def _(w):
    charged = {"model": 0.0, "expert": 0.3, "cheap": 0.15}  # prices 2 and 1
    joined = w.test.join(w.total, on=["sample_id", "agent"])
    joined = joined.with_columns(at_03=pl.col("total") + pl.col("agent").replace_strict(charged))
    means = {"as_trained": pl.mean("deferral_cost").cast(pl.Float64), "at_03": pl.mean("at_03")}
    return joined.group_by("run_id").agg(**means).sort("run_id")


def _matrix(w) -> tuple[list[str], np.ndarray]:
    """Sample ids, and total costs without beta (samples, agents)."""
    tables = [w.total.filter(agent=agent).sort("sample_id") for agent in ("model", "expert", "cheap")]
    return tables[0]["sample_id"].to_list(), np.stack([table["total"].to_numpy() for table in tables], 1)


@answers("Which agent would have been best, sample by sample?")
def _(w):
    best = _matrix(w)[1].argmin(1)
    counts = {name: int((best == j).sum()) for j, name in enumerate(["model", "expert", "cheap"])}
    return [{"cheapest_agent": name, "samples": counts[name]} for name in sorted(counts) if counts[name]]


@answers("Which samples does no agent get right?")
def _(w):
    best = w.costs.group_by("sample_id").agg(pl.min("cost_cla"), best_regression=pl.min("cost_reg"))
    best = best.filter(pl.col("cost_cla") == 1).join(w.samples.select("sample_id", "ward"), on="sample_id")
    return best.select("sample_id", "ward", "best_regression").sort("sample_id")


@answers("What does it cost when the agents disagree?")
def _(w):
    votes = w.predictions.group_by("sample_id").agg(disagree=pl.n_unique("pred_cla") > 1)
    joined = w.allocations.join(votes, on="sample_id").with_columns(
        regret=pl.col("deferral_cost") - pl.col("oracle_cost")
    )
    means = {"mean_cost": pl.mean("deferral_cost"), "mean_regret": pl.mean("regret")}
    return joined.group_by("disagree").agg(allocations=pl.len(), **means).sort("disagree")


@answers("The cheapest agent of each group")
def _(w):
    names, wards = np.array(["model", "expert", "cheap"]), w.samples.sort("sample_id")["ward"].to_numpy()
    costs, rows = _matrix(w)[1], []
    for ward in "abc":
        mean = costs[wards == ward].mean(0)
        rows.append({"ward": ward, "cheapest_agent": str(names[mean.argmin()]), "mean_cost": float(mean.min())})
    return rows


@answers("Regret by quantile of a feature")
def _(w):
    features = w.samples.select("sample_id", x=pl.col("features").arr.first())
    rows = []
    for _, run in w.test.join(features, on="sample_id").group_by("run_id"):
        run = run.sort("x", "sample_id")
        first, rest = divmod(run.height, 4)  # ntile gives the first groups one more
        sizes = [first + (k < rest) for k in range(4)]
        rows.append(run.with_columns(quarter=pl.Series(np.repeat(np.arange(1, 5), sizes))))
    table = pl.concat(rows).with_columns(regret=pl.col("deferral_cost") - pl.col("oracle_cost"))
    ends = {"lowest": pl.min("x"), "highest": pl.max("x")}
    return table.group_by("quarter").agg(samples=pl.len(), **ends, mean_regret=pl.mean("regret")).sort("quarter")


@answers("Which codes do deferred patients have?")
def _(w):
    x1 = pl.col("features").arr.first()
    codes = w.samples.select(
        "sample_id", place=pl.concat_list("ward", pl.when(x1 > 0).then(pl.lit("high")).otherwise(pl.lit("low")))
    )
    table = w.allocations.join(codes.explode("place"), on="sample_id").group_by(code="place")
    table = table.agg(samples=pl.len(), share_deferred=(pl.col("agent_index") > 0).mean()).with_columns(
        field=pl.lit("place")
    )
    table = table.sort(["share_deferred", "field", "code"], descending=[True, False, False])
    return table.select("field", "code", "samples", "share_deferred")


@answers("Two runs compared, on the same samples")
def _(w):
    one, other = (w.test.filter(run_id=f"multi-task_beta={b}_nu=1_seed=0").sort("sample_id") for b in ("0", "0.2"))
    difference = other["deferral_cost"].to_numpy().astype(float) - one["deferral_cost"].to_numpy()
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    moved = int((one["agent"] != other["agent"]).sum())
    means = {"mean_difference": float(difference.mean()), "standard_error": error}
    return [{"samples": len(difference), "moved": moved, **means}]


@answers("How often do the seeds of a setting disagree?")
def _(w):
    rows = []
    for beta in (0.0, 0.2):
        one, other = (w.test.filter(beta=beta).filter(pl.col("run_id").str.ends_with(f"={s}")) for s in (0, 1))
        differ = one.sort("sample_id")["agent"] != other.sort("sample_id")["agent"]
        rows.append({"beta": beta, "share_of_samples": float(differ.mean()), "seeds": 2.0})
    return rows


@answers("Which runs does no other beat both in price and in quality?")
def _(w):
    joined = w.test.join(w.betas, on=["run_id", "agent"])
    quality = (pl.col("deferral_cost").cast(pl.Float64) - pl.col("query_cost")).mean()
    spent = joined.group_by("run_id").agg(price=pl.mean("query_cost"), quality_cost=quality)
    rows = spent.sort("price", "run_id").to_dicts()

    def beaten(row):
        return any(
            o["price"] <= row["price"] and o["quality_cost"] <= row["quality_cost"]
            and (o["price"], o["quality_cost"]) != (row["price"], row["quality_cost"])
            for o in rows
        )  # fmt: skip

    return [row for row in rows if not beaten(row)]


@answers("Do the scores mean anything? Margin against regret")
def _(w):
    scores = w.test.select("score_0", "score_1", "score_2").to_numpy()
    ordered = np.sort(scores, 1)
    table = w.test.with_columns(margin=pl.Series(ordered[:, 2] - ordered[:, 1])).sort("margin", "run_id", "sample_id")
    first, rest = divmod(table.height, 10)
    tenth = np.repeat(np.arange(1, 11), [first + (k < rest) for k in range(10)])
    table = table.with_columns(tenth=pl.Series(tenth), right=pl.col("agent") == pl.col("oracle_agent"))
    return (
        table.group_by("tenth")
        .agg(
            samples=pl.len(),
            mean_margin=pl.mean("margin"),
            share_right=pl.mean("right"),
            mean_regret=(pl.col("deferral_cost") - pl.col("oracle_cost")).mean(),
        )
        .sort("tenth")
    )


@answers("Are an agent's probabilities calibrated?")
def _(w):
    rows = {}
    target = dict(zip(w.samples["sample_id"], w.samples["target_cla"], strict=True))
    for row in w.predictions.iter_rows(named=True):
        if row["pred_prob"] is not None:
            top = np.float32(max(row["pred_prob"]))
            key = row["agent"], float(np.round(top, 1))
            rows.setdefault(key, []).append((float(top), row["pred_cla"] == target[row["sample_id"]]))
    return [
        {"agent": agent, "bin": b, "samples": len(found), "confidence": float(np.mean([c for c, _ in found])),
         "accuracy": float(np.mean([r for _, r in found]))}
        for (agent, b), found in sorted(rows.items())
    ]  # fmt: skip


@answers("What was spent on each agent?")
def _(w):
    joined = w.test.join(w.betas, on=["run_id", "agent"]).filter(pl.col("query_cost") > 0)
    table = joined.group_by("run_id", "agent").agg(queries=pl.len(), spent=pl.sum("query_cost"))
    share = pl.col("spent") / pl.sum("spent").over("run_id")
    return table.with_columns(share=share).sort("run_id", "agent")


@answers("The dearest mistakes")
def _(w):
    regret = (pl.col("deferral_cost") - pl.col("oracle_cost")).alias("regret")
    joined = w.allocations.join(w.samples.select("sample_id", "ward"), on="sample_id")
    table = joined.select("run_id", "sample_id", "ward", "agent", "oracle_agent", regret)
    return table.sort(["regret", "run_id", "sample_id"], descending=[True, False, False]).head(20)
