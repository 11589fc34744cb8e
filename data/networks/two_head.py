"""The paper's model ``g = (h o w, f o w)``: an encoder that tasks share, and one head per task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from l2d.data.networks.fitting import Adam, BestEpoch, loss_of_tasks, scale_of
from l2d.data.samples.standardise import standardisation


class TwoHeadNetwork(nn.Module):
    """Standardised features -> encoder ``w`` -> class scores ``h`` and value ``f``, whichever the dataset has."""

    mean: torch.Tensor
    std: torch.Tensor
    target_scale: torch.Tensor

    def __init__(self, width: int, hidden: list[int], num_classes: int, regression: bool, dropout: float):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("target_scale", torch.tensor([0.0, 1.0]))  # mean and std of target_reg
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.encoder = nn.Sequential(*layers)
        self.class_head = nn.Linear(width, num_classes) if num_classes else None
        self.value_head = nn.Linear(width, 1) if regression else None

    def represent(self, features: torch.Tensor) -> torch.Tensor:
        """``w(x)``: features (batch, width) -> (batch, size of the last hidden layer)."""
        return self.encoder((features - self.mean) / self.std)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Features (batch, width) -> class scores (batch, classes) or None, values (batch,) or None."""
        hidden = self.represent(features)
        scores = None if self.class_head is None else self.class_head(hidden)
        value = None
        if self.value_head is not None:
            value = self.value_head(hidden).squeeze(1) * self.target_scale[1] + self.target_scale[0]
        return scores, value


def fit_two_head(
    make_network: Callable[[], TwoHeadNetwork],
    features: np.ndarray,
    target_cla: np.ndarray | None,
    target_reg: np.ndarray | None,
    fit: np.ndarray,
    held_out: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    weight_reg: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> TwoHeadNetwork | None:
    """Train on some rows and return the network of the epoch with the lowest loss on others.

    Adam with decoupled weight decay; loss: cross-entropy plus ``weight_reg`` times smooth L1 on the standardised value,
    of the heads that the network has.

    Args:
        make_network: called once ``seed`` is set.
        features: (n, width).
        target_cla: class indices (n,), if the network has a class head.
        target_reg: values (n,), if it has a value head.
        fit: positions of the rows to train on; they give mean and deviation of features and values.
        held_out: positions of the rows that choose the epoch.

    Returns:
        The network, or None where the loss was never finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network()
        mean, std = standardisation(features[fit])
        network.mean.copy_(torch.from_numpy(mean))
        network.std.copy_(torch.from_numpy(std))
        if target_reg is not None:
            network.target_scale.copy_(scale_of(target_reg[fit]))
        network.to(device)
        inputs = torch.from_numpy(features).to(device)
        classes, values = (
            None if one is None else torch.from_numpy(one).to(device) for one in (target_cla, target_reg)
        )

        def loss_on(rows: torch.Tensor) -> torch.Tensor:
            scores, value = network(inputs[rows])
            return loss_of_tasks(
                scores,
                value,
                None if classes is None else classes[rows],
                None if values is None else values[rows],
                deviation=network.target_scale[1],
                weight_reg=weight_reg,
            )

        optimizer = Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
        fit_rows, held_rows = torch.from_numpy(fit).to(device), torch.from_numpy(held_out).to(device)
        best = BestEpoch(network)
        for epoch in range(epochs):
            network.train()
            for rows in torch.randperm(len(fit_rows)).to(device).split(batch_size):
                optimizer.zero_grad()
                loss_on(fit_rows[rows]).backward()
                optimizer.step()
            network.eval()
            with torch.inference_mode():
                best.see(float(loss_on(held_rows)), epoch)
        return network if best.restore() else None
