"""`l2d demo prompts`: made-up prompts by text and price, from the data, which says what it is, to the report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused
from programs import demo_in, program

from l2d.data.errors import DataError
from l2d.data.sources.made_up_prompts import KINDS, MODELS, NEW_ROWS, prompts, write_prompts

SCRIPT = Path(__file__).parents[2] / "cache_builder" / "recipes" / "prompts.demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    return demo_in(tmp_path_factory.mktemp("demo"), "prompts")


def test_the_demo_says_that_it_is_made_up_and_shows_every_command(demo):
    _, result = demo
    assert "made-up prompts" in result.stderr
    assert "No real model was asked" in result.stderr
    for block in SCRIPT.read_text(encoding="utf-8").split("\n\n"):
        command = next(line for line in block.splitlines() if line.startswith("l2d"))
        assert f"$ {' '.join(command.split()[:2])} " in result.stderr


def test_the_router_beats_every_single_model_where_a_dollar_counts(demo):
    folder, _ = demo
    results = {
        r["beta"]["paid"]: r for r in json.loads(program("evaluate", folder / "prompts.runs", "-f", "json").stdout)
    }
    assert set(results) == {0, 30, 100, 300, 1000}
    for worth in (100, 300, 1000):
        assert results[worth]["regret"]["best_agent"]["high"] < 0, worth
    assert results[0]["deferral_loss"] > results[0]["agents"]["large"]["mean_cost"] - 0.03


def test_words_alone_tell_the_kind_of_a_prompt(demo):
    """Code goes to the coder, at a dollar worth 100; the kind is in no column that the router sees."""
    folder, result = demo
    run = folder / "prompts.runs" / "best_beta=paid=100_seed=0"
    allocated = pl.read_parquet(run / "allocations.parquet").filter(pl.col("split") == "test")
    code = allocated.filter(pl.col("sample_id").str.starts_with("code"))
    assert (code["agent"] == "coder").mean() > 0.9
    others = allocated.filter(~pl.col("sample_id").str.contains("code|sums|logic"))
    assert (others["agent"] == "coder").mean() < 0.1
    assert "kind" not in (folder / "prompts" / "prompts.csv").read_text(encoding="utf-8").splitlines()[0]
    for kind in KINDS:
        assert kind in result.stdout


def test_prompts_that_nobody_answered_are_routed(demo):
    folder, _ = demo
    routed = pl.read_csv(folder / "allocations.csv")
    assert len(routed) == NEW_ROWS
    assert set(routed["agent"]) <= {model.name for model in MODELS}
    assert routed["sample_id"].str.starts_with("new-").all()
    assert (folder / "report.html").stat().st_size > 50_000


def test_the_demo_goes_on_where_it_stopped(demo):
    folder, _ = demo
    again = program("demo", "prompts", "--out", folder)
    assert again.returncode == 0, again.stderr
    assert "they were there already" in again.stderr
    assert "5 of 5 were trained already" in again.stderr


def test_prompts_are_drawn_from_skills_and_rates():
    table = prompts(4_000, seed=1)
    assert table.equals(prompts(4_000, seed=1))
    assert not table.equals(prompts(4_000, seed=2))
    kinds = table["id"].str.extract(r"^(\w+)-")
    assert set(kinds) == set(KINDS)
    means = {model.name: table[model.name].mean() for model in MODELS}
    assert means["small"] < means["medium"] < means["large"] < 1
    code = table.filter(kinds == "code")
    assert code["coder"].mean() > code["medium"].mean() + 0.1
    paid = np.array([table[f"{model.name}|total_cost"].mean() for model in MODELS])
    assert (np.diff(paid) > 0).all()
    assert table["prompt"].n_unique() > 0.85 * len(table)


def test_a_folder_of_other_prompts_is_left_alone(tmp_path):
    assert write_prompts(tmp_path / "p", rows=30)
    assert not write_prompts(tmp_path / "p", rows=30)
    before = (tmp_path / "p" / "prompts.csv").read_bytes()
    refused(lambda: write_prompts(tmp_path / "p", rows=40), DataError, "this folder is there already")
    assert (tmp_path / "p" / "prompts.csv").read_bytes() == before
