"""Policies of the engine on a real run: made, saved, evaluated, routed round by round, and decided input by input."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.cache import store
from l2d.data.errors import CorruptPart, DataError, UsageError
from l2d.rejector.decisions import judged
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.saved import read_saved
from l2d.rejector.decisions.walk import walk
from l2d.rejector.runs.run import load_run


@pytest.fixture(scope="module")
def run(patient_runs):
    return patient_runs / "best"


@pytest.fixture(scope="module")
def policies(run, tmp_path_factory):
    """A folder of saved policies, one a kind."""
    folder = tmp_path_factory.mktemp("policies")
    for kind in ("router", "topk", "committee", "cascade", "adaptive"):
        l2d.policy(run, ask=kind, depth=2, save=folder / kind)
    return folder


def test_figures_are_those_of_the_decisions(run, policies):
    cost = pl.read_parquet(run / "allocations.parquet").filter(pl.col("split") == "test")
    for kind in ("router", "cascade", "adaptive"):
        table = pl.read_parquet(policies / kind / "decisions.parquet").filter(pl.col("split") == "test")
        result = json.loads((policies / kind / "policy.json").read_text())["result"]
        ways = {row["way"]: row for row in result["ways"]}
        own = ways[f"policy ({kind})"]
        assert own["loss"] == pytest.approx(table["loss"].mean())
        assert own["asked"] == pytest.approx(table["asked"].list.len().mean())
        assert ways["router"]["loss"] == pytest.approx(table["router_loss"].mean())
        assert (table["hindsight_loss"] <= table["loss"] + 1e-9).all()
        (judged,) = l2d.evaluate(policies / kind).to_json()
        assert judged["deferral_loss"] == pytest.approx(own["loss"])
        gap = judged["regret"]["router"]
        assert gap["value"] == pytest.approx((table["loss"] - table["router_loss"]).mean())
        assert gap["low"] <= gap["value"] <= gap["high"]
    router = pl.read_parquet(policies / "router" / "decisions.parquet").filter(pl.col("split") == "test")
    both = router.join(cost.select("sample_id", "agent", "deferral_cost"), on="sample_id")
    assert both["answered_by"].to_list() == both["agent"].to_list()  # no guard holds in this run
    np.testing.assert_allclose(both["loss"].to_numpy(), both["deferral_cost"].to_numpy(), atol=1e-6)


def test_the_figure_goes_from_one_agent_to_cascades_to_promises(run, policies, tmp_path):
    from l2d.rejector.report.figures.decisions import beyond_one_agent, exact_interval, frontier_of, ways_of

    l2d.policy(run, ask="cascade", risk="error<=0.4", confidence=0.5, save=tmp_path / "promised")
    saved = [read_saved(policies / "cascade"), read_saved(tmp_path / "promised")]
    ways, _ = ways_of(saved)
    named = {name: way for way in ways for name in way["name"].split(", ")}
    assert {"cascade", "promised", "router", "committee"} <= set(named)
    assert len({(way["x"], way["y"]) for way in ways}) == len(ways)  # each once
    assert all(way["y_low"] <= way["y"] <= way["y_high"] for way in ways)
    assert named["cascade"]["y_low"] < named["cascade"]["y_high"]
    line = frontier_of(sorted(ways, key=lambda way: (way["x"], way["y"])))
    assert [point["y"] for point in line] == sorted((point["y"] for point in line), reverse=True)
    (figure,) = beyond_one_agent(saved)
    assert [part.title for part in figure.panels] == [
        "Deferral loss for what is asked",
        "Risk for the share that is answered",
    ]
    assert exact_interval(0, 59)[1] == pytest.approx(1 - 0.025 ** (1 / 59))


def test_online_and_in_rounds_it_decides_as_on_the_table(run, policies, patient_runs, tmp_path):
    from l2d.rejector.decisions.rule import ABSTAIN

    read = read_worlds(load_run(run))
    world = read.worlds["test"]
    patients = pl.read_parquet(patient_runs / "patients.parquet")
    mine = patients.filter(pl.col("id").is_in(list(world.ids)))
    for kind in ("cascade", "adaptive", "committee", "topk"):
        policy = l2d.load_policy(policies / kind)
        assert policy.kind == kind
        walked = walk(policy.rule, world)
        said = {name: position for position, name in enumerate(world.ids)}
        answers = world.known.answers
        for row in mine.head(25).iter_rows(named=True):
            place = said[row["id"]]
            step = policy.start(row)
            path = []
            while step.ask is not None:
                agent = policy.agents.index(step.ask)
                path.append(agent)
                chances = None if answers.chances is None else answers.chances[place, agent].tolist()
                value = {
                    "cla": chances or int(answers.classes[place, agent]),
                    "reg": float(answers.numbers[place, agent]),
                }
                sure = None if answers.sure is None or chances else float(answers.sure[place, agent])
                step = policy.next(step, value, sure=None if sure is None or np.isnan(sure) else sure)
            assert path == [agent for agent in walked.path[place].tolist() if agent >= 0]
            assert walked.answer[place] != ABSTAIN
            assert step.answered_by == policy.rule.name_of(int(walked.answer[place]))
            assert step.expected_cost == pytest.approx(walked.expected[place])
        with pytest.raises(UsageError, match="decision is made"):
            policy.next(step, 1)


def test_routed_in_rounds(run, policies, tmp_path, l2d_done, patient_runs):
    table = pl.read_parquet(patient_runs / "patients.parquet").head(40)
    table.write_parquet(tmp_path / "new.parquet")
    policy = l2d.load_policy(policies / "adaptive")
    answers: list[dict] = []
    for number in range(1, 4):
        out = tmp_path / f"round_{number}.csv"
        given = ["--answers", tmp_path / "answers.csv"] if answers else []
        l2d_done(
            "route",
            run,
            tmp_path / "new.parquet",
            "--policy",
            policies / "adaptive",
            "--id",
            "id",
            "--out",
            out,
            *given,
        )
        found = pl.read_csv(out)
        assert set(found["action"]) <= {"ask", "answer"}
        waiting = found.filter(pl.col("action") == "ask")
        if not len(waiting):
            break
        for row in waiting.iter_rows(named=True):
            said = {"sample_id": row["sample_id"], "agent": row["agent"], "answer": "yes", "number": 3.5}
            answers.append(said)
        pl.DataFrame(answers).write_csv(tmp_path / "answers.csv")
    assert set(found["action"]) == {"answer"}
    last = found.row(7, named=True)
    step = policy.start(table.row(7, named=True))
    while step.ask is not None:
        step = policy.next(step, {"cla": "yes", "reg": 3.5})
    assert (last["agent"], last["asked"]) == (step.answered_by, " > ".join(step.asked))
    assert last["expected_cost"] == pytest.approx(step.expected_cost)
    first = pl.read_csv(tmp_path / "round_1.csv")
    for row, table_row in zip(first.iter_rows(named=True), table.iter_rows(named=True), strict=True):
        step = policy.start(table_row)
        assert (row["agent"], row["action"]) == (step.ask, "ask")


def test_an_agent_without_an_answer_is_passed_by(policies, patient_runs):
    policy = l2d.load_policy(policies / "adaptive")
    row = pl.read_parquet(patient_runs / "patients.parquet").row(3, named=True)
    step = policy.start(row)
    other = policy.next(step, None)
    assert other.ask != step.ask
    assert policy.start(row, without=[step.ask]).ask == other.ask
    with pytest.raises(UsageError, match="no agent 'nobody'"):
        policy.start(row, without=["nobody"])
    with pytest.raises(DataError, match="has no"):
        policy.start({"x1": 1.0})


def test_deciding_loads_no_torch(policies):
    code = (
        "import sys, l2d; policy = l2d.load_policy(sys.argv[1]); "
        "policy.start([0.0] * policy.width); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, policies / "cascade"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command(run, tmp_path, l2d, l2d_done):
    save = tmp_path / "kept"
    out = json.loads(
        l2d_done("policy", run, "--ask", "adaptive", "--abstain", "0.2", "--queue", tmp_path / "queue.csv", "--out",
                 tmp_path / "d.parquet", "--save", save, "--format", "json")
    )  # fmt: skip
    decisions = pl.read_parquet(tmp_path / "d.parquet")
    queue = pl.read_csv(tmp_path / "queue.csv")
    nobody = decisions.filter(pl.col("answered_by").is_null())
    assert set(queue["sample_id"]) == set(nobody["sample_id"])
    assert queue["rank"].to_list() == list(range(1, len(queue) + 1))
    assert out["allocation"].get("no answer", 0) == pytest.approx(len(nobody) / len(decisions))
    assert "policy (adaptive)" in l2d_done("policy", run, "--ask", "adaptive")
    assert "kept" in l2d_done("evaluate", save)
    for wrong, words in (
        (["--ask", "cascade", "--coverage", "0.5"], "--coverage with --ask"),
        (["--confidence", "0.9"], "how a risk is promised"),
        (["--risk", "mistakes<=0.1"], "risks are"),
        (["--risk", "error<=2"], "between 0 and 1"),
        (["--cap", "prize=3"], "price"),
        (["--ask", "cascade", "--save", str(save)], "there already"),
    ):
        code, _, err = l2d("policy", run, *wrong)
        assert code == 2, (wrong, err)
        assert words in err


def test_a_policy_is_bound_to_its_run_and_its_files(policies, patient_runs, tmp_path, run):
    import shutil

    with pytest.raises(UsageError, match="of run"):
        l2d.load_policy(policies / "cascade", run=patient_runs / "mlp")
    with pytest.raises(UsageError, match="no policy here"):
        read_saved(tmp_path)
    shutil.copytree(policies / "cascade", tmp_path / "copy")
    shutil.copy(policies / "router" / "decisions.parquet", tmp_path / "copy" / "decisions.parquet")
    with pytest.raises(CorruptPart, match="not the file"):
        read_saved(tmp_path / "copy")
    facts = store.read_json(policies / "cascade" / "policy.json")
    for change in ({"format": "l2d policy 9"}, {"rule": {}}, {"run": {}}):
        store.commit_json(tmp_path / "copy" / "policy.json", facts | change, replace=True)
        with pytest.raises(DataError, match="not a policy"):
            read_saved(tmp_path / "copy")


def test_runs_of_other_methods(patient_runs, tmp_path):
    report = l2d.policy(patient_runs / "linear", ask="cascade", save=tmp_path / "of_linear")
    assert report.to_json()["fitted_on"] == ["validation"]
    policy = l2d.load_policy(tmp_path / "of_linear")
    assert policy.start(np.zeros(policy.width)).ask in policy.agents


def test_a_policy_that_asks_as_the_router_does_and_losses_of_some_inputs_are_said():
    made = SimpleNamespace(
        chosen="topk", wanted=SimpleNamespace(budget=None), promise=None,
        policy=SimpleNamespace(order=(), members=(), capacities=()),
    )  # fmt: skip
    ways = [{"way": way, "loss": 0.3, "abstained": none} for way, none in (("policy (topk)", 0), ("committee", 0.1))]
    gap = SimpleNamespace(value=0.0, low=0.0, high=0.0)
    asked = SimpleNamespace(asked=np.array([1, 1, 1]))
    found = judged.words(made, {"split": "test", "ways": ways}, {"policy (topk)": gap}, asked)
    assert found[0] == "topk asks one agent for every input, the router's: to ask more does not pay on validation"
    assert found[1].startswith("committee: the loss is that of the inputs that got an answer")
    asked.asked[0] = 2
    assert (
        "is not shown to beat"
        in judged.words(made, {"split": "test", "ways": ways[:1]}, {"policy (topk)": gap}, asked)[0]
    )
