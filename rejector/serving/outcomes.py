"""What the answer of a decision turned out to cost, as callers say it."""

from __future__ import annotations

from collections.abc import Mapping

from l2d.data.errors import UsageError, nearest
from l2d.rejector.serving.log import DecisionLog


class UnknownDecision(UsageError):
    """An outcome or an answer is of a decision that is not known."""


def write_outcome(
    log: DecisionLog | None,
    identity: str | None,
    cost: float | Mapping[str, float] | None,
    weights: Mapping[str, float],
    *,
    paid: float | None,
    seconds: float | None,
) -> float | None:
    """Append an outcome to a log; returns its weighted cost.

    Args:
        log: of the router.
        identity: of the decision.
        cost: its loss, without query cost: by task, or weighted already.
        weights: of the tasks.
        paid, seconds: what the answer was paid, and took.

    Raises:
        UsageError: there is no log, or no such decision, or no such task, or a value is no cost.
    """
    if log is None:
        raise UsageError("this router has no log", hint="load_router(run, log=FOLDER)")
    if identity is None or not log.knows(identity):
        raise UnknownDecision(
            f"there is no decision {str(identity)[:80]!r}",
            where=log.path,
            hint="give the `id` that a decision came with, of this log",
        )
    total = weighted(cost, weights)
    log.outcome(identity, total, paid=number(paid, "paid"), seconds=number(seconds, "seconds"))
    return total


def weighted(cost: float | Mapping[str, float] | None, weights: Mapping[str, float]) -> float | None:
    """A loss as one number.

    Raises:
        UsageError: there is no such task, one with a weight is left out, or a value is no cost.
    """
    if not isinstance(cost, Mapping):
        return number(cost, "cost")
    total = 0.0
    for task, value in cost.items():
        if task not in weights:
            raise UsageError(f"cost: there is no task {task!r}", hint=nearest(task, weights))
        one = number(value, f"cost of {task}")
        if one is None:
            raise UsageError(f"cost of {task} is missing", hint="give a number, or leave out `cost`")
        total += weights[task] * one
    missing = [task for task, weight in weights.items() if weight and task not in cost]
    if missing:
        raise UsageError(f"cost: nothing is said of {', '.join(missing)}", hint="give every task that has a weight")
    return total


def number(value: float | None, what: str) -> float | None:
    """A cost, a price or a time.

    Raises:
        UsageError: it is none.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UsageError(f"{what} is {str(value)[:40]}", hint="a finite number, 0 or more")
    return float(value)
