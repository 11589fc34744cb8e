"""Agents whose answering depends on the features: chances and weights against known worlds, and weighted fits."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from l2d.rejector.best import linear
from l2d.rejector.best.answering import Answering, answering_in_words, chances
from l2d.rejector.best.folds import fold_of
from l2d.rejector.best.linear import Basis, Inputs
from l2d.rejector.best.model import fit_costs, fit_counted
from l2d.rejector.best.stacking import Stacking
from l2d.rejector.best.trees import Grown, grow


def world(kind: str, rows: int = 1500, seed: int = 0):
    """Features; expected and raw costs of three agents; chances of an answer; ids. Agent 1 is asked where it is cheap.

    Agent 0 always answers, at 0.5; agent 1 costs less where the first feature is low.
    """
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, 8)).astype(np.float32)
    mean = np.stack(
        [
            np.full(rows, 0.5),
            0.5 + 0.25 * np.tanh(2 * x[:, 0]) + 0.15 * np.sin(2 * x[:, 1]),
            0.45 + 0.2 * np.tanh(x[:, 2] * x[:, 0]),
        ],
        axis=1,
    )
    chance = np.ones_like(mean)
    if kind == "random":
        chance[:, 1:] = 0.4
    elif kind == "depends":
        chance[:, 1], chance[:, 2] = 1 / (1 + np.exp(3 * x[:, 0] + 1)), 1 / (1 + np.exp(-2 * x[:, 2]))
    elif kind == "never":
        chance[:, 1] = x[:, 0] < -0.3
    raw = (random.random(mean.shape) < mean).astype(np.float32)
    raw[random.random(mean.shape) >= chance] = np.nan
    return x, mean, raw[:, :, None], chance, [f"{seed}-{row}" for row in range(rows)]


def both(kind: str, seed: int):
    """Models without and with weights, and what is made of the comparison (None where answering is at random)."""
    x, _, raw, _, ids = world(kind, seed=seed)
    answered, fold = ~np.isnan(raw).any(axis=2), fold_of(ids)
    costs = np.where(answered[:, :, None], raw, 0)
    answering = Answering.of(x, answered, fold)
    plain, predicted = fit_counted(x, costs, answered, fold=fold, held=None, seed=0, threads=None)
    if answering is None:
        return plain, plain, None
    weighted, instead = fit_counted(x, costs, answering.weights, fold=fold, held=None, seed=0, threads=None)
    return plain, weighted, answering.judged(predicted, instead, costs)


def missed(model, seed: int = 99) -> tuple[float, float]:
    """Squared error of predicted costs, and what choices cost above the best ones, on samples of known costs."""
    x, mean, _, _, _ = world("random", 4000, seed)
    found = model.predict(x)[:, :, 0]
    chosen = mean[np.arange(len(x)), found.argmin(axis=1)]
    return float(((found - mean) ** 2).mean()), float((chosen - mean.min(axis=1)).mean())


def test_weights_recover_what_dependence_takes():
    """Mean costs and predicted costs are nearer to the truth with weights, and choices no worse; four worlds."""
    found = [both("depends", seed) for seed in range(4)]
    truth = world("depends", 20_000, 50)[1].mean(axis=0)
    off = np.array([[np.abs(model.mean[:, 0] - truth).max() for model in pair[:2]] for pair in found]).mean(axis=0)
    assert off[1] < 0.7 * off[0]
    error, loss = np.array([[missed(model) for model in pair[:2]] for pair in found]).mean(axis=0).T
    assert error[1] < 0.85 * error[0]
    assert loss[1] < loss[0]
    assert sum(answering.used for _, _, answering in found) >= 3
    assert all(answering.agents == [1, 2] for _, _, answering in found)


def test_answering_at_random_changes_nothing():
    for seed in range(3):
        plain, _, answering = both("random", seed)
        assert answering is None
        x, _, raw, _, ids = world("random", seed=seed)
        np.testing.assert_array_equal(fit_costs(x, raw, ids).predict(x), plain.predict(x))


def test_chances_are_near_the_true_ones():
    x, _, raw, chance, ids = world("depends", 4000)
    found = chances(x, ~np.isnan(raw[:, 1:, 0]), fold_of(ids))
    for agent in (0, 1):
        true = chance[:, agent + 1]
        assert ((found[:, agent] - true) ** 2).mean() < 0.25 * true.var()
        assert abs(found[:, agent].mean() - true.mean()) < 0.02
    weights = Answering.of(x, ~np.isnan(raw[:, :, 0]), fold_of(ids)).weights
    answered = weights[:, 1] > 0
    assert (answered == ~np.isnan(raw[:, 1, 0])).all()
    assert weights[answered, 1].mean() == pytest.approx(1, abs=1e-5)
    assert (weights[:, 0] == 1).all()
    assert np.corrcoef(weights[answered, 1], 1 / chance[answered, 1])[0, 1] > 0.6


def test_where_an_agent_never_answers_that_is_warned_of():
    x, _, raw, _, ids = world("never")
    model = fit_costs(x, raw, ids)
    assert model.answering.agents == [1]
    assert model.answering.hardly[0] > 0.1
    lines = answering_in_words(model.answering.facts(["model", "shy", "other"]))
    assert lines[-1].startswith("warning: shy hardly ever answers samples like")
    assert "shy" in lines[0]
    assert answering_in_words(None) == []
    from l2d.rejector.estimator import DeferralRejector

    with pytest.warns(UserWarning, match="hardly ever answers"):
        rejector = DeferralRejector().fit(x, raw[:, :, 0])
    assert rejector.rejector_.about["answering"]["agents"]["1"]["hardly"] > 0.1


def test_weights_are_vetoed_where_they_raise_the_held_out_error():
    x, _, raw, _, ids = world("depends")
    answered = ~np.isnan(raw).any(axis=2)
    costs = np.where(answered[:, :, None], raw, 0)
    answering = Answering.of(x, answered, fold_of(ids))
    good, bad = costs + 0.1, costs + 0.5
    assert not answering.judged(good, bad, costs).used
    judged = answering.judged(bad, good, costs)
    assert judged.used
    assert judged.gain[0] == pytest.approx(1 - 0.1**2 / 0.5**2, rel=1e-4)  # errors of the same answers alone
    assert judged.facts(["a", "b", "c"])["weighted"]


def test_an_answer_that_counts_twice_is_two_answers():
    """Ridge, leaves and stacking with weights of 1 and 2 are those of a table in which rows are repeated."""
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 4)).astype(np.float32)
    costs = random.random((200, 3)).astype(np.float32)
    twice = random.integers(1, 3, 200)
    weights = np.repeat(twice[:, None], 3, axis=1).astype(np.float32)
    again = np.repeat(np.arange(200), twice)
    everything = np.ones((len(again), 3), bool)

    basis = Basis.of(x, 0)
    for solve in (linear._dual, lambda *given: linear.Sums.over(*given).solved()):
        mine = solve(Inputs(x, basis), costs, np.arange(3), weights[:, 0])
        wanted = solve(Inputs(x[again], basis), costs[again], np.arange(3), everything[:, 0])
        for (slopes, level), (others, another) in zip(mine, wanted, strict=True):
            np.testing.assert_allclose(slopes, others, atol=1e-8)
            np.testing.assert_allclose(level, another, atol=1e-8)

    trees = grow(x, costs, seed=0, trees=3)
    mine = Grown.of(trees, x, costs, weights).predict(x)
    np.testing.assert_allclose(mine, Grown.of(trees, x[again], costs[again], everything).predict(x), atol=1e-5)

    members = [costs[:, :, None] + 0.3 * random.standard_normal((200, 3, 1)) for _ in range(2)]
    mine = Stacking.fit(members, costs[:, :, None], weights)
    wanted = Stacking.fit([m[again] for m in members], costs[again][:, :, None], everything)
    np.testing.assert_allclose(mine.difference, wanted.difference, atol=1e-6)


def test_many_agents_that_answer_here_and_there():
    """More sets of answered rows than have equations of their own."""
    x, _, _, _, ids = world("depends", 600)
    random = np.random.default_rng(0)
    many = (random.random((600, 80, 1)) < 0.5 + 0.3 * np.tanh(x[:, :1, None])).astype(np.float32)
    many[random.random(many.shape[:2]) < 1 / (1 + np.exp(-3 * x[:, :1])) * 0.8] = np.nan
    model = fit_costs(x, many, ids)
    assert model.answering is not None
    assert np.isfinite(model.predict(x)).all()


def test_a_command_says_it_and_the_run_keeps_it(tmp_path, capfd):
    from l2d.cli import app

    x, _, raw, _, ids = world("never", 900)
    pl.DataFrame({"id": ids, **{f"x{k}": x[:, k] for k in range(4)}}).write_csv(tmp_path / "inputs.csv")
    rows = [
        {"id": name, "agent": agent, "score": float(1 - cost)}
        for name, costs in zip(ids, raw[:, :, 0], strict=True)
        for agent, cost in zip(("model", "shy", "other"), costs, strict=True)
        if not np.isnan(cost)
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "scores.csv")
    command = ["import", "scores", tmp_path / "inputs.csv", tmp_path / "scores.csv", "--id", "id"]
    app([*map(str, command), "--out", str(tmp_path / "cache")], standalone_mode=False)
    app(["train", str(tmp_path / "cache"), "--out", str(tmp_path / "run")], standalone_mode=False)
    err = capfd.readouterr().err
    assert "whether an agent answers depends on the features" in err
    assert err.count("warning: shy hardly ever answers") == 1
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["best"]["answering"]
    assert list(facts["agents"]) == ["shy"]
