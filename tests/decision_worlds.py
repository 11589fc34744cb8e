"""Simulated tables whose best policy is known: types of inputs, agents that err independently given the type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from l2d.rejector.decisions.world import Answers, Known, World


def right_by_type(types: int, agents: int, seed: int) -> np.ndarray:
    """Chance that each agent is right on inputs of each type, (types, agents)."""
    return np.random.default_rng(seed).uniform(0.3, 0.95, (types, agents))


def world_of(right: np.ndarray, charges: Sequence[float], n: int, *, classes: int, seed: int) -> World:
    """A table of inputs whose type is known: what is predicted of an agent is its true chance of being wrong."""
    generator = np.random.default_rng(seed)
    types, agents = right.shape
    kind, truth = generator.integers(types, size=n), generator.integers(classes, size=n)
    good = generator.random((n, agents)) < right[kind]
    other = (truth[:, None] + generator.integers(1, classes, (n, agents))) % classes
    said = np.where(good, truth[:, None], other)
    asking = np.tile(np.asarray(charges, float), (n, 1))
    return World(
        ids=[f"s{row}" for row in range(n)],
        agents=[f"a{agent}" for agent in range(agents)],
        known=Known(
            predicted=1 - right[kind],
            right=right[kind],
            available=np.ones((n, agents), bool),
            answers=Answers(classes=said),
            fold=generator.integers(5, size=n),
        ),
        costs=(~good).astype(float),
        charges=asking,
        price=100 * asking,
        cost_of=lambda found, rows: (found["pred_cla"] != truth[rows]).astype(float),
        num_classes=classes,
        truth=truth,
    )


class Truth:
    """The world's best policies, by enumeration of everything that agents can say."""

    def __init__(self, right: np.ndarray, charges: Sequence[float], classes: int):
        self.right, self.charges, self.classes = right, charges, classes

    def _joint(self, kind: int, said: dict[int, int]) -> np.ndarray:
        """Chance of each class and of these answers together, (classes,)."""
        chance = np.full(self.classes, 1 / self.classes)
        for agent, answer in said.items():
            like = np.full(self.classes, (1 - self.right[kind, agent]) / (self.classes - 1))
            like[answer] = self.right[kind, agent]
            chance = chance * like
        return chance

    def _stop(self, kind: int, said: dict[int, int]) -> float:
        chance = self._joint(kind, said)
        return min((1 - chance[answer] / chance.sum() for answer in said.values()), default=np.inf)

    def _after(self, kind: int, said: dict[int, int], agent: int, value) -> float:
        """What asking an agent costs, and what follows, on average over its answers."""
        total = self._joint(kind, said).sum()
        following = 0.0
        for answer in range(self.classes):
            more = {**said, agent: answer}
            following += self._joint(kind, more).sum() / total * value(more)
        return self.charges[agent] + following

    def adaptive(self, depth: int) -> float:
        """Loss of the best policy that asks up to this many agents."""

        def value(kind: int, said: dict[int, int]) -> float:
            best = self._stop(kind, said)
            if len(said) < depth:
                for agent in range(self.right.shape[1]):
                    if agent not in said:
                        best = min(best, self._after(kind, said, agent, lambda more: value(kind, more)))
            return best

        return float(np.mean([value(kind, {}) for kind in range(len(self.right))]))

    def cascade(self, order: Sequence[int]) -> float:
        """Loss of the best rule that asks in this order and may stop."""

        def value(kind: int, said: dict[int, int]) -> float:
            best = self._stop(kind, said)
            if len(said) < len(order):
                best = min(best, self._after(kind, said, order[len(said)], lambda more: value(kind, more)))
            return best

        return float(np.mean([value(kind, {}) for kind in range(len(self.right))]))

    def committee(self, members: Sequence[int]) -> float:
        """Loss of the best combined answer of these, for every input."""

        def value(kind: int, said: dict[int, int]) -> float:
            if len(said) == len(members):
                return self._stop(kind, said)
            return self._after(kind, said, members[len(said)], lambda more: value(kind, more))

        return float(np.mean([value(kind, {}) for kind in range(len(self.right))]))

    def router(self) -> float:
        """Loss of the best single agent by type."""
        return float((1 - self.right + np.array(self.charges)).min(axis=1).mean())
