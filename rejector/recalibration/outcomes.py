"""The decisions that a run made in a log, in the order of time, with what was predicted and what was paid."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.calibration import own_digest, uncorrected
from l2d.rejector.replay.estimators import effective
from l2d.rejector.replay.policies import Decisions
from l2d.rejector.serving.reading import Log

MOST = 10.0  # times that an outcome counts, where it was drawn to explore


@dataclass(frozen=True)
class Outcomes:
    """Decisions of one run, oldest first; those behind a calibration with what the run itself predicted.

    Attributes:
        ids: of the decisions, (n,).
        time: microseconds since 1970, (n,).
        agent, greedy: who was asked, who had the best score, (n,).
        there: who could be asked, bool (n, agents).
        chances: probability with which each agent was to be asked, (n, agents).
        cost: total cost, NaN where it is not known, (n,).
        scores: of the run itself, without a calibration, float32 (n, agents).
        in_force: total costs as they were predicted when it was decided, (n, agents).
    """

    ids: np.ndarray
    time: np.ndarray
    agent: np.ndarray
    greedy: np.ndarray
    there: np.ndarray
    chances: np.ndarray
    cost: np.ndarray
    scores: np.ndarray
    in_force: np.ndarray

    def __len__(self) -> int:
        return len(self.agent)

    @property
    def known(self) -> np.ndarray:
        """Whose outcome is known, bool (n,)."""
        return ~np.isnan(self.cost)

    @property
    def weights(self) -> np.ndarray:
        """How much an outcome counts: once over its probability, at most :data:`MOST` times, (n,)."""
        return np.minimum(MOST, 1 / self.chances[np.arange(len(self)), self.agent])

    def take(self, rows: np.ndarray) -> Outcomes:
        return Outcomes(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def of(self, agent: int) -> Outcomes:
        """The outcomes of one agent that are known."""
        return self.take(self.known & (self.agent == agent))

    @property
    def size(self) -> float:
        """What the outcomes are worth, in outcomes of equal weight."""
        return effective(self.weights)


def outcomes_of(book: Log, digest: str) -> Outcomes:
    """The decisions of a run, with and without a calibration.

    Args:
        digest: of the run itself.

    Raises:
        UsageError: it has decided nothing in this log.
    """
    there = book.decisions["run"].unique(maintain_order=True).to_list()
    found = [one for one in there if own_digest(one, book.runs[one]) == digest]
    if not found:
        raise UsageError(
            "no decision of that run is in the log",
            where=book.path,
            hint=f"name the run that decided: {', '.join(book.runs[one]['run_id'] for one in there) or 'none has yet'}",
        )
    parts = [_read(book, one) for one in found]
    names = [each.name for each in fields(Outcomes)]
    whole = Outcomes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    return whole.take(np.argsort(whole.time, kind="stable"))


def _read(book: Log, digest: str) -> Outcomes:
    _, facts, frame = book.one_run(digest)
    decisions = Decisions(facts, frame)
    return Outcomes(
        ids=decisions.frame["id"].to_numpy(),
        time=decisions.frame["time"].to_numpy(),
        agent=decisions.agent,
        greedy=decisions.greedy,
        there=decisions.there,
        chances=decisions.chances,
        cost=decisions.cost,
        scores=uncorrected(decisions.scores, facts),
        in_force=-decisions.scores.astype(np.float64),
    )
