"""How ``support2.parquet`` was made: ``python data/support2/convert.py support2.csv support2.parquet``."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

TEXT = {"sex", "dzgroup", "dzclass", "income", "race", "ca", "dnr", "sfdm2"}


def convert(source: Path, target: Path) -> None:
    """Read the published CSV, strip padding, type the columns and write Parquet."""
    raw = pl.read_csv(source, infer_schema=False, null_values=[""])
    columns = []
    for name in raw.columns:
        column = raw[name].str.strip_chars()
        if name not in TEXT:
            column = column.cast(pl.Float64)
            known = column.drop_nulls()
            if name != "age" and (known == known.round()).all():
                column = column.cast(pl.Int64)
        columns.append(column)
    pl.DataFrame(columns).write_parquet(target, compression="zstd", compression_level=19, statistics=False)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
