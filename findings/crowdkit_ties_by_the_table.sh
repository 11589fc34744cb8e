#!/usr/bin/env bash
# crowd-kit 1.4.2, MajorityVote: a tie goes to the label that the *whole table* names first, so that a row of another
# task decides. Documented is "the most frequent label". Expected of two votes "b", "a" on task t1: the same answer
# whatever other tasks the table holds. Seen: "b" alone, and "a" once an earlier row of task t0 says "a".
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "crowd-kit==1.4.2" "scikit-learn==1.9.1" "pandas==3.1.1"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pandas as pd
from crowdkit.aggregation import MajorityVote

rows = [("t1", "w1", "b"), ("t1", "w2", "a")]
def vote(rows):
    return MajorityVote().fit_predict(pd.DataFrame(rows, columns=["task", "worker", "label"]))["t1"]

alone, beside = vote(rows), vote([("t0", "w1", "a"), *rows])
print("t1 alone:", alone, "- with another task's row before it:", beside)
assert (alone, beside) == ("b", "a")
PYTHON
