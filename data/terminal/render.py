"""How results are printed: ``--format table|json|csv|parquet``."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from l2d.data.errors import UsageError
from l2d.data.results import Shown
from l2d.data.terminal.formats import write_batches

#: A table is for reading; other formats give everything.
TABLE_ROWS = 1000


def print_rows(rows: list[dict], format: str = "table", *, title: str | None = None) -> None:
    """Print dictionaries as rows to stdout.

    Args:
        rows: with the same keys, in column order.
        format: ``table``, ``json``, ``csv`` or ``parquet``.
        title: above a table; other formats have none.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name) for name in names} for row in rows]
    if format == "table":
        print_table(rows, title=title)
    elif format == "json":
        print_json(rows)
    elif format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        sys.stdout.write(text.getvalue())
    else:
        print_parquet(pa.Table.from_pylist(rows))


def print_result(result: Shown, format: str = "table") -> None:
    """Print a result of the library to stdout: its table, its JSON, or its rows."""
    if format == "table":
        print(result.table() + "\n")
    elif format == "json":
        print_json(result.to_json())
    else:
        print_rows(result.rows(), format)


def print_json(value: Any) -> None:
    """Print plain values as JSON; NaN and infinities, which JSON does not have, as null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def print_batches(columns: pa.Schema, batches: Iterable[pa.RecordBatch], format: str = "table") -> bool:
    """Print a result to stdout as it comes; as a table, its first :data:`TABLE_ROWS` rows.

    Args:
        columns: of every batch, names unique.
        format: ``table``, ``json``, ``jsonl``, ``csv`` or ``parquet``.

    Returns:
        Whether all of it was printed.

    Raises:
        UsageError: Parquet to a terminal.
    """
    if format != "table":
        if format == "parquet":
            _refuse_terminal()
        sys.stdout.flush()
        write_batches(sys.stdout.buffer, columns, batches, format)
        sys.stdout.buffer.flush()
        return True
    rows: list[dict] = []
    for batch in batches:
        rows += batch.slice(0, TABLE_ROWS + 1 - len(rows)).to_pylist()
        if len(rows) > TABLE_ROWS:
            break
    if columns.names == ["explain_key", "explain_value"]:
        print("\n".join(row["explain_value"] for row in rows))
    else:
        print_table(rows[:TABLE_ROWS], columns=columns.names)
    return len(rows) <= TABLE_ROWS


def print_parquet(table: pa.Table) -> None:
    """Write Parquet to stdout, which must not be a terminal.

    Raises:
        UsageError: stdout is a terminal.
    """
    import pyarrow.parquet as pq

    _refuse_terminal()
    sink = io.BytesIO()
    pq.write_table(table, sink)
    sys.stdout.flush()
    sys.stdout.buffer.write(sink.getvalue())
    sys.stdout.buffer.flush()


def _refuse_terminal() -> None:
    if sys.stdout.isatty():
        raise UsageError("Parquet is binary", where="--format parquet", hint="send it to a file: … > result.parquet")


def print_table(rows: Sequence[dict | None], *, title: str | None = None, columns: list[str] | None = None) -> None:
    """Print :func:`table_text`."""
    print(table_text(rows, title=title, columns=columns) + "\n")


def table_text(rows: Sequence[dict | None], *, title: str | None = None, columns: list[str] | None = None) -> str:
    """An aligned table: numbers to the right, a row of dashes where a row is None."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [row for row in rows if row is not None]
    names = columns or (list(shown[0]) if shown else [])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in names:
        numeric = all(_is_numeric(row[name]) for row in shown)
        table.add_column(Text(name), justify="right" if numeric and shown else "left", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*[Text(format_value(row[name])) for name in names])
    console = Console(file=sys.stdout, width=10_000, highlight=False)  # a cut-off number is worse than a long line
    text = console.render_str("")
    with console.capture() as capture:
        console.print(table if names else text)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def format_value(value: object) -> str:
    """Numbers to four significant digits, lists shortened, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Decimal):  # DuckDB's sums of integers
        return format_value(int(value) if value == value.to_integral_value() else float(value))
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and len(value) > 6:
        return "[" + ", ".join(format_value(v) for v in value[:6]) + f", … {len(value)} in all]"
    return str(value)


def _finite(value: object) -> object:
    """A value with NaN and infinities, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_numeric(value: object) -> bool:
    if isinstance(value, str):
        return value[:1] in "0123456789-.+"
    return value is None or isinstance(value, int | float | Decimal)
