"""The rejector as a scikit-learn estimator: its contract, the same training as elsewhere, and losses by hand."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array
from sklearn.utils.estimator_checks import estimator_checks_generator

from l2d import DeferralRejector
from l2d.data.errors import UsageError
from l2d.rejector.estimator import TRAINING
from l2d.rejector.settings import TrainConfig

QUICK = {"method": "multi-task", "hidden": 8, "epochs": 30, "lr": 0.02, "batch_size": 64}


def problem(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, and costs of three agents: the model is right where x0 < 0, an expert where x0 > 0, one never."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 3)) * [1, 100, 0.01] + [0, 5, 7]
    right = features[:, 0] > 0
    costs = np.stack([right, ~right, np.ones(rows)], axis=1) + 0.1 * generator.random((rows, 3))
    return features, costs


# --- scikit-learn's own checks ----------------------------------------------------------------------------------------


class OnLabels(DeferralRejector):
    """The checks hand out one number a sample as ``y``: here it becomes the costs of two agents."""

    def fit(self, X, y):
        return super().fit(X, as_costs(y))

    def score(self, X, y):
        return super().score(X, as_costs(y))


def as_costs(y: object) -> np.ndarray | None:
    if y is None:
        return None
    values = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y").reshape(len(y), -1)[:, 0]
    return np.stack([values - values.min(), values.max() - values], axis=1)


#: Checks left out, and why.
LEFT_OUT = {
    "check_fit_score_takes_y": "the second argument is called costs, which is what it is; OnLabels only hides that",
    "check_array_api_input": "needs SCIPY_ARRAY_API to be set before scipy is imported",
}
CHECKS = [
    (estimator, check)
    for settings in ({"method": "multi-task", "epochs": 2, "hidden": 4}, {})
    for estimator, check in estimator_checks_generator(OnLabels(**settings))
    if check.func.__name__ not in LEFT_OUT
]


@pytest.mark.parametrize(
    "position", range(len(CHECKS)), ids=lambda k: f"{CHECKS[k][0].method}-{CHECKS[k][1].func.__name__}"
)
@pytest.mark.slow
def test_scikit_learns_check(position):
    estimator, check = CHECKS[position]
    check(estimator)


def test_what_is_left_out_of_the_checks_is_there():
    names = {check.func.__name__ for _, check in estimator_checks_generator(OnLabels())}
    assert set(LEFT_OUT) <= names
    assert len(CHECKS) >= 70


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_it_learns_whom_to_ask_and_scores_as_counted_by_hand():
    features, costs = problem()
    rejector = DeferralRejector(**QUICK).fit(features, costs)
    new, new_costs = problem(seed=1)
    chosen = rejector.predict(new)
    assert chosen.dtype == np.int64
    assert np.mean(chosen == (new[:, 0] > 0)) > 0.95
    scores = rejector.decision_function(new)
    assert scores.shape == (300, 3)
    assert chosen.tolist() == scores.argmax(axis=1).tolist()
    paid = [row[agent] for row, agent in zip(new_costs, chosen, strict=True)]
    assert rejector.score(new, new_costs) == pytest.approx(-np.mean(paid), rel=1e-6)


def test_it_is_the_training_of_l2d_train():
    """Same rows, same seed: the same parameters as :func:`l2d.rejector.training.loop.train_grid` finds."""
    from l2d.rejector.costs import CostWeights
    from l2d.rejector.grid import GridPoint
    from l2d.rejector.rows.table import CostTable
    from l2d.rejector.training.loop import train_grid

    features, costs = problem()
    ours = DeferralRejector(seed=5, nu=0.5, weight_decay=0.1, **QUICK).fit(features, costs).rejector_
    order = np.random.default_rng(5).permutation(300)
    tables = [
        CostTable(
            split="",
            ids=[],
            features=torch.tensor(features[np.sort(rows)], dtype=torch.float32),
            raw=torch.tensor(costs[np.sort(rows)], dtype=torch.float32)[:, :, None],
        )
        for rows in (order[60:], order[:60])
    ]
    point = GridPoint(
        run_id="", method="multi-task", weights=CostWeights((("only", 1.0),)), beta=0.0, query_costs=(0.0,) * 3,
        nu=0.5, seed=5,
    )  # fmt: skip
    config = TrainConfig(weight_decay=0.1, **{name: value for name, value in QUICK.items() if name != "method"})
    expected = train_grid([point], *tables, config, tasks=["only"])[0]
    assert ours.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        assert torch.equal(ours.state[name], value), name
    assert ours.best_epoch == expected.best_epoch


BEYOND = {
    "unix seconds of a day": lambda x: 1.7e9 + 1e4 * x,
    "nanoseconds": lambda x: 1.7e18 + 1e13 * x,
    "beyond the range": lambda x: 1e45 * x,
    "below the range": lambda x: 1e-45 * x,
    "small": lambda x: 1e-9 * x,
}


@pytest.mark.parametrize("case", BEYOND)
def test_features_that_32_bits_cannot_hold_are_learnt_as_well_as_standardised_ones(case):
    features, costs = problem()
    new, new_costs = problem(seed=1)
    plain = DeferralRejector(**QUICK).fit(features, costs)
    moved, new_moved = features.astype(np.float64), new.astype(np.float64)
    for table in (moved, new_moved):
        table[:, 0] = BEYOND[case](table[:, 0])
    found = DeferralRejector(**QUICK).fit(moved, costs)
    np.testing.assert_allclose(found.decision_function(new_moved), plain.decision_function(new), atol=0.02)
    assert found.score(new_moved, new_costs) == pytest.approx(plain.score(new, new_costs), abs=0.01)


@pytest.mark.slow
def test_the_exported_model_takes_the_bits_that_the_features_need():
    onnxruntime = pytest.importorskip("onnxruntime")
    from l2d.rejector.export import onnx_model

    features, costs = problem()
    for move, kind in ((0.0, "tensor(float)"), (1.7e9, "tensor(double)")):
        moved = features.astype(np.float64) + move
        fitted = DeferralRejector(**QUICK).fit(moved, costs)
        content = onnx_model(fitted.rejector_, ["a", "b", "c"]).SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        assert entry.type == kind
        scores, agent = session.run(None, {entry.name: moved.astype(np.float64 if move else np.float32)})
        np.testing.assert_allclose(scores, fitted.decision_function(moved), atol=1e-4)
        assert np.mean(agent == fitted.predict(moved)) == 1


def test_a_new_value_that_no_float_holds_is_refused():
    features, costs = problem()
    fitted = DeferralRejector(**QUICK).fit(features, costs)
    features[3, 1] = np.finfo(np.float32).max
    features = features.astype(np.float64) * 10
    with pytest.raises(ValueError, match=r"X\[3, 1\] = .* is too far"):
        fitted.predict(features)


def test_weights_and_query_costs_are_those_of_the_sum():
    features, costs = problem()
    raw = np.stack([costs, np.random.default_rng(3).random(costs.shape)], axis=2)
    weights, query_costs = np.array([1.0, 0.5]), np.array([0.0, 0.25, 0.1])
    total = (raw * weights).sum(axis=2) + query_costs
    by_parts = DeferralRejector(weights=weights, query_costs=query_costs, **QUICK).fit(features, raw)
    summed = DeferralRejector(**QUICK).fit(features, total)
    np.testing.assert_allclose(
        by_parts.decision_function(features), summed.decision_function(features), rtol=1e-3, atol=1e-3
    )
    assert by_parts.score(features, raw) == pytest.approx(summed.score(features, total), abs=1e-5)
    unweighted = DeferralRejector(**QUICK).fit(features, raw)
    chosen = unweighted.predict(features)
    assert unweighted.score(features, raw) == pytest.approx(-raw.sum(axis=2)[np.arange(300), chosen].mean(), rel=1e-6)
    dear = DeferralRejector(query_costs=[0, 9, 9], **QUICK).fit(features, costs)
    assert set(dear.predict(features)) == {0}


@pytest.mark.parametrize(
    "settings",
    [{"network": "linear"}, {"network": "transformer"}, {"layers": 3}, {"loss": "regression"}, {"recentre": True}],
    ids=str,
)
def test_other_networks_and_losses(settings):
    features, costs = problem()
    rejector = DeferralRejector(**QUICK, **settings).fit(features, costs)
    assert rejector.score(features, costs) > -0.3
    config = asdict(rejector.rejector_.config)
    assert {name: config[name] for name in settings} == settings


# --- among other estimators -------------------------------------------------------------------------------------------


def test_it_works_in_a_pipeline_as_alone():
    """Standardising twice is standardising once, so both are the same rejector to rounding."""
    features, costs = problem()
    pipeline = make_pipeline(StandardScaler(), DeferralRejector(**QUICK)).fit(features, costs)
    alone = DeferralRejector(**QUICK).fit(features, costs)
    new, new_costs = problem(seed=1)
    assert np.mean(pipeline.predict(new) == alone.predict(new)) > 0.98
    assert pipeline.score(new, new_costs) == pytest.approx(alone.score(new, new_costs), abs=0.02)


@pytest.mark.parametrize("tasks", [None, 2])
def test_grid_search_finds_the_better_setting_with_the_scores_of_plain_loops(tasks):
    features, costs = problem(150)
    if tasks is not None:
        costs = np.repeat(costs[:, :, None], tasks, axis=2)
    settings = {"lr": [1e-6, 0.03], "nu": [1.0]}
    base = DeferralRejector(method="multi-task", hidden=8, epochs=15, batch_size=32)
    search = GridSearchCV(base, settings, cv=KFold(3), error_score="raise").fit(features, costs)
    assert search.best_params_["lr"] == 0.03
    for column, lr in enumerate(settings["lr"]):
        losses = []
        for train, held_out in KFold(3).split(features):
            fold = clone(base).set_params(lr=lr).fit(features[train], costs[train])
            chosen, total = fold.predict(features[held_out]), costs.reshape(150, 3, -1).sum(axis=2)[held_out]
            losses.append(total[np.arange(len(chosen)), chosen].mean())
        assert search.cv_results_["mean_test_score"][column] == pytest.approx(-np.mean(losses), rel=1e-5)
    assert search.score(features, costs) == search.best_estimator_.score(features, costs)


def test_costs_are_no_metadata_to_be_routed():
    assert not hasattr(DeferralRejector, "set_fit_request")
    assert not hasattr(DeferralRejector, "set_score_request")


def test_its_parameters_are_those_of_training_with_the_same_defaults():
    parameters = {name: p.default for name, p in inspect.signature(DeferralRejector).parameters.items()}
    config = asdict(TrainConfig())
    assert set(TRAINING) == set(config) - {
        "failures",
        "memory",
        "dropout",
        "router_cost",
        "classifier",
        "alpha",
        "train_rows",
        "guard",
        "fallback",
        "augment",
        "autocast",
        "backbone",
        "backbone_weights",
        "images",
        "image_size",
        "unfreeze",
    }
    assert {name: parameters[name] for name in TRAINING} == {name: config[name] for name in TRAINING}
    assert set(DeferralRejector().get_params()) == set(parameters)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, l2d\n"
        "assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "try: l2d.DeferalRejector\nexcept AttributeError as error: assert 'DeferalRejector' in str(error)\n"
        "else: raise SystemExit(1)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x, c: (x, None), "target y is None"),
        (lambda x, c: (x, c[:-1]), "inconsistent numbers of samples"),
        (lambda x, c: (x, c[:, :1]), "two agents or more"),
        (lambda x, c: (x, c[:, 0]), "Expected 2D array"),
        (lambda x, c: (x, c[:, :, None, None]), "two agents or more"),
        (lambda x, c: (x, c - 1), "costs are not negative"),
        (lambda x, c: (x, np.where(c > 1, np.nan, c)), "costs contains NaN"),
        (lambda x, c: (np.where(x > 6, np.inf, x), c), "X contains infinity"),
        (lambda x, c: (x[:1], c[:1]), "minimum of 2 is required"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(spoil, said):
    with pytest.raises(ValueError, match=said):
        DeferralRejector(**QUICK).fit(*spoil(*problem()))


@pytest.mark.parametrize(
    ("parameters", "kind", "said"),
    [
        ({"validation_fraction": 0.0}, ValueError, "between 0 and 1"),
        ({"weights": [1.0, 2.0]}, ValueError, "weights = .* 1 numbers"),
        ({"query_costs": [0.0, -1.0, 0.0]}, ValueError, "query_costs = .* 3 numbers >= 0"),
        ({"network": "forest"}, UsageError, "network = 'forest'"),
        ({"lr": -1.0}, UsageError, "lr = -1.0"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, kind, said):
    with pytest.raises(kind, match=said):
        DeferralRejector(**{**QUICK, **parameters}).fit(*problem())


def test_costs_of_other_agents_are_not_scored():
    features, costs = problem()
    rejector = DeferralRejector(**QUICK).fit(features, costs)
    with pytest.raises(ValueError, match="costs of 2 agents, but it was trained on those of 3"):
        rejector.score(features, costs[:, :2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"network": "transformer", "layers": 3}, "one block"), ({"network": "token_transformer"}, "reads token lists")],
)
def test_networks_that_features_cannot_have_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        DeferralRejector(method="multi-task", **settings).fit(np.zeros((8, 2)), np.ones((8, 2)))


# --- method best ------------------------------------------------------------------------------------------------------


def test_best_learns_whom_to_ask_from_answered_samples_alone():
    features, costs = problem(rows=600)
    costs = np.where(np.random.default_rng(2).random(costs.shape) < 0.2, np.nan, costs)
    rejector = DeferralRejector().fit(features, costs)
    new, new_costs = problem(seed=1)
    assert np.mean(rejector.predict(new) == (new[:, 0] > 0)) > 0.9
    paid = new_costs[np.arange(300), rejector.predict(new)]
    assert rejector.score(new, new_costs) == pytest.approx(-paid.mean(), rel=1e-6)
    with pytest.raises(ValueError, match="costs contains NaN"):
        rejector.score(features, costs)


@pytest.mark.slow
def test_best_scores_are_negated_costs_with_query_costs():
    features, costs = problem(rows=2000)
    free = DeferralRejector().fit(features, costs)
    dear = DeferralRejector(query_costs=[0, 0.25, 0.5]).fit(features, costs)
    new, new_costs = problem(rows=1000, seed=1)
    gap = -free.decision_function(new) - new_costs
    assert abs(gap.mean()) < 0.02
    np.testing.assert_allclose(
        free.decision_function(new) - dear.decision_function(new), [[0, 0.25, 0.5]] * 1000, atol=1e-6
    )


@pytest.mark.slow
def test_best_asks_one_agent_where_choosing_does_not_pay():
    generator = np.random.default_rng(0)
    features, costs = generator.normal(size=(300, 3)), generator.random((300, 3)) * [1, 0.5, 1]
    assert set(DeferralRejector(guard=5.0).fit(features, costs).predict(features)) == {1}
    assert set(DeferralRejector(guard=1e6, fallback=2).fit(*problem()).predict(features)) == {2}
    assert len(set(DeferralRejector(guard=0.0).fit(*problem()).predict(features))) > 1


def test_best_holds_features_that_32_bits_cannot():
    features, costs = problem(rows=600)
    new, _ = problem(seed=1)
    for table in (features, new):
        table[:, 0] = 1.7e9 + 1e4 * table[:, 0]
    assert np.mean(DeferralRejector().fit(features, costs).predict(new) == (new[:, 0] > 1.7e9)) > 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 5}, "epochs = 5: method 'best' has no such setting"),
        ({"nu": 2.0}, "nu = 2.0"),
        ({"method": "multi-task", "guard": 0.25}, "guard = 0.25: method 'multi-task' has no such setting"),
        ({"method": "forest"}, "method = 'forest'"),
        ({"guard": -1.0}, "guard = -1.0"),
        ({"fallback": 3}, "fallback = 3"),
    ],
)
def test_settings_of_another_method_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DeferralRejector(**settings).fit(*problem())


def test_best_with_costs_of_nothing_is_refused():
    features, costs = problem()
    with pytest.raises(ValueError, match="NaN everywhere"):
        DeferralRejector().fit(features, np.full_like(costs, np.nan))
