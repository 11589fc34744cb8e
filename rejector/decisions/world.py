"""Samples as the engine sees them: what is predicted before anyone is asked, what each agent answered, what it cost.

Numpy alone, so that a saved policy decides without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from l2d.data.samples.boxes import Boxes


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers of A agents to n inputs; what an agent has not been asked is never looked at.

    Attributes:
        classes: class indices, int (n, agents), -1 without an answer; None without a classification task.
        chances: class probabilities, float32 (n, agents, classes); None where answers lack them.
        numbers: answers of a regression task, float64 (n, agents), NaN without an answer; None without such a task.
        sure: how sure each agent says it is, in [0, 1], float64 (n, agents), NaN where it does not; None: none does.
        paid: what each answer was paid, float64 (n, agents), NaN where that is not known; None where it does not vary.
        boxes: of each agent on the n images; none of an image without an answer. None where answers are not boxes.
    """

    classes: np.ndarray | None = None
    chances: np.ndarray | None = None
    numbers: np.ndarray | None = None
    sure: np.ndarray | None = None
    paid: np.ndarray | None = None
    boxes: tuple[Boxes, ...] | None = None

    def take(self, rows: Any) -> Answers:
        """Answers to some of the inputs."""
        parts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "boxes"}
        boxes = None if self.boxes is None else tuple(each.take(rows) for each in self.boxes)
        some = {name: None if values is None else values[rows] for name, values in parts.items()}
        return Answers(**some, boxes=boxes)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of n inputs when a decision is made.

    Attributes:
        predicted: expected task cost of each agent, before any is asked, float64 (n, agents).
        right: expected chance that each agent's class is right, float64 (n, agents); None without classes.
        available: which agents can be asked, bool (n, agents).
        answers: of agents that have been asked; the others' are not looked at.
        fold: whose models must not be used because they have seen the input, int (n,); None: all models' mean.
    """

    predicted: np.ndarray
    right: np.ndarray | None
    available: np.ndarray
    answers: Answers
    fold: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.predicted)

    def take(self, rows: Any) -> Known:
        """What is known of some of the inputs: rows in rising order, or any others fewer than all."""
        if (
            isinstance(rows, np.ndarray)
            and rows.dtype != bool
            and len(rows) == len(self)
            and bool(np.all(rows[1:] > rows[:-1]))
        ):
            return self
        return Known(
            predicted=self.predicted[rows],
            right=None if self.right is None else self.right[rows],
            available=self.available[rows],
            answers=self.answers.take(rows),
            fold=None if self.fold is None else self.fold[rows],
        )


#: Combined answers of some rows, by column (see :func:`l2d.rejector.decisions.combine.combine`) -> what they cost
#: without asking, float64 (rows,).
CostOf = Callable[[dict[str, Any], np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class World:
    """n samples of a cost table with all answers.

    Attributes:
        ids: of the samples.
        agents: their names.
        known: what is predicted, and all answers.
        costs: task cost of each answer, without asking, float64 (n, agents), infinite where there is none.
        charges: what asking takes, in units of loss, float64 (n, agents).
        price: what asking takes of a budget, in its unit, float64 (n, agents).
        cost_of: what combined answers of some rows cost; None where answers cannot be combined.
        num_classes: 0 without a classification task.
        wrong: whether each answer's class is wrong, bool (n, agents); None without classes.
        group: code of each sample's group, int (n,); None without groups.
    """

    ids: Sequence[str]
    agents: list[str]
    known: Known
    costs: np.ndarray
    charges: np.ndarray
    price: np.ndarray
    cost_of: CostOf | None = None
    num_classes: int = 0
    truth: np.ndarray | None = None
    group: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.costs)

    @property
    def num_agents(self) -> int:
        return self.costs.shape[1]

    def take(self, rows: np.ndarray) -> World:
        """Some of the samples."""
        cost_of = self.cost_of
        return replace(
            self,
            ids=[self.ids[row] for row in rows.tolist()],
            known=self.known.take(rows),
            costs=self.costs[rows],
            charges=self.charges[rows],
            price=self.price[rows],
            cost_of=None if cost_of is None else lambda answers, some: cost_of(answers, rows[some]),
            truth=None if self.truth is None else self.truth[rows],
            group=None if self.group is None else self.group[rows],
        )
