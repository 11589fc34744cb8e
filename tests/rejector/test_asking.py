"""Policies that may ask several agents at work: the decisions of the policy on the table, in Python and over HTTP."""

from __future__ import annotations

import json
import threading

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.errors import DataError, UsageError
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.walk import walk
from l2d.rejector.runs.run import load_run
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.open_decisions import OpenDecisions
from l2d.rejector.serving.outcomes import UnknownDecision

ROW = {"x1": 1.0, "x2": None, "ward": "a"}
KINDS = ("cascade", "adaptive", "committee")


@pytest.fixture(scope="module")
def policies(patient_runs, tmp_path_factory):
    """A folder of saved policies, one a kind."""
    folder = tmp_path_factory.mktemp("asking")
    for kind in KINDS:
        l2d.policy(patient_runs / "best", ask=kind, depth=2, save=folder / kind)
    return folder


@pytest.fixture(scope="module")
def table(patient_runs):
    """Test samples, and what each agent answers: rows, world, and a function of row number and agent."""
    world = read_worlds(load_run(patient_runs / "best")).worlds["test"]
    patients = pl.read_parquet(patient_runs / "patients.parquet")
    rows = {row["id"]: row for row in patients.iter_rows(named=True)}
    answers = world.known.answers

    def says(place: int, agent: int) -> dict:
        chances = None if answers.chances is None else answers.chances[place, agent].tolist()
        said = {"cla": chances or int(answers.classes[place, agent]), "reg": float(answers.numbers[place, agent])}
        sure = None if answers.sure is None or chances else float(answers.sure[place, agent])
        return {"answer": said, "sure": None if sure is None or np.isnan(sure) else sure}

    return [rows[name] for name in world.ids], world, says


@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_those_of_the_policy_on_its_test_samples(policies, table, kind, tmp_path):
    rows, world, says = table
    router = l2d.load_router(policies / kind, log=tmp_path / "log")
    walked, decided = walk(router.work.rule, world), pl.read_parquet(policies / kind / "decisions.parquet")
    judged = {row["sample_id"]: row for row in decided.filter(pl.col("split") == "test").iter_rows(named=True)}
    for place, row in enumerate(rows[:40]):
        decision = first = router.route(row)
        path = []
        while not decision.done:
            assert decision.ranked[0] == decision.agent
            assert decision.agent not in decision.asked
            path.append(decision.agent)
            decision = router.next(decision, **says(place, router.agents.index(decision.agent)))
            assert decision.id == first.id
        assert path == [router.agents[agent] for agent in walked.path[place] if agent >= 0]
        assert list(decision.asked) == path == list(judged[world.ids[place]]["asked"])
        assert decision.answered_by == judged[world.ids[place]]["answered_by"]
        assert decision.expected_cost == pytest.approx(walked.expected[place])
        assert decision.agent is None
        assert decision.ranked == ()
    router.close()
    router.log.close()
    log = l2d.read_log(tmp_path / "log")
    assert log.decisions.height == 40
    steps = log.steps.filter(pl.col("id") == decision.id)
    assert steps["replied"].to_list() == [router.agents.index(name) for name in path]
    assert steps["asked"].to_list()[-1] == steps["replied"].to_list()
    assert (steps["answered_by"].to_list()[-1], steps["agent"].to_list()[-1]) == (decision.answered_by, None)
    assert steps["answer"].is_null().all()  # answers are no more written down than inputs are
    assert log.decisions["agent"].to_list()[-1] == router.agents.index(path[0])


def test_a_cascade_whose_first_agent_is_down_asks_the_next_and_says_so(policies, table):
    rows, _, says = table
    router = l2d.load_router(policies / "cascade")
    first, second = (router.agents[agent] for agent in router.work.rule.order)
    up = [name for name in router.agents if name != first]
    for decision in (router.route(rows[0], available=up), router.next(router.route(rows[0]), None)):
        assert (decision.agent, decision.asked) == (second, ())
        assert f"{second} is asked first" in decision.reason
        assert decision.reason.endswith(f"{first} is not available")
        assert decision.expected_cost == pytest.approx(decision.costs[second])
        answered = router.next(decision, **says(0, router.agents.index(second)))
        assert (answered.done, answered.answered_by, answered.asked) == (True, second, (second,))
        assert f"{first} is not available" in answered.reason
    assert "not available" not in router.route(rows[0]).reason
    others = [name for name in up if name != second]
    nothing = router.route(rows[0], available=others)
    assert (nothing.done, nothing.answer) == (True, None)
    assert nothing.reason.endswith(f"{first} and {second} are not available")


def test_what_a_policy_needs_is_said(policies, patient_runs, tmp_path):
    router = l2d.load_router(patient_runs / "best", policy=l2d.load_policy(policies / "adaptive"))
    decision = router.route(ROW)
    assert decision.id
    assert decision.agent in decision.reason
    with pytest.raises(DataError, match="class"):
        router.next(decision, "nonsense")
    down = router.next(decision, None)  # the agent has no answer: another one is asked
    assert down.agent not in (decision.agent, None)
    assert down.asked == ()
    other = router.route(ROW, available=[name for name in router.agents if name != decision.agent])
    assert (other.agent, other.ranked) == (down.agent, down.ranked)
    with pytest.raises(UsageError, match="caps of its own"):
        router.route(ROW, cap=1.0)
    plain = l2d.load_router(patient_runs / "best")
    with pytest.raises(UsageError, match="a run asks one agent"):
        plain.next(plain.route(ROW), 1)
    with pytest.raises(UsageError, match="not one of a policy"):
        router.next(plain.route(ROW), 1)
    for wrong in ({"explore": 0.1}, {"beta": {"expert": 1.0}}):
        with pytest.raises(UsageError, match="policy"):
            l2d.load_router(policies / "cascade", **wrong)
    with pytest.raises(UsageError, match="earlier training"):
        l2d.load_router(patient_runs / "linear", policy=policies / "cascade")
    with l2d.DecisionLog(tmp_path / "log") as log:
        kept = l2d.load_router(policies / "cascade", log=log)
        kept.feedback(kept.route(ROW), 0.5)
    with pytest.raises(UsageError, match="may ask several"):
        l2d.replay(tmp_path / "log", ["always:expert"])


def test_open_decisions_are_kept_up_to_a_limit_and_answers_count_once(policies):
    router, kept = l2d.load_router(policies / "adaptive"), OpenDecisions(most=3)
    said = {"cla": "yes", "reg": 3.5}
    decisions = [router.route(ROW) for _ in range(5)]
    for decision in decisions:
        kept.add(router, decision)
    assert len(kept) == 3
    with pytest.raises(UnknownDecision, match="no decision"):
        kept.next(decisions[0].id, said, None)
    last = decisions[-1]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(kept.next(last.id, said, last.agent)), name=f"t{k}")
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.asked for one in found} == {(last.agent,)}  # sent four times, it counts once


def test_over_http_a_decision_goes_on_across_a_reload(policies, tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    from l2d.rejector.serving.app import make_app
    from l2d.rejector.serving.service import Service

    router, said = l2d.load_router(policies / "adaptive"), {"cla": "yes", "reg": 3.5}
    log = DecisionLog(tmp_path / "log", keep_inputs=True)
    service = Service(lambda: l2d.load_router(policies / "adaptive", log=log), log=log)
    with TestClient(make_app(service)) as client:
        expected = router.route(ROW)
        answer = client.post("/route", json={"input": ROW}).json()
        identity = answer["id"]
        assert client.post("/reload").status_code == 200
        while not expected.done:
            assert answer["agent"] == expected.agent
            body = {"id": identity, "answer": said, "agent": expected.agent, "paid": 0.5}
            answer = client.post("/next", json=body).json()
            assert client.post("/next", json=body).json() == answer  # the same once more
            expected = router.next(expected, said)
        assert answer == {**json.loads(json.dumps(expected.to_json())), "id": identity}
        refused = [
            ({"id": identity, "answer": said}, 409, "is made"),
            ({"id": identity, "answer": said, "agent": "expert2"}, 409, "expert2"),
            ({"id": "nonsense", "answer": said}, 404, "no decision 'nonsense'"),
            ({"id": 3, "answer": said}, 422, "`id`"),
            ({"id": identity}, 422, "there is no 'answer'"),
            ({"id": identity, "answer": said, "sure": 2}, 400, "sure"),
        ]
        fresh = client.post("/route", json={"input": ROW}).json()
        for wrong in ("nonsense", [0.5], {"cla": "yes", "reg": "much"}, {}):
            refused.append(({"id": fresh["id"], "answer": wrong}, 422, ""))
        for body, status, what in refused:
            found = client.post("/next", json=body)
            assert found.status_code == status, (body, found.json())
            assert what in found.json()["error"]["what"]
            assert found.json()["error"]["next"]
        assert client.post("/next", json={"id": fresh["id"], "answer": said}).status_code == 200
        assert "l2d_answers_total" in client.get("/metrics").text
    steps = l2d.read_log(tmp_path / "log").steps.filter(pl.col("id") == identity)
    assert steps["paid"].to_list() == [0.5] * steps.height
    assert json.loads(steps["answer"][0]) == said
