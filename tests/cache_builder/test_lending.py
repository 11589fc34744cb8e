"""An agent that answers one of two tasks: another's answer counts for the other task, or a stated cost does."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from conftest import refused
from recipes import RECIPE, agent, changed

import l2d
from l2d.data.cache.status import status_rows
from l2d.data.errors import AgentFailure, DataError, FingerprintMismatch, UsageError

SCORE = agent("score", "column", prob="risk_good", reg_from="expert")
CHARGED = changed(SCORE, {"reg_from": None, "reg_cost": 3.5})
DOCTOR = agent("doctor", "table", file="doctor.csv", cla="died", reg_from="model")
API = agent("api", "python", file="api.py", partial=True, reg_from="cheap")
ASKED = """
import numpy as np

def ask(batch):
    with open("{log}", "a") as log:
        log.write("\\n".join(batch.ids) + "\\n")
    return {{"cla": [None if row.endswith("7") else int(row.endswith("2")) for row in batch.ids]}}
"""


def costs(workshop, agent: str, out: str = "cache") -> pl.DataFrame:
    cache = workshop.cache(out)
    return pl.concat([pl.from_arrow(cache.costs(agent, k)) for k in range(cache.record.num_chunks)])


def predictions(workshop, agent: str) -> pl.DataFrame:
    cache = workshop.cache()
    return pl.concat([pl.from_arrow(cache.predictions(agent, k)) for k in range(cache.record.num_chunks)])


def zero_one(table: pl.DataFrame, said: pl.Expr) -> list:
    return table.select((said != pl.col("died")).cast(pl.Float32)).to_series().to_list()


def test_anothers_number_counts_for_an_agent_that_has_a_class_alone(workshop):
    workshop.build(RECIPE.plus(SCORE))
    assert costs(workshop, "score")["cost_reg"].to_list() == costs(workshop, "expert")["cost_reg"].to_list()
    assert costs(workshop, "score")["cost_cla"].to_list() == zero_one(workshop.table, pl.col("risk_good") > 0.5)
    assert predictions(workshop, "score")["pred_reg"].to_list() == predictions(workshop, "expert")["pred_reg"].to_list()
    record = workshop.cache().agent("score")
    assert (record.lent, record.charged, record.queries) == ({"reg": "expert"}, {}, ["score", "expert"])
    rows = {row["agent"]: row for row in status_rows(workshop.cache())}
    assert (rows["score"]["not its own"], rows["expert"]["not its own"]) == ("reg of expert", "")
    assert workshop.cache().verify()


def test_a_stated_cost_is_charged_and_may_change_without_asking(workshop):
    workshop.build(RECIPE.plus(CHARGED))
    assert set(costs(workshop, "score")["cost_reg"]) == {3.5}
    assert "pred_reg" not in predictions(workshop, "score").columns
    assert status_rows(workshop.cache())[-1]["not its own"] == "reg costs 3.5"
    before = workshop.files()
    assert set(workshop.build(RECIPE.plus(CHARGED)).costs_written.values()) == {0}
    assert workshop.files() == before
    report = workshop.build(RECIPE.plus(changed(CHARGED, {"reg_cost": 0.25})))
    assert (report.asked["score"], report.costs_written["score"], report.costs_written["expert"]) == (0, 3, 0)
    assert set(costs(workshop, "score")["cost_reg"]) == {0.25}
    assert workshop.cache().verify()


def test_an_agent_is_unavailable_where_its_lender_is(workshop):
    table = workshop.table.with_columns(stay_good=pl.when(pl.col("x1") > 1).then(None).otherwise("stay_good"))
    table.write_parquet(workshop.folder / "patients.parquet")
    report = workshop.build(RECIPE.but({"agents.expert.partial": True}).plus(SCORE))
    silent = (table["x1"] > 1).to_list()
    assert report.unavailable["expert"] == sum(silent)
    found = predictions(workshop, "score")
    assert [reason == "no answer" for reason in found["failure"]] == silent
    assert [cost is None for cost in costs(workshop, "score")["cost_cla"]] == silent
    assert workshop.cache().agent("score").partial
    rows = {row["agent"]: row for row in status_rows(workshop.cache())}
    assert (rows["score"]["unavailable"], rows["score"]["failed"]) == (sum(silent), 0)


def test_a_doctor_with_gaps_in_a_file_of_diagnoses(workshop):
    said = ["no" if row % 3 else "yes" for row in range(workshop.table.height)]
    frame = workshop.table.select("id").with_columns(died=pl.Series(said))[::2]
    frame.write_csv(workshop.folder / "doctor.csv")
    workshop.build(RECIPE.plus(DOCTOR))
    found = costs(workshop, "doctor")
    everyone = costs(workshop, "model")
    for row in range(workshop.table.height):
        if row % 2:
            assert (found["cost_cla"][row], found["cost_reg"][row]) == (None, None)
        else:
            assert found["cost_cla"][row] == float((said[row] == "yes") != workshop.table["died"][row])
            assert found["cost_reg"][row] == everyone["cost_reg"][row]


@pytest.mark.slow
def test_what_an_agent_has_answered_is_kept_when_its_lender_changes(workshop):
    log = workshop.folder / "log"
    (workshop.folder / "api.py").write_text(ASKED.format(log=log))
    workshop.build(RECIPE.plus(API))
    first = predictions(workshop, "api")
    assert sorted(log.read_text().split()) == workshop.table["id"].to_list()
    log.write_text("")
    other = RECIPE.but({"agents.cheap.reg": "stay_good"})
    with pytest.raises(FingerprintMismatch, match="'cheap'"):
        workshop.build(other.plus(API))
    report = workshop.build(other.plus(API), overwrite=True)
    silent = [name for name in workshop.table["id"] if name.endswith("7")]
    assert sorted(log.read_text().split()) == silent  # nobody knows what it would have said there
    assert report.asked["api"] == len(silent)
    second = predictions(workshop, "api")
    assert second["pred_cla"].to_list() == first["pred_cla"].to_list()
    expected = predictions(workshop, "cheap")["pred_reg"].to_list()
    assert [v for v in second["pred_reg"] if v is not None] == [
        value for value, name in zip(expected, workshop.table["id"], strict=True) if not name.endswith("7")
    ]
    assert costs(workshop, "api")["cost_reg"].drop_nulls().to_list() != []
    assert workshop.cache().verify()
    log.write_text("")
    workshop.build(other.plus(API))
    assert log.read_text() == ""


def test_an_agent_that_answers_what_it_should_not_is_refused(workshop):
    (workshop.folder / "api.py").write_text(
        "def ask(batch):\n    return {'cla': [0] * len(batch.ids), 'reg': [1.0] * len(batch.ids)}\n"
    )
    for key, entry in (("reg_from", API), ("reg_cost", changed(API, {"reg_from": None, "reg_cost": 1.0}))):
        recipe = RECIPE.plus(entry)
        refused(lambda r=recipe, k=key: workshop.build(r, out=k), AgentFailure, "'api' answered `reg`", key)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"reg_from": None}, AgentFailure, ["gave no value", "'score'"]),
        ({"reg_from": "expret"}, UsageError, ["'expret'", "does not come before it"]),
        ({"reg_from": "score"}, UsageError, ["does not come before it"]),
        ({"reg_cost": 1.0}, UsageError, ["reg_from and reg_cost"]),
        ({"reg": "stay"}, UsageError, ["reg and reg_from"]),
        ({"reg_from": None, "reg_cost": -1.0}, UsageError, ["reg_cost"]),
        ({"prob": None, "cla_cost": 1.0}, UsageError, ["give cla, prob, reg or text"]),
    ],
)
def test_a_recipe_in_which_something_counts_twice_or_nothing_is_refused(workshop, changes, kind, words):
    refused(lambda: workshop.build(RECIPE.plus(changed(SCORE, changes))), kind, *words)


def test_who_is_charged_cannot_lend(workshop):
    recipe = RECIPE.plus(CHARGED, changed(SCORE, {"name": "second", "reg_from": "score"}))
    refused(lambda: workshop.build(recipe), UsageError, "which does not answer 'reg' itself")


def evaluated(l2d, runs: str) -> dict:
    """The first result of a sweep."""
    found = json.loads(l2d("evaluate", runs, "--format", "json"))
    return found[0] if isinstance(found, list) else found


@pytest.mark.slow
def test_lent_and_charged_through_the_whole_command_line(workshop, l2d, l2d_done, monkeypatch):
    """Two files of answers, one of diagnoses alone: import, status, query, sweep, evaluate, report, route."""
    monkeypatch.chdir(workshop.folder)
    table = workshop.table.with_columns(died=pl.col("died").cast(pl.String))
    table.select("id", "x1", "ward", "died", "stay").write_csv("features.csv")
    both = table.select("id", who=pl.lit("Ann"), died=pl.lit("1"), stay=pl.col("stay_good"))
    alone = table.select("id", who=pl.lit("Bob"), died=(pl.col("risk_good") > 0.5).cast(int).cast(pl.String))
    pl.concat([both, alone], how="diagonal").write_csv("votes.csv")
    command = ["import", "predictions", "features.csv", "votes.csv", "--id", "id", "--target", "died"]
    command += ["--target-reg", "stay", "--annotator", "who", "--out", "c"]
    code, _, told = l2d(*command)
    assert (code, "Bob does not answer the task 'reg'" in told) == (DataError.exit_code, True)
    l2d_done(*command, "--reg-from", "Ann")
    rows = {row["agent"]: row for row in json.loads(l2d_done("status", "c", "--format", "json"))}
    assert rows["Bob"]["not its own"] == "reg of Ann"
    query = "SELECT agent, avg(cost_reg) AS cost, avg(abs(pred_reg - target_reg)) AS off FROM costs JOIN predictions "
    query += "USING (cache, agent, sample_id) JOIN samples USING (cache, sample_id) WHERE agent <> 'model' "
    found = {row["agent"]: row for row in json.loads(l2d_done("query", "c", query + "GROUP BY 1", "--format", "json"))}
    assert found["Ann"]["cost"] == pytest.approx(found["Bob"]["cost"])
    off = float((table["stay"] - table["stay_good"]).abs().mean())
    assert found["Bob"]["off"] == pytest.approx(off, rel=1e-5)
    l2d_done("sweep", "c", "--out", "runs", "--seeds", "1", "--epochs", "3")
    result = evaluated(l2d_done, "runs")
    assert np.isfinite(result["agents"]["Bob"]["mean_absolute_error"])
    assert result["agents"]["Bob"]["mean_absolute_error"] == result["agents"]["Ann"]["mean_absolute_error"]
    l2d_done("report", "runs", "--out", "report.html")
    l2d_done(*command[:-1], "d", "--reg-cost", "2.5")
    l2d_done("sweep", "d", "--out", "druns", "--seeds", "1", "--epochs", "3")
    result = evaluated(l2d_done, "druns")
    assert "mean_absolute_error" not in result["agents"]["Bob"]
    assert "accuracy" in result["agents"]["Bob"]
    l2d_done("report", "druns", "--out", "charged.html")
    assert "Bob" in (workshop.folder / "charged.html").read_text()


WORDS = """
[dataset]
kind = "table"
path = "questions.csv"
id = "id"
features = ["length"]
target_cla = "kind"
target_text = "answer"

[costs.cla]
kind = "zero_one"

[costs.text]
kind = "f1"

[[agents]]
name = "reader"
kind = "column"
cla = "said_kind"
text = "said"

[[agents]]
name = "both"
kind = "python"
file = "both.py"

[[agents]]
name = "sorter"
kind = "python"
file = "sorter.py"
{sorter}

[[agents]]
name = "writer"
kind = "python"
file = "writer.py"
cla_cost = 0.25
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Sixty questions of two kinds, whose answers are names; the reader is right about two in three."""
    folder = tmp_path_factory.mktemp("questions")
    rows = range(60)
    names = [("Ada Byron", "Alan Turing", "Grace Hopper")[row % 3] for row in rows]
    pl.DataFrame({
        "id": [f"q{row}" for row in rows],
        "length": list(rows),
        "kind": [("who", "when")[row % 2] for row in rows],
        "answer": names,
        "said_kind": ["who"] * 60,
        "said": [name if row % 3 else "nobody at all" for row, name in zip(rows, names, strict=True)],
    }).write_csv(folder / "questions.csv")  # fmt: skip
    says = {"both": '"cla": [0] * n, "text": ["Alan"] * n', "sorter": '"cla": [1] * n', "writer": '"text": [""] * n'}
    for name, said in says.items():
        (folder / f"{name}.py").write_text(f"def ask(batch):\n    n = len(batch.ids)\n    return {{{said}}}\n")
    return folder


def built(folder, sorter: str, out: str):
    (folder / "recipe.toml").write_text(WORDS.format(sorter=sorter))
    cache = l2d.build(folder / "recipe.toml", folder / out, overwrite=True)
    agents = [agent.name for agent in cache.agents]
    return cache, {name: pl.from_arrow(cache.costs(name, 0)) for name in agents}


def test_anothers_text_counts_for_an_agent_that_has_a_class_alone(questions):
    cache, costs = built(questions, 'text_from = "reader"', "lent.cache")
    table = pl.read_csv(questions / "questions.csv")
    expected = [0.0 if row % 3 else 1.0 for row in range(60)]
    assert costs["reader"]["cost_text"].to_list() == costs["sorter"]["cost_text"].to_list() == expected
    said = pl.from_arrow(cache.predictions("sorter", 0))
    assert said["pred_text"].to_list() == table["said"].to_list()
    assert costs["sorter"]["cost_cla"].to_list() == (table["kind"] != "who").cast(pl.Float32).to_list()
    halves = costs["both"].filter(pl.lit(table["answer"] == "Alan Turing"))["cost_text"]
    assert halves.to_list() == pytest.approx([1 / 3] * 20)  # one word of one, one of two: F1 2/3
    assert set(costs["writer"]["cost_cla"]) == {0.25}
    assert status_rows(cache)[2]["not its own"] == "text of reader"


@pytest.mark.slow
def test_a_stated_cost_is_charged_for_having_no_text(questions):
    cache, costs = built(questions, "text_cost = 0.75", "charged.cache")
    assert set(costs["sorter"]["cost_text"]) == {0.75}
    assert "pred_text" not in cache.predictions("sorter", 0).column_names
    run = l2d.train(cache, questions / "charged.run", beta=0.1).path
    [found] = l2d.evaluate(run).to_json()
    assert "f1" in found["agents"]["both"]
    assert "f1" not in found["agents"]["sorter"]


@pytest.mark.parametrize(
    ("sorter", "what"),
    [
        ('text_from = "writer"', "does not come before it"),
        ('text_from = "reader"\ntext_cost = 1.0', "say one"),
        ("text_cost = 1.5", "less than or equal to 1"),
        ('text_from = "reader"\ncla_from = "reader"', "answers no task itself"),
        ("", "gave no text[^!]*text_from"),
    ],
)
def test_what_cannot_count_as_a_text_is_refused(questions, sorter, what):
    with pytest.raises((UsageError, AgentFailure), match=what):
        built(questions, sorter, "refused.cache")
