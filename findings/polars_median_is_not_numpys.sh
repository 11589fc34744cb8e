#!/usr/bin/env bash
# polars 2.1.0 beside numpy 2.4.6: of an even number of values both say "the mean of the two in the middle", but polars
# takes lower + (upper - lower) / 2. The last bit differs in about a sixth of the cases below, and where the two lie far
# apart the difference overflows: the median of -1.5e308 and 1.5e308 is infinite in polars, 0 in numpy.
# Expected: the same number. Medians fitted with one and checked with the other may differ by a bit.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "polars==2.1.0" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import polars as pl

generator = np.random.default_rng(0)
draws = [generator.normal(size=10) for _ in range(2000)]
differ = sum(pl.Series(values).median() != float(np.median(values)) for values in draws)
close = max(abs(pl.Series(values).median() - float(np.median(values))) for values in draws)
two = pl.Series([0.1, 0.7]).median(), float(np.median([0.1, 0.7]))
far = pl.Series([-1.5e308, 1.5e308]).median(), float(np.median([-1.5e308, 1.5e308]))
print(f"{differ} of 2000 medians of ten numbers differ, by {close:.1e} at the most")
print("of 0.1 and 0.7: polars", two[0], "numpy", two[1])
print("of -1.5e308 and 1.5e308: polars", far[0], "numpy", far[1])
assert 200 < differ < 500 and close < 1e-15 and two[0] != two[1] and far == (float("inf"), 0.0)
PYTHON
