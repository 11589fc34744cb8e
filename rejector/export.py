"""A rejector as an ONNX model, standardisation inside: to be run where there is neither l2d nor torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2d.data.cache import store
from l2d.data.errors import FingerprintMismatch, UsageError
from l2d.data.results import Shown
from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.rows.parts import CacheParts
from l2d.rejector.runs.elsewhere import Beta, at_setting
from l2d.rejector.runs.files import one_run
from l2d.rejector.runs.run import Run, load_run, open_cache
from l2d.rejector.served import highest
from l2d.rejector.trained import Rejector

if TYPE_CHECKING:
    import onnx

TEST_ROWS_AT_ONCE = 4096
SCORE_TOLERANCE = 1e-4  # relative: how far the runtime's scores may be from the rejector's before an export is refused


@dataclass(frozen=True)
class ExportReport(Shown):
    """What was written: the file, its input (name and shape), its operator set, and its size."""

    file: Path
    input: str
    shape: list[int | str]
    opset: int
    num_bytes: int

    def rows(self) -> list[dict[str, Any]]:
        return [self.row()]

    def row(self) -> dict[str, Any]:
        """As printed."""
        shape = " x ".join(map(str, self.shape))
        return {
            "file": str(self.file),
            "input": self.input,
            "shape": shape,
            "opset": self.opset,
            "bytes": self.num_bytes,
        }


def export_run(
    run: Path,
    file: Path,
    *,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the rejector of a run as an ONNX file.

    Args:
        run: a run's folder.
        file: appears whole or not at all.
        beta, weights: query costs and task weights in place of the run's, see
            :func:`l2d.rejector.runs.elsewhere.at_setting`.
        overwrite: replace ``file`` if it is there.

    Raises:
        UsageError: there is no run or several, it has no other setting, ``file`` is there already, or the extra
            ``onnx`` is not installed.
        CorruptPart: the run is damaged.
    """
    if file.exists() and (not overwrite or file.is_dir()):
        raise UsageError("this is there already", where=file, hint="give another name, or type --overwrite")
    _require_onnx()
    opened = at_setting(load_run(one_run(run)), beta, weights)
    facts: dict[str, Any] = {"run_id": opened.point.run_id}
    if opened.input is not None:  # runs saved by earlier versions do not say
        facts |= {"feature_names": opened.input.made.get("names", []), "input": opened.input.made}
    encoder = None if opened.input is None else opened.input.encoder
    encoder = encoder if isinstance(encoder, FeatureEncoder) else None
    model = onnx_model(opened.rejector, opened.agents, facts, encoder=encoder)
    if opened.rejector.exact_onnx:
        _compare_on_test(model, opened)
    content = model.SerializeToString()
    if not store.commit_bytes(file, content, replace=overwrite):
        raise UsageError("this has appeared meanwhile", where=file, hint="give another name, or type --overwrite")
    entry = model.graph.input[0]
    shape = [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    return ExportReport(file, entry.name, shape, model.opset_import[0].version, len(content))


def onnx_model(
    rejector: Rejector,
    agents: list[str],
    facts: dict[str, Any] | None = None,
    *,
    encoder: FeatureEncoder | None = None,
) -> onnx.ModelProto:
    """A rejector as an ONNX model with a free batch size, checked against the rejector on random inputs.

    Inputs: ``features`` (batch, width), or ``image`` (batch, 3, side, side) in [0, 1]; not standardised, float32 unless
    the rejector's mean is float64, as of an estimator whose features 32 bits cannot hold. Or
    ``tokens`` (batch, width) int64: of each field, in order, the first ``max_length`` codes' indices in its vocabulary,
    filled up with 0; ``input`` in the metadata of :func:`export_run` has both.
    Outputs: ``scores`` (batch, agents) float32; ``agent`` (batch,) int64, their argmax, ties to the lowest index.
    Metadata: ``agents``, ``query_costs``, ``paid`` (units of loss for a unit of money), ``method``, ``lambda``,
    ``nu``, ``l2d_version`` and ``facts``, texts as they are and all else as JSON. Text is no input: features of texts
    are handed in like others, docs/text.md says how they are made where there is no l2d.

    Args:
        agents: their names, in order.
        facts: what else the metadata should say.
        encoder: of the features: what a NaN or an infinite number in them stands for, see
            :class:`l2d.rejector.training.graph.Deployed`.

    Raises:
        UsageError: the extra ``onnx`` is not installed, or the rejector is more than one model.
    """
    _require_onnx()
    import onnx

    example = _example(rejector, 64)
    model = rejector.onnx_graph(example, *_missing(rejector, encoder))
    point = rejector.point
    described = {
        "agents": agents,
        "query_costs": list(point.query_costs),
        "paid": point.paid,
        "method": point.method,
        "lambda": dict(point.weights.by_task),
        "nu": point.nu,
        "l2d_version": metadata.version("l2d"),
        **(facts or {}),
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    _compare(model, rejector, example)
    return model


def _missing(rejector: Rejector, encoder: FeatureEncoder | None) -> tuple[np.ndarray, dict[int, int]]:
    """What stands in for a missing number, (width,), and indicator -> the column that it tells of."""
    return (np.asarray(rejector.state["feature_mean"], np.float64), {}) if encoder is None else encoder.missing()


def _example(rejector: Rejector, rows: int) -> np.ndarray:
    """Random inputs of the kind that a rejector looks at, (rows, width)."""
    random = np.random.default_rng(0)
    fields = []
    for codes, length in rejector.sizes:
        lists, counts = random.integers(1, codes, (rows, length)), random.integers(0, length + 1, (rows, 1))
        fields.append(np.where(np.arange(length) < counts, lists, 0))
    if fields:
        return np.concatenate(fields, axis=1)
    mean, std = (np.asarray(rejector.state[name]) for name in ("feature_mean", "feature_std"))
    return (mean + std * random.standard_normal((rows, len(mean)))).astype(mean.dtype)


def _compare(model: onnx.ModelProto, rejector: Rejector, example: np.ndarray) -> None:
    """See that the model gives what the rejector gives: exporter, runtime and torch are of many versions."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    scores, agent = session.run(None, {entry.name: example.reshape(-1, *entry.shape[1:])})
    expected = rejector.scores(example)
    close = np.allclose(scores, expected, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE * np.abs(expected).max())
    if not close or not np.array_equal(agent, highest(scores)):
        worst = np.abs(scores - expected).max()
        raise RuntimeError(
            f"the exported model differs from the rejector by {worst} (torch {metadata.version('torch')})"
        )


def _compare_on_test(model: onnx.ModelProto, run: Run) -> None:
    """See that every test sample of the run's cache goes to the same agent, where that cache is still there."""
    import onnxruntime

    try:
        cache = open_cache(run)
    except (UsageError, FingerprintMismatch):
        return
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = CacheParts(cache, ("test",), column="features", failures=run.rejector.config.failures)
    for chunk in np.flatnonzero(parts.counts["test"]).tolist():
        rows, _ = parts.read("test", chunk)
        for start in range(0, len(rows), TEST_ROWS_AT_ONCE):
            features = rows[start : start + TEST_ROWS_AT_ONCE]
            _, agent = session.run(None, {"features": features})
            differ = int((agent != highest(run.rejector.scores(features))).sum())
            if differ:
                raise RuntimeError(f"the exported model sends {differ} test samples to other agents than the rejector")


def _require_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):  # the last is for networks, and takes 0.6 s to import
        if find_spec(package) is None:
            raise UsageError(f"writing ONNX needs {package}", hint="install it: pip install 'l2d[onnx]'")
