"""The command line as users meet it: fast help, results on stdout, exit codes, messages."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from l2d import cli

COMMANDS = [
    "build",
    "import",
    "status",
    "verify",
    "audit",
    "push",
    "recalibrate",
    "add-agent",
    "extend",
    "sign",
    "fetch",
    "train",
    "sweep",
    "evaluate",
    "theory",
    "route",
    "policy",
    "choose",
    "query",
    "report",
    "export",
    "demo",
    "data digits",
    "data prompts",
    "data mimic",
    "describe",
    "worth",
    "data photos",
    "serve",
    "watch",
    "replay",
]


@pytest.fixture
def cache(recipe_file: Path, tmp_path: Path, l2d) -> Path:
    folder = tmp_path / "cache"
    assert l2d("build", recipe_file, "--out", folder)[0] == 0
    return folder


@pytest.mark.slow
def test_every_command_has_help_with_examples_and_loads_nothing_heavy():
    for command in COMMANDS:
        code = (
            f"import sys; from l2d import cli; sys.argv = ['l2d', *'{command}'.split(), '--help']\n"
            "try: cli.main()\nexcept SystemExit as stopped: assert not stopped.code\n"
            "heavy = {'torch', 'pyarrow', 'duckdb', 'polars', 'sklearn', 'altair', 'numpy'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert f"l2d {command}" in result.stdout
        assert "Examples" in result.stdout


def test_version_and_short_help(l2d):
    from importlib.metadata import version

    assert l2d("--version")[:2] == (0, f"l2d {version('l2d')}\n")
    assert l2d("sweep", "-h")[1] == l2d("sweep", "--help")[1]


def test_readme_names_every_command_and_no_other():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    registered = {command.name for command in cli.app.registered_commands}
    groups = {group.name: group.typer_instance.registered_commands for group in cli.app.registered_groups}
    registered |= {f"{name} {command.name}" for name, commands in groups.items() for command in commands}
    assert registered == set(COMMANDS)
    for command in COMMANDS:
        assert f"`l2d {command}" in readme, command


def test_build_prints_the_status_on_stdout_and_the_story_on_stderr(recipe_file, tmp_path, l2d):
    code, out, err = l2d("build", recipe_file, "--out", tmp_path / "c", "--format", "json")
    assert code == 0
    rows = json.loads(out)  # nothing but the result
    assert [row["agent"] for row in rows] == ["model", "expert", "cheap"]
    assert all(row["parts"] == "5/5" and row["samples"] == 240 for row in rows)
    assert "asked: model 240 samples" in err
    code, _, err = l2d("build", recipe_file, "--out", tmp_path / "c")
    assert code == 0
    assert "nothing to ask" in err


@pytest.mark.slow
def test_formats_of_one_result_hold_the_same_values(cache, l2d):
    tables = {format: l2d("status", cache, "--format", format)[1] for format in ("json", "csv")}
    from_json = json.loads(tables["json"])
    from_csv = list(csv.DictReader(io.StringIO(tables["csv"])))
    assert [row["agent"] for row in from_csv] == [row["agent"] for row in from_json]
    assert [float(row["cost_cla test"]) for row in from_csv] == [row["cost_cla test"] for row in from_json]
    command = [sys.executable, "-m", "l2d.cli", "status", str(cache), "--format", "parquet"]
    binary = subprocess.run(command, capture_output=True, check=True).stdout
    assert pq.read_table(io.BytesIO(binary)).to_pylist() == from_json


@pytest.mark.slow
def test_train_evaluate_and_report(cache, tmp_path, l2d):
    run = tmp_path / "run"
    code, out, err = l2d("train", cache, "--out", run, "--epochs", 3, "--beta", 0.1, "--format", "json")
    assert code == 0, err
    assert json.loads(out)["beta"] == 0.1
    assert "asking no agent" in err
    code, out, _ = l2d("evaluate", run, "--split", "validation", "--format", "json")
    result = json.loads(out)
    assert code == 0
    assert result["split"] == "validation"
    assert set(result) >= {
        "num_samples", "deferral_loss", "allocation", "metrics", "agents", "oracle_loss", "best_agent_loss",
        "random_same_shares_loss", "regret",
    }  # fmt: skip
    assert sum(result["allocation"].values()) == pytest.approx(1)
    code, out, _ = l2d("evaluate", run)
    assert code == 0
    assert "oracle (lower bound)" in out
    page, figure, folder = tmp_path / "r.html", tmp_path / "f.svg", tmp_path / "figures"
    options = ("--by", "ward", "--by", "x1 > 0", "--figure", figure, "--figures", folder)
    code, out, _ = l2d("report", run, "--out", page, *options)
    assert code == 0
    names = ["rejectors", "cost-quality", "risk-coverage", "where-1", "where-2"]
    assert out.split() == [str(page), str(figure), *(str(folder / f"recipe-{name}.png") for name in names)]
    html = page.read_text(encoding="utf-8")
    assert "by x1 &gt; 0" in html
    assert figure.read_text(encoding="utf-8").startswith("<svg")
    for name in names:
        assert (folder / f"recipe-{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("by", "word"),
    [
        ("wrad", "there is no column 'wrad'\n  next:  did you mean 'ward'? the columns are sample_id, "),
        ("count(*)", "aggregate function"),
        ("pg_read(", "syntax error"),
        ("read_text('/etc/hostname')", '"read_text" is a table function'),
    ],
)
@pytest.mark.slow
def test_a_wrong_group_is_refused_with_the_columns_there_are(patient_runs, tmp_path, l2d, by, word):
    code, _, err = l2d("report", patient_runs / "linear", "--out", tmp_path / "r.html", "--by", by)
    assert code == 2
    assert err.startswith(f"error: --by {by!r}: ")
    assert word in err
    assert "the columns are sample_id, " in err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.slow
def test_a_rejector_goes_to_work(cache, recipe_file, tmp_path, l2d):
    run, out, model = tmp_path / "run", tmp_path / "out.csv", tmp_path / "rejector.onnx"
    assert l2d("train", cache, "--out", run, "--epochs", 3, "--rejector", "linear")[0] == 0
    code, printed, err = l2d("route", run, recipe_file.parent / "patients.parquet", "--out", out, "--format", "json")
    assert code == 0, err
    result = json.loads(printed)
    rows = result["agents"]
    assert result["unlike_training"] == []
    assert [row["agent"] for row in rows] == ["model", "expert", "cheap"]
    assert sum(row["samples"] for row in rows) == 240
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    with open(out, encoding="utf-8") as file:
        routed = list(csv.DictReader(file))
    assert [row["sample_id"] for row in routed[:2]] == ["p0000", "p0001"]
    code, printed, _ = l2d("route", run, cache, "--out", tmp_path / "out.parquet")
    assert (code, "240 inputs in" in printed) == (0, True)
    code, _, err = l2d("route", run, cache, "--out", out)
    assert (code, "--overwrite" in err) == (2, True)
    code, _, err = l2d("route", run, recipe_file, "--out", tmp_path / "other.csv")
    assert (code, "neither .parquet nor .csv" in err) == (3, True)
    code, printed, _ = l2d("export", run, "--onnx", model, "--format", "json")
    assert code == 0
    assert json.loads(printed)[0] | {"bytes": 0, "opset": 0} == {
        "file": str(model), "input": "features", "shape": "batch x 6", "opset": 0, "bytes": 0,
    }  # fmt: skip
    assert model.stat().st_size == json.loads(printed)[0]["bytes"]


@pytest.mark.slow
def test_a_sweep_is_evaluated_as_a_list_and_is_not_trained_twice(cache, tmp_path, l2d):
    runs = tmp_path / "runs"
    sweep = ["sweep", cache, "--out", runs, "--beta", "0,0.1", "--seeds", 2, "--epochs", 2]
    code, _, err = l2d(*sweep)
    assert code == 0
    assert "trained 4 rejectors together" in err
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*.*")}
    code, _, err = l2d(*sweep)
    assert code == 0
    assert "4 of 4 were trained already" in err
    assert before == {file: file.stat().st_mtime_ns for file in runs.rglob("*.*")}
    code, out, _ = l2d("evaluate", runs, "--format", "json")
    results = json.loads(out)
    assert sorted((r["beta"], r["seed"]) for r in results) == [(0, 0), (0, 1), (0.1, 0), (0.1, 1)]
    for result in results:
        same = [r["deferral_loss"] for r in results if r["beta"] == result["beta"]]
        assert result["over_seeds"]["deferral_loss"]["mean"] == pytest.approx(sum(same) / 2)
    code, _, err = l2d(*sweep[:-1], 3)
    assert code == 3
    assert "other settings" in err
    assert "--overwrite" in err
    assert l2d(*sweep[:-1], 3, "--overwrite")[0] == 0


def test_a_query_may_be_longer_than_any_file_name(cache, l2d):
    sql = f"SELECT count(*) AS n FROM agents -- {'x' * 5000}"
    code, out, _ = l2d("query", cache, sql, "--format", "json")
    assert code == 0
    assert json.loads(out) == [{"n": 3}]


def test_each_kind_of_mistake_has_its_exit_code_and_says_what_to_do(cache, recipe_file, tmp_path, l2d):
    text = recipe_file.read_text(encoding="utf-8")

    def recipe(changed: str) -> Path:
        path = recipe_file.parent / "changed.toml"
        path.write_text(changed, encoding="utf-8")
        return path

    new = tmp_path / "new"
    for wrong, expected in (
        (["build"], "error: `l2d build` needs RECIPE"),
        (["build", recipe_file], "error: `l2d build` needs --out"),
        (["biuld"], "did you mean 'build'?"),
        (["data", "digit"], "did you mean 'digits'?"),
        (["train", cache, "--out", new, "--bata", 1], "did you mean --beta?"),
        (["train", cache, "--out", new, "--epochs", 0], "error: --epochs expects a number >= 1; got 0"),
        (["train", cache, "--out", new, "--epochs", "x"], "error: --epochs expects a whole number; got 'x'"),
        (["train", cache, "--out", new, "--rejector", "MPL"], "did you mean 'mlp'?"),
        (["train", cache, "--out", new, "--memory", "5X"], "--memory expects a size such as 500MB or 2GiB; got '5X'"),
    ):
        code, out, err = l2d(*wrong)
        assert (code, out, expected in err) == (2, "", True), err
        assert err.startswith("error: ")
        assert "\n  next:  " in err
    code, _, err = l2d("build", recipe(text.replace("keep =", "kepe =")), "--out", new)
    assert (code, "did you mean 'keep'?" in err) == (2, True)
    code, _, err = l2d("build", recipe(text.replace("patients.parquet", "none.parquet")), "--out", new)
    assert (code, "none.parquet" in err) == (3, True)
    code, _, err = l2d("build", recipe(text.replace("chunk_size = 50", "chunk_size = 60")), "--out", cache)
    assert (code, "chunk_size: was 50, now 60" in err) == (3, True)
    (recipe_file.parent / "bad.py").write_text("def ask(batch): return {'cla': [0], 'reg': [0.0]}\n", encoding="utf-8")
    failing = text + '\n[[agents]]\nname = "wrong"\nkind = "python"\nfile = "bad.py"\n'
    code, _, err = l2d("build", recipe(failing), "--out", cache)
    assert (code, "agent 'wrong' answered `cla` of shape (1,)" in err) == (5, True)
    code, _, err = l2d("train", cache, "--out", tmp_path / "run")
    assert (code, "run the `l2d build`" in err) == (4, True)
    assert not new.exists()
    assert not (tmp_path / "run").exists()
    assert l2d("evaluate", tmp_path / "none")[0] == 2


def test_bad_options_are_refused_before_anything_is_trained(cache, tmp_path, l2d):
    out = tmp_path / "run"
    for options, expected in (
        (["--beta", "nobody=1"], "the experts are expert, cheap"),
        (["--beta", "model=1"], "the recipe says that it is free"),
        (["--beta", "-1"], "query costs are numbers >= 0"),
        (["--beta", "much"], "not a list of numbers"),
        (["--lambda", "cla"], "expects name=value pairs"),
        (["--lambda", "map=1"], "this cache has cla, reg"),
        (["--method", "other"], "unknown value 'other' for --method"),
        (["--rejector", "forest"], "choose from linear, mlp, transformer"),
        (["--cost", "cost_nothing"], "the columns are cost_cla, cost_reg"),
        (["--device", "cuda:99"], "try --device cpu"),
        (["--beta", "0,1"], "l2d sweep"),
    ):
        code, _, err = l2d("train", cache, "--out", out, "--epochs", 1, *options)
        assert (code, expected in err) == (2, True), (options, err)
        assert not out.exists()


def test_verify_names_the_damaged_file(cache, l2d):
    assert l2d("verify", cache)[0] == 0
    part = sorted((cache / "agents" / "expert").glob("costs-*/00003.parquet"))[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    code, _, err = l2d("verify", cache)
    assert (code, str(part) in err) == (3, True)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_says_that_the_same_command_goes_on(number, expected, cache, tmp_path, l2d, monkeypatch):
    from l2d.rejector.training import points

    def interrupted(*_, **__):
        signal.raise_signal(number)

    monkeypatch.setattr(points, "train_grid", interrupted)
    code, _, err = l2d("train", cache, "--method", "multi-task", "--out", tmp_path / "run")
    assert code == expected
    assert f"To go on: l2d train {cache} --method multi-task --out" in err
    assert not (tmp_path / "run").exists()
