"""Training a grid of rejectors together: one pass over the rows, stacked parameters, one optimiser.

Each point has its own initialisation and its own shuffle, both drawn from its seed alone, so a point comes out of a
grid as it would come out alone (to float tolerance).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from data.errors import DataError, UsageError
from data.features import standardisation

from .costs import expression_costs, total_costs
from .grid import GridPoint
from .networks import NETWORKS, make_network
from .stacked import Stack, points_at_once
from .table import CostTable

ROWS_AT_ONCE = 65_536  # when scoring, to bound memory


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a rejector is trained. Defaults are the paper's for electronic health records (section 5.2)."""

    network: str = "mlp"
    hidden: int = 64
    epochs: int = 100
    batch_size: int = 1024
    lr: float = 3e-3
    schedule: str = "cosine"  # or linear, constant
    warmup: float = 0.1  # share of the steps over which the rate rises from 0
    weight_decay: float = 0.0  # decoupled (AdamW)
    failures: str = "refuse"  # recorded failures: refuse, drop or worst, see rejector.table.load_tables

    def __post_init__(self):
        limits = {"hidden": 1, "epochs": 1, "batch_size": 1}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)}", hint=f"at least {least}")
        if self.network not in NETWORKS:
            raise UsageError(f"there is no rejector {self.network!r}", hint=f"choose from {', '.join(NETWORKS)}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"there is no schedule {self.schedule!r}", hint=f"choose from {', '.join(SCHEDULES)}")
        finite = math.isfinite(self.lr) and math.isfinite(self.weight_decay)
        if not (finite and self.lr > 0 and 0 <= self.warmup <= 1 and self.weight_decay >= 0):
            raise UsageError(
                f"lr = {self.lr}, warmup = {self.warmup}, weight_decay = {self.weight_decay}",
                hint="lr is > 0, warmup in [0, 1], weight_decay >= 0, all finite",
            )
        if self.network == "transformer" and self.hidden % 4:
            raise UsageError(f"hidden = {self.hidden}", hint="a transformer needs a multiple of 4")
        if self.network == "conv" and self.hidden % 16:
            raise UsageError(f"hidden = {self.hidden}", hint="a conv needs a multiple of 16")


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


@dataclass(frozen=True, kw_only=True)
class TrainedRejector:
    """A rejector at its epoch of lowest validation risk.

    Attributes:
        state: parameters of the network, and ``feature_mean``, ``feature_std`` of the training split.
        history: (epochs, 2): mean surrogate loss in training, deferral risk on validation, both on training costs.
    """

    point: GridPoint
    config: TrainConfig
    state: dict[str, Tensor]
    best_epoch: int
    validation_risk: float
    history: list[tuple[float, float]]

    def scores(self, features: Tensor) -> Tensor:
        """Raw features (n, width) -> scores (n, agents), float32 on the CPU."""
        parameters = {name: v for name, v in self.state.items() if not name.startswith("feature_")}
        mean, std = self.state["feature_mean"], self.state["feature_std"]
        network = make_network(self.config.network, len(mean), len(self.point.query_costs), self.config.hidden)
        with torch.inference_mode():
            rows = features.split(ROWS_AT_ONCE)
            return torch.cat([functional_call(network, parameters, ((part - mean) / std,)) for part in rows])


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step ``step`` out of ``steps``: linear warm-up, then the schedule."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * SCHEDULES[config.schedule]((step - warm) / max(1, steps - warm))


def train_grid(
    points: list[GridPoint],
    train: CostTable,
    validation: CostTable,
    config: TrainConfig,
    *,
    tasks: list[str],
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> list[TrainedRejector]:
    """Train every point of a grid on the same rows, together.

    Args:
        points: the grid.
        train: rows to fit; features are standardised by their mean and deviation.
        validation: rows that choose the epoch (lowest deferral risk on the costs trained on).
        tasks: of the cache, in the order of the tables' last dimension.
        device: of torch.
        progress: called after each epoch with (epoch, rows trained on, mean validation risk).

    Returns:
        One rejector per point, in order.

    Raises:
        DataError: a loss is not finite.
    """
    mean, std = (torch.from_numpy(v) for v in standardisation(train.features.numpy()))
    x_train, x_validation = (((table.features - mean) / std).to(device) for table in (train, validation))
    raw_train, raw_validation = (_raw_costs(t.raw, points[0], tasks).to(device) for t in (train, validation))
    seeds = sorted({point.seed for point in points})
    shuffles = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = points_at_once(device, config.batch_size, config.hidden)
    stacks = [
        Stack(
            part,
            torch.stack([_weights(point, train=True) for point in part]),
            seeds,
            network=config.network,
            width=train.features.shape[1],
            num_agents=train.raw.shape[1],
            hidden=config.hidden,
            lr=config.lr,
            weight_decay=config.weight_decay,
            device=device,
        )
        for part in (points[start : start + size] for start in range(0, len(points), size))
    ]
    batches = -(-len(train) // config.batch_size)
    history = []
    for epoch in range(config.epochs):
        orders = torch.stack([torch.randperm(len(train), generator=g) for g in shuffles]).to(device)  # (seeds, n)
        losses = torch.zeros(len(points), device=device)
        for batch, rows in enumerate(orders.split(config.batch_size, dim=1)):
            lr = learning_rate(epoch * batches + batch, config.epochs * batches, config)
            x, raw = x_train[rows], raw_train[rows]
            losses += torch.cat([stack.step(x, raw, lr) for stack in stacks]) * rows.shape[1]
        if not bool(torch.isfinite(losses).all()):
            point = points[int((~torch.isfinite(losses)).nonzero()[0])]
            raise DataError(f"the loss of {point.run_id} is not finite in epoch {epoch}", hint="lower --lr")
        risks = [stack.risk(x_validation, raw_validation, ROWS_AT_ONCE) for stack in stacks]
        for stack, risk in zip(stacks, risks, strict=True):
            stack.keep_best(risk, epoch)
        history.append(torch.stack([losses / len(train), torch.cat(risks)], dim=1).cpu())
        if progress:
            progress(epoch, len(train), float(history[-1][:, 1].mean()))

    curves = torch.stack(history, dim=1)  # (points, epochs, 2)
    return [
        TrainedRejector(
            point=point,
            config=config,
            state={**stack.best_state(position), "feature_mean": mean, "feature_std": std},
            best_epoch=int(stack.best_epoch[position]),
            validation_risk=float(stack.best_risk[position]),
            history=[tuple(row) for row in curves[points.index(point)].tolist()],
        )
        for stack in stacks
        for position, point in enumerate(stack.points)
    ]


def point_costs(table: CostTable, point: GridPoint, tasks: list[str]) -> Tensor:
    """Total costs (n, A) that a point is evaluated on: ``lambda`` (or ``--cost``) and ``beta`` applied."""
    return total_costs(_raw_costs(table.raw, point, tasks), _weights(point), torch.tensor(point.query_costs))


def reference_point_costs(table: CostTable, point: GridPoint, tasks: list[str]) -> Tensor:
    """Costs (n, references) without query costs."""
    free = torch.zeros(table.reference_raw.shape[1])
    return total_costs(_raw_costs(table.reference_raw, point, tasks), _weights(point), free)


def _raw_costs(raw: Tensor, point: GridPoint, tasks: list[str]) -> Tensor:
    """Raw costs by task (n, A, T); with ``--cost`` the one cost that takes their place (n, A, 1)."""
    if point.cost is None:
        return raw
    return torch.from_numpy(expression_costs(raw.numpy(), tasks, point.cost))


def _weights(point: GridPoint, *, train: bool = False) -> Tensor:
    if point.cost is not None:
        return torch.ones(1)
    return (point.weights.trained_on(point.method) if train else point.weights).vector()
