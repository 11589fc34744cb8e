"""A log in which each input was answered by one agent alone: what is said of it, by whom it is noticed, and when."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import l2d
from l2d.rejector.best.guard import Guard
from l2d.rejector.evaluation.baselines import best_constant, ranking

AGENTS = ("a", "b", "c")


def log(rows: int = 240, also: int = 0) -> pl.DataFrame:
    """Inputs of three kinds, each with the score of one agent; the first ``also`` of them with all agents' scores."""
    generator = np.random.default_rng(0)
    right = np.array([[0.9, 0.3, 0.5], [0.3, 0.9, 0.5], [0.7, 0.7, 0.9]])
    who = [(row, agent) for row in range(rows) for agent in (range(3) if row < also else [generator.integers(3)])]
    return pl.DataFrame(
        {
            "id": [f"s{row}" for row, _ in who], "kind": [f"k{row % 3}" for row, _ in who],
            "model": [AGENTS[agent] for _, agent in who],
            "score": [float(generator.random() < right[agent, row % 3]) for row, agent in who],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    told: list[str] = []
    cache = l2d.import_table(log(), out=folder / "c", kind="scores", say=told.append)
    runs = l2d.train(cache, folder / "r", say=told.append)
    return cache, runs, told


def test_import_train_and_audit_say_that_nothing_is_compared(alone):
    cache, _, told = alone
    warnings = [line for line in told if line.startswith("warning:") and "answers of two agents" in line]
    assert len(warnings) == 2  # of the import and of the training
    (finding,) = [finding for finding in l2d.audit(cache).findings if finding.check == "answers"]
    assert finding.level == "warning"
    assert any("always asks" in line and "does not pay" not in line for line in told)


def test_the_evaluation_says_only_that(alone):
    (told,) = l2d.evaluate(alone[1]).findings()
    assert told.startswith("Nothing can be compared here")


def test_of_equal_constants_it_is_the_agent_whose_own_answers_cost_least(alone):
    means = dict(log().group_by("model").agg(pl.col("score").mean()).iter_rows())
    costs = torch.tensor([[np.inf, 0.4, np.inf], [0.9, np.inf, np.inf], [np.inf, np.inf, 0.2]])
    policies = torch.tensor([[0.4] * 3, [0.9] * 3, [0.2] * 3])
    assert best_constant(policies) == 0
    assert best_constant(policies, ranking(costs)) == 2
    guard = Guard.of(np.zeros((3, 3)), costs.numpy(), z=1.0)
    assert (guard.fallback, guard.compared, guard.holds) == (2, 0, True)
    run = alone[1]
    assert run.agents[run.rejector.guard["fallback"]] == max(means, key=means.get)


def test_few_common_inputs_are_a_note_and_a_complete_table_says_nothing(tmp_path):
    few = l2d.import_table(log(also=6), out=tmp_path / "few", kind="scores")
    (finding,) = [finding for finding in l2d.audit(few).findings if finding.check == "answers"]
    assert (finding.level, finding.what[:13]) == ("note", "6 of 240 samp")
    whole = l2d.import_table(log(also=240), out=tmp_path / "whole", kind="scores")
    assert not [finding for finding in l2d.audit(whole).findings if finding.check == "answers"]


def test_an_import_warns_of_a_second_column_with_the_diagnosis(tmp_path):
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 300)
    cases = pl.DataFrame(
        {"id": range(300), "age": generator.integers(20, 90, 300), "code": np.where(truth, "yes", "no")}
    )
    cases = cases.with_columns(diagnosis=truth)
    votes = pl.DataFrame({"id": range(300), "ann": np.where(generator.random(300) < 0.8, truth, 1 - truth)})
    told: list[str] = []
    l2d.import_table(cases, votes, out=tmp_path / "c", id="id", target="diagnosis", model="ann", say=told.append)
    (line,) = [line for line in told if line.startswith("warning:")]
    assert "feature code" in line
    assert "100.0% of held-out samples" in line
