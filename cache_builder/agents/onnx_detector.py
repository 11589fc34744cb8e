"""Detectors as ONNX files, run by onnxruntime: YOLO in its usual forms of output, or what answers with boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, box_convert

from l2d.cache_builder.agents._base import file_digest
from l2d.cache_builder.agents._detector import DetectorAgent, DetectorConfig
from l2d.cache_builder.agents._labels import LabelList, class_labels, names_of
from l2d.cache_builder.agents._onnx_session import open_session, require_session
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.data.samples.dataset import Dataset
from l2d.data.sources._annotated import is_file

GREY = 114 / 255  # what YOLO pads images with
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
Side = Annotated[int, Field(ge=16)]


class OnnxDetectorConfig(DetectorConfig):
    """``kind = "onnx_detector"``: ``file`` takes RGB images with values from 0 to 1, all of one size.

    ``decode`` says what it answers, C being the number of classes and N that of places it looks at:

    * ``yolov5``: (n, N, 5 + C): centre x, centre y, width, height, objectness, class scores.
    * ``yolov8``: (n, 4 + C, N): centre x, centre y, width, height, class scores.
    * ``boxes``: ``boxes`` (n, k, 4) as corners, ``labels`` (n, k) from 1 on and ``scores`` (n, k), in this order unless
      named so, as torchvision exports its detectors; without n where the file takes one image.

    YOLO's boxes count with the class of their highest score; overlapping ones of a class are suppressed here.
    """

    kind: Literal["onnx_detector"]
    file: Path
    """The `.onnx` file."""
    decode: Literal["yolov5", "yolov8", "boxes"]
    """What it answers, see above."""
    input_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Side of its input in pixels, or `[height, width]`; the model's own if it has one."""
    resize: Literal["letterbox", "stretch"] = "letterbox"
    """Keep the shape and pad, or stretch."""
    normalized: bool = False
    """Coordinates are fractions of the input, not pixels."""
    labels: LabelList | None = None
    """What its labels stand for. By default COCO's 80 names in order; for `boxes` COCO's 91 ids."""
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Of two boxes of a class that overlap more, the one with the lower score is dropped."""


class Placement(NamedTuple):
    """How an image lies in the input: pixel = x * scale + offset, both as (x, y)."""

    scale: tuple[float, float]
    offset: tuple[float, float]
    width: int
    height: int


class OnnxDetectorAgent(DetectorAgent):
    config: OnnxDetectorConfig

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        require_session(self.config.file, f"agent {self.config.name!r}")
        self._names(dataset)

    def _names(self, dataset: Dataset) -> np.ndarray:
        """Index of the dataset's class for each class of the model, from the first on."""
        labels = self.config.labels or ("coco91" if self.config.decode == "boxes" else "coco80")
        return class_labels(names_of(labels, dataset.classes), dataset.classes, self.config)

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        super().load(frozen, dataset, device)
        file = self.config.file
        self.labels = self._names(dataset)
        self.session = open_session(file, device, f"agent {self.config.name!r}")
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) not in (3, 4):
            shown = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise DataError(f"takes {shown}", where=file, hint="it has to take images alone, as floating point numbers")
        self.input = inputs[0]
        shape = [size if isinstance(size, int) and size > 0 else None for size in self.input.shape]
        self.batched = len(shape) == 4
        self.one_by_one = not self.batched or shape[0] == 1
        if self.batched:
            if shape[0] not in (None, 1):
                raise DataError(f"takes batches of {shape[0]}", where=file, hint="export it for one image, or for any")
            shape = shape[1:]
        self.channels_last = shape[2] == 3 and shape[0] != 3
        self.size = self._input_size(shape[:2] if self.channels_last else shape[1:])

    def _input_size(self, own: list[int | None]) -> tuple[int, int] | None:
        """Height and width of the input; None where the model takes images as they are."""
        file, given = self.config.file, self.config.input_size
        if given is None:
            if None not in own:
                return own[0], own[1]
            if self.config.decode != "boxes":
                raise UsageError("takes images of any size", where=file, hint="set input_size to that of its training")
            self.one_by_one = True
            return None
        size = (given, given) if isinstance(given, int) else (given[0], given[1])
        for side, found in zip(size, own, strict=True):
            if found not in (None, side):
                raise UsageError(f"takes images of {own}, not {size}", where=file, hint="leave out input_size")
        return size

    def detect(self, images: list[Tensor]) -> tuple[list[dict[str, np.ndarray]], None]:
        placed = [place(image.float() / 255, self.size, self.config.resize) for image in images]
        groups = [[one] for one in placed] if self.one_by_one else [placed]
        return [answer for group in groups for answer in self._run(group)], None

    def _run(self, group: list[tuple[Tensor, Placement]]) -> list[dict[str, np.ndarray]]:
        """One run of the model."""
        inputs = torch.stack([image for image, _ in group])
        size = inputs.shape[2:]
        values = inputs.permute(0, 2, 3, 1) if self.channels_last else inputs
        values = np.ascontiguousarray(values.numpy(), dtype=TYPES[self.input.type])
        outputs = self.session.run(None, {self.input.name: values if self.batched else values[0]})
        if self.config.decode == "boxes":
            found = self._given_boxes(outputs, len(group))
        else:
            found = self._yolo(outputs[0], len(group))
        if self.config.normalized:
            found = [(xyxy * np.tile([size[1], size[0]], 2), label, score) for xyxy, label, score in found]
        return [self._answer(*one, placement) for one, (_, placement) in zip(found, group, strict=True)]

    def _yolo(self, output: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Corners in the input's coordinates, class of the model and score of every place, for each image."""
        if self.config.decode == "yolov8":
            output = np.moveaxis(output, 1, -1)
        head = 5 if self.config.decode == "yolov5" else 4
        if output.ndim != 3 or len(output) != count or output.shape[2] != head + len(self.labels):
            raise self._other_form([output], f"{head} + {len(self.labels)} values for every place")
        output = output.astype(np.float32)
        centres = output[:, :, :2][np.isfinite(output[:, :, :2])]
        farthest = float(centres.max(initial=0))  # places cover the input, whatever is on the image
        if len(centres) and (farthest <= 2) != self.config.normalized:
            raise AgentFailure(
                f"agent {self.config.name!r} answered centres up to {farthest:g}, with normalized = "
                f"{str(self.config.normalized).lower()}",
                where=self.config.file,
                hint=f"set normalized = {str(not self.config.normalized).lower()}",
            )
        scores = output[:, :, head:] * (output[:, :, 4:5] if head == 5 else 1)
        label = scores.argmax(axis=2)
        score = np.take_along_axis(scores, label[:, :, None], axis=2)[:, :, 0]
        xyxy = box_convert(torch.from_numpy(output[:, :, :4].copy()), "cxcywh", "xyxy").numpy()
        return list(zip(xyxy, label, score, strict=True))

    def _given_boxes(self, outputs: list[np.ndarray], count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        names = [output.name for output in self.session.get_outputs()]
        kinds = ("boxes", "labels", "scores")
        if len(outputs) >= 3:
            chosen = [names.index(kind) if set(kinds) <= set(names) else k for k, kind in enumerate(kinds)]
            boxes, labels, scores = (outputs[k] for k in chosen)
            if boxes.ndim == 2:  # of one image
                boxes, labels, scores = boxes[None], labels[None], scores[None]
            if boxes.shape == (count, boxes.shape[1], 4) and labels.shape == scores.shape == boxes.shape[:2]:
                labels = labels.astype(np.int64)
                wrong = labels[(scores >= self.config.min_score) & ((labels < 0) | (labels > len(self.labels)))]
                if len(wrong):
                    raise AgentFailure(
                        f"agent {self.config.name!r} answered with label {wrong[0]}",
                        where=self.config.file,
                        hint=f"labels are from 1 to {len(self.labels)}: name them all as `labels`",
                    )
                return list(zip(boxes.astype(np.float32), labels - 1, scores.astype(np.float32), strict=True))
        raise self._other_form(outputs, "boxes (n, k, 4), labels (n, k) and scores (n, k)")

    def _other_form(self, outputs: list[np.ndarray], expected: str) -> AgentFailure:
        shapes = ", ".join(str(output.shape) for output in outputs)
        return AgentFailure(
            f"agent {self.config.name!r} answered arrays of shape {shapes}",
            where=self.config.file,
            hint=f'decode = "{self.config.decode}" with these `labels` expects {expected}',
        )

    def _answer(
        self, xyxy: np.ndarray, label: np.ndarray, score: np.ndarray, placement: Placement
    ) -> dict[str, np.ndarray]:
        """Detections in the image's pixels with the dataset's classes, overlapping ones suppressed.

        What is not finite is kept: it is a failure, not a low score.
        """
        finite = np.isfinite(score) & np.isfinite(xyxy).all(axis=1)
        of_ours = (label >= 0) & (self.labels[np.clip(label, 0, None)] >= 0)
        keep = ~finite | (of_ours & (score >= self.config.min_score))
        xyxy, label, score = xyxy[keep], label[keep], score[keep]
        if finite[keep].all() and self.config.decode != "boxes":
            boxes, scores = torch.from_numpy(xyxy).float(), torch.from_numpy(score)
            kept = batched_nms(boxes, scores, torch.from_numpy(label), self.config.nms_iou).numpy()
            xyxy, label, score = xyxy[kept], label[kept], score[kept]
        corners = (xyxy - np.tile(placement.offset, 2)) / np.tile(placement.scale, 2)
        corners = np.clip(corners, 0, [placement.width, placement.height] * 2)
        return {"boxes": corners.astype(np.float32), "labels": self.labels[label], "scores": score}

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        fields = super().fingerprint(dataset)
        fields["file"] = file_digest(self.config.file) if is_file(self.config.file) else None
        return fields


def place(image: Tensor, size: tuple[int, int] | None, resize: str) -> tuple[Tensor, Placement]:
    """Bring an image to the size of the input.

    Args:
        image: (3, H, W), from 0 to 1.
        size: height and width; None leaves the image as it is.
        resize: ``stretch``, or ``letterbox``: as large as it fits, in the middle of grey.

    Returns:
        The input (3, *size), and where the image lies in it.
    """
    height, width = image.shape[1:]
    if size is None:
        return image, Placement((1.0, 1.0), (0.0, 0.0), width, height)
    inner = size
    if resize == "letterbox":
        scale = min(size[0] / height, size[1] / width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    scaled = functional.interpolate(image[None], inner, mode="bilinear", antialias=True)[0].clamp_(0, 1)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = torch.full((3, *size), GREY)
    canvas[:, top : top + inner[0], left : left + inner[1]] = scaled
    return canvas, Placement((inner[1] / width, inner[0] / height), (float(left), float(top)), width, height)
