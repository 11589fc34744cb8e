"""Method ``best`` on input that leaves little to learn; its models as an ONNX graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from l2d.rejector.best.folds import FOLDS, contrasts, fold_of
from l2d.rejector.best.graph import Graph, at_most_in_float32
from l2d.rejector.best.model import CostModel, fit_costs


def problem(
    rows: int = 400, agents: int = 3, width: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features, raw costs of one task (each agent errs where its own feature is high), and ids."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, width)).astype(np.float32)
    chance = 1 / (1 + np.exp(-3 * x[:, np.arange(agents) % width]))
    return x, (generator.random((rows, agents)) < chance)[:, :, None].astype(np.float32), [f"s{k}" for k in range(rows)]


def chosen(model: CostModel, x: np.ndarray) -> np.ndarray:
    return model.predict(x).sum(axis=2).argmin(axis=1)


# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_whatever_the_threads():
    x, raw, ids = problem()
    new, _, _ = problem(seed=2)
    alone, two = (fit_costs(x, raw, ids, threads=threads).predict(new) for threads in (1, 2))
    assert np.array_equal(alone, two)
    assert not np.array_equal(alone, fit_costs(x, raw, ids, seed=1).predict(new))


def test_a_sample_is_judged_by_models_that_have_not_seen_it():
    """Costs that features say nothing of: what has been learnt by heart would show in the fitted samples alone."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 5)).astype(np.float32)
    raw = (generator.random((600, 2, 1)) < 0.5).astype(np.float32)
    ids = [str(k) for k in range(600)]
    model, fold = fit_costs(x, raw, ids), fold_of(ids)
    there = np.ones((600, 2), bool)
    wanted = contrasts(raw, there)[0].ravel()

    def heart(predict) -> float:
        found = np.concatenate([predict(number) for number in range(FOLDS)])
        order = np.concatenate([np.flatnonzero(fold == number) for number in range(FOLDS)])
        mine = contrasts(found[:, :, None], there)[0].ravel()
        return float(np.corrcoef(mine, wanted.reshape(600, 2)[order].ravel())[0, 1])

    unseen = heart(lambda number: model.forests[number].predict(x[fold == number]))
    seen = heart(lambda number: model.forests[(number + 1) % FOLDS].predict(x[fold == number]))
    assert seen > 0.3
    assert abs(unseen) < 0.1


# --- little to learn --------------------------------------------------------------------------------------------------


def narrow(x, raw, ids):
    return np.ones_like(x), raw, ids


def equal(x, raw, ids):
    return x, np.repeat(raw[:, :1], raw.shape[1], axis=1), ids


def wide(x, raw, ids):
    return np.random.default_rng(0).normal(size=(60, 300)).astype(np.float32), raw[:60], ids[:60]


def one_answer_each(x, raw, ids):
    kept = np.full_like(raw, np.nan)
    for agent in range(raw.shape[1]):
        kept[agent, agent] = raw[agent, agent]
    return x[: raw.shape[1]], kept[: raw.shape[1]], ids[: raw.shape[1]]


def one_row(x, raw, ids):
    return x[:1], raw[:1], ids[:1]


def never(x, raw, ids):
    raw = raw.copy()
    raw[:, 0] = np.nan
    return x, raw, ids


def hardly(x, raw, ids):
    raw = raw.copy()
    raw[1:, 1] = np.nan
    return x, raw, ids


def constant_column(x, raw, ids):
    x = x.copy()
    x[:, 1] = 7
    return x, raw, ids


@pytest.mark.parametrize(
    "spoil", [narrow, equal, wide, one_answer_each, one_row, never, hardly, constant_column], ids=lambda f: f.__name__
)
def test_costs_are_finite_whatever_is_missing(spoil):
    x, raw, ids = spoil(*problem())
    model = fit_costs(x, raw, ids)
    for found in (model.predict(x), model.predict_unseen(x, ids)):
        assert found.shape == raw.shape
        assert np.isfinite(found).all()


@pytest.mark.parametrize("spoil", [narrow, equal], ids=lambda f: f.__name__)
def test_where_nothing_can_be_told_apart_costs_are_the_agents_means(spoil):
    x, raw, ids = spoil(*problem())
    found = fit_costs(x, raw, ids).predict(x)
    np.testing.assert_allclose(found, np.broadcast_to(raw.mean(axis=0, dtype=np.float64), raw.shape), atol=1e-6)


def test_an_agent_that_never_answered_is_not_asked():
    x, raw, ids = never(*problem())
    assert 0 not in chosen(fit_costs(x, raw, ids), x)
    x, raw, ids = never(*problem(agents=2))
    assert set(chosen(fit_costs(x, raw, ids), x)) == {1}
    assert set(chosen(fit_costs(x[:5], raw[:5], ids[:5]), x)) == {1}


@pytest.mark.slow
def test_five_hundred_agents():
    x, raw, ids = problem(rows=200, agents=500)
    raw[np.random.default_rng(0).random(raw.shape) < 0.1] = np.nan
    found = fit_costs(x, raw, ids).predict(x[:3])
    assert found.shape == (3, 500, 1)
    assert np.isfinite(found).all()


# --- as a graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [lambda *given: given, equal, never], ids=["plain", "equal", "never"])
def test_the_onnx_graph_predicts_the_same_costs(spoil):
    x, raw, ids = spoil(*problem())
    model = fit_costs(x, raw, ids)
    graph = Graph()
    graph.node("Identity", graph.costs("features", model), name="costs")
    content = graph.model(4, [("costs", np.float64, ("batch", 3, 1))]).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    new, _, _ = problem(seed=3)
    for rows in (new[:1], new[:7], new):
        (found,) = session.run(None, {"features": rows})
        np.testing.assert_allclose(found, model.predict(rows), atol=1e-12)


def test_a_threshold_in_32_bits_sends_every_float32_the_same_way():
    generator = np.random.default_rng(0)
    thresholds = np.concatenate([generator.normal(size=1000), [0.0, 1e-300, -1e-300, 1.0, 16777217.0]])
    narrowed = at_most_in_float32(thresholds)
    around = np.stack([np.nextafter(narrowed, np.float32(way)) for way in (-np.inf, np.inf)] + [narrowed])
    assert np.array_equal(around.astype(np.float64) <= thresholds, around <= narrowed)
