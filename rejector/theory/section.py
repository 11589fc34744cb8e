"""All of the theory for one run: why it falls short of the best rejector there could be, and by how much.

A *finding* is one quantity: what it is called, its value with a 95 % interval where it is a mean over samples, and what
it says. Findings come in parts, in the order they are read. :func:`theory_section` gives them as plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from l2d.rejector.best.trained import TrainedBest
from l2d.rejector.runs.files import one_run
from l2d.rejector.runs.run import load_run
from l2d.rejector.theory.bayes import FOLDS
from l2d.rejector.theory.finding import Finding
from l2d.rejector.theory.of_costs import PREDICTABLE, SHOWN, WORTH, cost_section
from l2d.rejector.theory.parts.deferral import LOSS, deferral_findings
from l2d.rejector.theory.parts.learning import LEARNING, bound_curve_of, learning_findings
from l2d.rejector.theory.parts.model import MODEL, model_findings
from l2d.rejector.theory.parts.surrogate import SURROGATE, surrogate_findings
from l2d.rejector.theory.subject import Subject, examine, one_thread

#: Parts of the deferral loss above the oracle's -> what to do about them.
ADVICE = {
    "not_in_features": "features that tell more or agents that err less would help, but no rejector on these features",
    "objective": "train on all tasks (--method multi-task)",
    "class": "a richer rejector (--rejector mlp, --hidden, --layers) or a sharper target (--recentre) may help",
    "data": "more training samples would help",
    "optimization": "train longer (--epochs, --lr), or hold back more (--weight-decay, --patience)",
}


def theory_section(path: Path, split: str = "test", *, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Every finding on a run, as plain values for JSON, a table or a page.

    Returns:
        ``run_id``, ``split``, ``num_samples`` and settings; ``verdict``, a sentence or two; ``parts``: title of a part
        -> key -> ``title``, ``value``, ``low``, ``high``, ``says``; ``bound_curve``: the learning bound at rising
        sample sizes, one object a size (empty where there is none); ``notes``.

    Raises:
        UsageError: as :func:`l2d.rejector.theory.subject.examine`.
    """
    run = load_run(one_run(path))
    if isinstance(run.rejector, TrainedBest):
        with one_thread():
            return cost_section(run, split, seed=seed)
    subject = examine(path, split, device=device, seed=seed)
    run, config = subject.run, subject.run.rejector.config
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


def all_parts(subject: Subject) -> dict[str, list[Finding]]:
    """Title of a part -> its findings."""
    of_model = {} if subject.model.constant_target else {MODEL: model_findings(subject)}
    return {
        LOSS: deferral_findings(subject),
        SURROGATE: surrogate_findings(subject),
        **of_model,
        LEARNING: learning_findings(subject),
    }


def verdict_of(parts: dict[str, dict[str, Finding]]) -> str:
    """In a sentence or two: what most of the loss above the oracle's is, and what else is beyond doubt."""
    loss = parts[LOSS]
    total = loss["run"].value - loss["oracle"].value
    if total <= 0:
        return "The rejector is as good as the oracle: nothing is left to gain."
    causes = [(key, loss[key]) for key in ADVICE if key in loss and loss[key].value is not None]
    key, largest = max(causes, key=lambda cause: cause[1].value)
    name = largest.title.removeprefix("+ ")
    text = (
        f"The rejector is {total:.4f} above the oracle. The largest part, {largest.value:.4f} "
        f"({100 * largest.value / total:.0f} %), is: {name}; {_advice(key, largest)}."
    )
    others = [
        f"{found.title.removeprefix('+ ')} {found.value:.4f} ({_advice(other, found)})"
        for other, found in causes
        if other != key and found.interval is not None and found.interval[0] > 0
    ]
    return text + (f" Also beyond doubt: {'; '.join(others)}." if others else "")


def _advice(key: str, found: Finding) -> str:
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


def theory_rows(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A section's findings as rows: part, key, title, value, low, high, says."""
    for part, findings in section["parts"].items():
        for key, finding in findings.items():
            yield {"part": part, "quantity": key, **finding}


def shown_parts(section: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A section as tables for people: title -> rows of text. Of more than a few agents or columns, some."""
    facts = [section["run_id"], f"{section['split']} split, {section['num_samples']:,} samples"]
    if section["network"] is not None:
        facts += [section["network"]]
        facts += [f"nu {section['nu']:g}" if section["nu"] is not None else f"loss {section['loss']}"]
    facts += ["recentred"] if section["recentre"] else []
    tables = {}
    for number, (part, findings) in enumerate(section["parts"].items()):
        some, title = list(findings.values()), part
        if part in (PREDICTABLE, WORTH) and len(some) > SHOWN:
            some, title = some[:SHOWN], f"{part} ({SHOWN} of {len(findings)}; --format csv has all)"
        tables[title if number else f"{', '.join(facts)}\n\n{title}"] = [
            {
                "quantity": finding["title"],
                "value": "" if finding["value"] is None else _number(finding["value"]),
                "95 % interval": ""
                if finding["low"] is None
                else f"[{_number(finding['low'])}, {_number(finding['high'])}]",
                "what it says": finding["says"],
            }
            for finding in some
        ]
    return tables


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
