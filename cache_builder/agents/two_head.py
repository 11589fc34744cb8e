"""The paper's model ``g = (h o w, f o w)``: a compact network with a shared encoder and one head per task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from data.dataset import Batch, Dataset
from data.errors import DataError
from data.features import standardisation

from ..answers import Answers
from .base import Agent, AgentConfig, file_digest


class TwoHeadConfig(AgentConfig):
    """``kind = "two_head"``: trained once on the training split, then frozen; or loaded from ``weights``.

    A tenth of the training samples, chosen by ``seed``, is held out for early stopping, so that validation and test
    stay untouched.
    """

    kind: Literal["two_head"]
    weights: Path | None = None  # a safetensors file made by an earlier build; nothing is trained then
    hidden: list[Annotated[int, Field(ge=1)]] = [64, 32]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    epochs: Annotated[int, Field(ge=1)] = 60
    batch_size: Annotated[int, Field(ge=1)] = 256
    lr: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    weight_reg: Annotated[float, Field(ge=0)] = 1.0  # of the smooth L1 loss beside the cross-entropy
    seed: int = 0


class TwoHeadNetwork(nn.Module):
    """Standardised features -> encoder ``w`` -> class scores ``h`` and value ``f``, whichever the dataset has."""

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

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Features (batch, width) -> class scores (batch, classes) or None, values (batch,) or None."""
        hidden = self.encoder((features - self.mean) / self.std)
        scores = None if self.class_head is None else self.class_head(hidden)
        value = None
        if self.value_head is not None:
            value = self.value_head(hidden).squeeze(1) * self.target_scale[1] + self.target_scale[0]
        return scores, value


class TwoHeadAgent(Agent):
    config: TwoHeadConfig
    timed = True
    can_answer = ("cla", "reg")
    reads = ("features", "split", "target_cla", "target_reg")

    def _network(self, dataset: Dataset) -> TwoHeadNetwork:
        return TwoHeadNetwork(
            dataset.features.shape[1],
            self.config.hidden,
            len(dataset.classes),
            dataset.target_reg is not None,
            self.config.dropout,
        )

    def freeze(self, dataset: Dataset, device: str) -> dict[str, np.ndarray]:
        if self.config.weights is not None:
            from safetensors.numpy import load_file

            try:
                return load_file(self.config.weights)
            except Exception as error:  # safetensors raises its own and OSError
                raise DataError(
                    f"agent {self.config.name!r}: cannot read weights: {error}",
                    where=self.config.weights,
                    hint="give a safetensors file, such as agents/NAME/frozen.safetensors of another cache",
                ) from error
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small a network only waits for a second thread, on a busy machine for minutes
        try:
            network = train_two_head(self._network, dataset, self.config, device)
        finally:
            torch.set_num_threads(threads)
        return {name: value.cpu().numpy() for name, value in network.state_dict().items()}

    def load(self, frozen: dict[str, np.ndarray] | None, dataset: Dataset, device: str) -> None:
        network = self._network(dataset)
        try:
            network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in (frozen or {}).items()})
        except RuntimeError as error:
            raise DataError(
                f"agent {self.config.name!r}: the weights do not fit: {str(error).splitlines()[-1].strip()}",
                where=self.config.weights,
                hint=f"`hidden` is {self.config.hidden}, the dataset has {dataset.features.shape[1]} features",
            ) from error
        self.network, self.device = network.eval().to(device), device

    @torch.inference_mode()
    def ask(self, batch: Batch) -> Answers:
        scores, value = self.network(torch.from_numpy(batch.features).to(self.device))
        return Answers(
            prob=None if scores is None else scores.double().softmax(1).cpu().numpy(),
            reg=None if value is None else value.cpu().numpy(),
        )

    def fingerprint(self, dataset: Dataset) -> dict:
        fields = super().fingerprint(dataset)
        if self.config.weights is not None:
            fields["weights"] = file_digest(self.config.weights) if self.config.weights.is_file() else None
        return fields


def train_two_head(make_network, dataset: Dataset, config: TwoHeadConfig, device: str) -> TwoHeadNetwork:
    """Train on the training split and return the network of the epoch with the lowest held-out loss.

    Adam with decoupled weight decay; loss: cross-entropy plus ``weight_reg`` times smooth L1 on the standardised value.
    """
    order = np.random.default_rng(config.seed).permutation(np.flatnonzero(dataset.train))
    held_out, fit = np.split(order, [max(1, len(order) // 10)])
    if len(fit) == 0:
        raise DataError("too few training samples to train on", where=f"agent {config.name!r}", hint="use more data")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = make_network(dataset)
        mean, std = standardisation(dataset.features[fit])
        network.mean.copy_(torch.from_numpy(mean))
        network.std.copy_(torch.from_numpy(std))
        if dataset.target_reg is not None:
            values = dataset.target_reg[fit].astype(np.float64)
            network.target_scale.copy_(torch.tensor([values.mean(), max(values.std(), 1e-6)]))
        network.to(device)
        features = torch.from_numpy(dataset.features).to(device)
        targets = [
            None if values is None else torch.from_numpy(values).to(device)
            for values in (dataset.target_cla, dataset.target_reg)
        ]

        def loss_on(rows: torch.Tensor) -> torch.Tensor:
            scores, value = network(features[rows])
            loss = torch.zeros((), device=device)
            if scores is not None:
                loss = loss + nn.functional.cross_entropy(scores, targets[0][rows].long())
            if value is not None:
                error = (value - targets[1][rows]) / network.target_scale[1]
                loss = loss + config.weight_reg * nn.functional.smooth_l1_loss(error, torch.zeros_like(error))
            return loss

        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        fit_rows, held_rows = torch.from_numpy(fit).to(device), torch.from_numpy(held_out).to(device)
        best_loss, best_state = float("inf"), None
        for _ in range(config.epochs):
            network.train()
            for rows in torch.randperm(len(fit_rows)).to(device).split(config.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss_on(fit_rows[rows]).backward()
                optimizer.step()
            network.eval()
            with torch.inference_mode():
                loss = float(loss_on(held_rows))
            if loss < best_loss:
                best_loss = loss
                best_state = {name: value.clone() for name, value in network.state_dict().items()}
        if best_state is None:
            raise DataError(
                "training diverged: the loss is never finite", where=f"agent {config.name!r}", hint="lower lr"
            )
        network.load_state_dict(best_state)
    return network
