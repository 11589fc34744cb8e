"""The command that queries caches and runs with SQL."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from l2d.data.cache.addresses import place_of
from l2d.data.errors import UsageError
from l2d.data.sizes import parse_size
from l2d.data.terminal.options import ReplaceOption, reads_stores


class QueryFormat(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


@reads_stores
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
        typer.Option(help="What a query may hold, such as 4GB; more goes to disk. Default: no limit."),
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
    from l2d.rejector.sql.child import Request, run_apart

    paths, sql = _paths_and_sql(arguments)
    if out is not None:
        from l2d.rejector.sql.query import check_target

        if format is not None:
            raise UsageError("--format and --out together", hint="the suffix of --out says how it is written")
        check_target(out, overwrite=overwrite)
    elif overwrite:
        raise UsageError("--overwrite without --out", hint="it is about the file of --out")
    interactive = sql is None and sys.stdin.isatty() and sys.stdout.isatty()
    if out is not None and sql is None:
        from l2d.rejector.sql.prompt import read_statements

        statements = [] if interactive else list(read_statements(iter(sys.stdin)))
        if len(statements) != 1:
            raise UsageError("--out takes the result of one query", hint='l2d query PATH "SQL" --out FILE')
        sql = statements[0]
    request = Request(
        paths=[str(path) for path in paths],
        sql=sql,
        format=(format or QueryFormat.table).value,
        out=None if out is None else str(out),
        overwrite=overwrite,
        memory_limit=None if memory_limit is None else parse_size(memory_limit, "--memory-limit"),
        timeout=timeout,
    )
    if timeout is not None and not timeout > 0:
        raise UsageError(f"a timeout of {timeout} s", hint="give a number of seconds above 0")
    if timeout is None and memory_limit is None:
        from l2d.rejector.sql.answer import answer

        answer(request, memory_limit=None)
    else:
        run_apart(request, interactive=interactive)


def _paths_and_sql(arguments: list[str]) -> tuple[list[Path | str], str | None]:
    """Paths, and the query if the last argument is one: it is no path that exists, and more than a lone word."""
    *paths, last = arguments
    if not last.strip() or not any(character in last for character in " \n\t;(") or _is_there(last):
        return [place_of(path) for path in arguments], None
    if not paths:
        raise UsageError("a query, but no path before it", hint='l2d query CACHE "SELECT * FROM agents"')
    return [place_of(path) for path in paths], last


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than a file's name may be
        return False
