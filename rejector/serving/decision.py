"""A decision about one input: which agent to ask, which next, what each is expected to cost, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.served import Served

SHOWN = 3  # features that a reason names


@dataclass(frozen=True)
class Decision:
    """Which agent to ask about one input.

    Attributes:
        agent: its name; None where no agent can be asked within the cap.
        ranked: the agents that can be asked, in the order in which to try them; the first is ``agent``.
        costs: agent -> predicted total cost, query costs included; None where the run's scores are not costs.
        price: of the agent's answer in money as predicted for this input, else the recipe's price; None: not known.
        propensity: probability with which this agent was to be chosen; 1 unless the router explores.
        explored: whether it was drawn at random in place of the agent of the best score.
        scores: of all agents in the run's order, float32; larger is better.
        features: what the rejector looked at, float32 (width,).
        id: of the record in the decision log; None without one.
        agents: names in the run's order.
        candidates: who could be asked, bool (agents,).
        seconds: the decision took.
    """

    agent: str | None
    ranked: tuple[str, ...]
    costs: dict[str, float] | None
    price: float | None
    propensity: float
    explored: bool
    scores: np.ndarray = field(repr=False)
    features: np.ndarray = field(repr=False)
    agents: list[str] = field(repr=False)
    candidates: np.ndarray = field(repr=False)
    greedy: str | None = field(repr=False)
    seconds: float
    _why: Callable[[Decision], list[tuple[str, float]]] = field(repr=False, compare=False)
    _constant: str | None = field(default=None, repr=False)
    id: str | None = None

    @cached_property
    def moved(self) -> list[tuple[str, float]]:
        """Features that moved the choice, the strongest first: name, and by how much it favours the chosen agent.

        Each feature in turn is set to its training mean; what the lead of the chosen agent over the next in line loses
        by that is what the feature contributes. One at a time: features that say the same hide each other.
        """
        return self._why(self)

    @cached_property
    def reason(self) -> str:
        """Why this agent, in a sentence."""
        if self.agent is None:
            return "no agent can be asked: none is both available and within the cap"
        if self.explored:
            return f"drawn at random to explore; the scores say {self.greedy}"
        if len(self.ranked) == 1:
            return f"{self.agent} is the one agent that can be asked"
        if self._constant is not None:
            return self._constant
        named = ", ".join(f"{name} {by:+.3g}" for name, by in self.moved[:SHOWN] if by)
        lead = self.lead
        return f"{self.agent} rather than {self.ranked[1]}, by {lead:.3g}" + (f": {named}" if named else "")

    @property
    def lead(self) -> float:
        """By how much the score of the agent exceeds that of the next in line."""
        first, second = (self.agents.index(name) for name in self.ranked[:2])
        return float(self.scores[first]) - float(self.scores[second])

    def to_json(self, *, reason: bool = False) -> dict[str, Any]:
        """As the server answers it."""
        found: dict[str, Any] = {
            "agent": self.agent,
            "ranked": list(self.ranked),
            "costs": self.costs,
            "scores": dict(zip(self.agents, map(float, self.scores), strict=True)),
            "price": self.price,
            "propensity": self.propensity,
            "explored": self.explored,
        }
        if self.id is not None:
            found = {"id": self.id, **found}
        return {**found, "reason": self.reason} if reason else found


class Reasons:
    """What features moved a choice, for one run."""

    def __init__(self, run: Served):
        self._run = run
        encoder = run.looks_at.encoder
        self.groups: list[tuple[str, slice]] = []
        place = 0
        if isinstance(encoder, FeatureEncoder):
            for feature in encoder.features:
                width = len(feature.columns())
                self.groups.append((feature.name, slice(place, place + width)))
                place += width
        else:
            names = run.looks_at.made.get("names") or [f"feature {k}" for k in range(len(run.mean))]
            self.groups = [(name, slice(k, k + 1)) for k, name in enumerate(names)]

    def __call__(self, decision: Decision) -> list[tuple[str, float]]:
        """See :attr:`Decision.moved`; one row is scored for each feature."""
        if len(decision.ranked) < 2:
            return []
        first, second = (decision.agents.index(name) for name in decision.ranked[:2])
        rows = np.repeat(decision.features[None], len(self.groups), axis=0)
        for row, (_, columns) in enumerate(self.groups):
            rows[row, columns] = self._run.mean[columns]
        scores = self._run.scores(rows).astype(np.float64)
        moved = decision.lead - (scores[:, first] - scores[:, second])
        order = np.argsort(-np.abs(moved), kind="stable")
        return [(self.groups[row][0], float(moved[row])) for row in order]
