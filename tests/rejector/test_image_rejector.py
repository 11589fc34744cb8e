"""A rejector on pixels: a frozen body once for a grid, stages that learn, images that change, runs read back and moved."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import l2d
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig

TINY = {"network": "image", "backbone": "mobilenet_v3_small", "backbone_weights": "random", "hidden": 16}
TINY |= {"epochs": 3, "batch_size": 16, "lr": 0.01}


@pytest.fixture(scope="module")
def cache(detection_runs) -> Path:
    return detection_runs[0]


@pytest.fixture(scope="module")
def grid(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid") / "runs"
    l2d.sweep(cache, folder, methods=["multi-task"], betas=[0, 0.2], seeds=2, config=TrainConfig(**TINY))
    return sorted(path for path in folder.iterdir() if path.is_dir())


def same_state(one: Path, other: Path) -> bool:
    states = [load_run(path).rejector.state for path in (one, other)]
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_point_of_a_grid_is_what_it_is_alone_and_the_body_is_one_file(cache, grid, tmp_path):
    assert len(grid) == 4
    alone = l2d.train(cache, tmp_path / "alone", method="multi-task", beta=0.2, seed=1, config=TrainConfig(**TINY))
    assert same_state(alone.path, next(path for path in grid if "beta=0.2" in path.name and "seed=1" in path.name))
    assert len({os.stat(path / "body.safetensors").st_ino for path in grid}) == 1
    names = {name.split(".")[0] for name in load_run(grid[0]).rejector.state}
    assert names == {"body", "head", "mean", "std", "feature_mean", "feature_std"}
