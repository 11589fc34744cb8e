"""SQL over caches and runs: the views hold what the files hold, and nothing else can be reached."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cache_builder.builder import build
from cache_builder.recipe import load_recipe
from data.cache import CostCache
from data.errors import CorruptPart, UsageError
from rejector.grid import make_grid
from rejector.query import query
from rejector.sweep import sweep
from rejector.training import TrainConfig


@pytest.fixture
def place(recipe_file: Path, tmp_path: Path) -> Path:
    """A folder with a cache and two runs beneath it."""
    folder = tmp_path / "place"
    build(load_recipe(str(recipe_file)), folder / "cache")
    cache = CostCache(folder / "cache")
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=[0.0, 0.2], nus=[1.0], seeds=[0])
    sweep(cache, points, [folder / "runs" / p.run_id for p in points], TrainConfig(epochs=2))
    return folder


def rows(path: Path, sql: str) -> list[dict]:
    return query([path], sql).to_pylist()


def test_a_folder_gives_every_cache_and_run_beneath_it(place):
    assert rows(place, "SELECT agent, agent_index, price FROM agents ORDER BY agent_index") == [
        {"agent": "model", "agent_index": 0, "price": 0.0},
        {"agent": "expert", "agent_index": 1, "price": 2.0},
        {"agent": "cheap", "agent_index": 2, "price": 1.0},
    ]
    assert rows(place, "SELECT beta, beta_1, beta_2 FROM runs ORDER BY beta") == [
        {"beta": 0.0, "beta_1": 0.0, "beta_2": 0.0},
        {"beta": 0.2, "beta_1": pytest.approx(0.2), "beta_2": pytest.approx(0.1)},
    ]
    assert rows(place, "SELECT count(*) AS n FROM allocations") == [{"n": 480}]


def test_views_equal_the_parquet_files_read_by_another_reader(place):
    for agent in ("model", "expert", "cheap"):
        parts = sorted((place / "cache" / "agents" / agent).glob("costs-*/*.parquet"))
        expected = pl.concat([pl.read_parquet(part) for part in parts]).sort("sample_id")
        found = query([place], f"SELECT * FROM costs WHERE agent = '{agent}' ORDER BY sample_id")
        for column in ("sample_id", "cost_cla", "cost_reg"):
            assert found[column].to_pylist() == expected[column].to_list()
    samples = pl.concat([pl.read_parquet(part) for part in sorted((place / "cache" / "samples").glob("*.parquet"))])
    found = query([place], "SELECT * FROM samples JOIN features USING (cache, sample_id) ORDER BY sample_id")
    samples = samples.sort("sample_id")
    assert found["ward"].to_pylist() == samples["ward"].to_list()
    np.testing.assert_array_equal(np.array(found["features"].to_pylist(), np.float32), samples["features"].to_numpy())


def test_allocations_agree_with_the_costs_they_are_made_of(place):
    wrong = rows(
        place,
        """
        WITH total AS (
            SELECT c.sample_id, c.agent, run_id, agent_index, lambda_cla * cost_cla + lambda_reg * cost_reg
                   + CASE agent_index WHEN 0 THEN beta_0 WHEN 1 THEN beta_1 ELSE beta_2 END AS cost
            FROM costs c CROSS JOIN runs)
        SELECT count(*) FILTER (abs(t.cost - a.deferral_cost) > 1e-5) AS cost_differs,
               count(*) FILTER (a.agent_index <> allocate([score_0, score_1, score_2])) AS argmax_differs,
               count(*) FILTER (abs(a.oracle_cost - (SELECT min(cost) FROM total u
                    WHERE u.sample_id = a.sample_id AND u.run_id = a.run_id)) > 1e-5) AS oracle_differs,
               count(*) AS n
        FROM allocations a JOIN total t USING (sample_id, run_id, agent)""",
    )
    assert wrong == [{"cost_differs": 0, "argmax_differs": 0, "oracle_differs": 0, "n": 480}]


def test_two_caches_of_one_name_are_told_apart(place, recipe_file):
    build(load_recipe(str(recipe_file)), place / "again")
    found = {row["cache"] for row in rows(place, "SELECT DISTINCT cache FROM samples")}
    assert found == {"cache", "again"}
    assert rows(place, "SELECT count(*) AS n FROM samples JOIN costs USING (cache, sample_id)") == [{"n": 2 * 3 * 240}]


ATTACKS = [
    "COPY agents TO '{p}/stolen.csv'",
    "COPY (SELECT 1) TO '{p}/cache/samples/00000.parquet' (FORMAT parquet)",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{p}/cache/cache.json')",
    "SELECT * FROM '{p}/cache/samples/00000.parquet'",
    "SELECT * FROM read_parquet('{p}/cache/samples/*.parquet')",
    "SELECT * FROM glob('/etc/*')",
    "ATTACH '{p}/other.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "PRAGMA temp_directory='{p}'",
    "EXPORT DATABASE '{p}/db'",
    "IMPORT DATABASE '{p}/db'",
    "CREATE SECRET (TYPE s3)",
    "CREATE TABLE t AS SELECT * FROM read_json('{p}/cache/cache.json')",
    "SELECT * FROM os",
    "SELECT * FROM sources",
    "SELECT getenv('HOME')",
    "SELECT 1; COPY agents TO '{p}/stolen.csv'",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_sql_reaches_no_file_and_no_setting(place, attack):
    def content() -> str:
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return hashlib.sha256(b"".join(str(f).encode() + f.read_bytes() for f in files)).hexdigest()

    before = content()
    with pytest.raises(UsageError):
        query([place], attack.replace("{p}", str(place)))
    assert content() == before


def test_a_damaged_part_is_never_read_as_an_answer(place):
    part = sorted((place / "cache" / "agents" / "expert").glob("costs-*/00001.parquet"))[0]
    sound = part.read_bytes()
    truth = rows(place, "SELECT sum(cost_reg) AS total, count(*) AS n FROM costs")
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[generator.integers(len(sound))] ^= 1 << int(generator.integers(8))
        part.write_bytes(damaged)
        try:
            assert rows(place, "SELECT sum(cost_reg) AS total, count(*) AS n FROM costs") == truth
        except (CorruptPart, UsageError):
            refused += 1
    part.write_bytes(sound)
    assert refused > 30


def test_wrong_sql_says_which_views_there_are(place):
    with pytest.raises(UsageError, match="allocations") as caught:
        query([place], "SELECT * FROM nothing")
    assert "views: samples" in str(caught.value)
    with pytest.raises(UsageError, match="no such path"):
        query([place / "nowhere"], "SELECT 1")
