"""Annotators who answer some cases only, from tables to SQL: every command, checked against the tables themselves."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest

from l2d import cli

pytestmark = pytest.mark.slow

AGENTS = ["triage", "Anna", "Bob", "Cleo"]
BETA, WEIGHT = 0.25, 0.5
RECIPE = """
[dataset]
kind = "table"
path = "cases.csv"
id = "case"
target_cla = "truth"
classes = ["well", "ill"]
target_reg = "days"
features = ["x", "z"]
keep = ["ward"]
split = { column = "part" }

[costs.cla]
[costs.reg]
kind = "absolute"
clamp = 4.0

[defaults]
lambda = { cla = 1.0, reg = 0.5 }

[[agents]]
name = "triage"
kind = "column"
prob = "guess"
reg = "4.0"
PARTIAL
[[agents]]
kind = "table"
file = "answers.csv"
each = "who"
cla = "diagnosis"
reg = "days"
"""


def tables(rows: int = 150) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cases, and the answers of three people who each skip some; Anna is good at low ``x``, Bob at high."""
    generator = np.random.default_rng(3)
    x, z = generator.normal(size=(2, rows)).round(3)
    ill = (z + 0.3 * generator.normal(size=rows) > 0).astype(int)
    days = (4 + 2 * z).clip(0).round(2)
    names, words = [f"c{row:03d}" for row in range(rows)], np.array(["well", "ill"])
    cases = pl.DataFrame(
        {"case": names, "x": x, "z": z, "ward": generator.choice(["a", "b"], rows), "truth": words[ill], "days": days,
         "guess": (0.5 + 0.3 * np.tanh(z + generator.normal(size=rows))).round(3),
         "part": (["train"] * 3 + ["validation", "test"]) * (rows // 5)}
    )  # fmt: skip
    answers = []
    for who, share, skill in (("Anna", 0.7, x < 0), ("Bob", 0.7, x >= 0), ("Cleo", 0.3, x < 9)):
        right = generator.random(rows) < np.where(skill, 0.97, 0.6)
        said = words[np.where(right, ill, 1 - ill)]
        value = (days + np.where(skill, 0.2, 2.5) * generator.normal(size=rows)).round(2)
        asked = np.flatnonzero(generator.random(rows) < share)
        answers += [(names[row], who, said[row], float(value[row])) for row in asked]
    return cases, pl.DataFrame(answers, schema=["case", "who", "diagnosis", "days"], orient="row")


def l2d(*arguments: object) -> str:
    """A command in this process: what it prints. It has to succeed, without a NaN or an infinity in what it says."""
    argv, out = sys.argv, io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    sys.argv = ["l2d", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = argv
    assert not stopped.value.code, arguments
    out.flush()
    said = out.buffer.getvalue().decode()
    assert not re.search(r"\b(nan|inf|infinity)\b", said, re.IGNORECASE), said
    return said


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """``cache`` with a model that always answers, ``people`` where everybody may be absent; a sweep over each."""
    folder = tmp_path_factory.mktemp("annotators")
    cases, answers = tables()
    cases.write_csv(folder / "cases.csv")
    answers.write_csv(folder / "answers.csv")
    partial = (
        'partial = true\n[[agents]]\nname = "spare"\nkind = "column"\nprob = "guess"\nreg = "4.0"\nreference = true'
    )
    for name, extra in (("cache", ""), ("people", partial)):
        text = RECIPE.replace("PARTIAL", extra)
        text = text if name == "cache" else text.replace('"guess"', '"CASE WHEN x > 0.5 THEN guess END"', 1)
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        l2d("build", folder / f"{name}.toml", "--out", folder / name)
        training = ["--epochs", 15, "--hidden", 8, "--lr", 0.01, "--batch-size", 32]
        l2d("sweep", folder / name, "--out", folder / f"{name}.runs", "--beta", f"0,{BETA}", "--seeds", 1, *training)
    return folder


def run_of(world: Path, name: str) -> Path:
    return world / f"{name}.runs" / f"multi-task_beta={BETA}_nu=1_seed=0"


def costs_of(world: Path, name: str) -> pl.DataFrame:
    """Total cost of every agent on every case by arithmetic on the tables, null where one has no answer."""
    cases, answers = tables()
    found = cases.select("case", "truth", "days", split="part")
    guess = pl.when(pl.col("x") > 0.5).then("guess") if name == "people" else pl.col("guess")
    triage = cases.select("case", who=pl.lit("triage"), p=guess, days=4.0).drop_nulls()
    said = pl.when(pl.col("p") > 0.5).then(pl.lit("ill")).otherwise(pl.lit("well"))
    answers = pl.concat([triage.select("case", "who", diagnosis=said, days="days"), answers])
    for who in AGENTS:
        own = answers.filter(pl.col("who") == who)
        joined = cases.select("case", "truth", "days").join(own, on="case", how="left", maintain_order="left")
        error = (joined["days_right"] - joined["days"]).abs().clip(0, 4)
        total = (joined["diagnosis"] != joined["truth"]).cast(pl.Float64) + WEIGHT * error
        found = found.with_columns((total + (0 if who == "triage" else BETA)).alias(who))
    return found.rename({"case": "sample_id"})


def check_allocations(world: Path, name: str, allocations: pl.DataFrame) -> float:
    """Nobody gets a case that he has not answered; the mean cost by the tables."""
    joined = allocations.select("sample_id", "agent").join(costs_of(world, name), on="sample_id", how="left")
    paid = [row[row["agent"]] for row in joined.iter_rows(named=True)]
    assert None not in paid
    return float(np.mean(paid))


def on_test(world: Path, name: str) -> pl.DataFrame:
    """Costs of the test cases that somebody has answered."""
    costs = costs_of(world, name).filter(pl.col("split") == "test")
    return costs.filter(~pl.all_horizontal(pl.col(who).is_null() for who in AGENTS))


def constants_of(world: Path, name: str) -> list[pl.DataFrame]:
    """Costs of "ask this one; where it has no answer, the best of the others by validation", on validation and test."""
    costs = costs_of(world, name).filter(~pl.all_horizontal(pl.col(who).is_null() for who in AGENTS))
    known = costs.filter(pl.col("split") == "validation")
    order = sorted(AGENTS, key=lambda who: known[who].mean())
    return [
        costs.filter(pl.col("split") == split).select(pl.coalesce(who, *order).alias(who) for who in AGENTS)
        for split in ("validation", "test")
    ]


@pytest.mark.parametrize("name", ["cache", "people"])
def test_allocations_and_evaluation_are_arithmetic_on_the_tables(world, name):
    allocations = pl.read_parquet(run_of(world, name) / "allocations.parquet").filter(pl.col("split") == "test")
    costs = on_test(world, name)
    assert sorted(allocations["sample_id"]) == sorted(costs["sample_id"])
    result = json.loads(l2d("evaluate", run_of(world, name), "--format", "json"))
    assert result["deferral_loss"] == pytest.approx(check_allocations(world, name, allocations), abs=1e-6)
    oracle = costs.select(pl.min_horizontal(AGENTS)).to_series()
    assert result["oracle_loss"] == pytest.approx(oracle.mean(), abs=1e-6)
    for agent in ("Anna", "Bob", "Cleo"):
        assert result["agents"][agent]["answered"] == pytest.approx(1 - costs[agent].null_count() / len(costs))
    chosen_on, here = constants_of(world, name)
    means = {agent: here[agent].mean() for agent in AGENTS}
    assert {agent: result["agents"][agent]["mean_cost"] for agent in AGENTS} == pytest.approx(means, abs=1e-6)
    assert result["best_constant"] == min(AGENTS, key=lambda agent: chosen_on[agent].mean())
    assert result["best_constant_loss"] == pytest.approx(means[result["best_constant"]], abs=1e-6)
    assert result["best_agent_loss"] == pytest.approx(min(means.values()), abs=1e-6)
    shares = np.array([result["allocation"][agent] for agent in AGENTS])
    matrix = costs.select(AGENTS).to_numpy()
    weights = shares * ~np.isnan(matrix)
    known = weights.sum(axis=1) > 0  # where nobody with a share is there, all who are
    weights[~known] = ~np.isnan(matrix[~known])
    expected = np.nansum(weights * matrix, axis=1) / weights.sum(axis=1)
    assert result["random_same_shares_loss"] == pytest.approx(expected.mean(), abs=1e-6)
    if name == "cache":
        chosen = result["confidence"]
        guess = tables()[0].rename({"case": "sample_id"}).join(costs, on="sample_id", how="semi")["guess"].to_numpy()
        absent = costs[chosen["expert"]].is_null().to_numpy()
        at = np.inf if chosen["threshold"] is None else chosen["threshold"]
        kept = (np.maximum(guess, 1 - guess).astype(np.float32) >= np.float32(at)) | absent
        assert chosen["coverage"] == pytest.approx(kept.mean())
        losses = np.where(kept, costs["triage"], costs[chosen["expert"]].fill_null(0))
        assert result["confidence_loss"] == pytest.approx(losses.mean(), abs=1e-6)
    assert "answered %" in l2d("evaluate", world / f"{name}.runs", "--group", "ward")
    assert len(l2d("evaluate", world / f"{name}.runs", "--format", "csv").splitlines()) == 3


@pytest.mark.parametrize("name", ["cache", "people"])
def test_policies_and_choices_ask_nobody_who_is_absent(world, tmp_path, name):
    run = run_of(world, name)
    for mode, limit in (("prices", "--budget=0.9"), ("batch", "--capacity=Bob=0.2"), ("exact", "--capacity=Anna=5")):
        out = tmp_path / f"{mode}.parquet"
        save = ["--save", tmp_path / "policy.json"] if mode == "prices" else []
        result = json.loads(l2d("policy", run, limit, "--mode", mode, "--out", out, *save, "--format", "json"))
        found = pl.read_parquet(out)
        mean = check_allocations(world, name, found)
        assert len(found) == len(on_test(world, name))
        assert result["policy"]["deferral_loss"] == pytest.approx(mean, abs=1e-6)
        if mode == "exact":
            assert (found["agent"] == "Anna").sum() <= 5
    l2d("route", run, world / name, "--policy", tmp_path / "policy.json", "--out", tmp_path / "routed.parquet")
    routed, kept = pl.read_parquet(tmp_path / "routed.parquet"), pl.read_parquet(tmp_path / "prices.parquet")
    joined = kept.join(routed, on="sample_id", how="left")
    assert joined["agent"].to_list() == joined["agent_right"].to_list()
    choice = json.loads(l2d("choose", world / f"{name}.runs", "--target", "deferral_loss<=9", "--format", "json"))
    assert choice["run"]


@pytest.mark.parametrize("name", ["cache", "people"])
def test_routing_goes_where_the_run_went_and_round_who_is_away(world, tmp_path, name):
    run, out = run_of(world, name), tmp_path / "out.parquet"
    l2d("route", run, world / name, "--out", out)
    found, known = pl.read_parquet(out), pl.read_parquet(run / "allocations.parquet")
    joined = found.join(known, on="sample_id", how="left")
    assert joined["agent"].to_list() == joined["agent_right"].to_list()
    answered = ~np.isnan(costs_of(world, name).select(AGENTS).to_numpy().astype(float))
    assert found["agent"].is_null().to_list() == (~answered.any(axis=1)).tolist()
    scores = found.select(f"score_{agent}" for agent in range(4)).to_numpy()
    for source, there in ((world / name, answered), (world / "cases.csv", np.ones_like(answered))):
        away = there & ~np.isin(AGENTS, ["Anna", "Cleo"])
        l2d("route", run, source, "--out", out, "--overwrite", "--without", "Anna", "--without", "Cleo")
        best = np.where(away, scores, -np.inf).argmax(axis=1)
        expected = [AGENTS[agent] if some.any() else None for agent, some in zip(best, away, strict=True)]
        assert pl.read_parquet(out)["agent"].to_list() == expected


def test_a_detour_round_nobody_or_everybody_is_refused(world, tmp_path, capsys):
    for names, said in ((["Dora"], "Dora"), (AGENTS, "leaves no agent")):
        arguments = [part for agent in names for part in ("--without", agent)]
        with pytest.raises(AssertionError):
            l2d("route", run_of(world, "cache"), world / "cases.csv", "--out", tmp_path / "out.csv", *arguments)
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", ["cache", "people"])
def test_sql_counts_the_same(world, name):
    macros = (
        "SELECT count(*) AS n, sum((allocate([score_0, score_1, score_2, score_3], [cost_0, cost_1, cost_2, cost_3]) "
        "<> agent_index)::INT) AS other, sum((AGENTS[cheapest([cost_0, cost_1, cost_2, cost_3]) + 1] <> oracle_agent)"
        "::INT) AS dearer FROM allocations WHERE split = 'test'"
    ).replace("AGENTS", str(AGENTS))
    run = run_of(world, name)
    (row,) = json.loads(l2d("query", run, macros, "--format", "json"))
    assert row == {"n": len(on_test(world, name)), "other": 0, "dearer": 0}
    total = (
        f"SELECT avg(least_) AS oracle FROM (SELECT min(total_cost(cost_cla, cost_reg, 1, {WEIGHT}, beta)) AS least_ "
        "FROM costs JOIN run_agents USING (cache, agent) JOIN samples USING (cache, sample_id) WHERE split = 'test' "
        "GROUP BY sample_id) WHERE isfinite(least_)"
    )
    (row,) = json.loads(l2d("query", run, world / name, total, "--format", "json"))
    assert row["oracle"] == pytest.approx(
        on_test(world, name).select(pl.min_horizontal(AGENTS)).mean().item(), abs=1e-6
    )
    absent = "SELECT agent, count(*) AS n FROM predictions WHERE failure = 'no answer' GROUP BY ALL ORDER BY 1"
    counted = {row["agent"]: row["n"] for row in json.loads(l2d("query", world / name, absent, "--format", "json"))}
    nulls = costs_of(world, name).select(AGENTS).null_count().row(0, named=True)
    assert counted == {agent: count for agent, count in nulls.items() if count}


def specs_of(page: Path, *arguments: object) -> dict[str, dict]:
    """A report of runs, and the charts in it."""
    l2d("report", *arguments, "--out", page)
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.mark.parametrize("name", ["cache", "people"])
def test_the_page_shows_groups_and_no_cost_of_who_is_absent(world, tmp_path, name):
    specs = specs_of(tmp_path / "page.html", world / f"{name}.runs", "--by", "x > 0")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    panels = {key.removeprefix("cache1-where-1-") for key in specs if "-where-1-" in key}
    assert panels == {"shares", "regret-oracle", "regret-best"}
    assert ">no answer<" in text
    assert not re.search(r">\s*-?(nan|inf)\s*<", text)


def test_the_theory_starts_at_the_oracle_and_ends_at_the_run_on_the_page_too(world, tmp_path):
    run = run_of(world, "people")
    section = json.loads(l2d("theory", run, "--format", "json"))
    found = next(iter(section["parts"].values()))
    costs = on_test(world, "people")
    assert section["num_samples"] == len(costs)
    assert found["oracle"]["value"] == pytest.approx(costs.select(pl.min_horizontal(AGENTS)).mean().item(), abs=1e-6)
    evaluated = json.loads(l2d("evaluate", run, "--format", "json"))
    assert found["run"]["value"] == pytest.approx(evaluated["deferral_loss"], abs=1e-6)

    assert not any("theory" in name for name in specs_of(tmp_path / "plain.html", run))
    specs = specs_of(tmp_path / "page.html", run, "--theory", "--group", "ward")
    (bars,) = [rows for rows in specs["cache1-theory-loss"]["datasets"].values() if "from" in rows[0]]
    assert bars[0]["to"] == pytest.approx(found["oracle"]["value"])
    assert bars[-1]["to"] == pytest.approx(found["run"]["value"])
    assert all(one["to"] == other["from"] for one, other in pairwise(bars))
    curve = [rows for rows in specs["cache1-theory-bound"]["datasets"].values() if rows[0].get("name") == "bound"]
    assert [row["value"] for row in curve[0]] == pytest.approx([point["bound"] for point in section["bound_curve"]])
    text = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert section["verdict"] in text
    assert all(found["title"] in text for part in section["parts"].values() for found in part.values())
    assert "2 groups" in text
    assert "--group ward --theory" in text


def test_what_is_exported_scores_as_the_run_does_and_the_audit_has_numbers(world, tmp_path):
    l2d("export", run_of(world, "people"), "--onnx", tmp_path / "rejector.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "rejector.onnx", providers=["CPUExecutionProvider"])
    features = tables()[0].select("x", "z").to_numpy().astype(np.float32)
    scores, _ = session.run(None, {session.get_inputs()[0].name: features})
    there = ~np.isnan(costs_of(world, "people").select(AGENTS).to_numpy().astype(float))
    known = pl.read_parquet(run_of(world, "people") / "allocations.parquet")
    chosen = dict(known.select("sample_id", "agent_index").iter_rows())
    for case, row, some in zip(tables()[0]["case"], scores, there, strict=True):
        assert chosen.get(case) == (int(np.where(some, row, -np.inf).argmax()) if some.any() else None)
    costs = costs_of(world, "people")
    gaps = [
        gap for finding in json.loads(l2d("audit", world / "people", "--format", "json")) for gap in finding["gaps"]
    ]
    assert {gap["agent"] for gap in gaps} >= set(AGENTS)
    assert all(np.isfinite([gap["train"], gap["test"]]).all() for gap in gaps)
    assert len(costs) == json.loads(l2d("status", world / "people", "--format", "json"))[0]["samples"]
