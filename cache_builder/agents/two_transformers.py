"""The paper's model for health records (section 5.2): two compact transformers over token lists, one for each task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from l2d.cache_builder.agents._base import Agent, AgentConfig, file_digest
from l2d.cache_builder.agents.two_head import weights_in
from l2d.cache_builder.answers import Answers
from l2d.data.errors import DataError, UsageError
from l2d.data.networks.fitting import BestEpoch, loss_of_tasks, scale_of
from l2d.data.networks.schedules import rate_at
from l2d.data.networks.tokens import TokenNetwork
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.samples.tokens import Tokens, token_rows, token_sizes


class TwoTransformersConfig(AgentConfig):
    """``kind = "two_transformers"``: needs token lists. Trained once on the training split, then frozen.

    Optimizer and schedule are the paper's. A tenth of the training samples, chosen by ``seed``, is held out to choose
    each network's epoch, so that validation and test stay untouched.
    """

    kind: Literal["two_transformers"]
    weights: Path | None = None
    """A safetensors file of an earlier build (`agents/NAME/frozen.safetensors`). Nothing is trained then."""
    shared: bool = False
    """One encoder for both tasks, instead of one for each."""
    hidden: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    """Width of a token; a multiple of 4."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Transformer blocks."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of units dropped in training."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Samples of a step."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Largest step size."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the step size falls."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps over which the step size rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay."""
    weight_reg: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the smooth L1 loss beside the cross-entropy, where the encoder is shared."""
    seed: int = 0
    """Draws the first weights, the order and the held-out tenth."""


class TaskTransformer(nn.Module):
    """Token lists -> class scores and value, whichever of the two is among ``tasks``."""

    def __init__(self, sizes: tuple[tuple[int, int], ...], tasks: tuple[str, ...], num_classes: int, config):
        super().__init__()
        self.tasks, self.num_classes, self.dropout = tasks, num_classes if "cla" in tasks else 0, config.dropout
        self.network = TokenNetwork(sizes, self.num_classes + ("reg" in tasks), config.hidden, config.layers)
        self.register_buffer("target_scale", torch.tensor([0.0, 1.0]))  # mean and deviation of target_reg

    def forward(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Rows (batch, sum of lengths) -> class scores (batch, classes) or None, values (batch,) or None."""
        rows, lengths = self.network.trimmed(rows)
        drop = (lambda values: nn.functional.dropout(values, self.dropout)) if self.training and self.dropout else None
        found = self.network(rows, lengths, drop)
        scores = found[:, : self.num_classes] if self.num_classes else None
        value = found[:, -1] * self.target_scale[1] + self.target_scale[0] if "reg" in self.tasks else None
        return scores, value

    def loss(self, rows: Tensor, targets: dict[str, Tensor], weight_reg: float) -> Tensor:
        """Cross-entropy, smooth L1 of the standardised value, or the sum of both, weighted."""
        scores, value = self(rows)
        return loss_of_tasks(
            scores,
            value,
            targets.get("cla"),
            targets.get("reg"),
            deviation=self.target_scale[1],
            weight_reg=weight_reg,
        )


class TwoTransformersAgent(Agent):
    config: TwoTransformersConfig
    can_answer = ("cla", "reg")
    reads = ("tokens", "split", "target_cla", "target_reg")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        if dataset.tokens is None:
            raise UsageError(
                "the dataset has no token lists for it to read",
                where=f"agent {self.config.name!r}",
                hint="add [dataset.tokens], or take a two_head, which looks at features",
            )

    def fingerprint(self, dataset: Dataset) -> dict:
        fields = {**super().fingerprint(dataset), "max_lengths": _max_lengths(dataset)}
        if self.config.weights is not None:
            fields["weights"] = file_digest(self.config.weights) if self.config.weights.is_file() else None
        return fields

    def freeze(self, dataset: Dataset, device: str) -> dict[str, np.ndarray]:
        if self.config.weights is not None:
            return weights_in(self.config.weights, self.config.name)
        frozen = {}
        for part, network in self._networks(dataset).items():
            trained = train_transformer(network, dataset, self.config, device)
            frozen |= {f"{part}.{name}": value.cpu().numpy() for name, value in trained.state_dict().items()}
        return frozen

    def load(self, frozen: dict[str, np.ndarray] | None, dataset: Dataset, device: str) -> None:
        networks = nn.ModuleDict(self._networks(dataset))
        try:
            networks.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in (frozen or {}).items()})
        except RuntimeError as error:
            raise DataError(
                f"agent {self.config.name!r}: the weights do not fit: {str(error).splitlines()[-1].strip()}",
                where=self.config.weights,
                hint="they are of other vocabularies, classes or settings than this recipe's",
            ) from error
        self.networks, self.device, self.max_lengths = networks.eval().to(device), device, _max_lengths(dataset)

    @torch.inference_mode()
    def ask(self, batch: Batch) -> Answers:
        rows = _rows(batch.tokens, self.max_lengths).to(self.device)
        answers = Answers()
        for network in self.networks.values():
            scores, value = network(rows)
            if scores is not None:
                answers.prob = scores.double().softmax(1).cpu().numpy()
            if value is not None:
                answers.reg = value.cpu().numpy()
        return answers

    def gflops(self, dataset: Dataset) -> float | None:
        """Of an answer on lists of the mean length that training samples have, 10^9 multiply-adds."""
        lengths = [
            math.ceil(np.minimum(lists.counts[dataset.train], length).mean())
            for lists, length in zip(dataset.tokens.values(), self.max_lengths, strict=True)
        ]
        return sum(network.network.multiply_adds(lengths) for network in self.networks.values()) / 1e9

    def _networks(self, dataset: Dataset) -> dict[str, TaskTransformer]:
        """Untrained networks by the tasks that they are for, with the parameters that ``seed`` gives them."""
        targets = (("cla", dataset.target_cla), ("reg", dataset.target_reg))
        tasks = [task for task, values in targets if values is not None]
        groups = [tuple(tasks)] if self.config.shared else [(task,) for task in tasks]
        sizes, networks = token_sizes(dataset.inputs["tokens"]), {}
        for group in groups:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                networks["_".join(group)] = TaskTransformer(sizes, group, len(dataset.classes), self.config)
        return networks


def train_transformer(
    network: TaskTransformer, dataset: Dataset, config: TwoTransformersConfig, device: str
) -> TaskTransformer:
    """Train on the training split; the parameters are those of the epoch with the lowest held-out loss.

    Raises:
        DataError: there are too few samples, or no loss is finite.
    """
    order = np.random.default_rng(config.seed).permutation(np.flatnonzero(dataset.train))
    held_out, fit = np.split(order, [max(1, len(order) // 10)])
    if len(fit) == 0:
        raise DataError("too few training samples to train on", where=f"agent {config.name!r}", hint="use more data")
    if "reg" in network.tasks:
        network.target_scale.copy_(scale_of(dataset.target_reg[fit]))
    network.to(device)
    lists, lengths = dataset.tokens, _max_lengths(dataset)

    def batches(positions: np.ndarray) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for start in range(0, len(positions), config.batch_size):
            taken = positions[start : start + config.batch_size]
            targets = {"cla": dataset.target_cla, "reg": dataset.target_reg}
            rows = _rows({name: lists[name].take(taken) for name in lists}, lengths)
            yield rows.to(device), {task: torch.from_numpy(targets[task][taken]).to(device) for task in network.tasks}

    steps = -(-len(fit) // config.batch_size) * config.epochs

    def rate(step: int) -> float:
        return rate_at(step, steps, lr=1.0, warmup=config.warmup, schedule=config.schedule)

    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    best, shuffle = BestEpoch(network), np.random.default_rng([config.seed, 1])
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)  # dropout
        for epoch in range(config.epochs):
            network.train()
            for rows, targets in batches(shuffle.permutation(fit)):
                optimizer.zero_grad(set_to_none=True)
                network.loss(rows, targets, config.weight_reg).backward()
                optimizer.step()
                scheduler.step()
            network.eval()
            with torch.inference_mode():
                losses = [
                    float(network.loss(rows, targets, config.weight_reg)) * len(rows)
                    for rows, targets in batches(held_out)
                ]
            best.see(sum(losses) / len(held_out), epoch)
    if not best.restore():
        raise DataError("training diverged: the loss is never finite", where=f"agent {config.name!r}", hint="lower lr")
    return network


def _max_lengths(dataset: Dataset) -> list[int]:
    return [length for _, length in token_sizes(dataset.inputs["tokens"])]


def _rows(tokens: dict[str, Tokens], max_lengths: list[int]) -> Tensor:
    return torch.from_numpy(token_rows(list(tokens.values()), max_lengths))
