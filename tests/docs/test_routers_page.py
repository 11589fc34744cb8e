"""The commands of docs/routers.md, each run on the published table that it names, as it lies there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import l2d
from l2d.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routers.md"
PUBLISHED = next(
    (folder / "shared/data" for folder in Path(__file__).resolve().parents if (folder / "shared/data").is_dir()), None
)


def commands() -> dict[str, list[list[str]]]:
    """Cache -> the commands about it, in the page's order."""
    text = PAGE.read_text(encoding="utf-8")
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
        for line in block.splitlines():
            name = re.search(r"(\w+)\.(?:cache|runs)\b", line)
            assert line.startswith("l2d ") and name, line  # noqa: PT018
            found.setdefault(name[1], []).append(shlex.split(line)[1:])
    return found


def test_the_page_names_every_table():
    assert set(commands()) == {"routerbench", "mmlu_pro", "llmrouter", "routerarena", "viper", "cifar10n"}


PEOPLE = ("viper", "cifar10n")  # whose sweeps take minutes on two cores


def run(command: list[str]) -> None:
    """A command of the page, on the tables where they lie."""
    lie = {path.name: str(path) for path in PUBLISHED.rglob("*") if path.is_file()}
    words = [lie.get(word, word) for word in command]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, (words, result.stderr)


@pytest.mark.skipif(PUBLISHED is None, reason="published tables are not here")
@pytest.mark.parametrize("name", sorted(set(commands()) - set(PEOPLE)))
def test_each_command_runs_on_the_table_as_it_was_published(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for command in commands()[name]:
        run(command)
    assert Path(f"{name}.html").stat().st_size > 10_000
    result = CliRunner().invoke(app, ["evaluate", f"{name}.runs", "--format", "json"], catch_exceptions=False)
    evaluations = json.loads(result.stdout)
    evaluations = evaluations if isinstance(evaluations, list) else [evaluations]
    assert all("router_metrics" in each for each in evaluations)
    if name == "routerbench":
        assert Path("routerbench.png").is_file()
        assert evaluations[0]["router_metrics"]["sweep"]["best"]["aiq"] > 0.8


@pytest.mark.skipif(PUBLISHED is None, reason="published tables are not here")
@pytest.mark.parametrize("name", PEOPLE)
def test_people_cost_what_plain_polars_says(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    run(commands()[name][0])
    if name == "viper":
        rows = pl.read_csv(PUBLISHED / "viper" / "viperObs.csv", infer_schema_length=None)
        parts = ("caseID", "modalityID", "subStudyLabel")
        wrong = (pl.col("recall") == 1) != (pl.col("cancerStatus365") == 1)
        said = rows.select(
            pl.concat_str(*parts, separator="/").alias("id"), pl.col("readerID").alias("agent"), wrong=wrong
        )
    else:
        rows = pl.read_parquet(PUBLISHED / "cifar10n" / "cifar10n_answers.parquet")
        labels = [f"random_label{k}" for k in (1, 2, 3)]
        rows = rows.select("clean_label", *labels, id=pl.col("image_index").cast(pl.String))
        said = rows.unpivot(labels, index=["id", "clean_label"], variable_name="agent", value_name="label")
        said = said.select("id", "agent", wrong=pl.col("label") != pl.col("clean_label"))
    cache = l2d.CostCache(Path(f"{name}.cache"))
    assert {agent.name for agent in cache.agents} == set(said["agent"])
    chunks = range(cache.record.num_chunks)
    for agent in cache.agents:
        found = pl.concat([pl.from_arrow(cache.costs(agent.name, k)) for k in chunks]).drop_nulls("cost_cla")
        own = said.filter(agent=agent.name)
        joined = found.join(own, left_on="sample_id", right_on="id", validate="1:1")
        assert len(joined) == len(found) == len(own)
        assert (joined["cost_cla"] - joined["wrong"].cast(pl.Float64)).abs().max() < 1e-9
