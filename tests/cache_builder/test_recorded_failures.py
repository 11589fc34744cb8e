"""Failures on record: the samples that fail are found, costs are missing and not zero, training asks what to do."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import no_temporaries, refused
from recipes import RECIPE, agent

from l2d.cache_builder.asking import time_limit
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.grid import make_grid
from l2d.rejector.rows.table import load_tables
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.query import query
from l2d.rejector.sweep import sweep

FAILING = ["p0005", "p0063", "p0064", "p0110"]
AGENT = """
import time
from pathlib import Path

import numpy as np


def ask(batch, folder, largest=10**9):
    with open(folder + "/asked", "a") as file:
        file.writelines(f"{sample}\\n" for sample in batch.ids)
    if len(batch.ids) > largest:
        raise MemoryError(f"{len(batch.ids)} samples at once")
    bad = set(Path(folder, "bad").read_text().split()) & set(batch.ids)
    mode = Path(folder, "mode").read_text()
    if bad and mode == "raise":
        raise ConnectionError("overloaded")
    if bad and mode == "hang":
        time.sleep(60)
    risk = batch.columns["risk_good"].to_numpy()
    stay = batch.columns["stay_good"].to_numpy().copy()
    if bad and mode == "nan":
        stay[[sample in bad for sample in batch.ids]] = np.nan
    return {"prob": np.stack([1 - risk, risk], axis=1), "reg": stay}
"""


@pytest.fixture
def flaky(workshop):
    """A recipe whose last agent fails on four samples as the file ``mode`` says."""
    (workshop.folder / "agent.py").write_text(AGENT)
    (workshop.folder / "bad").write_text(" ".join(FAILING))
    (workshop.folder / "mode").write_text("raise")
    return RECIPE.plus(agent("flaky", "python", file="agent.py", options={"folder": str(workshop.folder)}))


def asked(workshop) -> list[str]:
    return (workshop.folder / "asked").read_text().split()


@pytest.mark.parametrize("mode", ["raise", "nan", "hang"])
@pytest.mark.slow
def test_recorded_failures_are_the_samples_that_fail_and_no_other(workshop, flaky, mode):
    (workshop.folder / "mode").write_text(mode)
    if mode == "hang":
        (workshop.folder / "bad").write_text("p0063")
        flaky = flaky.but({"agents.flaky.timeout": 1.5})
    failing = ["p0063"] if mode == "hang" else FAILING
    report = workshop.build(flaky, on_failure="record")
    assert report.failed["flaky"] == len(failing)
    assert report.asked["flaky"] == len(workshop.table)  # samples, not attempts
    costs = pl.concat(
        [pl.read_parquet(f) for f in sorted((workshop.folder / "cache/agents/flaky").glob("costs*/*.p*"))]
    )
    missing = costs.filter(pl.col("cost_cla").is_null())
    assert missing["sample_id"].to_list() == failing
    assert missing["cost_reg"].null_count() == len(failing)
    reasons = query(
        [workshop.folder / "cache"], "SELECT sample_id, failure FROM predictions WHERE failure > '' ORDER BY 1"
    )
    assert reasons["sample_id"].to_pylist() == failing
    expected = {"raise": "overloaded", "nan": "not finite", "hang": "no answer within 1.5 s"}[mode]
    assert all(expected in reason for reason in reasons["failure"].to_pylist())
    answered = costs.filter(pl.col("cost_cla").is_not_null()).join(workshop.table, left_on="sample_id", right_on="id")
    wrong = ((answered["risk_good"] > 0.5) != (answered["died"] == 1)).cast(pl.Float32)
    assert answered["cost_cla"].to_list() == wrong.to_list()
    workshop.cache().verify()
    assert workshop.build(flaky).asked["flaky"] == 0  # a recorded failure is an answer until it is asked again


@pytest.mark.slow
def test_without_recording_the_build_stops_and_keeps_what_is_finished(workshop, flaky):
    (workshop.folder / "bad").write_text("p0063")
    error = refused(lambda: workshop.build(flaky), AgentFailure, "'flaky'", "overloaded")
    assert "'p0050' to 'p0069'" in str(error.where)  # the batch of twenty that holds p0063
    assert len(list((workshop.folder / "cache/agents/flaky/predictions").glob("*.parquet"))) == 1
    assert no_temporaries(workshop)
    before = len(asked(workshop))
    workshop.build(flaky, on_failure="record")
    assert not set(asked(workshop)[before:]) & {f"p{row:04d}" for row in range(50)}  # the first chunk is not paid twice


@pytest.mark.slow
def test_failures_are_asked_again_alone(workshop, flaky):
    workshop.build(flaky, on_failure="record")
    before = len(asked(workshop))
    (workshop.folder / "mode").write_text("ok")
    report = workshop.build(flaky, retry_failures=True)
    assert sorted(asked(workshop)[before:]) == FAILING
    assert report.asked == {"model": 0, "expert": 0, "cheap": 0, "flaky": 4}
    workshop.build(flaky, out="undisturbed")
    for column, values in workshop.predictions("flaky", "undisturbed").items():
        np.testing.assert_array_equal(workshop.predictions("flaky")[column], values)
    workshop.cache().verify()
    load_tables(workshop.cache(), ("train",))  # nothing is refused any more


@pytest.mark.slow
def test_an_average_of_a_failure_is_a_failure_and_follows_when_it_is_answered(workshop, flaky):
    text = flaky.plus(agent("mean", "average", of=["expert", "flaky"], reference=True))
    workshop.build(text, on_failure="record")
    reasons = query(
        [workshop.folder / "cache"], "SELECT sample_id FROM predictions WHERE agent = 'mean' AND failure > ''"
    )
    assert sorted(reasons["sample_id"].to_pylist()) == FAILING
    (workshop.folder / "mode").write_text("ok")
    workshop.build(text, retry_failures=True)
    members = [workshop.predictions(name)["pred_reg"] for name in ("expert", "flaky")]
    np.testing.assert_allclose(workshop.predictions("mean")["pred_reg"], np.mean(members, axis=0), rtol=1e-6)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(workshop, flaky):
    (workshop.folder / "mode").write_text("ok")
    small = flaky.but({"agents.flaky.options.largest": 6})
    report = workshop.build(small)
    tried = asked(workshop)
    assert report.failed["flaky"] == 0
    assert report.asked["flaky"] == len(set(tried)) == len(workshop.table)
    workshop.build(flaky, out="whole")
    for column, values in workshop.predictions("flaky", "whole").items():
        np.testing.assert_array_equal(workshop.predictions("flaky")[column], values)
    assert len(tried) < len(workshop.table) + 2 * 20  # 20 fails, 10 fails, 5 fits and is kept
    never = flaky.but({"agents.flaky.options.largest": 0})
    refused(lambda: workshop.build(never, out="never"), AgentFailure, "MemoryError", "'flaky'", "p0000")
    report = workshop.build(never, out="never", on_failure="record")
    assert report.failed["flaky"] == len(workshop.table)


@pytest.mark.slow
def test_training_refuses_failures_unless_told_how_to_treat_them(workshop, flaky):
    workshop.build(flaky, on_failure="record")
    cache = workshop.cache()
    splits = dict(zip(workshop.column("samples", "sample_id"), workshop.column("samples", "split"), strict=True))
    everything = ("train", "validation", "test")
    refused(lambda: load_tables(cache, everything), DataError, "'flaky'", "no answer on", "--failures drop")
    dropped = load_tables(cache, everything, failures="drop")
    worst = load_tables(cache, everything, failures="worst")
    for split in everything:
        here = [sample for sample, of in splits.items() if of == split]
        assert dropped[split].ids == [sample for sample in here if sample not in FAILING]
        assert worst[split].ids == here
    assert sum(len(table) for table in worst.values()) == len(workshop.table)
    highest = dropped["train"].raw.amax(dim=(0, 1))
    highest = np.maximum(highest.numpy(), worst["train"].raw[:, :3].amax(dim=(0, 1)).numpy())
    for split in everything:
        for row, sample in enumerate(worst[split].ids):
            if sample in FAILING:
                np.testing.assert_array_equal(worst[split].raw[row, 3].numpy(), highest)
    with pytest.raises(UsageError, match="failures"):
        load_tables(cache, everything, failures="ignore")


@pytest.mark.parametrize("failures", ["drop", "worst"])
@pytest.mark.slow
def test_a_rejector_is_trained_and_evaluated_with_the_treatment_it_was_told(workshop, flaky, failures):
    workshop.build(flaky, on_failure="record")
    cache = workshop.cache()
    (point,) = make_grid(cache, methods=["multi-task"], weights=[], betas=[], nus=[1.0], seeds=[0])
    folder = workshop.folder / "run"
    with pytest.raises(DataError, match="no answer"):
        sweep(cache, [point], [folder], TrainConfig(epochs=1))
    assert not folder.exists()
    sweep(cache, [point], [folder], TrainConfig(epochs=2, failures=failures))
    (evaluation,) = evaluate_runs([folder], "train")
    failed = sum(of == "train" and sample in FAILING for sample, of in _splits(workshop).items())
    rows = sum(of == "train" for of in _splits(workshop).values())
    assert failed > 0
    assert evaluation.result["num_samples"] == (rows - failed if failures == "drop" else rows)
    alone = evaluation.result["agents"]["flaky"]
    if failures == "drop":
        assert "answered" not in alone
    else:
        assert alone["answered"] == pytest.approx(1 - failed / rows)


def _splits(workshop) -> dict[str, str]:
    return dict(zip(workshop.column("samples", "sample_id"), workshop.column("samples", "split"), strict=True))


def test_a_time_limit_ends_waiting_and_leaves_no_alarm_behind():
    import signal
    import time

    handler, (left, _) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)  # pytest's own limit
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"), time_limit(0.05):
        time.sleep(30)
    assert time.monotonic() - start < 10
    with time_limit(5):
        pass
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(left, abs=10)
