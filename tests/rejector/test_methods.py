"""Methods of the literature: their losses against sums by hand, and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature import on_agents, one_stage
from l2d.rejector.literature.neighbours import choose_neighbours, mean_costs
from l2d.rejector.literature.samples import Samples
from l2d.rejector.literature.training import train_method
from l2d.rejector.losses import allocate
from l2d.rejector.methods import LITERATURE as METHODS
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig

K, J = 3, 2
SETTINGS = {"network": "linear", "epochs": 120, "batch_size": 4096, "lr": 0.1, "schedule": "constant", "warmup": 0.0}


def point(method: str, *, agents: int = 2, beta: float = 0.0, weight: float = 1.0, seed: int = 0) -> GridPoint:
    costs = (0.0,) + (beta,) * (agents - 1)
    weights = CostWeights((("cla", weight),))
    return GridPoint(run_id=method, method=method, weights=weights, beta=beta, query_costs=costs, nu=1.0, seed=seed)


def drawn(rows: int, *, missing: bool) -> tuple[torch.Tensor, Samples]:
    """Outputs (n, K + J + 1), double, and samples with query costs of 0.1 and 0.3."""
    generator = torch.Generator().manual_seed(3)
    outputs = 2 * torch.randn(rows, K + J + 1, generator=generator, dtype=torch.float64)
    right = (torch.rand(rows, J, generator=generator) < 0.5).double()
    costs = torch.cat([torch.zeros(rows, 1), 1 - right + torch.tensor([0.1, 0.3])], dim=1).double()
    if missing:
        gone = torch.rand(rows, J, generator=generator) < 0.4
        costs[:, 1:][gone], right[gone] = math.inf, 0.0
    target = torch.randint(K, (rows,), generator=generator)
    return outputs, Samples(x=outputs, costs=costs, target=target, right=right)


# --- losses by hand ---------------------------------------------------------------------------------------------------


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def by_hand(method: str, g: list[float], y: int, cost: list[float], right: list[float], alpha: float) -> float:
    """The formula of the paper, one sample, experts that are there alone."""
    there = [j for j in range(J) if math.isfinite(cost[1 + j])]
    experts = [g[K + j] for j in there]
    if method == "mozannar_sontag":
        costs = [float(k != y) for k in range(K)] + [cost[1 + j] for j in there]
        dearest, s = max(costs), softmax(g[:K] + experts)
        factor = alpha if any(right[j] for j in there) else 1.0
        weights = [(factor if i < K else 1.0) * (dearest - c) for i, c in enumerate(costs)]
        return -sum(w * math.log(p) for w, p in zip(weights, s, strict=True))
    if method == "one_vs_all":
        phi = lambda z: math.log(1 + math.exp(-z))  # noqa: E731
        value = phi(g[y]) + sum(phi(-g[k]) for k in range(K) if k != y)
        return value + sum(phi(g[K + j]) if right[j] else phi(-g[K + j]) for j in there)
    if method == "picce":
        s, known = softmax(g[:K] + experts), [i for i, j in enumerate(there) if right[j]]
        return -math.log(s[y]) - (math.log(max(s[K + i] for i in known)) if known else 0.0)
    if method == "realizable":
        s = softmax(g[:K] + experts)
        surrogate = -math.log(s[y] + sum(s[K + i] for i, j in enumerate(there) if right[j]))
        return alpha * surrogate + (1 - alpha) * -math.log(softmax(g[:K])[y])
    gate = softmax([g[K]] + [g[K + 1 + j] for j in there])
    return gate[0] * -math.log(softmax(g[:K])[y]) + sum(gate[1 + i] * cost[1 + j] for i, j in enumerate(there))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("method", one_stage.RULES)
def test_one_stage_losses_are_the_papers_sums(method, alpha, missing):
    outputs, samples = drawn(40, missing=missing)
    outputs = outputs if method == "mixture_of_experts" else outputs[:, : K + J]
    found = one_stage.RULES[method].loss(outputs, samples, alpha)
    for row in range(40):
        values = (outputs[row].tolist(), int(samples.target[row]))
        wanted = by_hand(method, *values, samples.costs[row].tolist(), samples.right[row].tolist(), alpha)
        assert float(found[row]) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_without_query_costs_the_cost_sensitive_form_is_the_papers_loss():
    outputs, samples = drawn(30, missing=False)
    costs = torch.cat([samples.costs[:, :1], 1 - samples.right], dim=1)
    free = Samples(x=samples.x, costs=costs, target=samples.target, right=samples.right)
    s = outputs[:, : K + J].log_softmax(dim=1)
    wanted = -s.gather(1, samples.target[:, None])[:, 0] - (samples.right * s[:, K:]).sum(dim=1)
    torch.testing.assert_close(one_stage.mozannar_sontag_loss(outputs[:, : K + J], free, 1.0), wanted)


def test_losses_of_agents_are_sums_by_hand():
    outputs, samples = drawn(30, missing=True)
    outputs = outputs[:, : 1 + J]
    regression = on_agents.cost_regression_loss(outputs, samples, 1.0)
    experts = on_agents.expert_right_loss(outputs[:, 1:], samples, 1.0)
    for row in range(30):
        cost, right, g = samples.costs[row].tolist(), samples.right[row].tolist(), outputs[row].tolist()
        there = [j for j in range(1 + J) if math.isfinite(cost[j])]
        assert float(regression[row]) == pytest.approx(sum((g[j] + cost[j]) ** 2 for j in there))
        chance = {j: 1 / (1 + math.exp(-g[j])) for j in there if j}
        wanted = -sum(math.log(p if right[j - 1] else 1 - p) for j, p in chance.items())
        assert float(experts[row]) == pytest.approx(wanted)


def test_the_post_hoc_loss_weighs_two_logistic_losses_by_the_others_cost():
    generator = torch.Generator().manual_seed(0)
    outputs, costs = torch.randn(20, 2, generator=generator).double(), torch.rand(20, 2, generator=generator).double()
    found = on_agents.post_hoc_loss(outputs, Samples(x=outputs, costs=costs), 1.0)
    for (g0, g1), (c0, c1), value in zip(outputs.tolist(), costs.tolist(), found.tolist(), strict=True):
        r = g1 - g0
        assert value == pytest.approx(c1 * math.log(1 + math.exp(r)) + c0 * math.log(1 + math.exp(-r)))


# --- a distribution whose Bayes rule is known -------------------------------------------------------------------------

#: P(y | cell) over three classes, and P(expert right | cell), independent of each other.
CELLS = [
    ((0.94, 0.03, 0.03), 0.60),  # the model is surer: keep
    ((0.20, 0.50, 0.30), 0.80),  # the expert is: defer
    ((0.10, 0.15, 0.75), 0.70),  # keep, though the expert is right more often than not
    ((0.40, 0.35, 0.25), 0.30),  # neither knows: keep
]
BAYES = [0, 1, 0, 0]
COPIES = 100


def cells_table(split: str = "train", *, cached: bool = True) -> CostTable:
    """Every cell, class and rightness in proportion, cells as one-hot features; the cached model knows P(y | cell)."""
    rows = []
    for cell, (chances, right) in enumerate(CELLS):
        for y, p in enumerate(chances):
            count = round(p * COPIES)
            good = round(right * count)
            rows += [(cell, y, 1)] * good + [(cell, y, 0)] * (count - good)
    cell, y, right = (torch.tensor(values) for values in zip(*rows, strict=True))
    model = torch.tensor([chances for chances, _ in CELLS])[cell]
    answer = model.argmax(dim=1)
    raw = torch.stack([(answer != y).float(), 1.0 - right], dim=1)[:, :, None]
    return CostTable(
        split=split,
        ids=[str(row) for row in range(len(y))],
        features=torch.eye(len(CELLS))[cell],
        raw=raw,
        targets={"target_cla": y.numpy()},
        predictions={
            "model": {"pred_cla": answer.numpy(), "pred_prob": model.numpy()},
            "expert": {"pred_cla": torch.where(right == 1, y, (y + 1) % 3).numpy()},
        },
        failed=np.zeros((len(y), 2), dtype=bool),
    )


def chosen_by_cell(trained, table: CostTable) -> list[int]:
    cells = table.features.argmax(dim=1)
    chosen = allocate(torch.from_numpy(trained.scores_on(table)))
    found = [set(chosen[cells == cell].tolist()) for cell in range(len(CELLS))]
    assert all(len(choice) == 1 for choice in found)
    return [choice.pop() for choice in found]


def trained_on_cells(method: str, *, beta: float = 0.0, weight: float = 1.0, **settings):
    table = cells_table()
    config = TrainConfig(**{**SETTINGS, **settings})
    made = point(method, beta=beta, weight=weight)
    trained = train_method(made, table, cells_table("validation"), config, tasks=["cla"], num_classes=3)
    return trained, chosen_by_cell(trained, table)


@pytest.mark.parametrize(
    "method", ["mozannar_sontag", "one_vs_all", "picce", "confidence", "post_hoc", "cost_regression", "knn", "irt"]
)
def test_consistent_methods_find_the_bayes_rule(method):
    assert trained_on_cells(method)[1] == BAYES


@pytest.mark.parametrize("method", ["confidence", "post_hoc", "knn"])
def test_and_with_a_classifier_of_their_own(method):
    trained, chosen = trained_on_cells(method, classifier="own")
    assert chosen == BAYES
    chances = torch.from_numpy(trained.probabilities(np.eye(len(CELLS), dtype=np.float32)))
    assert chances.argmax(dim=1).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("method", ["mozannar_sontag", "confidence", "post_hoc", "cost_regression", "knn"])
def test_a_query_cost_moves_the_bayes_rule_in_units_of_the_weight(method):
    """Where the expert is right 0.8 and the model 0.5, deferring pays for costs up to 0.3 of an error."""
    assert trained_on_cells(method, beta=0.5, weight=2.0)[1] == BAYES  # a quarter of an error
    assert trained_on_cells(method, beta=0.7, weight=2.0)[1] == [0, 0, 0, 0]


@pytest.mark.slow
def test_methods_that_know_no_query_costs_ignore_them():
    for method in (name for name, entry in METHODS.items() if not entry.pays_queries):
        assert trained_on_cells(method, beta=5.0)[1] == trained_on_cells(method)[1]


def test_the_learned_oracle_defers_wherever_the_expert_is_right_more_often_than_not():
    assert trained_on_cells("learned_oracle")[1] == [1, 1, 1, 0]


def test_the_mixture_of_experts_compares_an_entropy_with_an_error_and_so_misses_the_bayes_rule():
    """Its minimum in a cell is the smaller of H(y | x) and P(expert wrong | x)."""
    wanted = [int(-sum(p * math.log(p) for p in chances) > 1 - right) for chances, right in CELLS]
    assert wanted == [0, 1, 1, 1] != BAYES
    outputs = minimised("mixture_of_experts")
    assert outputs[:, 3:].argmax(dim=1).tolist() == wanted


def minimised(method: str) -> torch.Tensor:
    """Outputs of each cell at the least mean loss."""
    rule, table = one_stage.RULES[method], cells_table()
    cells, right = table.features.argmax(dim=1), 1 - table.raw[:, 1:, 0]
    costs = torch.cat([torch.zeros(len(table), 1), 1 - right], dim=1)
    samples = Samples(x=table.features, costs=costs, target=torch.from_numpy(table.targets["target_cla"]), right=right)
    outputs = torch.zeros(len(CELLS), rule.outputs(3, 2))
    outputs[:, :3] = torch.tensor([chances for chances, _ in CELLS]).log()  # one of them is not convex
    outputs.requires_grad_(True)
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(250):
        optimizer.zero_grad()
        rule.loss(outputs[cells], samples, 1.0).mean().backward()
        optimizer.step()
    return outputs.detach()


def test_one_vs_all_is_calibrated_for_the_expert_and_the_surrogate_is_not():
    chances = minimised("one_vs_all").sigmoid()
    assert chances[:, 3].tolist() == pytest.approx([right for _, right in CELLS], abs=0.015)
    assert chances[:, :3].tolist() == [pytest.approx(list(p), abs=0.01) for p, _ in CELLS]
    wanted = [right / (1 + right) for _, right in CELLS]  # of the softmax over K + 1
    assert minimised("mozannar_sontag").softmax(dim=1)[:, 3].tolist() == pytest.approx(wanted, abs=0.015)


def test_the_threshold_is_the_best_on_validation():
    trained, chosen = trained_on_cells("model_confidence")
    assert chosen == [0, 1, 0, 0] or chosen == [0, 1, 0, 1]
    losses = {}
    for threshold in (0.0, 0.45, 0.6, 0.8, 1.0):  # cells by the model's confidence: 3, 1, 2, 0
        losses[threshold] = sum(1 - right if max(p) < threshold else 1 - max(p) for p, right in CELLS) / len(CELLS)
    assert trained.validation_risk == pytest.approx(min(losses.values()), abs=1e-6)
    assert min(losses, key=losses.get) == 0.6
    assert chosen == [0, 1, 0, 1]  # a threshold on confidence cannot keep the cell that nobody knows


# --- realizable -------------------------------------------------------------------------------------------------------


def realizable_table(split: str) -> CostTable:
    """A linear system without errors exists: the sign of x1 left of 0, the expert right of it, where labels mislead."""
    generator = np.random.default_rng(0)
    rows = 400
    expert = generator.random(rows) < 0.6
    x0 = np.where(expert, 1.0, -1.0) * (0.7 + 0.3 * generator.random(rows))
    x1 = generator.choice([-1.0, 1.0], rows) * (0.7 + 0.3 * generator.random(rows))
    y = np.where(expert, x1 < 0, x1 > 0).astype(np.int64)
    raw = torch.from_numpy(np.stack([np.ones(rows), ~expert], axis=1).astype(np.float32))[:, :, None]
    answers = {"pred_cla": 1 - y, "pred_prob": np.eye(2)[1 - y]}
    return CostTable(
        split=split, ids=[""] * rows, features=torch.from_numpy(np.stack([x0, x1], axis=1).astype(np.float32)), raw=raw,
        targets={"target_cla": y}, predictions={"model": answers, "expert": {"pred_cla": np.where(expert, y, 1 - y)}},
        failed=np.zeros((rows, 2), dtype=bool),
    )  # fmt: skip


def test_the_realizable_surrogate_reaches_no_error_where_the_cross_entropy_does_not():
    risks = {}
    for method in ("realizable", "mozannar_sontag"):
        table = realizable_table("train")
        config = TrainConfig(**{**SETTINGS, "epochs": 150})
        trained = train_method(point(method), table, table, config, tasks=["cla"], num_classes=2)
        risks[method] = trained.validation_risk
    assert risks["realizable"] == 0.0
    assert risks["mozannar_sontag"] > 0.1


# --- neighbours -------------------------------------------------------------------------------------------------------


def test_means_over_neighbours_are_those_of_sorted_distances():
    generator = torch.Generator().manual_seed(1)
    x, memory = torch.randn(7, 3, generator=generator), torch.randn(40, 3, generator=generator)
    costs = torch.rand(40, 3, generator=generator)
    costs[torch.rand(40, 3, generator=generator) < 0.3] = math.inf
    found = mean_costs(x, memory, costs, [1, 4])
    for row in range(7):
        nearest = np.argsort(((memory - x[row]).numpy() ** 2).sum(axis=1))
        for which, number in enumerate((1, 4)):
            for agent in range(3):
                seen = [c for c in costs[nearest[:number], agent].tolist() if math.isfinite(c)]
                everywhere = [c for c in costs[:, agent].tolist() if math.isfinite(c)]
                wanted = np.mean(seen or everywhere)
                assert float(found[which, row, agent]) == pytest.approx(wanted, rel=1e-5)


def test_many_neighbours_are_chosen_where_costs_are_noise_and_one_where_they_are_not():
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(400, 1, generator=generator)
    exact = torch.stack([(100 * x[:, 0]).floor() % 2, 1 - (100 * x[:, 0]).floor() % 2], dim=1)
    train, other = Samples(x=x[:300], costs=exact[:300]), Samples(x=x[300:], costs=exact[300:])
    assert choose_neighbours(train, other)[0] <= 2
    noise = torch.stack([torch.rand(400, generator=generator), 0.1 + torch.rand(400, generator=generator)], dim=1)
    number, risk = choose_neighbours(Samples(x=x[:300], costs=noise[:300]), Samples(x=x[300:], costs=noise[300:]))
    assert number >= 50
    assert risk == pytest.approx(float(noise[300:, 0].mean()), abs=0.06)


# --- seeds and gaps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_the_same_run_and_gaps_are_survived(method):
    table = cells_table()
    generator = torch.Generator().manual_seed(5)
    gone = torch.rand(len(table), generator=generator) < 0.3
    table.raw[gone, 1] = math.nan
    table.failed[gone.numpy(), 1] = True
    config = TrainConfig(**{**SETTINGS, "epochs": 8, "batch_size": 128})
    first, second = (
        train_method(point(method, seed=4), table, table, config, tasks=["cla"], num_classes=3) for _ in range(2)
    )
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert math.isfinite(first.validation_risk)
    assert np.isfinite(first.scores_on(table)).all()
