"""Arrow batches as CSV, JSON, JSON lines or Parquet, written as they come: a result of any size takes little memory."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import BinaryIO

import pyarrow as pa

#: File suffix -> format.
SUFFIXES = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}


def write_batches(file: BinaryIO, columns: pa.Schema, batches: Iterable[pa.RecordBatch], format: str) -> int:
    """Write a result to an open file or to stdout.

    Lists, structs and maps become JSON in CSV; binary values become base64 in CSV and JSON; NaN and infinities, which
    JSON does not have, become null there.

    Args:
        columns: of every batch, names unique.
        format: ``csv``, ``json`` (one array), ``jsonl`` (an object a line) or ``parquet``.

    Returns:
        The number of rows.
    """
    writers: dict[str, Callable] = {"csv": _csv, "json": _json, "jsonl": _json_lines, "parquet": _parquet}
    rows = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for batch in batches:
            rows += batch.num_rows
            yield batch

    writers[format](file, columns, counted())
    return rows


def plain(value: object) -> object:
    """A value of Arrow as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):  # DuckDB's sums of integers
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def plain_rows(batch: pa.RecordBatch) -> list[dict]:
    """Rows of a batch as dictionaries, float32 values with their own seven digits or so."""
    columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: pa.Array) -> list:
    if pa.types.is_float32(column.type):  # 0.1, not 0.10000000149011612
        return [None if text is None else float(text) for text in column.cast(pa.string()).to_pylist()]
    return column.to_pylist()


def _csv(file: BinaryIO, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    import polars as pl

    def flat(batch: pa.RecordBatch) -> pa.Table:
        arrays = []
        for column in batch.columns:
            kind = column.type
            if pa.types.is_nested(kind):
                values = [None if v is None else json.dumps(plain(v), ensure_ascii=False) for v in column.to_pylist()]
                column = pa.array(values, pa.string())
            elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
                column = pa.array([plain(v) for v in column.to_pylist()], pa.string())
            elif pa.types.is_null(kind):
                column = column.cast(pa.string())
            arrays.append(column)
        return pa.table(arrays, names=batch.schema.names)

    file.write(pl.DataFrame(flat(_empty(columns))).write_csv().encode())
    for batch in batches:
        file.write(pl.DataFrame(flat(batch)).write_csv(include_header=False).encode())


def _json(file: BinaryIO, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    separator = b"[\n"
    for batch in batches:
        for row in plain_rows(batch):
            text = json.dumps(plain(row), indent=2, ensure_ascii=False, allow_nan=False)
            file.write(separator + b"  " + text.replace("\n", "\n  ").encode())
            separator = b",\n"
    file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def _json_lines(file: BinaryIO, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    for batch in batches:
        for row in plain_rows(batch):
            file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _parquet(file: BinaryIO, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, columns, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _empty(columns: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=columns)
