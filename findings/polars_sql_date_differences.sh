#!/usr/bin/env bash
# polars 2.1.0, SQL: the difference of two dates is a duration, and casting, comparing or mixing it with a number counts
# microseconds. A length of stay written as CAST(discharge - admission AS DOUBLE) is 9.5e11 for 11 days; PostgreSQL and
# DuckDB give 11. Expected: days, or a refusal. Dividing by INTERVAL '1 day' gives days.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "polars==2.1.0"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from datetime import date

import polars as pl

frame = pl.DataFrame({"a": [date(2026, 1, 1)], "b": [date(2026, 1, 12)]})
query = "SELECT CAST(b - a AS DOUBLE) AS cast, (b - a) > 100 AS above, (b - a) / INTERVAL '1 day' AS days FROM self"
found = frame.sql(query).row(0)
print("11 days: cast", found[0], "- more than 100:", found[1], "- divided by a day:", found[2])
assert found[0] == 11 * 86400 * 1e6 and found[1] is True and found[2] == 11, found
PYTHON
