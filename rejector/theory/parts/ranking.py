"""How well a run's scores rank the agents beyond the first: what asking several of them loses."""

from __future__ import annotations

import numpy as np

from l2d.rejector.theory.quantity import Quantity, mean_of
from l2d.rejector.theory.subject import Subject
from l2d.rejector.theory.top_k import top_k_bound, top_k_costs

TOP_K = "asking k agents instead of one: top-k"
MOST = 4  # values of k


def ranking_findings(subject: Subject) -> list[Quantity]:
    """For each k below the number of agents: the k of the highest scores against the k of the lowest expected costs.

    With :mod:`l2d.rejector.theory.top_k`'s bound, where the run minimises the surrogate.
    """
    expected, nu = subject.trained_expected, subject.run.point.nu
    available = np.isfinite(expected)
    known = np.where(available, expected, 0.0)
    count = available.sum(axis=1)
    found = []
    for k in range(1, min(expected.shape[1] - 1, MOST) + 1):
        asked, best = top_k_costs(subject.scores, expected, k), top_k_costs(-expected, expected, k)
        drawn = known.sum(axis=1) * np.minimum(k, count) / count
        says = f"over the {k} cheapest in expectation; any {k} at random: {float((drawn - best).mean()):.4f}"
        if k == 1:
            says = f"over the cheapest in expectation; one at random: {float((drawn - best).mean()):.4f}"
        title = "1 agent" if k == 1 else f"{k} agents"
        found.append(mean_of(f"top_{k}", f"{title}: excess cost, expected", asked - best, says))
        if subject.run.rejector.config.loss == "surrogate":
            bound = float(top_k_bound(subject.scores, subject.trained, nu, k).mean())
            paid, dearest = (
                float(top_k_costs(scores, subject.trained, k).mean())
                for scores in (subject.scores, np.where(np.isfinite(subject.trained), subject.trained, -np.inf))
            )
            says = f"they cost {paid:.4f}" + ("" if bound < dearest else "; above the dearest: it says nothing")
            found.append(Quantity(key=f"top_{k}_bound", title="  bound of Lemma 4.3 (top-k)", value=bound, says=says))
    return found
