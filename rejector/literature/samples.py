"""Samples as the methods see them: standardised inputs, costs, classes, and a model's class probabilities."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Rows to learn from or to choose by. K classes, A agents of which J = A - 1 are experts.

    Attributes:
        x: standardised input, float32 (n, width).
        costs: what each agent costs, queries included where the method pays for them, float32 (n, A); infinite where an
            agent is unavailable. In errors (cost divided by ``lambda``) for methods of classes alone.
        target: true class, int64 (n,); None without classes.
        probabilities: of the model's classes, float32 (n, K), zeros where it has no answer; None where not needed.
        right: how right each expert is, ``1 - cost`` of its class in [0, 1], float32 (n, J), 0 where it is unavailable;
            None without 0-1 costs of classes.
        answers: each expert's class, int64 (n, J), -1 where it is unavailable; None without 0-1 costs of classes.
        parts: raw costs by task, and what is paid with prices per sample, each times its weight, float32 (n, A, C);
            infinite where an agent is unavailable; None with a classifier of its own, whose costs are errors.
        unasked: ``costs`` without queries, float32 (n, A); infinite where an agent is unavailable.
    """

    x: Tensor
    costs: Tensor
    target: Tensor | None = None
    probabilities: Tensor | None = None
    right: Tensor | None = None
    answers: Tensor | None = None
    parts: Tensor | None = None
    unasked: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def missing(self) -> Tensor:
        """Where an agent is unavailable, bool (n, A)."""
        return self.costs.isinf()

    @property
    def known_target(self) -> Tensor:
        """:attr:`target`, for what is learnt of classes."""
        assert self.target is not None
        return self.target

    @property
    def known_right(self) -> Tensor:
        """:attr:`right`, for what is learnt of experts' errors."""
        assert self.right is not None
        return self.right

    @property
    def known_probabilities(self) -> Tensor:
        """:attr:`probabilities`, for what needs a model's."""
        assert self.probabilities is not None
        return self.probabilities

    def take(self, rows: Tensor) -> Samples:
        """Some rows, by position or as bool (n,)."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: values[rows] for name, values in found.items() if values is not None})

    def answered_by(self, probabilities: Tensor) -> Samples:
        """With a classifier of one's own in agent 0's place: its probabilities (n, K), and 1 where it errs."""
        wrong = (probabilities.argmax(dim=1) != self.known_target).to(self.costs.dtype)
        costs = torch.cat([wrong[:, None], self.costs[:, 1:]], dim=1)
        unasked = None if self.unasked is None else torch.cat([wrong[:, None], self.unasked[:, 1:]], dim=1)
        return replace(self, costs=costs, unasked=unasked, probabilities=probabilities)
