"""A small rejector on pixels, for the tests that train one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import l2d
from l2d.data.cache.reader import CostCache
from l2d.rejector.settings import TrainConfig

TINY = TrainConfig(
    network="image",
    backbone="mobilenet_v3_small",
    backbone_weights="random",
    hidden=16,
    epochs=3,
    batch_size=16,
    lr=0.01,
)


def trained(
    cache: Path, folder: Path, config: TrainConfig = TINY, beta: float = 0.2, seed: int = 1, **settings
) -> Path:
    """The folder of a run."""
    config = replace(config, **settings)
    return l2d.train(cache, folder, method="multi-task", beta=beta, seed=seed, config=config).path


def resumed(cache: Path, folder: Path, settings: dict) -> None:
    """Train a point, or go on where that was ended, saving after each epoch."""
    from l2d.rejector.grid import make_grid
    from l2d.rejector.sweep import sweep

    opened = CostCache(cache)
    points = make_grid(opened, methods=["multi-task"], weights=[], betas=[0.2], nus=[1.0], seeds=[1])
    sweep(opened, points, [folder], replace(TINY, **settings), checkpoint_every=0)
