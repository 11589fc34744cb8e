"""Grids too large for memory, divided into waves that train one after another: each point comes out as it would anyway.

What a grid holds is known beforehand: the rows, and for each point some copies of its parameters; with ``--memory``
also the orders and batches of each seed.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from l2d.data.errors import UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.networks import make_network
from l2d.rejector.rows.shuffled import Shuffled
from l2d.rejector.rows.stream import Stream
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.stack import padded
from l2d.rejector.training.stack_mlp import LANES

#: Copies of the parameters: themselves, two of gradients, Adam's two moments and the best; twice what a checkpoint
#: consists of (four of these) while it is written.
COPIES = 6 + 2 * 4
SHARE = 0.5  # of the free memory that parameters may take, and that rows may


def free_memory(device: str) -> int:
    """Bytes that are free where training happens."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def waves(
    points: list[GridPoint],
    config: TrainConfig,
    train: Stream,
    num_agents: int,
    *,
    available: int,
    make: Callable[[], torch.nn.Module] | None = None,
) -> list[list[int]]:
    """Which points train together: as many as memory holds, points of one seed beside each other.

    Args:
        points: the grid.
        train: the rows to fit.
        available: free memory in bytes.
        make: makes the network, where it is of none of the kinds in networks.py.

    Returns:
        Positions in ``points``; one list where all train together.

    Raises:
        UsageError: the rows do not fit, or not even one point does.
    """
    fit = int(SHARE * available)
    if config.memory is None:
        needed = len(train) * 4 * (train.width + train.shape[0] * train.shape[1])
        if needed > fit:
            raise UsageError(
                f"{len(train):,} rows take {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free",
                where=train.cache_path,
                hint=f"stream them: --memory {max(1, fit // 2**20)}MiB",
            )
    of_point = COPIES * 4 * _num_parameters(config, train, num_agents, make)
    most_points, most_seeds = fit // of_point, len(points)
    if not most_points:
        raise UsageError(
            f"one rejector takes {of_point / 2**30:.1f} GiB to train, and {available / 2**30:.1f} GiB are free",
            hint="a smaller --hidden, or fewer --layers",
        )
    bound = Shuffled(train, config.batch_size, [points[0].seed], memory=config.memory) if config.memory else None
    if bound is not None and bound.most_seeds is not None:
        most_seeds = bound.most_seeds
    if most_points < len(points):  # the same waves after a kill, though a little more or less is free then
        most_points = 1 << most_points.bit_length() - 1
    found: list[list[int]] = []
    seeds: set[int] = set()
    for position in sorted(range(len(points)), key=lambda position: points[position].seed):
        seed = points[position].seed
        if not found or len(found[-1]) == most_points or len(seeds | {seed}) > most_seeds:
            found.append([])
            seeds = set()
        found[-1].append(position)
        seeds.add(seed)
    return found


def _num_parameters(
    config: TrainConfig, train: Stream, num_agents: int, make: Callable[[], torch.nn.Module] | None
) -> int:
    if make is not None:
        return sum(value.numel() for value in make().parameters())
    width, hidden = train.width, config.hidden
    if config.network in ("linear", "mlp"):  # which lie in memory filled up
        width, hidden = padded(width, LANES), padded(hidden, LANES)
    with torch.device("meta"):
        network = make_network(config.network, width, num_agents, hidden, config.layers, train.sizes)
    return sum(value.numel() for value in network.parameters())
