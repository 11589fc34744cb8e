#!/usr/bin/env bash
# kneed 0.9.0: of a convex decreasing curve of three points it never finds a knee, whatever the curve; of four points, in
# fewer than half. It returns None without saying that the points are too few. Expected: a knee, or a word.
# (An elbow over 1, 2 and 3 clusters can therefore never succeed.)
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "kneed==0.9.0"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from kneed import KneeLocator

random = np.random.default_rng(0)
found = {}
for points in (3, 4):
    knees = 0
    for _ in range(200):
        steps = np.sort(random.exponential(size=points - 1))[::-1]  # ever smaller falls: convex
        curve = 10 - np.concatenate([[0], np.cumsum(steps)])
        knee = KneeLocator(np.arange(1, points + 1), curve, curve="convex", direction="decreasing").knee
        knees += knee is not None
    found[points] = knees
print("knees found in 200 curves, by points:", found)
assert found[3] == 0 and found[4] < 100, found
PYTHON
