"""CheXpert's label files, on files of the format with other contents; against plain pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import refused
from PIL import Image
from pydantic import ValidationError

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError
from l2d.data.sources.chexpert import COLUMNS, FINDINGS, ChexpertConfig, load_chexpert

NAME = "CheXpert-v1.0-small"


@pytest.fixture
def folder(tmp_path) -> Path:
    """``train.csv`` of 60 patients and ``valid.csv`` of 10, small images, and image features."""
    rng = np.random.default_rng(1)
    root = tmp_path / NAME
    features = []
    for part, first, patients in (("train", 1, 60), ("valid", 64541, 10)):
        rows = []
        for patient in range(first, first + patients):
            for study in range(1, 1 + rng.integers(1, 3)):
                for view, side in enumerate(["frontal", "lateral"][: rng.integers(1, 3)], start=1):
                    path = f"{part}/patient{patient:05d}/study{study}/view{view}_{side}.jpg"
                    values = [""] if part == "train" else []
                    labels = rng.choice([*values, "0.0", "1.0", *(["-1.0"] if part == "train" else [])], len(FINDINGS))
                    rows.append(
                        [f"{NAME}/{path}", "Female", 60, side.title(), "AP" if side == "frontal" else "", *labels]
                    )
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(rng.integers(256, size=(20, 16)).astype(np.uint8)).save(root / path)
                    features.append({"Path": f"{NAME}/{path}", "a": float(len(features)), "b": rng.random()})
        pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(root / f"{part}.csv", index=False)
    pl.DataFrame(features).sample(fraction=1, shuffle=True, seed=0).write_parquet(tmp_path / "features.parquet")
    return root


def load(folder: Path, **settings):
    base = {"path": folder, "target": "Edema", "image_features": folder.parent / "features.parquet"}
    return load_chexpert(ChexpertConfig(**base | settings), "test")


@pytest.mark.parametrize("uncertain", ["zeros", "ones", "ignore"])
@pytest.mark.parametrize("unmentioned", ["zeros", "ignore"])
@pytest.mark.parametrize("views", ["frontal", "all"])
def test_labels_equal_plain_pandas(folder, uncertain, unmentioned, views):
    dataset = load(folder, uncertain=uncertain, unmentioned=unmentioned, views=views, target="Pleural Effusion")
    features = pd.read_parquet(folder.parent / "features.parquet").set_index("Path")
    expected = {}
    for row in pd.read_csv(folder / "train.csv").to_dict("records"):
        label = row["Pleural Effusion"]
        if views == "frontal" and row["Frontal/Lateral"] != "Frontal":
            continue
        if (uncertain == "ignore" and label == -1) or (unmentioned == "ignore" and np.isnan(label)):
            continue
        positive = label == 1 or (label == -1 and uncertain == "ones")
        expected[row["Path"].removeprefix(f"{NAME}/")] = (int(positive), row)
    assert dataset.ids == list(expected)
    assert dataset.target_cla.tolist() == [label for label, _ in expected.values()]
    rows = [row for _, row in expected.values()]
    devices = [None if np.isnan(row["Support Devices"]) else int(row["Support Devices"]) for row in rows]
    assert dataset.columns["support_devices"].to_list() == devices
    assert dataset.columns["patient"].to_list() == [row["Path"].split("/")[2] for row in rows]
    np.testing.assert_allclose(dataset.features, features.loc[[row["Path"] for row in rows]].to_numpy(), rtol=1e-6)


def test_no_patient_is_in_two_splits(folder):
    dataset = load(folder, views="all")
    found = pd.DataFrame({"patient": dataset.columns["patient"], "split": dataset.split})
    assert (found.groupby("patient")["split"].nunique() == 1).all()
    shares = found.groupby("patient")["split"].first().value_counts()
    assert shares.to_dict() == {
        "train": pytest.approx(48, abs=2),
        "validation": pytest.approx(6, abs=2),
        "test": pytest.approx(6, abs=2),
    }


def test_valid_csv_as_the_test_split(folder):
    dataset = load(folder, test="valid", views="all")
    found = pd.DataFrame({"patient": dataset.columns["patient"], "split": dataset.split, "id": dataset.ids})
    assert (found["id"].str.startswith("valid/") == (found["split"] == "test")).all()
    assert (found.groupby("patient")["split"].nunique() == 1).all()
    assert found[found.split == "validation"]["patient"].nunique() == round(60 / 9)


def test_features_may_be_lists(folder, tmp_path):
    columns = pl.read_parquet(folder.parent / "features.parquet")
    lists = columns.select(pl.col("Path").str.replace(f"{NAME}/", ""), features=pl.concat_list("a", "b"))
    lists.write_parquet(tmp_path / "lists.parquet")
    np.testing.assert_array_equal(
        load(folder, image_features=tmp_path / "lists.parquet").features, load(folder).features
    )


RECIPE = f"""
[dataset]
kind = "chexpert"
path = "{NAME}"
target = "Edema"
image_features = "features.parquet"
image_size = 8
[costs.cla]
kind = "zero_one"
[[agents]]
name = "model"
kind = "two_head"
epochs = 2
[[agents]]
name = "radiologist"
kind = "column"
cla = "CASE WHEN support_devices = 1 THEN 'present' ELSE 'absent' END"
"""


def test_a_cache_holds_small_images_and_columns(folder):
    (folder.parent / "recipe.toml").write_text(RECIPE)
    build(load_recipe(str(folder.parent / "recipe.toml")), folder.parent / "cache", device="cpu")
    cache = CostCache(folder.parent / "cache")
    assert cache.verify() > 0
    assert set(cache.record.inputs) == {"features", "image"}
    assert "support_devices" in cache.record.keep


def change(folder: Path, column: str, value: object, row: int = 2) -> None:
    rows = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)
    rows.loc[row, column] = value
    rows.to_csv(folder / "train.csv", index=False)


@pytest.mark.parametrize(
    ("column", "value"),
    [("Edema", "2.0"), ("Edema", "yes"), ("Age", "old"), ("Frontal/Lateral", "Oblique"), ("Path", "somewhere.jpg")],
)
def test_odd_values_are_named(folder, column, value):
    change(folder, column, value)
    refused(lambda: load(folder), DataError, f"{column} is {value!r}", "train.csv, row 3")


def test_what_is_missing_is_named(folder, tmp_path):
    refused(lambda: load(folder, image_features=tmp_path / "none.parquet"), DataError, "none.parquet")
    table = pl.read_parquet(tmp_path / "features.parquet")
    for spoilt, word in (
        (table.filter(~pl.col("Path").str.contains("patient00007")), "patient00007"),
        (pl.concat([table, table.head(1)]), "twice"),
        (table.with_columns(a=pl.lit("x")), "not numbers"),
        (table.with_columns(a=pl.lit(float("nan"))), "not finite"),
        (table.select("Path", features=pl.lit(1)), "not numbers"),
        (table.drop("Path"), "no column Path"),
    ):
        spoilt.write_parquet(tmp_path / "spoilt.parquet")
        refused(lambda: load(folder, image_features=tmp_path / "spoilt.parquet"), DataError, "spoilt.parquet", word)
    rows = pd.read_csv(folder / "train.csv")
    rows.drop(columns="Support Devices").to_csv(folder / "train.csv", index=False)
    refused(lambda: load(folder), DataError, "'Support Devices'")
    (folder / "train.csv").unlink()
    refused(lambda: load(folder), DataError, "train.csv")
    with pytest.raises(ValidationError, match="look at something"):
        load(folder, image_features=None)
