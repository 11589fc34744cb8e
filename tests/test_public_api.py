"""`import l2d`: the names that are promised, that they load nothing until used, and that they do what commands do."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import l2d
from l2d import cli

ROOT = Path(__file__).parents[1]
NAMES = {
    "build", "import_table", "status", "verify", "audit", "describe", "push", "fetch", "sign", "train", "sweep",
    "evaluate", "theory", "choose", "report", "query", "route", "policy", "export", "load_policy", "load_run", "worth",
    "CostCache",
    "DeferralRejector", "TrainConfig", "TextFeatures", "L2DError", "UsageError", "DataError", "CorruptPart",
    "FingerprintMismatch", "IncompleteCache", "AgentFailure",
}  # fmt: skip
NAMES |= {"import_detections"}
NAMES |= {
    "Router",
    "load_router",
    "DecisionLog",
    "read_log",
    "serve",
    "replay",
    "watch",
    "recalibrate",
    "extend",
    "add_agent",
}  # at work


def test_the_promised_names_are_these():
    assert set(l2d.__all__) == NAMES
    assert set(dir(l2d)) >= NAMES
    for name in NAMES:
        assert callable(getattr(l2d, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        l2d.nothing  # noqa: B018


def test_the_page_of_the_python_interface_has_them_all():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. auto\w+:: l2d\.(\w+)$", page, flags=re.MULTILINE)) == sorted(NAMES)


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.asname: node.module for node in block.body for alias in node.names}
    assert told == l2d._MODULE_OF


def test_every_command_is_a_function():
    commands = {str(command.name).replace("-", "_") for command in cli.app.registered_commands} - {"demo", "import"}
    assert commands <= NAMES
    assert "import_table" in NAMES


def test_importing_loads_nothing_heavy():
    code = "import sys, l2d; dir(l2d); heavy = {'torch', 'numpy', 'polars', 'pyarrow', 'typer'} & set(sys.modules); "
    result = subprocess.run([sys.executable, "-c", code + "assert not heavy, heavy"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> tuple[Path, l2d.CostCache]:
    """A table, answers of two agents in it, and the cache that they make."""
    folder = tmp_path_factory.mktemp("api")
    cases = pl.DataFrame({"case": range(200), "age": [k % 9 for k in range(200)], "truth": [k % 2 for k in range(200)]})
    answers = pl.DataFrame(
        {
            "case": cases["case"],
            "nurse": [k % 2 if k % 9 < 5 else 0 for k in range(200)],
            "doctor": [k % 2 if k % 9 else 1 for k in range(200)],
        }
    )
    told: list[str] = []
    cache = l2d.import_table(
        cases, answers, out=folder / "my.cache", id="case", target="truth", model="nurse", say=told.append
    )
    assert any("recipe" in line for line in told)
    return folder, cache


def test_frames_become_a_cache(work):
    folder, cache = work
    assert isinstance(cache, l2d.CostCache)
    assert [agent.name for agent in cache.agents] == ["nurse", "doctor"]
    status = l2d.status(folder / "my.cache")
    assert status.frame()["agent"].to_list() == ["nurse", "doctor"]
    assert l2d.verify(cache) > 0
    assert l2d.audit(cache).to_json()[0].keys() >= {"check", "gaps"}


def test_frames_of_pandas_too(work, tmp_path):
    pandas = pytest.importorskip("pandas")
    folder, cache = work
    features = pandas.DataFrame(pl.read_parquet(folder / "my.cache.features.parquet").to_dict(as_series=False))
    answers = pandas.DataFrame(pl.read_parquet(folder / "my.cache.answers.parquet").to_dict(as_series=False))
    again = l2d.import_table(features, answers, out=tmp_path / "p", id="case", target="truth", model="nurse")
    assert again.samples(0).equals(cache.samples(0))
    with pytest.raises(l2d.UsageError, match="features is a list"):
        l2d.import_table([], answers, out=tmp_path / "q", id="case", target="truth")


@pytest.mark.slow
def test_from_a_sweep_to_a_report(work, tmp_path, capfd):
    folder, cache = work
    runs = l2d.sweep(
        cache, tmp_path / "runs", methods="multi-task", betas=[0, 0.1], seeds=2, network="linear", epochs=3
    )
    assert len(runs) == 4
    assert runs.frame()["beta"].to_list() == ["0", "0", "0.1", "0.1"]
    again = l2d.sweep(
        cache, tmp_path / "runs", methods="multi-task", betas=[0, 0.1], seeds=2, network="linear", epochs=3
    )
    assert (again.trained, again.folders) == (0, runs.folders)
    judged = l2d.evaluate(tmp_path / "runs")
    assert {one.run.path for one in judged} == {one.run.path for one in l2d.evaluate(runs)}
    assert len(judged.frame()) == 4
    assert judged.findings()
    assert "<table>" in judged._repr_html_()

    cli.app(["evaluate", str(tmp_path / "runs"), "--format", "json"], standalone_mode=False)
    assert json.loads(capfd.readouterr().out) == json.loads(json.dumps(judged.to_json()))
    cli.app(["evaluate", str(tmp_path / "runs")], standalone_mode=False)
    assert capfd.readouterr().out.rstrip() == judged.table().rstrip()

    (page,) = l2d.report(judged, tmp_path / "report.html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    best = runs.best("coverage>=0")
    assert best in runs.folders
    shares = l2d.query([cache, runs], "SELECT agent, count(*) AS n FROM allocations GROUP BY ALL ORDER BY agent")
    assert shares.frame()["n"].sum() == 4 * 200
    routed = l2d.route(best, folder / "my.cache.features.parquet", tmp_path / "allocations.parquet")
    assert routed.frame()["samples"].sum() == 200
    held = l2d.policy(best, coverage=0.5, mode="batch", save=None)
    assert held.to_json()["mode"] == "batch"
    assert {row["agent"] for row in routed.rows()} == {"nurse", "doctor"}


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    """On tables of the names that it gives; the grid is the README's own, the epochs fewer."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if text.startswith("import l2d")]
    monkeypatch.chdir(tmp_path)
    features = {"case": [f"c{k}" for k in range(300)], "age": [k % 9 for k in range(300)]}
    answers = {"case": features["case"], "nurse": [str(k % 2 if k % 9 < 5 else 0) for k in range(300)]}
    answers["doctor"] = [str(k % 2 if k % 9 else 1) for k in range(300)]
    truth = {"diagnosis": [str(k % 2) for k in range(300)]}
    pl.DataFrame(features | truth).write_csv("features.csv")
    pl.DataFrame(answers).write_csv("answers.csv")
    pl.DataFrame(features).write_csv("new_patients.csv")
    sweep = l2d.sweep
    monkeypatch.setattr(l2d, "sweep", lambda *a, **k: sweep(*a, **k, epochs=3), raising=False)
    exec(compile(block, "README.md", "exec"), {})
    assert len(pl.read_parquet("allocations.parquet")) == 300
    assert Path("report.html").stat().st_size > 100_000


def test_one_run_is_trained_as_in_the_grid(work, tmp_path):
    _, cache = work
    alone = l2d.train(cache, tmp_path / "run", method="multi-task", beta=0.1, seed=1, network="linear", epochs=3)
    (grid,) = l2d.sweep(
        cache, tmp_path / "runs", methods="multi-task", betas=0.1, seeds=[1], network="linear", epochs=3
    )
    assert {name: values.tolist() for name, values in alone.rejector.state.items()} == {
        name: values.tolist() for name, values in grid.rejector.state.items()
    }


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epoch": 3}, "did you mean 'epochs'?"),
        ({"config": l2d.TrainConfig(), "epochs": 3}, "config and single settings together"),
        ({"methods": "multitask"}, "did you mean 'multi-task'?"),
    ],
)
def test_wrong_arguments_are_told_as_commands_tell_them(work, tmp_path, wrong, words):
    with pytest.raises(l2d.UsageError, match=re.escape(words)):
        l2d.sweep(work[1], tmp_path / "runs", **wrong)
