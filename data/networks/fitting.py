"""What every loop that fits a network by gradient descent shares: the epoch that is kept, and the loss of two tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torch.optim.adamw import adamw


class BestEpoch:
    """The parameters at the epoch of the lowest value on held-out samples, of equals the first.

    Attributes:
        value: the lowest so far; infinite before one is finite.
        epoch: its number, from 0.
        state: parameters and buffers there; None before a value is finite.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self.value, self.epoch = math.inf, 0
        self.state: dict[str, Tensor] | None = None

    def see(self, value: float, epoch: int) -> None:
        """An epoch is over: keep its parameters if they are the best so far."""
        if value < self.value:
            self.value, self.epoch = value, epoch
            self.state = {name: each.clone() for name, each in self._network.state_dict().items()}

    def restore(self) -> bool:
        """Put the best parameters back; False where no value was ever finite."""
        if self.state is None:
            return False
        self._network.load_state_dict(self.state)
        return True


class Adam:
    """Adam with decoupled weight decay, to the bits of ``torch.optim.AdamW``, of parameters of one type on one device.

    That one loads torch's compiler when it is made, a second of processor time in which so small a network is trained;
    this one calls the function that it calls, once for all parameters end to end: each number is worked on alone.
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float):
        self._parameters, self._lr, self._weight_decay = list(parameters), lr, weight_decay
        self._sizes = [each.numel() for each in self._parameters]
        self._mean, self._square = (torch.zeros_like(self._joined(self._parameters)) for _ in range(2))
        self._steps = torch.tensor(0.0)

    @staticmethod
    def _joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat([each.detach().flatten() for each in tensors])

    def zero_grad(self) -> None:
        for each in self._parameters:
            each.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step by the parameters' gradients; every one has some."""
        values = self._joined(self._parameters)
        adamw(
            [values],
            [self._joined([each.grad for each in self._parameters if each.grad is not None])],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )
        for each, new in zip(self._parameters, values.split(self._sizes), strict=True):
            each.copy_(new.view_as(each))


def scale_of(values: np.ndarray) -> Tensor:
    """Mean and deviation (2,) of a target, by which its errors are measured; the deviation is 1e-6 at least."""
    known = values.astype(np.float64)
    return torch.tensor([known.mean(), max(known.std(), 1e-6)])


def loss_of_tasks(
    scores: Tensor | None,
    value: Tensor | None,
    classes: Tensor | None,
    values: Tensor | None,
    *,
    deviation: Tensor,
    weight_reg: float,
) -> Tensor:
    """Cross-entropy plus ``weight_reg`` times smooth L1 of the standardised value, of the tasks that are answered.

    Args:
        scores: of classes, (n, K), with ``classes`` (n,), the true ones; None without that task.
        value: (n,), with ``values`` (n,), the true ones; None without that task.
        deviation: of the true values, see :func:`scale_of`.
    """
    answered = scores if scores is not None else value
    loss = torch.zeros((), device=None if answered is None else answered.device)
    if scores is not None and classes is not None:
        loss = loss + cross_entropy(scores, classes.long())
    if value is not None and values is not None:
        error = (value - values) / deviation
        loss = loss + weight_reg * smooth_l1_loss(error, torch.zeros_like(error))
    return loss
