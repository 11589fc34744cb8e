"""Bodies of torchvision's networks: from images to one row of features, cut into stages of which the last can learn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model, list_models
from torchvision.models.detection.faster_rcnn import FasterRCNN

from l2d.data.errors import UsageError, nearest
from l2d.data.networks.weights import load_weights, published_file, published_weights, read_weights

#: What torchvision's weights were trained to see: RGB from 0 to 1, less the mean, divided by the deviation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Part of an architecture's name that may be left out.
PREFIX = "fasterrcnn_"
#: Images in one run of a frozen body. Always so many, the last ones blank: another batch could round otherwise.
AT_ONCE = 16
RANDOM, ALL = "random", "all"
#: Beginnings of the names of weights that no body has: last layers, of whatever number of classes.
HEADS = ("fc.", "classifier.", "heads.", "rpn.", "roi_heads.")


class Affine(nn.Module):
    """Batch normalisation as it stands, ``scale * x + shift`` a channel: its statistics no longer move.

    With the few images of a batch they would be noise, and what they are to an image would depend on its neighbours.
    """

    def __init__(self, norm: Any):
        super().__init__()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.scale = nn.Parameter(scale.detach().clone())
        self.shift = nn.Parameter((norm.bias - norm.running_mean * scale).detach().clone())

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.scale[:, None, None] + self.shift[:, None, None]


class _Tokens(nn.Module):
    """What a vision transformer does before its blocks: patches, the class token, positions."""

    def __init__(self, model: Any):
        super().__init__()
        self.side = model.image_size
        self.conv_proj, self.class_token = model.conv_proj, model.class_token
        self.positions = model.encoder.pos_embedding

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.side:
            images = functional.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions


class Body(nn.Module):
    """A network without its last layer: images (n, 3, side, side), normalised -> features (n, width).

    Args:
        name: an architecture of torchvision: a classifier (``resnet18``, ``efficientnet_b0``, ``convnext_tiny``,
            ``vit_b_16`` …) whose last layer is left off, or a Faster R-CNN (``mobilenet_v3_large_320_fpn``, the prefix
            ``fasterrcnn_`` may be left out), of which each level of feature maps gives its mean.
        unfreeze: the name of the first stage that is to learn; all after it learn too. ``all``: the
            whole body; empty: none.

    Attributes:
        stages: names, in order. first: position of the first that learns.
        trunk: the frozen ones. tail: those that learn.
        kind: ``maps``, ``transformer`` or ``detector``.

    Raises:
        UsageError: there is no such architecture, none that is cut here, or no such stage.
    """

    def __init__(self, name: str, unfreeze: str = ""):
        super().__init__()
        architecture = architecture_of(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that are not loaded are the same each time
            model = _empty(architecture)
        self.architecture, self.kind = architecture, _kind(model)
        self.stages = [name for name, _ in _stages(model, architecture)]
        self.first = self._first(unfreeze)
        self._take(model)

    def _first(self, unfreeze: str) -> int:
        """Position of the first stage that learns."""
        names = self.stages
        if not unfreeze:
            return len(names)
        if unfreeze == ALL:
            return 0
        found = next((place for place, name in enumerate(names) if name == unfreeze), None)
        if found is None:
            raise UsageError(
                f"--unfreeze {unfreeze}: {self.architecture} has no such stage",
                hint=nearest(unfreeze, [*names, ALL], "its stages are"),
            )
        return found

    def forward(self, images: Tensor) -> Tensor:
        return pooled(self.kind, self.tail(self.trunk(images)))

    def load(self, weights: str, where: str = "--backbone-weights") -> None:
        """Put weights in: a file, a name that torchvision publishes them under (in torch.hub's cache), or ``random``.

        Raises:
            UsageError: there are no published weights of that name, or their file is not here; says where it has to be.
            DataError: they do not fit.
        """
        if weights == RANDOM:
            return
        given: Path | str = Path(weights) if Path(weights).suffix else weights
        if weights == "DEFAULT":
            given = _default(self.architecture)
        known = published_weights(self.architecture, given, where)
        file = published_file(given, known)
        if not file.is_file():
            address = f"download {known.url} to here" if known else "give a file, or the name of published weights"
            raise UsageError(f"{where}: these weights are not here", where=file, hint=f"{address}; or say random")
        model = _empty(self.architecture)
        own = {name: value for name, value in model.state_dict().items() if name.startswith(HEADS)}
        found = {name: value for name, value in read_weights(file).items() if not name.startswith(HEADS)}
        load_weights(model, found | own, file, self.architecture)
        self._take(model)

    def _take(self, model: nn.Module) -> None:
        stages = _stages(model, self.architecture)
        self.trunk = nn.Sequential(*(stage for _, stage in stages[: self.first]))
        self.tail = nn.Sequential(*(_thawed(stage) for _, stage in stages[self.first :]))


def pooled(kind: str, maps: Tensor | dict[str, Tensor]) -> Tensor:
    """What the last stage of a kind of body gives, as one row an image: (n, width)."""
    if isinstance(maps, dict):
        return torch.cat([level.mean(dim=(2, 3)) for level in maps.values()], dim=1)
    return maps[:, 0] if kind == "transformer" else maps.mean(dim=(2, 3))


def architecture_of(name: str) -> str:
    """torchvision's name of an architecture.

    Raises:
        UsageError: there is none.
    """
    known = list_models()
    for one in (name, PREFIX + name):
        if one in known:
            return one
    raise UsageError(f"--backbone {name}: torchvision has no such network", hint=nearest(name, known))


def _empty(architecture: str) -> Any:
    extra = {"weights_backbone": None} if architecture.startswith(PREFIX) else {}
    return get_model(architecture, weights=None, **extra).eval().requires_grad_(False)


def _default(architecture: str) -> str:
    from torchvision.models import get_model_weights

    return next(iter(get_model_weights(architecture))).name


def _kind(model: nn.Module) -> str:
    if isinstance(model, FasterRCNN):
        return "detector"
    return "transformer" if hasattr(model, "encoder") else "maps"


def _stages(model: Any, architecture: str) -> list[tuple[str, nn.Module]]:
    """The body in order: names and modules."""
    if isinstance(model, FasterRCNN):
        return [("backbone", model.backbone)]
    if hasattr(model, "encoder") and hasattr(model, "conv_proj"):
        blocks = list(model.encoder.layers.named_children())
        return [("conv_proj", _Tokens(model)), *blocks, ("ln", model.encoder.ln)]
    if hasattr(model, "layer4"):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        return [("stem", stem), *((f"layer{k}", getattr(model, f"layer{k}")) for k in (1, 2, 3, 4))]
    if isinstance(getattr(model, "features", None), nn.Sequential) and not hasattr(model, "permute"):
        return [(f"features.{name}", stage) for name, stage in model.features.named_children()]
    raise UsageError(
        f"--backbone {architecture}: this network is not cut into stages here",
        hint="take a ResNet, EfficientNet, ConvNeXt, MobileNet or ViT, or a Faster R-CNN",
    )


def _thawed(stage: nn.Module) -> nn.Module:
    """A stage that learns: every batch normalisation as :class:`Affine`, no dropping out."""
    if isinstance(stage, nn.BatchNorm2d):
        return Affine(stage)
    if isinstance(stage, nn.MultiheadAttention):
        stage.train()  # it drops nothing; in evaluation torch would take a path that cannot be mapped over networks
    for name, child in stage.named_children():
        setattr(stage, name, _thawed(child))
    return stage


def normalised(pixels: Tensor) -> Tensor:
    """Images (n, 3, side, side) from 0 to 1 as bodies see them."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def in_fixed_batches(rows: Tensor, run: nn.Module | object, at_once: int = AT_ONCE) -> Iterable[Tensor]:
    """What ``run`` makes of rows, in batches of one size, so that an image's result does not depend on the others."""
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        short = at_once - len(part)
        if short:
            part = torch.cat([part, torch.zeros((short, *part.shape[1:]), dtype=part.dtype, device=part.device)])
        yield run(part)[: at_once - short]  # type: ignore[operator]
