"""Answers in files of their own: who answered what, who did not, and what is wrong in which row."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import refused
from recipes import RECIPE, Values, agent, changed

from l2d.data.cache.status import status_rows
from l2d.data.errors import DataError, FingerprintMismatch, UsageError

LONG = {
    "kind": "table",
    "file": "votes.csv",
    "each": "reader",
    "cla": "vote",
    "reg": "days",
    "paid": "fee",
    "price": "paid",
}
READERS = {"Ann": 0.9, "Dr. Bob": 1.0, "Ünal/2": 0.3}


def votes(workshop, seed: int = 0) -> pl.DataFrame:
    """Who voted what about whom, in any order; some cells empty."""
    generator = np.random.default_rng(seed)
    rows = []
    for reader, share in READERS.items():
        for sample in workshop.table["id"]:
            if generator.random() < share:
                vote = ["no", "yes"][generator.integers(2)]
                days = None if generator.random() < 0.1 else round(float(generator.uniform(1, 9)), 2)
                rows.append({"id": sample, "reader": reader, "vote": vote, "days": days, "fee": float(len(rows) % 3)})
    return pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=1)


def write(workshop, frame: pl.DataFrame, suffix: str) -> Values:
    """The votes as a file of that kind; the entry that reads it."""
    path = workshop.folder / f"votes{suffix}"
    if suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator=";" if suffix == ".semicolon.csv" else ",")
    return {**LONG, "file": path.name}


def expected(workshop, frame: pl.DataFrame, reader: str) -> list[tuple]:
    """What a dictionary makes of the votes: (class, days, fee) of each sample, None where either answer lacks."""
    said = {row["id"]: row for row in frame.iter_rows(named=True) if row["reader"] == reader}
    rows = (said.get(sample) for sample in workshop.table["id"])
    return [
        None if row is None or row["days"] is None else (int(row["vote"] == "yes"), np.float32(row["days"]), row["fee"])
        for row in rows
    ]


def found(workshop, agent: str) -> list[tuple]:
    cache = workshop.cache()
    frame = pl.concat([pl.from_arrow(cache.predictions(agent, k)) for k in range(cache.record.num_chunks)])
    assert frame["sample_id"].to_list() == workshop.table["id"].to_list()
    rows = zip(frame["pred_cla"], frame["pred_reg"], frame["paid"], strict=True)
    return [None if row[0] is None else row for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".semicolon.csv", ".jsonl", ".parquet"])
def test_each_annotator_of_a_long_file_is_an_agent(workshop, suffix):
    frame = votes(workshop)
    report = workshop.build(RECIPE.plus(write(workshop, frame, suffix)))
    names = list(READERS)
    assert [agent.name for agent in workshop.cache().agents][3:] == names
    for reader, name in zip(READERS, names, strict=True):
        said = expected(workshop, frame, reader)
        assert found(workshop, name) == said
        assert report.unavailable[name] == said.count(None) > 0
        assert report.failed[name] == 0
        record = workshop.cache().agent(name)
        fees = [row[2] for row in said if row is not None]
        assert record.price == record.paid == pytest.approx(sum(fees) / len(fees))
        assert record.partial
        row = next(row for row in status_rows(workshop.cache()) if row["agent"] == name)
        assert (row["unavailable"], row["failed"]) == (said.count(None), 0)
    workshop.cache().verify()


def test_the_same_votes_in_a_wide_file_are_the_same_answers(workshop):
    frame = votes(workshop)
    workshop.build(RECIPE.plus(write(workshop, frame, ".csv")))
    before = {name: found(workshop, name) for name in READERS}
    wide = frame.pivot("reader", index="id", values=["vote", "days", "fee"])
    wide.write_csv(workshop.folder / "votes.csv")
    entry = changed(LONG, {"each": list(READERS), "cla": "vote_{}", "reg": "days_{}", "paid": "fee_{}"})
    assert set(workshop.build(RECIPE.plus(entry)).asked.values()) == {0}  # the same answers: nobody is asked again
    workshop.build(RECIPE.plus(entry), out="wide")
    assert {name: found(workshop, name) for name in before} == before


def test_a_new_annotator_is_asked_alone_and_a_changed_answer_is_noticed(workshop):
    frame = votes(workshop)
    recipe = RECIPE.plus(write(workshop, frame, ".csv"))
    workshop.build(recipe)
    more = pl.concat([frame, frame.filter(pl.col("reader") == "Ann").with_columns(reader=pl.lit("Zoe"))])
    write(workshop, more, ".csv")
    report = workshop.build(recipe)
    assert {name for name, samples in report.asked.items() if samples} == {"Zoe"}
    other = more.with_columns(days=pl.when(pl.col("reader") == "Zoe").then(pl.col("days") + 1).otherwise("days"))
    write(workshop, other, ".csv")
    with pytest.raises(FingerprintMismatch, match="agent 'Zoe'"):
        workshop.build(recipe)
    report = workshop.build(recipe, overwrite=True)
    assert {name for name, samples in report.asked.items() if samples} == {"Zoe"}


def test_probabilities_by_one_column_or_by_one_a_class(workshop):
    risk = workshop.table.select("id", p="risk_good", q=1 - pl.col("risk_good"), days="stay_good")
    risk.write_csv(workshop.folder / "risk.csv")
    one = agent("one", "table", file="risk.csv", prob="p", reg="days")
    workshop.build(RECIPE.plus(one, changed(one, {"name": "two", "prob": ["q", "p"]})))
    for name in ("one", "two"):
        for column, values in workshop.predictions("expert").items():  # a `column` agent on the same numbers
            np.testing.assert_array_equal(workshop.predictions(name)[column], values)
        assert not workshop.cache().agent(name).partial


def line(workshop, text: str) -> int:
    """Row of the CSV that a text stands in, the header being row 1."""
    return 1 + next(k for k, row in enumerate((workshop.folder / "votes.csv").read_text().splitlines()) if text in row)


def test_what_is_wrong_is_named_with_file_row_and_value(workshop):
    frame = votes(workshop).filter(pl.col("reader") == "Ann").drop("reader")
    path = workshop.folder / "votes.csv"
    recipe = RECIPE.plus(changed(LONG, {"each": None, "name": "ann"}))

    def wrong(row: int, **values) -> str:
        cells = {name: pl.Series([*column[:row], values.get(name, column[row]), *column[row + 1 :]], dtype=pl.String)
                 for name, column in frame.cast(pl.String).to_dict(as_series=False).items()}  # fmt: skip
        pl.DataFrame(cells).write_csv(path)
        return f"{path}, row {row + 2}"

    cases = [
        ({"vote": "yse"}, ["'yse'", "did you mean 'yes'", "no, yes"]),
        ({"days": "ten"}, ["days is 'ten'"]),
        ({"days": "inf"}, ["days is 'inf'"]),
        ({"id": "stranger"}, ["'stranger'", "not in the dataset (1 of", "p0000"]),
        ({"id": frame["id"][3]}, [frame["id"][3], "row 5"]),
        ({"id": None}, ["id is empty"]),
    ]
    for values, words in cases:
        where = wrong(17, **values)
        error = refused(lambda: workshop.build(recipe), DataError, "'ann'", *words)
        assert str(error.where) == where
    wrong(17, vote="yse")
    workshop.build(recipe.but({"agents.ann.labels": {"yse": "yes"}}))
    assert workshop.predictions("ann")["pred_cla"][workshop.table["id"].to_list().index(frame["id"][17])] == 1
    wrong(17, id="stranger")
    report = workshop.build(recipe.but({"agents.ann.others": "drop"}), out="fewer")
    assert report.unavailable["ann"] == workshop.table.height - len(frame.drop_nulls()) + (
        frame["days"][17] is not None
    )


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"file": "nothing.csv"}, DataError, ["no such file"]),
        ({"file": "recipe.toml"}, DataError, [".parquet, .csv, .tsv, .jsonl"]),
        ({"each": "readers"}, DataError, ["did you mean 'reader'"]),
        ({"cla": "voted"}, DataError, ["did you mean 'vote'", "id, reader, vote, days, fee"]),
        ({"cla": None}, UsageError, ["need cla"]),
        ({"each": None, "name": "x", "annotator": "reader"}, DataError, ["never 'x'", "Ann, Dr. Bob"]),
        ({"each": None, "name": "x", "id": "id"}, DataError, ["answered by a second row", "`annotator`"]),
        ({"name": "x"}, UsageError, ["every annotator"]),
        ({"each": ["Ann", "Bob"]}, UsageError, ["the same column"]),
        ({"each": 3}, UsageError, ["each"]),
        ({"whom": "x"}, UsageError, ["unknown key 'whom'", "did you mean 'who'"]),
        ({"paid": None}, UsageError, ["price = 'paid'", "'Ann'"]),
    ],
)
def test_a_recipe_that_does_not_fit_its_file_is_refused(workshop, changes, kind, words):
    entry = write(workshop, votes(workshop), ".csv")
    refused(lambda: workshop.build(RECIPE.plus(changed(entry, changes))), kind, *words)


def test_names_stay_as_they_are_written(workshop):
    odd = {"Ann": "..", "Dr. Bob": "meta/llama 70b?*[x]", "Ünal/2": "張醫師" * 30}
    frame = votes(workshop).with_columns(pl.col("reader").replace(odd))
    workshop.build(RECIPE.plus(write(workshop, frame, ".csv")))
    assert {agent.name for agent in workshop.cache().agents[3:]} == set(odd.values())
    for name in odd.values():
        assert found(workshop, name) == expected(workshop, frame, name)
    assert workshop.cache().verify()
    folders = [folder.name for folder in (workshop.folder / "cache/agents").iterdir()]
    assert len(folders) == 6
    assert max(len(name.encode()) for name in folders) < 200


@pytest.mark.parametrize("name", ["", " Ann", "An\u0000n", "An\nn", "x" * 121])
def test_a_name_that_cannot_be_shown_is_refused(workshop, name):
    entry = changed(write(workshop, votes(workshop), ".csv"), {"each": None, "annotator": "reader", "name": name})
    refused(lambda: workshop.build(RECIPE.plus(entry)), UsageError, "name")
