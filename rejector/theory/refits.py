"""Other members of a rejector's class, to tell too short a training from too few rows.

*Fitted longer*: the same parameters, taken on to a minimum of the training loss by L-BFGS over all rows at once. If
that does better on samples it was not fitted on, training stopped too early or its step was wrong.

*With weight decay*: the same settings, held back more. If that does better, the rejector fitted noise.

*On half the rows*: the same network and settings, trained with as many steps on either half of the training rows. Where
risk falls as ``1/n``, endless rows would bring just what the second half brought, and as many rows again half of that;
where it falls as ``1/sqrt(n)``, 2.4 times and 0.7 times that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from l2d.rejector.losses import LOSSES, check_nu
from l2d.rejector.rows.table import CostTable
from l2d.rejector.training.loop import train_grid
from l2d.rejector.training.network import TrainedNetwork

MOST_ROWS = 20_000
DECAYS = (0.1, 1.0)
ITERATIONS = {"linear": 200, "mlp": 100}  # of L-BFGS; others 20, as each of them takes seconds


@dataclass(frozen=True, kw_only=True)
class LongerFit:
    """A rejector fitted on, and the mean training loss before and after, over the rows it was fitted on."""

    rejector: TrainedNetwork
    before: float
    after: float
    rows: int


def missing_of(costs: Tensor) -> Tensor | None:
    """Where agents are unavailable, as the losses take it: bool (n, A) from total costs, or None: nowhere."""
    missing = ~costs.isfinite()
    return missing if bool(missing.any()) else None


def fitted_longer(rejector: TrainedNetwork, features: Tensor, costs: Tensor, *, seed: int = 0) -> LongerFit:
    """Take a rejector's parameters on to a minimum of its training loss, without weight decay.

    For a linear rejector and ``nu <= 1`` that is the minimum of its class on these rows; else one near by.

    Args:
        features: raw, (n, width).
        costs: those trained on (recentred if the rejector's were), (n, A); ``+inf`` where an agent is unavailable.
        seed: of the choice of rows where there are more than 20,000.

    Raises:
        ValueError: no row has two agents to choose from.
    """
    rows = (costs.isfinite().sum(dim=1) > 1).nonzero().flatten()  # there is nothing to learn from one alone
    if not len(rows):
        raise ValueError("no row on which two agents have a cost")
    if len(rows) > MOST_ROWS:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS]]
    config, point = rejector.config, rejector.point
    network = rejector.network().double().requires_grad_(True)
    x = ((features[rows] - rejector.state["feature_mean"]) / rejector.state["feature_std"]).double()
    known, loss = costs[rows].double(), LOSSES[config.loss]
    missing = missing_of(known)
    nu = check_nu(point.nu, torch.float64) if config.loss == "surrogate" else None
    optimizer = torch.optim.LBFGS(
        network.parameters(),
        max_iter=ITERATIONS.get(config.network, 20),
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def mean_loss() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        scores = network(x)
        value, gradient = loss(scores.detach(), known, nu, -1, missing)
        scores.backward(gradient / len(known))
        return value.mean()

    before = float(mean_loss())
    optimizer.step(mean_loss)
    after = float(mean_loss())
    if not after <= before:  # a line search that failed
        return LongerFit(rejector=rejector, before=before, after=before, rows=len(rows))
    state = {name: value.detach().float() for name, value in network.state_dict().items()}
    state |= {name: rejector.state[name] for name in ("feature_mean", "feature_std")}
    return LongerFit(rejector=replace(rejector, state=state), before=before, after=after, rows=len(rows))


def with_weight_decay(
    rejector: TrainedNetwork, train: CostTable, validation: CostTable, tasks: list[str], *, device: str = "cpu"
) -> dict[str, TrainedNetwork]:
    """Rejectors of the same settings with other weight decays: ``weight decay D`` -> rejector."""
    found = {}
    for decay in DECAYS:
        if decay != rejector.config.weight_decay:
            config = replace(rejector.config, weight_decay=decay, memory=None)
            trained = train_grid([rejector.point], train, validation, config, tasks=tasks, device=device)
            found[f"weight decay {decay:g}"] = trained[0]
    return found


def on_halves(
    rejector: TrainedNetwork,
    train: CostTable,
    validation: CostTable,
    tasks: list[str],
    *,
    device: str = "cpu",
    seed: int = 0,
) -> list[TrainedNetwork]:
    """Rejectors of the same settings, one trained on each half of the training rows, with as many steps."""
    config = rejector.config
    shorter = replace(config, epochs=2 * config.epochs, patience=2 * config.patience, memory=None)
    order = np.random.default_rng(seed).permutation(len(train))
    found = []
    for rows in np.array_split(order, 2):
        half = CostTable(
            split=train.split,
            ids=[train.ids[row] for row in rows],
            features=train.features[rows],
            raw=train.raw[rows],
            failed=None if train.failed is None else train.failed[rows],
        )
        found += train_grid([rejector.point], half, validation, shorter, tasks=tasks, device=device)
    return found
