"""Training-free deferral: the model answers where a conformal set holds one class, else the expert who best tells the
classes of the set apart.

Source: Bary, Macq and Petit, *No Need for "Learning" to Defer? A Training Free Deferral Framework to Multiple Experts
through Conformal Prediction*, 2025, arXiv 2509.12573: the framework's figure and the segregativity criterion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from l2d.data.errors import UsageError
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss

#: Error rates of the conformal sets that are tried on validation. 1: no set has a class, so the model keeps all.
LEVELS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0)
ALONE, DEFERRED = 2.0, -1.0  # scores of the model; those of experts are shares


class Conformal:
    """Conformal sets of the model's classes, calibrated on validation; confusions of the experts, counted on training.

    The nonconformity of a class is one minus its probability (the paper's LAC). Left open by the paper, and so here:
    the level is that of the lowest deferral loss on validation, which also calibrates, so coverage is not guaranteed as
    for a level fixed beforehand; an empty set leaves the sample with the model; an expert who has answered no training
    sample of the set counts by its overall accuracy; query costs count in the choice of the level alone.
    """

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        chances, target = validation.probabilities, validation.target
        assert chances is not None  # these four: the method asks for them, see l2d.rejector.methods
        assert target is not None
        assert train.answers is not None
        assert train.target is not None
        known = ~validation.missing[:, 0]
        if not bool(known.any()):
            raise UsageError(
                "the model has answered no validation sample, so its sets cannot be calibrated",
                hint="choose agents with --only",
            )
        strange = 1 - chances.gather(1, target[:, None])[:, 0]
        confusions = confusion_counts(train.target, train.answers, chances.shape[1])
        found: list[tuple[float, Tensor]] = []
        for level in LEVELS:
            bound = conformal_bound(strange[known], level)
            scores = _scores(chances, confusions, bound)
            chosen = allocate(scores, ~validation.missing)
            found.append((float(deferral_loss(chosen, validation.costs).double().mean()), bound))
        risk, bound = min(reversed(found), key=lambda pair: pair[0])  # ties defer least
        return {"confusions": confusions, "bound": bound}, risk

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        assert chances is not None  # the method asks for them, see l2d.rejector.methods
        return _scores(chances, state["confusions"], state["bound"])


def conformal_bound(strange: Tensor, level: float) -> Tensor:
    """The split conformal quantile: the ``ceil((n + 1)(1 - level))``-th smallest nonconformity of n, infinite beyond n.

    A new exchangeable sample's true class is at most this strange with a probability of at least ``1 - level``.

    Args:
        strange: nonconformities of the true classes, (n,).
        level: error rate in (0, 1].

    Returns:
        A float32 scalar; negative infinity at a level of 1: nothing is so little strange.
    """
    exact = Fraction(repr(float(level)))  # as it is written: 10 * (1 - 0.1) may be a last bit above 9, and the rank 10
    rank = math.ceil((len(strange) + 1) * (1 - exact))
    if rank < 1:
        return torch.tensor(-math.inf)
    return torch.tensor(math.inf) if rank > len(strange) else strange.float().sort().values[rank - 1]


def confusion_counts(target: Tensor, answers: Tensor, num_classes: int) -> Tensor:
    """How often each expert says class b where class a is true, over the samples it has answered: (J, K, K).

    Args:
        target: true classes, (n,).
        answers: the experts' classes, (n, J), -1 where there is none.
        num_classes: K.
    """
    counts = torch.zeros(answers.shape[1], num_classes, num_classes)
    for expert, said in enumerate(answers.T):
        there = said >= 0
        cells = target[there] * num_classes + said[there]
        counts[expert] = torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes).float()
    return counts


def segregativity(confusions: Tensor, sets: Tensor) -> Tensor:
    """An expert's accuracy on the part of its confusion matrix whose rows and columns are in the set.

    Args:
        confusions: (J, K, K).
        sets: which classes, bool (n, K).

    Returns:
        (n, J); the overall accuracy where that part of the matrix is empty.
    """
    inside = sets.to(confusions.dtype)
    right = inside @ confusions.diagonal(dim1=1, dim2=2).T
    answered = torch.einsum("na,jab,nb->nj", inside, confusions, inside)
    overall = confusions.diagonal(dim1=1, dim2=2).sum(dim=1) / confusions.sum(dim=(1, 2)).clamp(min=1)
    return torch.where(answered > 0, right / answered.clamp(min=1), overall)


def _scores(chances: Tensor, confusions: Tensor, bound: Tensor) -> Tensor:
    sets = 1 - chances <= bound
    certain = sets.sum(dim=1) <= 1
    model = torch.where(certain, ALONE, DEFERRED)[:, None]
    return torch.cat([model, segregativity(confusions, sets).to(chances.dtype)], dim=1)
