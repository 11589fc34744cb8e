#!/usr/bin/env bash
# polars 2.1.0 beside duckdb 2.0.0 and numpy 2.4.6: the logarithm to base ten of 1000 is 2.9999999999999996 in polars, by
# Expr.log10 and by SQL's LOG10, and 3.0 in the others; so with 6 of the first 16 powers of ten. It is ln(x) / ln(10).
# Expected: 3, as the C library's log10 gives. FLOOR(LOG10(n)) + 1, the number of digits, is one too few for 1000.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "polars==2.1.0" "numpy==2.4.6" "duckdb==2.0.0"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import duckdb
import numpy as np
import polars as pl

powers = [10.0**k for k in range(16)]
frame = pl.DataFrame({"x": powers})
digits = "CAST(FLOOR(LOG10(x)) AS INTEGER) + 1"
ours = frame.select(pl.sql_expr(f"{digits} AS digits"))["digits"].to_list()
listed = ", ".join(f"{value!r}::DOUBLE" for value in powers)
rows = duckdb.sql(f"SELECT LOG10(x), {digits} FROM (SELECT unnest([{listed}]) AS x)").fetchall()
both = frame.select(expr=pl.col("x").log10(), sql=pl.sql_expr("LOG10(x)"))
other = [int(value) for value, found in zip(powers, both["expr"]) if found != np.log10(value)]
print("log10(1000): polars", both["expr"][3], "polars SQL", both["sql"][3], "duckdb", rows[3][0], "numpy", np.log10(1e3))
print("powers of ten that differ:", other)
print("digits of 1000: polars", ours[3], "duckdb", rows[3][1])
assert both["expr"].equals(both["sql"]) and [row[0] for row in rows] == np.log10(powers).tolist()
assert other == [10**k for k in (3, 6, 9, 12, 13, 15)] and (ours[3], rows[3][1]) == (3, 4)
PYTHON
