"""`l2d theory`: the findings on a run, as a section, as tables, as a figure."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from l2d.data.errors import UsageError
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.report.export import picture
from l2d.rejector.report.figures.theory import theory_figure
from l2d.rejector.runs.run import load_run
from l2d.rejector.theory import subject as subjects
from l2d.rejector.theory.of_surrogate import LEARNING, LOSS, MODEL, SURROGATE, all_parts, notes_of
from l2d.rejector.theory.parts import deferral
from l2d.rejector.theory.parts.deferral import deferral_findings
from l2d.rejector.theory.parts.ranking import TOP_K
from l2d.rejector.theory.parts.surrogate import surrogate_findings
from l2d.rejector.theory.section import shown_parts, theory_rows, theory_section
from l2d.rejector.theory.subject import chosen_costs, costs_judged_on, costs_trained_on

CAUSES = ("not_in_features", "objective", "class", "data", "optimization")


@pytest.fixture(scope="module", autouse=True)
def _small_fits():
    """Fewer and shorter fits: how well they estimate is tested in test_theory_estimates.py."""
    from l2d.rejector.theory import bayes, encoder_split

    every = bayes.learners
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bayes, "learners", lambda: {name: every()[name] for name in ("mean", "ridge")})
        patch.setattr(encoder_split, "SEEDS", (1,))
        patch.setitem(encoder_split.DEFAULTS, "epochs", 10)
        yield


@pytest.fixture(scope="module")
def sections(make_cache, make_runs, tmp_path_factory):
    """Runs of several kinds on one cache, and the section of each: name -> (run folder, section)."""
    folder = tmp_path_factory.mktemp("theory")
    cache = make_cache(folder)
    kinds = {
        "plain": {},
        "recentred": {"config": {"recentre": True, "network": "mlp", "hidden": 8}, "nus": [2.5]},
        "single": {"methods": ["classification-only"]},
        "regression": {"config": {"loss": "regression"}},
        "expression": {"cost": "greatest(cost_cla, 0.2 * cost_reg)", "nus": [0.0]},
    }
    found = {}
    for name, settings in kinds.items():
        run = make_runs(cache, folder / name, **settings)[0]
        found[name] = (run, theory_section(run))
    return found


KINDS = ["plain", "recentred", "single", "regression", "expression"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_parts_and_that_of_evaluate(sections, kind):
    run, section = sections[kind]
    loss = {key: found["value"] for key, found in section["parts"][LOSS].items()}
    parts = [loss[key] for key in CAUSES if key in loss]
    assert loss["oracle"] + sum(parts) == pytest.approx(loss["run"], abs=1e-9)
    assert loss["bayes"] == pytest.approx(loss["oracle"] + loss["not_in_features"], abs=1e-9)
    result = evaluate_runs([run])[0].result
    assert loss["run"] == pytest.approx(result["deferral_loss"], abs=1e-6)
    assert loss["oracle"] == pytest.approx(result["oracle_loss"], abs=1e-6)
    assert ("objective" in loss) == (kind == "single")
    above = loss["run"] - loss["oracle"]
    assert (f"{above:.4f} above" if above > 0 else "as good as the oracle") in section["verdict"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "regression"])
def test_the_excess_is_the_sum_of_its_parts_and_the_bound_holds(sections, kind):
    found = {key: value["value"] for key, value in sections[kind][1]["parts"][SURROGATE].items()}
    assert found["risk"] - found["infimum"] == pytest.approx(found["excess"], abs=1e-9)
    parts = found["minimizability_gap"] + found["data"] + found["optimization"]
    assert parts == pytest.approx(found["excess"], abs=1e-9)
    assert found["slack"] >= 0
    assert found["deferral_excess"] <= found["pointwise_bound"] + 1e-9
    assert found["pointwise_bound"] <= found["bound"] + 1e-9
    assert found["encoder_bound"] >= found["bound"]


@pytest.mark.parametrize("kind", KINDS)
def test_asking_several_starts_at_the_rejector_s_own_agent_and_ends_at_all(sections, kind):
    parts = sections[kind][1]["parts"]
    found = {key: value["value"] for key, value in parts[TOP_K].items()}
    places = ["top_1", "top_2", "top_3"]  # of four agents
    bounds = [] if kind == "regression" else [f"{place}_bound" for place in places]
    assert sorted(found) == sorted([*places, *bounds])
    assert all(found[key] >= -1e-12 for key in places)
    if bounds:
        assert found["top_1"] == pytest.approx(parts[SURROGATE]["deferral_excess"]["value"], abs=1e-12)
        for key in bounds:
            assert found[key] >= float(parts[TOP_K][key]["says"].split("cost ")[1].split(";")[0]) - 1e-4


def test_other_losses_have_no_surrogate_part_and_everything_else(sections):
    section = sections["regression"][1]
    (found,) = section["parts"][SURROGATE].values()
    assert found["value"] is None
    assert "'regression'" in found["says"]
    assert "do not apply" in found["says"]
    assert section["nu"] is None
    assert section["parts"][LEARNING]["bound"]["value"] > section["parts"][LEARNING]["empirical"]["value"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_is_plain_values_a_table_and_a_picture(sections, kind):
    section = sections[kind][1]
    assert json.loads(json.dumps(section, allow_nan=False)) == section
    rows = list(theory_rows(section))
    assert {row["part"] for row in rows} == {LOSS, SURROGATE, TOP_K, MODEL, LEARNING}
    assert all(row["value"] is not None or row["says"] for row in rows)  # what cannot be had says why
    shown = shown_parts(section)
    assert len(shown) == 5
    assert sum(map(len, shown.values())) == len(rows)
    assert picture([theory_figure(section)], "png")[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_model_s_part_names_what_it_cannot_know(sections):
    model = sections["plain"][1]["parts"][MODEL]
    assert model["heads"]["value"] is None
    assert "neither weights nor features" in model["heads"]["says"]
    assert model["model_gap"]["value"] > 0  # it always says 0.5
    assert model["sharing"]["low"] <= model["sharing"]["value"] <= model["sharing"]["high"]


@pytest.mark.slow
def test_a_transformer_has_no_learning_bound_and_says_so(patient_runs):
    section = theory_section(patient_runs / "transformer", "validation")
    (found,) = section["parts"][LEARNING].values()
    assert found["value"] is None
    assert "transformer" in found["says"]
    assert section["bound_curve"] == []
    assert section["parts"][MODEL]["optimism"]["value"] is not None
    assert picture([theory_figure(section)], "png")[:4] == b"\x89PNG"


def test_a_rejector_of_images_has_its_theory_too(detection_runs):
    """Images are its input; the model's answers are boxes, whose heads are no matter of one row a sample."""
    section = theory_section(detection_runs[1]["conv"], "train")
    assert section["parts"][LOSS]["run"]["value"] >= section["parts"][LOSS]["oracle"]["value"]
    assert section["parts"][MODEL]["heads"]["value"] is None
    assert "boxes" in section["parts"][MODEL]["heads"]["says"]


def test_costs_trained_on_are_the_method_s_and_recentred_where_they_were(sections):
    raw = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [1.0, 5.0], [0.0, 3.0]]])
    beta = np.array(load_run(sections["plain"][0]).point.query_costs)
    judged = np.array([1 + 0.4, 0.2, 1 + 1.0, 0.6]) + beta
    tasks = ["cla", "reg"]
    plain, single, recentred = (load_run(sections[kind][0]) for kind in ("plain", "single", "recentred"))
    for run in (plain, single, recentred):
        np.testing.assert_allclose(costs_judged_on(run, raw, tasks)[0], judged, rtol=1e-6)
    np.testing.assert_allclose(costs_trained_on(plain, raw, tasks)[0], judged, rtol=1e-6)
    np.testing.assert_allclose(costs_trained_on(single, raw, tasks)[0], np.array([1, 0, 1, 0]) + beta, rtol=1e-6)
    np.testing.assert_allclose(costs_trained_on(recentred, raw, tasks)[0], judged - judged.min(), atol=1e-6)


def test_an_unavailable_agent_is_never_chosen_and_no_reference_for_recentring(sections):
    costs = np.array([[0.5, np.inf, 0.7], [np.inf, np.inf, 0.9]])
    assert chosen_costs(np.array([[0.0, 9.0, 1.0], [5.0, 5.0, -5.0]]), costs).tolist() == [0.7, 0.9]
    raw = torch.full((2, 4, 2), 0.5)
    raw[0, 0], raw[1] = torch.nan, torch.nan
    recentred = costs_trained_on(load_run(sections["recentred"][0]), raw, ["cla", "reg"])
    assert np.isinf(recentred[0, 0])
    assert recentred[0, 1:].min() == 0
    assert np.isinf(recentred[1]).all()


def test_findings_of_a_subject_where_agents_are_missing(sections, monkeypatch):
    """The same run, with answers taken away from a fifth of the samples: findings are over who is available."""
    subject = subjects.examine(load_run(sections["plain"][0]))
    generator = np.random.default_rng(0)
    missing = np.zeros(subject.costs.shape, dtype=bool)
    missing[generator.random(len(missing)) < 0.2, 1] = True
    costs = np.where(missing, np.inf, subject.costs)
    expected = replace(subject.expected, costs=np.where(missing, np.inf, subject.expected.costs))
    bayes = subjects.bayes_risk(expected.costs, costs)
    changed = replace(
        subject, costs=costs, trained=costs, expected=expected, trained_expected=expected.costs,
        bayes=bayes, trained_bayes=bayes,
    )  # fmt: skip
    loss = {finding.key: finding.value for finding in deferral_findings(changed)}
    chosen = np.where(missing, -np.inf, subject.scores).argmax(axis=1)
    assert loss["run"] == pytest.approx(costs[np.arange(len(costs)), chosen].mean())
    assert loss["oracle"] == pytest.approx(costs.min(axis=1).mean())
    assert all(np.isfinite(f.value) for f in surrogate_findings(changed) if f.value is not None)
    assert any("unavailable" in note for note in notes_of(changed))


def test_what_its_regressors_pay_as_a_rejector_and_the_upper_end_are_said(sections):
    subject = subjects.examine(load_run(sections["plain"][0]))
    said = next(finding for finding in deferral_findings(subject) if finding.key == "class")
    chosen = subject.expected.costs.argmin(axis=1)
    pays = subject.costs[np.arange(len(chosen)), chosen].mean()
    noise = np.random.default_rng(0).normal(size=len(chosen))
    wide = deferral._class(subject, noise - noise.mean())
    assert f"{subject.expected.learner} as a rejector pays {pays:.4f}" in wide.says
    assert f"may save up to {wide.interval[1]:.4f}" in wide.says
    assert "nearly the best" not in said.says


def test_where_all_targets_are_one_the_model_s_part_is_left_out(sections):
    """Imported scores have the target 1: that a perfect model would save everything says nothing."""
    from l2d.rejector.theory.encoder_split import encoder_split

    subject = subjects.examine(load_run(sections["plain"][0]))
    constant = {
        name: replace(table, targets={key: np.ones_like(values) for key, values in table.targets.items()})
        for name, table in subject.tables.items()
    }
    model = encoder_split(subject.cache, constant, "test", subject.run.point)
    changed = replace(subject, model=model)
    assert list(all_parts(changed)) == [LOSS, SURROGATE, TOP_K, LEARNING]
    assert any("targets are one and the same" in note for note in notes_of(changed))
    assert MODEL in all_parts(subject)


def test_one_expert_at_a_constant_cost_is_abstention(make_cache, make_runs, tmp_path, monkeypatch):
    """An expert that is always right: what it costs is beta."""
    from sklearn.neighbors import KNeighborsRegressor

    from l2d.rejector.theory import bayes

    monkeypatch.setattr(bayes, "learners", lambda: {"nearest": lambda: KNeighborsRegressor(20)})
    recipe = """
[dataset]
kind = "table"
path = "patients.parquet"
id = "id"
target_cla = "died"
classes = ["no", "yes"]
features = ["x1", "x2"]
[costs.cla]
kind = "zero_one"
[[agents]]
name = "model"
kind = "column"
cla = "CASE WHEN x1 > 0 THEN 'yes' ELSE 'no' END"
[[agents]]
name = "abstain"
kind = "column"
cla = "CASE WHEN died = 1 THEN 'yes' ELSE 'no' END"
"""
    run = make_runs(make_cache(tmp_path, recipe), tmp_path / "runs", betas=[0.3])[0]
    section = theory_section(run)
    found = section["parts"][LOSS]["abstention"]
    assert "0.3000" in found["says"]
    assert 0 < found["value"] < 1
    reason = section["parts"][MODEL]["sharing"]["says"]
    assert "one task" in reason


def test_too_few_samples_are_refused(sections, monkeypatch):
    monkeypatch.setattr(subjects, "FEWEST_ROWS", 10_000)
    with pytest.raises(UsageError, match="too few samples"):
        theory_section(sections["plain"][0])


@pytest.mark.slow
def test_the_command_prints_every_format(sections, tmp_path, capsys, monkeypatch):
    from l2d.cli import app

    run, section = sections["plain"]

    def ask(*options: str) -> str:
        app(["theory", str(run), *options], standalone_mode=False)
        return capsys.readouterr().out

    assert json.loads(ask("--format", "json", "--figure", str(tmp_path / "f.png"))) == section
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("l2d.rejector.library.theory_section", lambda *_, **__: section)
    text = ask()
    assert section["verdict"] in text
    assert "minimizability gap" in text
    lines = ask("--format", "csv").splitlines()
    assert lines[0] == "part,quantity,title,value,low,high,says"
    assert len(lines) == 1 + sum(map(len, section["parts"].values()))
