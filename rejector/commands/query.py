"""The command that queries caches and runs with SQL."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from l2d.data.errors import UsageError
from l2d.data.sizes import parse_size
from l2d.data.terminal.options import ReplaceOption
from l2d.data.terminal.progress import say


class QueryFormat(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


def query(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Caches, runs or folders, then one SQL query. Without a query: a prompt, or stdin.",
            metavar='PATH... ["SQL"]',
        ),
    ],
    format: Annotated[
        QueryFormat | None, typer.Option("--format", "-f", help="How rows are printed to stdout. Default: table.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write to a .csv, .json, .jsonl or .parquet file instead.")
    ] = None,
    overwrite: ReplaceOption = False,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="What DuckDB may hold, such as 4GB; more goes to disk. Default: 60 % of all."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a query may take, its output included. Default: no limit.")
    ] = None,
):
    """SQL over every cache and run beneath the paths.

    Views: samples, features, images, tokens, vocabularies, agents, costs, predictions, allocations, scores, runs,
    run_agents.
    `DESCRIBE costs` lists a view's columns. The cookbook is docs/sql.md.

    Examples:

        l2d query demo "SELECT agent, count(*) AS samples, avg(deferral_cost) FROM allocations GROUP BY ALL ORDER BY 1"

        l2d query my.cache "SELECT ward, agent, avg(cost_cla) FROM costs JOIN samples USING (sample_id) GROUP BY 1, 2"

        l2d query my.cache my.runs "FROM scores" --out scores.parquet --memory-limit 4GB --timeout 600

        l2d query my.cache my.runs
    """  # fmt: skip
    from l2d.rejector.sql.prompt import Console, read_statements, run_prompt, run_script
    from l2d.rejector.sql.query import QuerySession, check_target

    paths, sql = _paths_and_sql(arguments)
    if out is not None:
        if format is not None:
            raise UsageError("--format and --out together", hint="the suffix of --out says how it is written")
        check_target(out, overwrite=overwrite)
    elif overwrite:
        raise UsageError("--overwrite without --out", hint="it is about the file of --out")
    interactive = sql is None and sys.stdin.isatty() and sys.stdout.isatty()
    if out is not None and sql is None:
        statements = [] if interactive else list(read_statements(iter(sys.stdin)))
        if len(statements) != 1:
            raise UsageError("--out takes the result of one query", hint='l2d query PATH "SQL" --out FILE')
        sql = statements[0]
    limit = None if memory_limit is None else parse_size(memory_limit, "--memory-limit")
    with QuerySession(paths, memory_limit=limit, timeout=timeout) as session:
        for note in session.notes:
            say(f"note: {note}")
        if out is not None:
            rows = session.run(sql).save(out, overwrite=overwrite)
            say(f"wrote {out}: {rows:,} rows")
            return
        formats = [(format or QueryFormat.table).value]
        formats += [name.value for name in QueryFormat if name not in (*formats, QueryFormat.parquet)]
        console = Console(session, _print_result, formats)
        if sql is not None:
            _print_result(session.run(sql), formats[0])
        elif interactive:
            run_prompt(console, lambda error: say(f"error: {error}"))
        else:
            run_script(console, sys.stdin)


def _paths_and_sql(arguments: list[str]) -> tuple[list[Path], str | None]:
    """Paths, and the query if the last argument is one: it is no path that exists, and more than a lone word."""
    *paths, last = arguments
    if not last.strip() or not any(character in last for character in " \n\t;(") or _is_there(last):
        return [Path(path) for path in arguments], None
    if not paths:
        raise UsageError("a query, but no path before it", hint='l2d query CACHE "SELECT * FROM agents"')
    return [Path(path) for path in paths], last


def _print_result(result, format: str) -> None:
    from l2d.data.terminal.render import TABLE_ROWS, print_batches

    if not print_batches(result.schema, result, format):
        say(f"the first {TABLE_ROWS:,} rows; all of them: --format csv, or --out FILE")


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than a file's name may be
        return False
