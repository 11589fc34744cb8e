"""Cost and quality apart: each is predicted by neighbours of its own, and traded off afterwards.

Source: Somerstep et al., *CARROT: A Cost Aware Rate Optimal Router*, 2025 (arXiv 2502.03261), the nearest-neighbour
variant of its code (``train_and_infer.py``, ``utils.route``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from l2d.rejector.literature.neighbours import NEIGHBOURS, mean_costs
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss


class Carrot:
    """Nearest neighbours for each kind of cost, with a number of neighbours of its own, of the least squared error.

    The kinds are the raw costs of each task and, with prices per sample, what answers are paid. A prediction knows no
    weight and no query cost; the trade-off ``sum_t lambda_t cost_t + beta + price`` is made afterwards, as the paper's
    ``(1 - mu) quality - mu cost`` is. With one kind of cost it differs from ``knn`` in how
    the number of neighbours is chosen. The paper measures cosine distances of text embeddings and chooses by cross-
    validation; here distances are Euclidean, of standardised features, and the validation split chooses.
    """

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        (parts, query), (other, _) = _parts(train), _parts(validation)
        counts = [number for number in NEIGHBOURS if number <= len(train)]
        numbers = torch.tensor(
            [
                counts[_least_squares(mean_costs(validation.x, train.x, parts[:, :, kind], counts), other[:, :, kind])]
                for kind in range(parts.shape[2])
            ],
            dtype=torch.int64,
        )
        state = {
            "memory_x": train.x.contiguous(),
            "memory_parts": parts.contiguous(),
            "neighbours": numbers,
            "query": query,
        }
        chosen = allocate(self.scores(state, validation.x, None, parts.shape[1]), ~validation.missing)
        return state, float(deferral_loss(chosen, validation.costs).double().mean())

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        found = [
            mean_costs(x, state["memory_x"], state["memory_parts"][:, :, kind].contiguous(), [int(number)])[0]
            for kind, number in enumerate(state["neighbours"])
        ]
        return -(torch.stack(found).sum(dim=0) + state["query"])


def _parts(samples: Samples) -> tuple[Tensor, Tensor]:
    """Costs by kind (n, A, C), weighted, and query costs (A,)."""
    assert samples.unasked is not None  # training sets it
    query = (samples.costs - samples.unasked).nan_to_num(nan=0.0).amax(dim=0)
    return (samples.unasked[:, :, None] if samples.parts is None else samples.parts), query


def _least_squares(found: Tensor, costs: Tensor) -> int:
    """Which prediction has the least squared error over what is known, ties to the later: (k, n, A), (n, A)."""
    known = costs.isfinite()
    errors = (found - costs.masked_fill(~known, 0.0)).masked_fill(~known, 0.0).double().square().sum(dim=(1, 2))
    return len(errors) - 1 - int(errors.flip(0).argmin())
