"""`l2d build --dry-run`: what would run and why, writing nothing."""

from __future__ import annotations

import pytest
from conftest import refused
from recipes import RECIPE

from l2d.cache_builder.dry_run import dry_run
from l2d.data.errors import DataError


def plan(workshop, text: str) -> dict[str, dict]:
    rows = dry_run(workshop.recipe(text), workshop.folder / "cache", device="cpu")
    return {row["agent"]: row for row in rows}


def test_a_new_cache_is_planned_whole_and_nothing_is_written(workshop):
    before = sorted(workshop.folder.rglob("*"))
    rows = plan(workshop, RECIPE)
    assert sorted(p for p in workshop.folder.rglob("*") if p.name != "recipe.toml") == before
    assert {name: (row["to ask"], row["why"]) for name, row in rows.items()} == dict.fromkeys(
        ("model", "expert", "cheap"), (len(workshop.table), "new agent")
    )


def test_the_estimated_bytes_are_those_of_the_build(workshop):
    rows = plan(workshop, RECIPE)
    workshop.build(RECIPE)
    for name, row in rows.items():
        files = (workshop.folder / "cache" / "agents" / name).rglob("*.parquet")
        facts = 10 * 300  # per part: who it belongs to and its digests
        written = sum(file.stat().st_size for file in files)
        assert row["bytes"] == pytest.approx(written, rel=0.8, abs=facts)
        assert row["seconds"] >= 0


def test_reasons_say_what_is_there_what_is_missing_and_what_changed(workshop):
    workshop.build(RECIPE)
    assert {row["why"] for row in plan(workshop, RECIPE).values()} == {"complete"}
    (workshop.folder / "cache/agents/expert/predictions/00002.parquet").unlink()
    assert plan(workshop, RECIPE)["expert"]["why"] == "1 parts are missing"
    assert plan(workshop, RECIPE)["expert"]["to ask"] == 20  # the last chunk
    workshop.build(RECIPE)
    costs = plan(workshop, RECIPE.but({"costs.reg.clamp": 4.0}))
    assert {row["why"] for row in costs.values()} == {"costs alone: the cost table changed or parts of it are missing"}
    assert {row["to ask"] for row in costs.values()} == {0}
    before = workshop.files()
    changed = plan(workshop, RECIPE.but({"agents.expert.reg": "stay"}))
    assert changed["expert"]["why"].startswith("refused without --overwrite: reg was 'stay_good', now 'stay'")
    assert changed["model"]["why"] == "complete"
    gone = plan(workshop, RECIPE.without("cheap"))
    assert {name: row["why"] for name, row in gone.items()} == {"model": "complete", "expert": "complete"}
    assert workshop.files() == before
    rows = plan(workshop, RECIPE.but({"build.chunk_size": 60}))
    assert {row["why"] for row in rows.values()} == {"refused without --overwrite: chunk_size was 50, now 60"}


def test_what_a_build_would_refuse_at_once_is_refused(workshop):
    refused(lambda: plan(workshop, RECIPE.but({"dataset.path": "gone.parquet"})), DataError, "no such file")
