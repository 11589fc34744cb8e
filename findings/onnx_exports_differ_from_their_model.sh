#!/usr/bin/env bash
# Valid ONNX exports that answer otherwise than the model they were made of: skl2onnx 1.20.0 and onnxmltools 1.16.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q scikit-learn==1.9.1 skl2onnx==1.20.0 onnxmltools==1.16.0 onnxruntime==1.32.0 \
  lightgbm==4.7.0 xgboost==3.2.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import lightgbm
import numpy as np
import onnxmltools
import onnxruntime
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as OtherFloat
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

onnxruntime.set_default_logger_severity(3)
generator = np.random.default_rng(0)
X = generator.normal(size=(600, 4)).astype(np.float32)
gaps = X.copy()
gaps[generator.random(X.shape) < 0.2] = np.nan
y = (X[:, 0] + 0.5 * X[:, 1] ** 2 > 0.3).astype(int)
value = np.exp(0.5 * X[:, 0] + 0.2 * X[:, 2])


def answers(program, rows):
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: rows})


def sklearn_differs(model, rows):
    model.fit(rows, y)
    program = convert_sklearn(model, initial_types=[("x", FloatTensorType([None, 4]))], options={id(model): {"zipmap": False}})
    return np.abs(answers(program, rows)[1] - model.predict_proba(rows)).max()


def lightgbm_ratio(trees):
    model = lightgbm.LGBMRegressor(
        boosting_type="rf", bagging_freq=1, bagging_fraction=0.7, n_estimators=trees, verbose=-1, n_jobs=1
    ).fit(X, value)
    program = onnxmltools.convert_lightgbm(model, initial_types=[("x", OtherFloat([None, 4]))])
    return float(np.median(np.ravel(answers(program, X)[0]) / model.predict(X)))


forest = sklearn_differs(RandomForestClassifier(50, random_state=0), gaps)
print(f"forest trained with missing values: {forest:.3f} of a probability")
assert forest > 0.5
isotonic = sklearn_differs(CalibratedClassifierCV(LogisticRegression(), method="isotonic"), X)
print(f"isotonic calibration: {isotonic:.3f} of a probability (sigmoid: "
      f"{sklearn_differs(CalibratedClassifierCV(LogisticRegression(), method='sigmoid'), X):.1e})")
assert isotonic > 0.01
ratios = {trees: lightgbm_ratio(trees) for trees in (20, 100, 200)}
print("LightGBM rf, answer of the export / of the model:", ratios)
assert abs(ratios[20] - 0.2) < 1e-3 and abs(ratios[200] - 2) < 1e-3
three = xgboost.XGBRegressor(n_estimators=30, n_jobs=1).fit(X, np.stack([value, 1 - value, 2 * value], 1))
found = answers(onnxmltools.convert_xgboost(three, initial_types=[("x", OtherFloat([None, 4]))]), X)[0]
print("XGBoost with three targets, first row:", found[0].tolist(), "for", three.predict(X)[0].tolist())
assert not found[:, 1:].any()
PY
