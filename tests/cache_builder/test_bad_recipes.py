"""Mistakes: each is refused with what, where and what next, names agent and sample, and leaves nothing half-written."""

from __future__ import annotations

import pytest
from conftest import Workshop, refused
from recipes import RECIPE

from l2d.cache_builder import agents
from l2d.cache_builder.recipe import _paths_of
from l2d.data import sources
from l2d.data.errors import AgentFailure, DataError, UsageError


def nothing_left(workshop: Workshop) -> bool:
    return not (workshop.folder / "cache").exists()


TEXTS = {
    "unknown key": ("price = 2.0", "prise = 2.0", "prise", "did you mean 'price'?", "(expert)"),
    "unknown key of a table": ("clamp = 5.0", "clamq = 5.0", "clamq", "did you mean 'clamp'?", "costs.reg"),
    "unknown dataset key": ('id = "id"', 'id = "id"\nfeatuers = []', "featuers", "did you mean 'features'?"),
    "unknown key called column": ('id = "id"', 'id = "id"\ncolumn = "x"', "unknown key 'column'", "dataset"),
    "unknown first key called column": ("[dataset]", "column = 1\n[dataset]", "unknown key 'column'"),
    "unknown split key": ("stratify", "stratfy", "did you mean 'stratify'?"),
    "unknown first key": ("[build]", "[bild]", "unknown key 'bild'", "did you mean 'build'?"),
    "no TOML": ("[dataset]", "[dataset", "is not TOML"),
    "number for a text": ('target_cla = "died"', "target_cla = 3", "string", "dataset.target_cla"),
    "text for a number": ("price = 2.0", 'price = "dear"', "number", "price", "(expert)", "'dear'"),
    "wrong type under a key called column": ('{ stratify = ["died"] }', "{ column = 3 }", "dataset.split.column"),
    "negative price": ("price = 2.0", "price = -1.0", "greater than or equal to 0"),
    "endless price": ("price = 2.0", "price = inf", "price"),
    "endless clamp": ("clamp = 5.0", "clamp = inf", "clamp"),
    "lambda that is no number": ("reg = 0.2", "reg = nan", "lambda"),
    "lambda of no task": ("reg = 0.2", "map = 0.2", "'map'"),
    "true for a size": ("chunk_size = 50", "chunk_size = true", "chunk_size"),
    "no chunk": ("chunk_size = 50", "chunk_size = 0", "chunk_size"),
    "unknown kind": ('kind = "column"', 'kind = "colum"', "'colum'", "did you mean 'column'?", "(model)"),
    "list of kinds": ('kind = "column"', 'kind = ["column"]', "kind"),
    "duplicate names": ('name = "cheap"', 'name = "expert"', "two agents are called 'expert'"),
    "name with a line break": ('name = "cheap"', 'name = "che\\nap"', "name", "can be printed"),
    "no answer": ('prob = "risk_bad"\nreg = "stay_bad"', "", "give cla, prob, reg or text", "(model)"),
    "no probabilities": ('prob = "risk_bad"', "prob = []", "prob"),
    "cost without target": ('target_reg = "stay"', "", "target_reg"),
    "fractions": ('{ stratify = ["died"] }', "{ train = 0.9 }", "must be 1"),
    "reference first": ('name = "model"', 'name = "model"\nreference = true', "put the model first"),
    "path with a zero": ("patients.parquet", "pat\\u0000ients.parquet", "path"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_recipe_that_is_wrong_in_itself_is_a_usage_error(workshop, what):
    old, new, *words = TEXTS[what]
    assert old in RECIPE
    error = refused(lambda: workshop.build(RECIPE.replace(old, new, 1)), UsageError, *words)
    assert "recipe.toml" in str(error.where)
    assert nothing_left(workshop)


def test_no_recipe_and_no_bytes_of_text_are_usage_errors(workshop):
    from l2d.cache_builder.recipe import load_recipe

    refused(lambda: load_recipe("suport2"), UsageError, "did you mean 'support2'?")
    refused(lambda: load_recipe("x" * 5000), UsageError)
    (workshop.folder / "bytes.toml").write_bytes(b"\xff\xfe")
    refused(lambda: load_recipe(str(workshop.folder / "bytes.toml")), UsageError, "is not TOML")


LATER = {
    "missing data": ("patients.parquet", "gone.parquet", DataError, "no such file", "gone.parquet"),
    "very long name": ("patients.parquet", "x" * 300 + ".parquet", DataError),
    "unknown column": ('"x2", "ward"]', '"x3"]', DataError, "x3", "patients.parquet"),
    "text for where": ('id = "id"', 'id = "id"\nwhere = "ward"', DataError, "ward"),
    "text for a target": ('target_reg = "stay"', 'target_reg = "ward"', DataError, "ward"),
    "split without samples": (
        '{ stratify = ["died"] }',
        "{ train = 0.998, validation = 0.001, test = 0.001 }",
        DataError,
        "split has no samples",
    ),
    "split column without test": (
        '{ stratify = ["died"] }',
        "{ column = \"CASE WHEN x1 > 0 THEN 'train' ELSE 'validation' END\" }",
        DataError,
        "the test split has no samples",
    ),
    "no rows": ('id = "id"', 'id = "id"\nwhere = "x1 > 99"', DataError, "no rows are left"),
    "same class twice": ('["no", "yes"]', '["no", "no"]', DataError, "no"),
    "unknown class": ("THEN 'yes'", "THEN 'perhaps'", AgentFailure, "'cheap'", "'perhaps'", "p0", "no, yes"),
    "gap in an agent's column": ('reg = "stay_good"', 'reg = "x2"', AgentFailure, "'expert'", "not finite", "p0"),
    "probability above one": ('"risk_good"', '"risk_good + 1"', AgentFailure, "'expert'", "outside [0, 1]", "p0000"),
    "text for an agent's value": ('reg = "stay_good"', 'reg = "ward"', DataError, "'expert'", "f64"),
    "expression of an agent": ('reg = "stay_good"', 'reg = "nothing"', DataError, "nothing", "expert"),
    "three probabilities": ('"risk_good"', '["x1", "x1", "x1"]', AgentFailure, "'expert'", "(120, 3)", "(120, 2)"),
    "a task left out": ('prob = "risk_good"\n', "", AgentFailure, "'expert'", "no class"),
    "too few training samples": ("[costs.cla]", "[dataset.clusters]\ncount = 90\n[costs.cla]", DataError, "90"),
}


@pytest.mark.parametrize("what", LATER)
def test_a_recipe_that_does_not_fit_the_data_is_refused_before_anything_is_written(workshop, what):
    old, new, kind, *words = LATER[what]
    assert old in RECIPE
    refused(lambda: workshop.build(RECIPE.replace(old, new, 1)), kind, *words)
    assert nothing_left(workshop)


def test_agents_that_cannot_work_are_refused_before_anything_is_written(workshop):
    extra = '\n[[agents]]\nname = "extra"\n'
    for entry, words in (
        ('kind = "python"\nfile = "gone.py"\n', ("'extra'", "gone.py")),
        ('kind = "cluster_expert"\nright_cla = [1]\n', ("'extra'", "clusters")),
        ('kind = "average"\nof = ["model", "nobody"]\n', ("'extra'", "'nobody'")),
    ):
        refused(lambda entry=entry: workshop.build(RECIPE + extra + entry), UsageError, *words)
        assert nothing_left(workshop)


@pytest.mark.parametrize("name", ["sample_id", "split", "target_reg", "features"])
def test_a_kept_column_with_a_name_of_the_caches_own_is_refused_before_anything_is_written(workshop, name):
    workshop.table.rename({"risk_bad": name}).write_parquet(workshop.folder / "patients.parquet")
    text = RECIPE.replace('"ward"]\nsplit', f'"{name}"]\nsplit').replace('"risk_bad"', f"'\"{name}\"'")
    refused(lambda: workshop.build(text), DataError, f"'{name}'")
    assert nothing_left(workshop)


@pytest.mark.parametrize("out", ["patients.parquet", "full"])
def test_a_target_that_is_no_cache_is_left_alone(workshop, out):
    (workshop.folder / "full").mkdir()
    (workshop.folder / "full" / "thesis.doc").write_text("mine")
    refused(lambda: workshop.build(RECIPE, out=out), UsageError)
    refused(lambda: workshop.build(RECIPE, out=out, overwrite=True), UsageError)
    assert [file.name for file in (workshop.folder / "full").iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("chexpert", {"path", "image_features"}), ("mimic4", {"path", "ccs"}), ("voc", {"path"})],
)
def test_keys_of_datasets_that_are_files_are_relative_to_the_recipe(kind, expected):
    assert set(_paths_of(sources.dataset_config_class(kind))) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torchvision_detector", {"weights", "expected"}),
        ("python", {"file", "path", "expected"}),
        ("column", set()),
    ],
)
def test_keys_of_agents_that_are_files_are_relative_to_the_recipe(kind, expected):
    assert set(_paths_of(agents.config_class(kind))) == expected
