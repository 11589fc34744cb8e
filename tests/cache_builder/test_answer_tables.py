"""Answers in files of their own: who answered what, who did not, and what is wrong in which row."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from conftest import refused
from recipes import RECIPE

from l2d.data.cache.status import status_rows
from l2d.data.errors import DataError, FingerprintMismatch, UsageError

LONG = """
[[agents]]
kind = "table"
file = "votes.csv"
each = "reader"
cla = "vote"
reg = "days"
paid = "fee"
price = "paid"
"""
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


def write(workshop, frame: pl.DataFrame, suffix: str) -> str:
    """The votes as a file of that kind; the entry that reads it."""
    path = workshop.folder / f"votes{suffix}"
    if suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator=";" if suffix == ".semicolon.csv" else ",")
    return LONG.replace("votes.csv", path.name)


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
    report = workshop.build(RECIPE + write(workshop, frame, suffix))
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
    workshop.build(RECIPE + write(workshop, frame, ".csv"))
    before = {name: found(workshop, name) for name in READERS}
    wide = frame.pivot("reader", index="id", values=["vote", "days", "fee"])
    wide.write_csv(workshop.folder / "votes.csv")
    entry = LONG.replace('"reader"', json.dumps(list(READERS), ensure_ascii=False))
    entry = entry.replace('"vote"', '"vote_{}"').replace('"days"', '"days_{}"').replace('"fee"', '"fee_{}"')
    assert set(workshop.build(RECIPE + entry).asked.values()) == {0}  # the same answers: nobody is asked again
    workshop.build(RECIPE + entry, out="wide")
    assert {name: found(workshop, name) for name in before} == before


def test_a_new_annotator_is_asked_alone_and_a_changed_answer_is_noticed(workshop):
    frame = votes(workshop)
    text = RECIPE + write(workshop, frame, ".csv")
    workshop.build(text)
    more = pl.concat([frame, frame.filter(pl.col("reader") == "Ann").with_columns(reader=pl.lit("Zoe"))])
    write(workshop, more, ".csv")
    report = workshop.build(text)
    assert {name for name, samples in report.asked.items() if samples} == {"Zoe"}
    changed = more.with_columns(days=pl.when(pl.col("reader") == "Zoe").then(pl.col("days") + 1).otherwise("days"))
    write(workshop, changed, ".csv")
    with pytest.raises(FingerprintMismatch, match="agent 'Zoe'"):
        workshop.build(text)
    report = workshop.build(text, overwrite=True)
    assert {name for name, samples in report.asked.items() if samples} == {"Zoe"}


def test_probabilities_by_one_column_or_by_one_a_class(workshop):
    risk = workshop.table.select("id", p="risk_good", q=1 - pl.col("risk_good"), days="stay_good")
    risk.write_csv(workshop.folder / "risk.csv")
    one = '\n[[agents]]\nname = "one"\nkind = "table"\nfile = "risk.csv"\nprob = "p"\nreg = "days"\n'
    two = one.replace('"one"', '"two"').replace('"p"', '["q", "p"]')
    workshop.build(RECIPE + one + two)
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
    text = RECIPE + LONG.replace('each = "reader"', 'name = "ann"')

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
        error = refused(lambda: workshop.build(text), DataError, "'ann'", *words)
        assert str(error.where) == where
    wrong(17, vote="yse")
    workshop.build(text.replace('cla = "vote"', 'cla = "vote"\nlabels = { yse = "yes" }'))
    assert workshop.predictions("ann")["pred_cla"][workshop.table["id"].to_list().index(frame["id"][17])] == 1
    wrong(17, id="stranger")
    report = workshop.build(text + 'others = "drop"\n', out="fewer")
    assert report.unavailable["ann"] == workshop.table.height - len(frame.drop_nulls()) + (
        frame["days"][17] is not None
    )


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("votes.csv", "nothing.csv", DataError, ["no such file"]),
        ("votes.csv", "recipe.toml", DataError, [".parquet, .csv, .tsv, .jsonl"]),
        ('"reader"', '"readers"', DataError, ["did you mean 'reader'"]),
        ('"vote"', '"voted"', DataError, ["did you mean 'vote'", "id, reader, vote, days, fee"]),
        ('cla = "vote"', "", UsageError, ["need cla"]),
        ('each = "reader"', 'name = "x"\nannotator = "reader"', DataError, ["never 'x'", "Ann, Dr. Bob"]),
        ('each = "reader"', 'name = "x"\nid = "id"', DataError, ["answered by a second row", "`annotator`"]),
        ('each = "reader"', 'each = "reader"\nname = "x"', UsageError, ["every annotator"]),
        ('each = "reader"', 'each = ["Ann", "Bob"]', UsageError, ["the same column"]),
        ('each = "reader"', "each = 3", UsageError, ["each"]),
        ('each = "reader"', 'each = "reader"\nwhom = "x"', UsageError, ["unknown key 'whom'", "did you mean 'who'"]),
        ('paid = "fee"', "", UsageError, ["price = 'paid'", "'Ann'"]),
    ],
)
def test_a_recipe_that_does_not_fit_its_file_is_refused(workshop, old, new, kind, words):
    entry = write(workshop, votes(workshop), ".csv")
    refused(lambda: workshop.build(RECIPE + entry.replace(old, new)), kind, *words)


def test_names_stay_as_they_are_written(workshop):
    odd = {"Ann": "..", "Dr. Bob": "meta/llama 70b?*[x]", "Ünal/2": "張醫師" * 30}
    frame = votes(workshop).with_columns(pl.col("reader").replace(odd))
    workshop.build(RECIPE + write(workshop, frame, ".csv"))
    assert {agent.name for agent in workshop.cache().agents[3:]} == set(odd.values())
    for name in odd.values():
        assert found(workshop, name) == expected(workshop, frame, name)
    assert workshop.cache().verify()
    folders = [folder.name for folder in (workshop.folder / "cache/agents").iterdir()]
    assert len(folders) == 6
    assert max(len(name.encode()) for name in folders) < 200


@pytest.mark.parametrize("name", ["", " Ann", "An\\u0000n", "An\\nn", "x" * 121])
def test_a_name_that_cannot_be_shown_is_refused(workshop, name):
    entry = write(workshop, votes(workshop), ".csv").replace(
        'each = "reader"', f'annotator = "reader"\nname = "{name}"'
    )
    refused(lambda: workshop.build(RECIPE + entry), UsageError, "name")
