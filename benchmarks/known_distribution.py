"""The consistency experiment: rejectors trained on a distribution whose Bayes rejector is known.

Points ``x`` are uniform on the square [-1, 1]^2 and three agents are wrong (cost 1) with known probabilities: the model
outside a disc, one expert on the right, the other on the left. So the expected cost of every agent, the Bayes rejector
and the true regret of any rejector are known, the latter by the midpoint rule on a fine grid, without any sampling.

Consistency says: regret goes to 0 with the number of samples, whichever ``nu``. How fast is another matter. A *shift*
adds the same to all agents' costs and changes neither the Bayes rejector nor any regret; but it flattens what the
surrogate aims at (``s_j`` in proportion to ``tau_j^(1/(2-nu))``), so a rejector of finite time and data underfits.
Recentred costs take the shift out again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.loop import train_grid

AGENTS = 3
_GRID = 256  # midpoints along each side
VALIDATION = 2000


def expected_costs(x: np.ndarray) -> np.ndarray:
    """``E[c_j | x]`` of the three agents at points (n, 2), float64 (n, 3), without shift."""
    disc = 6 * (x[:, 0] ** 2 + x[:, 1] ** 2 - 0.5)
    right = 4 * x[:, 0] + 2 * np.sin(3 * x[:, 1])
    return 0.2 + 0.6 / (1 + np.exp(-np.stack([disc, right, -right], axis=1)))


def sample(rows: int, seed: int, shift: float = 0.0) -> CostTable:
    """Independent points and costs in {shift, 1 + shift}."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, size=(rows, 2))
    wrong = generator.random((rows, AGENTS)) < expected_costs(x)
    return CostTable(
        split="train",
        ids=[str(row) for row in range(rows)],
        features=torch.from_numpy(x.astype(np.float32)),
        raw=torch.from_numpy((wrong + shift).astype(np.float32))[:, :, None],
    )


def regret(allocation: np.ndarray, expected: np.ndarray) -> float:
    """Mean expected cost of the chosen agents above the cheapest: (n,) indices, (n, agents)."""
    return float((expected[np.arange(len(expected)), allocation] - expected.min(axis=1)).mean())


@dataclass(frozen=True)
class Regret:
    """True regret of rejectors of one setting."""

    rows: int
    nu: float
    shift: float
    recentre: bool
    regrets: tuple[float, ...]  # one a seed

    @property
    def mean(self) -> float:
        return float(np.mean(self.regrets))


def true_regrets(
    rows: int,
    nus: list[float],
    *,
    shift: float = 0.0,
    recentre: bool = False,
    seeds: int = 3,
    steps: int = 600,
    batch_size: int = 256,
    network: str = "mlp",
    hidden: int = 32,
) -> list[Regret]:
    """Train on ``rows`` samples with each ``nu``, and measure. Every setting sees the same samples and as many steps.

    Args:
        shift: what every agent's cost is higher by.
        recentre: train on costs less each sample's cheapest.
        seeds: repetitions, each with samples of its own.
    """
    steps_per_epoch = -(-rows // min(batch_size, rows))
    config = TrainConfig(
        network=network,
        hidden=hidden,
        epochs=max(1, steps // steps_per_epoch),
        batch_size=min(batch_size, rows),
        lr=5e-3,
        recentre=recentre,
    )
    side = (np.arange(_GRID) + 0.5) / _GRID * 2 - 1
    points = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    expected = expected_costs(points)
    features = torch.from_numpy(points.astype(np.float32))
    found: dict[float, list[float]] = {nu: [] for nu in nus}
    for seed in range(seeds):
        train, validation = sample(rows, 2 * seed, shift), sample(VALIDATION, 2 * seed + 1, shift)
        grid = [_point(nu, seed) for nu in nus]
        for nu, rejector in zip(nus, train_grid(grid, train, validation, config, tasks=["cla"]), strict=True):
            found[nu].append(regret(rejector.scores(features.numpy()).argmax(axis=1), expected))
    return [Regret(rows, nu, shift, recentre, tuple(values)) for nu, values in found.items()]


def _point(nu: float, seed: int) -> GridPoint:
    return GridPoint(
        run_id=f"nu={nu:g}",
        method="multi-task",
        weights=CostWeights((("cla", 1.0),)),
        beta=0.0,
        query_costs=(0.0,) * AGENTS,
        nu=float(nu),
        seed=seed,
    )
