#!/usr/bin/env bash
# MAPIE 1.6.0, BinaryClassificationController with its own risk "precision": documented are exact binomial p-values for
# 0-1 risks. It takes the risk as 1 - precision and the errors as ceil(n * risk): where that is 4.000000000000004,
# five errors are counted. Expected of 4 errors among 100 answers, at precision 0.9: P(Bin(100, 0.1) <= 4). Seen:
# P(Bin(100, 0.1) <= 5), so that at 95 % confidence no threshold is valid where one is. Written as a risk of errors
# (a BinaryRisk with higher_is_better=False) the same samples give the exact p-value. Of all counts from 0 to n of 1 to
# 300 answers a fifth are counted one too high. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "mapie==1.6.0" "scikit-learn==1.9.1" "scipy==1.17.1" "numpy==2.3.5"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from mapie.risk_control import BinaryClassificationController, BinaryRisk
from scipy.stats import binom

errors = BinaryRisk(lambda y, said: y != said, lambda y, said: said.ravel() == 1, higher_is_better=False)


def tested(n, wrong, risk, level):
    """Of n inputs that are all answered, some wrong: the p-value of the one threshold, and the valid thresholds."""
    truth = (np.arange(n) >= wrong).astype(int)
    found = BinaryClassificationController(
        lambda rows: np.tile([0.1, 0.9], (len(rows), 1)), risk, target_level=level, confidence_level=0.95,
        best_predict_param_choice=errors, list_predict_params=np.array([0.5]), fwer_method="bonferroni",
    ).calibrate(np.zeros((n, 1)), truth)
    return float(np.ravel(found.p_values)[0]), list(found.valid_predict_params)


n, wrong = 100, 4
exact, one_more = binom.cdf(wrong, n, 0.1), binom.cdf(wrong + 1, n, 0.1)
precision, as_error = tested(n, wrong, "precision", 0.9), tested(n, wrong, errors, 0.1)
print(f"exact {exact:.6f}, of one error more {one_more:.6f}")
print("precision >= 0.9:", precision, "- error <= 0.1:", as_error)
high = [np.ceil(m * (1 - (m - k) / m)) > k for m in range(1, 301) for k in range(m + 1)]
print(f"counts that come out one too high: {np.mean(high):.3f}")
assert np.isclose(as_error[0], exact) and as_error[1] == [0.5]
assert np.isclose(precision[0], one_more) and precision[1] == []
PYTHON
