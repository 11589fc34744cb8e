"""k-nearest neighbours on costs: the router literature's plain baseline, and often its strongest."""

from __future__ import annotations

import torch
from torch import Tensor

from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.scoring import ExactProducts

NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)  # tried on validation
NUMBERS_AT_ONCE = 1 << 22  # distances of a part of the queries, to bound memory


def mean_costs(x: Tensor, memory: Tensor, costs: Tensor, numbers: list[int]) -> Tensor:
    """Mean cost of each agent over a sample's nearest neighbours, for several numbers of neighbours.

    Euclidean distances, which do not depend on the other samples (see :mod:`l2d.rejector.scoring`); which of several
    training samples at one distance count is torch's choice. Where an agent is
    unavailable on all neighbours, its mean over all of the memory.

    Args:
        x: standardised inputs, (n, width).
        memory: those of the training split, (m, width).
        costs: (m, A), infinite where an agent is unavailable.
        numbers: of neighbours, each at most m.

    Returns:
        (len(numbers), n, A).
    """
    known = costs.isfinite()
    filled = costs.masked_fill(~known, 0.0)
    overall = filled.sum(dim=0) / known.sum(dim=0).clamp(min=1)
    products, squares = ExactProducts(memory.numpy()), memory.double().square().sum(dim=1).numpy()
    found = []
    for part in x.split(max(1, NUMBERS_AT_ONCE // len(memory))):
        # |x - m|^2 without |x|^2, which is the same for all of the memory
        distances = squares - 2 * products(part.numpy())
        nearest = torch.from_numpy(distances).topk(max(numbers), dim=1, largest=False).indices
        total, count = filled[nearest].cumsum(dim=1), known[nearest].cumsum(dim=1)  # (part, k, A)
        means = torch.where(count > 0, total / count.clamp(min=1), overall)
        found.append(torch.stack([means[:, number - 1] for number in numbers]))
    return torch.cat(found, dim=1)


def choose_neighbours(train: Samples, validation: Samples) -> tuple[int, float]:
    """How many neighbours cost least on validation when each sample goes to the agent of the lowest mean cost.

    Returns:
        The number, ties to the larger, and the mean cost.
    """
    numbers = [number for number in NEIGHBOURS if number <= len(train)]
    means = mean_costs(validation.x, train.x, train.costs, numbers)
    chosen = allocate(-means, ~validation.missing.expand_as(means))
    risks = deferral_loss(chosen, validation.costs.expand_as(means)).double().mean(dim=1)
    best = len(numbers) - 1 - int(risks.flip(0).argmin())
    return numbers[best], float(risks[best])
