"""`l2d import`: from tables that people have to a cache, a rejector and a report."""

from __future__ import annotations

import csv
import sys
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused

from l2d import cli
from l2d.cache_builder.agents import _answer_file
from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.cache_builder.builder import build
from l2d.cache_builder.importing.draft import write_recipe
from l2d.cache_builder.importing.predictions import draft_predictions
from l2d.cache_builder.importing.scores import draft_scores
from l2d.cache_builder.importing.source import Source
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.data.sources import text_table

READERS = ("Ann", "Bob", "Cleo")


@pytest.fixture
def tables(tmp_path):
    """Cases with leading zeros in their ids, and what three readers make of some of them."""
    generator = np.random.default_rng(0)
    with open(tmp_path / "features.csv", "w", newline="") as features, open(tmp_path / "votes.csv", "w") as votes:
        cases, answers = csv.writer(features), csv.writer(votes)
        cases.writerow(["case no", "age", "Ward", "constant", "note", "seen", "ill", "days"])
        answers.writerow(["case no", "reader", "ill", "days"])
        for row in range(150):
            age = int(generator.integers(20, 90))
            ill, days = ("yes" if age + generator.normal(0, 15) > 55 else "no"), round(age / 9, 2)
            facts = [age if row % 11 else "", "abc"[row % 3], 1, f"text {row}", f"2024-01-{row % 28 + 1:02d}"]
            cases.writerow([f"{row:04d}", *facts, ill, days])
            for reader in READERS[: 1 + row % 3]:
                vote = ill if generator.random() < 0.9 else "no"
                answers.writerow([f"{row:04d}", reader, vote, days + 1 if row % 7 else ""])
    return tmp_path


def source(folder: Path, **keys) -> Source:
    return Source(folder / "features.csv", folder / "votes.csv", "case no", **keys)


def imported(folder: Path, told: list[str], **keys) -> CostCache:
    """The cache of an import of predictions."""
    draft = draft_predictions(source(folder, **keys), folder, "my.cache", told.append)
    draft.write(folder / "my.cache.toml", overwrite=True)
    build(load_recipe(str(folder / "my.cache.toml")), folder / "my.cache", device="cpu", overwrite=True)
    return CostCache(folder / "my.cache")


def test_predictions_of_three_readers(tables):
    told: list[str] = []
    cache = imported(tables, told, target="ill", target_reg="days")
    assert [agent.name for agent in cache.agents] == ["model", *READERS]
    assert [agent.partial for agent in cache.agents] == [False, True, True, True]
    recipe = tomllib.loads((tables / "my.cache.toml").read_text())
    assert recipe["dataset"]["features"] == ["age", "Ward", "seen"]  # the others are constant, free text or targets
    assert any("note" in line and "text of" in line for line in told)
    assert any("constant" in line and "one value" in line for line in told)
    votes = pl.read_csv(tables / "votes.csv", schema_overrides={"case no": pl.String})
    truth = dict(
        pl.read_csv(tables / "features.csv", schema_overrides={"case no": pl.String})
        .select("case no", "ill")
        .iter_rows()
    )
    for reader in READERS:
        found = pl.concat([pl.from_arrow(cache.costs(reader, k)) for k in range(cache.record.num_chunks)])
        said = {r["case no"]: r for r in votes.iter_rows(named=True) if r["reader"] == reader and r["days"] is not None}
        expected = [float(said[case]["ill"] != truth[case]) if case in said else None for case in found["sample_id"]]
        assert found["cost_cla"].to_list() == expected


def test_one_of_the_annotators_may_be_the_model(tables):
    cache = imported(tables, [], target="ill", model="Bob")
    assert [agent.name for agent in cache.agents] == ["Bob", "Ann", "Cleo"]
    error = refused(
        lambda: imported(tables, [], target="ill", model="Bop"), UsageError, "--model Bop", "did you mean 'Bob'"
    )
    assert "Ann" in error.hint


def test_a_wide_table_has_an_agent_a_column(tables):
    votes = pl.read_csv(tables / "votes.csv", schema_overrides={"case no": pl.String})
    cache = imported(tables, [], target="ill")
    before = {name: [cache.predictions(name, k) for k in range(cache.record.num_chunks)] for name in READERS}
    votes.pivot("reader", index="case no", values="ill").write_csv(tables / "votes.csv")
    told: list[str] = []
    cache = imported(tables, told, target="ill")
    assert any("3 agents, a column each: Ann, Bob, Cleo" in line for line in told)
    for name, parts in before.items():
        for k, part in enumerate(parts):
            assert cache.predictions(name, k).equals(part)
    wide = votes.pivot("reader", index="case no", values=["ill", "days"])
    wide.write_csv(tables / "votes.csv")
    cache = imported(tables, [], target="ill", target_reg="days", cla="ill_{}", reg="days_{}")
    assert [agent.name for agent in cache.agents] == ["model", *READERS]


@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        ({}, UsageError, ["--target COLUMN"]),
        ({"target": "il"}, UsageError, ["--target il", "did you mean 'ill'"]),
        ({"target": "ill", "annotator": "readers"}, UsageError, ["--annotator readers", "did you mean 'reader'"]),
        ({"target": "ill", "cla": "vote"}, UsageError, ["--cla vote", "ill"]),
        ({"target": "age"}, DataError, ["--cla", "age"]),
        ({"target": "days"}, UsageError, ["--target days is a number", "--target-reg days"]),
        ({"target": "ill", "columns": ["agee"]}, DataError, ["agee"]),
    ],
)
def test_what_cannot_be_found_out_is_asked(tables, keys, kind, words):
    refused(lambda: imported(tables, [], **keys), kind, *words)


def test_a_recipe_that_was_edited_is_not_written_over(tmp_path):
    path = tmp_path / "x.toml"
    write_recipe("a = 1\n", path)
    write_recipe("a = 2\n", path)  # nobody has edited it
    assert path.read_text().endswith("a = 2\n")
    path.write_text(path.read_text().replace("a = 2", "a = 3"))
    refused(lambda: write_recipe("a = 4\n", path), UsageError, "edited", "x.toml")
    assert path.read_text().endswith("a = 3\n")
    write_recipe("a = 4\n", path, overwrite=True)
    assert path.read_text().endswith("a = 4\n")


ROUTERBENCH = (
    "sample_id,prompt,eval_name,small/7b,small/7b|model_response,small/7b|total_cost,"
    "big,big|model_response,big|total_cost,oracle_model_to_route_to\n"
)


def scores(source: Source, folder: Path, out: str, told: list[str]) -> None:
    draft_scores(source, folder, out, told.append).write(folder / f"{out}.toml", overwrite=True)


def test_scores_of_routerbench_and_of_a_long_table_are_the_same(tmp_path):
    generator, rows = np.random.default_rng(0), []
    for row in range(120):
        small, big = generator.random() < 0.5, generator.random() < 0.8
        rows.append(
            f"mmlu.{row},what is {row}?,{['mmlu', 'arc'][row % 2]},{float(small)},x,{0.001 * (1 + row % 3)},"
            f"{float(big)},y,{0.02 * (1 + row % 2)},big\n"
        )
    wide = tmp_path / "routerbench.csv"
    wide.write_text(ROUTERBENCH + "".join(rows))
    told: list[str] = []
    scores(Source(wide, wide, "sample_id", columns=["eval_name"]), tmp_path, "wide", told)
    build(load_recipe(str(tmp_path / "wide.toml")), tmp_path / "wide", device="cpu")
    cache = CostCache(tmp_path / "wide")
    assert [agent.name for agent in cache.agents] == ["small/7b", "big"]  # as in the file; none of them is free
    assert [agent.price == 0 for agent in cache.agents] == [False, False]
    assert "no agent is the model" in " ".join(told)
    frame = pl.read_csv(wide)
    assert cache.agent("big").price == pytest.approx(frame["big|total_cost"].mean())
    for name, column in (("small/7b", "small/7b"), ("big", "big")):
        found = pl.concat([pl.from_arrow(cache.costs(name, k)) for k in range(cache.record.num_chunks)])
        assert found["cost_reg"].to_list() == (1 - frame[column]).to_list()
    paid = {"small/7b": "small/7b|total_cost", "big": "big|total_cost"}
    long = pl.concat(
        frame.select("sample_id", "eval_name", model_name=pl.lit(name), performance=pl.col(name), cost=pl.col(column))
        for name, column in paid.items()
    )
    long.write_csv(tmp_path / "long.csv")
    frame.select("sample_id", "eval_name").write_csv(tmp_path / "prompts.csv")
    again = Source(tmp_path / "prompts.csv", tmp_path / "long.csv", "sample_id", columns=["eval_name"])
    scores(again, tmp_path, "long", told)
    report = build(load_recipe(str(tmp_path / "long.toml")), tmp_path / "wide", device="cpu", overwrite=True)
    assert set(report.asked.values()) <= {0, 120}
    assert cache.agent("big").price == CostCache(tmp_path / "wide").agent("big").price
    wide.write_text((ROUTERBENCH + "".join(rows)).replace(",1.0,y", ",85,y", 1))
    refused(
        lambda: scores(Source(wide, wide, "sample_id", agents=["small/7b", "big"]), tmp_path, "x", told),
        DataError,
        "85",
        "0 to 1",
        "row",
    )


@pytest.mark.slow
def test_three_commands_from_two_files_to_a_report(tables, l2d, monkeypatch):
    monkeypatch.chdir(tables)
    lines = (tables / "votes.csv").read_text().splitlines()
    row = next(k for k, line in enumerate(lines) if line.startswith("0010,Ann,"))
    lines[row] = "0010,Ann,yse," + lines[row].rpartition(",")[2]
    (tables / "votes.csv").write_text("\n".join(lines) + "\n")
    command = ["import", "predictions", "features.csv", "votes.csv", "--id", "case no", "--target", "ill"]
    command += ["--out", "my.cache"]
    code, _, told = l2d(*command)
    assert code == 3
    assert all(word in told for word in ("'Ann'", "'yse'", f"votes.csv, row {row + 1}", "--label yse=yes"))
    code, _, told = l2d(*command, "--label", "yse=yes")
    assert code == 0, told
    assert "no answer: Bob on 50 samples, Cleo on 100 samples" in told
    code, _, told = l2d("sweep", "my.cache", "--out", "my.runs", "--seeds", "1", "--epochs", "3")
    assert code == 0, told
    code, _, told = l2d("report", "my.runs", "--out", "report.html")
    assert code == 0, told
    assert "Cleo" in (tables / "report.html").read_text()


def test_probabilities_in_a_column_for_each_class_are_found_by_the_classes_names(tables):
    rows = pl.read_csv(tables / "votes.csv", schema_overrides={"case no": pl.String}).drop("ill", "days")
    chance = np.random.default_rng(1).random(rows.height)
    rows.with_columns(p_yes=pl.Series(chance), p_no=pl.Series(1 - chance)).write_csv(tables / "votes.csv")
    told: list[str] = []
    cache = imported(tables, told, target="ill")
    assert any("prob in 'p_no', 'p_yes'" in line for line in told)
    ann = rows.with_row_index().filter(pl.col("reader") == "Ann")
    found = dict(
        zip(
            cache.predictions("Ann", 0)["sample_id"].to_pylist(),
            cache.predictions("Ann", 0)["pred_prob"].to_pylist(),
            strict=True,
        )
    )
    for index, case in zip(ann["index"], ann["case no"], strict=True):
        assert found[case] == pytest.approx([1 - chance[index], chance[index]], abs=1e-6)
    given = rows.with_columns(a=pl.Series(chance.round(2) * 100), b=pl.Series((1 - chance).round(2) * 100))
    given.write_csv(tables / "votes.csv")
    refused(lambda: imported(tables, [], target="ill", prob=["b", "a"]), DataError, "normalise = true")
    cache = imported(tables, [], target="ill", prob=["b", "a"], normalise=True)
    assert [agent.name for agent in cache.agents] == ["model", *READERS]


def test_what_has_the_classes_of_the_target_is_not_a_feature(tables):
    frame = pl.read_csv(tables / "features.csv", schema_overrides={"case no": pl.String})
    grade = pl.Series([f"g{row % 4}" for row in range(frame.height)])
    frame.with_columns(grade=grade, agreed=grade.shuffle(seed=0), first_reader=pl.Series(READERS * 50)).write_csv(
        tables / "features.csv"
    )
    pl.DataFrame({"case no": frame["case no"], "reader": "Ann", "grade": grade}).write_csv(tables / "votes.csv")
    told: list[str] = []
    draft = draft_predictions(source(tables, target="grade", columns=[]), tables, "x", told.append)
    features = tomllib.loads(draft.recipe)["dataset"]["features"]
    assert "agreed" not in features
    assert any("agreed" in line and "may be answers" in line for line in told)
    draft = draft_predictions(source(tables, target="grade", columns=["agreed", "age"]), tables, "x", told.append)
    assert tomllib.loads(draft.recipe)["dataset"]["features"] == ["agreed", "age"]
    assert "taken as you say" in told[-3] + told[-2] + told[-1]


def test_each_file_is_read_once_and_called_as_the_recipe_calls_it(tables, monkeypatch):
    """Import and recipe write its path in two ways; a row is named by that of the recipe, which can be edited."""
    read: list[Path] = []
    by_polars, read_parts = text_table._by_polars, _answer_file.read_parts
    monkeypatch.setattr(text_table, "_by_polars", lambda path, *given: read.append(path) or by_polars(path, *given))
    monkeypatch.setattr(_answer_file, "read_parts", lambda path: read.append(path) or read_parts(path))
    monkeypatch.chdir(tables)
    here = Source(Path("features.csv"), Path("votes.csv"), "case no", target="ill", model=READERS[0])
    draft_predictions(here, Path(), "my.cache", print).write(tables / "my.cache.toml")
    build(load_recipe(str(tables / "my.cache.toml")), tables / "my.cache", device="cpu")
    assert read == [Path("votes.csv"), Path("features.csv")]
    votes = pl.read_csv("votes.csv", infer_schema=False)
    votes.with_columns(ill=pl.when(pl.int_range(pl.len()) == 50).then(pl.lit("odd")).otherwise("ill")).write_csv(
        "votes.csv"
    )
    AnswerFile(Path("votes.csv"))
    with pytest.raises(DataError, match=rf"where: {tables}/votes\.csv, row 52"):
        build(load_recipe(str(tables / "my.cache.toml")), tables / "other.cache", device="cpu")


def test_a_dry_run_prints_the_recipe_and_writes_nothing(tables, monkeypatch, capfd):
    monkeypatch.chdir(tables)
    before = sorted(tables.iterdir())
    command = ["l2d", "import", "predictions", "features.csv", "votes.csv", "--id", "case no", "--target", "ill"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", "my.cache", "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, told = capfd.readouterr()
    assert not stopped.value.code
    assert tomllib.loads(out)["agents"][1]["each"] == "reader"
    assert "3 agents in the column 'reader'" in told
    assert sorted(tables.iterdir()) == before


def test_a_text_that_the_rejector_reads_is_no_agent_of_a_file_that_has_all(tmp_path):
    lines = ["id,topic,question,truth,small,large"]
    lines += [f"{k},{'ab'[k % 2]},what of {k}?,it is {k},it is {k},so" for k in range(12)]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    file, told = tmp_path / "all.csv", []
    asked = Source(file, file, "id", target_text="truth", text=["question"], columns=["topic"], model="small")
    draft = draft_predictions(asked, tmp_path, "my.cache", told.append)
    recipe = tomllib.loads(draft.recipe)
    assert [agent["name"] for agent in recipe["agents"]] == ["small", "large"]
    assert not [line for line in told if "taken as you say" in line]
