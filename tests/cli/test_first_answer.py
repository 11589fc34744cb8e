"""The first answer of a process: what trains nothing does not wait for torch to be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import RECIPE, write_table
from typer.testing import CliRunner

from l2d import cli
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.rejector import served
from l2d.rejector.at_work import policy
from l2d.rejector.library import sweep

COMMANDS = {
    "status": ["status", "cache"],
    "query": ["query", ".", "SELECT agent, count(*) FROM allocations GROUP BY ALL"],
    "route": ["route", "runs", "new.csv", "--out", "routed.parquet"],
    "route by prices": ["route", "runs", "new.csv", "--policy", "prices.json", "--out", "by_prices.parquet"],
    "route at another beta": ["route", "runs", "new.csv", "--beta", "0.2", "--out", "at_another.parquet"],
    "export": ["export", "runs", "--onnx", "rejector.onnx"],
    "help": ["route", "--help"],
}
PROGRAM = """
import sys
from l2d import cli
sys.argv = ["l2d", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "torchvision", "sklearn", "pandas"} & set(sys.modules)
if "--help" not in sys.argv:
    heavy |= LEFT_OUT[sys.argv[1]] & set(sys.modules)
assert not heavy, heavy
"""
#: Command -> what it has no use for, though others have.
LEFT_OUT = {
    "status": {
        *("pyarrow.compute", "pyarrow.csv", "pyarrow.dataset", "polars", "duckdb", "isal", "rich", "scipy"),
        *("l2d.rejector", "l2d.cache_builder"),
    },
    "query": {"polars", "scipy", "rich", "l2d.rejector.commands.train", "l2d.cache_builder"},
    "export": {"scipy", "duckdb", "onnxscript", "l2d.rejector.decisions.library"},
    "route": {
        *("scipy", "duckdb", "rich", "isal", "l2d.data.sources.table", "l2d.rejector.decisions.library"),
        *("l2d.rejector.commands.train", "l2d.cache_builder"),
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    write_table(folder, rows=240)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache")
    sweep(folder / "cache", folder / "runs", methods=["best"], betas=[0.1], seeds=[0])
    (table,) = (path for path in folder.iterdir() if path.suffix in (".csv", ".parquet"))
    read = pl.read_csv if table.suffix == ".csv" else pl.read_parquet
    read(table).write_csv(folder / "new.csv")
    policy(folder / "runs", coverage=0.5, save=folder / "prices.json")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_torch_is_not_imported_where_nothing_is_trained(place, name):
    if name == "export":
        pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, "-c", f"LEFT_OUT = {LEFT_OUT}\n{PROGRAM}", *COMMANDS[name]],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "leak" not in done.stderr  # which DuckDB says where the end of a process leaves something of it


def test_what_a_query_reads_is_found_without_scipy():
    """A query runs in a process of its own, so the command's own modules do not show it."""
    program = (
        "import sys, l2d.rejector.sql.answer\nassert not {'scipy', 'polars', 'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_python_reads_a_run_asks_it_and_starts_a_policy_without_torch(place):
    (run,) = (path.parent for path in (place / "runs").rglob("run.json"))
    program = (
        "import sys\nfrom pathlib import Path\nimport l2d\nfrom l2d.rejector.policies import policy, scored\n"
        "run = l2d.load_run(Path(sys.argv[1]))\nassert not run.rejector.guard['holds']\n"
        "assert l2d.policy and len(scored.read_scored(run, 'test'))\n"
        "assert l2d.query(run, 'SELECT count(*) AS n FROM allocations').rows()[0]['n']\n"
        "assert not {'scipy', 'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, run], check=True, timeout=120)


@pytest.mark.parametrize("words", [["status", "--help"], ["route", "run", "--nope"], ["import", "--format", "odd"]])
def test_a_command_that_is_built_alone_says_what_it_says_among_the_others(words):
    alone, among = (CliRunner().invoke(app, words, prog_name="l2d") for app in (cli.app_for(words), cli.app))
    assert (alone.exit_code, alone.output) == (among.exit_code, among.output)
    assert cli.app_for(words) is not cli.app


@pytest.mark.parametrize("words", [[], ["--help"], ["statsu"], ["data", "prompts"]])
def test_without_a_command_first_all_of_them_are_there(words):
    assert cli.app_for(words) is cli.app


def test_a_run_that_is_opened_without_torch_scores_as_with_it(place):
    """Bit for bit: both the file that routing writes and the run's own allocations."""
    (run,) = (path.parent for path in (place / "runs").rglob("run.json"))
    plain, full = served.open_served(run), served._of_any(run, None, None, None)
    samples = pq.read_table(place / "cache" / "samples" / "00000.parquet")
    features = pl.from_arrow(samples)["features"].to_numpy().astype("float32")
    scores = plain.scores(features)
    assert scores.tobytes() == full.scores(features).tobytes()
    everybody = scores == scores
    assert (plain.choose(scores, everybody) == full.choose(scores, everybody)).all()
    assert (plain.agents, plain.looks_at, plain.failures) == (full.agents, full.looks_at, full.failures)
