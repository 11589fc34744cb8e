"""The deferral loss of a run, from the oracle's on: what each shortcoming adds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from l2d.rejector.theory.quantity import Quantity, mean_of
from l2d.rejector.theory.subject import Subject, chosen_costs

LOSS = "deferral loss: from the oracle to this rejector"


def deferral_findings(subject: Subject) -> list[Quantity]:
    """The run's deferral loss as the oracle's plus what each shortcoming adds. The parts add up to the run's loss."""
    run_loss = chosen_costs(subject.scores, subject.costs)
    best_loss = subject.losses_of(subject.members[subject.best])
    bayes, learner = subject.bayes, subject.expected.learner
    data = np.zeros(len(run_loss))
    if subject.halves:
        data = np.mean([subject.losses_of(half) for half in subject.halves], axis=0) - run_loss
    shown = data if data.mean() > 0 else np.zeros(len(run_loss))
    rest = best_loss - shown - bayes.earned
    found = [
        mean_of("oracle", "oracle", bayes.oracle, "the cheapest agent of each sample, known only afterwards"),
        mean_of(
            "not_in_features", "+ not to be known from the features", bayes.earned - bayes.oracle,
            f"as far as {learner} can tell",
        ),
        mean_of(
            "bayes", "= Bayes rejector, estimated", bayes.earned,
            f"the agent of the lowest expected cost; its estimates promise {bayes.plug_in.mean():.4f}",
        ),
        _objective(subject, rest) if subject.single_task else _class(subject, rest),
    ]  # fmt: skip
    if not subject.halves:
        found.append(Quantity(key="data", title="+ too little data", value=None, says=subject.why_not["data"]))
    elif data.mean() <= 0:
        found.append(mean_of("data", "+ too little data", shown, "half the training samples do as well"))
    else:
        says = "what the second half of the training samples brought; as many again bring 0.5 to 0.7 of it"
        found.append(mean_of("data", "+ too little data", shown, says))
    if subject.best == "as it is":
        says = "neither fitting longer nor weight decay does better on validation"
    else:
        says = f"best on validation: {subject.best}"
    found.append(mean_of("optimization", "+ optimization", run_loss - best_loss, says))
    found.append(mean_of("run", "= this rejector", run_loss, "as `l2d evaluate` gives it"))
    return found + _abstention(subject)


def _objective(subject: Subject, rest: np.ndarray) -> Quantity:
    says = (
        f"{subject.run.point.method}: the best there is for that costs {subject.trained_bayes.earned.mean():.4f} here"
    )
    return mean_of("objective", "+ trained on one task, and class", rest, says)


def _class(subject: Subject, rest: np.ndarray) -> Quantity:
    finding = mean_of("class", "+ class of rejectors, surrogate", rest)
    low, high = finding.ends
    if low > 0:
        says = "a rejector of its class does not get nearer"
    elif high < 0:
        says = f"below 0: it knows more than {subject.expected.learner}, the Bayes risk is lower yet"
    else:
        says = (
            f"cannot be told from 0: {subject.expected.learner} as a rejector pays {subject.bayes.earned.mean():.4f}; "
            f"another rejector of these features may save up to {high:.4f}"
        )
    return replace(finding, says=says)


def _abstention(subject: Subject) -> list[Quantity]:
    """Where there is one expert and its answer always costs the same: Chow's rule."""
    if subject.costs.shape[1] != 2:
        return []
    expert = subject.costs[:, 1]
    if not np.isfinite(expert).all() or expert.min() != expert.max():
        return []
    says = (
        f"one expert at a constant {expert[0]:.4f}: learning with abstention. Right where the model's expected cost is "
        "above that: this share of samples"
    )
    return [mean_of("abstention", "abstention", (subject.bayes.allocation == 1).astype(float), says)]
