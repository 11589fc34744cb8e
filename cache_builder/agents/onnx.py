"""Classifiers and regressors as ONNX files, run by onnxruntime: scikit-learn's by skl2onnx, torch's, any other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from l2d.cache_builder.agents._base import file_digest
from l2d.cache_builder.agents._model import NAMES, ModelAgent, ModelConfig
from l2d.cache_builder.agents._onnx_session import open_session, require_session
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.dataset import Dataset
from l2d.data.sources._annotated import is_file

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxConfig(ModelConfig):
    """``kind = "onnx"``: ``file`` takes one array of numbers.

    Its outputs are those named as a dict's would be (``logits``, ``prob``, ``cla``, ``reg``), or the first ones in the
    order of ``outputs``, or skl2onnx's ``probabilities`` (``variable`` for a regressor) by themselves.
    """

    kind: Literal["onnx"]
    file: Path
    """The `.onnx` file."""


#: skl2onnx's names of what a scikit-learn model answers.
SKLEARN = {"probabilities": "prob", "output_probability": "prob", "variable": "reg"}


class OnnxAgent(ModelAgent):
    config: OnnxConfig

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        require_session(self.config.file, f"agent {self.config.name!r}")
        super().check(dataset, tasks)

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        file = self.config.file
        self.session = open_session(file, device, f"agent {self.config.name!r}")
        inputs = self.session.get_inputs()
        rank = 4 if self.sees else 2
        if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != rank:
            shown = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            expected = "(n, width)" if rank == 2 else "(n, 3, height, width)"
            raise DataError(f"takes {shown}", where=file, hint=f"it has to take one array of numbers {expected}")
        self.input = inputs[0]
        shape = [size if isinstance(size, int) and size > 0 else None for size in self.input.shape]
        self.batch = shape[0]
        self.channels_last = rank == 4 and shape[3] == 3 and shape[1] != 3
        if rank == 4:
            own = shape[1:3] if self.channels_last else shape[2:]
            known = [size for size in own if size is not None]
            if len(known) == len(own) and self.config.image_size is None:
                self.image_side = known
        elif shape[1] not in (None, self.matrix.shape[1]):
            raise UsageError(
                f"takes {shape[1]} numbers, the table gives {self.matrix.shape[1]}",
                where=file,
                hint='say which, in order: columns = ["age", …]; features are encoded, so that a category is several',
            )
        super().load(frozen, dataset, device)

    def run(self, inputs: Tensor) -> dict[str, np.ndarray] | tuple[np.ndarray, ...]:
        values = inputs.permute(0, 2, 3, 1) if self.channels_last else inputs
        parts = []
        for part in values.split(self.batch or len(values)):
            count, rows = len(part), part
            if self.batch and count < self.batch:
                rows = torch.cat([part, part[-1:].expand(self.batch - count, *part.shape[1:])])
            array = np.ascontiguousarray(rows.numpy(), dtype=TYPES[self.input.type])
            parts.append([_rows(value)[:count] for value in self.session.run(None, {self.input.name: array})])
        found = [np.concatenate(values) for values in zip(*parts, strict=True)]
        names = [output.name for output in self.session.get_outputs()]
        if self.config.outputs is not None:
            return tuple(found[: len(self.config.outputs)])
        known = {SKLEARN.get(name, name): value for name, value in zip(names, found, strict=True)}
        known = {name: value for name, value in known.items() if name in NAMES}
        return known or tuple(found[: len(self.wanted)])

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        fields = super().fingerprint(dataset)
        if self.config.columns:
            fields |= dataset.column_digests()
        return {**fields, "file": file_digest(self.config.file) if is_file(self.config.file) else None}


def _rows(value: Any) -> np.ndarray:
    """An output as an array; skl2onnx's list of dicts (class -> probability) as a matrix, classes in order."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([[row[name] for name in sorted(row)] for row in value])
    return np.asarray(value)
