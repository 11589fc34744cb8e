"""What a method learnt by gradient descent consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2d.rejector.literature.samples import Samples


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A method as functions of its network's outputs, (n, m). K classes, A agents.

    Attributes:
        outputs: (K, A) -> m.
        loss: (outputs, samples, alpha) -> loss of each sample, (n,).
        scores: (outputs, probabilities (n, K) or None, query costs (A,)) -> score of each agent, (n, A).
        probabilities: (outputs, A) -> class probabilities (n, K) of the classifier that is trained with the rejector;
            None where there is none.
        sees_probabilities: the network's input is the sample's with the model's class probabilities behind it.
        network: (number of inputs, number of outputs) -> the network, in place of the one that ``--rejector`` names.
        complete: fills what is missing from the training samples, before they are learnt from.
        check: refuses training samples that the method is not defined for.
        estimates: it estimates something apart from deferral, so the epoch is that of the lowest loss on validation,
            not of the lowest deferral risk.
    """

    outputs: Callable[[int, int], int]
    loss: Callable[[Tensor, Samples, float], Tensor]
    scores: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    probabilities: Callable[[Tensor, int], Tensor] | None = None
    sees_probabilities: bool = False
    network: Callable[[int, int], torch.nn.Module] | None = None
    complete: Callable[[Samples], Samples] | None = None
    check: Callable[[Samples], None] | None = None
    estimates: bool = False


def hidden_where(outputs: Tensor, missing: Tensor) -> Tensor:
    """Outputs with a large negative number where an agent is unavailable, so that a softmax gives it nothing."""
    return outputs.masked_fill(missing, torch.finfo(outputs.dtype).min / 4)
