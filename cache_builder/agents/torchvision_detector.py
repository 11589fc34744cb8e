"""Any of torchvision's detectors, with the weights torchvision publishes or with the user's own."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torchvision.models import WeightsEnum, detection, get_model_builder, list_models

from l2d.cache_builder.agents._base import file_digest
from l2d.cache_builder.agents._labels import class_labels
from l2d.cache_builder.agents._torchvision_models import TorchvisionAgent, TorchvisionConfig
from l2d.data.errors import UsageError, nearest
from l2d.data.networks.weights import load_weights, published_file, published_weights, read_weights
from l2d.data.samples.dataset import Dataset
from l2d.data.sources._annotated import is_file

#: Published weights that torchvision uses with no constant added to the variances, see its `overwrite_eps`.
NO_EPS = {("fasterrcnn_resnet50_fpn", "COCO_V1"), ("retinanet_resnet50_fpn", "COCO_V1")}


def architectures() -> list[str]:
    """torchvision's builders that answer with boxes alone."""
    return [name for name in list_models(module=detection) if not name.startswith(("keypointrcnn", "maskrcnn"))]


class TorchvisionDetectorConfig(TorchvisionConfig):
    """``kind = "torchvision_detector"``: ``architecture`` is the name of torchvision's builder.

    ``weights`` is a file (``.safetensors``, or a state dict as ``torch.save`` writes it, by itself or under one of
    :data:`.weights.NESTED`), or the name of weights that torchvision publishes, such as ``"COCO_V1"``; these are looked
    for in torch.hub's checkpoints, and nothing is ever downloaded. ``labels`` says what the detector's labels from 1 on
    mean: the categories of published weights (``"weights"``, the default for them), the dataset's classes in order
    (``"dataset"``, the default for own files), or these names.
    """

    kind: Literal["torchvision_detector"]
    architecture: str
    """Name of torchvision's builder, such as `fasterrcnn_resnet50_fpn`."""
    weights: Path | str
    """A file, or the name of published weights, such as `COCO_V1`. Nothing is downloaded."""
    labels: Literal["weights", "dataset"] | list[str] | None = None
    """What labels from 1 on stand for: the weights' categories (default of published ones), the dataset's classes in
    order (default of files), or these names.
    """


class TorchvisionDetectorAgent(TorchvisionAgent):
    config: TorchvisionDetectorConfig

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        config, where = self.config, f"agent {self.config.name!r}"
        if config.architecture not in architectures():
            others = config.architecture in list_models(module=detection)
            what = "answers with more than boxes" if others else "is not a detector of torchvision's"
            known = f"choose from {', '.join(architectures())}"
            raise UsageError(
                f"architecture {config.architecture!r} {what}",
                where=where,
                hint=known if others else nearest(config.architecture, architectures()),
            )
        if config.architecture.startswith("ssd") and (config.min_size or config.max_size):
            raise UsageError(
                "min_size and max_size: an SSD squeezes every image to the one size it was made for",
                where=where,
                hint="leave them out",
            )
        path = self.file
        if not is_file(path):
            if self.known is None:
                raise UsageError("there is no such file", where=path, hint="relative paths are relative to the recipe")
            raise UsageError(
                f"{where}: weights {config.weights} of {config.architecture} are not here; nothing is downloaded",
                where=path,
                hint=f'put the file from {self.known.url} there, or name another copy: weights = "FILE"',
            )
        self._labels(dataset)

    @property
    def file(self) -> Path:
        """Where the weights have to be.

        Raises:
            UsageError: torchvision publishes no weights of that name.
        """
        return published_file(self.config.weights, self.known)

    @cached_property
    def known(self) -> WeightsEnum | None:
        """The published weights that these are: by their name, or by the name of the file."""
        return published_weights(self.config.architecture, self.config.weights, f"agent {self.config.name!r}")

    def _labels(self, dataset: Dataset) -> np.ndarray:
        """Index of the dataset's class for each label, background first."""
        labels, where = self.config.labels, f"agent {self.config.name!r}"
        if labels is None:
            labels = "weights" if self.known else "dataset"
        if labels == "weights":
            if self.known is None:
                raise UsageError(
                    'labels = "weights", but these weights are not published ones, so their labels are not known',
                    where=where,
                    hint='give the names in order, or labels = "dataset"',
                )
            names = self.known.meta["categories"][1:]
        else:
            names = list(dataset.classes) if labels == "dataset" else labels
        return np.concatenate([[-1], class_labels(names, dataset.classes, self.config)]).astype(np.int32)

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        super().load(frozen, dataset, device)
        labels = self._labels(dataset)
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and thrown away
            model = get_model_builder(self.config.architecture)(
                weights=None, weights_backbone=None, num_classes=len(labels)
            )
        load_weights(model, read_weights(self.file), self.file, self.config.architecture)
        if self.known and (self.config.architecture, self.known.name) in NO_EPS:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
        self.use(model, labels)

    def gflops(self, dataset: Dataset) -> float | None:
        """As torchvision publishes them for the weights; measured for own files and other sizes of images."""
        if self.known and self.config.min_size is None and self.config.max_size is None:
            return float(self.known.meta["_ops"])
        return super().gflops(dataset)

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """Weights count by their content, and by whether they are published ones: these may be used differently."""
        fields = super().fingerprint(dataset)
        fields["weights"] = file_digest(self.file) if is_file(self.file) else None
        return {**fields, "published": self.known.name if self.known else None}
