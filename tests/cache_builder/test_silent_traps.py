"""Ways to train on wrong numbers without being told, each of them closed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import Workshop, refused
from recipes import RECIPE

from l2d.data.errors import DataError, FingerprintMismatch
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.grid import make_grid
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep

READER = '\n[[agents]]\nname = "reader"\nkind = "python"\nfile = "reader.py"\n'


def with_text_classes(workshop: Workshop, classes: str) -> str:
    fate = pl.when(pl.col("died") == 1).then(pl.lit("died")).otherwise(pl.lit("survived")).alias("fate")
    workshop.table.with_columns(fate).write_parquet(workshop.folder / "patients.parquet")
    text = RECIPE.replace('target_cla = "died"', 'target_cla = "fate"').replace('classes = ["no", "yes"]', classes)
    text = text.replace("'yes'", "'died'").replace("'no'", "'survived'")
    return text + '\n[[agents]]\nname = "perfect"\nkind = "column"\ncla = "fate"\nprob = "died"\nreg = "stay"\n'


@pytest.mark.parametrize("classes", ['classes = ["survived", "died"]', 'classes = ["died", "survived"]'])
def test_classes_of_a_text_target_keep_their_meaning_in_any_order(workshop, classes):
    text = with_text_classes(workshop, classes)
    if '["died",' in classes:  # `prob` is of the second class
        text = text.replace('prob = "died"', 'prob = "1 - died"')
    workshop.build(text)
    assert workshop.column(workshop.costs_folder(), "cost_cla", "perfect").max() == 0
    target = workshop.column("samples", "target_cla")
    position = workshop.cache().record.classes.index("died")
    np.testing.assert_array_equal(target == position, workshop.table["died"].to_numpy() == 1)


def test_classes_cannot_rename_a_text_target(workshop):
    text = with_text_classes(workshop, 'classes = ["no", "yes"]')
    refused(lambda: workshop.build(text), DataError, "cannot rename", "died")


@pytest.mark.slow
def test_a_column_that_only_a_python_agent_may_have_read_is_noticed(workshop):
    code = "def ask(batch):\n    return {'cla': [0] * len(batch.ids), 'reg': batch.columns['note'].to_list()}\n"
    (workshop.folder / "reader.py").write_text(code)
    path = workshop.folder / "patients.parquet"
    workshop.table.with_columns(note=pl.lit(1.0)).write_parquet(path)
    workshop.build(RECIPE + READER)
    workshop.table.with_columns(note=pl.lit(1.0), more=pl.lit(0)).write_parquet(path)
    assert workshop.build(RECIPE + READER).asked["reader"] == 0  # nobody read a column that was not there
    workshop.table.with_columns(note=pl.lit(2.0)).write_parquet(path)
    refused(lambda: workshop.build(RECIPE + READER), FingerprintMismatch, "agent 'reader'", "column note")
    report = workshop.build(RECIPE + READER, overwrite=True)
    assert {name for name, samples in report.asked.items() if samples} == {"reader"}


@pytest.mark.slow
def test_a_run_is_not_evaluated_on_costs_it_was_not_trained_on(workshop):
    code = "def ask(batch):\n    assert 'p0005' not in batch.ids\n"
    code += "    return {'cla': [0] * len(batch.ids), 'reg': [1.0] * len(batch.ids)}\n"
    (workshop.folder / "reader.py").write_text(code)
    text = RECIPE + READER + 'version = "1"\n'
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
    workshop.build(RECIPE + '\n[[agents]]\nname = "late"\nkind = "column"\ncla = "\'no\'"\nreg = "stay"\n')
    assert evaluate_runs([workshop.folder / "run"])[0].result == before
