"""The theory of a run that was trained on the paper's surrogate, or another loss of a network's scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2d.rejector.runs.run import Run
from l2d.rejector.theory.bayes import FOLDS
from l2d.rejector.theory.parts.deferral import LOSS, deferral_findings
from l2d.rejector.theory.parts.learning import LEARNING, bound_curve_of, learning_findings
from l2d.rejector.theory.parts.model import MODEL, model_findings
from l2d.rejector.theory.parts.ranking import TOP_K, ranking_findings
from l2d.rejector.theory.parts.surrogate import SURROGATE, surrogate_findings
from l2d.rejector.theory.quantity import Quantity
from l2d.rejector.theory.subject import Subject, examine

#: Parts of the deferral loss above the oracle's -> what to do about them.
ADVICE = {
    "not_in_features": "features that tell more or agents that err less would help, but no rejector on these features",
    "objective": "train on all tasks (--method multi-task)",
    "class": "a richer rejector (--rejector mlp, --hidden, --layers) or a sharper target (--recentre) may help",
    "data": "more training samples would help",
    "optimization": "train longer (--epochs, --lr), or hold back more (--weight-decay, --patience)",
}


def section(run: Run, split: str, *, device: str, seed: int) -> dict[str, Any]:
    """See :func:`l2d.rejector.theory.section.theory_section`."""
    subject = examine(run, split, device=device, seed=seed)
    config = run.rejector.config
    parts = {title: {finding.key: finding for finding in found} for title, found in all_parts(subject).items()}
    return {
        "run_id": run.point.run_id,
        "split": split,
        "num_samples": len(subject.costs),
        "method": run.point.method,
        "network": config.network,
        "loss": config.loss,
        "nu": run.point.nu if config.loss == "surrogate" else None,
        "recentre": config.recentre,
        "verdict": verdict_of(parts),
        "parts": {title: {key: found.to_json() for key, found in part.items()} for title, part in parts.items()},
        "bound_curve": bound_curve_of(subject),
        "notes": notes_of(subject),
    }


def all_parts(subject: Subject) -> dict[str, list[Quantity]]:
    """Title of a part -> its findings."""
    of_model = {} if subject.model.constant_target else {MODEL: model_findings(subject)}
    of_several = {TOP_K: ranking_findings(subject)} if subject.costs.shape[1] > 2 else {}
    return {
        LOSS: deferral_findings(subject),
        SURROGATE: surrogate_findings(subject),
        **of_several,
        **of_model,
        LEARNING: learning_findings(subject),
    }


def verdict_of(parts: dict[str, dict[str, Quantity]]) -> str:
    """In a sentence or two: what most of the loss above the oracle's is, and what else is beyond doubt."""
    loss = parts[LOSS]
    values = {key: found.value for key, found in loss.items() if found.value is not None}
    total = values["run"] - values["oracle"]
    if total <= 0:
        return "The rejector is as good as the oracle: nothing is left to gain."
    causes = [key for key in ADVICE if key in values]
    key = max(causes, key=lambda cause: values[cause])
    name = loss[key].title.removeprefix("+ ")
    text = (
        f"The rejector is {total:.4f} above the oracle. The largest part, {values[key]:.4f} "
        f"({100 * values[key] / total:.0f} %), is: {name}; {_advice(key, loss[key])}."
    )
    others = [
        f"{loss[other].title.removeprefix('+ ')} {values[other]:.4f} ({_advice(other, loss[other])})"
        for other in causes
        if other != key and (loss[other].interval or (0.0,))[0] > 0
    ]
    return text + (f" Also beyond doubt: {'; '.join(others)}." if others else "")


def _advice(key: str, found: Quantity) -> str:
    return f"{ADVICE[key]}; {found.says}" if key == "optimization" else ADVICE[key]


def notes_of(subject: Subject) -> list[str]:
    """What the figures rest on."""
    explained = ", ".join(
        f"{agent.name} {100 * share:.0f} %"
        for agent, share in zip(subject.cache.agents, subject.expected.explained, strict=True)
    )
    errors = ", ".join(f"{name} {error:.4f}" for name, error in subject.expected.errors.items())
    notes = [
        f"Expected costs given the features are estimated by {subject.expected.learner}, cross-fitted ({FOLDS} folds, "
        f"every sample by regressors that did not see it); variance of each agent's cost explained: {explained}; mean "
        f"squared errors: {errors}. If the truth is not near these, Bayes risk and infimum are lower than given.",
    ]
    if subject.model.constant_target:
        notes.append(
            "The targets are one and the same for all samples, as those of imported scores are: what a better model "
            "could answer is not known, so the part about the model is left out."
        )
    if np.isinf(subject.costs).any():
        share = float(np.isinf(subject.costs).any(axis=1).mean())
        notes.append(
            f"On {100 * share:.1f} % of samples an agent is unavailable: expectations, softmax and oracle are over the "
            "available ones there."
        )
    if subject.left_out:
        notes.append(f"{subject.left_out} samples on which no agent is available are left out.")
    if subject.run.rejector.config.recentre:
        notes.append("The surrogate's part is about recentred costs (each sample's cheapest subtracted), as trained.")
    if subject.single_task:
        notes.append(f"The surrogate's part is about the cost of {subject.run.point.method}, as trained.")
    return notes
