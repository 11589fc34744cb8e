"""SQL over caches and runs: the views hold what the files hold, whatever lies beneath the paths."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_table
from recipes import ONE_TASK, RECIPE

import l2d.rejector.sql.query
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, DataError, UsageError
from l2d.data.terminal.formats import write_batches
from l2d.data.terminal.render import TABLE_ROWS, print_batches
from l2d.rejector.costs import total_costs
from l2d.rejector.grid import make_grid
from l2d.rejector.losses import allocate
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.catalogue import VIEW_NAMES
from l2d.rejector.sql.query import QuerySession, query
from l2d.rejector.sweep import sweep


def make_place(folder: Path, recipe: str = RECIPE, rows: int = 240) -> Path:
    """A folder with a cache and two runs beneath it."""
    folder.mkdir()
    write_table(folder, rows=rows)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "place" / "cache")
    cache = CostCache(folder / "place" / "cache")
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=[0.0, 0.2], nus=[1.0], seeds=[0])
    sweep(cache, points, [folder / "place" / "runs" / p.run_id for p in points], TrainConfig(epochs=2))
    return folder / "place"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("query") / "made")


@pytest.fixture
def own(place, tmp_path) -> Path:
    """A copy of the place that a test may change."""
    return Path(shutil.copytree(place, tmp_path / "own"))


def rows(path: Path | list[Path], sql: str) -> list[dict]:
    return query(path if isinstance(path, list) else [path], sql).to_pylist()


# --- views ----------------------------------------------------------------------------------------------------------


def test_a_folder_gives_every_cache_and_run_beneath_it(place):
    assert rows(place, "SELECT agent, agent_index, price FROM agents ORDER BY agent_index") == [
        {"agent": "model", "agent_index": 0, "price": 0.0},
        {"agent": "expert", "agent_index": 1, "price": 2.0},
        {"agent": "cheap", "agent_index": 2, "price": 1.0},
    ]
    assert rows(place, "SELECT beta, beta_1, beta_2, cache_state, epochs FROM runs ORDER BY beta") == [
        {"beta": 0.0, "beta_1": 0.0, "beta_2": 0.0, "cache_state": "here", "epochs": 2},
        {"beta": 0.2, "beta_1": pytest.approx(0.2), "beta_2": pytest.approx(0.1), "cache_state": "here", "epochs": 2},
    ]
    assert rows(place, "SELECT count(*) AS n FROM allocations") == [{"n": 480}]
    named_twice = [place / "cache", place, place / "runs", place / "cache" / ".." / "runs"]
    assert rows(named_twice, "SELECT count(*) AS n FROM allocations") == [{"n": 480}]


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


def test_scores_are_the_allocations_in_long_form(place):
    for folder in sorted((place / "runs").iterdir()):
        table = pl.read_parquet(folder / "allocations.parquet").sort("sample_id")
        found = query([place], f"FROM scores WHERE run_id = '{folder.name}' ORDER BY sample_id, agent_index")
        for name in ("score", "cost"):
            expected = table.select(f"{name}_{j}" for j in range(3)).to_numpy()
            np.testing.assert_array_equal(found[name].to_numpy().reshape(-1, 3), expected)
        assert found["agent"].to_pylist() == ["model", "expert", "cheap"] * len(table)
        assert found["sample_id"].to_pylist() == np.repeat(table["sample_id"].to_numpy(), 3).tolist()


def test_allocations_agree_with_the_costs_they_are_made_of(place):
    wrong = rows(
        place,
        """
        WITH total AS (
            SELECT c.sample_id, c.agent, r.run_id,
                   total_cost(cost_cla, cost_reg, lambda_cla, lambda_reg, b.beta) AS cost
            FROM costs c JOIN runs r USING (cache) JOIN run_agents b USING (run_id, agent))
        SELECT count(*) FILTER (abs(t.cost - a.deferral_cost) > 1e-5) AS cost_differs,
               count(*) FILTER (a.agent_index <> allocate([score_0, score_1, score_2])) AS argmax_differs,
               count(*) FILTER (abs(a.oracle_cost - (SELECT min(cost) FROM total u
                    WHERE u.sample_id = a.sample_id AND u.run_id = a.run_id)) > 1e-5) AS oracle_differs,
               count(*) AS n
        FROM allocations a JOIN total t USING (sample_id, run_id, agent)""",
    )
    assert wrong == [{"cost_differs": 0, "argmax_differs": 0, "oracle_differs": 0, "n": 480}]


def test_the_views_can_be_listed_and_described(place):
    assert {row["name"] for row in rows(place, "SHOW TABLES")} == set(VIEW_NAMES)
    described = {row["column_name"]: row["column_type"] for row in rows(place, "DESCRIBE costs")}
    assert described == {
        "cache": "VARCHAR", "agent": "VARCHAR", "agent_index": "INTEGER", "sample_id": "VARCHAR",
        "cost_cla": "FLOAT", "cost_reg": "FLOAT",
    }  # fmt: skip
    alone = query([place / "cache"], "DESCRIBE runs").to_pylist()
    assert {"column_name": "beta", "column_type": "DOUBLE"}.items() <= alone[4].items()
    for view in VIEW_NAMES:  # without a run, or without a cache, each is there
        assert rows(place / "cache", f"SELECT count(*) AS n FROM {view}")
        assert rows(place / "runs", f"SELECT count(*) AS n FROM {view}")


# --- macros ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_macros_break_ties_as_the_rejector_does(place):
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 3, (300, 4)).astype(np.float32)
    lists = ", ".join(f"({k}, {row.tolist()})" for k, row in enumerate(scores))
    found = query([place], f"SELECT allocate(v) AS a, cheapest(v) AS c FROM (VALUES {lists}) t(k, v) ORDER BY k")
    assert found["a"].to_pylist() == allocate(torch.from_numpy(scores)).tolist()
    assert found["c"].to_pylist() == scores.argmin(1).tolist()
    cells = ", ".join(f"({k}, {j}, 'agent {j}', {v})" for k, row in enumerate(scores) for j, v in enumerate(row))
    grouped = f"SELECT argmin_agent(a, v, j) AS a FROM (VALUES {cells}) t(k, j, a, v) GROUP BY k ORDER BY k"
    for _ in range(3):
        assert query([place], grouped)["a"].to_pylist() == [f"agent {j}" for j in scores.argmin(1)]


def test_macros_pass_over_agents_without_an_answer(place):
    with QuerySession([place]) as session:
        sql = """SELECT allocate([9, 3, 4], ['inf'::FLOAT, 0.5, NULL]) AS a, cheapest([NULL, 2, 1, 1]) AS c,
                 (SELECT argmin_agent(a, v, j) FROM (VALUES (0, 'x', 'nan'::FLOAT), (1, 'y', 'inf'::FLOAT), (2, 'z', 5),
                 (3, 'w', NULL)) t(j, a, v)) AS m"""
        assert session.run(sql).table().to_pylist() == [{"a": 1, "c": 2, "m": "z"}]


def test_total_cost_is_that_of_training(place):
    generator = np.random.default_rng(1)
    for tasks in (1, 2, 3):
        raw = generator.random((5, 1, tasks), dtype=np.float32)
        weights, beta = generator.random(tasks, dtype=np.float32), np.float32(0.25)
        expected = total_costs(torch.from_numpy(raw), torch.from_numpy(weights), torch.tensor([beta]))[:, 0]
        calls = ", ".join(
            f"total_cost({', '.join(map(str, [*row[0].tolist(), *weights.tolist(), beta]))}) AS c{k}"
            for k, row in enumerate(raw)
        )
        found = list(rows(place, f"SELECT {calls}")[0].values())
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    missing = (
        "total_cost(NULL, 1, 1, 1, 0) AS a, total_cost(NULL, 1, 0, 1, 0) AS b, total_cost('nan'::FLOAT, 1, 0) AS c"
    )
    assert rows(place, f"SELECT {missing}") == [{"a": float("inf"), "b": 1.0, "c": float("inf")}]


# --- many caches and runs -------------------------------------------------------------------------------------------


def test_two_caches_of_one_name_are_told_apart(own):
    shutil.copytree(own / "cache", own / "again")
    found = {row["cache"] for row in rows(own, "SELECT DISTINCT cache FROM samples")}
    assert found == {"cache", "again"}
    assert rows(own, "SELECT count(*) AS n FROM samples JOIN costs USING (cache, sample_id)") == [{"n": 2 * 3 * 240}]
    assert rows(own, "SELECT DISTINCT cache FROM runs") == [{"cache": "cache"}], "the one they lie beside"


def test_caches_of_other_tasks_and_columns_lie_side_by_side(own, tmp_path):
    """The other has no regression, another width of features, and a `ward` of numbers."""
    other = tmp_path / "other"
    other.mkdir()
    table = pl.read_parquet(write_table(other, rows=60)).with_columns(ward=pl.Series(range(60)))
    table.write_parquet(other / "patients.parquet")
    recipe = ONE_TASK.but({"dataset.features": ["x1"], "defaults.lambda": {"cla": 1.0}})
    (other / "recipe.toml").write_text(recipe, encoding="utf-8")
    build(load_recipe(str(other / "recipe.toml")), own / "small")
    with QuerySession([own]) as session:

        def ask(sql):
            return session.run(sql).table().to_pylist()

        counts = ask("SELECT cache, count(*) AS n, count(cost_reg) AS reg FROM costs GROUP BY 1 ORDER BY 2")
        assert counts == [{"cache": "small", "n": 180, "reg": 0}, {"cache": "cache", "n": 720, "reg": 720}]
        widths = ask(
            "SELECT cache, min(len(features)) AS w, max(len(features)) AS v FROM features GROUP BY 1 ORDER BY 2"
        )
        assert [(row["cache"], row["w"] == row["v"]) for row in widths] == [("small", True), ("cache", True)]
        assert widths[0]["w"] < widths[1]["w"]
        assert ask("SELECT sample_id FROM samples WHERE ward = '7'") == [{"sample_id": "p0007"}]
        assert ask("SELECT count(*) AS n FROM samples WHERE ward IN ('a', 'b', 'c')") == [{"n": 240}]


def test_a_run_finds_its_cache_wherever_they_lie(place, tmp_path):
    """Two caches of one name, one of which the runs were trained on, all of it moved apart."""
    (tmp_path / "a").mkdir()
    shutil.copytree(place / "cache", tmp_path / "a" / "kept")
    shutil.copytree(place / "runs", tmp_path / "b" / "runs")
    other = make_place(tmp_path / "made", RECIPE.but({"costs.reg.clamp": 4.0}), rows=120)
    shutil.copytree(other / "cache", tmp_path / "a" / "other")
    for run in (tmp_path / "b" / "runs").iterdir():
        with QuerySession([tmp_path / "a", run]) as session:
            found = session.run("SELECT DISTINCT cache, cache_state FROM runs").table().to_pylist()
            assert found == [{"cache": "kept", "cache_state": "here"}]
            assert session.notes == []
            joined = session.run("SELECT count(*) AS n FROM allocations JOIN costs USING (cache, sample_id, agent)")
            assert joined.table().to_pylist() == [{"n": 240}]


def test_a_run_never_joins_a_cache_that_was_built_again(own):
    recipe = own.parent / "made"
    again = make_place(recipe, RECIPE.but({"costs.reg.clamp": 4.0}))
    shutil.rmtree(own / "cache")
    shutil.copytree(again / "cache", own / "cache")
    with QuerySession([own]) as session:
        assert "built again" in session.notes[0]
        states = session.run("SELECT DISTINCT cache_state FROM runs").table()
        assert states["cache_state"].to_pylist() == ["changed"]
        joined = session.run("SELECT count(*) AS n FROM allocations JOIN costs USING (cache, sample_id, agent)").table()
        assert joined["n"].to_pylist() == [0]


def test_runs_without_their_cache_say_so(own, tmp_path):
    shutil.move(own / "runs", tmp_path / "alone")
    other = make_place(tmp_path / "made", RECIPE.but({"costs.reg.clamp": 4.0}), rows=120)
    with QuerySession([tmp_path / "alone"]) as session:
        assert session.notes == []
        states = session.run("SELECT DISTINCT cache_state FROM runs").table()["cache_state"].to_pylist()
    assert states == ["absent"]
    with QuerySession([tmp_path / "alone", other / "cache"]) as session:
        assert "2 runs are not beneath these paths" in session.notes[0]
        found = session.run("SELECT count(*) AS n FROM runs JOIN samples USING (cache)").table()
        assert found["n"].to_pylist() == [0]


def test_views_without_rows_say_what_is_missing(place):
    runs, cache = next((place / "runs").iterdir()), place / "cache"

    def notes(path: Path, sql: str) -> list[str]:
        with QuerySession([path]) as session:
            return [note.split(":")[0] for note in session.run(sql).notes]

    no_cache = "no rows, as no cache is among the paths"
    assert notes(runs, "SELECT count(*) FROM samples") == [f"samples has {no_cache}"]
    assert notes(runs, "WITH a AS (FROM Boxes) FROM a, class_ap") == [f"boxes and class_ap have {no_cache}"]
    assert notes(runs, "SELECT agent, count(*) AS samples FROM allocations GROUP BY ALL") == []  # a name of its own
    assert notes(cache, "WITH runs AS (FROM samples) SELECT 'policies' FROM runs") == []
    assert notes(cache, "EXPLAIN FROM scores") == ["scores has no rows, as no run is among the paths"]
    assert notes(place, "FROM samples JOIN scores USING (cache, sample_id)") == []


def test_hundreds_of_runs_are_told_apart(own):
    original = next((own / "runs").iterdir())
    for k in range(200):
        shutil.copytree(original, own / "more" / f"copy_{k:03d}")
    with QuerySession([own]) as session:
        found = session.run("SELECT run_id, count(*) AS n FROM allocations GROUP BY run_id").table()
        assert found.num_rows == 202
        assert set(found["n"].to_pylist()) == {240}
        one = session.run("SELECT count(*) AS n FROM scores WHERE run_id = 'copy_017'").table()
        assert one["n"].to_pylist() == [720]
        assert session.run("SELECT count(DISTINCT path) AS n FROM runs").table()["n"].to_pylist() == [202]


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_damaged_part_is_never_read_as_an_answer(own):
    part = sorted((own / "cache" / "agents" / "expert").glob("costs-*/00001.parquet"))[0]
    sound, sql = part.read_bytes(), "SELECT sum(cost_reg) AS total, count(*) AS n FROM costs"
    truth = rows(own, sql)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[generator.integers(len(sound))] ^= 1 << int(generator.integers(8))
        part.write_bytes(damaged)
        try:
            found, culprit = rows(own, sql), part
        except CorruptPart as error:
            found, culprit = truth, error.where
            refused += 1
        assert (found, culprit) == (truth, part)
    assert refused > 30


def test_damage_that_comes_while_a_session_is_open_is_named(own):
    table = next((own / "runs").iterdir()) / "allocations.parquet"
    with QuerySession([own]) as session:
        sound = bytearray(table.read_bytes())
        sound[len(sound) // 3] ^= 4
        table.write_bytes(sound)
        with pytest.raises(CorruptPart) as caught:
            session.run("SELECT sum(hash(COLUMNS(*))) FROM allocations").table()
        assert caught.value.where == table
        assert session.run("SELECT count(*) AS n FROM runs").table()["n"].to_pylist() == [2], "the session goes on"
    with pytest.raises(CorruptPart) as caught:
        query([own], "SELECT sum(hash(COLUMNS(*))) FROM allocations")
    assert caught.value.where == table
    shutil.rmtree(table.parent)
    facts = next((own / "runs").iterdir()) / "run.json"
    facts.write_text(facts.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CorruptPart) as caught:
        query([own], "FROM runs")
    assert caught.value.where == facts


# --- errors and limits ----------------------------------------------------------------------------------------------


def test_wrong_sql_says_what_there_is(place):
    for sql, what, hint in (
        ("SELECT * FROM nothing", "no view 'nothing'", "the views are samples"),
        ("SELECT * FROM allocation", "no view 'allocation'", "did you mean 'allocations'?"),
        ("SELECT cost_map FROM costs", "cost_map", "costs: cache, agent, agent_index, sample_id, cost_cla, cost_reg"),
        ("SELECT c.x FROM costs c", '"x"', "cost_cla"),
        ("SELEC 1", "syntax error", "views: samples"),
        ("SELECT nope(1)", "nope", "views: samples"),
        ("", "no statements", "one query"),
        ("SELECT 1; SELECT 2", "2 statements", "one query"),
    ):
        with pytest.raises(UsageError) as caught:
            query([place], sql)
        assert what in caught.value.what, sql
        assert hint in caught.value.hint, sql
    with pytest.raises(UsageError, match="no such path"):
        query([place / "nowhere"], "SELECT 1")
    with pytest.raises(UsageError, match="no cache and no run"):
        query([place / "cache" / "samples"], "SELECT 1")


ENDLESS = "SELECT count(*) FROM range(1_000_000_000_000) r(i) WHERE hash(i) = 3"


def test_a_query_ends_when_its_time_is_up_and_the_session_goes_on(place):
    with QuerySession([place], timeout=0.3) as session, pytest.raises(UsageError, match=r"did not end within 0.3 s"):
        session.run(ENDLESS).table()
    with QuerySession([place], timeout=2) as session:
        rows_without_end = iter(session.run("FROM range(10_000_000_000)"))
        next(rows_without_end)
        time.sleep(2)  # what is done with them counts
        with pytest.raises(UsageError, match=r"did not end within 2 s"):
            next(rows_without_end)
    with pytest.raises(UsageError, match="timeout"):
        QuerySession([place], timeout=0)
    with QuerySession([place], timeout=60) as session:
        assert session.run("SELECT 1 AS one").table()["one"].to_pylist() == [1]


def test_a_signal_ends_a_query(place, monkeypatch):
    """What a signal handler raises while the query runs comes through, and the query has ended by then."""

    class Signal(BaseException):
        pass

    real, calls = l2d.rejector.sql.query.wait, []

    def interrupted(*args, **options):
        calls.append(None)
        if len(calls) == 1:
            raise Signal
        return real(*args, **options)

    with QuerySession([place]) as session:
        monkeypatch.setattr(l2d.rejector.sql.query, "wait", interrupted)
        with pytest.raises(Signal):
            session.run(ENDLESS).table()
        assert session.run("SELECT 1 AS one").table()["one"].to_pylist() == [1]
    assert threading.active_count() < 20


def test_memory_beyond_the_limit_is_refused(place):
    with (
        QuerySession([place], memory_limit=30_000_000) as session,
        pytest.raises(UsageError, match="needs more memory than") as caught,
    ):
        session.run("SELECT list(i || repeat('x', 100)) AS l FROM range(3_000_000) r(i)").table()
    assert "--memory-limit" in caught.value.hint


# --- results --------------------------------------------------------------------------------------------------------

VALUES = """SELECT * FROM (VALUES
    (1, 0.1::FLOAT, 'a, "b"', [1.5, NULL], {'x': 1, 'y': [true]},
     '\\xC3\\xA9'::BLOB, TRUE, 12::HUGEINT, DATE '2026-01-02'),
    (2, 'nan'::FLOAT, '', [], NULL, NULL, NULL, NULL, NULL),
    (3, NULL, NULL, NULL, {'x': 2, 'y': NULL}, 'z'::BLOB, FALSE, -3, DATE '2026-01-03'))
    t(i, f, t, l, s, b, y, h, d) ORDER BY i"""


def written(session: QuerySession, sql: str, format: str) -> bytes:
    result, file = session.run(sql), io.BytesIO()
    write_batches(file, result.schema, result, format)
    return file.getvalue()


def test_every_format_holds_every_value(place):
    with QuerySession([place]) as session:
        as_csv = written(session, VALUES, "csv").decode()
        as_json, lines = (written(session, VALUES, format).decode() for format in ("json", "jsonl"))
        parquet = pq.read_table(io.BytesIO(written(session, VALUES, "parquet")))
        assert str(parquet.to_pylist()) == str(session.run(VALUES).table().to_pylist())
    assert as_csv.splitlines() == [
        "i,f,t,l,s,b,y,h,d",
        '1,0.1,"a, ""b""","[1.5, null]","{""x"": 1, ""y"": [true]}",w6k=,true,12,2026-01-02',
        '2,NaN,"",[],,,,,',
        '3,,,,"{""x"": 2, ""y"": null}",eg==,false,-3,2026-01-03',
    ]
    found = json.loads(as_json)
    assert found[0] == {
        "i": 1, "f": 0.1, "t": 'a, "b"', "l": [1.5, None], "s": {"x": 1, "y": [True]}, "b": "w6k=", "y": True, "h": 12,
        "d": "2026-01-02",
    }  # fmt: skip
    assert found[1]["f"] is None
    assert [json.loads(line) for line in lines.splitlines()] == found


def test_an_empty_result_has_its_columns_and_twins_keep_theirs(place, capsysbinary):
    empty, twins = "SELECT agent, cost_cla FROM costs WHERE false", "SELECT 1 AS a, 2 AS a"
    with QuerySession([place]) as session:
        assert written(session, empty, "csv") == b"agent,cost_cla\n"
        assert written(session, empty, "json") == b"[]\n"
        assert written(session, empty, "jsonl") == b""
        assert pq.read_table(io.BytesIO(written(session, empty, "parquet"))).column_names == ["agent", "cost_cla"]
        assert written(session, twins, "csv") == b"a,a_1\n1,2\n"
        result = session.run(empty)
        assert print_batches(result.schema, result)
    assert b"cost_cla" in capsysbinary.readouterr().out


def test_a_table_shows_its_first_rows_and_says_there_are_more(place, capsys):
    with QuerySession([place]) as session:
        long = session.run("FROM range(10_000_000_000) r(i)")
        assert not print_batches(long.schema, long)
        assert f"{TABLE_ROWS - 1}\n" in capsys.readouterr().out
        short = session.run(f"FROM range({TABLE_ROWS}) r(i)")
        assert print_batches(short.schema, short)


def test_a_result_is_not_held(place):
    """The first rows of a result that would fill no memory come at once."""
    with QuerySession([place], timeout=60) as session:
        result = session.run("SELECT i, repeat('x', 1000) AS t FROM range(1_000_000_000_000) r(i)")
        before, seen = pa.total_allocated_bytes(), 0
        for batch in result:
            seen += batch.num_rows
            if seen > 200_000:
                break
        assert pa.total_allocated_bytes() - before < 200 * 2**20


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.slow
def test_a_result_is_saved_whole_or_not_at_all(place, tmp_path, suffix):
    out = tmp_path / f"result{suffix}"
    readers = {".csv": pl.read_csv, ".json": pl.read_json, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}
    sql = "SELECT sample_id, agent, cost_reg FROM costs ORDER BY ALL"
    with QuerySession([place], timeout=60) as session:
        assert session.run(sql).save(out) == 720
        found, expected = readers[suffix](out), session.run(sql).table()
        assert found["sample_id"].to_list() == expected["sample_id"].to_pylist()
        np.testing.assert_array_equal(found["cost_reg"].cast(pl.Float32), expected["cost_reg"])
        before = out.read_bytes()
        with pytest.raises(UsageError, match="there already"):
            session.run("SELECT 1").save(out)
        failing = "SELECT CASE WHEN i < 500_000 THEN i ELSE error('enough') END AS i FROM range(1_000_000) r(i)"
        with pytest.raises(UsageError, match="enough"):
            session.run(failing).save(out, overwrite=True)
        assert out.read_bytes() == before
        assert list(tmp_path.iterdir()) == [out], "no temporary file is left"
        session.run("SELECT 1 AS one").save(out, overwrite=True)
        assert readers[suffix](out).to_dicts() == [{"one": 1}]
        with pytest.raises(UsageError, match="cannot be written to this kind of file"):
            session.run("SELECT 1").save(tmp_path / "result.xlsx")
        with pytest.raises(DataError):
            session.run("SELECT 1").save(out / "below" / f"result{suffix}")
