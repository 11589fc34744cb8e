"""Ways to train on wrong numbers without being told, each of them closed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import Workshop, refused
from recipes import RECIPE, Recipe, agent

from l2d.data.errors import DataError, FingerprintMismatch
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.grid import make_grid
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep

READER = RECIPE.plus(agent("reader", "python", file="reader.py"))


def with_text_classes(workshop: Workshop, classes: list[str]) -> Recipe:
    fate = pl.when(pl.col("died") == 1).then(pl.lit("died")).otherwise(pl.lit("survived")).alias("fate")
    workshop.table.with_columns(fate).write_parquet(workshop.folder / "patients.parquet")
    recipe = RECIPE.but({"dataset.target_cla": "fate", "dataset.classes": None}).but({"dataset.classes": classes})
    recipe = recipe.but({"agents.cheap.cla": "CASE WHEN x1 > 0 THEN 'died' ELSE 'survived' END"})
    return recipe.plus(agent("perfect", "column", cla="fate", prob="died", reg="stay"))


@pytest.mark.parametrize("classes", [["survived", "died"], ["died", "survived"]])
def test_classes_of_a_text_target_keep_their_meaning_in_any_order(workshop, classes):
    recipe = with_text_classes(workshop, classes)
    if classes[0] == "died":  # `prob` is of the second class
        recipe = recipe.but({"agents.perfect.prob": "1 - died"})
    workshop.build(recipe)
    assert workshop.column(workshop.costs_folder(), "cost_cla", "perfect").max() == 0
    target = workshop.column("samples", "target_cla")
    position = workshop.cache().record.classes.index("died")
    np.testing.assert_array_equal(target == position, workshop.table["died"].to_numpy() == 1)


def test_classes_cannot_rename_a_text_target(workshop):
    text = with_text_classes(workshop, ["no", "yes"])
    refused(lambda: workshop.build(text), DataError, "cannot rename", "died")


@pytest.mark.slow
def test_a_column_that_only_a_python_agent_may_have_read_is_noticed(workshop):
    code = "def ask(batch):\n    return {'cla': [0] * len(batch.ids), 'reg': batch.columns['note'].to_list()}\n"
    (workshop.folder / "reader.py").write_text(code)
    path = workshop.folder / "patients.parquet"
    workshop.table.with_columns(note=pl.lit(1.0)).write_parquet(path)
    workshop.build(READER)
    workshop.table.with_columns(note=pl.lit(1.0), more=pl.lit(0)).write_parquet(path)
    assert workshop.build(READER).asked["reader"] == 0  # nobody read a column that was not there
    workshop.table.with_columns(note=pl.lit(2.0)).write_parquet(path)
    refused(lambda: workshop.build(READER), FingerprintMismatch, "agent 'reader'", "column note")
    report = workshop.build(READER, overwrite=True)
    assert {name for name, samples in report.asked.items() if samples} == {"reader"}


@pytest.mark.slow
def test_a_run_is_not_evaluated_on_costs_it_was_not_trained_on(workshop):
    code = "def ask(batch):\n    assert 'p0005' not in batch.ids\n"
    code += "    return {'cla': [0] * len(batch.ids), 'reg': [1.0] * len(batch.ids)}\n"
    (workshop.folder / "reader.py").write_text(code)
    text = READER.but({"agents.reader.version": "1"})
    workshop.build(text, on_failure="record")
    cache = workshop.cache()
    (point,) = make_grid(cache, methods=["multi-task"], weights=[], betas=[], nus=[1.0], seeds=[0])
    config, folder = TrainConfig(epochs=1, failures="worst"), workshop.folder / "run"
    sweep(cache, [point], [folder], config)
    evaluate_runs([folder])
    (workshop.folder / "reader.py").write_text(code.replace("assert", "pass  #"))
    workshop.build(text, retry_failures=True)
    with pytest.raises(FingerprintMismatch, match="costs of reader"):
        evaluate_runs([folder])
    with pytest.raises(DataError, match="on another cache"):
        sweep(workshop.cache(), [point], [folder], config)


def test_an_agent_added_later_leaves_earlier_runs_as_they_were(workshop):
    workshop.build(RECIPE)
    (point,) = make_grid(workshop.cache(), methods=["multi-task"], weights=[], betas=[], nus=[1.0], seeds=[0])
    sweep(workshop.cache(), [point], [workshop.folder / "run"], TrainConfig(epochs=2))
    before = evaluate_runs([workshop.folder / "run"])[0].result
    workshop.build(RECIPE.plus(agent("late", "column", cla="'no'", reg="stay")))
    assert evaluate_runs([workshop.folder / "run"])[0].result == before
