"""Agents that answer some samples and not others, and whether that depends on the features.

Models of an agent's costs are fitted where it answered. Where answering depends on the features, those samples are not
like all samples, and what models shrink towards, such as an agent's mean cost, is that of the wrong ones. Each answer
then counts in inverse proportion to the chance that it was given (Horvitz and Thompson 1952; Seaman and White, *Review
of inverse probability weighting for dealing with missing data*, Statistical Methods in Medical Research 2013), times
the share of samples that the agent answered (stabilised), and at most :data:`MOST_WEIGHT` times (Cole and Hernán,
*Constructing inverse probability weights for marginal structural models*, American Journal of Epidemiology 2008). This
corrects for what is in the features; for what is not nothing can.

Weights cost variance, so both ways are fitted and compared on held-out answers. Answers are few just where weights
matter most, so that comparison is blunt: it is a veto. Weights stay unless they raise the held-out error by more than
:data:`VETO` standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from l2d.rejector.best.folds import FOLDS
from l2d.rejector.best.trees import PENALTIES, Grown, grow

TREES, MOST_PATTERNS = 20, 40
#: Share of samples that an agent has to lack at least, for its answering to matter.
LACKS = 0.02
FEWEST = 50  # samples answered, and not answered
#: Standard errors by which the chance has to be predicted better than by the agent's share.
DEPENDS = 3.0
MOST_WEIGHT = 10.0
#: A chance below which nothing is known of an agent's costs, and the share of samples from which on that is warned of.
HARDLY, WARNED_FROM = 0.05, 0.05
#: Standard errors by which weights may raise the held-out error. Measured: docs/methods.md.
VETO = 1.0


@dataclass(frozen=True)
class Answering:
    """Which agents' answering depends on the features, and what was made of that.

    Attributes:
        agents: positions of those agents.
        explained: share of the variance of answering that features explain on held-out samples, one an agent.
        hardly: share of the samples where the chance of an answer is below :data:`HARDLY`, likewise.
        weights: of each answer, float32 (n, agents), 0 where there is none; held-out chances are in them.
        gain: by what share weights lower the held-out error, with its standard error; None before both are fitted.
        used: whether answers are weighted.
    """

    agents: list[int]
    explained: list[float]
    hardly: list[float]
    weights: np.ndarray
    gain: tuple[float, float] | None = None
    used: bool = False

    @classmethod
    def of(
        cls, x: np.ndarray, answered: np.ndarray, fold: np.ndarray, *, seed: int = 0, threads: int | None = None
    ) -> Answering | None:
        """Fit chances of answering; None where answers are missing nowhere, rarely, or at random.

        Args:
            x: features, float32 (n, width).
            answered: bool (n, agents).
            fold: of each sample, int64 (n,).
        """
        n, count = len(answered), answered.sum(axis=0)
        some = np.flatnonzero((count >= FEWEST) & (n - count >= max(FEWEST, LACKS * n)))
        if not len(some):
            return None
        patterns, which = np.unique(answered[:, some], axis=1, return_inverse=True)
        chance = chances(x, patterns, fold, seed=seed, threads=threads)
        share = np.stack([patterns[fold != number].mean(axis=0) for number in range(FOLDS)])[fold]
        better = (patterns - share) ** 2 - (patterns - chance) ** 2
        error = better.std(axis=0, ddof=1) / np.sqrt(n)
        depends = better.mean(axis=0) > DEPENDS * np.maximum(error, 1e-12)
        explained = better.mean(axis=0) / ((patterns - share) ** 2).mean(axis=0)
        which = which.ravel()
        chosen = np.flatnonzero(depends[which])
        if not len(chosen):
            return None
        weights = answered.astype(np.float32)
        for position in chosen:
            pattern = which[position]
            weight = patterns[:, pattern].mean() / np.maximum(chance[:, pattern], 1e-6)
            weight = np.minimum(weight, MOST_WEIGHT)[patterns[:, pattern]]
            weights[patterns[:, pattern], some[position]] = weight / weight.mean()
        low = (chance < HARDLY).mean(axis=0)
        return cls(
            agents=some[chosen].tolist(),
            explained=explained[which[chosen]].tolist(),
            hardly=low[which[chosen]].tolist(),
            weights=weights,
        )

    def judged(self, plain: np.ndarray, weighted: np.ndarray, costs: np.ndarray) -> Answering:
        """With the verdict on two sets of held-out predictions, of models without and with weights.

        The error of an answer counts as much as the answer would: so it is that over all samples, as far as chances are
        right. Each task counts alike.

        Args:
            plain, weighted: (n, agents, tasks).
            costs: the true ones; where there is no answer they do not matter.
        """
        there = self.weights[:, :, None] > 0
        spread = np.where(there, costs - costs.mean(axis=(0, 1), where=there), 0.0)
        scale = np.maximum((self.weights[:, :, None] * spread**2).sum(axis=(0, 1)), 1e-30)
        errors = [
            (self.weights[:, :, None] * np.where(there, costs - one, 0.0) ** 2 / scale).sum(axis=(1, 2))
            for one in (plain, weighted)
        ]
        lower, before = errors[0] - errors[1], max(float(errors[0].sum()), 1e-30)
        gain = float(lower.sum()) / before
        error = float(lower.std(ddof=1)) * np.sqrt(len(lower)) / before
        return replace(self, gain=(gain, float(error)), used=bool(gain > -VETO * error))

    def facts(self, names: list[str]) -> dict[str, object]:
        """For ``run.json``."""
        rows = zip(self.agents, self.explained, self.hardly, strict=True)
        agents = {names[agent]: {"explained": share, "hardly": hardly} for agent, share, hardly in rows}
        gain, error = self.gain or (None, None)
        return {"agents": agents, "weighted": self.used, "gain": gain, "standard_error": error}


def chances(
    x: np.ndarray, answered: np.ndarray, fold: np.ndarray, *, seed: int = 0, threads: int | None = None
) -> np.ndarray:
    """Chance of an answer, by trees that have not seen the sample: (n, patterns), from bool of that shape.

    Of many patterns trees are grown on random sums, as :func:`l2d.rejector.best.folds.tree_targets` does for costs.
    """
    share = answered.mean(axis=0)
    targets = (answered - share) / np.sqrt(np.maximum(share * (1 - share), 1e-12))
    if targets.shape[1] > MOST_PATTERNS:
        random = np.random.default_rng(targets.shape[1])
        targets = targets @ random.standard_normal((targets.shape[1], MOST_PATTERNS)) / np.sqrt(MOST_PATTERNS)
    if targets.shape[1] == 1:  # scikit-learn warns of a single column
        targets = targets[:, 0]
    flat, everything = answered.astype(np.float32), np.ones_like(answered, bool)
    found = np.empty((len(PENALTIES), *answered.shape), np.float32)
    for number in range(FOLDS):
        seen, others = fold != number, fold == number
        trees = grow(x[seen], targets[seen], seed=seed * FOLDS + number, trees=TREES, threads=threads)
        found[:, others] = Grown.of(trees, x[seen], flat[seen], everything[seen]).predict(x[others])
    errors = [float(((one - answered) ** 2).mean()) for one in found]
    return found[int(np.argmin(errors))].astype(np.float64)


def answering_in_words(facts: dict | None) -> list[str]:
    """What ``run.json`` says of answering, in sentences; the last ones are warnings.

    Args:
        facts: of :meth:`Answering.facts`; None: nothing to say.
    """
    if facts is None:
        return []
    agents = facts["agents"]
    most = sorted(agents, key=lambda name: -agents[name]["explained"])
    told = ", ".join(f"{name} {100 * agents[name]['explained']:.0f} %" for name in most[:3])
    told += f" and {len(most) - 3} more" if len(most) > 3 else ""
    change = f"{-100 * facts['gain']:+.2f} % ± {100 * facts['standard_error']:.2f}"
    verdict = "so answers are weighted" if facts["weighted"] else "so answers are not weighted"
    lines = [
        f"whether an agent answers depends on the features (explained: {told}); weights in inverse proportion to the "
        f"chance of an answer change the held-out error by {change}, {verdict}"
    ]
    for name in most:
        if agents[name]["hardly"] >= WARNED_FROM:
            lines.append(
                f"warning: {name} hardly ever answers samples like {100 * agents[name]['hardly']:.0f} % of these (a "
                f"chance below {HARDLY:g}): nothing is known of what it costs there"
            )
    return lines
