"""A rejector as an ONNX model, standardisation inside: to be run where there is neither l2d nor torch."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from l2d.data.cache import store
from l2d.data.errors import FingerprintMismatch, UsageError
from l2d.data.results import Shown
from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.best.graph import rejector_graph
from l2d.rejector.best.trained import TrainedBest
from l2d.rejector.losses import allocate
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.runs.elsewhere import Beta, at_setting
from l2d.rejector.runs.files import one_run
from l2d.rejector.runs.run import Run, load_run, open_cache
from l2d.rejector.settings import INPUT_OF
from l2d.rejector.trained import Rejector
from l2d.rejector.training.network import network_of

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


class Deployed(nn.Module):
    """A rejector as it is used: raw features (batch, width), pixels (batch, 3, side, side) in [0, 1], or token lists
    (batch, width) as int64, to scores (batch, agents) and the agent's index (batch,), int64.

    A number that is NaN or infinite is missing: it becomes what ``l2d route`` makes of a missing one, the training
    median, and its indicator 1 where there is one; without an ``encoder`` the training mean. ``one_row`` is an input of
    one sample, whose shape and type are those of all.
    """

    def __init__(self, rejector: Rejector, one_row: Tensor, encoder: FeatureEncoder | None = None):
        super().__init__()
        self.network = network_of(rejector).network()
        self.register_buffer("one_row", one_row)
        self.register_buffer("mean", rejector.state["feature_mean"])
        self.register_buffer("std", rejector.state["feature_std"])
        instead, indicated = _missing(rejector, encoder)
        self.register_buffer("instead", torch.as_tensor(instead).to(self.mean.dtype))
        self.register_buffer("indicators", torch.zeros(len(self.mean), dtype=torch.bool))
        self.register_buffer("largest", torch.tensor(torch.finfo(self.mean.dtype).max, dtype=self.mean.dtype))
        self.has_indicators, sources = bool(indicated), torch.arange(len(self.mean))
        for indicator, source in indicated.items():
            self.indicators[indicator], sources[indicator] = True, source
        self.register_buffer("sources", sources)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        # With one row more, so that no step ever sees an empty batch, which onnxruntime's ArgMax gives another shape
        # and its ReduceMax ends the process for.
        rows = torch.cat([inputs, torch.zeros_like(self.one_row)])
        looked_at = rows if rows.dtype == torch.int64 else self._standardised(rows.flatten(1))
        scores = self.network(looked_at)
        return scores[:-1], scores.argmax(dim=-1)[:-1]  # ONNX's takes the lowest index of equals, unlike torch on a GPU

    def _standardised(self, values: Tensor) -> Tensor:
        known = values.abs() <= self.largest  # false for NaN in every runtime
        if self.has_indicators:
            values = torch.where(self.indicators & ~known.index_select(1, self.sources), 1.0, values)
            known = known | self.indicators
        values = torch.where(known, values, self.instead)
        return ((values - self.mean) / self.std).float()


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
    facts = {"run_id": opened.point.run_id}
    if opened.input is not None:  # runs saved by earlier versions do not say
        facts |= {"feature_names": opened.input.made.get("names", []), "input": opened.input.made}
    encoder = None if opened.input is None else opened.input.encoder
    encoder = encoder if isinstance(encoder, FeatureEncoder) else None
    model = onnx_model(opened.rejector, opened.agents, facts, encoder=encoder)
    if isinstance(opened.rejector, TrainedBest):
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
        encoder: of the features: what a NaN or an infinite number in them stands for, see :class:`Deployed`.

    Raises:
        UsageError: the extra ``onnx`` is not installed.
    """
    _require_onnx()
    import onnx

    example = _example(rejector, 64)
    if isinstance(rejector, TrainedBest):
        model = rejector_graph(rejector, *_missing(rejector, encoder))
    else:
        model, example = _network_model(rejector, example, encoder)
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


def _network_model(
    rejector: Rejector, example: Tensor, encoder: FeatureEncoder | None
) -> tuple[onnx.ModelProto, Tensor]:
    """A network by torch's exporter, and the example (rows, width) in the shape that the model takes."""
    column = INPUT_OF[rejector.config.network]
    width = rejector.width
    shape = (3, math.isqrt(width // 3), math.isqrt(width // 3)) if column == "image" else (width,)
    example = example.reshape(-1, *shape)
    deployed = Deployed(rejector, example[:1], encoder).eval()
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):  # 2.11 warns of itself
        program = torch.onnx.export(
            deployed,
            (example[:2],),  # a batch of one would be taken for a constant
            dynamo=True,  # the other exporter is deprecated since torch 2.9
            input_names=[column],
            output_names=["scores", "agent"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        part.ClearField("metadata_props")  # the exporter's notes, with paths of this machine
    return model, example


def _example(rejector: Rejector, rows: int) -> Tensor:
    """Random inputs of the kind that a rejector looks at, (rows, width)."""
    generator = torch.Generator().manual_seed(0)
    fields = []
    for codes, length in rejector.sizes:
        lists = torch.randint(1, codes, (rows, length), generator=generator)
        counts = torch.randint(0, length + 1, (rows, 1), generator=generator)
        fields.append(torch.where(torch.arange(length) < counts, lists, 0))
    if fields:
        return torch.cat(fields, dim=1)
    mean, std = (torch.as_tensor(rejector.state[name]) for name in ("feature_mean", "feature_std"))
    return mean + std * torch.randn(rows, len(mean), generator=generator)


def _compare(model: onnx.ModelProto, rejector: Rejector, example: Tensor) -> None:
    """See that the model gives what the rejector gives: exporter, runtime and torch are of many versions."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores, agent = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    expected = rejector.scores(example.flatten(1).numpy())
    close = np.allclose(scores, expected, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE * np.abs(expected).max())
    if not close or not np.array_equal(agent, allocate(torch.from_numpy(scores)).numpy()):
        worst = np.abs(scores - expected).max()
        raise RuntimeError(f"the exported model differs from the rejector by {worst} (torch {torch.__version__})")


def _compare_on_test(model: onnx.ModelProto, run: Run) -> None:
    """See that every test sample of the run's cache goes to the same agent, where that cache is still there."""
    import onnxruntime

    try:
        cache = open_cache(run)
    except (UsageError, FingerprintMismatch):
        return
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    stream = open_streams(cache, ("test",), column="features", failures=run.rejector.config.failures)["test"]
    for features, _ in stream.in_order(TEST_ROWS_AT_ONCE):
        _, agent = session.run(None, {"features": features.numpy()})
        differ = int((agent != allocate(torch.from_numpy(run.rejector.scores(features.numpy()))).numpy()).sum())
        if differ:
            raise RuntimeError(f"the exported model sends {differ} test samples to other agents than the rejector")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"writing ONNX needs {error.name}", hint="install it: pip install 'l2d[onnx]'") from error
