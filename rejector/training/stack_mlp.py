"""Linear and MLP rejectors trained side by side on a CPU: the backward pass written out, a cache-full at a time.

With small networks most of the time goes to what surrounds the arithmetic: autograd's records, fresh memory for every
intermediate, activations that fall out of the cache. Here buffers are made once, and forward, loss and backward run
over as many points, and with large batches as few rows, as a core's cache holds.

A point's numbers do not depend on its neighbours: how rows are cut depends on the network alone, no sum runs over
points, and on one thread a batched product treats each of its matrices alike, provided that they all begin at an
aligned address. (With 33 units every second matrix begins in the middle of a vector, and on some processors its last
bits differ.) So units, the rows of a block and a linear network's features are padded with zeros to
:data:`ALIGNED` numbers. A point trained in a grid then equals the same point trained alone, bit by bit. That is also
why each stack works on one thread (rejector.py beside runs several beside each other): on more, a product of two large
matrices is cut differently from one of many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from l2d.rejector.grid import GridPoint
from l2d.rejector.training.stack import Stack, padded

#: Activations of a layer that are worked on at once, in numbers: 1 MiB in float32, and as much again for gradients.
AT_ONCE = 1 << 18
#: Every matrix of a batched product has a multiple of so many numbers: 64 bytes in float32, a line of the cache and
#: the widest vector.
ALIGNED = 16
_relu_backward = torch.ops.aten.threshold_backward.grad_input

Layers = list[tuple[Tensor, Tensor]]  # weight and bias: (P, in, H) and (P, 1, H); of the last (P, A, in) and (P, A, 1)


class MLPStack(Stack):
    """:class:`l2d.rejector.training.stack.Stack` of the networks ``linear`` and ``mlp`` on a CPU.

    Legend besides Stack's: G points of a group, R rows of a block, H units of a hidden layer.
    """

    def __init__(self, points: list[GridPoint], weights: Tensor, **settings):
        # Hidden layers have padded units. A linear network has none: its rows of weights are as wide as the input.
        self.width, num_agents = settings["width"], settings["num_agents"]
        if settings["network"] == "linear":
            self.width = padded(self.width, ALIGNED)
        super().__init__(points, weights, **settings)
        self.layers, self.gradients = self._layers_of(self._flat), self._layers_of(self._flat_gradient)
        self._more = torch.zeros_like(self._flat)  # gradients of a batch's second block of rows, and further ones
        self.more_gradients = self._layers_of(self._more)
        units = [bias.shape[2] for _, bias in self.layers[:-1]]
        self._rows_at_once = max(1, AT_ONCE // max(self.width, num_agents, *units) // ALIGNED) * ALIGNED
        sizes = {"inputs": self.width, "scores": num_agents, "by_unit": max(units, default=0)}
        sizes |= {f"layer {depth}": size for depth, size in enumerate(units)}
        self.buffers = {name: self._flat.new_empty(self._rows_at_once * size) for name, size in sizes.items()}
        self._known_groups: dict[tuple[int, bool], list[_Group]] = {}

    def _is_transposed(self, name: str) -> bool:
        # Products of rows with a matrix are fastest with (in, out); the last one, whose result is (A, R), with (A, in).
        return name != list(self._shapes)[-2]

    def _stored_shape(self, name: str, shape: torch.Size) -> torch.Size:
        if name in list(self._shapes)[-2:]:  # the last layer, (A, in) and (A,)
            return torch.Size([*shape[:1], *(padded(size, ALIGNED) for size in shape[1:])])
        is_first = name == next(iter(self._shapes))
        sizes = [padded(shape[0], ALIGNED), *(shape[1:] if is_first else (padded(size, ALIGNED) for size in shape[1:]))]
        return torch.Size(sizes)

    def _layers_of(self, flat: Tensor) -> Layers:
        values = list(self._stored_views(flat).values())
        *hidden, (weight, bias) = zip(values[::2], values[1::2], strict=True)
        return [*((w.mT, b[:, None, :]) for w, b in hidden), (weight, bias[:, :, None])]

    def _groups(self, rows: int, *, shared: bool = False) -> list[_Group]:
        """Points whose activations on a block of rows fit the cache together; cut between two seeds if that is near."""
        key = (rows, shared)
        if key not in self._known_groups:
            most, cuts = max(1, self._rows_at_once // rows), [0]
            for position in range(1, len(self.points)):
                size = position - cuts[-1]
                new_seed = self.points[position].seed != self.points[position - 1].seed
                if size == most or (new_seed and 2 * size >= most):
                    cuts.append(position)
            ends = [*cuts[1:], len(self.points)]
            self._known_groups[key] = [
                _Group(self, slice(*ends_of), rows, shared) for ends_of in zip(cuts, ends, strict=True)
            ]
        return self._known_groups[key]

    def _backward(self, features: Tensor, raw: Tensor, keys: Tensor | None) -> Tensor:
        rows = features.shape[1]
        losses = torch.zeros(len(self.points), dtype=torch.float64)
        raw = raw.permute(3, 0, 2, 1).contiguous()  # (T, S, A, B)
        for start in range(0, rows, self._rows_at_once):
            block = slice(start, min(start + self._rows_at_once, rows))
            count = block.stop - block.start
            seen, theirs = self._aligned(features[:, block]), pad(raw[..., block], (0, padded(count, ALIGNED) - count))
            for group in self._groups(seen.shape[1]):
                x, costs = group.inputs(seen), group.costs(theirs)
                scores, activations = group.forward(x)
                value, by_score = self._value_and_gradient(scores, costs, group.nu, 1)
                by_score[..., count:] = 0
                losses[group.points] += value[:, :count].sum(dim=1, dtype=torch.float64)
                group.backward(by_score.div_(rows), activations, group.more_gradients if start else group.gradients)
            if start:
                self._flat_gradient += self._more
        return losses / rows

    def risk(self, features: Tensor, raw: Tensor, rows_at_once: int) -> Tensor:
        total = torch.zeros(len(self.points), dtype=torch.float64)
        size = min(padded(rows_at_once, ALIGNED), self._rows_at_once)
        for x, costs in zip(features.split(size), raw.permute(2, 1, 0).split(size, dim=2), strict=True):
            seen = self._aligned(x[None])
            for group in self._groups(seen.shape[1], shared=True):
                scores, _ = group.forward(group.inputs(seen))
                losses = self._deferral_losses(scores[..., : len(x)].mT, group.costs(costs[:, None]).mT)
                total[group.points] += losses.sum(dim=1, dtype=torch.float64)
        return total / len(features)

    def _aligned(self, features: Tensor) -> Tensor:
        """Rows (S, R, W) with zeros up to a multiple of :data:`ALIGNED` rows, and to the width of the weights."""
        rows = features.shape[1]
        more = (0, self.width - features.shape[2], 0, padded(rows, ALIGNED) - rows)
        return pad(features, more) if any(more) else features


class _Group:
    """Neighbouring points of a stack on blocks of so many rows: views of what the stack holds.

    Args:
        rows: R.
        shared: whether all points see the same rows, not each those of its seed.
    """

    def __init__(self, stack: MLPStack, points: slice, rows: int, shared: bool):
        self.points = points
        everything = (stack.layers, stack.gradients, stack.more_gradients)
        self.layers, self.gradients, self.more_gradients = (
            [(weight[points], bias[points]) for weight, bias in layers] for layers in everything
        )
        self.weights = stack.weights.T[:, points, None, None]  # (T, G, 1, 1)
        self.beta = stack.beta[points, :, None]
        self.nu = None if stack.nu is None else stack.nu[points]
        self.of_seed = torch.zeros_like(stack.of_seed[points]) if shared else stack.of_seed[points]
        self.one_seed = int(self.of_seed[0]) if bool((self.of_seed == self.of_seed[0]).all()) else None
        size = points.stop - points.start

        def shaped(name: str, *shape: int) -> Tensor:
            return stack.buffers[name][: math.prod(shape)].view(shape)

        units = [bias.shape[2] for _, bias in self.layers[:-1]]
        self.activations = [shaped(f"layer {depth}", size, rows, count) for depth, count in enumerate(units)]
        self.by_unit = shaped("by_unit", size, rows, units[-1]) if units else None
        self.scores = shaped("scores", size, self.beta.shape[1], rows)
        self.gathered = shaped("inputs", size, rows, stack.width)

    def inputs(self, features: Tensor) -> Tensor:
        """Each point's rows: (S, R, W) -> (G, R, W)."""
        if self.one_seed is None:
            return torch.index_select(features, 0, self.of_seed, out=self.gathered)
        return features[self.one_seed].expand(len(self.of_seed), -1, -1)

    def costs(self, raw: Tensor) -> Tensor:
        """Total costs as :func:`l2d.rejector.costs.total_costs` has them: (T, S, A, R) -> (G, A, R).

        One operation at a time: in a fused one, numbers left over at the end of a tensor may be rounded otherwise, so
        that it would matter how many points there are.
        """
        raw = raw[:, self.of_seed] if self.one_seed is None else raw[:, self.one_seed, None]
        first, *others = (cost * weight for cost, weight in zip(raw, self.weights, strict=True))
        return sum(others, start=first) + self.beta

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(G, R, W) -> scores (G, A, R) and the input of each layer, in memory that the next call writes to."""
        inputs = [x]
        for (weight, bias), out in zip(self.layers[:-1], self.activations, strict=True):
            inputs.append(torch.baddbmm(bias, inputs[-1], weight, out=out).relu_())
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, weight, inputs[-1].mT, out=self.scores), inputs

    def backward(self, by_score: Tensor, inputs: list[Tensor], gradients: Layers) -> None:
        """Gradients of all layers from those by score, (G, A, R). Overwrites the activations."""
        (weight, _), (by_weight, by_bias) = self.layers[-1], gradients[-1]
        torch.bmm(by_score, inputs[-1], out=by_weight)
        torch.sum(by_score, dim=2, keepdim=True, out=by_bias)
        if len(inputs) > 1:
            by_unit = torch.bmm(by_score.mT, weight, out=self.by_unit)
        for depth in range(len(inputs) - 2, -1, -1):
            _relu_backward(by_unit, inputs[depth + 1], 0, grad_input=by_unit)
            by_weight, by_bias = gradients[depth]
            torch.bmm(inputs[depth].mT, by_unit, out=by_weight)
            torch.sum(by_unit, dim=1, keepdim=True, out=by_bias)
            if depth:  # the layer's own activations are not needed any more
                by_unit = torch.bmm(by_unit, self.layers[depth][0].mT, out=inputs[depth + 1])
