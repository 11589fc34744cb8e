"""Linear and MLP rejectors trained side by side on a CPU: the backward pass written out, a cache-full at a time.

With small networks most of the time goes to what surrounds the arithmetic: autograd's records, fresh memory for every
intermediate, activations that fall out of the cache. Here buffers are made once, and forward, loss and backward run
over as many points, and with large batches as few rows, as a core's cache holds.

A point's numbers do not depend on who is beside it: how rows are cut depends on the network alone, no sum runs over
points, and on one thread a batched product treats each of its matrices alike. So a point trained in a grid equals the
same point trained alone, bit by bit. That is also why each stack works on one thread (:mod:`rejector.training` runs
several beside each other): on more, a product of two large matrices is cut differently from one of many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .grid import GridPoint
from .losses import allocate, deferral_loss
from .stacked import Stack

#: Activations of a layer that are worked on at once, in numbers: 1 MiB in float32, and as much again for gradients.
AT_ONCE = 1 << 18
#: Features that are taken at once, for as many batches as that is; their costs are worked out together.
TAKEN_AT_ONCE = 1 << 18
_relu_backward = torch.ops.aten.threshold_backward.grad_input

Layers = list[tuple[Tensor, Tensor]]  # weight and bias: (P, in, H) and (P, 1, H); of the last (P, A, in) and (P, A, 1)


class MLPStack(Stack):
    """:class:`rejector.stacked.Stack` of the networks ``linear`` and ``mlp`` on a CPU.

    Legend besides Stack's: G points of a group, R rows of a block, H units of a hidden layer.
    """

    def __init__(self, points: list[GridPoint], weights: Tensor, **settings):
        super().__init__(points, weights, **settings)
        self.layers, self.gradients = self._layers_of(self._flat), self._layers_of(self._flat_gradient)
        self._more = torch.zeros_like(self._flat)  # gradients of a batch's second block of rows, and further ones
        self.more_gradients = self._layers_of(self._more)
        self.width, num_agents = settings["width"], settings["num_agents"]
        units = [bias.shape[2] for _, bias in self.layers[:-1]]
        self._rows_at_once = max(1, AT_ONCE // max(self.width, num_agents, *units))
        sizes = {"inputs": self.width, "scores": num_agents, "by_unit": max(units, default=0)}
        sizes |= {f"layer {depth}": size for depth, size in enumerate(units)}
        self.buffers = {name: self._flat.new_empty(self._rows_at_once * size) for name, size in sizes.items()}
        self._known_groups: dict[tuple[int, bool], list[_Group]] = {}

    def _is_transposed(self, name: str) -> bool:
        # Products of rows with a matrix are fastest with (in, out); the last one, whose result is (A, R), with (A, in).
        return name != list(self._shapes)[-2]

    def _layers_of(self, flat: Tensor) -> Layers:
        values = list(self._views(flat).values())
        *hidden, (weight, bias) = zip(values[::2], values[1::2], strict=True)
        return [*((w.mT, b[:, None, :]) for w, b in hidden), (weight, bias[:, :, None])]

    def _groups(self, rows: int, *, shared: bool = False) -> list[_Group]:
        """Points whose activations on a block of rows fit the cache together; cut between two seeds if that is near."""
        most, key = max(1, self._rows_at_once // rows), (max(1, self._rows_at_once // rows), shared)
        if key not in self._known_groups:
            cuts = [0]
            for position in range(1, len(self.points)):
                size = position - cuts[-1]
                new_seed = self.points[position].seed != self.points[position - 1].seed
                if size == most or (new_seed and 2 * size >= most):
                    cuts.append(position)
            ends = [*cuts[1:], len(self.points)]
            self._known_groups[key] = [_Group(self, slice(*part), shared) for part in zip(cuts, ends, strict=True)]
        return self._known_groups[key]

    def run(self, take: Take, rows: Tensor, batch_size: int, rates: list[float]) -> Tensor:
        losses = torch.zeros(len(self.points), dtype=torch.float64)
        many = max(1, TAKEN_AT_ONCE // (len(self.seeds) * batch_size * self.width))
        for first in range(0, len(rates), many):
            taken = take(rows[:, first * batch_size : (first + many) * batch_size])
            losses += self._learn(*taken, batch_size, rates[first : first + many])
        return losses

    def _backward(self, features: Tensor, raw: Tensor) -> Tensor:
        rows = features.shape[1]
        return self._learn(features, raw, rows, None) / rows

    def _learn(self, features: Tensor, raw: Tensor, batch_size: int, rates: list[float] | None) -> Tensor:
        """Steps on the batches that (S, n, W) and (S, n, A, T) are cut into; with no rates, one batch's gradients.

        Returns:
            Sums of losses, float64 (P,).
        """
        blocks = list(_blocks(features.shape[1], batch_size, self._rows_at_once))
        sizes = [block.rows for block in blocks]
        inputs, raw = features.split(sizes, dim=1), raw.permute(3, 0, 2, 1).contiguous()  # (T, S, A, n)
        losses = torch.zeros(len(self.points), dtype=torch.float64)
        work = []
        for group in self._groups(max(sizes)):
            costs = group.costs(raw)
            prepared = self._loss.prepare(recentred(costs, 1) if self._recentre else costs, 1)
            work.append((group, zip(*(values.split(sizes, dim=2) for values in prepared), strict=True)))
        for block, x, lr in zip(blocks, inputs, _at_ends(blocks, rates), strict=True):
            for group, prepared in work:
                scores, activations = group.forward(group.inputs(x))
                terms, by_score = self._loss.evaluate(scores, group.nu, 1, *next(prepared))
                losses[group.points] += terms.sum(dim=(1, 2), dtype=torch.float64)
                gradients = group.gradients if block.is_first else group.more_gradients
                group.backward(by_score.div_(block.of_batch), activations, gradients)
            if not block.is_first:
                self._flat_gradient += self._more
            if lr is not None:
                self._update(lr)
        return losses
