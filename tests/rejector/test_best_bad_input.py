"""The default method on tables that leave little or much to learn, by the commands that one types: import to report."""

from __future__ import annotations

import json
import sys

import numpy as np
import polars as pl
import pytest


def table(rows: int = 120, agents: int = 3, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features, and scores in [0, 1]: each agent is right where its own feature is low."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, width))
    scores = (random.random((rows, agents)) > 1 / (1 + np.exp(-2 * x[:, np.arange(agents) % width]))).astype(float)
    return x, scores


def one_class():
    x, scores = table()
    return x, np.ones_like(scores)


def one_row_an_agent():
    x, scores = table(rows=60)
    kept = np.full_like(scores, np.nan)
    kept[:, 0] = scores[:, 0]
    kept[:6, 1], kept[6:12, 2] = scores[:6, 1], scores[6:12, 2]
    return x, kept


def hardly_ever():
    x, scores = table()
    scores[1:, 2] = np.nan
    return x, scores


def constant_feature():
    x, scores = table()
    return np.ones_like(x), scores


def more_features_than_rows():
    return table(rows=60, width=150)


def five_hundred_agents():
    x, scores = table(agents=500)
    scores[np.random.default_rng(1).random(scores.shape) < 0.2] = np.nan
    return x, scores


@pytest.fixture
def l2d(monkeypatch, capfd):
    """Run a command in this process; returns its standard output and error."""
    from l2d import cli

    def call(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["l2d", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        assert not stopped.value.code, err
        return out, err

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [one_class, one_row_an_agent, hardly_ever, constant_feature, more_features_than_rows, five_hundred_agents],
    ids=lambda case: case.__name__,
)
def test_from_import_to_report(case, l2d, tmp_path):
    x, scores = case()
    names = [f"agent_{k}" for k in range(scores.shape[1])]
    features = pl.DataFrame({"case": [f"c{k}" for k in range(len(x))]} | {f"x{k}": v for k, v in enumerate(x.T)})
    answers = features.select("case").hstack(pl.DataFrame(scores, schema=names).fill_nan(None))
    features.write_csv(tmp_path / "features.csv")
    answers.write_csv(tmp_path / "answers.csv")
    l2d("import", "scores", tmp_path / "features.csv", tmp_path / "answers.csv", "--id", "case", "--features",
        ",".join(f"x{k}" for k in range(x.shape[1])), "--out", tmp_path / "cache")  # fmt: skip
    runs = tmp_path / "runs"
    _, said = l2d("sweep", tmp_path / "cache", "--out", runs, "--beta", "0")
    out, _ = l2d("evaluate", runs, "--format", "json")
    assert json.loads(out)
    [first, *_] = sorted(path for path in runs.iterdir() if (path / "allocations.parquet").exists())
    l2d("route", first, tmp_path / "features.csv", "--out", tmp_path / "routed.parquet")
    l2d("report", runs, "--out", tmp_path / "report.html")
    routed = pl.read_parquet(tmp_path / "routed.parquet")
    assert len(routed) == len(x)
    asked = pl.read_parquet(first / "allocations.parquet")
    assert len(asked) == np.isfinite(scores).any(axis=1).sum()
    if case in (one_class, constant_feature):  # nothing can be told apart: the constant, and it says so
        assert "choosing agents does not pay" in said
        assert routed["agent"].n_unique() == 1
    if case is hardly_ever:
        assert names[2] not in routed["agent"].to_list()
