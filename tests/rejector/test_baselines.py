"""Baselines by brute force on random tables, with agents that are unavailable here and there."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import l2d.rejector.evaluation.evaluate
from l2d.data.errors import DataError, UsageError
from l2d.rejector.evaluation.baselines import (
    allocation_rates,
    averaged_answers,
    averaged_costs,
    best_constant,
    constant,
    fallback,
    oracle,
    random_same_shares,
    ranking,
)
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.evaluation import Evaluation, setting_of
from l2d.rejector.evaluation.groups import read_groups
from l2d.rejector.evaluation.settings import leading_agents, settings_of
from l2d.rejector.evaluation.summary import (
    comparison_table,
    findings,
    flat_rows,
    paper_table,
    regret_table,
    share_table,
)
from l2d.rejector.evaluation.summary import tables as tables_of
from l2d.rejector.report.page import _answer_of
from l2d.rejector.report.shown import lay_out
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.thresholds import (
    choose_threshold,
    model_confidence,
    same_coverage_expert,
    same_coverage_losses,
    threshold_losses,
)


def test_a_constant_agent_asks_the_best_of_the_others_where_it_has_no_answer():
    inf = torch.inf
    validation = torch.tensor([[0.9, 0.1, 0.5, inf], [0.9, inf, 0.4, inf], [inf, 0.2, 0.6, inf]])
    assert ranking(validation).tolist() == [1, 2, 0, 3]  # means 0.9, 0.15, 0.5, and one that never answers
    costs = torch.tensor([[inf, 0.3, 0.1, 0.2], [0.7, inf, 0.2, inf], [0.8, inf, inf, 0.0], [inf, inf, inf, 0.5]])
    instead = fallback(costs, ranking(validation))
    assert instead.tolist() == [1, 2, 0, 3]
    policies = constant(costs, costs.gather(1, instead[:, None])[:, 0])
    expected = [[0.3, 0.3, 0.1, 0.2], [0.7, 0.2, 0.2, 0.2], [0.8, 0.8, 0.8, 0.0], [0.5, 0.5, 0.5, 0.5]]
    np.testing.assert_allclose(policies, expected)
    assert best_constant(policies) == 3
    assert best_constant(torch.tensor([[0.5, 0.25], [0.25, 0.5]])) == 0  # a tie goes to the first
    np.testing.assert_array_equal(oracle(torch.tensor([[inf, 0.25], [0.5, inf]])), [0.25, 0.5])


@pytest.mark.parametrize("seed", range(10))
def test_constant_policies_are_those_of_a_loop(seed):
    """Sample by sample: the agent, else the others from the best on validation to the worst."""
    generator = np.random.default_rng(seed)
    costs, chosen_on = (generator.integers(0, 8, (20, 4)) / 8 for _ in range(2))
    for table in (costs, chosen_on):
        table[generator.random(table.shape) < 0.3] = np.inf
        table[np.isinf(table).all(axis=1), seed % 4] = 0.5
    means = [np.mean(column[np.isfinite(column)]) if np.isfinite(column).any() else np.inf for column in chosen_on.T]
    others = sorted(range(4), key=lambda agent: means[agent])
    expected = [[next(row[k] for k in (agent, *others) if np.isfinite(row[k])) for agent in range(4)] for row in costs]
    costs, chosen_on = torch.tensor(costs), torch.tensor(chosen_on)
    instead = fallback(costs, ranking(chosen_on))
    np.testing.assert_array_equal(constant(costs, costs.gather(1, instead[:, None])[:, 0]), expected)


def test_random_shares_are_rescaled_over_who_is_available():
    inf = torch.inf
    costs = torch.tensor([[1.0, 2.0, 4.0], [1.0, inf, 4.0], [inf, 2.0, inf], [inf, inf, 4.0]])
    rates = torch.tensor([0.2, 0.6, 0.2])
    found = random_same_shares(rates, costs).tolist()
    assert found == pytest.approx([0.2 + 1.2 + 0.8, (0.2 + 0.8) / 0.4, 2.0, 4.0])
    assert random_same_shares(torch.tensor([1.0, 0.0, 0.0]), costs)[2].item() == 2.0  # nobody with a share is there
    assert allocation_rates(torch.tensor([0, 2, 2, 2]), 3).tolist() == [0.25, 0.0, 0.75]


def tables(seed: int, missing: float) -> tuple[np.ndarray, np.ndarray]:
    """Tied confidences and costs of three agents, some unavailable, one always there."""
    generator = np.random.default_rng(seed)
    costs = generator.integers(0, 8, (14, 3)) / 8
    costs[:, :2][generator.random((14, 2)) < missing] = np.inf
    confidence = generator.integers(0, 6, 14) / 6
    confidence[np.isinf(costs[:, 0])] = -np.inf
    return confidence, costs


@pytest.mark.parametrize(("seed", "missing"), [(seed, missing) for seed in range(12) for missing in (0.0, 0.25)])
def test_the_threshold_is_the_best_of_all(seed, missing):
    confidence, costs = tables(seed, missing)

    def loss(expert: int, threshold: float) -> float:
        total = 0.0
        for sure, row in zip(confidence, costs, strict=True):
            first, second = (expert, 0) if sure < threshold else (0, expert)
            total += row[first] if np.isfinite(row[first]) else row[second]
        return total / len(costs)

    best = min(loss(*pair) for pair in itertools.product((1, 2), [-np.inf, *confidence, np.inf]))
    expert, threshold = choose_threshold(confidence, costs)
    assert loss(expert, threshold) == pytest.approx(best)
    losses = threshold_losses(confidence, costs, expert, threshold)
    assert losses.mean() == pytest.approx(best)


def test_no_threshold_where_nobody_can_stand_in():
    costs = np.array([[np.inf, np.inf], [0.0, 1.0]])
    assert choose_threshold(np.array([-np.inf, 0.5]), costs) is None


@pytest.mark.parametrize("seed", range(8))
def test_the_same_coverage_is_the_mean_over_orders_of_ties(seed):
    confidence, costs = tables(seed, 0.0)
    confidence, costs = confidence[:6], costs[:6]
    for kept in range(7):
        losses = []
        for order in itertools.permutations(range(6)):
            if all(confidence[i] >= confidence[j] for i, j in itertools.pairwise(order)):
                losses.append([costs[row, 0] if order.index(row) < kept else costs[row, 1] for row in range(6)])
        found = same_coverage_losses(confidence, costs, 1, kept / 6)
        np.testing.assert_allclose(found, np.mean(losses, axis=0), atol=1e-12)
    means = [same_coverage_losses(confidence, costs, expert, 0.5).mean() for expert in (1, 2)]
    assert means[same_coverage_expert(confidence, costs, 0.5) - 1] == min(means)


def test_the_models_confidence_is_its_highest_probability():
    chances = np.array([[0.2, 0.8], [0.7, 0.3]], np.float32)
    np.testing.assert_allclose(model_confidence(chances), [0.8, 0.7])
    np.testing.assert_array_equal(model_confidence(chances, np.array([True, False]))[1], -np.inf)


def answers_table(failed: np.ndarray | None) -> CostTable:
    one = {"pred_prob": np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]), "pred_reg": np.array([1.0, 2.0, 3.0])}
    return CostTable(
        split="test",
        ids=["a", "b", "c"],
        features=torch.zeros(3, 1),
        raw=torch.zeros(3, 2, 2),
        targets={"target_cla": np.array([0, 1, 1]), "target_reg": np.array([1.0, 1.0, 1.0])},
        predictions={
            "one": {**one, "pred_cla": one["pred_prob"].argmax(axis=1)},
            "two": {"pred_cla": np.array([1, 1, 0]), "pred_reg": np.array([3.0, 2.0, 5.0])},
        },
        failed=failed,
    )


def test_averages_are_over_who_answered_and_a_class_counts_as_sure():
    found = averaged_answers(answers_table(None), ["one", "two"], ["cla", "reg"])
    np.testing.assert_allclose(found["pred_prob"], [[0.45, 0.55], [0.2, 0.8], [0.75, 0.25]])
    np.testing.assert_array_equal(found["pred_cla"], [1, 1, 0])
    np.testing.assert_allclose(found["pred_reg"], [2.0, 2.0, 4.0])
    failed = np.array([[False, True], [False, False], [True, False]])
    found = averaged_answers(answers_table(failed), ["one", "two"], ["cla", "reg"])
    np.testing.assert_allclose(found["pred_prob"], [[0.9, 0.1], [0.2, 0.8], [1.0, 0.0]])
    np.testing.assert_allclose(found["pred_reg"], [1.0, 2.0, 5.0])
    assert averaged_answers(answers_table(np.ones((3, 2), dtype=bool)), ["one", "two"], ["cla"]) is None
    assert averaged_answers(answers_table(None), ["one", "two"], ["map"]) is None


@pytest.mark.parametrize("cla", ["zero_one", "brier", "absolute"])
@pytest.mark.parametrize("reg", ["smooth_l1", "absolute", "squared"])
def test_averages_cost_what_stage_one_would_charge(cla, reg):
    from l2d.cache_builder.answers import Answers
    from l2d.cache_builder.costs import ClassificationCost, RegressionCost

    generator = np.random.default_rng(0)
    chances, target = generator.dirichlet(np.ones(3), 50), generator.integers(0, 3, 50).astype(np.int32)
    value, truth = generator.normal(size=50) * 3, generator.normal(size=50).astype(np.float32)
    answers = {"pred_prob": chances, "pred_cla": chances.argmax(axis=1), "pred_reg": value}
    kinds = {"cla": ClassificationCost(kind=cla), "reg": RegressionCost(kind=reg, beta=0.5, clamp=2.0)}
    setting = {task: kind.model_dump(exclude_none=True) for task, kind in kinds.items()}
    found = averaged_costs(answers, {"target_cla": target, "target_reg": truth}, ["cla", "reg"], setting)
    as_agent = Answers(prob=chances, reg=value)
    np.testing.assert_allclose(found[:, 0], kinds["cla"].compute(as_agent, target, 3), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], kinds["reg"].compute(as_agent, truth), rtol=1e-6)


# --- in an evaluation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(make_cache, make_runs, tmp_path_factory) -> tuple:
    """A cache, and runs at five query costs with two seeds each, two of them so dear that nobody is worth a query."""
    folder = tmp_path_factory.mktemp("baselines")
    cache = make_cache(folder)
    runs = make_runs(cache, folder / "runs", betas=[0.0, 0.02, 0.05, 20.0, 40.0], seeds=[0, 1])
    return cache, runs, evaluate_runs(runs)


@pytest.mark.slow
def test_choices_are_made_on_validation(swept):
    cache, _, evaluations = swept
    table = load_tables(cache, ("validation",), predictions=True)["validation"]
    weights = torch.tensor([1.0, 0.2])
    for evaluation in evaluations:
        costs = (table.raw * weights).sum(-1) + torch.tensor(evaluation.run.point.query_costs)
        result = evaluation.result
        assert result["best_constant"] == cache.agents[int(costs.mean(dim=0).argmin())].name
        alone = result["agents"][result["best_constant"]]["mean_cost"]
        assert result["best_constant_loss"] == pytest.approx(alone, abs=1e-6)
        assert result["best_agent_loss"] <= result["best_constant_loss"] + 1e-9
        confidence = table.predictions["model"]["pred_prob"].max(axis=1)
        expert, threshold = choose_threshold(confidence.astype(float), costs.numpy())
        assert result["confidence"]["expert"] == cache.agents[expert].name
        assert result["confidence"]["threshold"] == (pytest.approx(threshold) if np.isfinite(threshold) else None)
        everybody = sum(evaluation.run.point.query_costs)
        assert result["averaging_loss"] >= everybody


def test_p_values_are_adjusted_over_the_sweep_and_seeds_kept_apart(swept):
    evaluations = swept[2]
    by_setting = {setting_of(e): e.result["over_seeds"] for e in evaluations}
    assert len(by_setting) == 5
    tests = [a for s in by_setting.values() for a in s["agents"].values()]
    names = ("random_same_shares", "confidence", "confidence_same_coverage", "averaging")
    tests += [s["regret"][name] for s in by_setting.values() for name in names]
    p_values = np.array([test["p"] for test in tests])
    for test in tests:
        bound = [(p_values >= p).sum() * p for p in p_values if p <= test["p"]]
        assert test["p_holm"] == pytest.approx(min(1.0, max(bound)), abs=1e-12)
    for evaluation in evaluations:
        summary = evaluation.result["over_seeds"]
        assert "p_holm" not in summary["regret"]["oracle"]
        chosen = evaluation.result["best_constant"]
        same = {name: summary["agents"][chosen][name] for name in ("value", "low", "high", "p", "p_holm")}
        assert summary["regret"]["best_constant"] == {
            **same,
            "std_over_seeds": pytest.approx(summary["deferral_loss"]["std"], abs=1e-7),
        }
        interval = summary["deferral_loss_interval"]
        assert interval["low"] < summary["deferral_loss"]["mean"] < interval["high"]


def with_regrets(evaluation: Evaluation, **regrets: tuple[float, float]) -> Evaluation:
    """An evaluation whose differences (but against the oracle) are all -0.1 at p = 0.001, except these."""
    result = json.loads(json.dumps(evaluation.result))
    compared = result["over_seeds"]["regret"] | {"everyone": result["over_seeds"]["agents"]["everyone"]}
    for baseline, difference in compared.items():
        value, p = regrets.get(baseline, (-0.1, 0.001))
        difference.update(value=value, low=value - 0.02, high=value + 0.02)
        if baseline != "oracle":
            difference["p_holm"] = p
    return replace(evaluation, result=result)


def test_what_a_rejector_does_not_beat_is_said(swept):
    at = {e.result["beta"]: e for e in swept[2]}
    won, lost = with_regrets(at[0.0]), with_regrets(at[20.0], best_constant=(0.006, 0.4), best_agent=(0.006, 0.4))
    constant = lost.result["best_constant"]
    said = f"multi-task at beta 20: Not shown to be better than always taking {constant}: +0.0060 [-0.0140, +0.0260], "
    said += "p = 0.400 after Holm's correction."
    assert findings([won, lost]) == [
        said,
        "Better than every baseline at beta 0: p at most 0.001 after Holm's correction for all comparisons.",
    ]
    assert findings([won]) == [
        "Better than every baseline: p at most 0.001 after Holm's correction for all comparisons."
    ]
    assert findings([won, with_regrets(at[0.02])])[0].startswith("Better than every baseline at every setting")
    worse = with_regrets(at[0.0], random_same_shares=(0.2, 0.01), confidence=(0.0, 1.0))
    expert = worse.result["confidence"]["expert"]
    sentences = findings([worse])
    assert sentences[0] == (
        "multi-task: Worse than random allocation at the same shares: +0.2000 [+0.1800, +0.2200], "
        "p = 0.010 after Holm's correction."
    )
    assert sentences[1].startswith(f"multi-task: Not shown to be better than deferring to {expert}")
    assert len(sentences) == 2
    behind = findings([with_regrets(at[0.0], everyone=(0.01, 0.002))])
    assert behind == [
        "multi-task: Worse than the reference everyone: +0.0100 [-0.0100, +0.0300], p = 0.002 after Holm's correction."
    ]


def test_what_is_said_fits_the_interval_and_has_the_corrected_p_beside_it(swept):
    """An interval wholly on the bad side is worse, whatever the correction; one on the good side is not "no better"."""
    evaluation = next(e for e in swept[2] if e.result["beta"] == 0)
    sentences = findings([with_regrets(evaluation, confidence=(0.03, 0.6), random_same_shares=(-0.03, 0.14))])
    assert sentences == [
        "multi-task: Not shown to be better than random allocation at the same shares: -0.0300 [-0.0500, -0.0100], "
        "p = 0.140 after Holm's correction.",
        f"multi-task: Worse than deferring to {evaluation.result['confidence']['expert']}"
        + below(evaluation)
        + ", compared by itself: +0.0300 [+0.0100, +0.0500], p = 0.600 after Holm's correction.",
    ]
    for value, p, verb in ((0.03, 0.6, "is worse than"), (-0.03, 0.14, "is not shown to beat"), (-0.03, 0.02, "beats")):
        answer = _answer_of(lay_out([with_regrets(evaluation, best_constant=(value, p))]))
        assert f"rejector {verb} the best constant agent" in answer
        assert answer.endswith(f"p = {p:.3f} after Holm's correction.")


def below(evaluation: Evaluation) -> str:
    """Where the threshold says that the expert is asked."""
    threshold = evaluation.result["confidence"]["threshold"]
    return "" if threshold is None else f" where the model's confidence is below {threshold:.3f}"


def test_the_best_constant_agent_at_that_beta_stands_beside_every_rejector(swept):
    rows = paper_table(swept[2])
    rejectors = rows[: rows.index(None)]
    assert [row["beta"] for row in rejectors] == ["0", "0.02", "0.05", "20", "40"]
    at = {e.run.point.beta_text: e.result for e in swept[2]}
    for row in rejectors:
        result = at[row["beta"]]
        assert float(row["best constant"]) == pytest.approx(result["best_constant_loss"], abs=5.1e-5)
        assert row.get("which", result["best_constant"]) == result["best_constant"]


def test_of_many_agents_a_table_names_the_five_that_matter(swept):
    """29 of them, with long names: every line fits a terminal, and csv has them all."""
    many, names = [], [f"organisation/a-language-model-of-{k:02d}-billion" for k in range(29)]
    for evaluation in swept[2]:
        result = json.loads(json.dumps(evaluation.result))
        share = np.linspace(1, 29, 29) / np.linspace(1, 29, 29).sum()
        allocation = dict(zip(names, share, strict=True))
        result |= {"allocation": allocation, "best_constant": names[0]}
        result["over_seeds"]["allocation"] = {name: {"mean": x, "std": 0.0} for name, x in allocation.items()}
        result["agents"] = dict.fromkeys(names, result["agents"]["model"])
        result["oracle"]["allocation"] = allocation
        many.append(replace(evaluation, result=result))
    assert leading_agents(settings_of(many)) == [names[0], *names[-4:]]
    shares = share_table(many)
    assert [row["agent"] for row in shares] == [names[0], *names[-4:], "24 others"]
    for column in list(shares[0])[1:]:
        assert sum(float(row[column]) for row in shares) == pytest.approx(100, abs=0.3)
    for _, rows in tables_of(many):
        widths = [max(len(str(row.get(name, ""))) for row in [*filter(None, rows), {name: name}]) for name in rows[0]]
        assert sum(widths) + 2 * len(widths) < 180
    assert {f"share_{name}" for name in names} <= set(flat_rows(many)[0])
    assert share_table(swept[2]) == []


def test_a_sweep_takes_a_row_a_setting_and_a_few_settings_every_baseline(swept):
    at = {e.result["beta"]: with_regrets(e) for e in swept[2]}
    at[20.0] = with_regrets(at[20.0], best_constant=(0.0, 0.9), random_same_shares=(0.5, 0.001))
    table = comparison_table(list(at.values()))
    assert [row["beta"] for row in table] == ["0", "0.02", "0.05", "20", "40"]
    assert table[0]["best constant agent"] == "-0.100 [-0.120, -0.080]"
    assert table[3]["best constant agent"] == "+0.000 [-0.020, +0.020] ~"
    assert table[3]["random, same shares"] == "+0.500 [+0.480, +0.520] !"
    few = [at[0.0], at[20.0]]
    assert regret_table(few)[0]["against"] == f"best constant agent ({few[0].result['best_constant']})"
    shown, every = comparison_table(few), regret_table(few)
    assert [row["against"] for row in shown] == [row["against"] for row in every]
    assert [row["beta"] for row in every].count("0") == len(every) / 2
    assert [row["beta"] for row in shown].count("0") == 1
    verdicts = {(row["beta"], row["against"]): row[""] for row in every}
    assert verdicts["20", "random, same shares"] == "worse"
    assert verdicts["20", f"best constant agent ({few[1].result['best_constant']})"] == "no difference shown"
    assert verdicts["0", "confidence threshold"] == "better"
    rows = {row["rejector"] for row in paper_table(few) if row is not None}
    assert {"average of all agents", "confidence threshold", "oracle (lower bound)"} <= rows
    assert "random, shares of multi-task" in rows


def test_groups_are_a_kept_column_and_widen_intervals(swept):
    cache, runs, evaluations = swept
    table = load_tables(cache, ("test",))["test"]
    codes = read_groups(cache, table, "ward")
    wards = {}
    for chunk in range(cache.record.num_chunks):
        part = cache.samples(chunk, ["sample_id", "ward"])
        wards |= dict(zip(part["sample_id"].to_pylist(), part["ward"].to_pylist(), strict=True))
    pairs = {(code, wards[sample]) for code, sample in zip(codes.tolist(), table.ids, strict=True)}
    assert len(pairs) == len(set(wards.values())) == len(set(codes.tolist()))
    result = evaluate_runs(runs[:1], group="ward")[0].result
    assert result["num_groups"] == 3
    assert evaluations[0].result["num_groups"] is None
    assert result["deferral_loss"] == evaluations[0].result["deferral_loss"]
    assert findings(evaluate_runs(runs[:1], group="ward")) == [
        "multi-task: too few groups (3) to tell it from anything."
    ]
    assert read_groups(cache, table) is None
    with pytest.raises(UsageError, match="keeps no such column"):
        evaluate_runs(runs[:1], group="doctor")


def test_a_sample_without_a_group_is_named(swept, monkeypatch):
    import pyarrow as pa

    cache = swept[0]
    table = load_tables(cache, ("test",))["test"]
    read = type(cache).samples

    def with_gap(self, chunk, columns=None):
        part = read(self, chunk, columns)
        return part.set_column(1, "ward", pa.nulls(len(part), pa.string()))

    monkeypatch.setattr(type(cache), "samples", with_gap)
    with pytest.raises(DataError, match="has no 'ward'"):
        read_groups(cache, table, "ward")


def test_an_unavailable_agent_is_a_constant_with_a_stand_in_and_gets_no_sample(swept, monkeypatch):
    """Raw costs NaN here and there, as of an agent that answers only some samples."""

    _, runs, _ = swept
    generator = np.random.default_rng(0)

    def with_gaps(*arguments, **options):
        found = {}
        for split, table in load_tables(*arguments, **options).items():
            raw, failed = table.raw.clone(), np.zeros((len(table), len(table.predictions)), dtype=bool)
            gone = generator.random(len(table)) < 0.4
            raw[torch.from_numpy(gone), 1] = torch.nan
            failed[gone, 1] = True
            found[split] = replace(table, raw=raw, failed=failed)
        return found

    monkeypatch.setattr(l2d.rejector.evaluation.evaluate, "load_tables", with_gaps)
    evaluation: Evaluation = evaluate_runs(runs[:1])[0]
    result, costs = evaluation.result, evaluation.baselines.costs.numpy()
    gone = np.isinf(costs[:, 1])
    assert 0.2 < gone.mean() < 0.6
    assert not (evaluation.allocation[gone] == 1).any()
    assert np.isfinite(evaluation.losses).all()
    alone = result["agents"]["expert"]
    others = [name for name in result["agents"] if name not in ("expert", "everyone")]
    costs_of = dict(zip(result["allocation"], costs.T, strict=True))
    filled = [np.where(gone, costs_of[name], costs[:, 1]).mean() for name in others]
    assert any(alone["mean_cost"] == pytest.approx(value, abs=1e-6) for value in filled)
    assert alone["mean_cost_answered"] == pytest.approx(costs[~gone, 1].mean(), abs=1e-6)
    assert alone["answered"] == pytest.approx((~gone).mean())
    assert "mean_cost_answered" not in result["agents"]["model"]
    assert set(result["over_seeds"]["agents"]) == set(result["agents"])
    shares = np.bincount(evaluation.allocation, minlength=4) / len(gone)
    weights = shares * np.isfinite(costs)
    expected = (weights * np.where(np.isfinite(costs), costs, 0)).sum(axis=1) / weights.sum(axis=1)
    assert result["random_same_shares_loss"] == pytest.approx(expected.mean())
    assert result["oracle_loss"] == pytest.approx(costs.min(axis=1).mean())
    assert all(np.isfinite(losses).all() for losses in evaluation.against.values())
    assert paper_table([evaluation])
    assert findings([evaluation])
