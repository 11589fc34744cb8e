"""The decision log: every record once, whatever is killed, joined or damaged, and by however many writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

import l2d
from l2d.data.errors import CorruptPart, UsageError
from l2d.rejector.serving import log as log_module
from l2d.rejector.serving.log import DecisionLog, compact
from l2d.rejector.serving.reading import parts_of

ROW = {"x1": 1.0, "x2": None, "ward": "a"}


@pytest.fixture
def run(patient_runs):
    return patient_runs / "linear"


def test_what_is_decided_is_read_back(run, tmp_path):
    rows = [{**ROW, "x1": k / 10} for k in range(20)]
    with DecisionLog(tmp_path / "log") as log:
        router = l2d.load_router(run, log=log, explore=0.5, seed=2)
        decisions = [router.route(row, id=f"in {k}") for k, row in enumerate(rows)]
        router.feedback(decisions[3], {"cla": 1.0}, paid=0.02, seconds=1.5)
        router.feedback(decisions[3].id, 0.25)
        router.feedback(decisions[4], None, paid=0.5)
        router.close()
        live = l2d.read_log(tmp_path / "log").decisions
    found = l2d.read_log(tmp_path / "log").decisions
    assert found.equals(live)
    assert found["id"].to_list() == [decision.id for decision in decisions]
    assert [router.agents[agent] for agent in found["agent"]] == [decision.agent for decision in decisions]
    assert [router.agents[agent] for agent in found["greedy"]] == [decision.greedy for decision in decisions]
    assert found["propensity"].to_list() == [decision.propensity for decision in decisions]
    assert found["scores"].to_list() == [decision.scores.tolist() for decision in decisions]
    assert found["input"].to_list() == [f"in {k}" for k in range(20)]
    assert found["row"].null_count() == 20
    assert found["input_digest"].n_unique() == 20
    outcomes = {row["id"]: (row["cost"], row["paid"], row["took"]) for row in found.drop_nulls("paid").to_dicts()}
    assert found.filter(pl.col("id") == decisions[3].id)["cost"].to_list() == [0.25]  # the later one
    assert outcomes == {decisions[4].id: (None, 0.5, None)}
    (facts,) = l2d.read_log(tmp_path / "log").runs.values()
    assert facts["agents"] == router.agents
    (sums,) = l2d.read_log(tmp_path / "log").inputs.to_dicts()
    assert sums["rows"] == 20
    assert sums["sums"][0] == pytest.approx(sum(row["x1"] for row in rows))
    assert sums["squares"][0] == pytest.approx(sum(row["x1"] ** 2 for row in rows))


def test_outcomes_of_other_decisions_are_refused(run, tmp_path):
    with DecisionLog(tmp_path / "log") as first, DecisionLog(tmp_path / "log") as second:
        router, other = l2d.load_router(run, log=first), l2d.load_router(run, log=second)
        decision, theirs = router.route(ROW), other.route(ROW)
        router.feedback(theirs, 1.0)  # another process's
        for unknown in (
            "nonsense",
            "",
            f"{first.writer}-1",
            f"{first.writer}-01",
            f"{second.writer}-7",
            "0" * 12 + "-0",
        ):
            with pytest.raises(UsageError, match="there is no decision"):
                router.feedback(unknown, 1.0)
        for cost, said in (
            (-1.0, "cost"), (float("nan"), "cost"), ({"clas": 1.0}, "cla"), ({}, "nothing is said of cla"),
            ({"cla": True}, "cost of cla"), ({"cla": None}, "missing"),
        ):  # fmt: skip
            with pytest.raises(UsageError, match=said):
                router.feedback(decision, cost)
    with DecisionLog(tmp_path / "log") as third:  # it knows those of before it
        assert third.knows(decision.id)
        assert not third.knows(f"{first.writer}-1")
    with pytest.raises(UsageError, match="closed"):
        router.route(ROW)


def test_inputs_are_kept_where_that_is_asked_for(run, tmp_path):
    router = l2d.load_router(run, log=tmp_path / "log", keep_inputs=True)
    router.route(ROW)
    router.log.close()
    assert json.loads(l2d.read_log(tmp_path / "log").decisions["row"][0]) == ROW


def test_threads_and_full_journals_lose_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "ROLL", 50)
    router = l2d.load_router(run, log=tmp_path / "log")
    with ThreadPoolExecutor(8) as pool:
        ids = [decision.id for decision in pool.map(router.route, [ROW] * 400)]
    router.log.close()
    assert len(set(ids)) == 400
    assert len(parts_of(tmp_path / "log")) == 8
    before = l2d.read_log(tmp_path / "log").decisions
    assert set(before["id"]) == set(ids)
    assert compact(tmp_path / "log", least=2) == 8
    assert l2d.read_log(tmp_path / "log").decisions.sort("id").equals(before.sort("id"))
    assert len(list((tmp_path / "log" / "parts").iterdir())) == 1


def test_parts_that_a_killed_join_left_behind_do_not_count(run, tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "ROLL", 10)
    router = l2d.load_router(run, log=tmp_path / "log")
    for _ in range(30):
        router.route(ROW)
    router.log.close()
    monkeypatch.setattr(log_module.store, "remove", lambda path: None)
    compact(tmp_path / "log", least=2)
    assert len(list((tmp_path / "log" / "parts").iterdir())) == 4
    assert l2d.read_log(tmp_path / "log").records.filter(pl.col("kind") == "decision").height == 30


WRITER = """
import sys, l2d
router = l2d.load_router(sys.argv[1], log=sys.argv[2])
while True:
    print(router.route({"x1": 1.0, "x2": None, "ward": "a"}).id, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_has_answered(run, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, run, tmp_path / "log"], stdout=subprocess.PIPE, text=True)
    answered = [process.stdout.readline().strip() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    answered += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    assert set(answered) <= set(l2d.read_log(tmp_path / "log").decisions["id"])
    (left,) = (tmp_path / "log" / "journals").iterdir()
    with DecisionLog(tmp_path / "log"):
        assert not left.exists()
    found = l2d.read_log(tmp_path / "log").decisions
    assert set(answered) <= set(found["id"])
    assert found["id"].n_unique() == len(found)


def test_a_line_that_was_cut_short_is_no_record_and_damage_is_named(run, tmp_path):
    router = l2d.load_router(run, log=tmp_path / "log")
    kept = router.route(ROW).id
    with open(router.log._journal.path, "ab") as file:
        file.write(b'{"kind":"decision","id":"half')
    assert l2d.read_log(tmp_path / "log").decisions["id"].to_list() == [kept]
    router.log.close()
    (part,) = parts_of(tmp_path / "log")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(CorruptPart, match=part.name):
        _ = l2d.read_log(tmp_path / "log").decisions
    with pytest.raises(UsageError, match="no decision log"):
        l2d.read_log(tmp_path)


def test_a_shadow_decides_silently(patient_runs, tmp_path):
    rows = pl.read_parquet(patient_runs / "patients.parquet").to_dicts()[:30]
    router = l2d.load_router(patient_runs / "linear", log=tmp_path / "log", shadow=patient_runs / "best")
    chosen = [router.route(row).agent for row in rows]
    router.log.close()
    found = l2d.read_log(tmp_path / "log")
    alone = [l2d.load_router(patient_runs / "best").route(row).agent for row in rows]
    assert [router.agents[agent] for agent in found.decisions["agent"]] == chosen
    assert [router.agents[agent] for agent in found.decisions["shadow"]] == alone
    assert {facts["run_id"] for facts in found.runs.values()} == {
        l2d.load_run(patient_runs / name).point.run_id for name in ("linear", "best")
    }
