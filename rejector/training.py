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
from torch.func import functional_call, stack_module_state, vmap

from data.errors import DataError, UsageError
from data.features import standardisation

from .costs import expression_costs, total_costs
from .grid import GridPoint
from .losses import allocate, deferral_loss, surrogate_deferral_loss
from .networks import NETWORKS, make_network
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
    data = [
        _Rows(((table.features - mean) / std).to(device), _raw_costs(table.raw, points[0], tasks).to(device))
        for table in (train, validation)
    ]
    weights = torch.stack([_weights(point, train=True) for point in points]).to(device)  # (G, T)
    beta = torch.tensor([point.query_costs for point in points], device=device)  # (G, A)
    nu = torch.tensor([point.nu for point in points], device=device)[:, None, None]
    nu = 1.0 if bool((nu == 1).all()) else nu

    num_agents, width = train.raw.shape[1], train.features.shape[1]
    networks = [_initialised(config, width, num_agents, point.seed) for point in points]
    parameters, _ = stack_module_state(networks)
    parameters = {name: v.to(device).detach().requires_grad_() for name, v in parameters.items()}
    template = networks[0].to("meta")

    def forward(state: dict[str, Tensor], features: Tensor) -> Tensor:
        return functional_call(template, (state, {}), (features,))

    per_point = vmap(forward)  # parameters (G, …), features (G, B, width) -> scores (G, B, A)
    shared = vmap(forward, in_dims=(0, None))  # the same features for every point

    seeds = sorted({point.seed for point in points})
    of_seed = torch.tensor([seeds.index(point.seed) for point in points], device=device)
    shuffles = [torch.Generator().manual_seed(seed) for seed in seeds]
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=config.weight_decay)
    batches = -(-len(train) // config.batch_size)
    steps = config.epochs * batches
    best_risk = torch.full((len(points),), float("inf"), device=device)
    best_epoch = torch.zeros(len(points), dtype=torch.int64, device=device)
    best = {name: v.detach().clone() for name, v in parameters.items()}
    history = []
    for epoch in range(config.epochs):
        orders = torch.stack([torch.randperm(len(train), generator=g) for g in shuffles]).to(device)  # (seeds, n)
        losses = torch.zeros(len(points), device=device)
        for batch, rows in enumerate(orders.split(config.batch_size, dim=1)):
            rate = learning_rate(epoch * batches + batch, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            scores = per_point(parameters, data[0].features[rows][of_seed])
            costs = total_costs(data[0].raw[rows][of_seed], weights, beta)
            loss = surrogate_deferral_loss(scores, costs, nu).mean(dim=1)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()  # points do not share a parameter, so each gets its own gradient
            optimizer.step()
            losses += loss.detach() * rows.shape[1]
        risk = _risk(shared, parameters, data[1], weights, beta)
        if not bool(torch.isfinite(losses).all()):
            point = points[int((~torch.isfinite(losses)).nonzero()[0])]
            raise DataError(f"the loss of {point.run_id} is not finite in epoch {epoch}", hint="lower --lr")
        better = risk < best_risk
        best_risk = torch.where(better, risk, best_risk)
        best_epoch = torch.where(better, epoch, best_epoch)
        for name, value in parameters.items():
            best[name] = torch.where(better.view(-1, *[1] * (value.dim() - 1)), value.detach(), best[name])
        history.append(torch.stack([losses / len(train), risk], dim=1).cpu())
        if progress:
            progress(epoch, len(train), float(risk.mean()))

    curves = torch.stack(history, dim=1)  # (G, epochs, 2)
    return [
        TrainedRejector(
            point=point,
            config=config,
            state={
                **{name: value[index].cpu().clone() for name, value in best.items()},
                "feature_mean": mean,
                "feature_std": std,
            },
            best_epoch=int(best_epoch[index]),
            validation_risk=float(best_risk[index]),
            history=[tuple(row) for row in curves[index].tolist()],
        )
        for index, point in enumerate(points)
    ]


@dataclass(frozen=True)
class _Rows:
    features: Tensor  # (n, width), standardised
    raw: Tensor  # (n, A, T)


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


def _initialised(config: TrainConfig, width: int, num_agents: int, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_network(config.network, width, num_agents, config.hidden)


@torch.inference_mode()
def _risk(shared: Callable, parameters: dict[str, Tensor], rows: _Rows, weights: Tensor, beta: Tensor) -> Tensor:
    """Mean true deferral loss of every point, (G,)."""
    total = torch.zeros(len(beta), device=beta.device)
    step = max(1, ROWS_AT_ONCE // len(beta))
    for start in range(0, len(rows.features), step):
        part = slice(start, start + step)
        scores = shared(parameters, rows.features[part])
        costs = total_costs(rows.raw[part].expand(len(beta), -1, -1, -1), weights, beta)
        total += deferral_loss(allocate(scores), costs).sum(dim=1)
    return total / len(rows.features)
