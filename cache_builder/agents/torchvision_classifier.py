"""Any of torchvision's image classifiers, with the weights torchvision publishes or with the user's own."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models import WeightsEnum, get_model_builder, list_models

from l2d.cache_builder.agents._base import file_digest
from l2d.cache_builder.agents._model import ModelAgent, ModelConfig
from l2d.data.errors import UsageError, nearest
from l2d.data.networks.weights import load_weights, published_file, published_weights, read_weights
from l2d.data.samples.dataset import Dataset
from l2d.data.sources._annotated import is_file


class TorchvisionClassifierConfig(ModelConfig):
    """``kind = "torchvision_classifier"``: ``architecture`` is the name of torchvision's builder, ``resnet50`` say.

    ``weights`` is a file, or the name of published ones (``"IMAGENET1K_V2"``), which are looked for in torch.hub's
    checkpoints; nothing is ever downloaded. Published ones bring their labels and how images are scaled. ``label_map``
    gives the dataset's class for a label of theirs; a class's probability is that of all its labels together.
    """

    kind: Literal["torchvision_classifier"]
    architecture: str
    """Name of torchvision's builder, such as `resnet50`."""
    weights: Path | str
    """A file, or the name of published weights, such as `IMAGENET1K_V2`. Nothing is downloaded."""
    label_map: dict[str, str] = {}
    """A label of the weights -> a class: `{ tabby = "cat" }`."""
    batch_size: int = 64
    """Images on the device at once."""


class TorchvisionClassifierAgent(ModelAgent):
    config: TorchvisionClassifierConfig

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        config, where = self.config, f"agent {self.config.name!r}"
        known = list_models(module=models)
        if config.architecture not in known:
            raise UsageError(
                f"architecture {config.architecture!r} is not a classifier of torchvision's",
                where=where,
                hint=nearest(config.architecture, known),
            )
        if (dataset.images is None and dataset.pixels is None) or tasks != ["cla"]:
            raise UsageError("it answers classes of images alone", where=where, hint="use it on a dataset of images")
        if not is_file(self.file):
            hint = "relative paths are relative to the recipe"
            if self.known is not None:
                hint = f'nothing is downloaded: put the file from {self.known.url} there, or say weights = "FILE"'
            raise UsageError(f"{where}: there is no such file", where=self.file, hint=hint)
        names = self._names(dataset)
        for name in dataset.classes:
            if name not in names:
                raise UsageError(
                    f"none of the weights' labels is the class {name!r}",
                    where=where,
                    hint=f"name it: label_map = {{ LABEL = {name!r} }}; labels are like {', '.join(names[:5])}",
                )
        super().check(dataset, tasks)

    def labels_of(self, dataset: Dataset) -> list[str]:
        return list(dataset.classes)  # of all labels together that are one of them

    @property
    def file(self) -> Path:
        """Where the weights have to be."""
        return published_file(self.config.weights, self.known)

    @cached_property
    def known(self) -> WeightsEnum | None:
        """The published weights that these are: by their name, or by the name of the file."""
        return published_weights(self.config.architecture, self.config.weights, f"agent {self.config.name!r}")

    def _names(self, dataset: Dataset) -> list[str]:
        """The class that each of the model's outputs stands for; labels that are no class by their own name."""
        names = self.config.labels or (self.known.meta["categories"] if self.known else list(dataset.classes))
        return [self.config.label_map.get(name, name) for name in names]

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.names = self._names(dataset)
        if self.known is not None and self.config.image_size is None:
            self.preset = self.known.transforms()
            self.image_side = self.preset.crop_size[0]
        super().load(frozen, dataset, device)
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and thrown away
            model = get_model_builder(self.config.architecture)(weights=None, num_classes=len(self.names))
        load_weights(model, read_weights(self.file), self.file, self.config.architecture)
        self.model = model.eval().requires_grad_(False).to(device)
        columns = [[label == name for label in self.names] for name in dataset.classes]
        self.belongs = torch.tensor(columns, dtype=torch.float64, device=device)  # (classes, labels)

    def prepare(self, image: Tensor) -> Tensor:
        preset = getattr(self, "preset", None)
        return super().prepare(image) if preset is None else preset(image)

    @torch.inference_mode()
    def run(self, inputs: Tensor) -> dict[str, Tensor]:
        """Probabilities of the dataset's classes among themselves."""
        logits = self.model(inputs.to(self.device))
        logits = getattr(logits, "logits", logits).double()
        used = self.belongs.sum(dim=0) > 0
        share = logits.masked_fill(~used, -torch.inf).softmax(dim=1)
        return {"prob": share @ self.belongs.T}

    def gflops(self, dataset: Dataset) -> float | None:
        """As torchvision publishes them for the weights; measured for own files and other sizes of images."""
        if self.known is not None and self.config.image_size is None:
            return float(self.known.meta["_ops"])
        with FlopCounterMode(display=False) as counter:
            self.run(torch.zeros((1, 3, *self.size)))
        return counter.get_total_flops() / 2e9

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        fields = super().fingerprint(dataset)
        fields["weights"] = file_digest(self.file) if is_file(self.file) else None
        return {**fields, "published": self.known.name if self.known else None}
