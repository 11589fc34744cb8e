"""Training-free deferral: its quantile, confusions and segregativity against counts by hand, and its promise."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from l2d.rejector.literature.conformal import (
    Conformal,
    _scores,
    conformal_bound,
    confusion_counts,
    segregativity,
)
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss


def world(rows: int, seed: int, beta: float = 0.0) -> Samples:
    """Four classes; the model cannot tell 0 from 1, nor 2 from 3; expert A knows 0 and 1, expert B 2 and 3."""
    random = np.random.default_rng(seed)
    target = random.integers(0, 4, rows)
    pair = target // 2
    sure = random.random(rows) < 0.4
    chances = np.full((rows, 4), 0.01)
    chances[np.arange(rows), 2 * pair] = chances[np.arange(rows), 2 * pair + 1] = 0.49
    chances[sure] = 0.01
    chances[sure, target[sure]] = 0.97
    guess = 2 * random.integers(0, 2, rows) + random.integers(0, 2, rows)
    answers = np.stack([np.where(pair == known, target, guess) for known in (0, 1)], axis=1)
    wrong = np.concatenate([(chances.argmax(axis=1) != target)[:, None], answers != target[:, None]], axis=1)
    costs = torch.from_numpy(wrong).float() + torch.tensor([0.0, beta, beta])
    return Samples(
        x=torch.zeros(rows, 1),
        costs=costs,
        target=torch.from_numpy(target),
        probabilities=torch.from_numpy(chances).float(),
        right=1 - torch.from_numpy(wrong[:, 1:]).float(),
        answers=torch.from_numpy(answers),
    )


def test_the_quantile_is_the_papers_and_covers_as_promised():
    values = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3, 0.9, 0.7, 0.6, 0.8])  # n = 9: rank ceil(10 (1 - level))
    assert float(conformal_bound(values, 0.1)) == pytest.approx(0.9)
    assert float(conformal_bound(values, 0.2)) == pytest.approx(0.8)
    assert float(conformal_bound(values, 0.25)) == pytest.approx(0.8)
    assert float(conformal_bound(values, 0.05)) == math.inf
    assert float(conformal_bound(values, 1.0)) == -math.inf
    random = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        drawn = torch.from_numpy(random.random(20)).float()
        covered.append(float(drawn[0] <= conformal_bound(drawn[1:], 0.2)))
    assert np.mean(covered) == pytest.approx(0.8, abs=0.05)  # 16 of 20 ranks, exchangeable


def test_the_rank_of_the_quantile_is_that_of_exact_arithmetic():
    for count in range(1, 120):
        values = torch.arange(1.0, count + 1)
        for level in ("0.5", "0.4", "0.3", "0.2", "0.1", "0.05", "0.01"):
            rank = math.ceil((count + 1) * (1 - Fraction(level)))
            assert float(conformal_bound(values, float(level))) == (rank if rank <= count else math.inf), (count, level)


def test_segregativity_is_accuracy_inside_the_set():
    confusions = torch.tensor([[[8.0, 2, 0], [1, 5, 4], [0, 0, 0]], [[0, 0, 0], [0, 3, 3], [0, 0, 6]]])
    sets = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [False, False, True]])
    found = segregativity(confusions, sets)
    wanted = [[13 / 16, 3 / 3], [5 / 9, 9 / 12], [1.0, 9 / 12], [13 / 20, 1.0]]  # an empty part: all of the matrix
    assert found.tolist() == [pytest.approx(row) for row in wanted]


def test_confusions_count_answers_that_are_there():
    samples = world(300, 1)
    samples.answers[::3, 0] = -1
    counts = confusion_counts(samples.target, samples.answers, 4)
    for expert in range(2):
        for truth in range(4):
            for said in range(4):
                rows = (samples.target == truth) & (samples.answers[:, expert] == said)
                assert counts[expert, truth, said] == int(rows.sum())


def test_doubt_goes_to_the_expert_who_tells_these_classes_apart():
    """The property of the paper: better than the model and the best expert, with experts asked about doubts alone."""
    state, risk = Conformal().learn(world(600, 2), world(600, 3))
    test = world(2000, 4)
    scores = Conformal().scores(state, test.x, test.probabilities, 3)
    chosen = allocate(scores)
    doubt = test.probabilities.amax(dim=1) < 0.9
    assert (chosen[~doubt] == 0).all()
    assert (chosen[doubt] == 1 + test.target[doubt] // 2).all()
    loss = float(deferral_loss(chosen, test.costs).mean())
    assert loss == pytest.approx(risk) == 0.0
    assert float(test.costs.mean(dim=0).min()) > 0.2
    assert float((chosen > 0).float().mean()) == pytest.approx(0.6, abs=0.05)


def test_queries_that_cost_more_than_doubt_leave_everything_with_the_model():
    state, risk = Conformal().learn(world(600, 2), world(600, 3, beta=0.8))
    assert float(state["bound"]) == -math.inf
    scores = _scores(world(50, 5).probabilities, state["confusions"], state["bound"])
    assert (allocate(scores) == 0).all()
    assert risk == pytest.approx(float(world(600, 3).costs[:, 0].mean()))
