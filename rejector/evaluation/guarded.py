"""What the guard of a run did on the evaluated split: samples it kept at the fallback, what that cost and saved."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2d.data.cache.audit_answers import ALONE
from l2d.rejector.evaluation.intervals import paired_interval
from l2d.rejector.rows.table import CostTable
from l2d.rejector.trained import Rejector


def guard_facts(
    rejector: Rejector, table: CostTable, costs: np.ndarray, losses: np.ndarray, groups: np.ndarray | None
) -> dict[str, Any] | None:
    """The guard's evidence, and its effect; None where no guard watched over the rejector.

    Args:
        costs: total costs (n, agents), infinite where an agent is unavailable.
        losses: of the run, (n,).
        groups: as for every interval of the evaluation.

    Returns:
        :meth:`l2d.rejector.best.guard.Guard.facts`, ``kept``: samples that would have gone to another agent without the
        guard, and, means over all samples: ``saved`` and ``cost``, what the guard took off and added there;
        ``difference`` of deferral losses, with the guard less without, with its 95 % interval.
    """
    predicted, guard = rejector.predicted_costs(table), rejector.guard
    if guard is None or predicted is None:
        return None
    predicted = np.where(np.isfinite(costs), predicted, np.inf)
    decided = rejector.unguarded().decided
    free = costs[np.arange(len(costs)), predicted.argmin(axis=1)] + decided
    if not guard["holds"]:
        return {**guard, "kept": 0, "saved": 0.0, "cost": 0.0, "difference": None}
    scores = np.where(np.isfinite(costs), rejector.scores_on(table), -np.inf)
    rise = losses - free
    return {
        **guard,
        "kept": int((scores.argmax(axis=1) != predicted.argmin(axis=1)).sum()),
        "saved": float(-np.minimum(rise, 0).mean()),
        "cost": float(np.maximum(rise, 0).mean()),
        "difference": paired_interval(rise, groups).to_json(test=False),
    }


def guard_in_words(guard: dict[str, Any], samples: int) -> str:
    """A guard that holds, in a few sentences: its evidence, and what it did on the evaluated samples.

    Args:
        guard: of an evaluation; ``fallback`` is a name.
        samples: that were evaluated.
    """
    if guard.get("compared") == 0:
        return f"{ALONE}, and the run always asks {guard['fallback']}."
    text = (
        f"choosing agents does not pay (held-out gain {guard['gain']:+.4f} ± {guard['standard_error']:.4f}), "
        f"so the run always asks {guard['fallback']}."
    )
    if not guard["kept"]:
        return f"{text} Without the guard it would do so on these {samples:,} samples, too."
    found = guard["difference"]
    return (
        f"{text} The guard kept {guard['kept']:,} of {samples:,} samples from another agent: it saved "
        f"{guard['saved']:.4f} and cost {guard['cost']:.4f} a sample, {found['value']:+.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}] in all."
    )
