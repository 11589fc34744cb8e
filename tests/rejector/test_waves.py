"""Grids that memory does not hold: trained in waves, to the same weights, and nothing of a finished wave is lost."""

from __future__ import annotations

import pytest
from test_resume import SMALL, Killed, cache, equal, grid, train  # noqa: F401 - a fixture

from l2d.data.errors import UsageError
from l2d.rejector.networks import make_network
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.stack import Stack, padded
from l2d.rejector.training.stack_mlp import LANES
from l2d.rejector.training.waves import COPIES, SHARE, free_memory, waves

CONFIG = TrainConfig(epochs=3, batch_size=64, hidden=64)


def memory_for(points: int, cache, hidden: int = 64) -> int:  # noqa: F811
    width = padded(open_streams(cache, ("train",))["train"].width, LANES)  # as it lies in memory
    network = make_network("mlp", width, len(cache.agents), padded(hidden, LANES))
    return int(points * COPIES * 4 * sum(p.numel() for p in network.parameters()) / SHARE) + 8


@pytest.mark.slow
def test_waves_give_the_weights_of_one_grid(cache, tmp_path):  # noqa: F811
    told, points = [], grid(cache, betas=(0.0, 0.1, 0.2))
    whole = train(cache, tmp_path / "whole", CONFIG, points, narrate=told.append)
    assert not told
    divided = train(cache, tmp_path / "divided", CONFIG, points, available=memory_for(2, cache), narrate=told.append)
    assert told == ["memory holds 2 of 6 rejectors at once: training 2, 2, 2 one after another"]
    assert equal(whole, divided)


def test_what_an_earlier_wave_trained_survives_a_kill_in_a_later_one(cache, tmp_path, monkeypatch):  # noqa: F811
    points, available = grid(cache), memory_for(2, cache)
    whole = train(cache, tmp_path / "whole", CONFIG, points)
    step, done = Stack.step, []

    def stop(stack, *args, **kwargs):
        done.append(1)
        if any(point.seed == 1 for point in stack.points) and len(done) > 25:
            raise Killed
        return step(stack, *args, **kwargs)

    monkeypatch.setattr(Stack, "step", stop)
    with pytest.raises(Killed):
        train(cache, tmp_path / "divided", CONFIG, points, available=available)
    there = {path.name for path in (tmp_path / "divided").iterdir() if not path.name.startswith(".")}
    assert there == {point.run_id for point in points if point.seed == 0}
    monkeypatch.setattr(Stack, "step", step)
    assert equal(whole, train(cache, tmp_path / "divided", CONFIG, points, available=available))


@pytest.mark.slow
def test_seeds_that_do_not_fit_beside_each_other_train_one_after_another(cache, tmp_path):  # noqa: F811
    config = TrainConfig(epochs=2, hidden=16, **SMALL)
    points, told = grid(cache, betas=(0.1,), seeds=range(12)), []
    together = train(cache, tmp_path / "divided", config, points, narrate=told.append)
    assert len(told) == 1
    for point in points[::5]:
        alone = train(cache, tmp_path / "alone", config, [point])
        assert equal(alone, together)


def test_every_point_trains_once_and_points_of_a_seed_are_neighbours(cache):  # noqa: F811
    stream, points = open_streams(cache, ("train",))["train"], grid(cache, betas=(0.0, 0.1, 0.2, 0.3, 0.4))
    for most in range(1, 12):
        found = waves(points, CONFIG, stream, len(cache.agents), available=memory_for(most, cache))
        assert sorted(position for wave in found for position in wave) == list(range(10))
        assert all(len(wave) <= most for wave in found)
        seeds = [points[position].seed for wave in found for position in wave]
        assert seeds == sorted(seeds)


def test_rows_that_do_not_fit_are_refused_with_the_bound_that_streams_them(cache):  # noqa: F811
    stream = open_streams(cache, ("train",))["train"]
    with pytest.raises(UsageError, match="rows take"):
        waves(grid(cache), CONFIG, stream, len(cache.agents), available=10_000)
    wide = TrainConfig(hidden=4096)
    with pytest.raises(UsageError, match="one rejector takes"):
        waves(grid(cache), wide, stream, len(cache.agents), available=2**28)


def test_free_memory_is_what_the_system_says():
    assert 2**20 < free_memory("cpu") < 2**50
