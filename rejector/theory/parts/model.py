"""The model's own cost: heads, representation, and what sharing them costs."""

from __future__ import annotations

import numpy as np

from l2d.rejector.theory.quantity import Quantity, mean_of
from l2d.rejector.theory.subject import Subject, costs_judged_on

MODEL = "the model's own cost: heads, representation, sharing"


def model_findings(subject: Subject) -> list[Quantity]:
    """Heads gap, representation gap, price of sharing, and what the model's cost is on rows it was fitted on."""
    model, agent = subject.model, subject.cache.agents[0]
    here = np.isfinite(model.as_is)
    if not here.any():
        return [
            Quantity(key="as_is", title="model as it is", value=None, says=f"{agent.name!r} answered no sample here")
        ]
    found = [
        mean_of("as_is", "model as it is", model.as_is[here], f"expected cost of {agent.name!r}, kind {agent.kind}")
    ]
    train = _model_cost_on_train(subject)
    found.append(
        Quantity(
            key="optimism", title="  more than on training samples", value=float(model.as_is[here].mean() - train),
            says=f"{train:.4f} there; far above 0, rejectors trust it too much",
        )
    )  # fmt: skip
    steps = (
        ("heads", "heads gap", model.as_is, model.heads, "better heads on its frozen representation would save this"),
        ("repr", "representation gap", model.heads, model.best, "a better representation would save this"),
        ("model_gap", "heads and representation", model.as_is, model.best, "the best model found would save this"),
        ("sharing", "price of sharing", model.best, model.separate, "separate models a task would save this"),
    )
    reason_of = {"heads": "heads", "repr": "best", "model_gap": "best", "sharing": "separate"}
    for key, title, before, after, says in steps:
        if before is None or after is None:
            reason = model.reasons.get(reason_of[key]) or model.reasons.get("heads", "")
            found.append(Quantity(key=key, title=title, value=None, says=f"not known: {reason}"))
            continue
        finding = mean_of(key, title, before[here] - after[here])
        low, high = finding.ends
        if key == "sharing" and high < 0:
            says = "below 0: sharing a representation helps"
        elif low <= 0 <= high:
            says = "cannot be told from 0" + (f" ({_chosen(model.chosen, key)})" if _chosen(model.chosen, key) else "")
        elif high < 0:
            says = "below 0: what was best on validation is worse here"
        else:
            says += f" ({_chosen(model.chosen, key)})" if _chosen(model.chosen, key) else ""
        found.append(Quantity(key=key, title=title, value=finding.value, interval=finding.interval, says=says))
    return found


def _chosen(chosen: dict[str, str], key: str) -> str:
    if key == "sharing":
        return ""
    return f"best on validation: {chosen.get('heads' if key == 'heads' else 'best', '')}"


def _model_cost_on_train(subject: Subject) -> float:
    costs = costs_judged_on(subject.run, subject.tables["train"].raw, subject.cache.record.tasks)[:, 0]
    return float(costs[np.isfinite(costs)].mean())
