"""A small Faster R-CNN that is trained once, on images for that purpose, and then frozen."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from l2d.cache_builder.agents._torchvision_models import TorchvisionAgent, TorchvisionConfig
from l2d.data.errors import DataError
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.images import read_image

Channels = Annotated[int, Field(ge=4)]


class SmallFasterRCNNConfig(TorchvisionConfig):
    """``kind = "small_faster_rcnn"``: for small images and modest hardware; trains on one thread of a CPU.

    A convolution with stride 2 for each of ``channels``, then ``depth`` more, and Faster R-CNN on the last map. Trained
    on ``[dataset] sets.fit``, or on the training split where there is no such set; objects to ignore are left out.
    """

    kind: Literal["small_faster_rcnn"]
    channels: Annotated[list[Channels], Field(min_length=1, max_length=6)] = [16, 32, 64]
    """Channels of each convolution with stride 2."""
    depth: Annotated[int, Field(ge=0)] = 1
    """Convolutions after these, with stride 1."""
    hidden: Annotated[int, Field(ge=4)] = 64
    """Width of the head that classifies a region."""
    anchors: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [12.0, 24.0, 48.0]
    """Sides of the anchor boxes in pixels."""
    proposals: Annotated[int, Field(ge=1)] = 50
    """Regions of an image that the head looks at."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the training images."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Step size."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""
    fit_batch_size: Annotated[int, Field(ge=1)] = 8
    """Images of a training step."""
    seed: int = 0
    """Draws the first weights and the order."""


def build_model(config: SmallFasterRCNNConfig, num_classes: int, size: int) -> FasterRCNN:
    """The untrained network.

    Args:
        num_classes: of the dataset, background not counted.
        size: shorter side that images are scaled to.
    """
    layers: list[nn.Module] = []
    before = 3
    for channels in config.channels:
        layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        before = channels
    for _ in range(config.depth):
        layers += [nn.Conv2d(before, before, 3, padding=1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = before
    pool = MultiScaleRoIAlign(featmap_names=["0"], output_size=5, sampling_ratio=2)
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=4 * size,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator((tuple(config.anchors),), ((0.75, 1.33),)),
        rpn_pre_nms_top_n_train=4 * config.proposals,
        rpn_pre_nms_top_n_test=4 * config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_test=config.proposals,
        rpn_batch_size_per_image=64,
        box_roi_pool=pool,
        box_head=TwoMLPHead(before * 25, config.hidden),
        box_predictor=FastRCNNPredictor(config.hidden, num_classes + 1),
        box_batch_size_per_image=32,
        box_positive_fraction=0.5,
        box_nms_thresh=0.4,
    )


class SmallFasterRCNNAgent(TorchvisionAgent):
    config: SmallFasterRCNNConfig

    @property
    def reads(self) -> tuple[str, ...]:
        """With no set for it, it is trained on the training split."""
        return ("images", "classes", "fit", "split", "target_boxes")

    def _model(self, dataset: Dataset) -> FasterRCNN:
        width, height = dataset.columns["width"].to_numpy(), dataset.columns["height"].to_numpy()
        size = self.config.min_size or int(np.median(np.minimum(width, height)))
        return build_model(self.config, len(dataset.classes), size)

    def freeze(self, dataset: Dataset, device: str) -> dict[str, np.ndarray]:
        source = dataset.fit or dataset
        rows = np.flatnonzero(source.train)
        boxes = source.target_boxes.take(rows)
        boxes = boxes.select(~boxes.ignore)
        if not len(boxes.label):
            raise DataError(
                "there is nothing to find on the images to train on",
                where=f"agent {self.config.name!r}",
                hint="name a set with objects as [dataset] sets.fit",
            )
        images = [read_image(source.images[row]) for row in rows]
        targets = [boxes.of(position) for position in range(len(boxes))]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # layers so small are several times slower on two threads that wait for each other
        try:
            with torch.random.fork_rng(devices=[] if device == "cpu" else None):
                torch.manual_seed(self.config.seed)
                model = self._model(dataset)
                train_detector(model, images, targets, self.config, device)
        finally:
            torch.set_num_threads(threads)
        return {name: value.cpu().numpy() for name, value in model.state_dict().items()}

    def load(self, frozen: dict[str, np.ndarray] | None, dataset: Dataset, device: str) -> None:
        super().load(frozen, dataset, device)
        model = self._model(dataset)
        model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in frozen.items()})
        self.use(model, np.arange(-1, len(dataset.classes), dtype=np.int32))


def train_detector(
    model: FasterRCNN, images: list[Tensor], targets: list[dict], config: SmallFasterRCNNConfig, device: str
) -> None:
    """Train in place: AdamW, a one-cycle schedule, the sum of torchvision's four losses.

    Args:
        images: uint8 (3, H, W).
        targets: of each image, ``boxes`` (k, 4) and ``labels`` (k,) as class indices.

    Raises:
        DataError: the loss is not finite.
    """
    model.to(device).train()
    steps = config.epochs * math.ceil(len(images) / config.fit_batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps, pct_start=0.2)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(images)).split(config.fit_batch_size):
            inputs = [images[row].to(device).float() / 255 for row in rows.tolist()]
            truth = [
                {
                    "boxes": torch.from_numpy(targets[row]["boxes"].copy()).to(device),
                    "labels": torch.from_numpy(targets[row]["labels"] + 1).to(device, torch.int64),
                }
                for row in rows.tolist()
            ]
            loss = sum(model(inputs, truth).values())
            if not torch.isfinite(loss):
                raise DataError("training diverged", where=f"agent {config.name!r}", hint="lower lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    model.eval()
