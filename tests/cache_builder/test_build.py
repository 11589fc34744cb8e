"""Building a cache: each agent is asked once per sample, costs are right, and nothing finished is redone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
from recipes import COLUMN, HEAD, Recipe, agent, changed

from l2d.data.errors import FingerprintMismatch, IncompleteCache, L2DError

NAMES = ["model", "called", "column", "hard", "sim", "all"]
ROWS = 120


def unchanged(before: dict, after: dict, but: str = "\0") -> bool:
    """Whether every file is as it was, those whose names start with ``but`` left out."""
    return {k: v for k, v in before.items() if not k.startswith(but)} == {
        k: v for k, v in after.items() if not k.startswith(but)
    }


@pytest.mark.slow
def test_every_agent_answers_the_same_samples_in_the_same_order(workshop, recipe):
    report = workshop.build(recipe)
    cache = workshop.cache()
    assert report.asked == dict.fromkeys(NAMES, ROWS)
    assert report.predictions_written == report.costs_written == dict.fromkeys(NAMES, 3)
    assert workshop.log() == workshop.table["id"].to_list()
    assert [agent.name for agent in cache.agents] == NAMES[:-1]
    assert [agent.name for agent in cache.references] == ["all"]
    for chunk, ids in enumerate(workshop.table["id"][a : a + 50].to_list() for a in (0, 50, 100)):
        folders = [f"agents/{name}/{what}" for name in NAMES for what in ("predictions", workshop.costs_folder())]
        for folder in ["samples", *folders]:
            part = workshop.folder / "cache" / folder / f"{chunk:05d}.parquet"
            assert pl.read_parquet(part)["sample_id"].to_list() == ids
    assert cache.verify() == 3 + len(NAMES) * 6
    assert not [name for name in workshop.files() if name.endswith(".tmp")]


def brute_force_costs(workshop, agent: str, cla: str, beta: float, clamp: float) -> tuple[list, list]:
    table, out = workshop.table, workshop.folder / "cache" / "agents" / agent / "predictions"
    cost_cla, cost_reg = [], []
    frames = [pl.read_parquet(file) for file in sorted(out.glob("*.parquet"))]
    rows = [row for frame in frames for row in frame.to_dicts()]
    for row, died, stay in zip(rows, table["died"], table["stay"], strict=True):
        p = row["pred_prob"][1] if "pred_prob" in row else float(row["pred_cla"])
        cost_cla.append((p - died) ** 2 if cla == "brier" else float(row["pred_cla"] != died))
        error = abs(row["pred_reg"] - stay)
        cost_reg.append(min(error**2 / (2 * beta) if error < beta else error - beta / 2, clamp))
    return cost_cla, cost_reg


def assert_costs(workshop, folder: str, cla: str, beta: float, clamp: float):
    for name in NAMES:
        for task, expected in zip(("cla", "reg"), brute_force_costs(workshop, name, cla, beta, clamp), strict=True):
            found = workshop.column(folder, f"cost_{task}", name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_costs_follow_from_the_written_predictions_and_the_source_table(workshop, recipe):
    workshop.build(recipe)
    assert_costs(workshop, workshop.costs_folder(), "brier", 0.5, 5.0)
    np.testing.assert_allclose(workshop.column("samples", "target_reg"), workshop.table["stay"], rtol=1e-6)
    np.testing.assert_array_equal(workshop.column("samples", "target_cla"), workshop.table["died"])


@pytest.mark.slow
def test_a_second_build_asks_nothing_and_touches_no_file(workshop, recipe):
    workshop.build(recipe)
    before = workshop.files()
    report = workshop.build(recipe)
    assert report.asked == report.predictions_written == report.costs_written == dict.fromkeys(NAMES, 0)
    assert report.fitted == []
    assert len(workshop.log()) == ROWS
    assert workshop.files() == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_an_agent_whose_parts_are_gone_is_the_only_one_asked_again(workshop, recipe, name):
    workshop.build(recipe)
    before = workshop.files()
    shutil.rmtree(workshop.folder / "cache" / "agents" / name / "predictions")
    report = workshop.build(recipe)
    assert report.asked == {**dict.fromkeys(NAMES, 0), name: ROWS}
    assert len(workshop.log()) == (2 if name == "called" else 1) * ROWS
    after = workshop.files()
    assert unchanged(before, after, but=f"agents/{name}/")
    assert {k: content for k, (_, content) in after.items()} == {k: content for k, (_, content) in before.items()}


@pytest.mark.slow
def test_a_single_missing_part_is_asked_for_alone(workshop, recipe):
    workshop.build(recipe)
    before = workshop.files()
    (workshop.folder / "cache" / "agents" / "called" / "predictions" / "00001.parquet").unlink()
    with pytest.raises(IncompleteCache, match=r"is missing.*|files are missing.*called/predictions/00001"):
        workshop.cache().require_complete()
    assert workshop.build(recipe).asked == {**dict.fromkeys(NAMES, 0), "called": 50}
    assert workshop.log()[ROWS:] == workshop.table["id"][50:100].to_list()
    assert unchanged(before, workshop.files(), but="agents/called/")
    workshop.cache().verify()


@pytest.mark.slow
def test_an_agent_added_at_the_end_leaves_the_others_untouched(workshop, recipe):
    workshop.build(recipe)
    before = workshop.files()
    report = workshop.build(recipe.plus(changed(COLUMN, {"name": "late"})))
    assert report.asked == {**dict.fromkeys(NAMES, 0), "late": ROWS}
    after = workshop.files()
    assert all(after[name] == content for name, content in before.items() if name != "cache.json")
    assert workshop.cache().record.agents == [*NAMES, "late"]
    assert set(after) > set(before)
    workshop.cache().verify()


@pytest.mark.slow
def test_another_cost_table_asks_no_agent_and_costs_are_the_new_ones(workshop, recipe):
    workshop.build(recipe)
    before = workshop.files()
    costs = {"costs.cla.kind": "absolute", "costs.reg.beta": 2.0, "costs.reg.clamp": 3.0}
    report = workshop.build(recipe.but(costs))
    assert report.asked == report.predictions_written == dict.fromkeys(NAMES, 0)
    assert report.costs_written == dict.fromkeys(NAMES, 3)
    assert len(workshop.log()) == ROWS
    after = workshop.files()
    assert all(after[name] == before[name] for name in before if name != "cache.json")
    cache = workshop.cache()
    prob = np.concatenate([list(row) for row in workshop.column("predictions", "pred_prob", "called")]).reshape(-1, 2)
    found = workshop.column(workshop.costs_folder(), "cost_cla", "called")
    np.testing.assert_allclose(found, np.abs(prob[:, 1] - workshop.table["died"].to_numpy()), atol=1e-6)
    assert_reg = [brute_force_costs(workshop, name, "brier", 2.0, 3.0)[1] for name in NAMES]
    for name, expected in zip(NAMES, assert_reg, strict=True):
        found = workshop.column(workshop.costs_folder(), "cost_reg", name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    cache.verify()


def test_a_cost_for_a_task_an_agent_never_answered_is_refused_and_not_a_crash(workshop):
    (workshop.folder / "one.py").write_text("def ask(batch):\n    return {'cla': [0] * len(batch.ids)}\n")
    one_task = HEAD.but({"costs.reg": None}).plus(agent("one", "python", file="one.py"))
    workshop.build(one_task)
    with pytest.raises(L2DError, match="one"):
        workshop.build(one_task.but({"costs.reg": {}}))


def swap(recipe: Recipe) -> Recipe:
    return recipe.only("model", "called", "hard", "column", "sim", "all")


CHANGES = {
    "hidden": ({"agents.model.hidden": [9]}, "hidden", [8], [9]),
    "chunk size": ({"build.chunk_size": 60}, "chunk_size", 50, 60),
    "data": ({}, "target_reg", None, None),
    "features": ({"dataset.features": ["x1", "x2"]}, "dataset.features", None, ["x1", "x2"]),
    "column": ({"agents.column.prob": "x1 * 0"}, "prob", "risk_bad", "x1 * 0"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.slow
def test_a_cache_of_something_else_is_refused_and_nothing_is_touched(workshop, recipe, what):
    workshop.build(recipe)
    before = workshop.files()
    change, field, old, new = CHANGES[what]
    if what == "data":
        workshop.edit_data()
    with pytest.raises(FingerprintMismatch, match=field) as caught:
        workshop.build(recipe.but(change))
    changes = caught.value.changes
    assert (old or changes[field][0], new if new is not None else changes[field][1]) == changes[field]
    assert changes[field][0] != changes[field][1]
    assert f"{field}: was {changes[field][0]!r}, now {changes[field][1]!r}" in str(caught.value)
    assert "--overwrite" in caught.value.hint
    assert workshop.files() == before
    assert len(workshop.log()) == ROWS


def timeless(name: str, content: bytes) -> object:
    """A file's content, without the time that an agent has taken."""
    if not name.endswith("agent.json"):
        return content
    return {key: value for key, value in json.loads(content).items() if key not in ("seconds", "sha256_of_the_above")}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.slow
def test_overwriting_gives_what_a_fresh_build_gives(workshop, recipe, what):
    workshop.build(recipe)
    if what == "data":
        workshop.edit_data()
    other = recipe.but(CHANGES[what][0])
    workshop.build(other, overwrite=True)
    workshop.build(other, out="fresh")
    files, fresh = workshop.files(), workshop.files("fresh")
    assert {k: timeless(k, v[1]) for k, v in files.items() if k in fresh} == {
        k: timeless(k, v[1]) for k, v in fresh.items()
    }
    assert all(
        "/costs-" in name for name in set(files) - set(fresh)
    )  # costs of agents that did not change, as they were
    workshop.cache().verify()


@pytest.mark.slow
def test_agents_may_be_reordered_left_out_and_taken_in_again_without_being_asked(workshop, recipe):
    workshop.build(recipe)
    asked = len(workshop.log())
    for other in (swap(recipe), recipe.without("all"), recipe):
        report = workshop.build(other)
        assert set(report.asked.values()) == {0}
        names = [agent.name for agent in workshop.recipe(other).agents]
        assert [agent.name for agent in workshop.cache().all_agents] == names
        assert [agent.index for agent in workshop.cache().all_agents] == list(range(len(names)))
        workshop.cache().verify()
    assert len(workshop.log()) == asked


@pytest.mark.slow
def test_only_agents_that_read_what_changed_are_asked_again(workshop, recipe):
    workshop.build(recipe)
    report = workshop.build(recipe.but({"dataset.features": ["x1", "x2"]}), overwrite=True)
    read = {name for name, samples in report.asked.items() if samples}
    assert read == {"model", "called", "all"}  # two_head and python read features; the average is made of theirs
    kept = recipe.but({"dataset.keep": ["ward", "x1"]})
    workshop.build(recipe, out="kept")
    assert set(workshop.build(kept, out="kept", overwrite=True).asked.values()) == {0}
    workshop.cache("kept").verify()


@pytest.mark.slow
def test_a_changed_agent_may_keep_its_answers_if_it_is_said_so(workshop, recipe):
    workshop.build(recipe)
    before = workshop.predictions("hard")
    other = recipe.but({"agents.hard.cla": "CASE WHEN x1 > 0.5 THEN 'yes' ELSE 'no' END"})
    with pytest.raises(FingerprintMismatch, match="--keep-answers hard"):
        workshop.build(other)
    assert set(workshop.build(other, keep_answers=["hard"]).asked.values()) == {0}
    assert all((workshop.predictions("hard")[name] == values).all() for name, values in before.items())
    assert set(workshop.build(other).asked.values()) == {0}
    workshop.cache().verify()


@pytest.mark.slow
def test_a_discarded_agent_is_gone_before_its_record_changes(workshop, recipe, monkeypatch):
    """A kill while an agent is discarded must not leave its old answers under the new fingerprint."""
    import shutil

    workshop.build(recipe)
    other = recipe.but({"agents.model.hidden": [9]})

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(Killed):
        workshop.build(other, overwrite=True)
    monkeypatch.undo()
    report = workshop.build(other, overwrite=True)
    assert report.fitted == ["model"]
    assert report.asked["model"] == ROWS
    workshop.build(other, out="fresh")
    np.testing.assert_array_equal(
        workshop.predictions("model")["pred_reg"], workshop.predictions("model", "fresh")["pred_reg"]
    )


@pytest.mark.slow
def test_a_cache_whose_last_agent_has_not_begun_is_not_complete(workshop, recipe):
    workshop.build(recipe)
    longer = recipe.plus(changed(COLUMN, {"name": "late", "reg": "1 / 0 + stay_bad"}))
    with pytest.raises(L2DError):
        workshop.build(longer)
    workshop.cache().verify()  # refused before anything was written
    (workshop.folder / "boom.py").write_text("def ask(batch):\n    raise SystemExit(0)\n")
    with pytest.raises(L2DError, match="SystemExit"):
        workshop.build(recipe.plus(agent("boom", "python", file="boom.py")))
    for check in (workshop.cache().require_complete, workshop.cache().verify):
        with pytest.raises(IncompleteCache):
            check()


@pytest.mark.slow
def test_price_and_description_may_change_without_asking_anyone(workshop, recipe):
    workshop.build(recipe)
    report = workshop.build(recipe.but({"agents.hard.price": 7.5, "agents.hard.description": "dear"}))
    assert report.asked == dict.fromkeys(NAMES, 0)
    assert (workshop.cache().agent("hard").price, workshop.cache().agent("hard").description) == (7.5, "dear")


@pytest.mark.slow
def test_an_edited_column_that_is_only_kept_for_sql_is_noticed(workshop, recipe):
    workshop.build(recipe)
    before = workshop.files()
    workshop.table.with_columns(ward=workshop.table["ward"].reverse()).write_parquet(
        workshop.folder / "patients.parquet"
    )
    features = recipe.but({"dataset.features": ["x1", "x2"]})
    workshop.build(features, out="without")  # the column is no feature here
    workshop.table.write_parquet(workshop.folder / "patients.parquet")
    with pytest.raises(FingerprintMismatch, match="column ward"):
        workshop.build(features, out="without")
    assert workshop.files() == before
