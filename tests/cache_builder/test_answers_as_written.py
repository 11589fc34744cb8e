"""A file of answers holds what agents said: classes called NA, ids, repeated answers, rounded numbers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest
from conftest import refused
from recipes import RECIPE, Recipe, agent

from l2d.cache_builder.agents._matching import canonical
from l2d.data.errors import DataError, UsageError

ANN = RECIPE.plus(agent("ann", "table", file="votes.csv", cla="vote", reg="days"))


def ann_with(**keys) -> Recipe:
    """The recipe with other keys of Ann's; None takes one away."""
    return ANN.but({f"agents.ann.{key}": value for key, value in keys.items()})


@pytest.fixture
def ann(workshop):
    """Her answer to every sample."""
    generator = np.random.default_rng(1)
    rows = workshop.table.height
    return workshop.table.select("id").with_columns(
        vote=pl.Series(generator.choice(["no", "yes"], rows)), days=pl.Series(generator.uniform(1, 9, rows).round(2))
    )


def classes(workshop) -> list:
    return [None if np.isnan(v) else int(v) for v in np.asarray(workshop.predictions("ann")["pred_cla"], dtype=float)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_na_is_a_class_where_it_is_one_and_missing_only_where_the_recipe_says(workshop, ann, suffix):
    path = workshop.folder / f"votes{suffix}"
    written = ann.with_columns(vote=pl.col("vote").replace("yes", "NA"))
    written = written.with_columns(vote=pl.when(pl.int_range(pl.len()) % 7 == 0).then(None).otherwise("vote"))
    (written.write_csv if suffix == ".csv" else written.write_parquet)(path)
    recipe = ANN if suffix == ".csv" else ann_with(file=path.name)
    refused(lambda: workshop.build(recipe), DataError, "'NA'", "is not a class", "--missing")
    workshop.build(recipe.but({"agents.ann.labels": {"NA": "yes"}}))
    said = [None if row % 7 == 0 else int(vote == "yes") for row, vote in enumerate(ann["vote"])]
    assert classes(workshop) == said
    workshop.build(recipe.but({"agents.ann.missing": ["NA"]}), out="fewer")
    failures = workshop.cache("fewer").predictions("ann", 0)["failure"].to_pylist()
    assert [f is None for f in failures] == [vote == 0 for vote in said[: len(failures)]]


def test_a_marker_among_numbers_is_a_missing_number(workshop, ann):
    days = [str(value) if row % 5 else ["NA", "", "null", "NaN"][row % 4] for row, value in enumerate(ann["days"])]
    ann.with_columns(days=pl.Series(days)).write_csv(workshop.folder / "votes.csv")
    report = workshop.build(ANN)
    assert report.unavailable["ann"] == sum(row % 5 == 0 for row in range(ann.height))
    marked = sum(row % 5 == 0 and row % 4 != 1 for row in range(ann.height))
    assert report.remarks == [f"ann: days: {marked} cells such as 'NA' among numbers are missing"]


FORMS = {
    "leading zeros lost": (lambda k: f"{k:04d}", lambda k: str(k), True),
    "a float": (lambda k: str(k), lambda k: f"{k}.0", True),
    "padded": (lambda k: str(k), lambda k: f"{k:04d}", True),
    "case": (lambda k: f"Case{k}", lambda k: f"case{k}", False),
    "suffix": (lambda k: f"img{k}.jpg", lambda k: f"img{k}", False),
    "folder": (lambda k: f"img{k}.jpg", lambda k: f"a/img{k}.jpg", False),
    "blank inside": (lambda k: f"case {k}", lambda k: f"case{k}", False),
}


@pytest.mark.parametrize("what", FORMS)
def test_ids_that_differ_in_form_alone_are_refused_with_a_pair(workshop, ann, what):
    ours, theirs, by_number = FORMS[what]
    table = workshop.table.with_columns(id=pl.Series([ours(k) for k in range(ann.height)]))
    table.write_parquet(workshop.folder / "ids.parquet")
    recipe = ANN.but({"dataset.path": "ids.parquet"})
    ann.with_columns(id=pl.Series([theirs(k) for k in range(ann.height)])).write_csv(workshop.folder / "votes.csv")
    first = next(k for k in range(ann.height) if ours(k) != theirs(k))
    for others in ("refuse", "drop"):
        told = recipe if others == "refuse" else recipe.but({"agents.ann.others": others})
        error = refused(lambda r=told: workshop.build(r), DataError, repr(ours(first)), repr(theirs(first)))
        assert ('ids = "number"' in error.hint) == by_number
        assert str(error.where).endswith(f"votes.csv, row {first + 2}")
    numbered = recipe.but({"agents.ann.ids": "number"})
    if by_number:
        workshop.build(numbered)
        assert classes(workshop) == (ann["vote"] == "yes").cast(int).to_list()
    else:
        refused(lambda: workshop.build(numbered), DataError, "not in the dataset")


def test_two_samples_of_one_number_cannot_be_told_apart_by_it(workshop, ann):
    names = ["1", "01", *(f"p{k}" for k in range(ann.height - 2))]
    workshop.table.with_columns(id=pl.Series(names)).write_parquet(workshop.folder / "ids.parquet")
    ann.with_columns(id=pl.Series(names)).write_csv(workshop.folder / "votes.csv")
    recipe = ANN.but({"dataset.path": "ids.parquet"})
    workshop.build(recipe)
    refused(lambda: workshop.build(recipe.but({"agents.ann.ids": "number"})), DataError, "'1' and '01'")


def test_files_of_one_name_in_two_folders_are_two_samples(workshop, ann):
    names = [f"train/{k}.jpg" for k in range(ann.height)]
    workshop.table.with_columns(id=pl.Series(names)).write_parquet(workshop.folder / "ids.parquet")
    more = ann.with_columns(id=pl.Series([f"test/{k}.jpg" for k in range(ann.height)]))
    pl.concat([ann.with_columns(id=pl.Series(names)), more]).write_csv(workshop.folder / "votes.csv")
    workshop.build(ann_with(others="drop").but({"dataset.path": "ids.parquet"}))
    assert classes(workshop) == (ann["vote"] == "yes").cast(int).to_list()


def test_a_canonical_id_has_no_blanks_case_or_zeros():
    assert canonical(" Case\u00a0007.0 ") == canonical("case7") == "case7"


def twice(workshop, ann, votes: list[list[tuple]]) -> None:
    """Answers (vote, days, fee) of the first samples in several rows, of the others in one."""
    rows = [{"id": ann["id"][k], "vote": v, "days": d, "fee": f} for k, said in enumerate(votes) for v, d, f in said]
    rows += [{**row, "fee": 1.0} for row in ann[len(votes) :].iter_rows(named=True)]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(workshop.folder / "votes.csv")


VOTES = [
    [("no", 2.0, 1.0), ("yes", 4.0, 2.0), ("yes", 9.0, 4.0)],
    [("yes", 1.0, 1.0), ("no", 3.0, 1.0)],
    [(None, None, 7.0), ("yes", 5.0, 2.0)],  # nothing was said for the first fee
]
COUNTED = {
    "first": [("no", 2.0, 1.0), ("yes", 1.0, 1.0), ("yes", 5.0, 2.0)],
    "last": [("yes", 9.0, 4.0), ("no", 3.0, 1.0), ("yes", 5.0, 2.0)],
    "majority": [("yes", 5.0, 7.0), ("yes", 2.0, 2.0), ("yes", 5.0, 2.0)],  # a tie: the class that was first
}


@pytest.mark.parametrize("rule", COUNTED)
def test_which_of_several_answers_counts(workshop, ann, rule):
    twice(workshop, ann, VOTES)
    recipe = ann_with(paid="fee")
    refused(lambda: workshop.build(recipe), DataError, repr(ann["id"][0]), "row 3", "row 2", "repeats =")
    report = workshop.build(recipe.but({"agents.ann.repeats": rule}))
    assert any("4 rows are about a sample that has one already" in line for line in report.remarks)
    found = workshop.predictions("ann")
    for row, (vote, days, fee) in enumerate(COUNTED[rule]):
        assert found["pred_cla"][row] == ["no", "yes"].index(vote)
        assert found["pred_reg"][row] == np.float32(days)
        assert found["paid"][row] == fee
    assert classes(workshop)[3:] == (ann["vote"][3:] == "yes").cast(int).to_list()


def test_halves_of_an_answer_are_one_answer(workshop, ann):
    twice(workshop, ann, [[("no", None, 1.0), (None, 3.0, 1.0)], [("yes", 2.0, 1.0), ("yes", 2.0, 1.0)]])
    workshop.build(ANN)
    found = workshop.predictions("ann")
    assert (found["pred_cla"][:2].tolist(), found["pred_reg"][:2].tolist()) == ([0, 1], [3.0, 2.0])


def test_classes_have_no_mean(workshop, ann):
    twice(workshop, ann, VOTES)
    refused(lambda: workshop.build(ann_with(repeats="mean")), UsageError, "majority")


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rounded_probabilities_are_divided_by_their_sum_where_the_recipe_says(workshop, ann, scale):
    q = np.random.default_rng(2).dirichlet([1, 1], ann.height)
    rounded = np.round(q, 2) * scale + [0.01 * scale, 0]
    ann.with_columns(q=pl.Series(rounded[:, 0]), p=pl.Series(rounded[:, 1])).write_csv(workshop.folder / "votes.csv")
    recipe = ann_with(cla=None, prob=["q", "p"])
    refused(lambda: workshop.build(recipe), DataError, "normalise = true")
    workshop.build(recipe.but({"agents.ann.normalise": True}))
    expected = rounded / rounded.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(workshop.predictions("ann")["pred_prob"], expected, atol=1e-7)
    refused(lambda: workshop.build(ann_with(cla=None, prob="p", normalise=True)), UsageError, "`normalise`")


def test_json_nested_json_and_a_folder_are_read_as_tables(workshop, ann):
    rows = ann.to_dicts()
    nested = [{"id": row["id"], "answer": {"vote": row["vote"], "days": row["days"]}} for row in rows]
    folder = workshop.folder / "parts"
    folder.mkdir()
    for name, content in (("a.json", {"model": "m", "records": nested[:100]}), ("b.json", nested[100:])):
        (folder / name).write_text(json.dumps(content))
    recipe = ann_with(file="parts", cla="answer.vote", reg="answer.days")
    workshop.build(recipe)
    assert classes(workshop) == (ann["vote"] == "yes").cast(int).to_list()
    (folder / "b.json").write_text("[1, 2]")
    refused(lambda: workshop.build(recipe), DataError, "b.json", "list of objects")


def test_the_export_of_label_studio_is_a_row_for_each_annotation(workshop, ann):
    """As described at https://labelstud.io/guide/task_format; two people, one model, one skipped task."""

    def result(vote: str, days: float) -> list[dict]:
        return [
            {"from_name": "sick", "to_name": "text", "type": "choices", "value": {"choices": [vote]}},
            {"from_name": "stay", "to_name": "text", "type": "number", "value": {"number": days}},
        ]

    tasks, said = [], {1: [], "bob@x.org": [], "v2": []}
    others = itertools.cycle(["no", "yes", "yes"])
    for k, row in enumerate(ann.iter_rows(named=True)):
        bob, model = next(others), next(others)
        annotations = [
            {"completed_by": 1, "lead_time": 2.5, "was_cancelled": k % 4 == 0, "result": result(row["vote"], 2)},
            {"completed_by": {"id": 2, "email": "bob@x.org"}, "lead_time": 1, "result": result(bob, 3.5)},
        ]
        predictions = [{"model_version": "v2", "score": 0.9, "result": result(model, 1)}]
        data = {"case": row["id"], "text": "…"}
        tasks.append({"id": 1000 + k, "data": data, "annotations": annotations, "predictions": predictions})
        said[1].append(None if k % 4 == 0 else int(row["vote"] == "yes"))
        said["bob@x.org"].append(int(bob == "yes"))
        said["v2"].append(int(model == "yes"))
    (workshop.folder / "export.json").write_text(json.dumps(tasks))
    columns = {"cla": "sick", "reg": "stay", "seconds": "seconds"}
    workshop.build(RECIPE.plus({"kind": "table", "file": "export.json", "id": "case", "each": "annotator", **columns}))
    cache = workshop.cache()
    for name, votes in said.items():
        found = pl.concat([pl.from_arrow(cache.predictions(str(name), k)) for k in range(cache.record.num_chunks)])
        assert found["pred_cla"].to_list() == votes
    assert cache.agent("1").seconds == 2.5
