"""Adding an agent: the samples stand for all, nothing that tells the truth is given away, and every step follows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from decision_worlds import right_by_type, world_of

import l2d as library
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.rejector.decisions.first_questions import spread_out


@pytest.fixture(scope="module")
def world():
    """60 samples whose predictions are a plane, without types."""
    plain = world_of(right_by_type(3, 2, 0), (0.0, 0.0), 60, classes=2, seed=0)
    return replace(plain, known=replace(plain.known, predicted=np.random.default_rng(0).random((60, 2))))


def test_every_sample_is_as_likely_and_the_mean_varies_less(world):
    """Against draws without a plan: frequencies by their binomial error, and the variance of a mean of predictions."""
    times, count = 300, 15
    chosen = [spread_out(world, count, seed) for seed in range(times)]
    assert {len(set(rows)) for rows in chosen} == {count}
    share = np.bincount(np.concatenate(chosen), minlength=60) / times
    assert np.abs(share - count / 60).max() < 4.5 * (0.25 * 0.75 / times) ** 0.5
    value = world.known.predicted[:, 0] * world.known.predicted[:, 1]
    means = np.array([value[rows].mean() for rows in chosen])
    plain = value.var(ddof=1) / count * (1 - count / 60)  # of a simple random sample
    assert means.var() < 0.6 * plain
    assert abs(means.mean() - value.mean()) < 4 * (plain / times) ** 0.5


def test_of_few_samples_all_are_chosen(world):
    assert sorted(spread_out(world, 99)) == list(range(60))
    assert len(set(spread_out(world, 5, among=np.arange(10, 20))) & set(range(10, 20))) == 5


def test_step_by_step_to_the_cache(patient_runs, tmp_path, l2d, l2d_done):
    """What is asked, what it is worth, what is left."""
    run, ask = patient_runs / "best", tmp_path / "ask.csv"
    told = json.loads(l2d_done("add-agent", run, "--ask", "30", "--out", ask, "--format", "json"))
    table = pl.read_csv(ask)
    cache = CostCache(patient_runs / "cache")
    truths = {column for column in cache.samples(0).column_names if column.startswith("target")}
    assert table["sample_id"].to_list() == told["asked"]
    assert len(table) == 30
    assert truths
    assert not {"split", *truths} & set(table.columns)
    tests = pl.read_parquet(run / "allocations.parquet").filter(pl.col("split") == "test")["sample_id"].to_list()
    assert set(told["asked"]) <= set(tests)
    answers = tmp_path / "answers.csv"
    pl.DataFrame({"sample_id": told["asked"], "correct": [1] * 30}).write_csv(answers)
    rest, more = tmp_path / "rest.csv", tmp_path / "more.csv"
    steps = ["--answers", answers, "--rest", rest, "--ask", "5", "--out", more]
    code, out, err = l2d("add-agent", run, *steps)
    assert code == 0, err
    assert "worth it" in out
    found = library.worth(run, new=answers, buy=5)
    assert pl.read_csv(more)["sample_id"].to_list() == found.next
    assert set(pl.read_csv(rest)["sample_id"]) == set(samples(cache)) - set(told["asked"])
    assert "l2d extend CACHE" in err
    for wrong, said in (
        ([], "neither samples"),
        (["--ask", "30"], "go together"),
        (["--ask", "3", "--out", more], "--ask 3"),
        (["--ask", "30", "--out", ask], "already"),
        (["--ask", "30", "--out", tmp_path / "x.csv", "--charge", "1"], "go with --answers"),
    ):
        code, _, err = l2d("add-agent", run, *wrong)
        assert code == 2
        assert said in err
    with pytest.raises(UsageError, match="already"):
        library.add_agent(run, answers=answers, rest=rest)


def samples(cache: CostCache) -> list[str]:
    return [one for chunk in range(cache.record.num_chunks) for one in cache.samples(chunk)["sample_id"].to_pylist()]
