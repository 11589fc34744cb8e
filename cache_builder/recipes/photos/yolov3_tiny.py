"""YOLOv3-tiny by PyTorch, read from Darknet's own files: an agent of `kind = "python"`, and an example of writing one.

    factory = "yolov3_tiny:Detector"
    options = { weights = "detectors/yolov3-tiny.weights", config = "detectors/yolov3-tiny.cfg" }
    labels = "coco80"

Darknet's configuration lists layers in order; its weights are 32-bit floats in that order after a header of 20 bytes.
Boxes are decoded as in J. Redmon and A. Farhadi, "YOLOv3: An Incremental Improvement" (2018), section 2.1.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, box_convert

GREY = 0.5  # what Darknet pads images with
HEADER = 20  # bytes: three numbers of the version, and how many images it has seen


class Detector:
    """Called with a batch, it answers with boxes.

    Args:
        weights, config: Darknet's files.
        size: side of its input in pixels, a multiple of 32; by default that of the configuration.
        min_score: boxes with a lower score are not looked at.
        iou: of two boxes of a class that overlap more, the one with the lower score is dropped.
    """

    def __init__(self, weights: str, config: str, size: int | None = None, min_score: float = 0.05, iou: float = 0.45):
        sections = read_config(config)
        self.size = size or int(sections[0][1]["width"])
        self.layers, self.plan = nn.ModuleList(), sections[1:]
        with open(weights, "rb") as file:
            numbers = torch.from_numpy(np.frombuffer(file.read()[HEADER:], dtype=np.float32).copy())
        used = self._build(numbers)
        if used != len(numbers):
            raise ValueError(f"{weights} has {len(numbers):,} numbers, {config} needs {used:,}")
        self.min_score, self.iou = min_score, iou

    def _build(self, numbers: Tensor) -> int:
        """Make the layers; returns how many numbers they took."""
        start, channels = 0, [3]  # channels of the image, then of each layer
        for kind, options in self.plan:
            layer: nn.Module = nn.Identity()
            width = channels[-1]
            if kind == "convolutional":
                width, side = int(options["filters"]), int(options["size"])
                normalised = options.get("batch_normalize") == "1"
                convolution = nn.Conv2d(channels[-1], width, side, int(options["stride"]), side // 2, bias=True)
                head = numbers[start : start + width * (4 if normalised else 1)].view(-1, width)
                start += head.numel()
                kernel = numbers[start : start + convolution.weight.numel()].view_as(convolution.weight)
                start += kernel.numel()
                bias = head[0]
                if normalised:  # Darknet keeps bias, scale, mean and variance; folded into the convolution here
                    scale = head[1] / (head[3].sqrt() + 1e-6)
                    kernel, bias = kernel * scale[:, None, None, None], head[0] - head[2] * scale
                convolution.weight.data, convolution.bias = kernel.clone(), nn.Parameter(bias.clone())
                layer = convolution
            elif kind == "route":
                width = sum(channels[1 + place] for place in routed(options, len(channels) - 1))
            self.layers.append(layer.requires_grad_(False))
            channels.append(width)
        return start

    @torch.inference_mode()
    def __call__(self, batch) -> dict:
        return {"boxes": [self._look_at(path) for path in batch.images]}

    def _look_at(self, path) -> dict:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        height, width = pixels.shape[1:]
        scale = self.size / max(height, width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (self.size - inner[0]) // 2, (self.size - inner[1]) // 2
        canvas = torch.full((1, 3, self.size, self.size), GREY)
        shrunk = functional.interpolate(pixels[None], inner, mode="bilinear", antialias=True)
        canvas[:, :, top : top + inner[0], left : left + inner[1]] = shrunk.clamp(0, 1)
        boxes, scores = (torch.cat(parts) for parts in zip(*self._forward(canvas), strict=True))
        place, label = (scores >= self.min_score).nonzero(as_tuple=True)
        boxes, scores = box_convert(boxes[place], "cxcywh", "xyxy"), scores[place, label]
        kept = batched_nms(boxes, scores, label, self.iou)
        corners = (boxes[kept] - torch.tensor([left, top] * 2)) / torch.tensor(inner[::-1] * 2)
        corners = corners.clamp(0, 1) * torch.tensor([width, height] * 2)
        return {"boxes": corners.numpy(), "labels": label[kept].numpy(), "scores": scores[kept].numpy()}

    def _forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each of its two grids: centres and sides in pixels of the input (m, 4), and scores (m, classes)."""
        seen: list[Tensor] = []
        found, values = [], image
        for layer, (kind, options) in zip(self.layers, self.plan, strict=True):
            if kind == "convolutional":
                values = layer(values)
                values = functional.leaky_relu(values, 0.1) if options["activation"] == "leaky" else values
            elif kind == "maxpool":
                if int(options["stride"]) == 1:  # Darknet fills up at the right and below, so that the size stays
                    values = functional.pad(values, (0, 1, 0, 1), value=-torch.inf)
                values = functional.max_pool2d(values, int(options["size"]), int(options["stride"]))
            elif kind == "upsample":
                values = functional.interpolate(values, scale_factor=int(options["stride"]), mode="nearest")
            elif kind == "route":
                values = torch.cat([seen[place] for place in routed(options, len(seen))], dim=1)
            elif kind == "yolo":
                found.append(decode(values, options, self.size))
            else:
                raise ValueError(f"a layer of kind {kind!r} is not one that YOLOv3-tiny has")
            seen.append(values)
        return found


def decode(values: Tensor, options: dict[str, str], size: int) -> tuple[Tensor, Tensor]:
    """What a grid says, (1, anchors * (5 + classes), side, side): boxes (m, 4) in pixels, scores (m, classes)."""
    anchors = torch.tensor([float(side) for side in options["anchors"].split(",")]).view(-1, 2)
    anchors = anchors[[int(number) for number in options["mask"].split(",")]]
    side = values.shape[-1]
    values = values.view(len(anchors), -1, side, side).permute(0, 2, 3, 1)  # (anchors, rows, columns, 5 + classes)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = (values[..., :2].sigmoid() + torch.stack([columns, rows], dim=-1)) * (size / side)
    sides = values[..., 2:4].exp() * anchors[:, None, None]
    scores = values[..., 5:].sigmoid() * values[..., 4:5].sigmoid()
    return torch.cat([centres, sides], dim=-1).flatten(0, 2), scores.flatten(0, 2)


def read_config(path: str) -> list[tuple[str, dict[str, str]]]:
    """Sections of a Darknet configuration in order: name and settings."""
    sections: list[tuple[str, dict[str, str]]] = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            text = line.split("#")[0].strip()
            if text.startswith("["):
                sections.append((text.strip("[]"), {}))
            elif text:
                key, _, value = text.partition("=")
                sections[-1][1][key.strip()] = value.strip()
    return sections


def routed(options: dict[str, str], layer: int) -> list[int]:
    """Which layers a route takes: numbers below 0 count back from it."""
    numbers = [int(number) for number in options["layers"].split(",")]
    return [layer + number if number < 0 else number for number in numbers]
