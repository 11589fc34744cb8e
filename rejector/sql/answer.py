"""What ``l2d query`` does once its arguments are known: one query, a script from stdin, or a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from l2d.data.cache.addresses import place_of
from l2d.data.terminal.options import say_traffic
from l2d.data.terminal.process import run_as_command, settle
from l2d.data.terminal.progress import say
from l2d.rejector.sql.child import Request, main
from l2d.rejector.sql.prompt import Console, run_prompt, run_script
from l2d.rejector.sql.query import QuerySession, Result

FORMATS = ["table", "json", "jsonl", "csv", "parquet"]


def answer(
    request: Request,
    *,
    memory_limit: int | None,
    announce: Callable[[float | None], None] | None = None,
    folder: Path | None = None,
) -> None:
    """Print or save the answer to a request.

    Args:
        memory_limit: bytes for DuckDB.
        announce, folder: see :class:`l2d.rejector.sql.query.QuerySession`.

    Raises:
        L2DError: as :meth:`QuerySession.run`.
    """
    settle()
    try:
        with QuerySession(
            [place_of(path) for path in request.paths],
            memory_limit=memory_limit,
            timeout=request.timeout,
            announce=announce,
            folder=folder,
        ) as session:
            for note in session.notes:
                say(f"note: {note}")
            if request.out is not None:
                result = session.run(request.sql or "")
                rows = result.save(Path(request.out), overwrite=request.overwrite)
                say(f"wrote {request.out}: {rows:,} rows")
                say_notes(result)
                return
            console = Console(
                session, print_result, [request.format, *(f for f in FORMATS[:-1] if f != request.format)]
            )
            if request.sql is not None:
                print_result(session.run(request.sql), request.format)
            elif sys.stdin.isatty() and sys.stdout.isatty():
                run_prompt(console, lambda error: say(f"error: {error}"))
            else:
                run_script(console, sys.stdin)
    finally:
        say_traffic()


def print_result(result: Result, format: str) -> None:
    """Print a result to stdout; of a table its first rows, which is said."""
    from l2d.data.terminal.render import TABLE_ROWS, print_batches

    if not print_batches(result.schema, result, format):
        say(f"the first {TABLE_ROWS:,} rows; all of them: --format csv, or --out FILE")
    say_notes(result)


def say_notes(result: Result) -> None:
    """Say why a view that was asked has no rows."""
    for note in result.notes:
        say(f"note: {note}")


if __name__ == "__main__":  # in a process of its own: see l2d.rejector.sql.child
    run_as_command(lambda: main(sys.argv[1:], answer))
