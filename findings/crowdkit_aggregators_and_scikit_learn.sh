#!/usr/bin/env bash
# crowd-kit 1.4.2 allows any scikit-learn, but with 1.9.1 the aggregators that call check_is_fitted (Wawa here) raise
# AttributeError about __sklearn_tags__ in predict: they are no estimators of scikit-learn's. Expected: labels.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "crowd-kit==1.4.2" "scikit-learn==1.9.1" "pandas==3.1.1"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pandas as pd
from crowdkit.aggregation import MajorityVote, Wawa

rows = [("t1", "w1", "a"), ("t1", "w2", "a"), ("t2", "w1", "b"), ("t2", "w2", "b")]
frame = pd.DataFrame(rows, columns=["task", "worker", "label"])
print("MajorityVote", MajorityVote().fit_predict(frame).to_dict())
try:
    Wawa().fit_predict(frame)
except AttributeError as error:
    print("Wawa:", str(error)[:90])
    assert "__sklearn_tags__" in str(error)
else:
    raise SystemExit("Wawa works now")
PYTHON
