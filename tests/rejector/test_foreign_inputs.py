"""Inputs unlike those of training are named by route; such as training's are not."""

from __future__ import annotations

import json
import sys

import numpy as np
import polars as pl
import pytest

from l2d.cli import main
from l2d.rejector.route import route
from l2d.rejector.rows.foreign import Foreign, sentences
from l2d.rejector.runs.run import load_run


def routed(patient_runs, tmp_path, table: pl.DataFrame) -> list[dict]:
    table.write_parquet(tmp_path / "in.parquet")
    return route(patient_runs / "mlp", tmp_path / "in.parquet", tmp_path / "out.parquet", overwrite=True).foreign


def test_a_run_remembers_ranges_and_shares(patient_runs):
    run = load_run(patient_runs / "mlp")
    table = pl.read_parquet(patient_runs / "patients.parquet")
    allocations = pl.read_parquet(patient_runs / "mlp" / "allocations.parquet")
    of_split = {name: allocations.filter(pl.col("split") == name) for name in ("train", "validation")}
    train = table.filter(pl.col("id").is_in(of_split["train"]["sample_id"].implode()))
    features = run.input.encoder.transform(train)
    assert run.seen["rows"] == train.height
    np.testing.assert_array_equal(np.float32(run.seen["least"]), features.min(axis=0))
    np.testing.assert_array_equal(np.float32(run.seen["most"]), features.max(axis=0))
    counts = np.bincount(of_split["validation"]["agent_index"], minlength=4)
    assert run.seen["validation"] == counts.tolist()


def test_inputs_like_those_of_training_are_not_named(patient_runs, tmp_path):
    assert routed(patient_runs, tmp_path, pl.read_parquet(patient_runs / "patients.parquet")) == []


def test_what_is_foreign_is_named(patient_runs, tmp_path):
    table = pl.read_parquet(patient_runs / "patients.parquet")
    ward = pl.when(pl.int_range(pl.len()) < 7).then(pl.lit("z")).otherwise("ward").alias("ward")
    (unseen,) = routed(patient_runs, tmp_path, table.with_columns(ward))
    assert (unseen["kind"], unseen["name"], unseen["inputs"]) == ("unseen category", "ward", 7)
    one = table.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(999.0).otherwise("x1").alias("x1"))
    (outside,) = routed(patient_runs, tmp_path, one)
    assert (outside["kind"], outside["name"]) == ("outside the training range", "x1")
    assert outside["inputs"] >= 1
    moved = routed(patient_runs, tmp_path, table.filter(pl.col("x1") > 0.5))
    assert {found["kind"] for found in moved} <= {"another share"}


def test_shares_count_where_they_differ_by_more_than_chance():
    seen = {"validation": [50, 50]}
    for counts, named in (([50, 50], False), ([40, 60], False), ([0, 100], True), ([0, 2], False), ([90, 10], True)):
        foreign = Foreign(seen, None, [], ["model", "expert"])
        foreign.see(np.zeros((sum(counts), 0), np.float32))
        assert bool(foreign.findings(counts)) == named, counts
        assert foreign.findings(None) == []
    assert len(sentences([{"kind": "another share", "name": "a", "share": 0.1, "on validation": 0.9}])) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_the_command_says_it_and_strict_makes_it_the_exit_status(patient_runs, tmp_path, capfd, monkeypatch, strict):
    table = pl.read_parquet(patient_runs / "patients.parquet").with_columns(ward=pl.lit("z"))
    table.write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    given = ["route", str(patient_runs / "mlp"), str(tmp_path / "in.parquet"), "--out", str(out), "--format", "json"]
    monkeypatch.setattr(sys, "argv", ["l2d", *given, *(["--strict"] if strict else [])])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code or 0) == (3 if strict else 0)
    printed = capfd.readouterr()
    assert "categories that training has not seen: ward (400 inputs)" in printed.err
    result = json.loads(printed.out)
    assert {found["kind"] for found in result["unlike_training"]} >= {"unseen category"}
    assert sum(row["samples"] for row in result["agents"]) == 400
    assert out.is_file()
