"""Agents that have no answer for a sample are unavailable there: not trained on, not chosen, never of cost 0."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from recipes import RECIPE, agent
from test_stacked import grid_of
from test_training import TASKS

from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError
from l2d.rejector.grid import GridPoint, make_grid
from l2d.rejector.losses import LOSSES, allocate, check_nu, recentred, surrogate_deferral_loss
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.runs.files import ALLOCATIONS_FILE
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep
from l2d.rejector.training.loop import train_grid

AGENT = """
import numpy as np
from pathlib import Path


def ask(batch, folder):
    absent = set(Path(folder, "absent").read_text().split())
    if absent & set(batch.ids):
        raise ConnectionError("not on shift")
    risk = batch.columns["risk_good"].to_numpy()
    return {"prob": np.stack([1 - risk, risk], axis=1), "reg": batch.columns["stay_good"].to_numpy()}
"""
ABSENT = [f"p{row:04d}" for row in range(3, 120, 4)]


def grid(cache: CostCache, *, betas=(), cost=None) -> list[GridPoint]:
    return make_grid(cache, methods=["multi-task"], weights=[], betas=list(betas), nus=[1.0], seeds=[0], cost=cost)


@pytest.fixture
def with_absences(workshop) -> CostCache:
    """A cache whose last, best agent has no answer on every fourth sample."""
    (workshop.folder / "agent.py").write_text(AGENT)
    (workshop.folder / "absent").write_text(" ".join(ABSENT))
    doctor = agent("doctor", "python", file="agent.py", options={"folder": str(workshop.folder)})
    workshop.build(RECIPE.plus(doctor), on_failure="record")
    return CostCache(workshop.folder / "cache")


def some_rows(rows: int = 60, agents: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, costs and who is missing, at least one being there."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(rows, agents, generator=generator, dtype=torch.float64)
    costs = torch.rand(rows, agents, generator=generator, dtype=torch.float64)
    missing = torch.rand(rows, agents, generator=generator) < 0.5
    missing[torch.arange(rows), torch.randint(agents, (rows,), generator=generator)] = False
    return scores, costs.masked_fill(missing, math.inf), missing


@pytest.mark.parametrize("recentre", [False, True])
@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.7, 2.0, 3.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_the_agents_that_are_there_alone(loss, nu, recentre):
    scores, costs, missing = some_rows()
    nu = check_nu(nu, torch.float64)
    if recentre:
        costs = recentred(costs)
    values, gradients = LOSSES[loss](scores, costs, nu, -1, missing)
    for row, here in enumerate(~missing):
        value, gradient = LOSSES[loss](scores[row, here], costs[row, here], nu, -1)
        assert values[row] == pytest.approx(value.item(), rel=1e-12, abs=1e-12)
        torch.testing.assert_close(gradients[row, here], gradient, rtol=1e-12, atol=1e-12)
        assert (gradients[row, ~here] == 0).all()


def test_infinite_costs_are_agents_that_are_not_there_for_autograd_too():
    scores, costs, missing = some_rows()
    scores.requires_grad_()
    surrogate_deferral_loss(scores, costs, 0.5).sum().backward()
    _, gradients = LOSSES["surrogate"](scores.detach(), costs, check_nu(0.5, torch.float64), -1, missing)
    torch.testing.assert_close(scores.grad, gradients)


def test_nobody_chooses_an_agent_that_is_not_there():
    scores, _, missing = some_rows()
    chosen = allocate(scores, ~missing).tolist()
    for row, taken in enumerate(chosen):
        here = [j for j in range(5) if not missing[row, j]]
        assert taken == max(here, key=lambda j: (scores[row, j].item(), -j))


@pytest.fixture
def world() -> tuple[CostTable, CostTable]:
    """Agent ``j`` of 3 is the cheapest in its third of the line; each is missing on 40 % of the samples, at random."""

    def table(rows: int, seed: int) -> CostTable:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(rows, 2, generator=generator) * 3
        raw = torch.stack([(x[:, :1] - torch.arange(3) - 0.5).abs(), torch.zeros(rows, 3)], dim=2)
        raw[torch.rand(rows, 3, generator=generator) < 0.4] = math.nan
        keep = ~raw[:, :, 0].isnan().all(dim=1)
        return CostTable(split="train", ids=["?"] * int(keep.sum()), features=x[keep], raw=raw[keep])

    return table(3000, 0), table(1000, 1)


@pytest.mark.parametrize("network", ["mlp", "transformer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_rejector_learns_who_is_cheapest_among_those_that_are_there(world, loss, network):
    train, held_out = world
    config = TrainConfig(network=network, loss=loss, epochs=20, batch_size=200, hidden=32, lr=1e-2)
    (rejector,) = train_grid(grid_of([1.0])[:1], train, held_out, config, tasks=TASKS)
    costs = held_out.raw[:, :, 0]
    there = ~costs.isnan()
    chosen = allocate(torch.from_numpy(rejector.scores_on(held_out)), there)
    taken = costs.gather(1, chosen[:, None]).squeeze(1)
    assert not taken.isnan().any()
    best = costs.nan_to_num(nan=9.0).amin(dim=1)
    assert float((taken - best).mean()) < 0.02  # choosing at random among them costs 0.35 more
    assert rejector.validation_risk == pytest.approx(float(taken.double().mean()), abs=1e-6)


@pytest.mark.slow
def test_a_point_has_the_same_bits_in_a_grid_and_alone_where_agents_are_missing(world):
    config, points = TrainConfig(epochs=2, batch_size=100, hidden=16), grid_of([0.5, 1.0, 2.0])
    together = train_grid(points, *world, config, tasks=TASKS)
    for point, one in zip(points, together, strict=True):
        (alone,) = train_grid([point], *world, config, tasks=TASKS)
        assert all(torch.equal(value, alone.state[name]) for name, value in one.state.items())


@pytest.mark.parametrize("memory", [None, 20_000])
@pytest.mark.slow
def test_masked_samples_are_kept_and_never_go_to_who_is_absent(with_absences, tmp_path, memory):
    cache = with_absences
    with pytest.raises(DataError, match="doctor"):
        load_tables(cache, ("train",))
    streams = open_streams(cache, ("train", "validation", "test"), failures="mask")
    tables = load_tables(cache, ("train", "validation", "test"), failures="mask")
    for split, table in tables.items():
        there = ~np.isin(table.ids, ABSENT)
        assert (table.raw[:, 3].isnan().any(dim=1).numpy() == ~there).all()
        assert not table.raw[:, :3].isnan().any()
        features, raw = (torch.cat(values) for values in zip(*streams[split].in_order(16), strict=True))
        torch.testing.assert_close(raw, table.raw, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(features, table.features)
    assert sum(len(table) for table in tables.values()) == 120

    config = TrainConfig(epochs=3, hidden=16, failures="mask", memory=memory, batch_size=8)
    folders = [tmp_path / "run"]
    sweep(cache, grid(cache, betas=[{"expert": 0.5, "cheap": 0.5, "doctor": 0.01}]), folders, config)
    found = pl.read_parquet(folders[0] / ALLOCATIONS_FILE)
    absent = found["sample_id"].is_in(ABSENT)
    assert found.filter(absent)["cost_3"].null_count() == int(absent.sum()) == len(ABSENT)
    assert found.filter(~absent)["cost_3"].null_count() == 0
    assert "doctor" not in found.filter(absent)["agent"].to_list()
    assert "doctor" not in found.filter(absent)["oracle_agent"].to_list()
    assert "doctor" in found.filter(~absent)["oracle_agent"].to_list()
    costs = found.select(f"cost_{j}" for j in range(4))
    assert found["deferral_cost"].to_list() == [
        row[agent] for row, agent in zip(costs.iter_rows(), found["agent_index"], strict=True)
    ]
    assert found["oracle_cost"].to_list() == costs.min_horizontal().to_list()


@pytest.mark.slow
def test_a_sql_cost_is_missing_where_its_agent_is(with_absences, tmp_path):
    config = TrainConfig(epochs=1, hidden=16, failures="mask")
    points = grid(with_absences, cost="greatest(cost_cla, cost_reg)")
    sweep(with_absences, points, [tmp_path / "run"], config)
    found = pl.read_parquet(tmp_path / "run" / ALLOCATIONS_FILE)
    assert found.filter(pl.col("cost_3").is_null())["sample_id"].sort().to_list() == ABSENT


@pytest.mark.slow
def test_samples_that_nobody_answers_are_left_out(workshop):
    (workshop.folder / "agent.py").write_text(AGENT)
    (workshop.folder / "absent").write_text("p0003 p0004")
    options = {"folder": str(workshop.folder)}
    two = [agent(name, "python", file="agent.py", options=options) for name in ("one", "two")]
    workshop.build(RECIPE.only().plus(*two), on_failure="record")
    cache = CostCache(workshop.folder / "cache")
    splits = ("train", "validation", "test")
    tables, streams = (read(cache, splits, failures="mask") for read in (load_tables, open_streams))
    kept = [sample for table in tables.values() for sample in table.ids]
    assert len(kept) == 118
    assert not {"p0003", "p0004"} & set(kept)
    for split in splits:
        assert [s for ids in streams[split].ids_in_order(7) for s in ids] == tables[split].ids
    assert sum(stream.left_out for stream in streams.values()) == 2
