"""How results are printed: ``--format table|json|csv|parquet``."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from l2d.data.errors import UsageError
from l2d.data.results import Shown
from l2d.data.terminal.formats import write_batches
from l2d.data.terminal.layout import table_text

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
    """Print :func:`l2d.data.terminal.layout.table_text`."""
    print(table_text(rows, title=title, columns=columns) + "\n")


def _finite(value: object) -> object:
    """A value with NaN and infinities, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
