"""Fitting one network by gradient descent: plain autograd over rows that are held, the best validation epoch kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2d.data.errors import DataError
from l2d.data.networks.fitting import BestEpoch
from l2d.rejector.literature.samples import Samples
from l2d.rejector.networks import make_network
from l2d.rejector.scoring import ExactLayers, layers_of
from l2d.rejector.settings import TrainConfig, learning_rate

Loss = Callable[[Tensor, Samples], Tensor]  # outputs (n, m) and their samples -> loss of each, (n,)
Make = Callable[[int, int], torch.nn.Module]  # number of inputs, number of outputs -> network
Risk = Callable[[Tensor, Samples], float]  # the same -> what the best epoch has least of


@dataclass(frozen=True)
class Fitted:
    """A network at its epoch of lowest validation risk; ``history`` has (training loss, validation risk) an epoch."""

    state: dict[str, Tensor]
    best_epoch: int
    validation_risk: float
    history: list[tuple[float, float]]


def fit(
    train: Samples,
    validation: Samples,
    outputs: int,
    loss: Loss,
    risk: Risk,
    config: TrainConfig,
    seed: int,
    who: str,
    make: Make | None = None,
) -> Fitted:
    """Fit a network of ``config`` from ``train.x`` to this number of outputs.

    Initial parameters and the order of rows come from ``seed`` alone. Adam with decoupled weight decay, the schedule
    and patience are those of ``l2d train``.

    Args:
        who: named in messages.
        make: the network, where it is not the one of ``config``.

    Raises:
        DataError: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _made(config, train.x.shape[1], outputs, make)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    order = torch.Generator().manual_seed(seed)
    steps = -(-len(train) // config.batch_size)
    history: list[tuple[float, float]] = []
    best = BestEpoch(network)
    for epoch in range(config.epochs):
        total = 0.0
        for step, rows in enumerate(torch.randperm(len(train), generator=order).split(config.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + step, config.epochs * steps, config)
            batch = train.take(rows)
            value = loss(network(batch.x), batch).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += float(value.detach()) * len(rows)
        if not total < float("inf"):
            raise DataError(f"the loss of {who} is not finite in epoch {epoch}", hint="lower --lr")
        with torch.no_grad():
            found = risk(network(validation.x), validation)
        history.append((total / len(train), found))
        best.see(found, epoch)
        if config.patience and epoch - best.epoch >= config.patience:
            break
    return Fitted(best.state or {}, best.epoch, best.value, history)


def _made(config: TrainConfig, width: int, outputs: int, make: Make | None) -> torch.nn.Module:
    if make is not None:
        return make(width, outputs)
    return make_network(config.network, width, outputs, config.hidden, config.layers)


def network_of(
    state: dict[str, Tensor], config: TrainConfig, width: int, outputs: int, make: Make | None = None
) -> Callable[[Tensor], Tensor]:
    """The network with parameters of :func:`fit`, ready to be applied: a row's outputs do not depend on other rows.

    See :meth:`l2d.rejector.training.network.TrainedNetwork.scores`.
    """
    network = _made(config, width, outputs, make)
    network.load_state_dict(state)
    if make is None and config.network in ("linear", "mlp"):
        layers = ExactLayers(layers_of({name: value.numpy() for name, value in state.items()}))
        return lambda rows: torch.from_numpy(layers(rows.numpy()))
    network = network.requires_grad_(False).double()
    return lambda rows: network(rows.double()).float()
