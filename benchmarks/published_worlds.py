"""What the parts of ``published.py`` share: tables with made-up answers, trained methods, means with errors."""

from __future__ import annotations

import math

import numpy as np
import torch

from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature.training import train_method
from l2d.rejector.losses import allocate, surrogate_deferral_loss
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig

SETTINGS = TrainConfig(network="linear", epochs=60, batch_size=256, lr=0.02)


def table(split: str, x: np.ndarray, y: np.ndarray, answers: np.ndarray) -> CostTable:
    """A table whose model always says 0; answers of experts are (n, J), -1 where one has none."""
    wrong = np.concatenate([(y != 0)[:, None], answers != y[:, None]], axis=1).astype(np.float32)
    wrong[:, 1:][answers < 0] = np.nan
    named = {f"expert_{j}": {"pred_cla": answers[:, j]} for j in range(answers.shape[1])}
    return CostTable(
        split=split, ids=[str(row) for row in range(len(x))], features=torch.from_numpy(x.astype(np.float32)),
        raw=torch.from_numpy(wrong)[:, :, None], targets={"target_cla": y},
        predictions={"model": {"pred_cla": np.zeros_like(y)}, **named}, failed=np.isnan(wrong),
    )  # fmt: skip


def trained(method: str, parts: list[CostTable], classes: int):
    agents = parts[0].raw.shape[1]
    weights = CostWeights((("cla", 1.0),))
    point = GridPoint(
        run_id=method, method=method, weights=weights, beta=0.0, query_costs=(0.0,) * agents, nu=1.0, seed=0
    )
    return train_method(point, parts[0], parts[1], SETTINGS, tasks=["cla"], num_classes=classes)


def error(found, test: CostTable) -> float:
    """Share of wrong answers of a rejector among the agents of a table without gaps."""
    whole = found.system_table(test, ["cla"])
    chosen = allocate(torch.from_numpy(found.scores_on(test)))
    return float(whole.raw[torch.arange(len(test)), chosen, 0].mean())


def shown(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def linear_rejector(x: np.ndarray, costs: np.ndarray) -> torch.nn.Linear:
    """A linear rejector that minimises the surrogate (nu = 1) of these costs (n, A), by L-BFGS."""
    inputs, wanted = torch.from_numpy(x).double(), torch.from_numpy(costs).double()
    torch.manual_seed(0)
    network = torch.nn.Linear(x.shape[1], costs.shape[1]).double()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def value() -> torch.Tensor:
        optimizer.zero_grad()
        loss = surrogate_deferral_loss(network(inputs), wanted, 1.0).mean()
        loss.backward()
        return loss

    optimizer.step(value)
    return network


def scored(network: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    """Scores of a rejector, (n, A)."""
    with torch.no_grad():
        return network(torch.from_numpy(x).double()).numpy()
