"""Files of answers that somebody has already given: Parquet, CSV or JSONL, everything in them read as text."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from l2d.data.errors import DataError, nearest

#: What counts as no answer.
MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null"]
FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson")
ROW = "__row__"


class AnswerFile:
    """A file of answers, a row each. Empty cells, ``NA`` and the like are missing.

    Args:
        path: ``.parquet``, ``.csv`` (comma or semicolon), ``.jsonl`` or ``.ndjson``.

    Raises:
        DataError: there is no such file, it is of another kind, or it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.suffix.lower() not in FORMATS:
            raise DataError("is no table of answers", where=path, hint=f"there are {', '.join(FORMATS)}")
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError("there is no such file", where=path, hint="check the path") from error
        self.table = _read(path, stat.st_mtime_ns, stat.st_size)

    @property
    def columns(self) -> list[str]:
        return [name for name in self.table.columns if name != ROW]

    def need(self, column: str, key: str) -> str:
        """The column's name, if there is one of it.

        Args:
            key: of the recipe that names it, for messages.
        """
        if column not in self.columns:
            raise DataError(
                f"{key} = {column!r}: there is no such column",
                where=self.path,
                hint=nearest(column, self.columns, "it has"),
            )
        return column

    def where(self, row: int) -> str:
        """A row as people find it: in a CSV the header is row 1, elsewhere the first answer is."""
        return f"{self.path}, row {row + (2 if self.path.suffix.lower() == '.csv' else 1)}"

    def numbers(self, column: str, rows: pl.DataFrame) -> np.ndarray:
        """A column as float64, NaN where nothing is written.

        Raises:
            DataError: something else than a finite number is written; names file, row and value.
        """
        texts = rows[column]
        values = texts.cast(pl.Float64, strict=False)
        wrong = texts.is_not_null() & ~values.is_finite().fill_null(False)
        if wrong.any():
            position = int(wrong.arg_max())
            raise DataError(
                f"{column} is {texts[position]!r}, which is no finite number",
                where=self.where(rows[ROW][position]),
                hint="correct it, or leave the cell empty",
            )
        return values.fill_null(float("nan")).to_numpy()

    def values(self, column: str) -> list[str]:
        """The distinct values of a column, sorted.

        Raises:
            DataError: a row has none.
        """
        texts = self.table[column]
        if texts.null_count():
            raise DataError(
                f"{column} is empty", where=self.where(int(texts.is_null().arg_max())), hint="say whose answer it is"
            )
        return sorted(texts.unique().to_list())


@lru_cache(maxsize=4)
def _read(path: Path, modified: int, size: int) -> pl.DataFrame:
    """The table with every column as text, and :data:`ROW`. Read once for all agents that share it."""
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            with open(path, encoding="utf-8-sig", errors="replace") as file:
                header = file.readline()
            separator = ";" if header.count(";") > header.count(",") else ","
            table = pl.read_csv(path, infer_schema=False, separator=separator)
        else:
            table = pl.read_parquet(path) if kind == ".parquet" else pl.read_ndjson(path, infer_schema_length=None)
        floats = [name for name, dtype in table.schema.items() if dtype.is_float()]
        table = table.with_columns(pl.col(floats).fill_nan(None)).select(pl.all().cast(pl.String))
    except Exception as error:  # whatever polars makes of damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot be read: {reason}", where=path, hint="is it a whole file of that format?") from error
    if ROW in table.columns:
        raise DataError(f"has a column {ROW!r}", where=path, hint="rename it")
    stripped = table.select(pl.all().str.strip_chars())
    gone = [pl.when(~pl.col(name).is_in(MISSING)).then(pl.col(name)).alias(name) for name in table.columns]
    return stripped.select(gone).rename({name: name.strip() for name in table.columns}).with_row_index(ROW)
