"""The theory of runs that predict costs: importances and explained shares against counts by hand and known worlds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import r2_score

from l2d.data.errors import UsageError
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.report.export import picture
from l2d.rejector.report.figures.theory import theory_figure
from l2d.rejector.rows.unlabelled import InputRecord
from l2d.rejector.runs.run import load_run
from l2d.rejector.theory import of_costs
from l2d.rejector.theory.importance import importances, source_columns
from l2d.rejector.theory.of_costs import LOSS, PREDICTABLE, WORTH, Judged
from l2d.rejector.theory.predictable import explained_shares, of_agents, of_differences
from l2d.rejector.theory.section import shown_parts, theory_section


def linear(x: np.ndarray) -> np.ndarray:
    """Costs of two agents: the first feature decides, the second adds to both, the third is not looked at."""
    return np.stack([x[:, 0] + x[:, 1], x[:, 1] - x[:, 0]], axis=1).astype(float)


COLUMNS = [("decides", slice(0, 1)), ("adds", slice(1, 2)), ("idle", slice(2, 3))]


def world(rows: int = 500, seed: int = 0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, 3)).astype(np.float32)
    return x, linear(x) + 0.5 * generator.standard_normal((rows, 2))


def found_of(x, costs, columns=COLUMNS, **options):
    told = importances(lambda rows, _: linear(rows), x, costs, columns, used=np.array([3.0, 2.0, 1.0]), **options)
    return {column.column: column for column in told.columns}, told


def test_importances_are_what_permuting_costs():
    x, costs = world()
    found, told = found_of(x, costs)
    assert (told.samples, told.repeats, told.left_out) == (500, 3, 0)
    assert told.columns[0].column == "decides"
    right, wrong = costs[np.arange(500), linear(x).argmin(axis=1)].mean(), costs.mean()
    assert found["decides"].loss.value == pytest.approx(wrong - right, abs=0.12)  # permuted, it is a coin
    assert found["decides"].loss.low > 0.5
    # With x' independent of x, the differences' errors rise by Var(2 x' - 2 x) = 8 of a spread of 4 + 2 * 0.25.
    assert found["decides"].explained.value == pytest.approx(8 / 4.5, abs=0.15)
    for name in ("adds", "idle"):  # what is the same for all agents decides nothing
        assert found[name].loss.value == found[name].loss.low == found[name].loss.high == 0
        assert abs(found[name].explained.value) < 1e-6
    again, _ = found_of(x, costs)
    assert again["decides"] == found["decides"]


def test_columns_of_one_source_are_permuted_together():
    """Two columns that hold one and the same feature's halves: apart, each would leave impossible rows."""
    x, costs = world()
    both, _ = found_of(x, costs, [("pair", slice(0, 2)), ("idle", slice(2, 3))])
    apart, _ = found_of(x, costs)
    assert both["pair"].width == 2
    assert both["pair"].loss.value == pytest.approx(apart["decides"].loss.value, abs=0.1)

    seen = []

    def spying(rows, which):
        seen.append(rows)
        return linear(rows)

    importances(spying, x, costs, [("pair", slice(0, 2))], used=np.ones(3))
    rows = {tuple(row) for row in x[:, :2].tolist()}
    assert all(tuple(row) in rows for row in np.concatenate(seen)[:, :2].tolist())


def test_time_is_bounded_and_what_is_left_out_is_said():
    x, costs = world(3000)
    _, told = found_of(x, costs)
    assert told.samples == 2000
    _, told = found_of(x, costs, predictions=3000)
    assert told.samples * told.repeats * 3 <= 3000
    found, told = found_of(x, costs, predictions=200)
    assert set(found) == {"decides", "adds"}  # those that are used most
    assert (told.samples, told.repeats, told.left_out) == (100, 1, 1)


def test_unavailable_agents_are_not_chosen_in_importances():
    x, costs = world()
    costs[:, 1] = np.inf
    found, _ = found_of(x, costs)
    assert found["decides"].loss.value == 0


def test_source_columns_are_those_of_the_recipe(patient_runs):
    run = load_run(patient_runs / "best")
    assert source_columns(run.input, 6) == [("x1", slice(0, 1)), ("x2", slice(1, 3)), ("ward", slice(3, 6))]
    record = InputRecord(column="features", made={"agent": "model"})
    assert source_columns(record, 2) == [("feature 0", slice(0, 1)), ("feature 1", slice(1, 2))]


def test_explained_shares_are_r_squared_against_the_fitted_means():
    generator = np.random.default_rng(0)
    raw = generator.random((400, 2, 1))
    predicted = raw + 0.2 * generator.standard_normal(raw.shape)
    raw[::3, 1] = np.nan
    shares = of_agents(predicted, raw, np.nanmean(raw, axis=0))
    there = ~np.isnan(raw[:, 1, 0])
    assert shares[0][0].value == pytest.approx(r2_score(raw[:, 0, 0], predicted[:, 0, 0]))
    assert shares[1][0].value == pytest.approx(r2_score(raw[there, 1, 0], predicted[there, 1, 0]))
    [differences] = of_differences(predicted, raw, np.nanmean(raw[there], axis=0))
    one, other = (values[there, 0, 0] - values[there, 1, 0] for values in (raw, predicted))
    assert differences.value == pytest.approx(r2_score(one, other))
    constant = of_agents(np.ones((50, 2, 1)), np.ones((50, 2, 1)), np.ones((2, 1)))
    assert constant == [[None], [None]]


def test_the_interval_of_an_explained_share_covers():
    """A world with a known share, 0.8: 95 % of intervals hold it, up to chance (400 draws; 5 standard deviations)."""
    generator, inside = np.random.default_rng(1), 0
    for _ in range(400):
        signal = generator.standard_normal(300)
        noise = 0.5 * generator.standard_normal(300)
        [share] = explained_shares([noise**2], [(signal + noise) ** 2], [None])
        inside += share.low <= 0.8 <= share.high
    assert abs(inside / 400 - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 400)


@pytest.fixture(scope="module")
def section(patient_runs):
    return theory_section(patient_runs / "best")


def test_the_loss_is_the_sum_of_its_parts_and_that_of_evaluate(patient_runs, section):
    loss = {key: found["value"] for key, found in section["parts"][LOSS].items()}
    [evaluated] = evaluate_runs([patient_runs / "best"])
    assert loss["run"] == pytest.approx(evaluated.result["deferral_loss"], abs=1e-6)
    assert loss["oracle"] == pytest.approx(evaluated.result["oracle_loss"], abs=1e-6)
    parts = ("oracle", "not_in_features", "data", "guard")
    assert sum(loss[key] for key in parts) == pytest.approx(loss["run"], abs=1e-9)


def test_the_section_has_agents_columns_and_a_picture(section):
    assert list(section["parts"]) == [LOSS, PREDICTABLE, WORTH]
    keys = section["parts"][PREDICTABLE]
    assert {"differences/cla", "differences/reg", "expert/cla", "asked/reg"} <= set(keys)
    assert set(section["parts"][WORTH]) == {"x1", "x2", "ward"} == {
        column["column"] for column in section["importances"]["columns"]
    }  # fmt: skip
    json.dumps(section, allow_nan=False)
    assert len(shown_parts(section)) == 3
    assert picture([theory_figure(section)], "png")[:4] == b"\x89PNG"


def test_splits_that_were_fitted_are_judged_by_models_that_have_not_seen_them(patient_runs):
    run = load_run(patient_runs / "best")
    judged = Judged.of(run, "validation")
    evaluated = evaluate_runs([patient_runs / "best"], "validation")[0].result
    assert judged.chosen_costs(judged.predicted).mean() == pytest.approx(evaluated["deferral_loss"], abs=1e-6)
    np.testing.assert_array_equal(
        judged.predicted, judged.model.predict_unseen(judged.table.features.numpy(), judged.table.ids)
    )
    assert judged.importances(300).samples > 0


def test_where_halves_would_take_minutes_it_says_so(patient_runs, monkeypatch):
    monkeypatch.setattr(of_costs, "MOST_FITTED", 10)
    found = theory_section(patient_runs / "best")["parts"][LOSS]["data"]
    assert found["value"] is None
    assert "minutes" in found["says"]


def test_too_few_samples_are_refused(patient_runs, monkeypatch):
    monkeypatch.setattr(of_costs, "FEWEST_SAMPLES", 10_000)
    with pytest.raises(UsageError, match="too few samples"):
        theory_section(patient_runs / "best")
