"""Routing unlabelled inputs: the allocations of the run for the same rows, whatever they come in, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recipes import STAGE_TWO_RECIPE

from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, DataError, FingerprintMismatch, IncompleteCache, UsageError
from l2d.rejector import route as route_module
from l2d.rejector import served
from l2d.rejector.route import route
from l2d.rejector.runs.files import RUN_FILE
from l2d.rejector.runs.run import load_run

NETWORKS = ("linear", "mlp", "transformer")


@pytest.fixture
def home(patient_runs) -> Path:
    return patient_runs


@pytest.fixture
def table(home) -> pl.DataFrame:
    return pl.read_parquet(home / "patients.parquet")


def unlabelled(table: pl.DataFrame) -> pl.DataFrame:
    return table.select("id", "x1", "x2", "ward")


def allocated(run: Path) -> pl.DataFrame:
    """What the run itself allocated, all splits."""
    return pl.read_parquet(run / "allocations.parquet")


def by_id(frame: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """Rows of an allocations table in the order of these ids."""
    return pl.DataFrame({"sample_id": ids}).join(frame, on="sample_id", how="left", maintain_order="left")


def assert_allocated_as_in(run: Path, out: Path, ids: pl.Series) -> None:
    """Every row, in order; the scores too, as far as batches of other sizes allow."""
    found, expected = pl.read_parquet(out), by_id(allocated(run), ids)
    assert found["sample_id"].to_list() == ids.to_list()
    assert found["agent_index"].to_list() == expected["agent_index"].to_list()
    assert found["agent"].to_list() == expected["agent"].to_list()
    scores = [name for name in expected.columns if name.startswith("score_")]
    assert found.columns == ["sample_id", "agent_index", "agent", *scores]
    np.testing.assert_allclose(found.select(scores), expected.select(scores), rtol=1e-5, atol=1e-6)


def features_of(cache: CostCache) -> pl.DataFrame:
    """Sample ids and features as they stand in the cache's files."""
    return pl.concat([pl.read_parquet(part) for part in sorted((cache.path / "samples").glob("*.parquet"))])


# --- the same rows, the same allocations -----------------------------------------------------------------------------


def test_the_runs_allocate_to_several_agents(home):
    """Otherwise no test below would notice an allocation that is always the same."""
    for network in NETWORKS:
        assert allocated(home / network)["agent_index"].n_unique() >= 2


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("form", ["parquet", "csv", "list", "array", "cache"])
def test_every_row_of_all_splits_goes_where_it_went_in_the_run(home, tmp_path, table, network, form, monkeypatch):
    monkeypatch.setattr(route_module, "READ_AT_ONCE", 37 * 6)  # 37 rows a batch: no split, no chunk, no row group
    monkeypatch.setattr(served, "ACTIVATIONS_AT_ONCE", 10 * 6 * 8)
    table = unlabelled(table).sample(fraction=1, shuffle=True, seed=1)
    source, ids = tmp_path / f"new.{'csv' if form == 'csv' else 'parquet'}", table["id"]
    if form == "parquet":
        table.write_parquet(source, row_group_size=150)
    elif form == "csv":
        table.write_csv(source)
    elif form == "cache":
        source = home / "cache"
        ids = features_of(CostCache(source))["sample_id"]
    else:
        frame = features_of(CostCache(home / "cache")).select(id="sample_id", features="features")
        frame = frame.with_columns(frame["features"].arr.to_list()) if form == "list" else frame
        frame.write_parquet(source)
        ids = frame["id"]
    report = route(home / network, source, tmp_path / "out.parquet")
    assert_allocated_as_in(home / network, tmp_path / "out.parquet", ids)
    assert report.agents == ["model", "expert", "cheap", "asked"]
    expected = allocated(home / network)["agent"].to_list()
    assert report.counts == [expected.count(agent) for agent in report.agents]
    assert [row["share"] for row in report.rows()] == [count / 400 for count in report.counts]


def test_scores_are_those_of_arithmetic_by_hand(home, tmp_path, table):
    """A linear rejector on rows with a gap, an unseen category and none: medians and statistics of training alone."""
    split = dict(allocated(home / "linear").select("sample_id", "split").iter_rows())
    train = table.filter(pl.Series([split[i] == "train" for i in table["id"]]))
    median = float(np.median(train["x2"].drop_nulls()))
    wards = ["a", "b", "c"]

    def encode(row: dict) -> list[float]:
        gap = row["x2"] is None
        return [row["x1"], median if gap else row["x2"], float(gap), *(float(row["ward"] == ward) for ward in wards)]

    known = np.array([encode(row) for row in train.iter_rows(named=True)])
    mean, std = known.mean(axis=0), known.std(axis=0)
    rows = [
        {"x1": 0.3, "x2": 1.5, "ward": "b"},
        {"x1": -1.2, "x2": None, "ward": "a"},
        {"x1": 2.0, "x2": 0.1, "ward": "never seen"},
        {"x1": 0.0, "x2": -3.0, "ward": None},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "new.parquet")
    route(home / "linear", tmp_path / "new.parquet", tmp_path / "out.parquet")
    state = load_run(home / "linear").rejector.state
    weight, bias = state["weight"].numpy(), state["bias"].numpy()
    expected = ((np.array([encode(row) for row in rows]) - mean) / std) @ weight.T + bias
    found = pl.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_allclose(found.select(pl.col("^score_.*$")), expected, atol=1e-4)
    assert found["agent_index"].to_list() == expected.argmax(axis=1).tolist()
    assert found["sample_id"].to_list() == ["0", "1", "2", "3"]


def test_a_run_routes_when_its_cache_is_gone(home, tmp_path, table):
    shutil.copytree(home / "mlp", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert not (tmp_path / facts["cache"]["relative_path"]).exists()
    facts["cache"]["path"] = str(tmp_path / "gone")
    del facts[store.DIGEST_FIELD]
    store.commit_json(tmp_path / "run" / RUN_FILE, facts, replace=True)
    unlabelled(table).write_csv(tmp_path / "new.csv")
    route(tmp_path / "run", tmp_path / "new.csv", tmp_path / "out.parquet")
    assert_allocated_as_in(home / "mlp", tmp_path / "out.parquet", table["id"])


def test_a_run_of_before_inputs_were_written_down_needs_its_cache(home, tmp_path, table):
    for name in ("mlp", "cache"):
        shutil.copytree(home / name, tmp_path / name)
    facts = json.loads((tmp_path / "mlp" / RUN_FILE).read_text())
    del facts[store.DIGEST_FIELD], facts["input"]
    facts["cache"] |= {"path": str(tmp_path / "cache"), "relative_path": "../cache"}
    store.commit_json(tmp_path / "mlp" / RUN_FILE, facts, replace=True)
    record = json.loads((tmp_path / "cache" / "cache.json").read_text())
    del record[store.DIGEST_FIELD], record["inputs"]["features"]["columns"]  # nor did caches say types then
    store.commit_json(tmp_path / "cache" / "cache.json", record, replace=True)
    unlabelled(table).write_parquet(tmp_path / "new.parquet")
    route(tmp_path / "mlp", tmp_path / "new.parquet", tmp_path / "out.parquet")
    assert_allocated_as_in(home / "mlp", tmp_path / "out.parquet", table["id"])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UsageError, match="earlier version"):
        route(tmp_path / "mlp", tmp_path / "new.parquet", tmp_path / "again.parquet")


# --- what comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_csv_values_keep_the_meaning_they_had_in_training(home, make_cache, make_runs, tmp_path, table):
    """A category of digits, a number missing in every row, ids with leading zeros: a file of one row has them all."""
    recipe = STAGE_TWO_RECIPE.but({"dataset.features": ["x1", "ln(1 + abs(x2))", "ward"]})
    coded = table.with_columns(ward=pl.col("ward").replace({"a": "01", "b": "1", "c": "x"}))
    cache = make_cache(tmp_path, recipe)
    coded.write_parquet(tmp_path / "patients.parquet")
    from l2d.cache_builder.builder import build
    from l2d.cache_builder.recipe import load_recipe

    build(load_recipe(str(tmp_path / "recipe.toml")), tmp_path / "cache", device="cpu", overwrite=True)
    run = make_runs(CostCache(cache.path), tmp_path / "runs", betas=[0.1])[0]
    row = coded.filter((pl.col("ward") == "01") & pl.col("x2").is_null()).head(1)
    assert len(row) == 1
    text = f"id,x1,x2,ward,number\n{row['id'][0]},{row['x1'][0]!r},NA,01,007\n"
    (tmp_path / "new.csv").write_text(text)
    route(run, tmp_path / "new.csv", tmp_path / "out.parquet")
    assert_allocated_as_in(run, tmp_path / "out.parquet", row["id"])
    route(run, tmp_path / "new.csv", tmp_path / "numbered.parquet", id_column="number")
    assert pl.read_parquet(tmp_path / "numbered.parquet")["sample_id"].to_list() == ["007"]
    row.with_columns(x2=pl.lit(None)).select("id", "x1", "x2", "ward").write_parquet(tmp_path / "null.parquet")
    assert pq.read_schema(tmp_path / "null.parquet").field("x2").type == pa.null()
    route(run, tmp_path / "null.parquet", tmp_path / "null_out.parquet")
    assert_allocated_as_in(run, tmp_path / "null_out.parquet", row["id"])


def test_sample_ids_are_the_recipes_else_a_column_else_row_numbers(home, tmp_path, table):
    def ids(frame: pl.DataFrame, **options) -> list[str]:
        frame.write_parquet(tmp_path / "new.parquet")
        report = route(home / "mlp", tmp_path / "new.parquet", tmp_path / "out.parquet", overwrite=True, **options)
        return [report.ids, *pl.read_parquet(tmp_path / "out.parquet")["sample_id"].head(3)]

    frame = unlabelled(table).with_columns(pl.Series("odd name", range(400)))
    assert ids(frame) == ["id", "p0000", "p0001", "p0002"]
    assert ids(frame.drop("id")) == ["row numbers", "0", "1", "2"]
    assert ids(frame, id_column="odd name")[1:] == ["0", "1", "2"]
    with pytest.raises(UsageError, match="--id nobody"):
        ids(frame, id_column="nobody")
    gap = frame.with_columns(id=pl.when(pl.col("id") == "p0002").then(None).otherwise("id"))
    with pytest.raises(DataError, match="row 2 has no id"):
        ids(gap)


def test_no_inputs_make_no_allocations(home, tmp_path, table):
    unlabelled(table).clear().write_parquet(tmp_path / "new.parquet")
    report = route(home / "mlp", tmp_path / "new.parquet", tmp_path / "out.parquet")
    assert report.rows()[0] == {"agent": "model", "samples": 0, "share": None}
    assert pl.read_parquet(tmp_path / "out.parquet").height == 0


def lists(values: list, kind=pl.Float32) -> pl.DataFrame:
    return pl.DataFrame({"features": pl.Series(values, dtype=pl.List(kind))})


def replaced(column: str, value: object, row: int = 399):
    """The patients with one value replaced, of which only the last batch would know."""
    return lambda table: table.with_columns(
        pl.when(pl.int_range(400) == row).then(pl.lit(value)).otherwise(column).alias(column)
    )


BAD = {
    "a column is missing": ("csv", lambda t: t.drop("x2"), "no column 'x2', which feature 'x2' needs"),
    "text for a number": ("csv", lambda t: t.with_columns(x1=pl.lit("much")), "'x1' of row .* is 'much'"),
    "text for a number, last row": (
        "csv",
        lambda t: replaced("x1", "much")(t.with_columns(pl.col("x1").cast(str))),
        "'x1' of row .* is 'much'",
    ),
    "a column of text": (
        "parquet",
        lambda t: t.with_columns(pl.col("x1").cast(str)),
        "'x1' is of type String.*Float64",
    ),
    "a column of numbers": ("parquet", lambda t: t.with_columns(ward=1), "'ward' is of type Int32.*String"),
    "a column of lists": ("parquet", lambda t: t.with_columns(ward=pl.concat_list("ward")), "'ward' is of type List"),
    "a number too large": ("parquet", replaced("x1", 1e300), "feature 'x1' of row 399 does not fit"),
    "a wrong width": ("parquet", lambda t: lists([[0.0] * 6] * 9 + [[0.0] * 5]), "row 9 has 5 features.*looks at 6"),
    "features not finite": (
        "parquet",
        lambda t: lists([[0.0] * 6, [0.0] * 5 + [float("nan")]]),
        "feature 5 of row 1 is nan",
    ),
    "a missing feature": ("parquet", lambda t: lists([[0.0] * 6, [0.0] * 5 + [None]]), "feature 5 of row 1 is nan"),
    "missing features": ("parquet", lambda t: lists([[0.0] * 6, None]), "row 1 has no features"),
    "features of text": ("parquet", lambda t: lists([["a"] * 6], pl.String), "no column 'x1'"),
}


@pytest.mark.parametrize("case", BAD)
def test_inputs_that_cannot_be_used_are_refused_by_name_and_nothing_is_written(
    home, tmp_path, table, case, monkeypatch
):
    monkeypatch.setattr(route_module, "READ_AT_ONCE", 100 * 6)
    form, spoil, said = BAD[case]
    source = tmp_path / f"new.{form}"
    getattr(spoil(unlabelled(table)), f"write_{form}")(source)
    with pytest.raises(DataError, match=said) as refused:
        route(home / "mlp", source, tmp_path / "out.parquet")
    assert refused.value.where == source
    assert refused.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_files_that_are_none_are_refused(home, tmp_path, table):
    whole = tmp_path / "whole.parquet"
    unlabelled(table).write_parquet(whole)
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "none.csv").write_text("")
    (tmp_path / "new.xlsx").write_text("")
    for name in ("half.parquet", "none.csv", "new.xlsx", "nowhere.csv"):
        with pytest.raises(DataError, match=r"read|neither|no such|empty") as refused:
            route(home / "mlp", tmp_path / name, tmp_path / "out.parquet")
        assert refused.value.where == tmp_path / name
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="neither a cost cache"):
        route(home / "mlp", tmp_path / "folder", tmp_path / "out.parquet")


# --- what goes out ----------------------------------------------------------------------------------------------------


def test_parquet_and_csv_hold_the_same(home, tmp_path):
    for suffix in ("parquet", "csv"):
        route(home / "mlp", home / "patients.parquet", tmp_path / f"out.{suffix}")
    one, other = pl.read_parquet(tmp_path / "out.parquet"), pl.read_csv(tmp_path / "out.csv")
    assert one.columns == other.columns
    assert other.with_columns(pl.col("agent_index").cast(pl.Int32), pl.col("^score_.*$").cast(pl.Float32)).equals(one)
    read_back = store.read_table(tmp_path / "out.parquet")
    assert store.facts_of(read_back) == {"run_id": load_run(home / "mlp").point.run_id}


def test_what_is_there_is_replaced_only_when_told(home, tmp_path, table):
    source, out = tmp_path / "new.parquet", tmp_path / "out.parquet"
    unlabelled(table).write_parquet(source)
    out.write_bytes(b"years of work")
    with pytest.raises(UsageError, match="there already"):
        route(home / "mlp", source, out)
    assert out.read_bytes() == b"years of work"
    with pytest.raises(UsageError, match="there already"):
        route(home / "mlp", source, source, overwrite=True)
    assert pl.read_parquet(source).equals(unlabelled(table))
    route(home / "mlp", source, out, overwrite=True)
    assert pl.read_parquet(out).height == 400
    for name in ("out.txt", "out"):
        with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
            route(home / "mlp", source, tmp_path / name)


def test_an_interrupted_routing_leaves_what_was_there(home, tmp_path, monkeypatch):
    monkeypatch.setattr(route_module, "READ_AT_ONCE", 50 * 6)
    out = tmp_path / "out.parquet"
    out.write_bytes(b"of yesterday")
    done = []

    def stop(rows: int) -> None:
        done.append(rows)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        route(home / "mlp", home / "patients.parquet", out, overwrite=True, progress=lambda total: stop)
    assert done == [50, 50, 50]
    assert out.read_bytes() == b"of yesterday"
    assert list(tmp_path.iterdir()) == [out]


def test_one_run_is_wanted(home, tmp_path):
    with pytest.raises(UsageError, match="there are 4 runs here"):
        route(home, home / "patients.parquet", tmp_path / "out.parquet")
    with pytest.raises(UsageError, match="no run here"):
        route(home / "cache", home / "patients.parquet", tmp_path / "out.parquet")
    shutil.copytree(home / "mlp", tmp_path / "run")
    (tmp_path / "run" / "rejector.safetensors").write_bytes(b"")
    with pytest.raises(CorruptPart, match=r"rejector\.safetensors"):
        route(tmp_path / "run", home / "patients.parquet", tmp_path / "out.parquet")


# --- caches and images ------------------------------------------------------------------------------------------------


def test_features_that_mean_something_else_are_refused(home, tmp_path):
    """As many numbers a row, but fitted on other patients."""
    shutil.copytree(home / "cache", tmp_path / "moved")
    record = json.loads((tmp_path / "moved" / "cache.json").read_text())
    del record[store.DIGEST_FIELD]
    record["inputs"]["features"]["encoder"][1]["median"] += 0.5
    store.commit_json(tmp_path / "moved" / "cache.json", record, replace=True)
    with pytest.raises(FingerprintMismatch, match="encoder: was"):
        route(home / "mlp", tmp_path / "moved", tmp_path / "out.parquet")


def test_a_cache_serves_before_its_agents_have_answered(home, tmp_path):
    shutil.copytree(home / "cache", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "agents")
    ids = features_of(CostCache(tmp_path / "cache"))["sample_id"]
    route(home / "mlp", tmp_path / "cache", tmp_path / "out.parquet")
    assert_allocated_as_in(home / "mlp", tmp_path / "out.parquet", ids)
    (tmp_path / "cache" / "samples" / "00001.parquet").unlink()
    with pytest.raises(IncompleteCache, match="missing"):
        route(home / "mlp", tmp_path / "cache", tmp_path / "again.parquet")
    with pytest.raises(UsageError, match="--id"):
        route(home / "mlp", tmp_path / "cache", tmp_path / "again.parquet", id_column="id")


def parts(cache: Path, folder: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(part) for part in sorted((cache / folder).glob("*.parquet"))])


def test_features_of_the_models_own_pass_come_from_a_cache_or_a_column(detection_runs, tmp_path):
    cache, runs = detection_runs
    assert allocated(runs["mlp"])["agent_index"].n_unique() >= 2
    shown = parts(cache, "agents/model/predictions").select("sample_id", "features")
    route(runs["mlp"], cache, tmp_path / "from_cache.parquet")
    assert_allocated_as_in(runs["mlp"], tmp_path / "from_cache.parquet", shown["sample_id"])
    shown.write_parquet(tmp_path / "new.parquet")
    route(runs["mlp"], tmp_path / "new.parquet", tmp_path / "out.parquet", id_column="sample_id")
    assert_allocated_as_in(runs["mlp"], tmp_path / "out.parquet", shown["sample_id"])
    shown.drop("features").write_parquet(tmp_path / "without.parquet")
    with pytest.raises(DataError, match=r"no column `features`[\s\S]*3 features that agent 'model' shows"):
        route(runs["mlp"], tmp_path / "without.parquet", tmp_path / "again.parquet")


def test_features_of_another_model_are_refused(detection_runs, tmp_path):
    cache, runs = detection_runs
    shutil.copytree(cache, tmp_path / "cache")
    file = tmp_path / "cache" / "agents" / "model" / "agent.json"
    record = store.read_json(file)
    record["fingerprint"]["column objects"] = "other images, which is fine"
    store.commit_json(file, record, replace=True)
    route(runs["mlp"], tmp_path / "cache", tmp_path / "out.parquet")
    record["fingerprint"]["options"] = {"noise": 1.0}
    store.commit_json(file, record, replace=True)
    with pytest.raises(FingerprintMismatch, match="agent options: was"):
        route(runs["mlp"], tmp_path / "cache", tmp_path / "again.parquet")


def test_images_come_from_a_cache_or_a_column(detection_runs, tmp_path):
    cache, runs = detection_runs
    assert allocated(runs["conv"])["agent_index"].n_unique() >= 2
    samples = parts(cache, "samples").select("sample_id", "image")
    route(runs["conv"], cache, tmp_path / "from_cache.parquet")
    assert_allocated_as_in(runs["conv"], tmp_path / "from_cache.parquet", samples["sample_id"])
    samples.write_parquet(tmp_path / "new.parquet")
    route(runs["conv"], tmp_path / "new.parquet", tmp_path / "out.parquet", id_column="sample_id")
    assert_allocated_as_in(runs["conv"], tmp_path / "out.parquet", samples["sample_id"])


def test_images_that_cannot_be_used_are_refused_by_row(detection_runs, tmp_path, monkeypatch):
    from l2d.data.samples.images import thumbnail

    cache, runs = detection_runs
    files = parts(cache, "samples")["image"].to_list()[:7]
    monkeypatch.setattr(route_module, "READ_AT_ONCE", 2 * 3 * 16 * 16)
    large = thumbnail(next((cache.parent / "devkit").rglob("*.jpg")), 32)
    for spoilt, said in (
        (files[5][:60], "the image of row 5 cannot be read as an image"),
        (large, "the image of row 5 has 1024 pixels, not 256"),
        (None, "the image of row 5 cannot be read as an image"),
    ):
        pl.DataFrame({"image": [*files[:5], spoilt, *files[6:]]}).write_parquet(tmp_path / "new.parquet")
        with pytest.raises(DataError, match=said) as refused:
            route(runs["conv"], tmp_path / "new.parquet", tmp_path / "out.parquet")
        assert refused.value.where == tmp_path / "new.parquet"
    pl.DataFrame({"image": ["picture.png"]}).write_csv(tmp_path / "new.csv")
    with pytest.raises(DataError, match="'image' is of type String"):
        route(runs["conv"], tmp_path / "new.csv", tmp_path / "out.parquet")


@pytest.mark.slow
def test_where_the_model_failed_a_rejector_trained_so_looks_at_the_mean(detection_runs, tmp_path):
    from l2d.cache_builder.builder import build
    from l2d.cache_builder.recipe import load_recipe
    from l2d.rejector.grid import make_grid
    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.sweep import sweep

    cache, _ = detection_runs
    for name in ("devkit", "recipe.toml"):
        (shutil.copytree if name == "devkit" else shutil.copy)(cache.parent / name, tmp_path / name)
    failing = (cache.parent / "agents.py").read_text()
    failing += "\n\nhonest = look\n\n\ndef look(batch, **options):\n"
    failing += "    assert not any(name[-1] in '05' for name in batch.ids), 'no'\n"
    failing += "    return honest(batch, **options)\n"
    (tmp_path / "agents.py").write_text(failing)
    build(load_recipe(str(tmp_path / "recipe.toml")), tmp_path / "cache", device="cpu", on_failure="record")
    opened = CostCache(tmp_path / "cache")
    missing = parts(opened.path, "agents/model/predictions")["features"].is_null()
    assert 0 < missing.sum() < len(missing)
    points = make_grid(opened, methods=["multi-task"], weights=[], betas=[0.05], nus=[1.0], seeds=[0])
    sweep(opened, points, [tmp_path / "run"], TrainConfig(hidden=16, epochs=5, batch_size=8, failures="worst"))
    route(tmp_path / "run", opened.path, tmp_path / "out.parquet")
    ids = parts(opened.path, "samples")["sample_id"]
    assert_allocated_as_in(tmp_path / "run", tmp_path / "out.parquet", ids)
    sweep(opened, points, [tmp_path / "strict"], TrainConfig(hidden=16, epochs=1, batch_size=8, failures="drop"))
    with pytest.raises(DataError, match=rf"row {missing.arg_true()[0]} has no features"):
        route(tmp_path / "strict", opened.path, tmp_path / "again.parquet")


# --- memory -----------------------------------------------------------------------------------------------------------

CHILD = """
import sys, threading, time
from pathlib import Path
import torch
from l2d.rejector import route as module
from l2d.rejector.route import route

torch.set_num_threads(1)
module.READ_AT_ONCE = 1 << 16
anonymous, peak = lambda: int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]), 0


def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)


run, warm, out, *sources = map(Path, sys.argv[1:])
route(run, warm, out)
threading.Thread(target=watch, daemon=True).start()
for source in sources:
    before = peak = anonymous()
    route(run, source, out, overwrite=True)
    print((peak - before) / 1024)
"""


@pytest.mark.slow
def test_a_file_is_never_in_memory_as_a_whole(home, tmp_path, table):
    """As Parquet in one row group, and as CSV. Read whole, these rows and their features take 150 MiB."""
    rows, generator = 400_000, np.random.default_rng(0)
    columns = {"id": [f"patient {row}" for row in range(rows)], "ward": generator.choice(["a", "b"], rows)}
    frame = pl.DataFrame(columns | {name: generator.normal(size=rows).round(4) for name in ("x1", "x2")})
    frame.write_parquet(tmp_path / "new.parquet", row_group_size=rows)
    frame.write_csv(tmp_path / "new.csv")
    unlabelled(table).write_parquet(tmp_path / "warm.parquet")
    paths = [home / "linear", *(tmp_path / name for name in ("warm.parquet", "out.parquet", "new.parquet", "new.csv"))]
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == rows
    taken = [float(line) for line in result.stdout.split()]  # MiB
    assert len(taken) == 2
    assert max(taken) < 90, taken
