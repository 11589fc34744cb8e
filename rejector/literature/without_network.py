"""Methods that fit no network: k nearest neighbours on costs, Chow's threshold on the model's confidence, and others
that have a module of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from l2d.data.errors import UsageError
from l2d.rejector import thresholds
from l2d.rejector.literature.carrot import Carrot
from l2d.rejector.literature.conformal import Conformal
from l2d.rejector.literature.elo import Elo
from l2d.rejector.literature.neighbours import choose_neighbours, mean_costs
from l2d.rejector.literature.profiles import Profiles
from l2d.rejector.literature.samples import Samples

LOWEST = -1e9  # score of agents that a method never chooses while another is available


class WithoutNetwork(Protocol):
    """What is kept of the training samples, and scores from it."""

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        """What a run keeps, and its deferral loss on validation."""
        ...

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        """Score of each agent, (n, agents), from standardised inputs and the model's class probabilities."""
        ...


class Neighbours:
    """Mean costs of the nearest training samples; their number is chosen on validation."""

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        count, risk = choose_neighbours(train, validation)
        learnt = {
            "memory_x": train.x.contiguous(),
            "memory_costs": train.costs.contiguous(),
            "neighbours": torch.tensor(count, dtype=torch.int64),
        }
        return learnt, risk

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        return -mean_costs(x, state["memory_x"], state["memory_costs"], [int(state["neighbours"])])[0]


class Threshold:
    """Chow's rule, see :func:`l2d.rejector.thresholds.choose_threshold`."""

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        confidence = validation.known_probabilities.amax(dim=1).double().numpy()
        found = thresholds.choose_threshold(confidence, validation.costs.numpy())
        if found is None:
            raise UsageError(
                "no expert can stand in wherever the model has no answer", hint="choose agents with --only"
            )
        expert, threshold = found
        # a tie goes to the model, so it keeps what is as sure as the threshold; 2: nothing is
        at = torch.tensor(min(threshold, 2.0), dtype=torch.float32)
        risk = float(thresholds.threshold_losses(confidence, validation.costs.numpy(), expert, threshold).mean())
        return {"expert": torch.tensor(expert, dtype=torch.int64), "threshold": at}, risk

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        assert chances is not None  # the method asks for them, see l2d.rejector.methods
        found = torch.full((len(x), num_agents), LOWEST)
        found[:, 0] = chances.amax(dim=1)
        found[:, int(state["expert"])] = state["threshold"]
        return found


#: Method -> how it learns and scores; all others have a :class:`l2d.rejector.literature.rule.Rule`.
WITHOUT_NETWORK: dict[str, WithoutNetwork] = {
    "knn": Neighbours(),
    "model_confidence": Threshold(),
    "carrot": Carrot(),
    "profiles": Profiles(),
    "conformal": Conformal(),
    "elo": Elo(),
}
