"""Building a cache: each agent is asked once per sample, costs are right, and nothing finished is redone."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
from conftest import AVERAGE, COLUMN, HARD, HEAD

from data.errors import FingerprintMismatch, IncompleteCache, L2DError

NAMES = ["model", "called", "column", "hard", "sim", "all"]
ROWS = 120


def unchanged(before: dict, after: dict, but: str = "\0") -> bool:
    """Whether every file is as it was, those whose names start with ``but`` left out."""
    return {k: v for k, v in before.items() if not k.startswith(but)} == {
        k: v for k, v in after.items() if not k.startswith(but)
    }


def test_every_agent_answers_the_same_samples_in_the_same_order(workshop, text):
    report = workshop.build(text)
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


def test_costs_follow_from_the_written_predictions_and_the_source_table(workshop, text):
    workshop.build(text)
    assert_costs(workshop, workshop.costs_folder(), "brier", 0.5, 5.0)
    np.testing.assert_allclose(workshop.column("samples", "target_reg"), workshop.table["stay"], rtol=1e-6)
    np.testing.assert_array_equal(workshop.column("samples", "target_cla"), workshop.table["died"])


def test_a_second_build_asks_nothing_and_touches_no_file(workshop, text):
    workshop.build(text)
    before = workshop.files()
    report = workshop.build(text)
    assert report.asked == report.predictions_written == report.costs_written == dict.fromkeys(NAMES, 0)
    assert report.fitted == []
    assert len(workshop.log()) == ROWS
    assert workshop.files() == before


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_whose_parts_are_gone_is_the_only_one_asked_again(workshop, text, name):
    workshop.build(text)
    before = workshop.files()
    shutil.rmtree(workshop.folder / "cache" / "agents" / name / "predictions")
    report = workshop.build(text)
    assert report.asked == {**dict.fromkeys(NAMES, 0), name: ROWS}
    assert len(workshop.log()) == (2 if name == "called" else 1) * ROWS
    after = workshop.files()
    assert unchanged(before, after, but=f"agents/{name}/")
    assert {k: content for k, (_, content) in after.items()} == {k: content for k, (_, content) in before.items()}


def test_a_single_missing_part_is_asked_for_alone(workshop, text):
    workshop.build(text)
    before = workshop.files()
    (workshop.folder / "cache" / "agents" / "called" / "predictions" / "00001.parquet").unlink()
    with pytest.raises(IncompleteCache, match=r"is missing.*|files are missing.*called/predictions/00001"):
        workshop.cache().require_complete()
    assert workshop.build(text).asked == {**dict.fromkeys(NAMES, 0), "called": 50}
    assert workshop.log()[ROWS:] == workshop.table["id"][50:100].to_list()
    assert unchanged(before, workshop.files(), but="agents/called/")
    workshop.cache().verify()


def test_an_agent_added_at_the_end_leaves_the_others_untouched(workshop, text):
    workshop.build(text)
    before = workshop.files()
    report = workshop.build(text + COLUMN.replace('"column"\nkind', '"late"\nkind'))
    assert report.asked == {**dict.fromkeys(NAMES, 0), "late": ROWS}
    after = workshop.files()
    assert unchanged(before, after, but="agents/late/")
    assert set(after) > set(before)
    workshop.cache().verify()


def test_another_cost_table_asks_no_agent_and_costs_are_the_new_ones(workshop, text):
    workshop.build(text)
    before = workshop.files()
    changed = text.replace('"brier"', '"absolute"').replace("beta = 0.5", "beta = 2.0").replace("= 5.0", "= 3.0")
    report = workshop.build(changed)
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
    text = HEAD.replace('[costs.reg]\nkind = "smooth_l1"\nbeta = 0.5\nclamp = 5.0\n', "")
    text += '[[agents]]\nname = "one"\nkind = "python"\nfile = "one.py"\n'
    workshop.build(text)
    with pytest.raises(L2DError, match="one"):
        workshop.build(text.replace("[build]", "[costs.reg]\n[build]"))


def swap(text: str) -> str:
    return text.replace(COLUMN + HARD, HARD + COLUMN)


CHANGES = {
    "hidden": (lambda text: text.replace("[8]", "[9]"), "hidden", [8], [9]),
    "chunk size": (lambda text: text.replace("= 50", "= 60"), "chunk_size", 50, 60),
    "data": (lambda text: text, "target_reg", None, None),
    "features": (lambda text: text.replace('"x2", "ward"]', '"x2"]'), "dataset.features", None, ["x1", "x2"]),
    "order": (swap, "position in the recipe", 3, 2),
    "removed": (lambda text: text.replace(AVERAGE, ""), "in the recipe", True, False),
    "column": (lambda text: text.replace('"risk_bad"', '"x1 * 0"'), "prob", "risk_bad", "x1 * 0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_cache_of_something_else_is_refused_and_nothing_is_touched(workshop, text, what):
    workshop.build(text)
    before = workshop.files()
    change, field, old, new = CHANGES[what]
    if what == "data":
        workshop.edit_data()
    with pytest.raises(FingerprintMismatch, match=field) as caught:
        workshop.build(change(text))
    changes = caught.value.changes
    if what == "order":
        assert changes[field] in ((3, 2), (2, 3))
    else:
        assert (old or changes[field][0], new if new is not None else changes[field][1]) == changes[field]
    assert changes[field][0] != changes[field][1]
    assert f"{field}: the cache has {changes[field][0]!r}, now {changes[field][1]!r}" in str(caught.value)
    assert "--overwrite" in caught.value.hint
    assert workshop.files() == before
    assert len(workshop.log()) == ROWS


@pytest.mark.parametrize("what", CHANGES)
def test_overwriting_gives_what_a_fresh_build_gives(workshop, text, what):
    workshop.build(text)
    if what == "data":
        workshop.edit_data()
    changed = CHANGES[what][0](text)
    workshop.build(changed, overwrite=True)
    workshop.build(changed, out="fresh")
    assert [(k, v[1]) for k, v in workshop.files().items()] == [(k, v[1]) for k, v in workshop.files("fresh").items()]
    workshop.cache().verify()


def test_price_and_description_may_change_without_asking_anyone(workshop, text):
    workshop.build(text)
    report = workshop.build(text.replace('name = "hard"', 'name = "hard"\nprice = 7.5\ndescription = "dear"'))
    assert report.asked == dict.fromkeys(NAMES, 0)
    assert (workshop.cache().agent("hard").price, workshop.cache().agent("hard").description) == (7.5, "dear")


def test_an_edited_column_that_is_only_kept_for_sql_is_noticed(workshop, text):
    workshop.build(text)
    before = workshop.files()
    workshop.table.with_columns(ward=workshop.table["ward"].reverse()).write_parquet(
        workshop.folder / "patients.parquet"
    )
    features = text.replace('features = ["x1", "x2", "ward"]', 'features = ["x1", "x2"]')
    assert features != text
    workshop.build(features, out="without")  # the column is no feature here
    workshop.table.write_parquet(workshop.folder / "patients.parquet")
    with pytest.raises(FingerprintMismatch, match="column ward"):
        workshop.build(features, out="without")
    assert workshop.files() == before
