"""Whether choosing agents pays: the evidence for leaving the best constant agent.

There are two kinds of it, both on samples that the models had not seen. What decisions gained is what counts, but few
samples tell of it where most decisions are the constant's. That predicted differences between agents are nearer to the
true ones than the differences of mean costs are says that features tell something, and every sample tells of that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from l2d.rejector.best.folds import contrasts

#: Standard errors by which the held-out gain over the constant has to exceed 0. Measured: docs/methods.md.
DEFAULT = 1.0
#: As many times more are asked of what predictions are nearer by: weights were fitted on the same samples.
TIMES = 2.0


@dataclass(frozen=True)
class Guard:
    """What cross-fitted decisions gain over one agent.

    Attributes:
        z: standard errors asked for; 0: no guard.
        fallback: position of the agent that is asked where choosing does not pay.
        gain: mean cost of the fallback less that of the chosen agents, on samples that the models had not seen.
        standard_error: of ``gain``.
        samples: how many.
        nearer: by how many standard errors predicted differences between agents are nearer to the true ones, in
            squares, than differences of mean costs.
        holds: whether the fallback answers everything: where ``gain`` is not above ``z`` standard errors, nor
            ``nearer`` above ``TIMES * z``; and where no decision gained or lost anything, or decisions gained less than
            it costs to decide.
        compared: how many of the samples have the answers of two agents or more: only these tell of choosing.
    """

    z: float
    fallback: int
    gain: float
    standard_error: float
    samples: int
    nearer: float
    holds: bool
    compared: int

    @classmethod
    def of(
        cls,
        predicted: np.ndarray,
        costs: np.ndarray,
        *,
        z: float,
        fallback: int | None = None,
        decided: float = 0.0,
    ) -> Guard:
        """Judge held-out predictions.

        Args:
            predicted: total costs, (n, agents).
            costs: the true ones, infinite where an agent is unavailable.
            fallback: position of an agent; None: the constant that is cheapest on these samples, which asks the
                cheapest of the others where it is unavailable.
            decided: what deciding costs for each input, which the constant does without.
        """
        stand_in = np.where(np.isfinite(costs), costs, 0.0).sum(axis=0) / np.maximum(np.isfinite(costs).sum(axis=0), 1)
        order = np.argsort(stand_in, kind="stable")
        alone = np.stack([_constant(costs, agent, order) for agent in range(costs.shape[1])], axis=1)
        # Among equals, as where no two agents answered one sample, the agent whose own answers cost least.
        cheapest = int(order[alone.mean(axis=0)[order].argmin()])
        chosen_agent = cheapest if fallback is None else fallback
        rows = np.arange(len(costs))
        chosen = costs[rows, np.where(np.isfinite(costs), predicted, np.inf).argmin(axis=1)]
        gains = alone[:, chosen_agent] - chosen - decided
        error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else np.inf
        gain = float(gains.mean())
        nearer = _nearer(predicted, costs)
        compared = int((np.isfinite(costs).sum(axis=1) > 1).sum())
        worth_it = gain > 0 if decided else bool(gains.any())  # what deciding costs has to be gained by decisions
        speaks = gain > z * error or (nearer > TIMES * z and worth_it)
        holds = z > 0 and not speaks
        return cls(
            z, chosen_agent, gain, error if np.isfinite(error) else 0.0, len(gains), nearer, bool(holds), compared
        )

    def facts(self) -> dict:
        return asdict(self)


def _constant(costs: np.ndarray, agent: int, order: np.ndarray) -> np.ndarray:
    """Cost of asking one agent, and where it is unavailable the first of the others that is there: (n,)."""
    first = np.concatenate([[agent], order[order != agent]])
    there = np.isfinite(costs[:, first])
    return costs[np.arange(len(costs)), first[there.argmax(axis=1)]]


def _nearer(predicted: np.ndarray, costs: np.ndarray) -> float:
    """:attr:`Guard.nearer`."""
    there = np.isfinite(costs)
    means = np.where(there, costs, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    true, said, constant = (
        contrasts(values[:, :, None], there)[0][:, :, 0]
        for values in (costs, predicted, np.broadcast_to(means, costs.shape))
    )
    gains = ((true - constant) ** 2 - (true - said) ** 2).sum(axis=1)
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return float(gains.mean() / error) if error > 0 else 0.0
