"""Corrections of predicted costs: fitted as they should be, judged by later outcomes, applied in the same bits."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.errors import DataError, UsageError
from l2d.rejector.calibration import read_calibration
from l2d.rejector.recalibration.evidence import PRIOR, deciding, fitted, judged
from l2d.rejector.recalibration.outcomes import Outcomes, outcomes_of
from l2d.rejector.replay.estimators import Logged, estimates
from l2d.rejector.served import open_served


def outcomes(n: int, seed: int, *, explore: float = 0.3, shift: float = 0.0) -> tuple[Outcomes, np.ndarray]:
    """Decisions between two agents, the second of which costs ``shift`` more than predicted; and the true costs."""
    generator = np.random.default_rng(seed)
    predicted = 0.2 + 0.4 * generator.random((n, 2)).astype(np.float32)
    rows, greedy = np.arange(n), predicted.argmin(axis=1)
    chances = np.full((n, 2), explore / 2)
    chances[rows, greedy] += 1 - explore
    agent = (generator.random(n) > chances[:, 0]).astype(int)
    true = predicted + np.array([0.0, shift])
    cost = (generator.random(n) < true[rows, agent]).astype(float)
    ids, there = rows.astype(str), np.ones((n, 2), bool)
    return Outcomes(ids, rows, agent, greedy, there, chances, cost, -predicted, predicted.astype(float)), true


def test_a_correction_is_a_line_shrunk_towards_none():
    """Against normal equations of the line with a penalty, solved by numpy."""
    found, _ = outcomes(400, 0, shift=0.3)
    own = found.of(1)
    weights = own.weights / own.weights.sum() * own.weights.sum() ** 2 / (own.weights**2).sum()
    predicted = -own.scores[:, 1].astype(float)
    centre = np.average(predicted, weights=weights)
    design = np.stack([np.ones(len(own)), predicted - centre], axis=1)
    penalty = PRIOR * np.diag([1.0, np.average((predicted - centre) ** 2, weights=weights)])
    shift, slope = np.linalg.solve(design.T * weights @ design + penalty, design.T * weights @ (own.cost - predicted))
    line = fitted("b", own, 1)
    assert line.slope == pytest.approx(1 + slope, rel=1e-5)
    assert line.intercept + line.slope * centre == pytest.approx(centre + shift, rel=1e-5)
    assert 0.15 < shift < 0.3


def test_what_changes_nothing_is_not_said_to_be_better():
    """100 logs in which predictions are right: the correction is said to help about as often as chance allows."""
    said = []
    for seed in range(100):
        earlier, _ = outcomes(300, seed)
        later, _ = outcomes(150, 1000 + seed)
        corrected = np.stack([-later.scores[:, place].astype(float) for place in (0, 1)], axis=1)
        for place, name in enumerate("ab"):
            line = fitted(name, earlier.of(place), place)
            corrected[:, place] = line.intercept + line.slope * corrected[:, place]
        said.append(judged(later.take(later.known), corrected).says(0.95))
    assert said.count("better") / 100 < 0.025 + 3 * (0.025 * 0.975 / 100) ** 0.5


def test_what_decisions_would_have_cost_holds_the_truth():
    """Means and coverage against true costs, and against the doubly robust estimate of replay."""
    held, gaps, others = [], [], []
    for seed in range(60):
        later, true = outcomes(600, seed, shift=0.2)
        corrected = later.in_force + np.array([0.0, 0.15])
        found = deciding(later, corrected)
        rows = np.arange(600)
        truth = float((true[rows, corrected.argmin(axis=1)] - true[rows, later.greedy]).mean())
        low, high = found.difference.interval(0.95)
        held.append(low <= truth <= high)
        gaps.append(found.difference.value - truth)
        logged = Logged(later.agent, later.chances, later.cost, corrected)
        values = [
            {one.name: one.value for one in estimates(logged, np.eye(2)[choice])}["doubly robust"]
            for choice in (corrected.argmin(axis=1), later.greedy)
        ]
        others.append(found.difference.value - (values[0] - values[1]))
    assert np.mean(held) >= 0.9
    for each in (gaps, others):
        assert abs(np.mean(each)) < 4 * np.std(each) / 60**0.5


def test_new_choices_that_were_not_tried_are_not_told():
    later, _ = outcomes(200, 0, explore=0.0)
    found = deciding(later, later.in_force + np.array([0.0, 0.2]))
    assert found.difference is None
    assert found.says(0.95) == "not known"
    assert "--explore" in found.unknown
    assert deciding(later, later.in_force).says(0.95) == "the same"


@pytest.fixture(scope="module")
def logged(patient_runs, tmp_path_factory):
    """A log in which the agent that is asked most has become much worse, and the calibration that follows from it."""
    run, folder = patient_runs / "best", tmp_path_factory.mktemp("recalibrated")
    costs = {row["sample_id"]: row for row in pl.read_parquet(run / "allocations.parquet").iter_rows(named=True)}
    rows = [row for row in pl.read_parquet(patient_runs / "patients.parquet").to_dicts() if row["id"] in costs]
    worse = l2d.route(run, patient_runs / "patients.parquet", folder / "routed.csv")
    name = worse.agents[int(np.argmax(worse.counts))]

    def serve(log: str, times: int, **options) -> None:
        router = l2d.load_router(run, log=folder / log, explore=0.4, seed=3, **options)
        for _ in range(times):
            for row in rows:
                decision = router.route(row)
                place = router.agents.index(decision.agent)
                cost = costs[row["id"]][f"cost_{place}"] - router.query_costs[place]
                router.feedback(decision, max(0.0, cost + 0.6 * (decision.agent == name)))
        router.close()
        router.log.close()

    serve("log", 4)
    found = l2d.recalibrate(folder / "log", run, folder / "calibration.toml", least=30)
    return folder, run, name, found, serve


def test_a_changed_agent_is_corrected_with_evidence(logged):
    folder, run, name, found, _ = logged
    assert found.improves
    corrections = {one.agent: one for one in found.calibration.corrections}
    (mine,) = [one for one in found.agents if one.name == name]
    assert mine.judged.says(0.95) == "better"
    assert mine.judged.corrected - mine.judged.predicted == pytest.approx(0.6, abs=0.15)
    assert found.deciding.says(0.95) == "cheaper"
    assert read_calibration(folder / "calibration.toml") == found.calibration
    assert corrections[name].residual[0] > 2
    rows = found.rows()
    assert [row["agent"] for row in rows[:-1]] == open_served(run).agents
    assert "wrote" not in found.table()
    assert found.to_json()["deciding"]["cost"] == "cheaper"


def test_it_is_applied_in_the_same_bits_everywhere(logged, patient_runs, tmp_path):
    folder, run, name, found, _ = logged
    table, calibration = patient_runs / "patients.parquet", folder / "calibration.toml"
    plain = l2d.route(run, table, tmp_path / "plain.parquet")
    report = l2d.route(run, table, tmp_path / "corrected.parquet", calibration=calibration)
    before, after = (pl.read_parquet(tmp_path / f"{one}.parquet") for one in ("plain", "corrected"))
    lines = {one.agent: one for one in found.calibration.corrections}
    for place, agent in enumerate(plain.agents):
        score = before[f"score_{place}"].to_numpy().astype(float)
        line = lines.get(agent)
        expected = -(line.intercept + line.slope * -score) if line else score
        np.testing.assert_array_equal(after[f"score_{place}"].to_numpy(), expected.astype(np.float32))
    router = l2d.load_router(run, calibration=calibration)
    decisions = router.route_batch(pl.read_parquet(table).to_dicts())
    assert [one.agent for one in decisions] == after["agent"].to_list()
    np.testing.assert_array_equal(
        np.stack([one.scores for one in decisions]), after.select(pl.col("^score_.*$")).to_numpy()
    )
    asked = dict(zip(plain.agents, zip(plain.counts, report.counts, strict=True), strict=True))
    assert asked[name][1] < asked[name][0]
    assert report.calibration == found.calibration.advice
    assert router.calibration["valid_until"] == found.calibration.valid_until.isoformat()


def test_decisions_by_it_are_told_apart_and_judged_again(logged, l2d):
    """The same log has both; predictions are those of the run, and watch compares with the outcomes that judged it."""
    import l2d as library

    folder, run, name, found, serve = logged
    serve("log", 1, calibration=folder / "calibration.toml")
    book = library.read_log(folder / "log")
    plain, corrected = book.decisions["run"].unique(maintain_order=True).to_list()
    own = found.calibration.run
    assert (plain, book.runs[corrected]["calibration"]["run"]) == (own, own)
    both = outcomes_of(book, own)
    _, _, later = book.one_run(corrected)
    raw = both.scores[len(both) - len(later) :]
    lines = {one.agent: one for one in found.calibration.corrections}
    for place, agent in enumerate(open_served(run).agents):
        line = lines.get(agent)
        said = -np.array(later["scores"].to_list())[:, place]
        expected = (said - line.intercept) / line.slope if line else said
        np.testing.assert_allclose(-raw[:, place], expected, rtol=1e-5)
    watched = library.watch(folder / "log", run, calibration=folder / "calibration.toml")
    assert not [one for one in watched.moved if one.what == "agent"]
    code, _, err = l2d("watch", folder / "log", run, "--strict")
    assert code == 3
    assert f"agent {name}" in err
    again = library.recalibrate(folder / "log", run, least=30)
    assert again.calibration.run == own


def test_replay_asks_what_it_would_have_cost(logged, patient_runs):
    """Also of decisions that another calibration has made; and it is refused for another run."""
    folder, _, _, found, _ = logged
    path = folder / "calibration.toml"
    book = l2d.read_log(folder / "log")
    for digest in book.decisions["run"].unique(maintain_order=True):
        (one,) = l2d.replay(folder / "log", str(path), run=digest).policies
        assert one.refusal is None
        gain = {each.name: each for each in one.gains}["doubly robust"]
        if book.runs[digest]["calibration"] is None:
            assert gain.interval(0.95)[1] < 0
        else:
            assert (one.agrees > 0.5, gain.value) == (True, 0.0)
    other = folder / "other.toml"
    other.write_text(path.read_text().replace(found.calibration.run, "0" * 64))
    with pytest.raises(UsageError, match="calibration is of run"):
        l2d.replay(folder / "log", str(other), run=book.decisions["run"][0])


def test_the_command_and_what_it_refuses(logged, patient_runs, l2d, l2d_done, tmp_path):
    folder, run, name, _, _ = logged
    out = tmp_path / "c.toml"
    told = json.loads(l2d_done("recalibrate", folder / "log", run, "--out", out, "--least", "30", "--format", "json"))
    assert told["improves"]
    text = out.read_text()
    content = tomllib.loads(text)
    assert [one["name"] for one in content["agents"]] == [one["agent"] for one in told["agents"] if "slope" in one]
    inputs = patient_runs / "patients.parquet"
    number = text.index("slope = ")
    slope = text[number : text.index("\n", number)]

    def routed(changed: str, *more: str) -> tuple[int, str]:
        (tmp_path / "changed.toml").write_text(changed)
        where = ["--calibration", tmp_path / "changed.toml", "--out", tmp_path / "o.csv", "--overwrite", *more]
        code, _, err = l2d("route", run, inputs, *where)
        return code, err

    assert routed(text)[0] == 0
    for changed, status, said in (
        (text.replace(told["run"], "0" * 64), 2, "calibration is of run"),
        (text.replace(f"valid_until = {content['valid_until'].year}", "valid_until = 2001"), 2, "out of date"),
        (text.replace(f"valid_from = {content['valid_from'].year}", "valid_from = 9001"), 2, "valid from 9001"),
        (text.replace(slope, "slope = 0.0"), 3, "agents[1].slope is 0"),
        (text.replace(slope, 'slope = "much"'), 3, "agents[1].slope is 'much'"),
        (text.replace(slope, ""), 3, "agents[1].slope is missing"),
        (text.replace("version = 1", "version = 9"), 3, "version is 9"),
        (text.replace(f'name = "{name}"', 'name = "nobody"'), 2, "nobody"),
        (text + text[text.index("[[agents]]") :], 3, "twice"),
        ("[[", 3, "not TOML"),
    ):
        code, err = routed(changed)
        assert (code, said in err) == (status, True), (said, err)
    assert "one of these" in routed(text, "--beta", "0.1")[1]
    for command, said in (
        (["recalibrate", folder / "log", run, "--out", out], "already"),
        (["recalibrate", folder / "log", run, "--out", tmp_path / "d.toml", "--least", "99999"], "earlier outcomes"),
        (["recalibrate", folder / "log", run, "--out", tmp_path / "d.toml", "--since", "soon"], "--since soon"),
        (["recalibrate", folder / "log", run, "--out", tmp_path / "d.toml", "--since", "2999-01-01"], "no outcome"),
        (["recalibrate", folder / "log", patient_runs / "linear", "--out", tmp_path / "d.toml"], "not predicted costs"),
    ):
        code, _, err = l2d(*command)
        assert code in (2, 3)
        assert said in err
    assert not (tmp_path / "d.toml").exists()
    with pytest.raises(UsageError, match="no calibration here"):
        read_calibration(tmp_path / "none.toml")
    with pytest.raises(DataError, match="valid_from is"):
        read_calibration_text(
            text.replace(f"valid_from = {content['valid_from'].year}", 'valid_from = "x" #'), tmp_path
        )


def read_calibration_text(text: str, folder):
    (folder / "text.toml").write_text(text)
    return read_calibration(folder / "text.toml")


def test_decisions_at_another_setting_are_logged_as_such(patient_runs, tmp_path):
    """Query costs of the log are those that the scores have, and the run of the log is not the run itself."""
    agents = open_served(patient_runs / "best").agents
    beta = {name: 0.1 * (place + 1) for place, name in enumerate(agents[1:])}
    router = l2d.load_router(patient_runs / "best", beta=beta, log=tmp_path / "log")
    router.feedback(router.route({"x1": 1.0, "x2": None, "ward": "a"}), 0.25)
    router.close()
    router.log.close()
    digest, facts, _ = l2d.read_log(tmp_path / "log").one_run()
    assert facts["query_costs"] == pytest.approx([0.0, *beta.values()])
    assert digest != open_served(patient_runs / "best").digest
