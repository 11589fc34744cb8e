"""`l2d replay`: what policies would have cost, from a decision log, or why the log cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.errors import DataError, UsageError
from l2d.data.results import Shown
from l2d.rejector.replay.estimators import Estimate, Logged, effective, estimates
from l2d.rejector.replay.policies import Decisions, policy_of
from l2d.rejector.serving.reading import read_log

FEWEST = 30  # effective decisions: with fewer an interval means nothing


@dataclass(frozen=True)
class Replayed:
    """What one policy would have cost.

    Attributes:
        policy: as it was named.
        effective: sample size.
        agrees: share of decisions in which the policy would have asked the agent that was asked.
        found: estimates of its mean total cost.
        gains: the same less those of the policy in force without exploring, from the same decisions.
        refusal: why the log cannot say; then there are no estimates.
    """

    policy: str
    effective: float
    agrees: float
    found: list[Estimate]
    gains: list[Estimate]
    refusal: str | None = None


@dataclass(frozen=True)
class Replay(Shown):
    """Values of policies. ``decisions`` were logged, the outcomes of ``outcomes`` are known; intervals at ``level``."""

    run_id: str
    decisions: int
    outcomes: int
    level: float
    policies: list[Replayed]
    known: int = 0

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.run_id}: {self.decisions:,} decisions, {self.outcomes:,} outcomes; mean total cost of policies"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each policy and estimator; of a refused one a row with the reason."""
        rows: list[dict[str, Any]] = []
        for one in self.policies:
            shared = {"policy": one.policy, "effective": one.effective, "agrees": one.agrees}
            empty = dict.fromkeys(("cost", "low", "high", "less_greedy", "less_low", "less_high"))
            if one.refusal is not None:
                rows.append({**shared, "estimator": "refused", **empty, "note": one.refusal})
            for value, gain in zip(one.found, one.gains, strict=True):
                low, high = value.interval(self.level)
                less_low, less_high = gain.interval(self.level)
                rows.append(
                    {
                        **shared, "estimator": value.name, "cost": value.value, "low": low, "high": high,
                        "less_greedy": gain.value, "less_low": less_low, "less_high": less_high, "note": None,
                    }
                )  # fmt: skip
        return rows

    def notes(self) -> list[str]:
        """Sentences for people."""
        lines = []
        if self.outcomes < self.decisions:
            lines.append(
                f"the outcomes of {1 - self.outcomes / max(1, self.decisions):.0%} of the decisions are not known: the "
                "estimates hold if that does not depend on what they cost"
            )
        if self.known:
            lines.append(f"{self.known:,} inputs are samples of the cache, where every agent's cost is known")
        for one in self.policies:
            if one.refusal is not None:
                lines.append(f"{one.policy}: the log cannot say: {one.refusal}")
                continue
            best = min(zip(one.gains, one.found, strict=True), key=lambda pair: pair[1].error)[0]
            low, high = best.interval(self.level)
            verdict = "costs less than" if high < 0 else "costs more than" if low > 0 else "cannot be told from"
            lines.append(
                f"{one.policy} {verdict} the policy in force: {best.value:+.4f} [{low:+.4f}, {high:+.4f}] ({best.name})"
            )
        return lines


def replay(
    log: Path | str,
    policies: str | Sequence[str],
    *,
    cache: Any = None,
    run: str | None = None,
    level: float = 0.95,
) -> Replay:
    """What policies would have cost in the decisions of a log.

    Args:
        log: its folder.
        policies: see :func:`l2d.rejector.replay.policies.policy_of`.
        cache: a cost cache: of inputs that are its samples (by the ``id`` they were asked with) every cost is known.
        run: the beginning of a run's digest, where several have decided.
        level: of the intervals.

    Raises:
        UsageError: there is no log, policy or agent of that name.
        DataError: there are no outcomes, or a file does not fit the log.
    """
    if not 0 < level < 1:
        raise UsageError(f"level {level:g}", hint="between 0 and 1, such as 0.95")
    _, facts, frame = read_log(log).one_run(run)
    if "policy" in facts:
        raise UsageError(
            f"these decisions are of a {facts['policy']} policy, which may ask several agents",
            where=log,
            hint="what a policy would have cost its cache says: l2d evaluate POLICY",
        )
    decisions = Decisions(facts, frame)
    cost, predicted = decisions.cost, decisions.predicted
    known = 0
    if cache is not None:
        predicted, known = _with_cache(cache, decisions, predicted)
    logged = Logged(decisions.agent, decisions.chances, cost, predicted)
    if not logged.known.any():
        raise DataError("no outcome is known", where=log, hint="send some: POST /feedback, or router.feedback")
    in_force = np.zeros_like(decisions.chances)
    in_force[np.arange(len(decisions)), decisions.greedy] = 1.0
    wanted = [policies] if isinstance(policies, str) else list(policies)
    found = [_replayed(name, policy_of(name, decisions), in_force, logged) for name in wanted]
    return Replay(facts["run_id"], len(decisions), int(logged.known.sum()), level, found, known)


def _replayed(name: str, policy: np.ndarray, in_force: np.ndarray, logged: Logged) -> Replayed:
    weights = logged.weights(policy)
    rows = np.arange(len(policy))
    agrees, size = float(policy[rows, logged.agent].mean()), effective(weights)
    refusal = None
    never = np.asarray(((policy > 0) & (logged.chances <= 0)).any(axis=1))
    if never.any():
        refusal = (
            f"in {never.sum():,} of {len(never):,} decisions it asks an agent that could not have been drawn; "
            "log with --explore"
        )
    elif size < FEWEST:
        refusal = (
            f"they are worth {size:.0f} decisions of this policy, and {FEWEST} are the least; log more, or explore more"
        )
    if refusal is not None:
        return Replayed(name, size, agrees, [], [], refusal)
    mine, others = estimates(logged, policy), estimates(logged, in_force)
    return Replayed(name, size, agrees, mine, [one.less(other) for one, other in zip(mine, others, strict=True)])


def _with_cache(cache: Any, decisions: Decisions, predicted: np.ndarray | None) -> tuple[np.ndarray | None, int]:
    """Predictions, and in their place the true costs of inputs that are samples of a cache; and how many are."""
    from l2d.rejector.replay.outcomes import true_costs

    named = decisions.frame["input"].to_list()
    costs = true_costs(cache, decisions.facts, [name for name in named if name is not None])
    there = np.array([name in costs for name in named], bool)
    if not there.any():
        raise UsageError(
            "no input of the log is a sample of this cache", hint="ask with the samples' ids, or leave it out"
        )
    if predicted is None:
        if not there.all():
            raise UsageError(
                "the run predicts no costs, and not all inputs are samples of the cache", hint="leave the cache out"
            )
        predicted = np.empty(decisions.scores.shape)
    predicted = predicted.copy()
    for row in np.flatnonzero(there):
        true = costs[named[row]]
        predicted[row] = np.where(np.isnan(true), predicted[row], true)
    return predicted, int(there.sum())
