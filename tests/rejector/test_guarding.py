"""The guard at work: it falls back where choosing costs more, rarely else, says so, and does not come back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.errors import UsageError
from l2d.rejector.serving.guarding import BLOCK, Costs, LiveGuard

ROW = {"x1": 1.0, "x2": None, "ward": "a"}


def fed(difference: float, explore: float, alpha: float, outcomes: int, seed: int) -> LiveGuard:
    """A guard after outcomes of a run whose choice costs ``difference`` more than the constant agent."""
    generator = np.random.default_rng(seed)
    guard = LiveGuard(
        ["chosen", "constant"], Costs(0.0, 1.0, np.array([0.4, 0.4])), query_costs=np.zeros(2), paid=None,
        explore=explore, alpha=alpha, constant=1,
    )  # fmt: skip
    agents = np.where(generator.random(outcomes) < explore, generator.integers(0, 2, outcomes), 0)
    wrong = generator.random(outcomes) < np.where(agents == 0, 0.4 + difference, 0.4)
    for number, (agent, cost) in enumerate(zip(agents.tolist(), wrong.tolist(), strict=True)):
        guard.expect(str(number), agent, 0, explore / 2 if agent else 1 - explore / 2, [True, True], None)
        guard.see(str(number), float(cost))
    return guard


def test_it_falls_back_where_choosing_costs_more_and_rarely_else():
    assert all(fed(0.3, 0.5, 0.05, 1200, seed).fallen for seed in range(5))
    assert sum(fed(0.0, 0.5, 0.05, 600, seed).fallen is not None for seed in range(40)) <= 2 + 3
    good = fed(-0.2, 0.5, 0.05, 2 * BLOCK + 10, 0)
    assert (good.fallen, good.outcomes) == (None, 2 * BLOCK + 10)
    assert good.mean == pytest.approx(-0.2, abs=0.1)


def test_differences_are_unbiased_whatever_is_predicted():
    """Against the definition: over both agents and with their chances, the mean is the true difference."""
    explore, costs, told = 0.3, (0.9, 0.2), []
    for predicted in ([0.1, 0.8], [0.5, 0.5], None):
        total = 0.0
        for agent, chance in ((0, 1 - explore / 2), (1, explore / 2)):
            guard = LiveGuard(
                ["a", "b"], Costs(0.0, 1.0, np.array([0.3, 0.6])), query_costs=np.array([0.05, 0.1]), paid=None,
                explore=explore, alpha=0.01, constant=1, told=told.append,
            )  # fmt: skip
            guard.expect("one", agent, 0, chance, [True, True], predicted)
            guard.see("one", costs[agent] - (0.05, 0.1)[agent])
            guard.see("one", 0.0)  # told twice, it counts once
            assert guard.outcomes == 1
            total += chance * guard.mean
        assert total == pytest.approx(costs[0] - costs[1])


@pytest.fixture(scope="module")
def fell(patient_runs, tmp_path_factory):
    """A log of the linear run, whose guard has fallen back: every agent but the constant one is always wrong."""
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(patient_runs / "linear", folder / "run")
    said: list[str] = []
    router = l2d.load_router(folder / "run", log=folder / "log", explore=0.9, seed=0, guard=0.05)
    router.guard.say = said.append
    rows = pl.read_parquet(patient_runs / "patients.parquet").select("x1", "x2", "ward").to_dicts()
    for number in range(4000):
        decision = router.route(rows[number % len(rows)])
        router.feedback(decision, {"cla": 0.0 if decision.agent == router.guard.agent else 1.0})
        if router.guard.fallen is not None:
            break
    return folder, router, said


def test_it_says_so_and_stays_so(fell):
    folder, router, said = fell
    constant = router.guard.agent
    assert router.guard.fallen is not None
    assert said == [router.guard.words]
    router.explore = 0.0
    for x in (-2.0, 0.0, 2.0):
        decision = router.route({**ROW, "x1": x})
        assert decision.agent == decision.ranked[0] == constant
        assert sorted(decision.ranked) == sorted(router.agents)
        assert decision.reason == router.guard.words
    others = [name for name in router.agents if name != constant]
    assert router.route(ROW, available=others).agent in others
    (fall,) = l2d.read_log(folder / "log").falls.to_dicts()
    assert (fall["agent"], fall["outcomes"]) == (router.agents.index(constant), router.guard.outcomes)
    again = l2d.load_router(
        folder / "run", log=router.log, explore=0.1, guard=0.05
    )  # as a server does that begins anew
    assert again.guard.fallen == fall["time"]
    assert again.guard.agent == constant
    assert not said[1:]


def test_a_server_says_it_in_health_and_metrics(fell):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    from l2d.rejector.serving.app import make_app
    from l2d.rejector.serving.service import Service

    folder, router, _ = fell
    service = Service(lambda: l2d.load_router(folder / "run", log=router.log, explore=0.1, guard=0.05))
    with TestClient(make_app(service)) as client:
        state = client.get("/health").json()["guard"]
        assert (state["fallen"], state["agent"]) == (True, router.guard.agent)
        assert "l2d_guard_fallen 1.0" in client.get("/metrics").text
        assert client.post("/reload").status_code == 200
        assert json.loads(client.get("/health").content)["guard"]["fallen"]


def test_what_a_guard_needs_is_said(patient_runs, tmp_path):
    run = patient_runs / "linear"
    for options, said in (
        ({"explore": 0.1}, "logged decisions"),
        ({"log": tmp_path / "log"}, "have to be drawn"),
        ({"log": tmp_path / "other", "explore": 0.1, "guard": 2.0}, "chance of a false alarm"),
    ):
        with pytest.raises(UsageError) as told:
            l2d.load_router(run, **{"guard": 0.01, **options})
        assert said in f"{told.value.what} {told.value.hint}"
