"""The default method: cost models against plain loops, and what it decides on worlds with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.ensemble import ExtraTreesRegressor

from l2d.rejector.best.folds import FOLDS, contrasts, fold_of
from l2d.rejector.best.guard import DEFAULT, Guard
from l2d.rejector.best.linear import PENALTIES as RIDGE_PENALTIES
from l2d.rejector.best.linear import Basis, Inputs, _fits, _shared
from l2d.rejector.best.model import CostModel, fit_costs
from l2d.rejector.best.scorer import model_of
from l2d.rejector.best.stacking import Stacking
from l2d.rejector.best.trained import state_of
from l2d.rejector.best.trees import PENALTIES, Forest, Grown, compiled_tree, grow, walk


def world(rows: int, *, agents: int = 3, tasks: int = 1, seed: int = 0, width: int = 6):
    """Features, raw costs whose contrasts depend on the first two features, and ids."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, width)).astype(np.float32)
    expected = 0.5 + 0.4 * np.tanh(x[:, :1] * np.linspace(-1, 1, agents) + 0.3 * x[:, 1:2])
    raw = (random.random((rows, agents, tasks)) < expected[:, :, None]).astype(np.float64)
    return x, raw, [f"sample {number}" for number in range(rows)], expected


def test_a_fold_belongs_to_an_id_and_folds_are_about_even():
    ids = [f"q{number}" for number in range(5000)]
    fold = fold_of(ids)
    assert (fold_of(ids[::-1])[::-1] == fold).all()
    assert np.bincount(fold, minlength=FOLDS).min() > 0.8 * 5000 / FOLDS


def test_a_forest_predicts_what_scikit_learn_does():
    x, raw, _, _ = world(400)
    costs = raw[:, :, 0]
    trees = grow(x, costs, seed=3, trees=15)
    forest = Grown.of(trees, x, costs, np.ones_like(costs, bool)).only(0).forest
    model = ExtraTreesRegressor(15, min_samples_leaf=5, random_state=3).fit(x, costs)
    new = world(300, seed=9)[0]
    np.testing.assert_allclose(forest.predict(new), model.predict(new), atol=1e-6)
    forest.check(x.shape[1])


def test_both_traversals_find_the_same_leaves():
    x, raw, _, _ = world(500, seed=4)
    forest = Grown.of(grow(x, raw[:, :, 0], seed=0, trees=8), x, raw[:, :, 0], np.ones((500, 3), bool)).forest
    new = world(200, seed=5)[0]
    new[0, 0] = forest.threshold[forest.left >= 0][0]  # on a threshold: left
    ends = [*forest.roots[1:].tolist(), len(forest.left)]
    for start, end in zip(forest.roots.tolist(), ends, strict=True):
        assert (walk(forest, start, new) == compiled_tree(forest, start, end).apply(new) + start).all()
    level_by_level = forest.predict(new, compiled=False)
    np.testing.assert_array_equal(forest.predict(new, compiled=True), level_by_level)
    for rows in (slice(None), slice(0, 1), slice(0, 0), slice(0, 13)):  # by our own, where it was compiled
        np.testing.assert_array_equal(forest.predict(new[rows]), level_by_level[rows])


def test_rows_too_narrow_for_a_forest_are_refused_however_it_is_walked():
    x, raw, _, _ = world(100)
    forest = Grown.of(grow(x, raw[:, :, 0], seed=0, trees=2), x, raw[:, :, 0], np.ones((100, 3), bool)).forest
    for compiled in (None, False):
        with pytest.raises(IndexError):
            forest.predict(x[:, :1], compiled=compiled)


def test_shrunken_costs_follow_the_formula_node_by_node():
    x, raw, _, _ = world(200, seed=7)
    costs = raw[:, :, 0]
    answered = np.random.default_rng(0).random(costs.shape) < 0.7
    [tree] = grow(x, costs, seed=0, trees=1)
    grown = Grown.of([tree], x, costs, answered)
    path = tree.decision_path(x).toarray().astype(bool)  # (n, nodes)
    for position, penalty in enumerate(PENALTIES):
        predicted = grown.predict(x)[position]
        for row in (0, 50, 199):
            nodes = np.flatnonzero(path[row])
            for output in range(3):
                value, before = None, None
                for node in nodes:
                    inside = path[:, node] & answered[:, output]
                    mean = costs[inside, output].mean() if inside.any() else None
                    if value is None:
                        value = mean
                    elif mean is not None:
                        value += (mean - before[0]) / (1 + penalty / before[1])
                    before = (mean, inside.sum()) if mean is not None else (0.0, 1)
                assert predicted[row, output] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("rows", [300, 900], ids=["fewer rows than inputs", "more"])
@pytest.mark.parametrize("agents", [3, 80], ids=["own equations", "shared"])
def test_ridge_equals_the_normal_equations_on_answered_rows(rows, agents):
    x, raw, ids, _ = world(rows, agents=agents, seed=2)
    costs, answered, fold = raw[:, :, 0], np.random.default_rng(1).random((rows, agents)) < 0.6, fold_of(ids)
    answered[:, 2] = True
    inputs = Basis.of(x, 0)(x)
    found = _fits(Inputs(x, Basis.of(x, 0)), costs, answered, fold, np.zeros((FOLDS, agents)))
    for number in (0, 3):
        for position, penalty in enumerate(RIDGE_PENALTIES):
            for output in range(3) if agents == 3 else (2,):  # equations that are shared are exact of all rows
                counted = answered[:, output] & (fold != number)
                z, y = inputs[counted], costs[counted, output]
                centred = z - z.mean(axis=0)
                weights = np.linalg.solve(
                    centred.T @ centred + penalty * np.eye(z.shape[1]), centred.T @ (y - y.mean())
                )
                ridge = found[number][position]
                np.testing.assert_allclose(ridge.weights[:, output], weights, atol=1e-8)
                assert ridge.intercept[output] == pytest.approx(y.mean() - z.mean(axis=0) @ weights)


def test_shared_equations_are_near_an_agents_own_where_answers_are_missing_at_random():
    x, raw, ids, _ = world(4000, agents=3, seed=2)
    costs, answered = raw[:, :, 0], np.random.default_rng(1).random((4000, 3)) < 0.5
    inputs = Inputs(x, Basis.of(x, 0))
    own = _fits(inputs, costs, answered, fold_of(ids), np.zeros((FOLDS, 3)))[0][2]
    shared = _shared(inputs, costs, answered, fold_of(ids) != 0)[2]
    z = Basis.of(x, 0)(x)
    own, shared = own(z), z @ shared[0] + shared[1]
    assert np.corrcoef(own.ravel(), shared.ravel())[0, 1] > 0.98


def test_stacking_leaves_good_predictions_alone_and_shrinks_noise():
    random = np.random.default_rng(0)
    truth = random.random((2000, 3, 2))
    costs = truth + 0.1 * random.standard_normal(truth.shape)
    everybody = np.ones((2000, 3), bool)
    noise = random.random(truth.shape)
    found = Stacking.fit([truth, noise], costs, everybody)
    np.testing.assert_allclose(found.difference, [[1, 1], [0, 0]], atol=0.03)
    assert np.abs(found([truth, noise]) - truth).max() < 0.05
    assert abs(found([truth, noise]).mean() - costs.mean()) < 1e-9


def test_contrasts_are_over_the_agents_that_answered():
    costs = np.array([[[1.0], [3.0], [np.nan]]])
    difference, mean = contrasts(costs, np.array([[True, True, False]]))
    assert difference.ravel().tolist() == [-1, 1, 0]
    assert mean.tolist() == [[2]]


def test_seen_samples_are_predicted_by_the_fold_that_has_not_seen_them():
    """Each fold's models are those of scikit-learn and of the normal equations on the other folds' samples alone."""
    x, raw, ids, _ = world(300, seed=1)
    model, fold = fit_costs(x, raw, ids), fold_of(ids)
    costs = raw[:, :, 0]
    for number in range(FOLDS):
        seen = fold != number
        np.testing.assert_allclose(model.means[number][:, 0], costs[seen].mean(axis=0))
        z = Basis.of(x, 0)(x[seen])
        z, y = z - z.mean(axis=0), costs[seen] - costs[seen].mean(axis=0)
        others = [np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ y) for penalty in RIDGE_PENALTIES]
        assert any(np.allclose(model.ridges[number].weights, weights) for weights in others)
    expected = np.empty_like(raw)
    for number in range(FOLDS):
        rows = fold == number
        members = [
            model.forests[number].predict(x[rows])[:, :, None],
            model.ridges[number](Basis.of(x, 0)(x[rows]))[:, :, None],
            np.broadcast_to(model.means[number], (rows.sum(), 3, 1)),
        ]
        expected[rows] = model.stacking(members)
    np.testing.assert_allclose(model.predict_unseen(x, ids), expected, atol=1e-6)  # rounded: rejector/scoring.py


def test_a_row_has_the_same_bits_alone_and_among_others():
    x, raw, ids, _ = world(400, agents=4, tasks=2)
    model = fit_costs(x, raw, ids)
    new = world(700, seed=8)[0]
    together = model.predict(new)
    order = np.random.default_rng(3).permutation(700)
    np.testing.assert_array_equal(model.predict(new[order]), together[order])
    for row in (0, 255, 256, 699):
        np.testing.assert_array_equal(model.predict(new[row : row + 1])[0], together[row])


def test_a_state_is_read_back_to_the_same_bits(tmp_path):
    from safetensors.numpy import save_file

    x, raw, ids, _ = world(200, tasks=2)
    model = fit_costs(x, raw, ids)
    save_file(state_of(model, x.mean(axis=0), x.std(axis=0)), tmp_path / "model.safetensors")
    again = model_of(load_file(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    np.testing.assert_array_equal(again.predict_unseen(x, ids), model.predict_unseen(x, ids))


@pytest.mark.slow
def test_it_finds_the_better_agent_where_that_can_be_known():
    x, raw, ids, _ = world(3000)
    model = fit_costs(x, raw, ids)
    new, _, _, expected = world(2000, seed=1)
    chosen = model.predict(new)[:, :, 0].argmin(axis=1)
    rows = np.arange(len(new))
    best, constant = expected.min(axis=1).mean(), expected.mean(axis=0).min()
    assert expected[rows, chosen].mean() < best + 0.15 * (constant - best)


def test_the_guard_is_a_paired_comparison_with_the_constant():
    predicted = np.array([[0.0, 1], [1, 0], [0, 1], [0, 1]])
    costs = np.array([[0.1, 0.5], [0.6, 0.2], [0.3, 0.4], [0.2, np.inf]])
    guard = Guard.of(predicted, costs, z=0.5)
    gains = np.array([0, 0.4, 0, 0])  # always the first against the first but for the second row
    assert guard.fallback == 0
    assert guard.gain == pytest.approx(gains.mean())
    assert guard.standard_error == pytest.approx(gains.std(ddof=1) / 2)
    assert not guard.holds
    assert Guard.of(predicted, costs, z=5).holds
    assert not Guard.of(predicted, costs, z=0).holds
    assert Guard.of(predicted, costs, z=0.5, fallback=1).fallback == 1


def test_where_differences_are_predicted_the_guard_gives_way_before_decisions_show_it():
    """Decisions that are right but seldom, and predictions that are nearer in every sample."""
    random = np.random.default_rng(0)
    said = 0.5 + 0.4 * np.stack([np.zeros(400), random.uniform(-1, 1, 400)], axis=1) + [0, 0.39]
    costs = np.clip(said + 0.1 * random.standard_normal(said.shape), 0, None)
    means = np.tile(costs.mean(axis=0), (400, 1))
    apart = lambda values: values[:, 1] - values[:, 0]  # noqa: E731
    gains = ((apart(costs) - apart(means)) ** 2 - (apart(costs) - apart(said)) ** 2) / 2
    guard = Guard.of(said, costs, z=1)
    assert guard.nearer == pytest.approx(gains.mean() / (gains.std(ddof=1) / 20))
    assert guard.nearer > 10
    assert guard.gain < guard.standard_error
    assert not guard.holds
    assert Guard.of(said, costs, z=50).holds
    assert Guard.of(means, costs, z=1).holds
    assert Guard.of(means, costs, z=1).nearer == 0


@pytest.mark.parametrize("agents", [2, 6])
def test_where_features_tell_nothing_the_run_is_the_constant(agents):
    held = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        x = random.standard_normal((400, 6)).astype(np.float32)
        raw = (random.random((400, agents, 1)) < np.linspace(0.25, 0.4, agents)[:, None]).astype(np.float32)
        ids = [f"{seed} {row}" for row in range(400)]
        unseen = fit_costs(x, raw, ids, seed=seed).predict_unseen(x, ids)
        held += Guard.of(unseen[:, :, 0], raw[:, :, 0].astype(float), z=DEFAULT).holds
    assert held >= 7


# --- bad input --------------------------------------------------------------------------------------------------------


def mean_only(model: CostModel) -> bool:
    return model.basis is None


def test_equal_agents_a_constant_feature_and_few_rows_give_the_means():
    x, raw, ids, _ = world(100)
    same = np.repeat(raw[:, :1], 3, axis=1)
    assert mean_only(fit_costs(x, same, ids))
    assert mean_only(fit_costs(np.ones_like(x), raw, ids))
    few = fit_costs(x[:3], raw[:3], ids[:3])
    assert mean_only(few)
    np.testing.assert_allclose(few.predict(x)[0, :, 0], raw[:3].mean(axis=0)[:, 0])


def test_an_agent_that_never_answers_and_one_that_answers_once():
    x, raw, ids, _ = world(200)
    raw[:, 1] = np.nan
    raw[1:, 2] = np.nan
    model = fit_costs(x, raw, ids)
    found = model.predict(x)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_more_features_than_rows_and_many_agents():
    x, raw, ids, _ = world(60, width=200)
    assert np.isfinite(fit_costs(x, raw, ids).predict(x)).all()
    x, raw, ids, _ = world(80, agents=500)
    assert fit_costs(x, raw, ids).predict(x).shape == (80, 500, 1)


def test_arrays_that_are_not_trees_are_refused():
    x, raw, _, _ = world(100)
    forest = Grown.of(grow(x, raw[:, :, 0], seed=0, trees=2), x, raw[:, :, 0], np.ones((100, 3), bool)).forest
    fields = vars(forest)

    def broken(**changed):
        return Forest(**{**fields, **changed})

    backwards = forest.left.copy()
    backwards[np.flatnonzero(backwards >= 0)[1]] = 0
    far = forest.right.copy()
    far[np.flatnonzero(forest.left >= 0)[0]] = 10**6
    end = np.append(forest.roots, np.int32(len(forest.left)))
    for bad in (broken(left=backwards), broken(right=far), broken(values=forest.values[:1]), broken(roots=end)):
        with pytest.raises(ValueError, match="not trees"):
            bad.check(x.shape[1])
        with pytest.raises((ValueError, IndexError)):
            bad.predict(x)
    with pytest.raises(ValueError, match="not trees"):
        forest.check(1)


# --- agents that were fitted on training samples ----------------------------------------------------------------------


def flattered(rows: int = 6000, *, by: float, agents: int = 3, seed: int = 0):
    """A world in which training samples (three of four) show the first agent's errors times ``by`` only."""
    x, raw, ids, expected = world(rows, agents=agents, seed=seed)
    held = np.arange(rows) % 4 == 3
    hidden = np.random.default_rng(9).random(rows) >= by
    raw[hidden & ~held, 0] = 0
    return x, raw, ids, held, expected


def test_an_agent_that_was_fitted_on_the_training_samples_is_seen_through():
    x, raw, ids, held, _ = flattered(by=0.6)
    model, blind = fit_costs(x, raw, ids, held=held), fit_costs(x, raw, ids)
    new, _, _, truth = world(4000, seed=1)
    np.testing.assert_allclose(model.factor[1:], 1, atol=0.06)
    assert abs(model.predict(new)[:, 0].mean() / truth[:, 0].mean() - 1) < 0.05
    assert blind.predict(new)[:, 0].mean() / truth[:, 0].mean() < 0.8
    assert (blind.factor == 1).all()

    def paid(found):
        return truth[np.arange(len(new)), found.predict(new)[:, :, 0].argmin(axis=1)].mean()

    assert paid(model) < paid(blind) - 0.002


def test_where_no_agent_is_flattered_little_is_corrected():
    """By chance alone the ratios differ: of forty agents none is corrected by more than a fraction of its error."""
    x, raw, ids, held, _ = flattered(3000, by=1.0, agents=40)
    factor = fit_costs(x, raw, ids, held=held).factor[:, 0]
    ratio = raw[held, :, 0].mean(axis=0) / raw[~held, :, 0].mean(axis=0)
    assert np.abs(factor - 1).mean() < 0.4 * np.abs(ratio - 1).mean()


def test_a_flattered_constant_is_not_fallen_back_on():
    """Where nothing can be told apart, the constant is the agent that is cheapest on new samples."""
    random = np.random.default_rng(0)
    held = np.arange(4000) % 4 == 3
    raw = (random.random((4000, 2, 1)) < np.array([0.3, 0.25])[:, None]).astype(np.float32)
    raw[~held & (random.random(4000) < 0.6), 0] = 0  # the first seems to cost 0.12 on training samples
    x, ids = np.ones((4000, 2), np.float32), [str(row) for row in range(4000)]
    assert fit_costs(x, raw, ids, held=held).predict(x)[0, :, 0].argmin() == 1
    assert fit_costs(x, raw, ids).predict(x)[0, :, 0].argmin() == 0


def test_threads_and_blocks_do_not_change_a_bit():
    x, raw, ids, _ = world(400, agents=4, tasks=2)
    model = fit_costs(x, raw, ids)
    new = world(9000, seed=8)[0]
    together = model.predict(new, threads=3)
    np.testing.assert_array_equal(together, model.predict(new))
    np.testing.assert_array_equal(together[5000:5003], model.predict(new[5000:5003]))
