"""Hostile SQL: no file, setting, variable or environment is reached, with the gate of statements and without it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from conftest import write_table
from recipes import RECIPE

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import L2DError, UsageError
from l2d.rejector.grid import make_grid
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.query import QuerySession
from l2d.rejector.sweep import sweep

SECRET = "the secret of 4711"
secret_table = pa.table({"text": [SECRET]})  # what a look-up of Python variables would find

#: {w}: the folder with the cache and the run; {o}: another, with a secret in it; {s}: the session's spill folder.
ATTACKS = {
    "write": [
        "COPY agents TO '{o}/stolen.csv'",
        "COPY (SELECT 1) TO '{w}/cache/samples/00000.parquet' (FORMAT parquet)",
        "COPY (SELECT 1) TO '.tmp/x.csv'",  # DuckDB's own temporary folder is within its reach
        "COPY agents FROM '{o}/secret.csv'",
        "EXPORT DATABASE '{o}/db'",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO runs SELECT * FROM runs",
        "WITH x AS (INSERT INTO agents SELECT * FROM agents RETURNING 1) SELECT * FROM x",
        "DELETE FROM costs",
        "UPDATE costs SET cost_cla = 0",
        "DROP VIEW costs",
        "CREATE OR REPLACE VIEW costs AS SELECT 1",
        "EXPLAIN ANALYZE COPY agents TO '{o}/stolen.csv'",
        "SELECT 1; COPY agents TO '{o}/stolen.csv'",
        "SELECT 1 /* ; */ ; -- ;\nCOPY agents TO '{o}/stolen.csv'",
        "PREPARE p AS COPY agents TO '{o}/stolen.csv'",
        "EXECUTE p",
        "CHECKPOINT",
        "VACUUM",
        "SELECT * FROM force_checkpoint()",
        "CALL enable_logging(storage='file', storage_path='{o}/log')",
        "SELECT * FROM enable_logging('QueryLog', storage='file', storage_path='{o}/log')",
        "PRAGMA enable_profiling='json'",
        "PRAGMA profiling_output='{o}/profile.json'",
    ],
    "read": [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('{o}/secret.csv')",
        "SELECT * FROM read_text('.tmp/*')",
        "SELECT * FROM read_text('{s}/*')",
        "SELECT * FROM read_blob('{w}/cache/cache.json')",
        "SELECT * FROM '{w}/cache/samples/00000.parquet'",
        'SELECT * FROM "{o}/secret.csv"',
        "SELECT * FROM read_parquet('{w}/cache/samples/*.parquet')",
        "SELECT * FROM parquet_metadata('{w}/cache/samples/00000.parquet')",
        "SELECT * FROM read_json_auto('{w}/cache/cache.json')",
        "SELECT * FROM glob('{o}/*')",
        "SELECT * FROM sniff_csv('{o}/secret.csv')",
        "SELECT (SELECT max(content) FROM READ_TEXT('{o}/secret.csv'))",
        "WITH x AS (FROM read_csv('{o}/secret.csv')) FROM x",
        "SUMMARIZE FROM read_csv('{o}/secret.csv')",
        "DESCRIBE SELECT * FROM '{o}/secret.csv'",
        "SELECT * FROM query('FROM read_text(''{o}/secret.csv'')')",
        "SELECT * FROM query_table('{o}/secret.csv')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{o}/secret.csv'')'))",
        "IMPORT DATABASE '{o}/db'",
        "SELECT * FROM read_csv('https://example.com/x.csv')",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "ATTACH '{o}/other.db'",
        "ATTACH '{o}/secret.csv' (TYPE sqlite)",
        "DETACH memory",
        "USE temp",
    ],
    "python and environment": [
        "SELECT * FROM secret_table",
        "SELECT * FROM os",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM python_map_function(1)",
        "SELECT getenv('L2D_SECRET')",
        "SELECT * FROM duckdb_secrets()",
    ],
    "settings": [
        "INSTALL httpfs",
        "LOAD httpfs",
        "FORCE INSTALL sqlite FROM community",
        "CREATE SECRET (TYPE s3)",
        "CREATE MACRO allocate(x) AS 0",
        "SET enable_external_access = true",
        "SET GLOBAL allowed_directories = ['/']",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "RESET enable_external_access",
        "SET memory_limit = '1TB'",
        "SET python_enable_replacements = true",
        "PRAGMA temp_directory='{o}'",
        "PRAGMA enable_progress_bar",
        "SET VARIABLE x = 1",
        "CALL pragma_version()",
        "BEGIN TRANSACTION",
    ],
}
TABLE = [(kind, sql) for kind, statements in ATTACKS.items() for sql in statements]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A session over a cache and a run, in a working directory with a ``.tmp`` and a secret outside."""
    folder = tmp_path_factory.mktemp("hostile")
    write_table(folder, rows=60)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "world" / "cache")
    cache = CostCache(folder / "world" / "cache")
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=[0.1], nus=[1.0], seeds=[0])
    sweep(cache, points, [folder / "world" / "run"], TrainConfig(epochs=1, network="linear"))
    for place in ("outside", "outside/.tmp"):
        (folder / place).mkdir()
        (folder / place / "secret.csv").write_text(f"text\n{SECRET}\n")
    before = Path.cwd()
    os.chdir(folder / "outside")
    os.environ["L2D_SECRET"] = SECRET
    session = QuerySession([folder / "world"])
    yield session, folder
    session.close()
    del os.environ["L2D_SECRET"]
    os.chdir(before)


def state(session: QuerySession, folder: Path) -> tuple:
    """Every file, setting and view there is."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = hashlib.sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).hexdigest()
    settings = session.connection.execute("SELECT name, value FROM duckdb_settings() ORDER BY name").fetchall()
    return content, settings, session.columns(), session.connection.execute("FROM costs ORDER BY ALL").fetchall()


def spelled(sql: str, session: QuerySession, folder: Path) -> str:
    places = {"{w}": folder / "world", "{o}": folder / "outside", "{s}": Path(session._spill.name) / "spill"}
    for mark, place in places.items():
        sql = sql.replace(mark, str(place))
    return sql


def test_the_table_has_forty_attacks_at_least():
    assert len({sql for _, sql in TABLE}) == len(TABLE) >= 40


def test_none_is_admitted(scene):
    session, folder = scene
    before = state(session, folder)
    for kind, attack in TABLE:
        with pytest.raises(L2DError) as caught:
            session.run(spelled(attack, session, folder)).table()
        assert type(caught.value) is UsageError, (kind, attack, caught.value)
        assert SECRET not in str(caught.value), attack
        assert caught.value.hint, attack
    assert state(session, folder) == before


#: What the engine alone lets pass, since it harms nobody: it changes this one connection's memory, answers nothing, or
#: reads a file of the views.
HARMLESS = (
    "CREATE TABLE", "DROP VIEW", "CREATE OR REPLACE VIEW", "CREATE MACRO", "CHECKPOINT", "VACUUM", "SET VARIABLE",
    "BEGIN", "USE", "SELECT * FROM force_checkpoint", "CALL pragma_version", "SELECT * FROM duckdb_secrets", "PREPARE",
    "SELECT * FROM read_text('{s}", "SELECT * FROM '{w}/cache/samples", "SELECT * FROM parquet_metadata('{w}",
    "SELECT * FROM read_parquet('{w}",
)  # fmt: skip


@pytest.mark.slow
def test_without_the_gate_the_engine_refuses_what_would_do_harm(scene):
    first, folder = scene
    before = state(first, folder)
    for kind, attack in TABLE:
        with QuerySession([folder / "world"]) as session:  # a fresh one: some attacks break their own connection
            settings = session.connection.execute("SELECT name, value FROM duckdb_settings()").fetchall()
            refused, answer = False, ""
            try:
                found = session.connection.sql(spelled(attack, session, folder))
                answer = str(found.fetchall()) if found is not None else ""
            except duckdb.Error as error:
                refused, answer = True, str(error)
            assert SECRET not in answer, (kind, attack)
            assert refused or attack.startswith(HARMLESS), (kind, attack, answer)
            if not attack.startswith("BEGIN"):
                after = session.connection.execute("SELECT name, value FROM duckdb_settings()").fetchall()
                assert after == settings, (kind, attack)
    assert state(first, folder) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select 1;",
        " -- a question\nFROM agents; -- and a remark",
        "WITH x AS (FROM costs) SELECT count(*) FROM x",
        "VALUES (1), (2)",
        "TABLE agents",
        "DESCRIBE costs",
        "SHOW TABLES",
        "SUMMARIZE costs",
        "EXPLAIN SELECT * FROM costs",
        "EXPLAIN ANALYZE SELECT count(*) FROM costs",
        "PIVOT costs ON agent IN ('model', 'expert') USING avg(cost_cla) GROUP BY split",
        "SELECT * FROM range(3) r(i), unnest([1, 2]) u(j)",
        "SELECT 'COPY agents TO x; DROP VIEW costs' AS text",
        "SELECT 1 AS \"read_csv(1)\", 'read_text(2)' AS read_text",
        "SELECT view_name FROM duckdb_views() WHERE NOT internal",
    ],
)
def test_queries_are_admitted(scene, sql):
    session, _ = scene
    if "PIVOT" in sql:
        sql = "PIVOT (FROM costs JOIN samples USING (cache, sample_id)) " + sql.partition("costs ")[2]
    assert session.run(sql).table().num_rows > 0


@pytest.mark.slow
def test_what_is_spilled_is_ours_alone_and_goes(scene):
    _, folder = scene
    with QuerySession([folder / "world"], memory_limit=120_000_000) as session:
        private = Path(session._spill.name)
        assert private.stat().st_mode & 0o777 == 0o700
        ordered = (
            "SELECT h, t FROM (SELECT hash(i) AS h, repeat('x', 60) || i AS t FROM range(3_000_000) r(i)) ORDER BY h"
        )
        batches = iter(session.run(ordered))
        first = next(batches)
        assert any(private.rglob("*")), "nothing was spilled: the limit is too high for this test"
        last, count = first["h"][-1].as_py(), first.num_rows
        for batch in batches:
            assert batch["h"][0].as_py() >= last
            last, count = batch["h"][-1].as_py(), count + batch.num_rows
        assert count == 3_000_000
    assert not private.exists()
