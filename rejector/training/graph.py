"""One network as an ONNX graph, standardisation inside, by torch's exporter."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx


class Deployed(nn.Module):
    """A rejector as it is used: raw features (batch, width), pixels (batch, 3, side, side) in [0, 1], or token lists
    (batch, width) as int64, to scores (batch, agents) and the agent's index (batch,), int64.

    A number that is NaN or infinite is missing: it becomes what ``l2d route`` makes of a missing one, the training
    median, and its indicator 1 where there is one; without an encoder of features the training mean.

    Args:
        network: of standardised features, or of token lists.
        mean, std: of the training split, (width,).
        instead: what stands in for a missing number, (width,).
        indicated: column that tells whether a number is missing -> the column of that number.
    """

    one_row: Tensor
    mean: Tensor
    std: Tensor
    instead: Tensor
    indicators: Tensor
    largest: Tensor
    sources: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, instead: np.ndarray, indicated: dict[int, int]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("instead", torch.as_tensor(instead).to(mean.dtype))
        self.register_buffer("indicators", torch.zeros(len(mean), dtype=torch.bool))
        self.register_buffer("largest", torch.tensor(torch.finfo(mean.dtype).max, dtype=mean.dtype))
        self.has_indicators, sources = bool(indicated), torch.arange(len(mean))
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


def deployed_graph(deployed: Deployed, column: str, example: np.ndarray) -> onnx.ModelProto:
    """The graph of a deployed rejector, its batch size free.

    Args:
        column: what it looks at: ``features``, ``tokens`` or ``image``; the name of the graph's input.
        example: inputs of two samples or more, (n, width).
    """
    side = math.isqrt(example.shape[1] // 3)
    rows = torch.from_numpy(example)
    rows = rows.reshape(-1, 3, side, side) if column == "image" else rows
    deployed.register_buffer("one_row", rows[:1])
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):  # 2.11 warns of itself
        program = torch.onnx.export(
            deployed.eval(),
            (rows[:2],),  # a batch of one would be taken for a constant
            dynamo=True,  # the other exporter is deprecated since torch 2.9
            input_names=[column],
            output_names=["scores", "agent"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export has given no program")
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        part.ClearField("metadata_props")  # the exporter's notes, with paths of this machine
    return model
