"""Linear and MLP rejectors trained side by side on a CPU: the backward pass written out, a cache-full at a time.

With small networks most of the time goes to what surrounds the arithmetic: autograd's records, fresh memory for every
intermediate, activations that fall out of the cache. Here buffers are made once, and forward, loss and backward run
over as many points, and with large batches as few rows, as a core's caches hold.

A point's numbers do not depend on the points beside it. How rows are cut depends on the network alone; no sum runs over
points; each stack works on one thread (rejector.py beside runs several beside each other), since on more a product of
two large matrices is cut differently from one of many. And matrices look alike to whatever multiplies them: BLAS
libraries round a product by where its result begins in memory (MKL on AMD's processors does, for results that do not
begin at a multiple of 16 bytes). So features, units and rows are filled up with zeros to whole vectors, and every
matrix and each of its rows begins at a multiple of 64 bytes, in a grid and alone. What is filled up stays 0: its
gradients are. So a point trained in a grid equals the same point trained alone, bit by bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from l2d.rejector.grid import GridPoint
from l2d.rejector.training.stack import Stack, padded

#: Activations of a layer that are worked on at once, in numbers: 1 MiB in float32, and as much again for gradients.
AT_ONCE = 1 << 18
#: So much of each layer times this is what points beside each other have in one operation. It falls out of a core's own
#: cache, which costs less than operations that are over soon: after each, threads wait for each other at Python's lock.
BLOCKS = 4
#: Numbers to whose multiples features and units are filled up: 64 bytes of float32, the widest vector and a cache line.
LANES = 16
#: Rows likewise: what elementwise operations work on in one go, so that none are left over for scalar code.
ROWS = 32
_relu_backward = torch.ops.aten.threshold_backward.grad_input

Layers = list[tuple[Tensor, Tensor]]  # weight and bias: (P, in, H) and (P, 1, H); of the last (P, A, in) and (P, A, 1)


class MLPStack(Stack):
    """:class:`l2d.rejector.training.stack.Stack` of the networks ``linear`` and ``mlp`` on a CPU.

    Legend besides Stack's: G points of a group, R rows of a block, H units of a hidden layer; all of them and W are
    counted as they are filled up.
    """

    def __init__(self, points: list[GridPoint], weights: Tensor, **settings):
        super().__init__(points, weights, **settings)
        self.layers, self.gradients = self._layers_of(self._flat), self._layers_of(self._flat_gradient)
        self._more = torch.zeros_like(self._flat)  # gradients of a batch's second block of rows, and further ones
        self.more_gradients = self._layers_of(self._more)
        self.width, num_agents = padded(settings["width"], LANES), settings["num_agents"]
        units = [bias.shape[2] for _, bias in self.layers[:-1]]
        self._rows_at_once = max(ROWS, AT_ONCE // max(self.width, num_agents, *units) // ROWS * ROWS)
        sizes = {"gathered": self.width, "scores": num_agents, "by_unit": max(units, default=0)}
        sizes |= {f"layer {depth}": size for depth, size in enumerate(units)}
        rows = self._rows_at_once * min(BLOCKS, len(points))
        self.buffers = {name: self._flat.new_empty(rows * size) for name, size in sizes.items()}
        self._known_blocks: dict[tuple[int, bool], _Block] = {}

    def _stored(self, name: str) -> tuple[int, ...]:
        of_agents = name in list(self._shapes)[-2:]
        first, *inputs = self._shapes[name]
        return (first if of_agents else padded(first, LANES), *(padded(size, LANES) for size in inputs))

    def _is_transposed(self, name: str) -> bool:
        # Products of rows with a matrix are fastest with (in, out); the last one, whose result is (A, R), with (A, in).
        return name != list(self._shapes)[-2]

    def _layers_of(self, flat: Tensor) -> Layers:
        values = list(self._whole_views(flat).values())
        *hidden, (weight, bias) = zip(values[::2], values[1::2], strict=True)
        return [*((w.mT, b[:, None, :]) for w, b in hidden), (weight, bias[:, :, None])]

    def _block(self, rows: int, *, shared: bool = False) -> _Block:
        """What works on this number of rows. Groups are cut between two seeds if that is near."""
        key = (rows, shared)
        if key not in self._known_blocks:
            most, cuts = max(1, BLOCKS * self._rows_at_once // padded(rows, ROWS)), [0]
            for position in range(1, len(self.points)):
                size = position - cuts[-1]
                new_seed = self.points[position].seed != self.points[position - 1].seed
                if size == most or (new_seed and 2 * size >= most):
                    cuts.append(position)
            self._known_blocks[key] = _Block(self, rows, cuts, shared)
        return self._known_blocks[key]

    def _backward(self, features: Tensor, raw: Tensor, keys: Tensor | None) -> Tensor:
        rows = features.shape[1]
        losses = torch.zeros(len(self.points), dtype=torch.float64)
        for start in range(0, rows, self._rows_at_once):
            part = slice(start, min(start + self._rows_at_once, rows))
            block = self._block(part.stop - start)
            block.read(features[:, part], raw[:, part])
            for group in block.groups:
                scores, activations = group.forward(group.inputs())
                value, by_score = self._value_and_gradient(scores, group.costs(), group.nu, 1)
                losses[group.points] += value[:, : block.rows].sum(dim=1, dtype=torch.float64)
                by_score[..., block.rows :] = 0
                group.backward(by_score.div_(rows), activations, group.more_gradients if start else group.gradients)
            if start:
                self._flat_gradient += self._more
        return losses / rows

    def risk(self, features: Tensor, raw: Tensor, rows_at_once: int) -> Tensor:
        total = torch.zeros(len(self.points), dtype=torch.float64)
        size = min(rows_at_once, self._rows_at_once)
        for x, costs in zip(features.split(size), raw.split(size), strict=True):
            block = self._block(len(x), shared=True)
            block.read(x[None], costs[None])
            for group in block.groups:
                scores, _ = group.forward(group.inputs())
                losses = self._deferral_losses(scores.mT, group.costs().mT)[:, : block.rows]
                total[group.points] += losses.sum(dim=1, dtype=torch.float64)
        return total / len(features)


class _Block:
    """Some rows of a batch, filled up: copied to memory that begins where it has to.

    Args:
        rows: how many.
        cuts: where groups of points begin whose activations on these rows fit the cache together.
        shared: whether all points see the same rows, not each those of its seed.
    """

    def __init__(self, stack: MLPStack, rows: int, cuts: list[int], shared: bool):
        self.rows, whole, seeds = rows, padded(rows, ROWS), 1 if shared else len(stack.seeds)
        self.features = stack.weights.new_zeros(seeds, whole, stack.width)
        self.raw = stack.weights.new_zeros(stack.weights.shape[1], seeds, stack.beta.shape[1], whole)  # (T, S, A, R)
        ends = [*cuts[1:], len(stack.points)]
        self.groups = [_Group(stack, self, slice(*ends_of), shared) for ends_of in zip(cuts, ends, strict=True)]

    def read(self, features: Tensor, raw: Tensor) -> None:
        """Copy rows (S, rows, features) and their raw costs (S, rows, A, T)."""
        self.features[:, : self.rows, : features.shape[2]] = features
        self.raw[..., : self.rows] = raw.permute(3, 0, 2, 1)


class _Group:
    """Neighbouring points of a stack on a block of rows: views of what the stack holds."""

    def __init__(self, stack: MLPStack, block: _Block, points: slice, shared: bool):
        self.block, self.points = block, points
        everything = (stack.layers, stack.gradients, stack.more_gradients)
        self.layers, self.gradients, self.more_gradients = (
            [(weight[points], bias[points]) for weight, bias in layers] for layers in everything
        )
        self.weights = stack.weights.T[:, points, None, None]  # (T, G, 1, 1)
        self.beta = stack.beta[points, :, None]
        self.nu = None if stack.nu is None else stack.nu[points]
        self.of_seed = torch.zeros_like(stack.of_seed[points]) if shared else stack.of_seed[points]
        self.one_seed = int(self.of_seed[0]) if bool((self.of_seed == self.of_seed[0]).all()) else None
        size, rows = points.stop - points.start, block.features.shape[1]

        def shaped(name: str, *shape: int) -> Tensor:
            return stack.buffers[name][: math.prod(shape)].view(shape)

        units = [bias.shape[2] for _, bias in self.layers[:-1]]
        self.activations = [shaped(f"layer {depth}", size, rows, count) for depth, count in enumerate(units)]
        self.by_unit = shaped("by_unit", size, rows, units[-1]) if units else None
        self.scores = shaped("scores", size, self.beta.shape[1], rows)
        self.gathered = shaped("gathered", size, rows, stack.width)

    def inputs(self) -> Tensor:
        """Each point's rows, (G, R, W)."""
        if self.one_seed is None:
            return torch.index_select(self.block.features, 0, self.of_seed, out=self.gathered)
        return self.block.features[self.one_seed].expand(len(self.of_seed), -1, -1)

    def costs(self) -> Tensor:
        """Total costs as :func:`l2d.rejector.costs.total_costs` has them, (G, A, R).

        One operation at a time: in a fused one, numbers left over at the end of a tensor may be rounded otherwise, so
        that it would matter how many points there are.
        """
        raw = self.block.raw
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
