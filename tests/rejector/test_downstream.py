"""Every command that comes after training, on runs of the default method from tables that leave little to learn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from l2d.cli import app

ROWS = 120


def usual(x, costs):
    return x, costs


def answers_once(x, costs):
    costs[1:, 1] = np.nan  # an import refuses an agent that answers nothing at all
    return x, costs


def all_equal(x, costs):
    return x, np.repeat(costs[:, :1], costs.shape[1], axis=1)


def constant_feature(x, costs):
    return np.concatenate([np.full((len(x), 1), 7.0), x[:, 1:]], axis=1), costs


def crowd(x, costs):
    many = np.random.default_rng(1).random((len(x), 500))
    return x, np.concatenate([costs, (many < 0.5 + 0.2 * np.tanh(x[:, :1])).astype(float)], axis=1)


def write(folder: Path, spoil) -> None:
    """Two tables, as a newcomer has them: inputs, and a column of scores for each agent."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 3))
    x, costs = spoil(x, (random.random((ROWS, 3)) < 1 / (1 + np.exp(-2 * x))).astype(float))
    ids = [f"q{row}" for row in range(ROWS)]
    columns = {f"x{k}": x[:, k] for k in range(3)}
    pl.DataFrame({"id": ids, **columns}).write_csv(folder / "inputs.csv")
    names = [f"a{agent:03d}" for agent in range(costs.shape[1])]
    scores = pl.DataFrame({"id": ids, **{name: 1 - costs[:, agent] for agent, name in enumerate(names)}})
    scores.fill_nan(None).write_csv(folder / "scores.csv")


@pytest.mark.parametrize(
    "spoil",
    [usual, answers_once, all_equal, constant_feature, pytest.param(crowd, marks=pytest.mark.slow)],
    ids=lambda function: function.__name__,
)
@pytest.mark.timeout(300)
def test_every_command_works_or_says_why_not(spoil, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, spoil)

    def l2d(*words: object) -> str:
        capfd.readouterr()
        app([str(word) for word in words], standalone_mode=False)
        return capfd.readouterr().out

    l2d("import", "scores", "inputs.csv", "scores.csv", "--id", "id", "--out", "cache")
    l2d("sweep", "cache", "--out", "runs", "--beta", "0")
    [run] = (path.parent for path in (tmp_path / "runs").glob("*/run.json"))
    agents = json.loads((run / "run.json").read_text())["agents"]

    evaluated = json.loads(l2d("evaluate", run, "--format", "json"))
    assert np.isfinite(evaluated["deferral_loss"])
    theory = json.loads(l2d("theory", run, "--format", "json"))
    assert theory["verdict"]
    l2d("report", run, "--out", "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page, re.DOTALL).group(1))
    assert "cache1-reliability-agent-0" in specs

    routed = json.loads(l2d("route", run, "inputs.csv", "--out", "at_0.csv", "--format", "json"))
    assert sum(row["samples"] for row in routed["agents"]) == ROWS
    setting = f"{agents[0]}=0.3,{agents[-1]}=0.1"
    l2d("route", run, "inputs.csv", "--out", "at_another.csv", "--beta", setting)
    report = json.loads(l2d("policy", run, "--capacity", f"{agents[0]}=0.5", "--mode", "batch", "--format", "json"))
    assert report["constraints"][0]["held"]
    l2d("policy", run, "--capacity", f"{agents[0]}=0.5", "--save", "policy.json")
    l2d("route", run, "inputs.csv", "--out", "by_policy.csv", "--policy", "policy.json")
    l2d("choose", "runs", "--target", "deferral_loss<=1e9")
    l2d("export", run, "--onnx", "rejector.onnx")
    for file in ("at_0.csv", "at_another.csv", "by_policy.csv"):
        allocated = pl.read_csv(file)["agent"]
        assert len(allocated) == ROWS
