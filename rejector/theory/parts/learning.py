"""The learning bound of Theorem 4.13, term by term and against sample size."""

from __future__ import annotations

import numpy as np

from l2d.rejector.theory.learning_bound import (
    AgentCosts,
    LearningBound,
    ScoreClass,
    agent_costs,
    bound_curve,
    learning_bound,
    score_class,
)
from l2d.rejector.theory.quantity import Quantity
from l2d.rejector.theory.subject import Subject, chosen_costs, costs_judged_on
from l2d.rejector.training.network import TrainedNetwork

LEARNING = "learning bound (Theorem 4.13, with probability 95 %)"


def learning_findings(subject: Subject) -> list[Quantity]:
    """Terms of the learning bound at the number of training rows."""
    inputs = _bound_inputs(subject)
    if inputs is None:
        says = f"no bound is known here for a {subject.run.rejector.config.network}: linear and mlp have one"
        return [Quantity(key="bound", title="bound", value=None, says=says)]
    terms = learning_bound(*inputs, len(inputs[0].inputs))
    actual = float(chosen_costs(subject.scores, subject.costs).mean())
    return [
        Quantity(key="rows", title="training samples K", value=float(terms.rows)),
        Quantity(key="empirical", title="deferral loss on them", value=terms.empirical, says="the bound starts here"),
        Quantity(
            key="complexity", title="Rademacher complexity R_K", value=terms.complexity,
            says=f"of scores of at most this rejector's norm, {inputs[0].norm:.4g}; weight decay lowers it",
        ),
        Quantity(
            key="accuracy", title="+ experts' class errors", value=terms.accuracy,
            says="2 x Omega: falls as experts err less" if terms.accuracy else "none, or the class cost is not 0-1",
        ),
        Quantity(
            key="magnitude", title="+ size of the other costs", value=terms.magnitude,
            says="2 x (largest costs, beta) x R_K: falls with costs' clamp and with beta",
        ),
        Quantity(
            key="confidence", title="+ chance", value=terms.confidence,
            says="B sqrt(log(1/delta) / 2K), B the largest cost",
        ),
        Quantity(
            key="bound", title="= bound", value=terms.bound,
            says=f"on {subject.split} it is {actual:.4f}; bounds are loose: see which term is large",
        ),
    ]  # fmt: skip


def bound_curve_of(subject: Subject) -> list[dict[str, float]]:
    """The learning bound against sample size, one object a size; empty for networks without one."""
    inputs = _bound_inputs(subject)
    return [] if inputs is None else [_terms(terms) for terms in bound_curve(*inputs)]


def _terms(terms: LearningBound) -> dict[str, float]:
    names = ("rows", "empirical", "accuracy", "magnitude", "confidence", "bound")
    return {name: getattr(terms, name) for name in names}


def _bound_inputs(subject: Subject) -> tuple[ScoreClass, list[AgentCosts], float, float] | None:
    run, record, table = subject.run, subject.cache.record, subject.tables["train"]
    costs = costs_judged_on(run, table.raw, record.tasks)
    usable = np.isfinite(costs).any(axis=1)
    scores = score_class(run.rejector.as_a(TrainedNetwork), table.features[usable])
    if scores is None:
        return None
    weights = None if run.point.cost is not None else dict(run.point.weights.by_task)
    agents = agent_costs(
        table.raw.numpy()[usable],
        costs[usable],
        run.point.query_costs,
        weights,
        record.costs,
        record.tasks,
        run.point.paid,
    )
    losses = chosen_costs(run.rejector.scores(table.features[usable].numpy()).astype(np.float64), costs[usable])
    return scores, agents, float(losses.mean()), float(costs[np.isfinite(costs)].max())
