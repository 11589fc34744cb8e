"""Asking torchvision's detection models: autocast, memory layout, and pooled features from the same forward pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l2d.cache_builder.agents._detector import DetectorAgent, DetectorConfig
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.images import read_image

#: An answer that is refused.
NOT_FINITE = {
    "boxes": np.zeros((1, 4), np.float32),
    "labels": np.zeros(1, np.int32),
    "scores": np.full(1, np.nan, np.float32),
}


class TorchvisionConfig(DetectorConfig):
    """Keys of everything that is a torchvision detection model."""

    min_size: Annotated[int, Field(ge=16)] | None = None
    """Pixels to which the shorter side is scaled; the model's own if not given."""
    max_size: Annotated[int, Field(ge=16)] | None = None
    """Pixels that the longer side may have then; the model's own if not given."""
    autocast: Literal["float16", "bfloat16"] | None = None
    """Compute in this type where torch finds it safe."""
    channels_last: bool = True
    """Keep images channels last, which is faster on most devices."""


class TorchvisionAgent(DetectorAgent):
    """A torchvision detection model: it has ``transform`` and ``backbone``, and answers a list of images."""

    config: TorchvisionConfig
    can_show = ("backbone", "detections")

    def use(self, model: nn.Module, labels: np.ndarray) -> None:
        """Get a model ready.

        Args:
            model: with its weights.
            labels: index of the dataset's class for each of its labels, -1 for none; label 0 is the background.
        """
        config = self.config
        heads = getattr(model, "roi_heads", model)
        heads.score_thresh = config.min_score
        if (labels[1:] >= 0).all():
            heads.detections_per_img = config.max_detections
        else:  # classes the dataset has not would take places; torchvision cuts last, so cutting here costs nothing
            heads.detections_per_img = sys.maxsize
        if config.min_size is not None:
            model.transform.min_size = (config.min_size,)
        if config.max_size is not None:
            model.transform.max_size = config.max_size
        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.model = model.eval().requires_grad_(False).to(self.device, memory_format=layout)
        self.labels = labels

    @torch.inference_mode()
    def detect(self, images: list[Tensor]) -> tuple[list[dict[str, np.ndarray]], np.ndarray | None]:
        device = torch.device(self.device)
        inputs = [image.to(device, non_blocking=True).float().div_(255) for image in images]
        autocast = self.config.autocast
        dtype = None if autocast is None else getattr(torch, autocast)
        with (
            torch.autocast(device.type, dtype=dtype, enabled=autocast is not None),
            self._pooling() as pooled,
            watch_heads(self.model) as finite,
        ):
            outputs = self.model(inputs)
        # torchvision drops scores that are not numbers, so that a model that overflows would seem to find nothing
        broken = ~torch.stack([torch.isfinite(pooled[-1]).all(dim=1), *finite]).all(dim=0).cpu().numpy()
        answers = []
        for output, bad in zip(outputs, broken, strict=True):
            answer = {name: output[name].float().cpu().numpy() for name in ("boxes", "scores")}
            answer["labels"] = self.labels[output["labels"].cpu().numpy()]
            answers.append(NOT_FINITE if bad else answer)
        wanted = "backbone" in self.config.features
        return answers, torch.cat(pooled, dim=1).float().cpu().numpy() if wanted else None

    def shape_in_batch(self, height: int, width: int) -> tuple[int, int]:
        """Scaled and padded as torchvision does it."""
        transform = self.model.transform
        if transform.fixed_size is not None:
            return tuple(transform.fixed_size)
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
        step = transform.size_divisible
        return tuple(math.ceil(math.floor(side * scale) / step) * step for side in (height, width))

    @contextmanager
    def _pooling(self) -> Iterator[list[Tensor]]:
        """Collects, during one forward pass, the mean of every level of feature maps: (images, channels) each.

        Of the last level alone, which is the smallest, where they are not asked for.
        """
        pooled: list[Tensor] = []
        batch: list = []

        def pool(module: nn.Module, inputs: object, output: dict[str, Tensor] | Tensor) -> None:
            if isinstance(output, Mapping) and "backbone" not in self.config.features:
                output = list(output.values())[-1]
            pooled.extend(mean_of_levels(output, batch[0]))

        hooks = [
            self.model.transform.register_forward_hook(lambda module, inputs, output: batch.append(output[0])),
            self.model.backbone.register_forward_hook(pool),
        ]
        try:
            yield pooled
        finally:
            for hook in hooks:
                hook.remove()

    def gflops(self, dataset: Dataset) -> float | None:
        """Measured on the dataset's first image that can be read, as torch counts operations, halved: multiply-adds."""
        for path in dataset.images:
            try:
                image = read_image(path)
            except Exception:  # it will be reported when its turn comes
                continue
            with FlopCounterMode(display=False) as counter:
                self.detect([image])
            return counter.get_total_flops() / 2e9
        return None


@contextmanager
def watch_heads(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects, during one forward pass, whether what the heads put out is finite: bool (images,) each.

    They say most: what is not finite before them is not finite in them either, and they can overflow by themselves.
    """
    finite: list[Tensor] = []
    regions: list[list[int]] = []

    def by_image(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            finite.append(torch.isfinite(output).flatten(1).all(dim=1))
        else:
            for part in output.values() if isinstance(output, Mapping) else output:
                by_image(module, inputs, part)

    def by_region(module: nn.Module, inputs: object, output: tuple[Tensor, ...]) -> None:
        for part in output:
            finite.append(torch.stack([one.all() for one in torch.isfinite(part).split(regions[0])]))

    if hasattr(model, "roi_heads"):
        hooks = [
            model.rpn.head.register_forward_hook(by_image),
            model.rpn.register_forward_hook(lambda module, inputs, output: regions.append([len(b) for b in output[0]])),
            model.roi_heads.box_predictor.register_forward_hook(by_region),
        ]
    else:
        hooks = [model.head.register_forward_hook(by_image)]
    try:
        yield finite
    finally:
        for hook in hooks:
            hook.remove()


def mean_of_levels(output: dict[str, Tensor] | Tensor, batch: object) -> list[Tensor]:
    """Mean of feature maps over what is image, padding left out.

    Args:
        output: of the backbone: one map, or level -> map, each (images, channels, h, w).
        batch: torchvision's ImageList: ``tensors`` (images, 3, H, W) and the ``image_sizes`` within them.

    Returns:
        (images, channels) for each level.
    """
    levels = [output] if isinstance(output, Tensor) else list(output.values())
    height, width = batch.tensors.shape[-2:]
    pooled = []
    for level in levels:
        rows, columns = level.shape[-2:]
        sizes = [(max(1, -(-h * rows // height)), max(1, -(-w * columns // width))) for h, w in batch.image_sizes]
        pooled.append(torch.stack([level[i, :, :h, :w].mean(dim=(1, 2)) for i, (h, w) in enumerate(sizes)]))
    return pooled
