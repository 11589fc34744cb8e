"""Limits that hold: a query in a process of its own is ended where DuckDB's own limits are not looked at."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from conftest import RECIPE

from l2d.data.errors import UsageError
from l2d.rejector.sql import child
from l2d.rejector.sql.guard import admitted


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    from conftest import Workshop

    workshop = Workshop(tmp_path_factory.mktemp("query"))
    workshop.build(RECIPE)
    return workshop.folder / "cache"


def asked(cache, sql: str | None, *options: str, stdin: str | None = None, **more):
    words = [sys.executable, "-m", "l2d.cli", "query", str(cache), *([] if sql is None else [sql]), *options]
    return subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=300, **more)


#: One text that is doubled until it has 8 GB: it is made in one piece, and no limit of DuckDB's is looked at.
DOUBLED = (
    "WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t WHERE length(s) < 8000000000) "
    "SELECT max(length(s)) FROM t"
)
#: Two texts of 2 GB, which no interrupt stops.
LONG = "SELECT length(lpad('x', 2000000000, 'y') || lpad('x', 2000000000, 'y'))"


def test_a_query_within_its_limits_answers_as_one_without(cache):
    sql = "SELECT split, count(*) AS samples FROM samples GROUP BY ALL ORDER BY ALL"
    limited = asked(cache, sql, "--format", "csv", "--memory-limit", "1GB", "--timeout", "200")
    assert (limited.returncode, limited.stdout) == (0, asked(cache, sql, "--format", "csv").stdout)
    script = asked(cache, None, "--format", "csv", "--timeout", "200", stdin=f"{sql};\nSELECT 1 AS one;\n")
    assert script.stdout == limited.stdout + "one\n1\n"


@pytest.mark.parametrize(
    ("sql", "options", "message"),
    [
        (DOUBLED, ("--memory-limit", "400MB"), "more memory than"),
        (LONG, ("--timeout", "1"), "did not end within 1 s"),
        ("SELECT count(*) FROM range(100000000000)", ("--timeout", "1"), "did not end within 1 s"),
        ("SELECT nonsense", ("--timeout", "100"), "nonsense"),
    ],
)
def test_a_query_beyond_its_limits_is_ended_with_a_message_and_leaves_nothing(cache, tmp_path, sql, options, message):
    out, spill = tmp_path / "out" / "rows.parquet", tmp_path / "tmp"
    out.parent.mkdir()
    spill.mkdir()
    for how in ((), ("--out", str(out))):
        ended = asked(cache, sql, *options, *how, env={**os.environ, "TMPDIR": str(spill)})
        assert ended.returncode == 2, ended.stderr
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
        assert not list(out.parent.iterdir())
        assert not list(spill.iterdir())


def test_a_prompt_goes_on_in_a_new_process_after_one_was_ended(monkeypatch, capsys):
    results = iter([UsageError("the query needs more memory than 5 MiB"), None])
    monkeypatch.setattr(child, "_run_once", lambda request: next(results))
    request = child.Request([], None, "table", None, False, 5 << 20, None)
    child.run_apart(request, interactive=True)
    assert "error: the query needs more memory than 5 MiB" in capsys.readouterr().err
    results = iter([UsageError("the query needs more memory than 5 MiB")])
    with pytest.raises(UsageError, match="more memory"):
        child.run_apart(request, interactive=False)


def test_a_child_leaves_with_its_parent(cache, tmp_path):
    words = [sys.executable, "-m", "l2d.cli", "query", str(cache), "SELECT count(*) FROM range(100000000000000)"]
    parent = subprocess.Popen([*words, "--timeout", "500"], env={**os.environ, "TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 120
    while not (found := child_of(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found
    parent.kill()
    parent.wait()
    while any(os.path.exists(f"/proc/{pid}/statm") for pid in found) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}/statm") for pid in found)


def child_of(parent: int) -> list[int]:
    import psutil

    return [process.pid for process in psutil.Process(parent).children()]


@pytest.mark.parametrize("form", ["(FORMAT json)", "(ANALYZE, FORMAT json)", "ANALYZE", ""])
def test_explain_takes_a_format(form):
    sql = f"EXPLAIN {form} SELECT 1"
    assert admitted(sql).strip() == sql
    with pytest.raises(UsageError, match="not a query"):
        admitted(f"EXPLAIN {form} CREATE TABLE t AS SELECT 1")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("format", ["parquet", "csv", "json", "table"])
def test_an_output_that_cannot_be_written_is_an_error_of_its_own(cache, format):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "l2d.cli", "query", str(cache), "FROM samples", "--format", format]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (ended.returncode, "cannot be written" in ended.stderr) == (3, True), ended.stderr
    assert "Traceback" not in ended.stderr
