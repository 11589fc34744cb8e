"""A cache described for hubs and people: every column with its meaning, and nothing that is not there."""

from __future__ import annotations

import json

import polars as pl
import pytest
from recipes import RECIPE

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.cache.remote import fetch, push
from l2d.data.library import describe


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CostCache:
    from conftest import patients

    folder = tmp_path_factory.mktemp("described")
    patients().write_parquet(folder / "patients.parquet")
    changes = {"license": "CC-BY-4.0", "unit_paid": "USD", "dataset.unit_reg": "days", "agents.expert.paid": 0.5}
    (folder / "recipe.toml").write_text(RECIPE.but(changes), encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu")
    return CostCache(folder / "cache")


def test_every_column_of_every_table_is_described_and_no_other(cache):
    told = describe(cache)
    files = {one["@id"]: one for one in told["distribution"]}
    assert len(files) == len(told["recordSet"]) == 1 + 2 * 3
    covered = set()
    for table in told["recordSet"]:
        (where,) = {field["source"]["fileSet"]["@id"] for field in table["field"]}
        parts = sorted(cache.path.glob(files[where]["includes"]))
        covered.update(parts)
        assert len(parts) == cache.record.num_chunks
        assert [field["source"]["extract"]["column"] for field in table["field"]] == pl.read_parquet(parts[0]).columns
        assert table["key"]["@id"] in {field["@id"] for field in table["field"]}
    assert covered == set(cache.parts())


def test_units_licence_and_classes_are_told(cache):
    told = describe(cache)
    assert told["license"] == "CC-BY-4.0"
    assert "0 no, 1 yes" in told["description"]
    meaning = {field["@id"]: field["description"] for table in told["recordSet"] for field in table["field"]}
    assert "in days" in meaning["samples/target_reg"]
    assert "in days" in meaning["predictions-expert/pred_reg"]
    assert "kind = smooth_l1, beta = 1.0, clamp = 5.0" in meaning["costs-expert/cost_reg"]
    assert "4 numbers: x1" in meaning["samples/features"] or "numbers: x1" in meaning["samples/features"]


def test_a_push_writes_it_and_a_fetch_does_not_need_it(cache, tmp_path):
    push(cache, str(tmp_path / "there"))
    file = tmp_path / "there" / "croissant.json"
    assert json.loads(file.read_text()) == describe(cache)
    file.write_text("something else")
    assert push(cache, str(tmp_path / "there")) == 0
    assert json.loads(file.read_text()) == describe(cache)
    file.unlink()
    fetch(str(tmp_path / "there"), tmp_path / "copy")
    assert describe(tmp_path / "copy") == describe(cache)


@pytest.mark.filterwarnings("ignore")
def test_the_vocabularys_own_package_accepts_it_and_reads_the_tables(cache, tmp_path):
    croissant = pytest.importorskip("mlcroissant")
    push(cache, str(tmp_path / "there"))
    found = croissant.Dataset(jsonld=tmp_path / "there" / "croissant.json")
    assert not found.metadata.ctx.issues.errors
    rows = list(found.records("costs-expert"))
    expected = pl.concat([pl.read_parquet(part) for part in cache.parts() if "expert/costs-" in str(part)])
    assert [row["costs-expert/cost_reg"] for row in rows] == expected["cost_reg"].to_list()
