"""Stacks of rejectors: equal to plain PyTorch loops, to themselves alone bit by bit, and to themselves resumed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import TASKS, make_table, point

from l2d.data.errors import DataError, UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.losses import allocate
from l2d.rejector.networks import make_network
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training import stack_mlp as stacked_mlp
from l2d.rejector.training.loop import train_grid
from l2d.rejector.training.network import TrainedNetwork
from l2d.rejector.training.stack import AutogradStack, Stack
from l2d.rejector.training.stack_mlp import MLPStack

WEIGHTS = (1.0, 0.5)
NETWORKS = [("linear", 2), ("mlp", 1), ("mlp", 2), ("mlp", 3)]
KINDS = [MLPStack, AutogradStack]


@pytest.fixture(autouse=True)
def one_thread():
    """As training runs stacks; also, threads that wait for each other are slow where tests run beside each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_points() -> list[GridPoint]:
    """Two seeds, three of them neighbours; every nu that is special."""
    values = [(0.0, 3, 0.1), (1.0, 3, 0.0), (1.5, 3, 0.3), (2.0, 5, 0.2), (0.5, 5, 0.0)]
    return [point(nu=nu, seed=seed, weights=WEIGHTS, beta=(0.0, beta, beta / 2)) for nu, seed, beta in values]


def make_stack(kind: type[Stack], points: list[GridPoint], **settings) -> Stack:
    given = {"network": "mlp", "width": 6, "num_agents": 3, "hidden": 16, "dtype": torch.float64, **settings}
    return kind(points, torch.tensor(WEIGHTS).expand(len(points), 2), **given)


def batches(seeds: int, count: int, rows: int, dtype=torch.float64, seed: int = 0) -> list[tuple]:
    """Features (seeds, rows, 6), raw costs (seeds, rows, 3, 2) and a rate; the last batch of every four is short."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for step in range(count):
        size = rows // 3 if step % 4 == 3 else rows
        features = torch.randn(seeds, size, 6, generator=generator, dtype=torch.float64)
        raw = torch.rand(seeds, size, 3, 2, generator=generator, dtype=torch.float64)
        raw[..., 0] *= 1 + torch.tanh(features[..., :3])  # something to be learnt
        made.append((features.to(dtype), raw.to(dtype), 1e-2 * (1 - step / count)))
    return made


def plain_loss(scores: torch.Tensor, costs: torch.Tensor, loss: str, nu: float) -> torch.Tensor:
    agents = range(costs.shape[1])
    if loss == "regression":
        return sum((scores[:, j] + costs[:, j]) ** 2 for j in agents).mean()
    if loss == "one_vs_all":
        dearest, bce = costs.amax(dim=1), torch.nn.functional.binary_cross_entropy_with_logits
        return sum((dearest * bce(scores[:, j], 1 - costs[:, j] / dearest, reduction="none")) for j in agents).mean()
    share = scores.softmax(dim=1)
    surrogate = -share.log() if nu == 1 else (share ** (nu - 1) - 1) / (1 - nu)
    return sum((costs.sum(dim=1) - costs[:, j]) * surrogate[:, j] for j in agents).mean()


def plain_loop(grid_point: GridPoint, of_seed: int, given: list[tuple], settings: dict) -> tuple[dict, list[float]]:
    """One rejector trained by what PyTorch has: modules, autograd, AdamW. Returns its parameters and losses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(grid_point.seed)
        network = make_network(settings["network"], 6, 3, 16, settings["layers"]).to(settings["dtype"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.05)
    losses = []
    for features, raw, lr in given:
        costs = raw[of_seed, :, :, 0] * WEIGHTS[0] + raw[of_seed, :, :, 1] * WEIGHTS[1]
        costs = costs + torch.tensor(grid_point.query_costs, dtype=costs.dtype)
        if settings["recentre"]:
            costs = costs - costs.min(dim=1, keepdim=True).values
        loss = plain_loss(network(features[of_seed]), costs, settings["loss"], grid_point.nu)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return dict(network.named_parameters()), losses


# --- the same as PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "layers", "loss", "recentre"),
    [
        *((network, layers, "surrogate", False) for network, layers in NETWORKS),
        ("mlp", 1, "surrogate", True),
        ("mlp", 2, "regression", False),
        ("linear", 2, "one_vs_all", False),
        ("mlp", 2, "one_vs_all", True),
    ],
)
@pytest.mark.slow
def test_300_steps_in_float64_are_those_of_a_plain_loop(network, layers, loss, recentre, monkeypatch):
    """Points in one group, in several groups, and batches cut into blocks of rows are all the same."""
    points = some_points() if loss == "surrogate" else [*some_points()[1:2], point(seed=5, weights=WEIGHTS)]
    settings = {"network": network, "layers": layers, "loss": loss, "recentre": recentre, "dtype": torch.float64}
    given = batches(2, 300, rows=48)
    expected = [plain_loop(one, [3, 5].index(one.seed), given, settings) for one in points]
    for kind, at_once in ((AutogradStack, 1), (MLPStack, 10_000), (MLPStack, 64 * 16 * 2), (MLPStack, 11 * 16)):
        monkeypatch.setattr(stacked_mlp, "AT_ONCE", at_once)
        stack = make_stack(kind, points, weight_decay=0.05, **settings)
        losses = torch.stack([stack.step(*batch) for batch in given])
        for position, (parameters, of_loop) in enumerate(expected):
            for name, value in parameters.items():
                found = stack.parameters[name][position]
                torch.testing.assert_close(found, value.detach(), rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
            np.testing.assert_allclose(losses[:, position], of_loop, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_300_steps_in_float32_come_as_near_as_float32_can(kind):
    points, given = some_points(), batches(2, 300, rows=64, dtype=torch.float32)
    settings = {"network": "mlp", "layers": 2, "loss": "surrogate", "recentre": False, "dtype": torch.float32}
    stack = make_stack(kind, points, weight_decay=0.05, **settings)
    for batch in given:
        stack.step(*batch)
    new_rows = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(9))
    for position, grid_point in enumerate(points):
        expected, _ = plain_loop(grid_point, [3, 5].index(grid_point.seed), given, settings)
        found = {name: value[position].contiguous() for name, value in stack.parameters.items()}
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=1e-3)
        network = make_network("mlp", 6, 3, 16)
        chosen = []
        for state in (found, expected):
            network.load_state_dict(state)
            chosen.append(allocate(network(new_rows).detach()))
        assert float((chosen[0] == chosen[1]).double().mean()) >= 0.999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_the_risk_is_the_mean_cost_of_the_agent_with_the_highest_score(kind, network):
    points, (features, raw, _) = some_points(), batches(1, 1, rows=333)[0]
    stack = make_stack(kind, points, network=network)
    found = stack.risk(features[0], raw[0], 100)
    for position, grid_point in enumerate(points):
        module = make_network(network, 6, 3, 16).double()
        module.load_state_dict({name: value[position] for name, value in stack.parameters.items()})
        scores = module(features[0]).detach().numpy()
        costs = raw[0].numpy() @ np.array(WEIGHTS) + np.array(grid_point.query_costs)
        expected = costs[np.arange(333), scores.argmax(axis=1)].mean()
        assert float(found[position]) == pytest.approx(expected, abs=1e-12)
    assert len(set(found.tolist())) > 1


# --- the same with and without others ---------------------------------------------------------------------------------


def grid_of(nus: list[float]) -> list[GridPoint]:
    return [
        point(nu=nu, seed=seed, beta=(0.0, b, b / 2))
        for nu, b, seed in itertools.product(nus, (0.0, 0.1, 0.2), (4, 0, 9))
    ]


def train(points: list[GridPoint], rows: int = 300, width: int = 4, **config) -> list[TrainedNetwork]:
    tables = (
        replace(table, features=table.features[:, :width].contiguous())
        for table in (make_table(rows, seed=1), make_table(101, seed=2, split="validation"))
    )
    return train_grid(points, *tables, TrainConfig(**{"hidden": 16, "epochs": 3, "lr": 0.01, **config}), tasks=TASKS)


def assert_same_bits(one: TrainedNetwork, other: TrainedNetwork) -> None:
    assert one.point == other.point
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    assert (one.history, one.best_epoch, one.validation_risk) == (
        other.history,
        other.best_epoch,
        other.validation_risk,
    )


@pytest.mark.parametrize(
    "config",
    [
        {"network": "linear", "batch_size": 37},
        {"network": "mlp", "layers": 1, "hidden": 33, "batch_size": 64},
        {"network": "mlp", "hidden": 17, "batch_size": 1, "epochs": 1, "rows": 60},
        {"network": "mlp", "hidden": 5, "batch_size": 33, "width": 3},
        {"network": "mlp", "hidden": 1, "batch_size": 7, "width": 1},
        {"network": "linear", "batch_size": 19, "width": 1},
        {"network": "mlp", "hidden": 16, "batch_size": 120, "at_once": 40 * 16},  # cut into blocks of 32 rows
        {"network": "mlp", "hidden": 64, "batch_size": 1024, "rows": 2048},
        {"network": "mlp", "batch_size": 50, "loss": "regression", "recentre": True},
        {"network": "mlp", "batch_size": 50, "loss": "one_vs_all"},
    ],
    ids=str,
)
def test_a_point_has_the_same_bits_in_a_grid_and_alone_whatever_the_threads(config, monkeypatch):
    config = dict(config)
    monkeypatch.setattr(stacked_mlp, "AT_ONCE", config.pop("at_once", stacked_mlp.AT_ONCE))
    points = grid_of([1.0] if "loss" in config else [0.5, 1.0, 2.0])
    torch.set_num_threads(2)
    together = train(points, **config)
    for position in (0, len(points) // 2 + 1, len(points) - 1):
        assert_same_bits(together[position], train([points[position]], **config)[0])
    torch.set_num_threads(1)
    for one, other in zip(together, train(points, **config), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize(("hidden", "width", "rows"), [(33, 5, 37), (1, 1, 1), (16, 16, 32), (7, 70, 301)])
def test_matrices_that_are_multiplied_begin_alike_in_memory(hidden, width, rows, monkeypatch):
    """Some BLAS libraries round by it (MKL on AMD's processors), which no test on another processor would see."""
    seen = []

    def checked(product):
        def multiply(*operands, out):
            for matrices in (*operands[-2:], out):
                # a stride of 0: one matrix for all; a turned matrix has its rows along the last dimension
                places = {matrices.data_ptr() % 64, *(4 * stride % 64 for stride in matrices.stride() if stride != 1)}
                assert places == {0}, (matrices.shape, matrices.stride())
                assert 1 in matrices.stride()[1:]
            seen.append(product)
            return product(*operands, out=out)

        return multiply

    class Products:
        bmm, baddbmm = staticmethod(checked(torch.bmm)), staticmethod(checked(torch.baddbmm))

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(stacked_mlp, "torch", Products())
    monkeypatch.setattr(stacked_mlp, "AT_ONCE", 200 * 80)
    stack = make_stack(MLPStack, some_points(), width=width, hidden=hidden, dtype=torch.float32)
    features, raw = torch.randn(2, rows, width), torch.rand(2, rows, 3, 2)
    for _ in range(3):
        stack.step(features, raw, 0.01)
    stack.risk(features[0], raw[0], 1000)
    assert len(seen) > 15


def test_padding_stays_zero():
    stack = make_stack(MLPStack, some_points(), hidden=17, dtype=torch.float32)
    for batch in batches(2, 60, rows=37, dtype=torch.float32):
        stack.step(*batch)
    real = sum(value.abs().sum(dtype=torch.float64) for value in stack.parameters.values())
    assert float(stack._flat.abs().sum(dtype=torch.float64)) == pytest.approx(float(real), rel=1e-12)


def test_rejectors_come_in_the_order_of_their_points():
    points = grid_of([1.0])
    found = train(points, epochs=1)
    assert [rejector.point for rejector in found] == points
    assert len({rejector.history[0][0] for rejector in found}) == len(points)


# --- state ------------------------------------------------------------------------------------------------------------


def go_on(stack: Stack, given: list[tuple], epoch: int) -> None:
    features, raw, _ = batches(1, 1, rows=90, seed=1, dtype=given[0][0].dtype)[0]
    for batch in given:
        stack.step(*batch)
    stack.keep_best(stack.risk(features[0], raw[0], 1000), epoch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_that_is_resumed_goes_on_to_the_same_bits(kind):
    points, given = some_points(), batches(2, 60, rows=24, dtype=torch.float32)
    stack = make_stack(kind, points, dtype=torch.float32)
    go_on(stack, given[:25], epoch=0)
    for batch in given[25:31]:  # mid-epoch
        stack.step(*batch)
    state = stack.state()
    copy = {name: value.clone() for name, value in state.items()}
    go_on(stack, given[31:], epoch=1)
    assert all(torch.equal(value, copy[name]) for name, value in state.items()), "a state is a copy"
    resumed = make_stack(kind, points, dtype=torch.float32)
    resumed.load_state(state)
    go_on(resumed, given[31:], epoch=1)
    for name, value in stack.state().items():
        assert torch.equal(value, resumed.state()[name]), name
    for position in range(len(points)):
        found, expected = resumed.best_state(position), stack.best_state(position)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_every_part_of_a_state_matters():
    points, given = some_points(), batches(2, 20, rows=24)
    stack = make_stack(MLPStack, points)
    go_on(stack, given[:10], epoch=4)
    state = stack.state()
    features, raw, _ = batches(1, 1, rows=90, seed=1)[0]
    never_better = torch.full((len(points),), torch.inf)

    def outcome(given_state: dict) -> dict:
        other = make_stack(MLPStack, points)
        other.load_state(given_state)
        for batch in given[10:]:
            other.step(*batch)
        other.keep_best(never_better, 5)
        return {**other.state(), "risk": other.risk(features[0], raw[0], 1000)}

    expected = outcome(state)
    for name, value in state.items():
        changed = outcome({**state, name: value + 1})
        assert any(not torch.equal(value, changed[key]) for key, value in expected.items()), name


def test_states_can_be_joined_and_divided_anew():
    """A grid may be resumed on a machine with another number of threads."""
    points, given = some_points(), batches(2, 30, rows=24, dtype=torch.float32)
    whole, first, second = (
        make_stack(MLPStack, part, dtype=torch.float32) for part in (points, points[:2], points[2:])
    )
    for batch in given:
        whole.step(*batch)
        first.step(batch[0][:1], batch[1][:1], batch[2])
        second.step(*batch)
    state = whole.state()
    for name, value in state.items():
        assert torch.equal(value, torch.cat([first.state()[name], second.state()[name]])), name
    part = make_stack(MLPStack, points[2:], dtype=torch.float32)
    part.load_state({name: value[2:] for name, value in state.items()})
    assert all(torch.equal(value, second.state()[name]) for name, value in part.state().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_one_kind_is_that_of_the_other(kind):
    """What was begun on a GPU can be finished on a CPU, and the other way round."""
    points, given = some_points(), batches(2, 40, rows=24)
    stack, other = make_stack(kind, points), make_stack(next(k for k in KINDS if k is not kind), points)
    go_on(stack, given[:20], epoch=0)
    other.load_state(stack.state())
    for one in (stack, other):
        go_on(one, given[20:], epoch=1)
    for name, value in stack.state().items():
        torch.testing.assert_close(value, other.state()[name], rtol=0, atol=1e-11)


def test_a_state_of_something_else_is_refused():
    stack, points = make_stack(MLPStack, some_points()), some_points()
    before = stack.state()
    others = {
        "another network": make_stack(MLPStack, points, hidden=8).state(),
        "fewer points": make_stack(MLPStack, points[:2]).state(),
        "nothing": {},
        "more": {**before, "exp_avg.8.weight": torch.zeros(5)},
        "points at different steps": {**before, "steps": torch.arange(5)},
    }
    for name, state in others.items():
        with pytest.raises(ValueError, match=r"another stack|different steps|steps; all"):
            stack.load_state(state)
        assert all(torch.equal(value, stack.state()[key]) for key, value in before.items()), name


# --- which kind, and where --------------------------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch) -> Callable[..., list[tuple[type, int, int]]]:
    """Train, and say what ran: kind of stack, points in it, and threads of torch that it could use."""
    found = []
    for kind in KINDS:

        def step(self, *batch, kind=kind, before=kind.step, **more):
            found.append((kind, len(self.points), torch.get_num_threads()))
            return before(self, *batch, **more)

        monkeypatch.setattr(kind, "step", step)

    def run(points: list[GridPoint], threads: int, **config) -> list[tuple[type, int, int]]:
        found.clear()
        torch.set_num_threads(threads)
        train(points, epochs=1, batch_size=300, **config)
        return sorted(set(found), key=str)

    return run


def test_linear_and_mlp_run_on_as_many_threads_as_there_are_and_others_by_autograd(used):
    points = grid_of([1.0])
    assert used(points, 2, network="mlp") == [(MLPStack, 4, 1), (MLPStack, 5, 1)]
    assert used(points, 1, network="linear") == [(MLPStack, 9, 1)]
    assert used(points[:1], 2, network="mlp") == [(MLPStack, 1, 1)]
    assert used(points, 2, network="transformer", hidden=8) == [(AutogradStack, 9, 2)]


@pytest.mark.parametrize("lr", [0.01, 1e30])
def test_training_leaves_the_number_of_threads_as_it_was(lr):
    torch.set_num_threads(2)
    if lr == 0.01:
        train(grid_of([1.0]))
    else:
        with pytest.raises(DataError, match="not finite"):
            train(grid_of([1.0]), lr=lr, schedule="constant")
    assert torch.get_num_threads() == 2


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["regression", "one_vs_all"])
def test_a_loss_without_nu_refuses_one(loss):
    with pytest.raises(UsageError, match="has no nu"):
        train([point(nu=0.5)], loss=loss)


def test_what_is_trained_is_what_was_asked_for():
    """Loss, recentring and layers all reach the stack: each gives another rejector, of the expected shape."""
    asked = [{}, {"recentre": True}, {"loss": "regression"}, {"loss": "one_vs_all"}, {"layers": 1}, {"layers": 3}]
    found = [train([point()], epochs=2, **config)[0] for config in asked]
    for one, other in itertools.combinations(found, 2):
        assert one.state.keys() != other.state.keys() or any(
            not torch.equal(value, other.state[name]) for name, value in one.state.items()
        )
    depths = [sum(name.endswith("weight") for name in rejector.state) for rejector in found]
    assert depths == [3, 3, 3, 3, 2, 4]
    for rejector in found:
        assert rejector.scores_on(make_table(5, seed=3)).shape == (5, 3)


@pytest.mark.parametrize("recentre", [False, True])
def test_regression_scores_are_negated_costs_or_negated_regrets(recentre):
    """Costs that are a linear function of the features are learnt exactly by a linear rejector; regrets on average."""
    x = np.random.default_rng(0).uniform(-1, 1, (400, 4)).astype(np.float32)
    costs = 1 + x[:, :3] * np.float32([0.2, 0.3, 0.1])
    raw = torch.from_numpy(np.stack([costs, np.zeros_like(costs)], axis=2))
    table = replace(make_table(400, seed=1), features=torch.from_numpy(x), raw=raw)
    free = point(beta=(0.0, 0.0, 0.0), weights=(1.0, 0.0))
    config = TrainConfig(network="linear", epochs=150, lr=0.03, batch_size=100, loss="regression", recentre=recentre)
    scores = train_grid([free], table, table, config, tasks=TASKS)[0].scores_on(table)
    if recentre:
        regret = costs - costs.min(axis=1, keepdims=True)
        np.testing.assert_allclose(scores.mean(axis=0), -regret.mean(axis=0), atol=0.02)
    else:
        np.testing.assert_allclose(scores, -costs, atol=5e-3)
