"""The paper's model ``g = (h o w, f o w)``: a compact network with a shared encoder and one head per task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from l2d.cache_builder.agents._base import Agent, AgentConfig, file_digest
from l2d.cache_builder.answers import Answers
from l2d.data.errors import DataError, UsageError
from l2d.data.networks.two_head import TwoHeadNetwork, fit_two_head
from l2d.data.samples.dataset import Batch, Dataset


class TwoHeadConfig(AgentConfig):
    """``kind = "two_head"``: trained once on the training split, then frozen; or loaded from ``weights``.

    A tenth of the training samples, chosen by ``seed``, is held out for early stopping, so that validation and test
    stay untouched.
    """

    kind: Literal["two_head"]
    weights: Path | None = None
    """A safetensors file of an earlier build (`agents/NAME/frozen.safetensors`). Nothing is trained then."""
    hidden: list[Annotated[int, Field(ge=1)]] = [64, 32]
    """Widths of the hidden layers."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of hidden units dropped in training."""
    epochs: Annotated[int, Field(ge=1)] = 60
    """Passes over the training split, at most."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Samples of a step."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    """Step size."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay."""
    weight_reg: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the smooth L1 loss beside the cross-entropy."""
    seed: int = 0
    """Draws the first weights, the order and the held-out tenth."""


class TwoHeadAgent(Agent):
    config: TwoHeadConfig
    timed = True
    can_answer = ("cla", "reg")
    reads = ("features", "split", "target_cla", "target_reg")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        if dataset.features is None:
            raise UsageError(
                "the dataset has no features for it to look at",
                where=f"agent {self.config.name!r}",
                hint="give [dataset] features, or an agent of kind two_transformers, which reads tokens",
            )

    def _network(self, dataset: Dataset) -> TwoHeadNetwork:
        return TwoHeadNetwork(
            dataset.width,
            self.config.hidden,
            len(dataset.classes),
            dataset.target_reg is not None,
            self.config.dropout,
        )

    def freeze(self, dataset: Dataset, device: str) -> dict[str, np.ndarray]:
        if self.config.weights is not None:
            return weights_in(self.config.weights, self.config.name)
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
                hint=f"`hidden` is {self.config.hidden}, the dataset has {dataset.width} features",
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


def weights_in(file: Path, agent: str) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file.

    Raises:
        DataError: it is none; names the agent whose weights it should hold.
    """
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except Exception as error:  # safetensors raises its own and OSError
        raise DataError(
            f"agent {agent!r}: cannot read weights: {error}",
            where=file,
            hint="give a safetensors file, such as agents/NAME/frozen.safetensors of another cache",
        ) from error


def train_two_head(make_network, dataset: Dataset, config: TwoHeadConfig, device: str) -> TwoHeadNetwork:
    """Train on the training split and return the network of the epoch with the lowest held-out loss.

    See :func:`l2d.data.networks.two_head.fit_two_head`.
    """
    order = np.random.default_rng(config.seed).permutation(np.flatnonzero(dataset.train))
    held_out, fit = np.split(order, [max(1, len(order) // 10)])
    if len(fit) == 0:
        raise DataError("too few training samples to train on", where=f"agent {config.name!r}", hint="use more data")
    matrix = dataset.matrix
    assert matrix is not None  # it has been checked
    network = fit_two_head(
        lambda: make_network(dataset),
        matrix,
        dataset.target_cla,
        dataset.target_reg,
        fit,
        held_out,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        weight_reg=config.weight_reg,
        seed=config.seed,
        device=device,
    )
    if network is None:
        raise DataError("training diverged: the loss is never finite", where=f"agent {config.name!r}", hint="lower lr")
    return network
