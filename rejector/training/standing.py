"""Points of a grid that still train. One that has run out of patience leaves: what it did further would not count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from l2d.rejector.grid import GridPoint
from l2d.rejector.training.stack import Stack
from l2d.rejector.training.stack_mlp import MLPStack


class Standing:
    """Stacks of the points that still train, and the state in which the others left.

    Points leave stacks whose points do not depend on those beside them (:class:`MLPStack`). In others a point keeps its
    place, since its last bits would change.

    Args:
        points: those of one seed beside each other.
        make: the stacks of some of them, in order.
        may_leave: whether points may leave at all.

    Attributes:
        positions: of the points that train, ascending.
        stacks: theirs, in that order.
    """

    def __init__(self, points: list[GridPoint], make: Callable[[list[GridPoint]], list[Stack]], *, may_leave: bool):
        self._points, self._make = points, make
        self.positions, self.stacks = list(range(len(points))), make(points)
        self._may_leave = may_leave and all(isinstance(stack, MLPStack) for stack in self.stacks)
        self._left: dict[str, Tensor] = {}

    def leave(self, over: Tensor) -> None:
        """Divide the points that are not ``over``, bool (all points,), among new stacks."""
        staying = [position for position in self.positions if not over[position]]
        if not self._may_leave or not staying or len(staying) == len(self.positions):
            return
        self._left = self.state()
        self.positions, self.stacks = staying, self._make([self._points[position] for position in staying])
        self._load({name: values[staying] for name, values in self._left.items()})

    def best_epoch(self) -> Tensor:
        """Of all points, int64 (all points,)."""
        found = torch.cat([stack.best_epoch.cpu() for stack in self.stacks])
        if not self._left:
            return found
        return self._left["best_epoch"].index_copy(0, torch.tensor(self.positions), found)

    def state(self) -> dict[str, Tensor]:
        """:meth:`Stack.state` of all points; those that have left count the steps of the others."""
        states = [stack.state() for stack in self.stacks]
        found = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        if not self._left:
            return found
        where = torch.tensor(self.positions)
        whole = {name: values.index_copy(0, where, found[name]) for name, values in self._left.items()}
        return {**whole, "steps": found["steps"][:1].expand(len(self._points)).clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; before any point has left."""
        self._load(state)

    def _load(self, state: dict[str, Tensor]) -> None:
        start = 0
        for stack in self.stacks:
            stop = start + len(stack.points)
            stack.load_state({name: values[start:stop] for name, values in state.items()})
            start = stop


def best_of(state: dict[str, Tensor], position: int) -> dict[str, Tensor]:
    """Parameters by name of one point at its best epoch, from a state of all."""
    best = {name.removeprefix("best."): values for name, values in state.items() if name.startswith("best.")}
    return {name: values[position].clone().contiguous() for name, values in best.items()}
