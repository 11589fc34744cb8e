"""Training grids: equal to training alone and to a plain loop, consistent, reproducible, and refusing nonsense."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from l2d.data.errors import DataError, UsageError
from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.networks import make_network
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig, learning_rate
from l2d.rejector.training.loop import train_grid
from l2d.rejector.training.network import TrainedNetwork

TASKS = ["cla", "reg"]


def make_table(rows: int, seed: int, split: str = "train", agents: int = 3) -> CostTable:
    """Random features, and raw costs of two tasks that depend on them."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 4)) * [1, 5, 0.1, 2] + [0, 3, -1, 10]
    standard = (features - [0, 3, -1, 10]) / [1, 5, 0.1, 2]
    signal = 1 / (1 + np.exp(-standard @ np.random.default_rng(99).normal(size=(4, agents * 2))))
    raw = np.clip(signal + 0.1 * generator.normal(size=signal.shape), 0, 1).reshape(rows, agents, 2)
    return CostTable(
        split=split,
        ids=[f"s{row}" for row in range(rows)],
        features=torch.from_numpy(features.astype(np.float32)),
        raw=torch.from_numpy(raw.astype(np.float32)),
    )


def point(nu=1.0, seed=0, method="multi-task", weights=(1.0, 0.5), beta=(0.0, 0.05, 0.1)) -> GridPoint:
    return GridPoint(
        run_id=f"{method}-{nu}-{seed}-{weights}",
        method=method,
        weights=CostWeights(tuple(zip(TASKS, weights, strict=True))),
        beta=max(beta),
        query_costs=beta,
        nu=nu,
        seed=seed,
    )


@pytest.fixture(scope="module")
def tables() -> tuple[CostTable, CostTable]:
    return make_table(300, seed=1), make_table(150, seed=2, split="validation")


def train(points, tables, **config) -> list[TrainedNetwork]:
    settings = {"network": "mlp", "hidden": 16, "epochs": 8, "batch_size": 64, **config}
    return train_grid(points, *tables, TrainConfig(**settings), tasks=TASKS)


def parameters(rejector: TrainedNetwork) -> dict[str, torch.Tensor]:
    return {name: value for name, value in rejector.state.items() if not name.startswith("feature_")}


def assert_same_parameters(one: TrainedNetwork, other: TrainedNetwork, atol: float) -> None:
    assert parameters(one).keys() == parameters(other).keys()
    for name, value in parameters(one).items():
        torch.testing.assert_close(value, parameters(other)[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["linear", "mlp", "transformer"])
def test_a_point_comes_out_of_a_grid_as_it_comes_out_alone(network, tables):
    points = [
        point(nu=nu, seed=seed, beta=(0.0, b, 2 * b)) for nu in (0.5, 1.0, 2.0) for seed, b in ((0, 0.05), (3, 0.0))
    ]
    together = train(points, tables, network=network, hidden=8, epochs=5)
    for one, grid_point in zip(together, points, strict=True):
        alone = train([grid_point], tables, network=network, hidden=8, epochs=5)[0]
        assert one.point == grid_point
        assert_same_parameters(one, alone, atol=1e-4)
        same = one.scores_on(tables[0]).argmax(axis=1) == alone.scores_on(tables[0]).argmax(axis=1)
        assert same.mean() >= 0.999


def plain_training(tables, grid_point: GridPoint, config: TrainConfig) -> list[dict[str, torch.Tensor]]:
    """The same training, written for one network with nothing shared but the network's class: states by epoch."""
    features = tables[0].features.double()
    std = features.std(dim=0, unbiased=False)
    features = ((tables[0].features - features.mean(dim=0).float()) / std.float()).float()
    weights = torch.tensor([weight for _, weight in grid_point.weights.by_task])
    costs = (tables[0].raw * weights).sum(dim=2) + torch.tensor(grid_point.query_costs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(grid_point.seed)
        network = make_network(config.network, features.shape[1], costs.shape[1], config.hidden)
    shuffle = torch.Generator().manual_seed(grid_point.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=config.weight_decay)
    steps, step = config.epochs * math.ceil(len(features) / config.batch_size), 0
    warm = round(config.warmup * steps)
    states = []
    for _ in range(config.epochs):
        for rows in torch.randperm(len(features), generator=shuffle).split(config.batch_size):
            done = (step - warm) / (steps - warm)
            rate = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = config.lr * rate
            share = network(features[rows]).softmax(dim=1)
            nu = grid_point.nu
            surrogate = -share.log() if nu == 1 else (share ** (nu - 1) - 1) / (1 - nu)
            loss = torch.zeros(len(rows))
            for j in range(costs.shape[1]):
                tau = sum(costs[rows, i] for i in range(costs.shape[1]) if i != j)
                loss = loss + tau * surrogate[:, j]
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            step += 1
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    return states


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_training_a_point_equals_a_plain_loop(nu, tables):
    config = TrainConfig(network="mlp", hidden=16, epochs=1, batch_size=32, lr=1e-2, warmup=0.3, weight_decay=0.01)
    grid_point = point(nu=nu, seed=5)
    found = train_grid([grid_point], *tables, config, tasks=TASKS)[0]
    for name, expected in plain_training(tables, grid_point, config)[0].items():
        torch.testing.assert_close(parameters(found)[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nu", [0.5, 1.0, 1.5])
def test_the_epoch_that_is_kept_is_that_epoch_of_a_plain_loop(nu, tables):
    config = TrainConfig(network="linear", epochs=6, batch_size=64, warmup=0.0, lr=3e-2)
    found = train_grid([point(nu=nu, seed=2)], *tables, config, tasks=TASKS)[0]
    expected = plain_training(tables, point(nu=nu, seed=2), config)
    for name, value in parameters(found).items():
        torch.testing.assert_close(value, expected[found.best_epoch][name], rtol=0, atol=1e-5)


def test_a_training_that_diverges_is_refused_naming_the_point(tables):
    with pytest.raises(DataError, match="not finite") as caught:
        train([point(seed=4)], tables, lr=1e30, schedule="constant")
    assert point(seed=4).run_id in str(caught.value)


def test_features_are_standardised_by_the_training_split(tables):
    found = train([point()], tables, epochs=1)[0]
    features = tables[0].features.numpy().astype(np.float64)
    np.testing.assert_allclose(found.state["feature_mean"], features.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.state["feature_std"], features.std(axis=0), rtol=1e-5)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_epoch_of_the_lowest_validation_risk_is_kept(tables):
    points = [point(nu=nu, seed=seed) for nu in (0.5, 1.0) for seed in (0, 1)]
    for found in train(points, tables, epochs=15, lr=0.05):
        risks = [risk for _, risk in found.history]
        assert len(risks) == 15
        assert found.best_epoch == int(np.argmin(risks))
        assert found.validation_risk == pytest.approx(min(risks), abs=1e-7)
        scores = found.scores_on(tables[1])
        raw = tables[1].raw.numpy().astype(np.float64)
        costs = raw @ np.array([1.0, 0.5]) + np.array([0.0, 0.05, 0.1])
        risk = costs[np.arange(len(costs)), scores.argmax(axis=1)].mean()
        assert found.validation_risk == pytest.approx(risk, abs=1e-5)
    assert any(found.best_epoch < 14 for found in train(points, tables, epochs=15, lr=0.05))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tables):
    first, again = train([point(seed=7), point(seed=8)], tables), train([point(seed=7), point(seed=8)], tables)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(value, parameters(other)[name]) for name, value in parameters(one).items())
    assert any(not torch.equal(value, parameters(first[1])[name]) for name, value in parameters(first[0]).items())


def test_training_leaves_the_global_random_state_alone(tables):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    train([point(seed=7)], tables, epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("method", "alone"), [("classification-only", (1.0, 0.0)), ("regression-only", (0.0, 0.5))])
def test_a_method_of_one_task_trains_on_its_cost_alone(tables, method, alone):
    """The same rejector as with a weight of 0 on the other task, whatever its costs are."""
    single = train([point(method=method, weights=(1.0, 0.5))], tables)[0]
    without = train([point(method="multi-task", weights=alone)], tables)[0]
    both = train([point(method="multi-task", weights=(1.0, 0.5))], tables)[0]
    assert_same_parameters(single, without, atol=0)
    assert any(not torch.equal(value, parameters(both)[name]) for name, value in parameters(single).items())
    assert single.point.weights.by_task == (("cla", 1.0), ("reg", 0.5))  # it is still evaluated on both


# --- it learns the Bayes rejector ------------------------------------------------------------------------------------


def bayes_table(rows: int, seed: int) -> tuple[CostTable, np.ndarray]:
    """Two features; conditional mean costs are known functions of them, observed costs are 0 or 1 at those rates."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, size=(rows, 2))
    means = np.stack([0.5 + 0.4 * np.tanh(3 * x[:, 0]), 0.5 - 0.4 * x[:, 1], 0.15 + 0.6 * np.abs(x).mean(axis=1)], 1)
    observed = (generator.random(means.shape) < means).astype(np.float32)
    raw = np.stack([observed, np.zeros_like(observed)], axis=2)
    table = CostTable(
        split="train",
        ids=[str(row) for row in range(rows)],
        features=torch.from_numpy(x.astype(np.float32)),
        raw=torch.from_numpy(raw),
    )
    return table, means


@pytest.mark.slow
def test_regret_to_the_bayes_rejector_falls_with_the_number_of_samples():
    nus, sizes = (0.5, 1.0, 1.5), (60, 500, 6000)
    points = [point(nu=nu, seed=seed, weights=(1.0, 0.0), beta=(0.0, 0.0, 0.0)) for nu in nus for seed in (0, 1)]
    validation, (test, means) = bayes_table(2000, seed=50)[0], bayes_table(20_000, seed=51)
    lowest = means.min(axis=1).mean()
    regrets = np.zeros((len(sizes), len(points)))
    for row, size in enumerate(sizes):
        config = TrainConfig(network="mlp", hidden=32, epochs=25, batch_size=min(256, size), lr=5e-3)
        found = train_grid(points, bayes_table(size, seed=size)[0], validation, config, tasks=TASKS)
        for column, rejector in enumerate(found):
            chosen = rejector.scores_on(test).argmax(axis=1)
            regrets[row, column] = means[np.arange(len(means)), chosen].mean() - lowest
    by_nu = regrets.reshape(len(sizes), len(nus), 2).mean(axis=2)
    assert (regrets >= 0).all()
    assert (by_nu[-1] < by_nu[0]).all(), by_nu
    assert (by_nu[-1] < 0.02).all(), by_nu


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_rate_rises_linearly_then_follows_the_schedule():
    config = TrainConfig(lr=2.0, warmup=0.1, schedule="cosine")
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)  # half-way down the cosine
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(100, 100, config) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(55, 100, TrainConfig(lr=2.0, warmup=0.1, schedule="linear")) == pytest.approx(1.0)
    assert learning_rate(99, 100, TrainConfig(lr=2.0, warmup=0.0, schedule="constant")) == 2.0
    assert learning_rate(0, 1, TrainConfig(lr=2.0)) == 2.0


NAN, INF = float("nan"), float("inf")
WRONG = [("hidden", 0), ("epochs", 0), ("batch_size", 0), ("network", "resnet"), ("schedule", "stairs")]
WRONG += [("lr", value) for value in (0.0, -1.0, NAN, INF)]
WRONG += [("warmup", value) for value in (-0.1, 1.1, NAN)]
WRONG += [("weight_decay", value) for value in (-1.0, NAN, INF)]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UsageError):
        TrainConfig(**{name: value})


def test_a_transformer_needs_a_width_its_heads_divide():
    with pytest.raises(UsageError, match="multiple of 4"):
        TrainConfig(network="transformer", hidden=6)
