"""Attacks on rejectors: a linear one against its closed form, trees against all grid, and runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from l2d.data.errors import UsageError
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.robust import attack, robustness


def linear(agents: int, width: int, seed: int):
    random = np.random.default_rng(seed)
    weights, bias = random.normal(size=(width, agents)), random.normal(size=agents)
    return weights, bias, lambda x: (x @ weights + bias).astype(np.float32)


def test_a_linear_rejector_of_two_agents_is_moved_exactly_where_the_margin_allows():
    """max over the box of r_1 - r_0 is the margin plus ``radius * sum |w| scale``."""
    weights, bias, scores = linear(2, 5, 0)
    random = np.random.default_rng(1)
    x, scale = random.normal(size=(400, 5)).astype(np.float32), np.array([1.0, 0.5, 2.0, 1.0, 0.0])
    gap = weights[:, 1] - weights[:, 0]
    for radius in (0.05, 0.3):
        found = attack(scores, x, scale, radius, np.ones((400, 2), dtype=bool))
        margin, reach = x @ gap + bias[1] - bias[0], radius * np.abs(gap * scale).sum()
        wanted = np.stack([margin - reach <= 0, margin + reach > 0], axis=1)
        clear = np.abs(np.abs(margin) - reach) > 1e-4
        np.testing.assert_array_equal(found.reached[clear], wanted[clear])
        np.testing.assert_array_equal(found.clean, (margin > 0).astype(int))


def test_on_steps_of_a_tree_it_finds_nearly_all_that_a_fine_grid_finds():
    """What is found lies inside the box; a grid of 41 by 41 says what there is."""
    random = np.random.default_rng(3)
    x = random.normal(size=(300, 2)).astype(np.float32)

    def scores(rows: np.ndarray) -> np.ndarray:
        first = np.floor(2 * rows[:, 0]) - np.floor(2 * rows[:, 1])
        return np.stack([np.zeros(len(rows)), first - 0.5, -first - 0.5], axis=1).astype(np.float32)

    found = attack(scores, x, np.ones(2), 0.4, np.ones((300, 3), dtype=bool))
    grid = np.zeros((300, 3), dtype=bool)
    grid[np.arange(300), scores(x).argmax(axis=1)] = True
    for signs in itertools.product(np.linspace(-0.4, 0.4, 41), repeat=2):
        grid[np.arange(300), scores(x + np.array(signs, np.float32)).argmax(axis=1)] = True
    assert (found.reached <= grid).all()
    assert found.reached.sum() > 0.9 * grid.sum()


def test_an_unavailable_agent_is_never_reached_and_more_room_reaches_no_less():
    scores = linear(3, 4, 5)[2]
    x = np.random.default_rng(6).normal(size=(200, 4)).astype(np.float32)
    there = np.ones((200, 3), dtype=bool)
    there[:, 1] = False
    before = np.zeros((200, 3), dtype=bool)
    for radius in (0.01, 0.2, 1.0, 5.0):
        found = attack(scores, x, np.ones(4), radius, there)
        assert not found.reached[:, 1].any()
        assert (before <= found.reached).all()
        before = found.reached
    assert before[:, [0, 2]].all()


@pytest.fixture(scope="module")
def evaluated(make_cache, make_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust")
    cache = make_cache(folder)
    runs = make_runs(cache, folder / "runs", config={"network": "linear", "epochs": 5})
    return evaluate_runs(runs, "test")[0]


def test_a_run_under_attack_is_no_cheaper_and_is_attacked_on_the_samples_it_has(evaluated):
    found = robustness(evaluated, 0.3)
    assert found["samples"] == min(200, len(evaluated.losses))
    assert found["attacked_loss"] >= found["deferral_loss"] == pytest.approx(evaluated.losses.mean(), abs=1e-6)
    assert found["by"]["value"] == pytest.approx(found["attacked_loss"] - found["deferral_loss"])
    for share in found["targeted"].values():
        assert share["attacked"] >= share["clean"]
    tiny = robustness(evaluated, 1e-6)
    assert tiny["moved"] <= 0.02
    assert robustness(evaluated, 0.3, most=10)["samples"] == 10


@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf"), float("nan")])
def test_a_radius_that_is_none_is_refused(evaluated, radius):
    with pytest.raises(UsageError, match="--robust"):
        robustness(evaluated, radius)
