"""Agents that answer some samples only: unavailable on the others, which is neither a failure nor a cost."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from conftest import refused
from recipes import RECIPE, agent, changed

from l2d.cache_builder.answers import Answers
from l2d.data.cache import schema
from l2d.data.cache.status import status_rows
from l2d.data.errors import AgentFailure

PARTIAL = agent("reader", "column", partial=True, prob="CASE WHEN x1 > 0 THEN risk_good END", reg="stay_good")
CALLED = agent("caller", "python", file="caller.py", partial=True)
CALLER = """
import numpy as np

def ask(batch):
    if "p0007" in batch.ids and "{mode}" == "raise":
        raise ConnectionError("overloaded")
    known = batch.columns["ward"].to_numpy() == "a"
    return {{"cla": [1 if k else None for k in known], "reg": np.where(known, 2.5, np.nan)}}
"""


def record(workshop, name: str) -> dict:
    return json.loads(schema.agent_file(workshop.folder / "cache", name).read_text())


def test_where_a_partial_agent_is_silent_it_has_neither_answer_nor_cost(workshop):
    report = workshop.build(RECIPE.plus(PARTIAL))
    silent = workshop.table["x1"].to_numpy() <= 0
    assert (report.failed["reader"], report.unavailable["reader"]) == (0, silent.sum())
    files = sorted((workshop.folder / "cache/agents/reader/predictions").glob("*.parquet"))
    found = pl.concat([pl.read_parquet(file) for file in files])
    assert [reason == "no answer" for reason in found["failure"]] == silent.tolist()
    for column in ("pred_cla", "pred_prob", "pred_reg"):
        assert found[column].is_null().to_list() == silent.tolist()
    for task in ("cla", "reg"):
        costs = workshop.column(workshop.costs_folder(), f"cost_{task}", "reader")
        np.testing.assert_array_equal(np.isnan(costs), silent)
    assert record(workshop, "reader")["partial"] is True
    assert "partial" not in record(workshop, "expert")  # caches without partial agents are what they were
    assert [agent.partial for agent in workshop.cache().agents] == [False, False, False, True]
    row = next(row for row in status_rows(workshop.cache()) if row["agent"] == "reader")
    assert (row["failed"], row["unavailable"]) == (0, silent.sum())
    workshop.cache().verify()


@pytest.mark.slow
def test_only_failures_are_asked_again(workshop):
    (workshop.folder / "caller.py").write_text(CALLER.format(mode="raise"))
    text = RECIPE.plus({**CALLED, "version": "1"})
    refused(lambda: workshop.build(text), AgentFailure, "'caller'", "overloaded")
    report = workshop.build(text, on_failure="record")
    silent = workshop.table["ward"].to_numpy() != "a"
    silent[7] = False
    assert (report.failed["caller"], report.unavailable["caller"]) == (1, silent.sum())
    row = status_rows(workshop.cache())[-1]
    assert (row["failed"], row["unavailable"]) == (1, silent.sum())
    (workshop.folder / "caller.py").write_text(CALLER.format(mode="ok"))
    assert workshop.build(text, retry_failures=True).asked["caller"] == 1
    assert workshop.build(text, retry_failures=True).asked["caller"] == 0
    row = status_rows(workshop.cache())[-1]
    assert (row["failed"], row["unavailable"]) == (0, (workshop.table["ward"] != "a").sum())


def test_a_gap_of_an_agent_that_is_not_partial_is_wrong(workshop):
    refused(lambda: workshop.build(RECIPE.plus(changed(PARTIAL, {"partial": None}))), AgentFailure, "'reader'")


@pytest.mark.slow
def test_an_average_is_over_those_who_answer(workshop):
    (workshop.folder / "caller.py").write_text(CALLER.format(mode="ok"))
    mean = agent("mean", "average", of=["reader", "caller"], reference=True)
    report = workshop.build(RECIPE.plus(PARTIAL, CALLED, mean))
    table = workshop.table.with_columns(
        reader=pl.when(pl.col("x1") > 0).then(pl.col("stay_good")), caller=pl.when(pl.col("ward") == "a").then(2.5)
    )
    expected = table.select(pl.mean_horizontal("reader", "caller")).to_series()
    found = workshop.column("predictions", "pred_reg", "mean")
    np.testing.assert_allclose(found, expected.to_numpy(), rtol=1e-6)
    assert report.unavailable["mean"] == expected.null_count() > 0
    assert report.failed["mean"] == 0
    assert workshop.cache().agent("mean").partial


@pytest.mark.parametrize("prob", [[[0.5, 0.5], None, [0.1, 0.9]], [[0.5, 0.5], [np.nan, np.nan], [0.1, 0.9]]])
def test_a_gap_in_any_wanted_answer_is_a_gap(prob):
    answers = Answers(prob=prob, reg=[1.0, 2.0, None]).with_gaps(3, ["cla", "reg"], 2)
    assert answers.is_unavailable.tolist() == [False, True, True]
    checked = answers.checked("agent", ["a", "b", "c"], ["cla", "reg"], 2)
    assert checked.to_columns()["pred_reg"].to_pylist() == [1.0, None, None]
    assert Answers(prob=prob, reg=[1.0, 2.0, None]).with_gaps(3, ["cla"], 2).is_unavailable.tolist() == [0, 1, 0]


def test_half_a_row_of_probabilities_is_wrong_and_no_gap():
    answers = Answers(prob=[[0.5, np.nan], [0.5, 0.5]]).with_gaps(2, ["cla"], 2)
    refused(lambda: answers.checked("agent", ["a", "b"], ["cla"], 2), AgentFailure, "not finite", "'a'")
