"""A table as people keep it, through the whole command line: what is read when building is read so when routing."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytestmark = pytest.mark.slow


def rows(count: int = 200) -> pl.DataFrame:
    """What the table means, one column of each kind."""
    generator = np.random.default_rng(0)
    weight = generator.normal(70, 12, count).round(2)
    start = [date(2024, 1, 1) + timedelta(days=int(day)) for day in generator.integers(0, 300, count)]
    stay = generator.integers(1, 20, count)
    lab = [None if gap else value for gap, value in zip(generator.random(count) < 0.2, weight.round(1), strict=True)]
    ill = (weight + generator.normal(0, 4, count) > 70).astype(int)
    return pl.DataFrame(
        {
            "id": [f"{k:04d}" for k in range(count)],
            "weight": weight,
            "income": generator.integers(800, 90_000, count),
            "lab": lab,
            "region": generator.choice(["EU", "NA"], count),
            "admitted": start,
            "discharged": [day + timedelta(days=int(days)) for day, days in zip(start, stay, strict=True)],
            "emb": generator.normal(size=(count, 3)).round(4).tolist(),
            "split": [("training", "dev", "test", "training")[k % 4] for k in range(count)],
            "ill": np.where(ill == 1, "yes", "no"),
            "Anna": np.where((ill == 1) | (stay > 10), "yes", "no"),
            "Bob": np.where((ill == 1) & (stay > 10), "yes", "no"),
        },
        strict=False,
    )


def as_people_write(table: pl.DataFrame) -> str:
    """Semicolons, decimal commas, thousands with points, NA for a missing number, a list in brackets, a row index."""
    lines = [";" + ";".join(table.columns)]
    for number, row in enumerate(table.iter_rows(named=True)):
        cells = {
            **row,
            "weight": f"{row['weight']}".replace(".", ","),
            "income": f"{row['income']:,}".replace(",", "."),
            "lab": "NA" if row["lab"] is None else f" {row['lab']}".replace(".", ","),
            "emb": json.dumps(row["emb"]),
        }
        lines.append(f"{number};" + ";".join(str(cell) for cell in cells.values()))
    return "\n".join(lines) + "\n"


RECIPE = """
[dataset]
path = "cases.csv"
id = "id"
target_cla = "ill"
target_reg = "discharged - admitted"
features = ["weight", "income", "lab", "region", "admitted", "emb"]
split = { column = "split" }

[costs.cla]
kind = "zero_one"

[[agents]]
name = "Anna"
kind = "column"
cla = "Anna"

[[agents]]
name = "Bob"
kind = "column"
cla = "Bob"
"""


@pytest.fixture
def built(tmp_path, l2d) -> tuple[Path, str]:
    (tmp_path / "cases.csv").write_text(as_people_write(rows()), encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    code, _, err = l2d("build", tmp_path / "recipe.toml", "--out", tmp_path / "cache")
    assert code == 0, err
    return tmp_path, err


TOLD = [
    "features: 3 numbers; categories: region (2 values); in days: admitted; lists: emb (3 numbers)",
    "not features: (column 1) (row numbers), Anna, Bob",
    "column 1 has no name: it is called '(column 1)'",
    "cells are separated by ';'",
    "numbers written like 1.234,5: weight, income, lab",
    "missing numbers: lab ('NA' ",
    "read as dates: admitted, discharged",
    "splits: 'dev' is validation, 'training' is train",
]


def test_what_became_of_the_columns_is_told_by_build_and_again_by_status(built, l2d):
    folder, told = built
    assert [line for line in TOLD if line not in told] == []
    code, _, err = l2d("status", folder / "cache")
    assert code == 0
    assert [line for line in TOLD if line not in err] == []


def test_the_cache_holds_what_the_table_means(built):
    folder, _ = built
    table = rows()
    samples = pl.concat([pl.read_parquet(part) for part in sorted((folder / "cache/samples").glob("*.parquet"))])
    assert samples["sample_id"].to_list() == table["id"].to_list()
    splits = {"training": "train", "dev": "validation", "test": "test"}
    assert samples["split"].to_list() == [splits[name] for name in table["split"]]
    stay = [(end - start).days for start, end in zip(table["admitted"], table["discharged"], strict=True)]
    assert samples["target_reg"].to_list() == stay
    record = json.loads((folder / "cache/cache.json").read_text())
    names = record["inputs"]["features"]["names"]
    assert names == [
        "weight", "income", "lab", "lab is missing", "region = EU", "region = NA", "admitted", "emb[0]", "emb[1]",
        "emb[2]",
    ]  # fmt: skip
    features = samples["features"].to_numpy()
    median = table.filter(pl.col("split") == "training")["lab"].median()
    gaps, lab = table["lab"].is_null(), table["lab"].fill_null(median)
    regions = [table["region"] == name for name in ("EU", "NA")]
    days = [(day - date(1970, 1, 1)).days for day in table["admitted"]]
    columns = [table["weight"], table["income"], lab, gaps, *regions, days, *np.array(table["emb"].to_list()).T]
    np.testing.assert_allclose(features, np.stack(columns, axis=1), rtol=1e-6)


def test_rows_are_routed_as_they_were_read_for_training(built, l2d):
    folder, _ = built
    code, _, err = l2d("train", folder / "cache", "--out", folder / "run", "--epochs", 5)
    assert code == 0, err
    allocations = pl.read_parquet(folder / "run/allocations.parquet").sort("sample_id")
    rows().write_parquet(folder / "cases.parquet")
    plain = rows().with_columns(emb=pl.Series([json.dumps(row) for row in rows()["emb"].to_list()]))
    few = as_people_write(rows()).splitlines()
    (folder / "few.csv").write_text("\n".join([few[0], *few[1:4]]), encoding="utf-8")
    assert (rows()["income"][:3] >= 1000).any()  # among few rows too the point groups thousands
    for name in ("cases.csv", "cases.parquet", "few.csv"):
        code, _, err = l2d("route", folder / "run", folder / name, "--out", folder / "out.parquet", "--overwrite")
        assert code == 0, err
        routed = pl.read_parquet(folder / "out.parquet").sort("sample_id")
        expected = allocations.join(routed.select("sample_id"), on="sample_id", how="semi")
        assert len(expected) == len(routed) == (3 if name == "few.csv" else len(rows()))
        for column in ("agent_index", "score_0", "score_1"):
            np.testing.assert_allclose(routed[column].to_numpy(), expected[column].to_numpy(), rtol=1e-5, atol=1e-6)
    plain.write_csv(folder / "plain.csv")  # numbers with decimal points, where commas were read
    code, _, err = l2d("route", folder / "run", folder / "plain.csv", "--out", folder / "no.parquet")
    assert code == 3
    assert "'weight' of row 0 is" in err
    assert "written like 1.234,5" in err


def test_images_that_a_table_names_are_built_trained_on_and_routed(tmp_path, l2d):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    table = rows(90).with_columns(file=pl.format("{}.png", pl.int_range(90)))
    for k in range(90):
        Image.fromarray(generator.integers(0, 255, (12, 14, 3)).astype(np.uint8)).save(tmp_path / f"pictures/{k}.png")
    table.select("id", "file", "ill", "Anna", "Bob").write_csv(tmp_path / "cases.csv")
    recipe = RECIPE[: RECIPE.index("target_reg")] + "image = \"'pictures/' || file\"\nimage_size = 8\n"
    (tmp_path / "recipe.toml").write_text(recipe + RECIPE[RECIPE.index("\n[costs") :], encoding="utf-8")
    code, _, err = l2d("build", tmp_path / "recipe.toml", "--out", tmp_path / "cache")
    assert code == 0, err
    code, _, err = l2d("train", tmp_path / "cache", "--out", tmp_path / "run", "--rejector", "conv", "--epochs", 1)
    assert code == 0, err
    code, _, err = l2d("route", tmp_path / "run", tmp_path / "cases.csv", "--out", tmp_path / "out.parquet")
    assert code == 0, err
    routed = pl.read_parquet(tmp_path / "out.parquet").sort("sample_id")
    expected = pl.read_parquet(tmp_path / "run/allocations.parquet").sort("sample_id")
    np.testing.assert_allclose(routed["score_0"].to_numpy(), expected["score_0"].to_numpy(), rtol=1e-4, atol=1e-5)
    (tmp_path / "pictures/5.png").unlink()
    code, _, err = l2d("route", tmp_path / "run", tmp_path / "cases.csv", "--out", tmp_path / "no.parquet")
    assert code == 3
    assert "row 5: there is no such image" in err


def test_an_import_reads_a_number_with_unknown_among_its_values(tmp_path, l2d):
    lists = pl.Series([json.dumps(row) for row in rows()["emb"].to_list()])
    table = rows().with_columns(lab=pl.col("lab").cast(pl.String).fill_null("unknown"), emb=lists)
    table.with_row_index("").drop("Anna", "Bob").write_csv(tmp_path / "cases.csv")
    table.select("id", "Anna", "Bob").write_csv(tmp_path / "answers.csv")
    arguments = ["--id", "id", "--target", "ill", "--out", tmp_path / "cache"]
    code, _, err = l2d("import", "predictions", tmp_path / "cases.csv", tmp_path / "answers.csv", *arguments)
    assert code == 0, err
    assert "lab is a number where it is not 'unknown': that is read as missing" in err
    assert "left out of the features (row numbers): (column 1)" in err
    assert "splits: 'dev' is validation" in err
    recipe = (tmp_path / "cache.toml").read_text()
    assert 'missing = { "lab" = ["unknown"] }' in recipe
    names = json.loads((tmp_path / "cache/cache.json").read_text())["inputs"]["features"]["names"]
    assert {"lab", "lab is missing", "emb[2]", "admitted", "income"} <= set(names)
